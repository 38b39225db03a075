"""The map-reduce kernel: a program over elements, some of its results summed over axes on the way out."""

import triton
import triton.language as tl

from .layout import LOOPED, TILED
from .program import evaluate, load, store

_LOOPED = tl.constexpr(LOOPED)
_TILED = tl.constexpr(TILED)


@triton.jit
def map_reduce_kernel(
    operands, outputs, operand_strides, output_strides, sizes, extents, blocks, part_strides, chunk, count,
    PROGRAM: tl.constexpr, GEOMETRY: tl.constexpr, FINISH: tl.constexpr,
):  # fmt: skip
    """Elements form a box of kept x looped x tiled axes, cut into tiles; a program walks one chunk of the looped axes.

    An output summed over the looped axes gathers in a tile of registers that is summed at the end; one summed over
    the tiled axes is summed tile by tile; any other is stored as it is. Where several programs share a sum, each
    writes its part along ``part_strides``. The order of every sum is fixed by the layout alone.
    """
    program = tl.program_id(0).to(GEOMETRY.index)
    tile = program // blocks[0] % blocks[1]
    part = program // (blocks[0] * blocks[1])
    kept = (program % blocks[0] * GEOMETRY.tile[0] + tl.arange(0, GEOMETRY.tile[0]))[:, None, None]
    tiled = (tile * GEOMETRY.tile[2] + tl.arange(0, GEOMETRY.tile[2]))[None, None, :]
    memory = (operands, outputs, operand_strides, output_strides, sizes, extents)

    fixed = ()  # what does not change along the loop is loaded before it
    for i in tl.static_range(len(operands)):
        if _changes(GEOMETRY.groups[i]):
            fixed = fixed + (tl.full([], 0, tl.int32),)  # unused
        else:
            indices = (kept, kept, tiled)
            value = load(
                operands[i], operand_strides[i], sizes, extents, indices, GEOMETRY.groups[i], None, PROGRAM, GEOMETRY
            )
            fixed = fixed + (value,)

    totals = ()
    for j in tl.static_range(len(outputs)):
        if GEOMETRY.summed[j] == _LOOPED:
            totals = totals + (tl.full(GEOMETRY.tile, 0, PROGRAM.compute),)
        else:
            totals = totals + (tl.zeros([1, 1, 1], PROGRAM.compute),)  # unused: a loop carries a tuple of fixed length

    first = part * chunk
    last = tl.minimum(first + chunk, extents[1])
    whole = first
    if GEOMETRY.ragged:  # a mask along the loop would break up the wide loads of tiles that need none
        whole = first + (last - first) // GEOMETRY.tile[1] * GEOMETRY.tile[1]
        for start in range(first, whole, GEOMETRY.tile[1]):
            totals = _step(memory, kept, start, tiled, tile, part_strides, fixed, totals, _LOOPED, PROGRAM, GEOMETRY)
    for start in range(whole, last, GEOMETRY.tile[1]):
        totals = _step(memory, kept, start, tiled, tile, part_strides, fixed, totals, None, PROGRAM, GEOMETRY)

    for j in tl.static_range(len(outputs)):
        if GEOMETRY.summed[j] == _LOOPED:
            total = tl.sum(totals[j], axis=1, keep_dims=True)
            if FINISH is not None:
                total = FINISH(total, tl.cast(count, PROGRAM.compute))
            output = outputs[j] + part * part_strides[j]
            store(output, output_strides[j], sizes, extents, (kept, kept, tiled), total, _LOOPED, None)


@triton.jit
def _step(
    memory, kept, start, tiled, tile, part_strides, fixed, totals,
    WHOLE: tl.constexpr, PROGRAM: tl.constexpr, GEOMETRY: tl.constexpr,
):  # fmt: skip
    """Evaluate one tile, store what is not summed over the loop, return the totals with the rest added."""
    operands, outputs, operand_strides, output_strides, sizes, extents = memory
    looped = (tl.cast(start, GEOMETRY.index) + tl.arange(0, GEOMETRY.tile[1]))[None, :, None]
    indices = (kept, looped, tiled)
    values = ()
    for i in tl.static_range(len(operands)):
        if _changes(GEOMETRY.groups[i]):
            value = load(
                operands[i], operand_strides[i], sizes, extents, indices, GEOMETRY.groups[i], WHOLE, PROGRAM, GEOMETRY
            )
            values = values + (value,)
        else:
            values = values + (fixed[i],)
    values = evaluate(values, PROGRAM)
    gathered = ()
    for j in tl.static_range(len(outputs)):
        value = tl.broadcast_to(values[PROGRAM.results[j]], GEOMETRY.tile)
        if GEOMETRY.summed[j] == _LOOPED:
            if WHOLE != _LOOPED:
                value = tl.where(looped < extents[1], value, 0)  # lanes past the end hold rubbish
            gathered = gathered + (totals[j] + value,)
        else:
            gathered = gathered + (totals[j],)
            output = outputs[j]
            if GEOMETRY.summed[j] == _TILED:
                output += tile * part_strides[j]
                value = tl.sum(tl.where(tiled < extents[2], value, 0), axis=2, keep_dims=True)
            store(output, output_strides[j], sizes, extents, indices, value, GEOMETRY.summed[j], WHOLE)
    return gathered


@triton.constexpr_function
def _changes(groups):
    """Whether an operand of these groups changes along the loop; a number, -1, does not."""
    return groups != -1 and bool(groups >> LOOPED & 1)
