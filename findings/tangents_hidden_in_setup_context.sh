#!/usr/bin/env bash
# PyTorch 2.13.0: forward-mode tangents seen from inside an autograd.Function.
#
# Guess: setup_context gets the caller's tensors, so it can ask which of them carry a tangent (unpack_dual) and save
#        for forward mode only what those need; jvp gets None for the others.
# Seen: inside forward and setup_context no input has a tangent, as forward mode is switched off there, though jvp is
#       called right after. And jvp gets zeros for inputs that do not move, unless set_materialize_grads(False) was
#       called. needs_input_grad is False for a tensor that only moves. So nothing tells setup_context what to save.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
"$dir/venv/bin/python" - <<'PY'
import torch
from torch.autograd import forward_ad

seen = {}


class Product(torch.autograd.Function):
    @staticmethod
    def forward(x, y):
        seen["forward"] = [forward_ad.unpack_dual(v).tangent is not None for v in (x, y)]
        return x * y

    @staticmethod
    def setup_context(ctx, inputs, output):
        seen["setup_context"] = [forward_ad.unpack_dual(v).tangent is not None for v in inputs]
        seen["needs_input_grad"] = list(ctx.needs_input_grad)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx, dx, dy):
        x, y = ctx.saved_tensors
        seen["jvp"] = [t if t is None else t.tolist() for t in (dx, dy)]
        return dx * y + x * dy


with forward_ad.dual_level():
    x = forward_ad.make_dual(torch.ones(1), torch.ones(1))
    assert forward_ad.unpack_dual(x).tangent is not None
    Product.apply(x, torch.ones(1))
print("torch", torch.__version__, seen)
assert seen["forward"] == seen["setup_context"] == [False, False]
assert seen["needs_input_grad"] == [False, False]
assert seen["jvp"] == [[1.0], [0.0]]
PY
