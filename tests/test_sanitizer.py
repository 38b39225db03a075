"""compute-sanitizer finds nothing in the kernels: no access out of bounds, no race in shared memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from glob import glob

import pytest

from .conftest import DEVICE

if DEVICE != "cuda":
    pytest.skip("needs a GPU: CUSTOMOPS_TEST_DEVICE=cuda CUSTOMOPS_BACKEND=triton", allow_module_level=True)

SANITIZED = """
import torch, customops as ops

def leaf(*shape):
    return torch.rand(shape, device="cuda").add_(0.5).requires_grad_()

def run(function, *xs):
    z = function(*xs)
    torch.autograd.grad(z, xs, torch.ones_like(z))

run(ops.exp, leaf(1001))
run(ops.relu, leaf(30, 7).detach().t().requires_grad_())
run(ops.pow, leaf(300, 1), leaf(1, 300))
run(ops.mul, leaf(40, 70), leaf(70))
run(ops.sub, leaf(3, 1, 5), leaf(4, 1))
run(ops.sum, leaf(40000))
run(lambda x: ops.mean(x, 0), leaf(3000, 5))
run(lambda x: ops.sum(x, 1), leaf(2, 9000, 3))
with torch.no_grad():
    ops.add_(leaf(50)[::3], 1)
    ops.mul(leaf(9), 2, out=leaf(9, 2)[:, 1])
torch.cuda.synchronize()
"""

PAST_THE_END = """
import torch, triton, triton.language as tl

@triton.jit
def kernel(x):
    tl.store(x + (1 << 20), 1.0)

kernel[(1,)](torch.zeros(4, device="cuda"))
torch.cuda.synchronize()
"""


@pytest.fixture
def sanitize(tmp_path):
    """Run a script under compute-sanitizer; without torch's allocator, every tensor has bounds of its own."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), *sorted(glob("/usr/local/cuda*"), reverse=True)]
    found = [shutil.which("compute-sanitizer", path=f"{home}/bin") for home in homes if home]
    binary = shutil.which("compute-sanitizer") or next(filter(None, found), None)
    if not binary:
        pytest.skip("compute-sanitizer is not installed")

    def run(tool, script):
        (tmp_path / "script.py").write_text(script)  # Triton reads the source of a kernel from its file
        # torch asks the driver for functions that it may lack, which memcheck would count
        options = ["--report-api-errors", "no"] if tool == "memcheck" else []
        command = [binary, "--tool", tool, "--error-exitcode", "9", *options, sys.executable, tmp_path / "script.py"]
        environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        if "Device not supported" in done.stdout + done.stderr:
            pytest.skip("compute-sanitizer does not support this machine")
        return done

    return run


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_sanitizer_finds_nothing(sanitize, tool):
    done = sanitize(tool, SANITIZED)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-2000:]}"


def test_sanitizer_finds_a_write_past_the_end(sanitize):
    done = sanitize("memcheck", PAST_THE_END)
    assert done.returncode == 9, f"{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
