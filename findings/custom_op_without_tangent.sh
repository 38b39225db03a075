#!/usr/bin/env bash
# PyTorch 2.13.0: forward mode, and torch.func, through an operator that has no derivative for them.
#
# Guess: they raise, as backward() does for a custom_op without a formula, and forward mode for a Function without jvp.
# Seen: forward mode takes a torch.library.custom_op, with register_autograd or without, for a constant: jvp gives 0,
#       linearize a map to 0, and jacfwd of op(x)·x half of what is right. A kernel made of torch's operators in a
#       torch.library.Library has its derivative by backward() and by dual tensors, and 0 by torch.func.grad and jvp.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cat >"$dir/run.py" <<'PY'
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, jacfwd, jvp, linearize


@torch.library.custom_op("finding::bare", mutates_args=())
def bare(x: Tensor) -> Tensor:
    return x * 2


@torch.library.custom_op("finding::with_backward", mutates_args=())
def with_backward(x: Tensor) -> Tensor:
    return x * 2


with_backward.register_autograd(lambda ctx, g: g * 2)
library = torch.library.Library("findings", "DEF")
library.define("of_library(Tensor x) -> Tensor")
library.impl("of_library", lambda x: x * 2, "CompositeExplicitAutograd")
x = torch.tensor([3.0])


def by_backward(op):
    y = x.clone().requires_grad_()
    return torch.autograd.grad(op(y), y)[0].item()


def by_duals(op):
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(op(forward_ad.make_dual(x, torch.ones(1)))).tangent
    return None if tangent is None else tangent.item()


ways = {
    "backward": by_backward,
    "duals": by_duals,
    "grad": lambda op: grad(lambda x: op(x).sum())(x).item(),
    "jvp": lambda op: jvp(op, (x,), (torch.ones(1),))[1].item(),
    "linearize": lambda op: linearize(op, x)[1](torch.ones(1)).item(),
    "jacfwd of op(x)·x": lambda op: jacfwd(lambda x: op(x) * x)(x).item(),
}


def outcome(way, op):
    try:
        return way(op)
    except RuntimeError:
        return "raises"


print("torch", torch.__version__)
seen = {}
for name, op in {"bare": bare, "with_backward": with_backward, "of_library": torch.ops.findings.of_library}.items():
    seen[name] = [outcome(way, op) for way in ways.values()]
    print(f"{name:14}", dict(zip(ways, seen[name])))
assert seen["bare"] == ["raises", None, "raises", 0, 0, 6]
assert seen["with_backward"] == [2, None, "raises", 0, 0, 6]
assert seen["of_library"] == [2, 2, 0, 0, 0, 6]
PY
"$dir/venv/bin/python" -W ignore "$dir/run.py"
