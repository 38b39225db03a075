#!/usr/bin/env bash
# PyTorch 2.13.0, CPU, x86-64: the sign of the largest of +0 and -0.
#
# Guess: it is +0, as IEEE 754's maximum has it, wherever the two lie.
# Seen: nobody looks at the sign. amax along a row of two returns the first of them; amax over the first axis of a
#       tensor of 2 rows returns the first where there are 8 columns and the last where there are 64. torch.maximum of
#       0-dim tensors returns its first argument, of tensors of 64 elements its second. So a test of signs holds for
#       one shape and fails for another of the same values.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
"$dir/venv/bin/python" - <<'PY'
import torch


def sign(z):
    return "-" if z.flatten()[0].signbit() else "+"


found = {}
for first, pair in (("+", (0.0, -0.0)), ("-", (-0.0, 0.0))):
    x = torch.tensor(pair)
    found[first] = [
        sign(torch.amax(x, 0)),
        sign(torch.amax(x[:, None].repeat(1, 8), 0)),
        sign(torch.amax(x[:, None].repeat(1, 64), 0)),
        sign(torch.maximum(x[0], x[1])),
        sign(torch.maximum(x[0].repeat(64), x[1].repeat(64))),
    ]
print("torch", torch.__version__, "row, 8 columns, 64 columns, maximum of 1, of 64:", found)
assert found == {"+": ["+", "+", "-", "+", "-"], "-": ["-", "-", "+", "-", "+"]}
PY
