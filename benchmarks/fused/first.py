"""``python -m benchmarks.fused.first LAYER CONTESTANT``: what the first call of a layer costs, in a process of its own.

It imports torch and the layers, draws operands of 512 x 256 in float32, the smallest that are fused on a CPU, and times
the first forward and the backward of the result's sum. ``torch.autograd.grad`` with a gradient for the result would
import SymPy, for any function: that is torch's own time, of a third of a second. torch.compile starts with no code in
its cache.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from .contestants import contestant
from .gallery import EVERY

PROCESSES = {"ours": 3, "eager": 1, "compile": 1}  # of which the median is told
SIZE = (512, 256)
COMPILED = ("softmax", "rms_norm", "swiglu")  # layers that torch.compile compiles: each takes many seconds
ROOT = Path(__file__).parents[2]


def contestants_of(names: list[str], compiles: bool) -> list[tuple[str, str]]:
    """Return each layer with each contestant whose first call is timed."""
    pairs = [(name, who) for name in names for who in PROCESSES]
    return [(name, who) for name, who in pairs if who != "compile" or (compiles and name in COMPILED)]


def in_processes(name: str, who: str) -> dict[str, float]:
    """Return the milliseconds of a layer's first call, of the clock and of all CPUs: medians over some processes."""
    samples = [_in_a_process(name, who) for _ in range(PROCESSES[who])]
    return {clock: statistics.median(sample[clock] for sample in samples) for clock in samples[0]}


def _in_a_process(name: str, who: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", f"{__package__}.first", name, who]
        process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if process.returncode:
        raise RuntimeError(f"first call of {name}: {process.stderr.strip().rpartition(chr(10))[2]}")
    return json.loads(process.stdout)


def first_call(name: str, who: str) -> dict[str, float]:
    """Call a layer and its gradients for the first time in this process; return what that takes, in milliseconds."""
    layer = EVERY[name]
    *xs, last = layer.draw(SIZE, torch.float32)
    leaves = [x.requires_grad_() for x in (xs if layer.target else [*xs, last])]
    operands = [*leaves, last] if layer.target else leaves
    function = contestant(layer, who)
    if not function:
        raise ValueError(f"torch has no function of its own for {name}")
    wall, cpu = time.perf_counter(), _cpu_seconds()
    z = function(*operands)
    loss = sum(each.sum() for each in z) if isinstance(z, tuple) else z.sum()
    loss.backward()
    return {"wall": 1e3 * (time.perf_counter() - wall), "cpu": 1e3 * (_cpu_seconds() - cpu)}


def _cpu_seconds() -> float:
    """Return the time of all threads of the process, and of those of its children that have ended: compilers."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    print(json.dumps(first_call(*sys.argv[1:])))
