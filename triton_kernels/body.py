"""The code that all kernels run on a tile: load the operands, evaluate formulas on them, store the outputs.

A value stays in registers from formula to formula. Legend of the kernels:

The iteration space has one dimension for each group of axes: rows and columns for ``map_kernel``; outer, looped and
tiled for the others. It is cut into tiles. A program of map_kernel has one tile. A program of map_reduce_kernel or
walk_kernel has a chunk along the looped group, which it goes through tile by tile:

    map_kernel                      map_reduce_kernel (one layer; tile_counts[1] of these lie along the tiled group)

              columns                               looped
           +-------+-------+                +---+---+---+---+---+---+
     rows  | pid 0 | pid 1 |         outer  | pid 0 > > | pid 2 > > |   tile_counts[0] = 2, splits = 2
           +-------+-------+                +---+---+---+---+---+---+
           | pid 2 | pid 3 |                | pid 1 > > | pid 3 > > |   steps = 3, chunk = 3 tiles
           +-------+-------+                +---+---+---+---+---+---+

    operands, outputs       [operand], [output]: a pointer; for an operand that is a number, an integer
    operand_strides         [operand][group][axis], in elements; () for a number
    output_strides          [output][group][axis], in elements
    sizes                   [group][axis]: elements along the axis, but 1 for the outermost, which is never read
    extents                 [group]: elements along the group
    tile_counts             [rows, columns] or [outer, tiled]: tiles along the group
    partial_strides         [output][group], in elements: from the partial of a program to that of the next
    steps                   tiles in a chunk
    counts                  [output]: how many elements one reduced element is made of
    BODY, GEOMETRY          what the kernel is compiled for: the records below

    bit 0, 1, 2             in a set of groups, which is an integer: rows, columns; or outer, looped, tiled
    indices                 [group]: a block with the index of each lane, which counts the group's elements in order
    UNMASKED                the group along which no lane of this tile is past the end; None: all groups are masked

A *partial* is what one program contributes to an output element that others contribute to: it goes to a scratch buffer,
and another launch combines the partials.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from . import formulas
from .casts import convert


class Reducer(NamedTuple):
    """A way to reduce the values along an axis to one."""

    identity: float  # what a reduction starts with: ``combine(identity, x)`` is x
    combine: Any  # the JIT function that makes one value of two
    reduce_tile: Any  # the JIT function that reduces a tile along an axis of it, which then has size 1
    finalize: Any  # the JIT function of a result and the count of its elements, run last; None for a partial


class KernelBody(NamedTuple):
    """The formulas that a kernel evaluates on each element.

    Its values are numbered: first the operands, then one for each formula.
    """

    formulas: tuple  # the JIT function of each formula, in the order of evaluation
    inputs: tuple[tuple[int, ...], ...]  # of each formula: the values that it reads, by number
    outputs: tuple[int, ...]  # of each output: the value that it stores, by number
    constants: tuple[float | None, ...]  # of each formula: its last argument, where that is compiled in
    reducers: tuple[Reducer | None, ...]  # of each formula: how it reduces along the row, if it does
    epilogue: tuple[Reducer | None, ...]  # of each output: how it is reduced on its way out; None where it is not
    common_dtype: tl.dtype  # the dtype that operands are cast to as they are loaded: see ``Geometry.cast_on_load``
    compute_dtype: tl.dtype  # the dtype of all values
    walks: Any = None  # when walk_kernel computes each value, see ``walks.py``; None for the other kernels

    @property
    def cache_key(self) -> str:
        """Return what Triton mixes into the key of the kernel.

        By itself it keys JIT functions in a tuple by name alone: editing a formula would leave the old kernel running.
        """
        reducers = [reducer for reducer in (*self.reducers, *self.epilogue) if reducer]
        functions = [*self.formulas, *(f for reducer in reducers for f in reducer[1:] if f)]
        return "-".join([*(f.cache_key for f in functions), str(self[1:])])


class Geometry(NamedTuple):
    """The geometry that a kernel is compiled for: see :class:`layout.Layout` and :class:`tiling.Tiling`."""

    tile: tuple[int, ...]  # of each group: the elements of a tile along it
    vector_group: int  # the group along which threads load vectors: of elements side by side, or of a row
    operand_groups: tuple[int, ...]  # of each operand: the set of groups that it has strides in; -1 for a number
    cast_on_load: tuple[bool, ...]  # of each operand: whether it is cast to the common dtype, then to the compute dtype
    constant_along: tuple[int, ...]  # of each output: the set of groups with axes in which it has no strides
    reduced_over: tuple[int, ...]  # of each output: the set of groups that it is reduced over
    output_tiles: tuple[tuple[int, ...], ...]  # of each output: the tile, but 1 along groups without an axis of it
    total_tiles: tuple[tuple[int, ...], ...]  # of each output: the tile of its totals along the loop
    thread_span: int  # elements along the loop that a thread reduces to one before they accumulate
    span_is_vector: bool  # whether these lie side by side, else as far apart in the tile as they can
    has_tail: bool  # whether the last vector along the vector group is not full
    index_dtype: tl.dtype  # the dtype of indices and offsets, int32 or int64
    hoisted: tuple[int, ...]  # the operands that are loaded once before the loop, by position
    full_groups: int = 0  # the set of groups along which no lane of any tile is past the end
    are_positions: tuple[bool, ...] = ()  # of each operand: whether it is the offset of its element, and no memory
    size_units: tuple[int, ...] = ()  # of each group: elements of a vector that divides the size of its innermost axis
    has_one_block: bool = False  # whether a program has one tile along the looped group
    row_chunks: int = 1  # the chunks of a row that walk_kernel walks, where it holds sums; else 1, and any number
    holds_sums: bool = True  # whether registers hold the sums of walk_kernel for each element of a row
    segments: tuple[int, ...] = ()  # of each output: elements side by side of a row that it adds up to one, else 0


def reducer_of(name: str, dtype: tl.dtype) -> Reducer:
    """Return how the reduction called ``name`` reduces values of ``dtype``."""
    identity, combine, reduce_tile = formulas.REDUCERS[name]
    return Reducer(identity(dtype), combine, reduce_tile, getattr(formulas, name))


@triton.jit
def evaluate(values, in_row, row_length, BODY: tl.constexpr, GEOMETRY: tl.constexpr):
    """Append the value of each formula to ``values``; a row has ``row_length`` elements, the lanes ``in_row``."""
    for i in tl.static_range(len(BODY.formulas)):
        if BODY.reducers[i] is not None:
            row = in_row_or_identity(values[BODY.inputs[i][0]], in_row, i, BODY, GEOMETRY)
            values = values + (reduce_row(row, row_length, i, BODY),)
        else:
            values = values + (apply_formula(values, i, BODY),)
    return values


@triton.jit
def apply_formula(values, i: tl.constexpr, BODY: tl.constexpr):
    """Return what formula i makes of ``values``."""
    arguments = ()
    for j in tl.static_range(len(BODY.inputs[i])):
        arguments = arguments + (values[BODY.inputs[i][j]],)
    if BODY.constants[i] is None:
        return BODY.formulas[i](*arguments)
    else:
        return BODY.formulas[i](*arguments, BODY.constants[i])


@triton.jit
def in_row_or_identity(value, in_row, i: tl.constexpr, BODY: tl.constexpr, GEOMETRY: tl.constexpr):
    """Return a tile of ``value`` that formula i can reduce: beyond the end of the row there is rubbish."""
    row = tl.broadcast_to(value, GEOMETRY.tile)
    if (GEOMETRY.full_groups >> 2) & 1:
        return row
    else:
        return tl.where(in_row, row, BODY.reducers[i].identity)


@triton.jit
def reduce_row(row, row_length, i: tl.constexpr, BODY: tl.constexpr):
    """Return the reduction i of a tile along the row, of ``row_length`` elements."""
    total = BODY.reducers[i].reduce_tile(row, 2)
    return BODY.reducers[i].finalize(total, tl.cast(row_length, BODY.compute_dtype))


@triton.jit
def load(
    operand, strides, sizes, extents, indices,
    i: tl.constexpr, UNMASKED: tl.constexpr, BODY: tl.constexpr, GEOMETRY: tl.constexpr,
):  # fmt: skip
    """Load operand i at ``indices``, as a value in the compute dtype.

    A number comes as an integer: its own value where the kernel computes in integers, else the bits of a float64, since
    Triton would round a Python float to float32.
    """
    if GEOMETRY.operand_groups[i] == -1:
        if BODY.compute_dtype.is_floating():
            return tl.cast(operand, tl.int64).to(tl.float64, bitcast=True).to(BODY.compute_dtype)
        else:
            return tl.cast(operand, BODY.compute_dtype)
    else:
        pointer, mask = _locate(operand, strides, sizes, extents, indices, i, UNMASKED, GEOMETRY)
        if GEOMETRY.are_positions[i]:
            return pointer.to(BODY.compute_dtype)
        else:
            value = tl.load(pointer, mask=mask)
            if GEOMETRY.cast_on_load[i]:
                value = convert(value, BODY.common_dtype)
            return convert(value, BODY.compute_dtype)


@triton.jit
def _locate(operand, strides, sizes, extents, indices, i: tl.constexpr, UNMASKED: tl.constexpr, GEOMETRY: tl.constexpr):
    """Return where the elements of operand i at ``indices`` are, from 0 on for positions, and which of them are there.

    What lies along the last group is added last: along the others an offset is the same for many lanes.
    """
    pointer = operand
    offset = 0
    mask = True
    for j in tl.static_range(len(indices)):
        if (GEOMETRY.operand_groups[i] >> j) & 1:
            along = offset_of(indices[j], sizes[j], strides[j], GEOMETRY.size_units[j])
            if j == len(indices) - 1:
                offset = along
            else:
                pointer += along
            if j != UNMASKED and not (GEOMETRY.full_groups >> j) & 1:
                mask = mask & (indices[j] < extents[j])
    if (GEOMETRY.operand_groups[i] >> GEOMETRY.vector_group) & 1:
        # each thread loads whole vectors of what it works on; loaded once for all rows, as anything else is, a row
        # would come in small pieces and reach the threads through shared memory
        offset = tl.broadcast_to(offset, GEOMETRY.tile)
    return pointer + offset, mask


@triton.jit
def store(
    output, strides, sizes, extents, indices, value,
    j: tl.constexpr, UNMASKED: tl.constexpr, GEOMETRY: tl.constexpr,
):  # fmt: skip
    """Write ``value`` of output j at ``indices``, but for groups that it is constant along; nothing past an end."""
    pointer, mask = place(output, strides, sizes, extents, indices, j, UNMASKED, GEOMETRY)
    tl.store(pointer, tl.broadcast_to(convert(value, output.dtype.element_ty), pointer.shape), mask=mask)


@triton.jit
def place(
    output, strides, sizes, extents, indices,
    j: tl.constexpr, UNMASKED: tl.constexpr, GEOMETRY: tl.constexpr,
):  # fmt: skip
    """Return where the elements of output j at ``indices`` are, and which of them are there."""
    pointer = output + tl.zeros(_ones(indices), tl.int32)
    mask = True
    for i in tl.static_range(len(indices)):
        if not (GEOMETRY.constant_along[j] >> i) & 1:
            # the product with 0 makes a block of the value's shape, also where the group has no axis
            pointer += offset_of(indices[i], sizes[i], strides[i], GEOMETRY.size_units[i]) + indices[i] * 0
            if i != UNMASKED and not (GEOMETRY.full_groups >> i) & 1:
                mask = mask & (indices[i] < extents[i])
    return pointer, mask


@triton.constexpr_function
def _ones(indices):
    return [1] * len(indices)


@triton.jit
def offset_of(index, sizes, strides, UNIT: tl.constexpr):
    """Return Σ coordinate·stride over the axes of a group; ``index`` counts its elements, the last axis fastest.

    ``UNIT`` elements side by side have one index along the outer axes.
    """
    offset = 0
    for i in tl.static_range(len(sizes) - 1, -1, -1):
        if i == 0:
            coordinate = index  # no % for the outermost axis: it would cost the loads of whole vectors
        else:
            outer = _quotient(index, sizes[i], UNIT if i == len(sizes) - 1 else 1)
            coordinate = index - outer * sizes[i]
            index = outer
        offset += coordinate * strides[i]
    return offset


@triton.jit
def _quotient(index, size, UNIT: tl.constexpr):
    """Return index // size, where UNIT divides the size: one division for so many elements side by side.

    It is of numbers without a sign, which takes fewer instructions.
    """
    wide: tl.constexpr = tl.uint64 if index.dtype == tl.int64 else tl.uint32
    return (index.to(wide) // UNIT // (tl.cast(size, wide) // UNIT)).to(index.dtype)


@triton.constexpr_function
def varies_along_loop(groups, i, hoisted):
    """Return whether operand i, of these groups, is loaded in every step of the loop; a number, -1, is not."""
    return groups > 0 and i not in hoisted


@triton.constexpr_function
def is_one(count):
    """Return whether a count is compiled in as 1."""
    return isinstance(count, int) and count == 1
