#!/usr/bin/env bash
# Triton 3.7.1: how the interpreter rounds float32 to narrower types.
#
# Guess: to the nearest number, ties to even, as torch does, whatever the type.
# Seen: so it is for float16, which NumPy casts. To bfloat16 it cuts the low bits off: 1.999 becomes 1.992, so what is
#       summed over stored results is biased. To float8e5 and float8e4nv it rounds, but where the exponent is odd the
#       carry out of the mantissa is lost: 3.999 becomes 4, and 1.999 becomes 1. And 2^127, far beyond 448, the largest
#       float8e4nv, becomes 256.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.13.0 triton==3.7.1 numpy==2.4.6
cat >"$dir/run.py" <<'PY'
import torch
import triton
import triton.language as tl


@triton.jit
def cast(x, z, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(z + i, tl.load(x + i).to(z.dtype.element_ty))


x = torch.tensor([1.999, 3.999, 0.999, 2.0**127])
print("triton", triton.__version__, x.tolist())
seen = {}
for dtype in (torch.float16, torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fn):
    z = torch.zeros(4).to(dtype)
    cast[(1,)](x, z, BLOCK=4)
    seen[dtype] = z.float().tolist()
    print(f"{str(dtype)[6:]:14} triton {seen[dtype]} torch {x.to(dtype).float().tolist()}")
assert seen[torch.float16] == x.to(torch.float16).tolist()
assert seen[torch.bfloat16][:3] == [1.9921875, 3.984375, 0.99609375]
assert x.to(torch.bfloat16).tolist()[:3] == [2, 4, 1]
assert seen[torch.float8_e5m2][:3] == seen[torch.float8_e4m3fn][:3] == [1, 4, 1]
assert x.to(torch.float8_e5m2).float().tolist()[:3] == [2, 4, 1]
assert seen[torch.float8_e4m3fn][3] == 256
PY
TRITON_INTERPRET=1 "$dir/venv/bin/python" -W ignore "$dir/run.py"
