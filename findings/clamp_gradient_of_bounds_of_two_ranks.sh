#!/usr/bin/env bash
# PyTorch 2.13.0, CPU: the gradient of clamp between two tensors, of which the upper has more dimensions than the lower.
#
# Guess: bounds broadcast, so what the forward pass accepts can be differentiated, whichever bound is the larger.
# Seen: with a lower bound of (4, 4) and an upper of (4,) the gradient is computed. With a lower bound of (4,) and an
#       upper of (1, 4, 4) the forward pass works and the backward raises: the comparison with the upper bound is
#       joined in place to that with the lower, which has no room for it.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
"$dir/venv/bin/python" - <<'PY'
import torch

print("torch", torch.__version__)
x = torch.tensor([-2.0, -0.5, 0.5, 2.0], requires_grad=True)
torch.clamp(x, torch.full((4, 4), -1.0), torch.ones(4)).sum().backward()
print("lower (4, 4), upper (4,): gradient", x.grad.tolist())
assert x.grad.tolist() == [0, 4, 4, 0]

z = torch.clamp(x, torch.full((4,), -1.0), torch.ones(1, 4, 4))
assert z.shape == (1, 4, 4)
try:
    z.sum().backward()
except RuntimeError as error:
    print("lower (4,), upper (1, 4, 4):", error)
    assert "doesn't match the broadcast shape [1, 4, 4]" in str(error)
else:
    raise SystemExit("the gradient is computed now")
PY
