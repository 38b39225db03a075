"""The map-reduce kernel: some outputs are reduced on their way out. Its parameters are in the legend of ``body.py``."""

import triton
import triton.language as tl

from .body import evaluate, load, place, store, varies_along_loop
from .layout import LOOPED

_LOOPED = tl.constexpr(LOOPED)
_LOOPED_SET = tl.constexpr(1 << LOOPED)  # the set of groups that has this one alone


@triton.jit
def map_reduce_kernel(
    operands, outputs, operand_strides, output_strides, sizes, extents, tile_counts, partial_strides, steps, counts,
    BODY: tl.constexpr, GEOMETRY: tl.constexpr,
):  # fmt: skip
    """Go through a chunk of the looped group, tile by tile; evaluate the body on each, reduce what is reduced, store.

    An output that is reduced over the looped group accumulates in a tile of registers, which is reduced at the end; any
    other is stored in every step. Over the outer and the tiled group an output is reduced within the tile. Where
    several programs contribute to one element, each writes its partial. The layout alone fixes the order of every sum.
    Where an op reduces along the row, that is the tiled group, and a tile has all of it: registers hold it.
    """
    pid = tl.program_id(0).to(GEOMETRY.index_dtype)
    tiled_tile = pid // tile_counts[0] % tile_counts[1]
    split = pid // (tile_counts[0] * tile_counts[1])
    outer = (pid % tile_counts[0] * GEOMETRY.tile[0] + tl.arange(0, GEOMETRY.tile[0]))[:, None, None]
    tiled = (tiled_tile * GEOMETRY.tile[2] + tl.arange(0, GEOMETRY.tile[2]))[None, None, :]
    memory = (operands, outputs, operand_strides, output_strides, sizes, extents)

    hoisted = _load_before_loop(memory, outer, tiled, BODY, GEOMETRY)
    totals = ()
    for j in tl.static_range(len(outputs)):
        if _LOOPED_SET & GEOMETRY.reduced_over[j]:
            totals = totals + (tl.full(GEOMETRY.total_tiles[j], BODY.epilogue[j].identity, BODY.compute_dtype),)
        else:
            # unused: a loop carries a tuple of fixed length
            totals = totals + (tl.zeros([1, 1, 1], BODY.compute_dtype),)

    partials = (partial_strides, (pid % tile_counts[0], split, tiled_tile), counts)
    chunk = tl.cast(steps, GEOMETRY.index_dtype) * GEOMETRY.tile[1]
    chunk_start = split * chunk
    chunk_end = tl.minimum(chunk_start + chunk, extents[1])
    unmasked_end = chunk_start
    if GEOMETRY.has_one_block:
        totals = _reduce_tile(memory, outer, chunk_start, tiled, partials, hoisted, totals, None, BODY, GEOMETRY)
    elif GEOMETRY.has_tail:  # a mask along the loop would break up the vectors of tiles that need none
        unmasked_end = chunk_start + (chunk_end - chunk_start) // GEOMETRY.tile[1] * GEOMETRY.tile[1]
        for start in range(chunk_start, unmasked_end, GEOMETRY.tile[1]):
            totals = _reduce_tile(memory, outer, start, tiled, partials, hoisted, totals, _LOOPED, BODY, GEOMETRY)
    if not GEOMETRY.has_one_block:
        for start in range(unmasked_end, chunk_end, GEOMETRY.tile[1]):
            totals = _reduce_tile(memory, outer, start, tiled, partials, hoisted, totals, None, BODY, GEOMETRY)

    for j in tl.static_range(len(outputs)):
        if _LOOPED_SET & GEOMETRY.reduced_over[j]:
            total = BODY.epilogue[j].reduce_tile(totals[j], _LOOPED)
            store_output(memory, (outer, outer, tiled), partials, total, j, None, BODY, GEOMETRY)


@triton.jit
def _load_before_loop(memory, outer, tiled, BODY: tl.constexpr, GEOMETRY: tl.constexpr):
    """Load what does not change along the loop."""
    operands, _, operand_strides, _, sizes, extents = memory
    hoisted = ()
    for i in tl.static_range(len(operands)):
        if varies_along_loop(GEOMETRY.operand_groups[i], i, GEOMETRY.hoisted):
            hoisted = hoisted + (tl.full([], 0, tl.int32),)  # unused
        else:
            indices = (outer, outer, tiled)
            value = load(
                operands[i],
                operand_strides[i],
                sizes,
                extents,
                indices,
                i,
                None,
                BODY,
                GEOMETRY,
            )
            hoisted = hoisted + (value,)
    return hoisted


@triton.jit
def _reduce_tile(
    memory, outer, start, tiled, partials, hoisted, totals,
    UNMASKED: tl.constexpr, BODY: tl.constexpr, GEOMETRY: tl.constexpr,
):  # fmt: skip
    """Evaluate one tile, store what is not reduced over the loop, and return the totals with the others combined."""
    operands, outputs, operand_strides, _, sizes, extents = memory
    looped = (tl.cast(start, GEOMETRY.index_dtype) + tl.arange(0, GEOMETRY.tile[1]))[None, :, None]
    indices = (outer, looped, tiled)
    values = ()
    for i in tl.static_range(len(operands)):
        if varies_along_loop(GEOMETRY.operand_groups[i], i, GEOMETRY.hoisted):
            value = load(
                operands[i],
                operand_strides[i],
                sizes,
                extents,
                indices,
                i,
                UNMASKED,
                BODY,
                GEOMETRY,
            )
            values = values + (value,)
        else:
            values = values + (hoisted[i],)
    values = evaluate(values, tiled < extents[2], extents[2], BODY, GEOMETRY)
    new_totals = ()
    for j in tl.static_range(len(outputs)):
        value = tl.broadcast_to(values[BODY.outputs[j]], GEOMETRY.output_tiles[j])
        if _LOOPED_SET & GEOMETRY.reduced_over[j]:
            if UNMASKED != _LOOPED and not _LOOPED_SET & GEOMETRY.full_groups:
                value = tl.where(looped < extents[1], value, BODY.epilogue[j].identity)  # past the end there is rubbish
            value = _reduce_in_threads(value, j, BODY, GEOMETRY)
            new_totals = new_totals + (BODY.epilogue[j].combine(totals[j], value),)
        else:
            new_totals = new_totals + (totals[j],)
            if GEOMETRY.segments[j]:
                store_segments(memory, outer, looped, 0, value, j, BODY, GEOMETRY)
            else:
                store_output(memory, indices, partials, value, j, UNMASKED, BODY, GEOMETRY)
    return new_totals


@triton.jit
def _reduce_in_threads(value, j: tl.constexpr, BODY: tl.constexpr, GEOMETRY: tl.constexpr):
    """Reduce what each thread holds along the loop: fewer totals leave registers to more programs."""
    TILE: tl.constexpr = GEOMETRY.total_tiles[j]
    N: tl.constexpr = GEOMETRY.thread_span
    if N == 1:
        return value
    if GEOMETRY.span_is_vector:
        value = BODY.epilogue[j].reduce_tile(tl.reshape(value, [TILE[0], TILE[1], N, TILE[2]]), 2)
    else:
        value = BODY.epilogue[j].reduce_tile(tl.reshape(value, [TILE[0], N, TILE[1], TILE[2]]), 1)
    return tl.reshape(value.to(BODY.compute_dtype), TILE)  # the maximum of a narrow integer is an int32


@triton.jit
def store_output(
    memory, indices, partials, value, j: tl.constexpr,
    UNMASKED: tl.constexpr, BODY: tl.constexpr, GEOMETRY: tl.constexpr,
):  # fmt: skip
    """Reduce ``value`` over the groups of output j but the looped one, finalize it, and store it where it belongs."""
    _, _, _, output_strides, sizes, extents = memory
    _, _, counts = partials
    output, value = partial_of_program(memory, indices, partials, value, j, BODY, GEOMETRY)
    if BODY.epilogue[j] is not None:  # noqa: SIM102 - of a constant None Triton must not look further
        if BODY.epilogue[j].finalize is not None:
            value = BODY.epilogue[j].finalize(value, tl.cast(counts[j], BODY.compute_dtype))
    store(output, output_strides[j], sizes, extents, indices, value, j, UNMASKED, GEOMETRY)


@triton.jit
def store_segments(memory, outer, rows, column, value, j: tl.constexpr, BODY: tl.constexpr, GEOMETRY: tl.constexpr):
    """Add up ``value``, a tile of rows from a column on, over segments of each row, and store the sums side by side.

    No segment reaches past the end of a row: its length divides that of the row.
    """
    _, outputs, _, output_strides, sizes, extents = memory
    SEGMENT: tl.constexpr = GEOMETRY.segments[j]
    COUNT: tl.constexpr = GEOMETRY.tile[2] // SEGMENT
    value = tl.reshape(value, [GEOMETRY.tile[0], GEOMETRY.tile[1], COUNT, SEGMENT])
    value = tl.reshape(BODY.epilogue[j].reduce_tile(value, 3), [GEOMETRY.tile[0], GEOMETRY.tile[1], COUNT])
    pointer, mask = place(outputs[j], output_strides[j], sizes, extents, (outer, rows, rows), j, None, GEOMETRY)
    segments = (column // SEGMENT + tl.arange(0, COUNT))[None, None, :]
    tl.store(pointer + segments, value, mask=mask & (segments * SEGMENT < extents[2]))


@triton.jit
def partial_of_program(memory, indices, partials, value, j: tl.constexpr, BODY: tl.constexpr, GEOMETRY: tl.constexpr):
    """Return where this program's part of output j begins, and ``value`` reduced over all groups but the looped one."""
    _, outputs, _, _, _, extents = memory
    partial_strides, position, _ = partials
    partial = outputs[j]
    for i in tl.static_range(len(indices)):
        if (GEOMETRY.reduced_over[j] >> i) & 1:
            partial += position[i] * partial_strides[j][i]
            if i != _LOOPED:
                if not (GEOMETRY.full_groups >> i) & 1:
                    value = tl.where(indices[i] < extents[i], value, BODY.epilogue[j].identity)
                value = BODY.epilogue[j].reduce_tile(value, i)
    return partial, value
