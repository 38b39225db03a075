"""A program: operators wired together, evaluated on values that are loaded once and stay in registers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import triton
import triton.language as tl

from . import formulas
from .formulas import INTERPRETED


class Program(NamedTuple):
    """``formulas[i]`` reads the values at ``wires[i]`` and appends its own; ``results`` says which are the outputs.

    Operands come first among the values, then one value per formula. The last parameter of a formula may be
    ``constants[i]``, a number that the kernel is compiled for. Values are rounded to ``common`` as they are loaded and
    held in ``compute``.
    """

    formulas: tuple
    wires: tuple[tuple[int, ...], ...]
    results: tuple[int, ...]
    constants: tuple[float | None, ...]
    common: tl.dtype
    compute: tl.dtype

    @property
    def cache_key(self) -> str:
        """What Triton mixes into the key of the kernel: by itself it keys JIT functions in a tuple by name alone.

        Editing a formula would leave the old kernel running.
        """
        return "-".join([*(formula.cache_key for formula in self.formulas), str(self[1:])])

    def words(self) -> list[str]:
        """Each formula with what it reads: ``mul_dx(g, y)``, ``pow_number(x, 2)``."""
        words = []
        for formula, wires, constant in zip(self.formulas, self.wires, self.constants, strict=True):
            read = formula.arg_names[: len(wires)] + ([] if constant is None else [str(constant)])
            words.append(f"{formula.__name__}({', '.join(read)})")
        return words


class Geometry(NamedTuple):
    """What a kernel is compiled for but the program: see ``layout.Layout`` and ``layout.Tiling``."""

    tile: tuple[int, ...]
    side: int
    groups: tuple[int, ...]
    summed: tuple[int | None, ...]
    ragged: bool
    index: tl.dtype


@cache
def parameters(name: str) -> tuple[str, ...]:
    """What the formula called ``name`` reads."""
    return tuple(getattr(formulas, name).arg_names)


@cache
def compiled_in(name: str) -> str | None:
    """The last of its parameters, where that is a number that kernels are compiled for."""
    kinds = getattr(formulas, name).fn.__annotations__
    return next((p for p in parameters(name)[-1:] if kinds.get(p) is tl.constexpr), None)


def compose(names: Sequence[str], operands: Sequence[str], numbers: dict[str, Any], common, compute) -> Program:
    """The program that evaluates each formula on operands by name; copies the operand without any.

    ``numbers`` holds those that formulas are compiled for.
    """
    functions = tuple(getattr(formulas, name) for name in names)
    constants = tuple(numbers.get(compiled_in(name)) for name in names)
    wires = tuple(tuple(operands.index(p) for p in parameters(name) if p != compiled_in(name)) for name in names)
    first = len(operands) if names else 0
    return Program(functions, wires, tuple(range(first, first + max(1, len(names)))), constants, common, compute)


@triton.jit
def evaluate(values, PROGRAM: tl.constexpr):
    """Append the value of each formula to ``values``."""
    for i in tl.static_range(len(PROGRAM.formulas)):
        arguments = ()
        for j in tl.static_range(len(PROGRAM.wires[i])):
            arguments = arguments + (values[PROGRAM.wires[i][j]],)
        if PROGRAM.constants[i] is None:
            values = values + (PROGRAM.formulas[i](*arguments),)
        else:
            values = values + (PROGRAM.formulas[i](*arguments, PROGRAM.constants[i]),)
    return values


@triton.jit
def load(
    operand, strides, sizes, extents, indices,
    GROUPS: tl.constexpr, WHOLE: tl.constexpr, PROGRAM: tl.constexpr, GEOMETRY: tl.constexpr,
):  # fmt: skip
    """One operand at ``indices``, one per group of folded axes, as a value of the program.

    Bit i of GROUPS says that the operand has strides in group i. No index of group WHOLE is past its end. GROUPS is
    -1 for a number. That comes as an integer: its own value where the program computes in integers, else the bits of
    a float64, since Triton would round a Python float to float32.
    """
    if GROUPS == -1:
        if PROGRAM.compute.is_floating():
            return tl.cast(operand, tl.int64).to(tl.float64, bitcast=True).to(PROGRAM.compute)
        else:
            return tl.cast(operand, PROGRAM.compute)
    else:
        offset = 0
        mask = True
        for i in tl.static_range(len(indices)):
            if (GROUPS >> i) & 1:
                offset += _offset(indices[i], sizes[i], strides[i])
                if i != WHOLE:
                    mask = mask & (indices[i] < extents[i])
        if (GROUPS >> GEOMETRY.side) & 1:
            # each thread loads whole words of what it works on; loaded once for all rows, as anything else is, a row
            # would come in small pieces and reach the threads through shared memory
            offset = tl.broadcast_to(offset, GEOMETRY.tile)
        return _convert(_convert(tl.load(operand + offset, mask=mask), PROGRAM.common), PROGRAM.compute)


@triton.jit
def store(output, strides, sizes, extents, indices, value, SUMMED: tl.constexpr, WHOLE: tl.constexpr):
    """Write ``value`` at ``indices`` but for the group that it was summed over; lanes past an end write nothing.

    No index of group WHOLE is past its end.
    """
    offset = 0
    mask = True
    for i in tl.static_range(len(indices)):
        if i != SUMMED:
            # the product with 0 makes a block of the value's shape, also where the group has no axis
            offset += _offset(indices[i], sizes[i], strides[i]) + indices[i] * 0
            if i != WHOLE:
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
