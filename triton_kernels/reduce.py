"""The map-reduce kernel: a program over elements, some of its results summed over axes on the way out."""

import triton
import triton.language as tl

from .layout import LOOPED, TILED
from .program import evaluate, load, store

_LOOPED = tl.constexpr(LOOPED)
_TILED = tl.constexpr(TILED)


@triton.jit
def map_reduce_kernel(
    operands,
    operand_strides,
    outputs,
    output_strides,
    sizes,
    extents,
    part_strides,
    blocks,
    chunk,
    count,
    FORMULAS: tl.constexpr,
    WIRES: tl.constexpr,
    RESULTS: tl.constexpr,
    SUMMED: tl.constexpr,
    FINISH: tl.constexpr,
    KEPT_TILE: tl.constexpr,
    LOOPED_TILE: tl.constexpr,
    TILED_TILE: tl.constexpr,
    GROUPS: tl.constexpr,
    COMMON: tl.constexpr,
    COMPUTE: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Elements form a box of kept x looped x tiled axes, cut into tiles; a program walks one chunk of the looped axes.

    An output summed over the looped axes gathers in a tile of registers that is summed at the end; one summed over
    the tiled axes is summed tile by tile; any other is stored as it is. Where several programs share a sum, each
    writes its part along ``part_strides``. The order of every sum is fixed by the layout alone.
    """
    program = tl.program_id(0).to(INDEX)
    tile = program // blocks[0] % blocks[1]
    part = program // (blocks[0] * blocks[1])
    kept = (program % blocks[0] * KEPT_TILE + tl.arange(0, KEPT_TILE))[:, None, None]
    tiled = (tile * TILED_TILE + tl.arange(0, TILED_TILE))[None, None, :]

    totals = ()
    for j in tl.static_range(len(outputs)):
        if SUMMED[j] == _LOOPED:
            totals = totals + (tl.zeros([KEPT_TILE, LOOPED_TILE, TILED_TILE], COMPUTE),)
        else:
            totals = totals + (tl.zeros([1, 1, 1], COMPUTE),)  # unused: a loop carries a tuple of fixed length

    for start in range(part * chunk, tl.minimum(part * chunk + chunk, extents[1]), LOOPED_TILE):
        looped = (tl.cast(start, INDEX) + tl.arange(0, LOOPED_TILE))[None, :, None]
        indices = (kept, looped, tiled)
        values = ()
        for i in tl.static_range(len(operands)):
            values = values + (
                load(operands[i], operand_strides[i], sizes, extents, indices, GROUPS[i], COMMON, COMPUTE),
            )
        values = evaluate(FORMULAS, WIRES, values)
        gathered = ()
        for j in tl.static_range(len(outputs)):
            value = tl.broadcast_to(values[RESULTS[j]], [KEPT_TILE, LOOPED_TILE, TILED_TILE])
            if SUMMED[j] == _LOOPED:
                # lanes past the end hold rubbish, which a sum must not see
                gathered = gathered + (totals[j] + tl.where(looped < extents[1], value, 0),)
            else:
                gathered = gathered + (totals[j],)
                output = outputs[j]
                if SUMMED[j] == _TILED:
                    output += tile * part_strides[j]
                    value = tl.sum(tl.where(tiled < extents[2], value, 0), axis=2, keep_dims=True)
                store(output, output_strides[j], sizes, extents, indices, value, SUMMED[j])
        totals = gathered

    for j in tl.static_range(len(outputs)):
        if SUMMED[j] == _LOOPED:
            total = tl.sum(totals[j], axis=1, keep_dims=True)
            if FINISH is not None:
                total = FINISH(total, tl.cast(count, COMPUTE))
            output = outputs[j] + part * part_strides[j]
            store(output, output_strides[j], sizes, extents, (kept, kept, tiled), total, _LOOPED)
