#!/usr/bin/env bash
# PyTorch 2.13.0, CPU: forward-mode derivative of amax in float16 over many elements that tie.
#
# Guess: the tangent of amax over 70,000 equal elements, each with tangent 1, is 1: it is their mean.
# Seen: it is inf in float16, though the first derivative, 1/70,000 of the cotangent, is right. For 257 elements in
#       bfloat16 the tangent is 0.996, where the mean of ones is 1.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
"$dir/venv/bin/python" - <<'PY'
import torch

x = torch.ones(70_000, dtype=torch.float16)
_, tangent = torch.func.jvp(lambda x: torch.amax(x, 0), (x,), (x,))
(gradient,) = torch.autograd.grad(torch.amax(x.requires_grad_(), 0), x)
print("torch", torch.__version__, "tangent", tangent.item(), "gradient", gradient[0].item())
assert tangent.isinf()
assert abs(gradient[0].item() * 70_000 - 1) < 0.01
few = torch.ones(257, dtype=torch.bfloat16)
_, tangent = torch.func.jvp(lambda x: torch.amax(x, 0), (few,), (few,))
print("257 in bfloat16: tangent", tangent.item())
assert tangent.item() == 0.99609375
PY
