"""``python -m benchmarks.walk``: which functions of the package one call runs, in order, and in which files they lie.

It walks ``mul`` forward and backward by formulas, then a fused RMSNorm forward and backward by kernels, in Triton's
interpreter, on tensors so small that one program computes all. Each is called twice beforehand, so that what is printed
is a repeated call: what a training step runs.

A frame is a call of a Python function whose code lies in the package. Python 3.11 gives each comprehension one, too:
these are counted, but not printed. A change of file is a frame whose file is not that of the frame before it, in the
order of calls; returns do not count. Frames of kernels are counted apart: the interpreter runs their source as Python,
a GPU does not. What else runs for the interpreter alone is left out. ``--counts`` prints the counts alone,
``--kernels`` the kernels' frames, too.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby, pairwise
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import torch

import customops as ops

ROOT = Path(ops.__file__).resolve().parents[1]
DEVICE_CODE = {  # the files whose functions kernels are made of
    f"triton_kernels/{name}"
    for name in ("approximate", "body", "casts", "division", "formulas", "map", "map_reduce", "walk")
}
FOLDERS = (str(ROOT / "customops") + os.sep, str(ROOT / "triton_kernels") + os.sep)


class Frame(NamedTuple):
    """One call of a Python function of the package."""

    file: str  # relative to the repository, without ``.py``
    function: str  # its qualified name

    @property
    def is_device_code(self) -> bool:
        """Return whether it is source of a kernel, which runs as Python in the interpreter alone."""
        return self.file in DEVICE_CODE


class Walk(NamedTuple):
    """The frames of one call of an operator, or of its gradient, in the order in which they began."""

    name: str
    frames: tuple[Frame, ...]

    @property
    def changes(self) -> int:
        """Return how often a frame lies in another file than the frame before it."""
        return sum(a.file != b.file for a, b in pairwise(self.frames))

    @property
    def files(self) -> int:
        """Return how many files the frames lie in."""
        return len({frame.file for frame in self.frames})

    def host(self) -> Walk:
        """Return the walk without the frames of kernels."""
        return Walk(self.name, tuple(frame for frame in self.frames if not frame.is_device_code))


def walks() -> Iterator[Walk]:
    """Yield the walk of ``mul`` by formulas, then of a fused RMSNorm by kernels, each forward and backward."""
    x, y = torch.randn(2, 8, requires_grad=True), torch.randn(2, 8, requires_grad=True)
    with ops.backend("torch"):
        yield from _forward_and_backward("mul by formulas", ops.mul, x, y)
    weight = torch.randn(8, requires_grad=True)
    with ops.backend("triton"):
        yield from _forward_and_backward("fused RMSNorm by kernels", _rms_norm, x, weight)


@ops.fuse
def _rms_norm(x, weight, eps=1e-6):
    return x * ops.rsqrt(ops.mean(x * x, -1, keepdim=True) + eps) * weight


def _forward_and_backward(name: str, function: Callable, *inputs: torch.Tensor) -> Iterator[Walk]:
    """Yield the walk of a repeated call, and of its gradients for all inputs."""
    for _ in range(2):
        torch.autograd.grad(function(*inputs), inputs, torch.ones_like(inputs[0]))
    with recorded() as forward:
        z = function(*inputs)
    g = torch.ones_like(z)
    with recorded() as backward:
        torch.autograd.grad(z, inputs, g)
    yield Walk(f"{name}, forward", tuple(forward))
    yield Walk(f"{name}, backward", tuple(backward))


@contextmanager
def recorded() -> Iterator[list[Frame]]:
    """Record every call of a Python function of the package inside the block, in this thread."""
    frames: list[Frame] = []

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(FOLDERS) and not _serves_interpreter(frame):
            file = Path(frame.f_code.co_filename).relative_to(ROOT).with_suffix("")
            frames.append(Frame(str(file), frame.f_code.co_qualname))

    sys.setprofile(note)
    try:
        yield frames
    finally:
        sys.setprofile(None)


def _serves_interpreter(frame: FrameType) -> bool:
    """Return whether a frame is neither a kernel's nor one that a launch on a GPU would run."""
    above: FrameType | None = frame
    while above:
        if above.f_code.co_qualname == "interpreting":
            return True
        if above.f_code.co_qualname == "Launch.interpret":
            return not frame.f_code.co_filename.startswith(FOLDERS[1])
        above = above.f_back
    return False


def _lines(frames: Iterable[Frame]) -> Iterator[str]:
    """Yield a line for each run of frames in one file: the file, and its functions in order, repetitions counted."""
    shown = [frame for frame in frames if not frame.function.endswith(("<listcomp>", "<genexpr>"))]
    for file, run in groupby(shown, lambda frame: frame.file):
        functions = [(name, len(list(same))) for name, same in groupby(frame.function for frame in run)]
        called = ", ".join(name if times == 1 else f"{name} x{times}" for name, times in functions)
        yield f"  {file:<32}{called}"


def main(argv: list[str] | None = None) -> None:
    """Print the walks and a table of their counts."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.walk", description=__doc__.partition("\n")[0])
    parser.add_argument("--counts", action="store_true", help="print the table of counts alone")
    parser.add_argument("--kernels", action="store_true", help="print the frames of kernels, too")
    options = parser.parse_args(argv)
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it when it is imported, at the first kernel
    walked = list(walks())
    for walk in () if options.counts else walked:
        print(walk.name, *_lines((walk if options.kernels else walk.host()).frames), "", sep="\n")
    print(f"{'':<36}{'on the host':>24}{'with kernels':>24}")
    print(f"{'a repeated call':<36}" + f"{'frames':>8}{'changes':>9}{'files':>7}" * 2)
    for walk in walked:
        print(
            f"{walk.name:<36}" + "".join(f"{len(w.frames):>8}{w.changes:>9}{w.files:>7}" for w in (walk.host(), walk))
        )


if __name__ == "__main__":
    main()
