#!/usr/bin/env bash
# Triton 3.7.1, PTX for sm_90: where in the text the paths of a branch meet again.
#
# Guess: but for a loop's jump back, branches lead forward in the text. So whoever executes PTX a warp at a time can let
#        the threads at the lowest instruction go first: all that can meet do.
# Seen: LLVM rotates a loop so that the end of its body stands before the start. The rare path of a float64 logarithm in
#       the loop (of zero, infinity or nan) stands last, and jumps back to where it meets the usual one, near the top.
#       With the rule above the usual lanes pass that point, and a shuffle after it, before the others have come. An
#       order of basic blocks that keeps each loop together (Bourdoncle's weak topological order) lets them meet.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.13.0 triton==3.7.1 numpy==2.4.6
cat >"$dir/kernel.py" <<'PY'
import re

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def total_log(x, z, n, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, n, BLOCK):
        i = start + tl.arange(0, BLOCK)
        total += tl.log(tl.load(x + i, mask=i < n, other=1.0))
    tl.store(z, tl.sum(total))


signature = {"x": "*fp64", "z": "*fp64", "n": "i32", "BLOCK": "constexpr"}
source = ASTSource(total_log, signature, {(3,): 128})
ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1}).asm["ptx"]

successors, name, goes_on = {"entry": []}, "entry", True
for line in ptx[ptx.index(".entry") :].split("\n}")[0].splitlines():
    line = line.partition("//")[0].strip()
    if label := re.match(r"\$L__(BB\w+):", line):
        successors[label[1]] = []
        if goes_on:
            successors[name].append(label[1])
        name, goes_on = label[1], True
    elif branch := re.match(r"(@!?%p\d+\s+)?bra(?:\.uni)?\s+\$L__(\w+);", line):
        successors[name].append(branch[2])
        goes_on = branch[1] is not None
    elif line.startswith("ret"):
        goes_on = False
order = list(successors)


def is_reached(block, without):
    """Return whether a path leads from the entry to a block and not through another."""
    seen, ahead = {"entry"}, ["entry"]
    while ahead:
        new = {to for to in successors[ahead.pop()] if to != without} - seen
        seen |= new
        ahead += new
    return block in seen


back = [(block, to) for block in order for to in successors[block] if order.index(to) <= order.index(block)]
joins = sorted({(block, to) for block, to in back if is_reached(block, without=to)})
print("triton", triton.__version__, len(order), "blocks; jumps back that close no loop:", joins)
assert ("BB0_29", "BB0_30") in joins and order.index("BB0_30") < 10 < order.index("BB0_29"), order
PY
"$dir/venv/bin/python" "$dir/kernel.py"
