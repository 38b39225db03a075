"""``python -m benchmarks.growth``: what a model that never repeats a shape costs: kernels, host time and memory.

On the driver of ``customops.dry_run``, which launches nothing, with a compiler that only counts what it is asked for.
Lengths are drawn evenly by their logarithm; each operator is called on rows of that length, forward and backward.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

import customops
from customops import config
from customops.tools import driver

KERNELS, MILLISECONDS, BYTES = 12, 2, 4096  # aims: kernels in each direction; time and memory of each new shape in both
LONGEST = 4096  # elements of rows that registers hold; longer ones may be walked, by kernels of their own


@customops.fuse
def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * customops.rsqrt(customops.mean(x * x, -1, keepdim=True) + 1e-6) * weight


@customops.fuse
def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    x = x - customops.mean(x, -1, keepdim=True)
    return x * customops.rsqrt(customops.mean(x * x, -1, keepdim=True) + 1e-5) * weight + bias


@customops.fuse
def _softmax(x: Tensor) -> Tensor:
    z = customops.exp(x - customops.amax(x, -1, keepdim=True))
    return z / customops.sum(z, -1, keepdim=True)


OPERATORS: dict[str, tuple[Callable, int]] = {  # and how many vectors of a row's length each takes
    "mul by a row": (customops.mul, 1),
    "RMSNorm": (_rms_norm, 1),
    "LayerNorm": (_layer_norm, 2),
    "softmax": (_softmax, 0),
    "sum(0)": (lambda x: customops.sum(x, 0), 0),
}


class Growth(NamedTuple):
    """The cost of calls on shapes that are new."""

    forward: int  # kernels compiled for the calls
    backward: int  # kernels compiled for their gradients
    milliseconds: float  # of the process for one new shape, call and gradient: the median
    bytes: float  # of memory that one new shape keeps, on average; 0 where memory was not traced


def lengths(count: int, longest: int = LONGEST) -> list[int]:
    """Return ``count`` lengths up to ``longest``, as many of each order of magnitude."""
    draw = random.Random(0)
    return [int(longest ** draw.random()) for _ in range(count)]


def growth(name: str, dtype: torch.dtype, rows: int, drawn: list[int], traced: bool = False) -> Growth:
    """Return what calls on ``drawn`` lengths cost; their memory only if ``traced``, which slows them down."""
    function, vectors = OPERATORS[name]
    kernels: tuple[set, set] = set(), set()
    times, seen = [], set()
    config.plans.clear()
    with _counting() as compiled, customops.dry_run() as records:
        for i, n in enumerate(drawn):
            xs = [torch.empty(shape, dtype=dtype, requires_grad=True) for shape in ((rows, n), *[(n,)] * vectors)]
            if traced and i == len(drawn) // 10:
                tracemalloc.start()
            start = time.process_time()
            z = function(*xs)
            kernels[0].update(compiled)
            compiled.clear()
            torch.autograd.grad(z, xs, torch.empty_like(z))
            kernels[1].update(compiled)
            compiled.clear()
            if n not in seen and i >= len(drawn) // 10:
                times.append(1e3 * (time.process_time() - start))
            seen.add(n)
            records.clear()
        del xs, z
        gc.collect()
        memory = tracemalloc.get_traced_memory()[0] if traced else 0
        tracemalloc.stop()
    return Growth(*map(len, kernels), statistics.median(times), memory / len(times))


@contextmanager
def _counting() -> Iterator[list]:
    """Record each kernel that is asked for inside the block, and compile none."""
    from customops.triton_kernels import launch  # noqa: PLC0415 - Triton may be missing

    keys: list = []
    metadata = SimpleNamespace(num_warps=0, shared=0)
    stand_in = SimpleNamespace(name="", function=None, packed_metadata=None, metadata=metadata)
    stand_in.run = lambda *_: None

    def count(*key):
        keys.append(key)
        return stand_in

    with patch.object(launch, "_compile", count), patch.object(driver, "registers", lambda _: 0):
        try:
            yield keys
        finally:
            config.plans.clear()  # they are plans of kernels that were never compiled


def main(argv=None) -> int:
    """Print what each operator costs; return 1 if that is more than is aimed at."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--lengths", type=int, default=1000, help="how many; default: %(default)s")
    parser.add_argument("--longest", type=int, default=LONGEST, help="default: %(default)s")
    parser.add_argument("--rows", type=int, default=512, help="default: %(default)s")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    drawn = lengths(options.lengths, options.longest)
    print(f"{len(drawn)} lengths, {len(set(drawn))} of them different, of {options.rows} rows")
    print(f"{'':<26}{'kernels forward':>16}{'backward':>10}{'ms a new shape':>16}{'bytes kept':>12}")
    missed = False
    for dtype in (torch.float32, torch.bfloat16):
        for name in OPERATORS:
            cost = growth(name, dtype, options.rows, drawn)
            memory = growth(name, dtype, options.rows, drawn[: len(drawn) // 4], traced=True).bytes
            label = f"{name}, {str(dtype).removeprefix('torch.')}"
            print(f"{label:<26}{cost.forward:>16}{cost.backward:>10}{cost.milliseconds:>16.2f}{memory:>12.0f}")
            missed |= max(cost[:2]) > KERNELS or cost.milliseconds > MILLISECONDS or memory > BYTES
    print(
        f"at most {KERNELS} kernels each way, {MILLISECONDS} ms and {BYTES} bytes: {'missed' if missed else 'reached'}"
    )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
