"""A program: operators wired together, evaluated on values that are loaded once and stay in registers."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from . import formulas
from .formulas import INTERPRETED


class Reducer(NamedTuple):
    """How values along an axis become one: from ``start``, by ``combine`` of two, or ``across`` an axis of a tile.

    ``finish(total, count)`` is what is left to do to a total of so many; None in a part of a total.
    """

    start: float
    combine: Any
    across: Any
    finish: Any


class KernelBody(NamedTuple):
    """``formulas[i]`` reads the values at ``wires[i]`` and appends its own; ``results`` says which are the outputs.

    Operands come first among the values, then one value per formula. The last parameter of a formula may be
    ``constants[i]``, a number that the kernel is compiled for. A formula that has ``folds[i]`` folds what it reads
    along the row, which is a tile's last axis and lies in one tile. An output that has ``ends[j]`` is folded on its way
    out. Values are rounded to ``common`` as they are loaded, most of them, and held in ``compute``.
    """

    formulas: tuple
    wires: tuple[tuple[int, ...], ...]
    results: tuple[int, ...]
    constants: tuple[float | None, ...]
    folds: tuple[Reducer | None, ...]
    ends: tuple[Reducer | None, ...]
    common: tl.dtype
    compute: tl.dtype

    @property
    def cache_key(self) -> str:
        """What Triton mixes into the key of the kernel: by itself it keys JIT functions in a tuple by name alone.

        Editing a formula would leave the old kernel running.
        """
        functions = [*self.formulas, *(f for fold in (*self.folds, *self.ends) if fold for f in fold[1:] if f)]
        return "-".join([*(f.cache_key for f in functions), str(self[1:])])


class Geometry(NamedTuple):
    """What a kernel is compiled for but the program: see ``layout.Layout`` and ``layout.Tiling``."""

    tile: tuple[int, ...]
    side: int
    groups: tuple[int, ...]
    rounded: tuple[bool, ...]  # of each operand: whether it is rounded to the common dtype
    lacking: tuple[int, ...]
    folded: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]  # the tile of each output: 1 along the groups in which it does not change
    ragged: bool
    index: tl.dtype
    held: tuple[int, ...]  # the operands that are loaded before the loop, and held through it


def reducer_of(name: str, dtype: tl.dtype) -> Reducer:
    """How the reduction called ``name`` folds values of ``dtype``."""
    least, combine, across = formulas.FOLDS[name]
    return Reducer(least(dtype), combine, across, getattr(formulas, name))


@triton.jit
def evaluate(values, inside, count, PROGRAM: tl.constexpr, GEOMETRY: tl.constexpr):
    """Append the value of each formula to ``values``; a row has ``count`` elements, those ``inside``."""
    for i in tl.static_range(len(PROGRAM.formulas)):
        arguments = ()
        for j in tl.static_range(len(PROGRAM.wires[i])):
            arguments = arguments + (values[PROGRAM.wires[i][j]],)
        if PROGRAM.folds[i] is not None:
            row = tl.where(inside, tl.broadcast_to(arguments[0], GEOMETRY.tile), PROGRAM.folds[i].start)
            total = PROGRAM.folds[i].across(row, len(GEOMETRY.tile) - 1)
            values = values + (PROGRAM.folds[i].finish(total, tl.cast(count, PROGRAM.compute)),)
        elif PROGRAM.constants[i] is None:
            values = values + (PROGRAM.formulas[i](*arguments),)
        else:
            values = values + (PROGRAM.formulas[i](*arguments, PROGRAM.constants[i]),)
    return values


@triton.jit
def load(
    operand, strides, sizes, extents, indices,
    i: tl.constexpr, WHOLE: tl.constexpr, PROGRAM: tl.constexpr, GEOMETRY: tl.constexpr,
):  # fmt: skip
    """Operand i at ``indices``, one per group of folded axes, as a value of the program.

    Bit j of its groups says that it has strides in group j. No index of group WHOLE is past its end. The groups of a
    number are -1. That comes as an integer: its own value where the program computes in integers, else the bits of
    a float64, since Triton would round a Python float to float32.
    """
    if GEOMETRY.groups[i] == -1:
        if PROGRAM.compute.is_floating():
            return tl.cast(operand, tl.int64).to(tl.float64, bitcast=True).to(PROGRAM.compute)
        else:
            return tl.cast(operand, PROGRAM.compute)
    else:
        offset = 0
        mask = True
        for j in tl.static_range(len(indices)):
            if (GEOMETRY.groups[i] >> j) & 1:
                offset += _offset(indices[j], sizes[j], strides[j])
                if j != WHOLE:
                    mask = mask & (indices[j] < extents[j])
        if (GEOMETRY.groups[i] >> GEOMETRY.side) & 1:
            # each thread loads whole words of what it works on; loaded once for all rows, as anything else is, a row
            # would come in small pieces and reach the threads through shared memory
            offset = tl.broadcast_to(offset, GEOMETRY.tile)
        value = tl.load(operand + offset, mask=mask)
        if GEOMETRY.rounded[i]:
            value = _convert(value, PROGRAM.common)
        return _convert(value, PROGRAM.compute)


@triton.jit
def store(output, strides, sizes, extents, indices, value, LACKING: tl.constexpr, WHOLE: tl.constexpr):
    """Write ``value`` at ``indices`` but for the groups that it lacks, bits of LACKING; none past an end.

    No index of group WHOLE is past its end.
    """
    offset = tl.zeros(_ones(indices), tl.int32)
    mask = True
    for i in tl.static_range(len(indices)):
        if not (LACKING >> i) & 1:
            # the product with 0 makes a block of the value's shape, also where the group has no axis
            offset += _offset(indices[i], sizes[i], strides[i]) + indices[i] * 0
            if i != WHOLE:
                mask = mask & (indices[i] < extents[i])
    tl.store(output + offset, tl.broadcast_to(_convert(value, output.dtype.element_ty), offset.shape), mask=mask)


@triton.constexpr_function
def _ones(indices):
    return [1] * len(indices)


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
