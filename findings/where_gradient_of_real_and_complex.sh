#!/usr/bin/env bash
# PyTorch 2.13.0, CPU: the gradient of where between a real and a complex tensor, against that of add.
#
# Guess: where promotes as add does, so the gradient of its real operand is the real part of the cotangent.
# Seen: both promote to complex. add gives its real operand a real gradient; where's backward raises an internal
#       message on the real operand, which asks the reader to report it.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
"$dir/venv/bin/python" - <<'PY'
import torch

print("torch", torch.__version__)
real, complex_ = torch.ones(2, requires_grad=True), torch.ones(2, dtype=torch.complex64)
g = torch.tensor([1 + 2j, 3 + 4j])
(gradient,) = torch.autograd.grad(real + complex_, real, g)
print("add:", gradient.tolist())
assert gradient.tolist() == [1, 3]

z = torch.where(torch.tensor([True, False]), real, complex_)
assert z.dtype == torch.complex64
try:
    torch.autograd.grad(z, real, g)
except RuntimeError as error:
    print("where:", str(error).splitlines()[0])
    assert "input_is_complex == grad_is_complex" in str(error)
else:
    raise SystemExit("the gradient is computed now")
PY
