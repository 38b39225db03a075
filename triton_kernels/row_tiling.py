"""Choose tiles for stages whose ops reduce over rows: integers only, no tensor and no Triton.

A program holds a row in registers, or several short ones, and computes each value once. A longer row it walks in chunks
(see ``walks.py``). Where outputs are reduced over many rows a program takes one block of rows after the other, and
gathers sums for each element of a row: in registers as long as these hold them, else in a scratch buffer of its own.

All but the number of programs follows from the length of a row, the dtypes and the program: so the order of every
reduction along a row whose elements lie side by side is the same however many rows there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod

from .layout import LOOPED, OUTER, TILED, VECTOR_BYTES, Layout, Strides
from .stage import Stage
from .tiling import (
    MAX_REGISTERS,
    MAX_THREAD_VALUES,
    MULTIPROCESSORS,
    WARP_THREADS,
    Tiling,
    find_vector_group,
    power_dividing,
    power_of_2,
    power_of_2_in,
)
from .walks import Walks, accumulates, arrange_walks, held_values, row_values, walked_values

MAX_ROW_LENGTH = 1 << 20  # elements of a row that one program walks at most
FIXED_REGISTERS = 16  # registers of a thread for addresses and indices
RESIDENT_WARPS = 64  # resident on a multiprocessor
VECTOR_WIDTHS = (64, 256, 1024, 4096)  # of tiles that hold rows of whole vectors; above, all powers of two
TAIL_WIDTHS = (16, 128, 1024, 4096)  # of tiles that hold rows whose last vector is not full; likewise above
MIN_EXACT_WIDTH = 256  # from which on a row of 2^k elements has a tile of its own
SECTOR_BYTES = 32  # bytes that memory moves at least
ROW_WARPS = 4  # warps of a program that holds short rows
MAX_HOLD_WARPS = 16  # warps of a program that holds a row at most
MAX_ROW_VALUES = 48 << 10  # values of 4 bytes in the registers of MAX_HOLD_WARPS warps, 96 in those of a thread
THREAD_ELEMENTS = 16  # elements of a row that a thread holds, of each value, where these are few
THREAD_VALUES = 136  # values of 4 bytes that a thread holds, where fewer elements or more warps can make them so few
WALK_WARPS = (8, 32)  # warps of a program that walks its row, at least and at most
WALK_CHUNKS = 2  # chunks in which it walks, at least, before it gets more warps
# Warps of a program that walks its row and holds sums in registers, and the most values of 4 bytes of these that a
# thread has then. The fewer warps, the more sums a thread holds beside what each of them needs; the wider its vectors,
# the fewer loads it has on their way at once, and the more warps there have to be.
SUM_WARPS = ((16, 48), (8, 128))
MAX_SUM_ELEMENTS = 64  # elements of a row whose sums a thread holds: the code of each chunk takes registers too
MAX_SUM_VECTOR = 4  # elements of a vector up to which the fewest warps are enough
MAX_L2_BYTES = 24 << 20  # bytes of rows that all programs walk at once: half of the L2 of an H100
MAX_ROW_PARTIALS = 512  # partial sums of an element, which one launch finalizes
MAX_PARTIAL_BYTES = 20 << 20  # bytes of partial sums of all programs: they stay in the L2, of 40 MB and more


@lru_cache(maxsize=64)
def choose_row_tiling(
    stage: Stage, layout: Layout, itemsizes: tuple[int, ...], registers: int
) -> tuple[Tiling, Walks | None]:
    """Return the tiling of a stage of rows, and the walks along a row that registers do not hold, else None.

    Args:
        stage: has ops that reduce over rows.
        layout: of its operands and outputs.
        itemsizes: of each operand, then of each output, in bytes; 0 for a number.
        registers: how many a value takes in a thread, of 4 bytes each.
    """
    itemsize = min(filter(None, itemsizes))
    for reloads in (False, True):
        live = max(1, held_values(stage, layout, reloads)) * registers
        if _holds_row(layout, itemsize, live, registers):
            return _held_tiling(layout, itemsize, live)._replace(reloads=reloads), None
    walks = arrange_walks(stage, layout)
    live, of_rows = walked_values(stage, walks) * registers, row_values(stage, walks) * registers
    return _walked_tiling(layout, itemsizes, live, of_rows, walks.count, registers), walks


def _holds_row(layout: Layout, itemsize: int, live: int, registers: int) -> bool:
    """Return whether one program's registers hold ``live`` values of 4 bytes for each element of its smallest tile.

    Where a loop goes from row to row, most values are not all alive at once, but doubles take more, and so do the
    addresses of a row with a tail, whose elements each thread loads one by one. (Measured by spills for sm_90.)
    """
    vector = VECTOR_BYTES // itemsize
    most = MAX_ROW_VALUES
    if _gathers(layout):
        most = MAX_ROW_VALUES * 7 // 6
        has_tail = power_dividing(layout.extents[TILED]) < vector
        live += 2 * (registers - 1) + (max(1, vector // 4) if has_tail else 0)
    return prod(_row_tile(layout, itemsize, _row_width(layout, itemsize), 1)) * live <= most


def _gathers(layout: Layout) -> bool:
    """Return whether some output is reduced over many rows."""
    return any(groups >> LOOPED & 1 for groups in layout.reduced_over)


def _row_width(layout: Layout, itemsize: int) -> int:
    """Return the width of a tile that holds a row: one of few, as each is a kernel to compile; they cost idle lanes."""
    n, vector = layout.extents[TILED], VECTOR_BYTES // itemsize
    if find_vector_group(layout) != TILED or (n == power_of_2(n) and n >= MIN_EXACT_WIDTH):
        return power_of_2(n)
    widths = TAIL_WIDTHS if n % vector else VECTOR_WIDTHS
    return next((width for width in widths if width >= n), power_of_2(n))


def _row_tile(layout: Layout, itemsize: int, width: int, budget: int) -> tuple[int, ...]:
    """Return a tile of about ``budget`` elements, ``width`` of them of each row.

    Where elements lie side by side along other axes than the row's, it is a whole sector wide along these.
    """
    vector_group, elements, tile = find_vector_group(layout), width, [1, 1, 1]
    tile[TILED] = width
    for group in (vector_group, LOOPED):
        if group != TILED and tile[group] == 1 and (group == LOOPED or layout.extents[group] > 1):
            least = SECTOR_BYTES // itemsize if group == vector_group else 1
            tile[group] = max(least, power_of_2_in(budget // elements))
            elements *= tile[group]
    return tuple(tile)


def _held_tiling(layout: Layout, itemsize: int, live: int) -> Tiling:
    """Return the division of rows that registers hold: a thread has 16 elements, or fewer of many values."""
    vector, width = VECTOR_BYTES // itemsize, _row_width(layout, itemsize)
    per_thread = min(THREAD_ELEMENTS, max(vector, power_of_2_in(THREAD_VALUES // live)))
    tile = _row_tile(layout, itemsize, width, ROW_WARPS * WARP_THREADS * per_thread)
    warps = max(1, min(MAX_HOLD_WARPS, prod(tile) // (WARP_THREADS * per_thread)))
    while warps < MAX_HOLD_WARPS and prod(tile) * live > MAX_THREAD_VALUES * WARP_THREADS * warps:
        warps *= 2
    blocks = -(-layout.extents[LOOPED] // tile[LOOPED])
    if _gathers(layout):
        partial_bytes = 4 * layout.extents[TILED] * max(1, len(accumulates(layout)))
        most = min(MAX_ROW_PARTIALS, max(MULTIPROCESSORS, MAX_PARTIAL_BYTES // partial_bytes))
        blocks = min(blocks, MULTIPROCESSORS * _resident(warps, live * prod(tile) // (WARP_THREADS * warps)), most)
    return _rows(layout, tile, blocks, warps, vector)


def _walked_tiling(
    layout: Layout, itemsizes: tuple[int, ...], live: int, of_rows: int, walks: int, registers: int
) -> Tiling:
    """Return the division of rows that are walked: as many at once as the L2 holds until they are walked again.

    The longer a row, the more warps walk it, and the fewer rows are in flight. Where elements of several rows lie side
    by side, a thread also holds ``of_rows`` values of 4 bytes of each of its rows.
    """
    itemsize, n = min(filter(None, itemsizes)), layout.extents[TILED]
    vector, sums = VECTOR_BYTES // itemsize, len(accumulates(layout)) * registers
    beside = prod(_row_tile(layout, itemsize, 1, 1))  # rows whose elements lie in one sector
    least, most = WALK_WARPS
    if n * beside % (most * WARP_THREADS * THREAD_ELEMENTS):
        live += 1  # the masks of the last chunk
    per_thread = min(THREAD_ELEMENTS, max(vector, power_of_2_in(THREAD_VALUES // 2 // live)))
    if registers > 1 or (beside > 1 and (live + of_rows) * vector > MAX_REGISTERS // (WARP_THREADS * most)):
        most //= 2
    warps = min(most, max(least, power_of_2_in(n * beside // (WALK_CHUNKS * WARP_THREADS * per_thread))))
    holding = _sum_warps(n * beside, sums, vector) if sums else 0
    in_memory = sums > 0 and not holding
    if holding:
        warps, per_thread = holding, vector
    width = max(1, *layout.segments, warps * WARP_THREADS * per_thread // beside)
    tile, blocks = _row_tile(layout, itemsize, width, 1), -(-layout.extents[LOOPED] // beside)
    # programs that hold sums take all registers of a multiprocessor
    resident = MULTIPROCESSORS * (1 if holding else _resident(warps, live * per_thread))
    if walks > 1 or in_memory:
        in_flight = _bytes_of_row(layout, itemsizes, sums if in_memory else None) * beside
        resident = min(resident, max(1, MULTIPROCESSORS // 6, MAX_L2_BYTES // max(1, in_flight)))
    if _gathers(layout) or resident < MULTIPROCESSORS * (RESIDENT_WARPS // warps):
        blocks = min(blocks, resident)
    tiling = _rows(layout, tile, blocks, warps, vector)
    return tiling._replace(row_chunks=-(-n // width), holds_sums=not in_memory, reloads=True)


def _sum_warps(elements: int, sums: int, vector: int) -> int:
    """Return how many warps hold in registers so many sums for each element of a row; 0 where none do."""
    choices = SUM_WARPS[-1:] if vector <= MAX_SUM_VECTOR else SUM_WARPS
    for warps, most in choices:
        of_thread = -(-elements // (warps * WARP_THREADS))
        if of_thread <= MAX_SUM_ELEMENTS and of_thread * sums <= most:
            return warps
    return 0


def _bytes_of_row(layout: Layout, itemsizes: tuple[int, ...], sums: int | None) -> int:
    """Return the bytes that a program touches of a row until it reads the same byte again.

    That is in the next walk, when half of what it stores lies between; or in the next row, as it adds to ``sums`` in
    memory, of so many values of 4 bytes for each element.
    """
    operands, gathered = len(layout.operand_groups), accumulates(layout)
    along = [_along_row(layout, strides) for strides in (*layout.operand_strides, *layout.output_strides)]
    sizes = [n * itemsize for n, itemsize in zip(along, itemsizes, strict=True)]
    own = [groups > 0 and groups >> LOOPED & 1 for groups in layout.operand_groups]
    loaded = sum(size for size, is_own in zip(sizes, own, strict=False) if is_own)
    stored = sum(size for j, size in enumerate(sizes[operands:]) if j not in gathered)
    return loaded + stored // 2 if sums is None else loaded + stored + 4 * sums * layout.extents[TILED]


def _along_row(layout: Layout, strides: Sequence[Strides]) -> int:
    """Return how many elements of a tensor lie along a row: one where it does not vary along it, of a number none."""
    if not strides:
        return 0
    return prod(n for n, stride in zip(layout.sizes[TILED], strides[TILED], strict=True) if stride)


def _resident(warps: int, values: int) -> int:
    """Return how many programs are resident on a multiprocessor, about, whose threads hold so many values."""
    used = min(255, FIXED_REGISTERS + values)
    return max(1, min(RESIDENT_WARPS // warps, MAX_REGISTERS // (WARP_THREADS * warps * used)))


def _rows(layout: Layout, tile: tuple[int, ...], programs: int, warps: int, vector: int) -> Tiling:
    """Return the division of the rows among about so many programs, of all outer tiles together."""
    outer, blocks = (-(-layout.extents[group] // tile[group]) for group in (OUTER, LOOPED))
    # sums in memory are those of a program among several: those of one alone would be the result itself
    splits = min(blocks, max(2, programs // outer) if _gathers(layout) else programs)
    chunk = -(-blocks // splits) * tile[LOOPED]
    has_tail = find_vector_group(layout) == LOOPED and power_dividing(layout.extents[LOOPED]) < vector
    return Tiling(tile, (outer, 1), chunk, -(-layout.extents[LOOPED] // chunk), warps, TILED, has_tail)
