"""A program: operators wired together, evaluated on values that are loaded once and stay in registers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import triton
import triton.language as tl

from . import formulas
from .formulas import INTERPRETED


class Formulas(tuple):
    """JIT functions as one kernel argument that Triton's disk cache keys by their source.

    A plain tuple of JIT functions is keyed by their names alone: editing a formula would leave the old kernel
    running.
    """

    @property
    def cache_key(self):
        """What Triton mixes into the key of the kernel."""
        return "-".join(formula.cache_key for formula in self)


class Program(NamedTuple):
    """``formulas[i]`` reads the values at ``wires[i]`` and appends its own; ``results`` says which are the outputs.

    Operands come first among the values, then one value per formula.
    """

    formulas: Formulas
    wires: tuple[tuple[int, ...], ...]
    results: tuple[int, ...]


@cache
def program_of(names: tuple[str, ...], operands: tuple[str, ...]) -> Program:
    """The program that evaluates each formula on the operands called by its argument names; copies without any."""
    functions = Formulas(getattr(formulas, name) for name in names)
    wires = tuple(tuple(operands.index(read) for read in function.arg_names) for function in functions)
    first = len(operands) if names else 0
    return Program(functions, wires, tuple(range(first, first + max(1, len(names)))))


def is_read(operand: str, names: Sequence[str]) -> bool:
    """Whether any of the formulas called ``names`` has an argument of that name."""
    return any(operand in getattr(formulas, name).arg_names for name in names)


@triton.jit
def evaluate(FORMULAS: tl.constexpr, WIRES: tl.constexpr, values):
    """Append the value of each formula to ``values``."""
    for i in tl.static_range(len(FORMULAS)):
        arguments = ()
        for j in tl.static_range(len(WIRES[i])):
            arguments = arguments + (values[WIRES[i][j]],)
        values = values + (FORMULAS[i](*arguments),)
    return values


@triton.jit
def load(operand, strides, sizes, extents, indices, GROUPS: tl.constexpr, COMMON: tl.constexpr, COMPUTE: tl.constexpr):
    """One operand at ``indices``, one per group of folded axes: rounded to COMMON, as torch does, held in COMPUTE.

    Bit i of GROUPS says that the operand has strides in group i; it is loaded once for all of any other group.
    GROUPS is -1 for a number. That comes as an integer: its own value where the program computes in integers, else
    the bits of a float64, since Triton would round a Python float to float32.
    """
    if GROUPS == -1:
        if COMPUTE.is_floating():
            return tl.cast(operand, tl.int64).to(tl.float64, bitcast=True).to(COMPUTE)
        else:
            return tl.cast(operand, COMPUTE)
    else:
        offset = 0
        mask = True
        for i in tl.static_range(len(indices)):
            if (GROUPS >> i) & 1:
                offset += _offset(indices[i], sizes[i], strides[i])
                mask = mask & (indices[i] < extents[i])
        return _convert(_convert(tl.load(operand + offset, mask=mask), COMMON), COMPUTE)


@triton.jit
def store(output, strides, sizes, extents, indices, value, SUMMED: tl.constexpr):
    """Write ``value`` at ``indices`` but for the group that it was summed over; lanes past an end write nothing."""
    offset = 0
    mask = True
    for i in tl.static_range(len(indices)):
        if i != SUMMED:
            # the product with 0 makes a block of the value's shape, also where the group has no axis
            offset += _offset(indices[i], sizes[i], strides[i]) + indices[i] * 0
            mask = mask & (indices[i] < extents[i])
    tl.store(output + offset, tl.broadcast_to(_convert(value, output.dtype.element_ty), offset.shape), mask=mask)


@triton.jit
def _convert(value, DTYPE: tl.constexpr):
    """Cast to DTYPE, to half types by way of float32: as torch does, and all that the interpreter can do."""
    if DTYPE.is_fp16() or DTYPE.is_bf16():
        value = value.to(tl.float32)
    if INTERPRETED and DTYPE.is_bf16():  # the interpreter cuts the lower bits off, GPUs round to nearest even
        bits = value.to(tl.int32, bitcast=True)
        nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
        value = tl.where(tl.abs(value) >= 0, nearest, value)  # a nan as it is
    return value.to(DTYPE)


@triton.jit
def _offset(index, sizes, strides):
    """Σ coordinate·stride over the axes of a group; ``index`` counts its elements, the last axis fastest."""
    offset = 0
    for i in tl.static_range(len(sizes) - 1, -1, -1):
        if i == 0:
            coordinate = index  # no % for the outermost axis: it would cost the wide loads
        else:
            coordinate = index % sizes[i]
            index = index // sizes[i]
        offset += coordinate * strides[i]
    return offset
