"""What a dry run records of each launch."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..ptx.memory import Traffic
from .machine_code import Leaf, registers, resources, widest


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
