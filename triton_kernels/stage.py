"""The records that describe what kernels are to compute: plain data, without Triton."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .layout import Strides

# The dtype in which kernels compute and reduce, where it is not that of the values.
ACCUMULATE = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.bool: torch.int64}
EXTREMA = ("amax", "amin")
COMPARED = {  # which of its values a formula compares, if only later, when an extremum meets the elements that are it
    **dict.fromkeys(EXTREMA, slice(0, 1)),
    **dict.fromkeys(("equal", "same"), slice(0, 2)),
    **dict.fromkeys(("is_zero", "one_for_zero", "zero_for_others"), slice(0, 1)),
    "prod_dx": slice(1, 2),
    **dict.fromkeys(("maximum_dx", "maximum_dy"), slice(1, 3)),
    **dict.fromkeys(("clamp_min_dx", "clamp_min_dy", "clamp_max_dx", "clamp_max_dy"), slice(1, 3)),
    **dict.fromkeys(("clamp_dx", "clamp_dlow", "clamp_dhigh"), slice(1, 4)),
    **dict.fromkeys(("lt", "le", "gt", "ge", "eq", "ne"), slice(0, 2)),
}


class Argument(NamedTuple):
    """The facts that a plan knows about one tensor's memory."""

    dtype: torch.dtype
    aligned: bool = True  # whether it starts at a multiple of 16 bytes
    is_scratch: bool = False  # whether it is a scratch buffer, which one launch writes and another reads
    is_position: bool = False  # whether it has the numbers from 0 on, in order: kernels that walk rows compute them


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
    reduces: bool = False  # whether it is a reduction of its only input over the stage's ``row_axes``


class Output(NamedTuple):
    """A value that a stage writes, perhaps reduced on its way out."""

    value: int  # its number
    argument: int  # the position, among the plan's arguments, of the tensor that is written
    strides: Strides  # in elements, one for each axis of the stage; 0 along an axis that it is reduced over
    reduction: str | None = None  # the name of the reduction, None where there is none
    reduced_axes: frozenset[int] = frozenset()  # the axes of the stage that it is reduced over
    reduced_count: int = 1  # how many elements one reduced element is made of
    segment: int = 0  # elements side by side of a row that it adds up to one; 0 where it adds up no segments of rows


class Stage(NamedTuple):
    """The computation of one kernel, for each element of an iteration space.

    Its values are numbered: first the operands, then one for each op.
    """

    shape: tuple[int, ...]  # elements along each axis of the iteration space
    operands: tuple[Operand, ...]  # the values that it loads
    ops: tuple[KernelOp, ...]  # the values that it computes, each after those that it reads
    outputs: tuple[Output, ...]  # the values that it stores
    row_axes: frozenset[int] = frozenset()  # the axes over which ops reduce: a program holds whole rows along them
    live_values: int = 1  # values of 4 bytes that a program holds at once for each element, where it holds no rows


def summarize(stage: Stage) -> str:
    """Return what the stage computes as one line: ``sigmoid(x)``, ``mul_dx(g, y), Σ mul_dy(g, x)``, ``mean(x)``.

    A value that another op reads gets a name first: ``v0 = exp(x), Σ v0``.
    """
    values = [operand.name for operand in stage.operands]
    lines: list[str] = []
    read = {i for op in stage.ops for i in op.inputs}
    for i, op in enumerate(stage.ops, len(stage.operands)):
        arguments = [values[j] for j in op.inputs] + ([] if op.constant is None else [str(op.constant)])
        expression = f"{op.formula}({', '.join(arguments)})"
        values.append(f"v{len(lines)}" if i in read else expression)
        if i in read:
            lines.append(f"{values[i]} = {expression}")
    return ", ".join([*lines, *_output_summaries(stage, values)])


def _output_summaries(stage: Stage, values: Sequence[str]) -> list[str]:
    lines = []
    for output in stage.outputs:
        value = values[output.value]
        if output.reduction:
            of_segments = f" of each {output.segment}" if output.segment else ""
            is_sum = output.reduction == "sum" and stage.ops
            lines.append(f"Σ{of_segments} {value}" if is_sum else f"{output.reduction}({value})")
        else:
            lines.append(value if stage.ops else f"copy({value})")
    return lines
