"""The map-reduce kernel: a program over elements, some of its results folded over axes on the way out."""

import triton
import triton.language as tl

from .body import evaluate, load, store
from .layout import LOOPED

_LOOPED = tl.constexpr(LOOPED)
_LOOP = tl.constexpr(1 << LOOPED)


@triton.jit
def map_reduce_kernel(
    operands, outputs, operand_strides, output_strides, sizes, extents, blocks, part_strides, steps, counts,
    PROGRAM: tl.constexpr, GEOMETRY: tl.constexpr,
):  # fmt: skip
    """Elements form a box of kept x looped x tiled axes, cut into tiles; a program takes ``steps`` of them in a loop.

    An output folded over the looped axes gathers in a tile of registers that is folded at the end, any other is stored
    tile by tile; over the kept and tiled axes an output is folded within the tile. Where several programs share a
    total, each writes its part along ``part_strides``. The order of every sum is fixed by the layout alone. Where the
    program folds along the row, that is the tiled axes, and a tile has all of it.
    """
    program = tl.program_id(0).to(GEOMETRY.index)
    tile = program // blocks[0] % blocks[1]
    part = program // (blocks[0] * blocks[1])
    kept = (program % blocks[0] * GEOMETRY.tile[0] + tl.arange(0, GEOMETRY.tile[0]))[:, None, None]
    tiled = (tile * GEOMETRY.tile[2] + tl.arange(0, GEOMETRY.tile[2]))[None, None, :]
    memory = (operands, outputs, operand_strides, output_strides, sizes, extents)

    fixed = ()  # what does not change along the loop is loaded before it
    for i in tl.static_range(len(operands)):
        if _varies_along_loop(GEOMETRY.groups[i], i, GEOMETRY.held):
            fixed = fixed + (tl.full([], 0, tl.int32),)  # unused
        else:
            indices = (kept, kept, tiled)
            value = load(
                operands[i],
                operand_strides[i],
                sizes,
                extents,
                indices,
                i,
                None,
                PROGRAM,
                GEOMETRY,
            )
            fixed = fixed + (value,)

    totals = ()
    for j in tl.static_range(len(outputs)):
        if _LOOP & GEOMETRY.folded[j]:
            totals = totals + (tl.full(GEOMETRY.shapes[j], PROGRAM.ends[j].start, PROGRAM.compute),)
        else:
            totals = totals + (tl.zeros([1, 1, 1], PROGRAM.compute),)  # unused: a loop carries a tuple of fixed length

    parts = (part_strides, (program % blocks[0], part, tile), counts)
    chunk = tl.cast(steps, GEOMETRY.index) * GEOMETRY.tile[1]
    first = part * chunk
    last = tl.minimum(first + chunk, extents[1])
    whole = first
    if GEOMETRY.ragged:  # a mask along the loop would break up the wide loads of tiles that need none
        whole = first + (last - first) // GEOMETRY.tile[1] * GEOMETRY.tile[1]
        for start in range(first, whole, GEOMETRY.tile[1]):
            totals = _reduce_tile(memory, kept, start, tiled, parts, fixed, totals, _LOOPED, PROGRAM, GEOMETRY)
    for start in range(whole, last, GEOMETRY.tile[1]):
        totals = _reduce_tile(memory, kept, start, tiled, parts, fixed, totals, None, PROGRAM, GEOMETRY)

    for j in tl.static_range(len(outputs)):
        if _LOOP & GEOMETRY.folded[j]:
            total = PROGRAM.ends[j].across(totals[j], _LOOPED)
            _store_output(memory, (kept, kept, tiled), parts, total, j, None, PROGRAM, GEOMETRY)


@triton.jit
def _reduce_tile(
    memory, kept, start, tiled, parts, fixed, totals,
    WHOLE: tl.constexpr, PROGRAM: tl.constexpr, GEOMETRY: tl.constexpr,
):  # fmt: skip
    """Evaluate one tile, store what is not folded over the loop, return the totals with the rest combined."""
    operands, outputs, operand_strides, _, sizes, extents = memory
    looped = (tl.cast(start, GEOMETRY.index) + tl.arange(0, GEOMETRY.tile[1]))[None, :, None]
    indices = (kept, looped, tiled)
    values = ()
    for i in tl.static_range(len(operands)):
        if _varies_along_loop(GEOMETRY.groups[i], i, GEOMETRY.held):
            value = load(
                operands[i],
                operand_strides[i],
                sizes,
                extents,
                indices,
                i,
                WHOLE,
                PROGRAM,
                GEOMETRY,
            )
            values = values + (value,)
        else:
            values = values + (fixed[i],)
    values = evaluate(values, tiled < extents[2], extents[2], PROGRAM, GEOMETRY)
    gathered = ()
    for j in tl.static_range(len(outputs)):
        value = tl.broadcast_to(values[PROGRAM.results[j]], GEOMETRY.shapes[j])
        if _LOOP & GEOMETRY.folded[j]:
            if WHOLE != _LOOPED:
                value = tl.where(looped < extents[1], value, PROGRAM.ends[j].start)  # past the end there is rubbish
            gathered = gathered + (PROGRAM.ends[j].combine(totals[j], value),)
        else:
            gathered = gathered + (totals[j],)
            _store_output(memory, indices, parts, value, j, WHOLE, PROGRAM, GEOMETRY)
    return gathered


@triton.jit
def _store_output(
    memory, indices, parts, value, j: tl.constexpr,
    WHOLE: tl.constexpr, PROGRAM: tl.constexpr, GEOMETRY: tl.constexpr,
):  # fmt: skip
    """Fold ``value`` over the groups of output j but for the looped one, finish it, and store it where it belongs."""
    _, outputs, _, output_strides, sizes, extents = memory
    part_strides, position, counts = parts
    output = outputs[j]
    for i in tl.static_range(len(indices)):
        if (GEOMETRY.folded[j] >> i) & 1:
            output += position[i] * part_strides[j][i]
            if i != _LOOPED:
                value = tl.where(indices[i] < extents[i], value, PROGRAM.ends[j].start)
                value = PROGRAM.ends[j].across(value, i)
    if PROGRAM.ends[j] is not None:  # noqa: SIM102 - of a constant None Triton must not look further
        if PROGRAM.ends[j].finish is not None:
            value = PROGRAM.ends[j].finish(value, tl.cast(counts[j], PROGRAM.compute))
    store(output, output_strides[j], sizes, extents, indices, value, GEOMETRY.lacking[j], WHOLE)


@triton.constexpr_function
def _varies_along_loop(groups, i, held):
    """Whether operand i, of these groups, is loaded in every step of the loop; a number, -1, is not."""
    return groups > 0 and i not in held
