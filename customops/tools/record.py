"""What a dry run records of each launch."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

from ..ptx.memory import Traffic
from ..triton_kernels.traffic import Moves
from .estimate import Estimate, estimate
from .machine_code import Leaf, flat_arguments, parameters, registers, resources, widest


class TensorArgument(NamedTuple):
    """A tensor that a kernel which is not ours was launched on."""

    leaf: Leaf  # where it stands among the kernel's arguments
    numel: int  # elements that it has in memory: an axis of stride 0 counts as one element
    itemsize: int  # bytes of an element


def tensors_of(compiled: Any, args: Sequence[Any]) -> tuple[TensorArgument, ...]:
    """Return the tensors among what a launcher gets for a kernel."""
    leaves = [leaf for leaf, _ in parameters(compiled)]
    return tuple(
        TensorArgument(leaf, prod(n for n, stride in zip(x.shape, x.stride(), strict=True) if stride), x.element_size())
        for leaf, x in zip(leaves, flat_arguments(compiled, args), strict=True)
        if hasattr(x, "data_ptr")
    )


class LaunchRecord(NamedTuple):
    """A launch that a GPU would have made."""

    name: str  # the name of the kernel
    program: str  # the formulas that the kernel evaluates, as ``mul(x, y)``; empty for a kernel that is not ours
    operands: tuple[str, ...]  # the names of the tensors in the argument ``operands``, in order; empty for the same
    grid: tuple[int, int, int]  # the number of programs along each axis of the grid
    num_warps: int  # the number of warps of each program
    compiled: Any  # Triton's CompiledKernel; its ``asm`` holds every stage of the code by name
    bytes_moved: int | None = None  # what all programs together load and store; None where that is not known
    bytes_floor: int | None = None  # the operands and outputs, once each; partial sums are neither; None likewise
    traffic: Traffic | None = None  # the bytes that its threads loaded and stored, where it was executed
    moves: Moves | None = None  # what a launch of ours moves of each operand and output
    tensors: tuple[TensorArgument, ...] = ()  # of another: the tensors that it was launched on

    @property
    def estimate(self) -> Estimate:
        """Return what limits the launch on the GPU that it was compiled for, and its time, estimated."""
        return estimate(self)

    @property
    def registers(self) -> int:
        """Return the number of registers of a thread."""
        return registers(self.compiled)

    @property
    def spills(self) -> int:
        """Return the bytes of a thread that are spilled from registers to memory."""
        return resources(self.compiled).spills

    @property
    def widths(self) -> dict[Leaf | None, int]:
        """Return the bits of the widest load or store of each pointer, by its place among the arguments."""
        return widest(self.compiled)
