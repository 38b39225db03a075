"""The records that describe what kernels are to compute: plain data, without Triton."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .layout import Strides

# The dtype in which kernels compute and reduce, where it is not that of the values.
ACCUMULATE = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.bool: torch.int64}


class Argument(NamedTuple):
    """What a plan knows of one tensor's memory."""

    dtype: torch.dtype
    aligned: bool = True  # whether it starts at a multiple of 16 bytes
    is_scratch: bool = False  # whether it is a scratch buffer, which one launch writes and another reads


class Operand(NamedTuple):
    """A tensor or a number that a stage reads."""

    argument: int  # its position among the plan's arguments
    strides: Strides | None  # in elements, one for each axis of the stage; None for a number
    name: str  # what printed programs call it


class KernelOp(NamedTuple):
    """One step of a stage: a formula of values computed before."""

    formula: str  # its name in ``formulas.py``
    inputs: tuple[int, ...]  # the values that it reads, by number
    constant: float | None = None  # the number that the kernel is compiled for, if the formula takes one
    reduces: bool = False  # whether it is a reduction of its only input over the stage's row


class Output(NamedTuple):
    """A value that a stage writes, perhaps reduced on its way out."""

    value: int  # its number
    argument: int  # the position, among the plan's arguments, of the tensor that is written
    strides: Strides  # in elements, one for each axis of the stage; 0 along an axis that it is reduced over
    reduction: str | None = None  # the name of the reduction, None where there is none
    reduced_axes: frozenset[int] = frozenset()  # the axes of the stage that it is reduced over
    reduced_count: int = 1  # how many elements one reduced element is made of


class Stage(NamedTuple):
    """What one kernel computes, for each element of an iteration space.

    Its values are numbered: first the operands, then one for each op.
    """

    shape: tuple[int, ...]  # the sizes of the axes of the iteration space, which has elements
    operands: tuple[Operand, ...]
    ops: tuple[KernelOp, ...]
    outputs: tuple[Output, ...]
    row_axes: frozenset[int] = frozenset()  # the axes over which ops reduce: a program holds whole rows of them
    live_values: int = 1  # values of 4 bytes that a program holds at once for each element
    reloads: bool = False  # whether what all rows read is loaded again for each, instead of held
