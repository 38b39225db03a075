#!/usr/bin/env bash
# Triton 3.7.1: what is compiled behind a return.
#
# Guess: in `if N == 1: return`, where N is a constant, nothing behind the return is compiled for N = 1, as nothing of a
#        branch is that a constant does not take.
# Seen: it is. A static_assert behind it fails, and so would code that is right for other N alone; with `else` it is not
#       compiled. In the interpreter, where a kernel is Python, it does not run.
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
def behind(z, N: tl.constexpr):
    if N == 1:
        return
    tl.static_assert(N > 1)
    tl.store(z, 1.0)


@triton.jit
def otherwise(z, N: tl.constexpr):
    if N == 1:
        return
    else:
        tl.static_assert(N > 1)
        tl.store(z, 1.0)


def outcome(kernel, n):
    if triton.knobs.runtime.interpret:
        z = torch.zeros(1)
        kernel[(1,)](z, N=n)
        return z.item()
    try:
        triton.compile(ASTSource(kernel, {"z": "*fp32", "N": "constexpr"}, {(1,): n}), target=GPUTarget("cuda", 90, 32))
    except triton.compiler.errors.CompilationError as error:
        return type(error).__name__
    return "compiles"


seen = {(kernel.fn.__name__, n): outcome(kernel, n) for kernel in (behind, otherwise) for n in (1, 2)}
print("triton", triton.__version__, "interpreter" if triton.knobs.runtime.interpret else "compiler", seen)
if triton.knobs.runtime.interpret:
    assert list(seen.values()) == [0, 1, 0, 1]
else:
    assert list(seen.values()) == ["CompileTimeAssertionFailure", "compiles", "compiles", "compiles"]
PY
"$dir/venv/bin/python" "$dir/run.py"
TRITON_INTERPRET=1 "$dir/venv/bin/python" "$dir/run.py"
