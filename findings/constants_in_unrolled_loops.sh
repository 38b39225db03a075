#!/usr/bin/env bash
# Triton 3.7.1: a constant that is defined in the body of an unrolled loop.
#
# Guess: `for k in tl.static_range(2): n: tl.constexpr = k * k` defines a constant for each time: the body stands twice.
# Seen: the compiler takes the second time for an assignment to the first constant, and refuses; once is fine. The
#       interpreter runs it. In a function that the loop calls, the same constant is defined anew each time.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.13.0 triton==3.7.1 numpy==2.4.6
cat >"$dir/run.py" <<'PY'
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def in_the_loop(z, N: tl.constexpr):
    for k in tl.static_range(N):
        square: tl.constexpr = k * k
        tl.store(z + k, square)


@triton.jit
def store_square(z, K: tl.constexpr):
    square: tl.constexpr = K * K
    tl.store(z + K, square)


@triton.jit
def in_a_function(z, N: tl.constexpr):
    for k in tl.static_range(N):
        store_square(z, k)


def outcome(kernel, n):
    if triton.knobs.runtime.interpret:
        z = torch.zeros(n)
        kernel[(1,)](z, N=n)
        return z.tolist()
    try:
        triton.compile(ASTSource(kernel, {"z": "*fp32", "N": "constexpr"}, {(1,): n}), target=GPUTarget("cuda", 90, 32))
    except triton.compiler.errors.CompilationError as error:
        return str(error.__cause__ or error).splitlines()[-1]
    return "compiles"


seen = {(kernel.fn.__name__, n): outcome(kernel, n) for kernel in (in_the_loop, in_a_function) for n in (1, 2)}
print("triton", triton.__version__, "interpreter" if triton.knobs.runtime.interpret else "compiler", seen)
if triton.knobs.runtime.interpret:
    assert list(seen.values()) == [[0], [0, 1], [0], [0, 1]]
else:
    once, twice, *called = seen.values()
    assert [once, *called] == ["compiles"] * 3
    assert "constexpr cannot be reassigned" in twice
PY
"$dir/venv/bin/python" "$dir/run.py"
TRITON_INTERPRET=1 "$dir/venv/bin/python" "$dir/run.py"
