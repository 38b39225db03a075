#!/usr/bin/env bash
# Triton 3.7.1, tl.sort, run by Triton's interpreter: what it makes of a nan, and of zeros of both signs.
#
# Guess: nan has no place in the order, so it may stand anywhere; but a sort only moves elements: it gives back each
#        one.
# Seen: of [nan, 3, 1, 2] it gives nan four times, and of [3, 1, 2, nan] it gives [1, 3, 1, 3]: numbers are lost,
#       others stand twice. Both elements of a pair compare with the same >, and the right one negates the answer;
#       where neither is greater, the left one stays and the right one takes the left one's value. So [-0, 0] becomes
#       [-0, -0] as well.
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
def sort(x, z, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(z + i, tl.sort(tl.load(x + i)))


def sorted_by_triton(numbers):
    x = torch.tensor(numbers)
    z = torch.zeros_like(x)
    sort[(1,)](x, z, BLOCK=len(numbers))
    return str(z.tolist())


nan = float("nan")
lists = ([3.0, 1.0, 2.0, 0.0], [nan, 3.0, 1.0, 2.0], [3.0, 1.0, 2.0, nan], [-0.0, 0.0])
seen = {str(numbers): sorted_by_triton(numbers) for numbers in lists}
print("triton", triton.__version__, seen)
assert seen == {
    "[3.0, 1.0, 2.0, 0.0]": "[0.0, 1.0, 2.0, 3.0]",
    "[nan, 3.0, 1.0, 2.0]": "[nan, nan, nan, nan]",
    "[3.0, 1.0, 2.0, nan]": "[1.0, 3.0, 1.0, 3.0]",
    "[-0.0, 0.0]": "[-0.0, -0.0]",
}
PY
TRITON_INTERPRET=1 "$dir/venv/bin/python" -W ignore "$dir/run.py"
