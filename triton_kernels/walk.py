"""The walk kernel: rows that registers do not hold, in chunks. Its parameters are in the legend of ``body.py``.

One program walks a row as often as ``BODY.walks`` says: each walk reduces along the row what waits for the walk before.
Then come the next rows of the program. Where an output is reduced over many rows, each of its elements belongs to one
element of a row: the program gathers these sums in registers, whose code is then repeated for each chunk, or in its
partial in memory, which is then read and written once for each block of rows.
"""

import triton
import triton.language as tl

from .body import apply_formula, in_row_or_identity, load, place, reduce_row
from .layout import LOOPED, TILED
from .map_reduce import partial_of_program, store_output, store_segments

# Triton 3.6 takes the names of a geometry's fields away where its interpreter calls a function of constants.
_of_constants = (lambda function: function) if triton.knobs.runtime.interpret else triton.constexpr_function

_LOOPED = tl.constexpr(LOOPED)
_LOOPED_SET = tl.constexpr(1 << LOOPED)  # the set of groups that has this one alone
_TILED_SET = tl.constexpr(1 << TILED)


@triton.jit
def walk_kernel(
    operands, outputs, operand_strides, output_strides, sizes, extents, tile_counts, partial_strides, steps, counts,
    BODY: tl.constexpr, GEOMETRY: tl.constexpr,
):  # fmt: skip
    """Walk each row of a chunk of the looped group, evaluate the body, reduce what is reduced, store."""
    pid = tl.program_id(0).to(GEOMETRY.index_dtype)
    split = pid // tile_counts[0]
    outer = (pid % tile_counts[0] * GEOMETRY.tile[0] + tl.arange(0, GEOMETRY.tile[0]))[:, None, None]
    memory = (_or_positions(operands, GEOMETRY), outputs, operand_strides, output_strides, sizes, extents)
    partials = (partial_strides, (pid % tile_counts[0], split, 0), counts)

    row_chunks: tl.constexpr = GEOMETRY.row_chunks
    sums = ()  # a tile for each chunk of each output
    for j in tl.static_range(len(outputs)):
        for _ in tl.static_range(row_chunks):
            if _gathers(GEOMETRY.reduced_over[j], GEOMETRY.constant_along[j], GEOMETRY.holds_sums):
                sums = sums + (tl.full(GEOMETRY.output_tiles[j], BODY.epilogue[j].identity, BODY.compute_dtype),)
            else:
                sums = sums + (tl.zeros([1, 1, 1], BODY.compute_dtype),)  # unused

    first = split * tl.cast(steps, GEOMETRY.index_dtype) * GEOMETRY.tile[1]
    if GEOMETRY.has_one_block:
        sums = _walk_rows(memory, outer, first, first, partials, sums, BODY, GEOMETRY)
    else:
        end = tl.minimum(first + tl.cast(steps, GEOMETRY.index_dtype) * GEOMETRY.tile[1], extents[1])
        for start in range(first, end, GEOMETRY.tile[1]):
            if not GEOMETRY.holds_sums:
                tl.debug_barrier()  # what a thread wrote to the partial, another one reads
            sums = _walk_rows(memory, outer, start, first, partials, sums, BODY, GEOMETRY)

    for j in tl.static_range(len(outputs)):
        if _gathers(GEOMETRY.reduced_over[j], GEOMETRY.constant_along[j], GEOMETRY.holds_sums):
            for chunk in tl.static_range(row_chunks):
                if chunk == 0 or _varies(GEOMETRY.constant_along[j] | GEOMETRY.reduced_over[j]):
                    there, columns = _at_column(memory, chunk * GEOMETRY.tile[2], GEOMETRY)
                    total = BODY.epilogue[j].reduce_tile(sums[j * GEOMETRY.row_chunks + chunk], _LOOPED)
                    # within a chunk all lanes count: what is past the end of the row was left out of the sums
                    store_output(there, (outer, outer, columns), partials, total, j, None, BODY, GEOMETRY)


@triton.jit
def _or_positions(operands, GEOMETRY: tl.constexpr):
    """Return the operands, with 0 for those whose elements are their own offsets: no walk loads these."""
    found = ()
    for i in tl.static_range(len(operands)):
        found = found + (tl.full([], 0, GEOMETRY.index_dtype) if GEOMETRY.are_positions[i] else operands[i],)
    return found


@triton.jit
def _walk_rows(memory, outer, start, first, partials, sums, BODY: tl.constexpr, GEOMETRY: tl.constexpr):
    """Walk one block of rows, and return the sums with what these contribute."""
    operands, outputs, operand_strides, _, sizes, extents = memory
    rows = (tl.cast(start, GEOMETRY.index_dtype) + tl.arange(0, GEOMETRY.tile[1]))[None, :, None]
    block = (outer, rows, start, first)
    values = ()  # those that do not vary along the row, as far as they are known
    for i in tl.static_range(len(operands)):
        if BODY.walks.varies[i]:
            values = values + (tl.zeros([1, 1, 1], tl.int32),)  # unused
        else:
            indices = (outer, rows, rows)
            values = values + (load(operands[i], operand_strides[i], sizes, extents, indices, i, None, BODY, GEOMETRY),)
    for _ in tl.static_range(len(BODY.formulas)):
        values = values + (tl.zeros([1, 1, 1], BODY.compute_dtype),)  # not known yet
    values = _evaluate_between(values, len(operands), 0, BODY, GEOMETRY)
    walks: tl.constexpr = BODY.walks.count
    for walk in tl.static_range(walks):
        values, sums = _walk(memory, block, partials, values, sums, walk, BODY, GEOMETRY)
        values = _evaluate_between(values, len(operands), walk + 1, BODY, GEOMETRY)
    for j in tl.static_range(len(outputs)):
        if BODY.walks.stored[j] == -1:
            sums = _emit(memory, block, rows, partials, values[BODY.outputs[j]], sums, j, 0, BODY, GEOMETRY)
    return sums


@triton.jit
def _evaluate_between(values, ARITY: tl.constexpr, AFTER: tl.constexpr, BODY: tl.constexpr, GEOMETRY: tl.constexpr):
    """Evaluate the formulas of one value for the row that are known after so many walks; not reductions."""
    known = ()
    for i in tl.static_range(len(values)):
        if i >= ARITY and _is_between(i, ARITY, AFTER, BODY):
            known = known + (apply_formula(known, i - ARITY, BODY),)
        else:
            known = known + (values[i],)
    return known


@triton.jit
def _walk(
    memory, block, partials, values, sums,
    WALK: tl.constexpr, BODY: tl.constexpr, GEOMETRY: tl.constexpr,
):  # fmt: skip
    """Walk the rows of a block once; return the values with the reductions of this walk, and the sums."""
    operands, _, _, _, _, extents = memory
    totals = ()  # of each formula
    for i in tl.static_range(len(BODY.formulas)):
        if _is_reduced(i, len(operands), WALK, BODY):
            totals = totals + (tl.full(GEOMETRY.tile, BODY.reducers[i].identity, BODY.compute_dtype),)
        else:
            totals = totals + (tl.zeros([1, 1, 1], BODY.compute_dtype),)  # unused
    if _repeats(WALK, BODY, GEOMETRY):
        row_chunks: tl.constexpr = GEOMETRY.row_chunks
        for chunk in tl.static_range(row_chunks):
            column = tl.full([], chunk * GEOMETRY.tile[2], GEOMETRY.index_dtype)
            totals, sums = _walk_chunk(
                memory, block, column, partials, values, totals, sums, chunk, WALK, BODY, GEOMETRY
            )
    else:
        for column in range(0, extents[2], GEOMETRY.tile[2]):
            totals, sums = _walk_chunk(memory, block, column, partials, values, totals, sums, 0, WALK, BODY, GEOMETRY)
    reduced = ()
    for i in tl.static_range(len(values)):
        if i >= len(operands) and _is_reduced(i - len(operands), len(operands), WALK, BODY):
            reduced = reduced + (reduce_row(totals[i - len(operands)], extents[2], i - len(operands), BODY),)
        else:
            reduced = reduced + (values[i],)
    return reduced, sums


@triton.jit
def _walk_chunk(
    memory, block, column, partials, values, totals, sums,
    CHUNK: tl.constexpr, WALK: tl.constexpr, BODY: tl.constexpr, GEOMETRY: tl.constexpr,
):  # fmt: skip
    """Evaluate one chunk of the rows; return the totals of this walk, and the sums, with what it contributes."""
    from_start = memory
    memory, columns = _at_column(memory, column, GEOMETRY)
    operands, outputs, operand_strides, _, sizes, extents = memory
    outer, rows, _, _ = block
    indices = (outer, rows, columns)
    inside = ()
    for i in tl.static_range(len(values)):
        if (BODY.walks.walks[i] >> WALK) & 1:
            if i < len(operands):
                value = load(operands[i], operand_strides[i], sizes, extents, indices, i, None, BODY, GEOMETRY)
            else:
                value = apply_formula(inside, i - len(operands), BODY)
            inside = inside + (value,)
        else:
            inside = inside + (values[i],)
    combined = ()
    for i in tl.static_range(len(BODY.formulas)):
        if _is_reduced(i, len(operands), WALK, BODY):
            row = in_row_or_identity(inside[BODY.inputs[i][0]], columns < extents[2], i, BODY, GEOMETRY)
            combined = combined + (BODY.reducers[i].combine(totals[i], row),)
        else:
            combined = combined + (totals[i],)
    for j in tl.static_range(len(outputs)):
        if BODY.walks.stored[j] == WALK:
            value = inside[BODY.outputs[j]]
            if GEOMETRY.segments[j]:
                value = tl.broadcast_to(value, GEOMETRY.tile)
                store_segments(from_start, outer, rows, column, value, j, BODY, GEOMETRY)
            else:
                sums = _emit(memory, block, columns, partials, value, sums, j, CHUNK, BODY, GEOMETRY)
    return combined, sums


@triton.jit
def _at_column(memory, column, GEOMETRY: tl.constexpr):
    """Return the tensors as they are from a column on, and the indices of a chunk of columns there.

    Where a row has one axis they begin there: an offset of one column for all lanes is then added once to an address,
    or becomes a part of the instruction that loads. An index of several axes cannot be divided so.
    """
    operands, outputs, operand_strides, output_strides, sizes, extents = memory
    lanes = tl.arange(0, GEOMETRY.tile[2])[None, None, :]
    if len(sizes[2]) == 1:
        rest = (extents[0], extents[1], extents[2] - column)
        operands = _advance(operands, operand_strides, column, GEOMETRY)
        outputs = _advance(outputs, output_strides, column, GEOMETRY)
        return (operands, outputs, operand_strides, output_strides, sizes, rest), lanes
    else:
        return memory, tl.cast(column, GEOMETRY.index_dtype) + lanes


@triton.jit
def _advance(pointers, strides, column, GEOMETRY: tl.constexpr):
    """Return each pointer moved to a column; a number, or what is the same along the row, as it is."""
    moved = ()
    for i in tl.static_range(len(pointers)):
        if len(strides[i]) == 3 and len(strides[i][2]) == 1:
            moved = moved + (pointers[i] + tl.cast(column, GEOMETRY.index_dtype) * strides[i][2][0],)
        else:
            moved = moved + (pointers[i],)
    return moved


@triton.jit
def _emit(
    memory, block, columns, partials, value, sums,
    j: tl.constexpr, CHUNK: tl.constexpr, BODY: tl.constexpr, GEOMETRY: tl.constexpr,
):  # fmt: skip
    """Store ``value``, which output j has at these columns, or gather it; return the sums."""
    outer, rows, start, first = block
    value = tl.broadcast_to(value, GEOMETRY.output_tiles[j])
    if not _LOOPED_SET & GEOMETRY.reduced_over[j]:
        store_output(memory, (outer, rows, columns), partials, value, j, None, BODY, GEOMETRY)
        return sums
    else:
        value = _inside_or_identity(memory, rows, columns, value, j, BODY, GEOMETRY)
        if _gathers(GEOMETRY.reduced_over[j], GEOMETRY.constant_along[j], GEOMETRY.holds_sums):
            gathered = ()
            for k in tl.static_range(len(sums)):
                if k == _sum_of(j, CHUNK, GEOMETRY):
                    gathered = gathered + (BODY.epilogue[j].combine(sums[k], value),)
                else:
                    gathered = gathered + (sums[k],)
            return gathered
        else:
            value = BODY.epilogue[j].reduce_tile(value, _LOOPED)
            indices = (outer, outer, columns)
            if BODY.epilogue[j].finalize is not None:  # these are all the rows that there are
                store_output(memory, indices, partials, value, j, None, BODY, GEOMETRY)
            else:
                _add_to_partial(memory, indices, start > first, partials, value, j, BODY, GEOMETRY)
            return sums


@triton.jit
def _inside_or_identity(memory, rows, columns, value, j: tl.constexpr, BODY: tl.constexpr, GEOMETRY: tl.constexpr):
    """Return a tile of ``value`` that output j can gather: past the last row, or past the end of one, is rubbish."""
    _, _, _, _, _, extents = memory
    if not _LOOPED_SET & GEOMETRY.full_groups:
        value = tl.where(rows < extents[1], value, BODY.epilogue[j].identity)
    if _TILED_SET & GEOMETRY.reduced_over[j] and not _TILED_SET & GEOMETRY.full_groups:
        value = tl.where(columns < extents[2], value, BODY.epilogue[j].identity)
    return value


@triton.jit
def _add_to_partial(
    memory, indices, has_earlier, partials, value,
    j: tl.constexpr, BODY: tl.constexpr, GEOMETRY: tl.constexpr,
):  # fmt: skip
    """Combine ``value`` with the partial of this program, if it ``has_earlier`` rows."""
    _, _, _, output_strides, sizes, extents = memory
    partial, value = partial_of_program(memory, indices, partials, value, j, BODY, GEOMETRY)
    pointer, mask = place(partial, output_strides[j], sizes, extents, indices, j, None, GEOMETRY)
    before = tl.load(pointer, mask=mask & has_earlier, other=BODY.epilogue[j].identity)
    tl.store(pointer, BODY.epilogue[j].combine(before, value), mask=mask)


@_of_constants
def _gathers(reduced_over, constant_along, holds_sums):
    """Return whether registers hold the sums of an output: one tile for each chunk if they vary along the row.

    It takes integers: one such function hands a geometry to another without the names of its fields in Triton 3.6.
    """
    if not reduced_over >> LOOPED & 1:
        return False
    return holds_sums or not _varies(constant_along | reduced_over)


@_of_constants
def _varies(groups):
    """Return whether an output that is constant along, or reduced over, these groups varies along the row."""
    return not groups >> TILED & 1


@_of_constants
def _sum_of(j, chunk, geometry):
    """Return the position among the sums of what a chunk contributes to output j."""
    return j * geometry.row_chunks + (chunk if _varies(geometry.constant_along[j] | geometry.reduced_over[j]) else 0)


@_of_constants
def _repeats(walk, body, geometry):
    """Return whether the code of a walk is repeated for each chunk: it gathers sums for each element of the row."""
    groups = zip(body.walks.stored, geometry.reduced_over, geometry.constant_along, strict=True)
    return any(
        stored == walk and _gathers(reduced, constant, geometry.holds_sums) and _varies(constant | reduced)
        for stored, reduced, constant in groups
    )


@_of_constants
def _is_reduced(i, arity, walk, body):
    """Return whether formula i reduces along the row in this walk."""
    return body.reducers[i] is not None and body.walks.after[arity + i] == walk + 1


@_of_constants
def _is_between(i, arity, after, body):
    """Return whether value i, of a formula, is one for the row that is known after so many walks."""
    return body.reducers[i - arity] is None and not body.walks.varies[i] and body.walks.after[i] == after
