#!/usr/bin/env bash
# Triton 3.7.1: which constant offsets of an address become part of the load instruction.
#
# Guess: x + (k·TILE + arange(0, TILE)) with a constant k takes one address for all k: k·TILE is a constant, and what
#        differs from thread to thread is known to be smaller than TILE, a power of two.
# Seen: with 16 warps only for even k. LLVM knows that a thread's number is below 1024, not below the 512 of the
#       kernel: the lowest bit of k·TILE might be a bit of it, the masked sum is written as an or that is no sum, and
#       every odd chunk gets an address of its own, in two registers. With 4 warps this befalls the last chunk alone.
#       x + k·TILE + arange(0, TILE), where the pointer moves first, takes one address whatever the warps.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q triton==3.7.1
cat >"$dir/run.py" <<'PY'
import re

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def index_first(x, z, TILE: tl.constexpr):
    total = tl.zeros([TILE], tl.float32)
    for k in tl.static_range(8):
        total += tl.load(x + (k * TILE + tl.arange(0, TILE)))
    tl.store(z + tl.arange(0, TILE), total)


@triton.jit
def pointer_first(x, z, TILE: tl.constexpr):
    total = tl.zeros([TILE], tl.float32)
    for k in tl.static_range(8):
        total += tl.load(x + k * TILE + tl.arange(0, TILE))
    tl.store(z + tl.arange(0, TILE), total)


def own_addresses(kernel, warps):
    """Return how many chunks have an index that is computed by an or, so an address of their own."""
    signature = {"x": "*fp32", "z": "*fp32", "TILE": "constexpr"}
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(2)}
    source = ASTSource(kernel, signature, {(2,): warps * 32 * 4}, aligned)
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps}).asm["ptx"]
    assert len(re.findall(r"ld\.global", ptx)) == 8
    return len(re.findall(r"or\.b32", ptx))


print("triton", triton.__version__)
seen = {(kernel.fn.__name__, warps): own_addresses(kernel, warps) for kernel in (index_first, pointer_first) for warps in (4, 16)}
print(seen)
assert seen == {("index_first", 4): 1, ("index_first", 16): 4, ("pointer_first", 4): 0, ("pointer_first", 16): 0}
PY
"$dir/venv/bin/python" "$dir/run.py"
