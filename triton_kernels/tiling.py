"""Choose tiles and count what they move: integers only, no tensor and no Triton.

A *vector* is what one instruction loads: 16 bytes, here counted in elements. A *width* is a number of elements that lie
side by side in memory. A *lane* is one place of a tile; where a tile reaches past the end of an axis, lanes are idle.

A *step* of a reduction's loop loads one tile and waits for it; what all programs load in one step is *in flight*.
An H100 reaches its bandwidth with about 15 KiB in flight on each of 132 multiprocessors. A reduction splits until it
has 32 KiB, since a few MB of partials stay in the L2 cache and cost next to nothing. A bound of the bytes of partials
in those of all tensors leaves most of a GPU idle. What both give for sm_90, in bf16, by the compiled code:

                                     by bytes of partials               by bytes in flight
    call                             grid  warps  in flight  partials   grid  warps  in flight  partials
    mul [4096, 1024] * [1024], grad   160      1    1.2 KiB     80 KB   1368      4     40 KiB    700 KB
    mul [4096, 4096] * [4096], grad   512      4   15.5 KiB    270 KB   1120      4     34 KiB    570 KB
    sum(0) of [4096, 1024]            160      1    2.4 KiB     80 KB   1024      4     62 KiB    520 KB
    sum(0) of [16384, 256]            162      1    2.5 KiB     80 KB   1024      4     62 KiB    520 KB
    sum(0) of [256, 65536]            512      4   15.5 KiB         0   2048      4     80 KiB         0
    sum(-1) of [1024, 16384]         1024      4     31 KiB         0   1024      4     62 KiB         0
    sum() of [4096, 4096]             512      4   15.5 KiB      2 KB    586      4     36 KiB      2 KB

The constants that follow count units of the hardware or are budgets; no timing on a GPU is recorded for them.
The budgets of registers are those with which ptxas of Triton 3.7 spills nothing for sm_90; ``tests/audit.py`` reads
spills, widths of loads and bytes moved from code compiled for sm_90, and holds what the other constants lead to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple

from .layout import COLUMNS, LOOPED, OUTER, ROWS, TILED, VECTOR_BYTES, Layout, Strides

WARP_THREADS = 32  # threads in a warp
MAX_THREAD_REGISTERS = 255  # of a thread, of 4 bytes
MAX_REGISTERS = 65536  # of a multiprocessor, and so of a program
MAX_WARPS = 4  # warps of a program at most
MAX_VECTOR_BYTES = 64  # bytes of the widest operand at most that a thread handles with one vector of the narrowest
LOADS_IN_FLIGHT = 4  # vectors that a thread loads before it waits, where it has one operand
MAX_THREAD_ELEMENTS = 16  # elements of an operand that a thread of a map holds at most
MAX_MAP_VALUES = 128  # values of 4 bytes that it holds, where fewer elements can make them so few
MAX_REDUCED_ELEMENTS = 64  # the same of a reduction of one operand, whose elements become few at once
MAX_FORMULA_ELEMENTS = 8  # the same of several operands, of which a formula is reduced, or one vector if that has more
MAX_TILE_WIDTH = 128  # width of a tile of several rows at most: 256 bytes of 2 or 4 each, two cache lines
FULL_GRID_PROGRAMS = 512  # programs that fill a large GPU of 132 to 160 multiprocessors
MULTIPROCESSORS = 132  # of an H100
FULL_GRID_WARPS = MULTIPROCESSORS * 8  # warps of all programs with which each of its multiprocessors has 8
BYTES_IN_FLIGHT = MULTIPROCESSORS * (32 << 10)  # bytes that all programs of a reduction load in one step, at least
LARGE_BYTES = 4_000_000  # bytes of an operand from which a reduction splits wherever it has fewer in flight
MAX_SMALL_STEPS = 8  # steps of a smaller one that take less time than a launch more: 650 ns each, at most
MAX_THREAD_VALUES = 192  # values of 4 bytes in the registers of a thread, of 255 where warps are few
MAX_LANES_PER_ELEMENT = 1.3  # lanes for each element that wide tiles may cost, before narrower ones are taken
MIN_TILE_WIDTH = 8  # width of the narrowest tiles
SMALL_GRID_WIDTH = 32  # width of tiles of what does not fill the GPU
FINALIZE_ELEMENTS = 1024  # partials in the tiles of a finalizing launch
FINALIZE_FEW = 32  # outputs in such a tile, where it has all of their partials
FINALIZE_MANY = 8  # outputs in it where it has not: a sector of 4 bytes each
MAX_PARTIALS = 1024  # partials of an output that a finalizing launch adds up by itself: 8 steps of 128


class Tiling(NamedTuple):
    """The division of a layout's iteration space among programs."""

    tile: tuple[int, ...]  # of each group: the elements of a tile along it, a power of two
    tile_counts: tuple[int, ...]  # of each group but the looped one: the tiles along it
    chunk: int  # elements of the looped group that one program walks, a multiple of the tile's; 0 for a map kernel
    splits: int  # programs along the looped group, each with a chunk; 1 for a map kernel
    warps: int  # warps of a program
    vector_group: int  # the group along which threads load vectors: of elements side by side, or of a row
    has_tail: bool  # whether the last vector along that group is not full
    row_chunks: int = 1  # chunks of a row, each of one tile, that a program walks one after the other
    holds_sums: bool = True  # whether registers hold what is gathered for each element of a row over many rows
    reloads: bool = False  # whether the operands that all rows share are loaded again for each row, not held


@lru_cache(maxsize=64)
def choose_tiling(layout: Layout, itemsizes: tuple[int, ...], may_split: bool = True, live_values: int = 1) -> Tiling:
    """Return tiles of a layout whose operands, then outputs, have elements of so many bytes; 0 for a number.

    A program holds ``live_values`` of 4 bytes for each element: it gets fewer elements, or more threads, where these
    are many. Unless it ``may_split``, the launch finalizes what a split reduction left.

    A thread handles whole vectors, several of them; tiles shrink to one vector for each thread of a warp before they
    leave multiprocessors idle. Each tile is a kernel to compile, so that there are few for all extents: they cost
    lanes without an element.
    """
    widest = max(itemsizes[: len(layout.operand_groups)], default=0)
    vector = min(VECTOR_BYTES // min(filter(None, itemsizes)), MAX_VECTOR_BYTES // max(widest, 1))
    vector = min(vector, power_of_2_in(MAX_THREAD_VALUES // live_values))
    if not may_split:
        return _finalize_tiling(layout, vector)
    warp = WARP_THREADS * vector
    is_mixed = len(set(filter(None, itemsizes))) > 1
    budget = MAX_WARPS * warp * _vectors_in_flight(layout, vector, live_values, is_mixed)
    if len(layout.extents) == 3:
        return _reduce_tiling(layout, itemsizes, budget, vector)
    tiling = _map_tiling(layout, budget, vector)
    return tiling if prod(tiling.tile_counts) >= FULL_GRID_PROGRAMS // 2 else _map_tiling(layout, warp, vector)


def _vectors_in_flight(layout: Layout, vector: int, live_values: int, is_mixed: bool) -> int:
    """Return how many vectors of each operand a thread loads at once; of mixed dtypes, of the narrowest.

    Of a reduction only what it loads in every step counts. Where each tile leaves partials it has more of them anyway.
    """
    if len(layout.extents) == 2:  # what a thread does once, as finding its elements, counts less with more of them
        most = MAX_THREAD_ELEMENTS if is_mixed else max(MAX_THREAD_ELEMENTS, 2 * vector)
        elements = min(most, MAX_MAP_VALUES // live_values)
        return power_of_2_in(min(LOADS_IN_FLIGHT, elements // vector))
    if layout.extents[TILED] > 1:
        return 1
    tensors = sum(groups > 0 and groups >> LOOPED & 1 for groups in layout.operand_groups)
    max_elements = MAX_REDUCED_ELEMENTS if tensors == 1 else MAX_FORMULA_ELEMENTS
    if not _has_vectors(layout, vector):
        max_elements = min(max_elements, MAX_THREAD_ELEMENTS)  # each has an address, which takes registers
    by_registers = min(max_elements // vector, MAX_THREAD_VALUES // (live_values * vector))
    return power_of_2_in(min(-(-LOADS_IN_FLIGHT // max(tensors, 1)), by_registers))


def _has_vectors(layout: Layout, vector: int) -> bool:
    """Return whether elements lie side by side, whole vectors of them, along the group that threads load vectors of."""
    group = find_vector_group(layout)
    steps = {strides[group][-1] for strides in layout.operand_strides if strides and any(strides[group])}
    return steps == {1} and power_dividing(layout.extents[group]) >= vector


def _map_tiling(layout: Layout, budget: int, vector: int) -> Tiling:
    """Return tiles of about ``budget`` elements: flat, or rows of 16 vectors.

    They are near square where an operand runs down the rows.
    """
    rows, columns = layout.extents
    if any(strides and strides[ROWS][-1:] == (1,) and any(strides[COLUMNS]) for strides in layout.operand_strides):
        width = min(power_of_2(columns), 8 * vector, 64)
        height = min(power_of_2(rows), width, budget // width)
    else:
        max_height = min(power_of_2(rows), budget)
        max_width = SMALL_GRID_WIDTH if budget == WARP_THREADS * vector else min(16 * vector, MAX_TILE_WIDTH)
        width = budget if rows == 1 else _width(columns, max(max_width, budget // max_height))
        height = min(max_height, budget // width)
    return _tiling(layout, (height, width), COLUMNS, vector)


def _reduce_tiling(layout: Layout, itemsizes: Sequence[int], budget: int, vector: int) -> Tiling:
    """Return tiles of about ``budget`` elements with enough bytes in flight: without partials if possible.

    Tiles that are long along the loop take fewer steps, wide ones read longer pieces of memory.
    """
    vector_group, extent = find_vector_group(layout), layout.extents[LOOPED]
    sizes = _bytes_beside(layout, itemsizes)
    span = min(extent, -(-BYTES_IN_FLIGHT // sum(sizes)))  # elements along the loop to have in flight
    of_bytes = max(itemsizes[: len(layout.operand_groups)]) == 1  # each takes a register or two: half are enough
    enough = min(extent, -(-BYTES_IN_FLIGHT // (2 * sum(sizes)))) if of_bytes else span
    wide, long = (_reduce_tile(layout, budget, vector, vector_group, is_long) for is_long in (False, True))
    is_small = extent * max(sizes) < LARGE_BYTES
    if wide[LOOPED] >= enough:
        return _reduce_whole(layout, wide, vector, vector_group, is_small)
    if long[LOOPED] >= enough or (is_small and extent <= MAX_SMALL_STEPS * long[LOOPED]):
        return _reduce_whole(layout, long, vector, vector_group, is_small)
    longer = _reduce_tile(layout, 2 * budget, vector, vector_group, is_long=True)
    if longer[LOOPED] >= enough and len(sizes) == 1:  # more operands would take too many registers
        return _reduce_whole(layout, longer, vector, vector_group, is_small)
    return _tiling(layout, wide, vector_group, vector, span)


def _reduce_whole(layout: Layout, tile: tuple[int, ...], vector: int, vector_group: int, is_small: bool) -> Tiling:
    """Return this tile, or a smaller one where multiprocessors would be idle and it takes no more steps.

    A large layout of few programs gets twice the warps.
    """
    small = _reduce_tile(layout, WARP_THREADS * vector, vector, vector_group)
    programs = prod(-(-layout.extents[group] // tile[group]) for group in (OUTER, TILED))
    steps = [-(-layout.extents[LOOPED] // size[LOOPED]) for size in (small, tile)]
    shrinks = programs < FULL_GRID_PROGRAMS // 4 and steps[0] <= steps[1]
    tiling = _tiling(layout, small if shrinks else tile, vector_group, vector)
    is_thin = not is_small and programs * tiling.warps < FULL_GRID_WARPS
    return tiling._replace(warps=2 * tiling.warps) if is_thin else tiling


def _bytes_beside(layout: Layout, itemsizes: Sequence[int]) -> list[int]:
    """Return the bytes of each operand that have the same index along the loop; [1] where none varies along it."""
    varying = [
        (groups, itemsize)
        for groups, itemsize in zip(layout.operand_groups, itemsizes, strict=False)
        if groups > 0 and groups >> LOOPED & 1
    ]
    counts = [prod(layout.extents[g] for g in (OUTER, TILED) if groups >> g & 1) for groups, _ in varying]
    return [itemsize * n for (_, itemsize), n in zip(varying, counts, strict=True)] or [1]


def _reduce_tile(layout: Layout, budget: int, vector: int, vector_group: int, is_long: bool = False) -> tuple[int, ...]:
    """Return a tile that is wide along the vector group, then along the loop; or as long along it as it can be.

    Each tile along the tiled group writes a partial of its own of what is reduced over it, so those tiles are large.
    """
    is_tiled = layout.extents[TILED] > 1
    max_width = 8 * vector if is_tiled else budget if vector_group == LOOPED else min(16 * vector, MAX_TILE_WIDTH)
    others = [group for group in (TILED, LOOPED, OUTER) if group != vector_group]
    max_height = min(prod(power_of_2(layout.extents[group]) for group in others), budget)
    tile, n = [1, 1, 1], layout.extents[vector_group]
    tile[vector_group] = _width(n, max(max_width, budget // max_height)) if n > 1 else 1
    if is_long and not is_tiled:
        tile[vector_group] = min(power_of_2(n), budget if vector_group == LOOPED else 4 * vector)
    remaining = (4 * budget if is_tiled else budget) // tile[vector_group]
    for group in others:
        tile[group] = min(power_of_2(layout.extents[group]), remaining)
        remaining //= tile[group]
    return tuple(tile)


def _finalize_tiling(layout: Layout, vector: int) -> Tiling:
    """Return one of three tiles: there is little to add up, and each tile is a kernel more."""
    is_few = layout.extents[LOOPED] <= FINALIZE_ELEMENTS // FINALIZE_FEW
    outer = 1 if layout.extents[OUTER] == 1 else FINALIZE_FEW if is_few else FINALIZE_MANY
    tiling = _tiling(layout, (outer, FINALIZE_ELEMENTS // outer, 1), OUTER, vector)
    warps = min(MAX_WARPS, FINALIZE_ELEMENTS // (WARP_THREADS * vector))
    return tiling._replace(chunk=layout.extents[LOOPED], splits=1, warps=warps, has_tail=True)


def _tiling(layout: Layout, tile: tuple[int, ...], vector_group: int, vector: int, span: int = 0) -> Tiling:
    counts = tuple(-(-n // size) for n, size in zip(layout.extents, tile, strict=True))
    max_warps, warp = MAX_WARPS, WARP_THREADS * vector
    has_tail = power_dividing(layout.extents[vector_group]) < vector
    if len(tile) == 3 and vector_group == OUTER and has_tail:
        max_warps, warp = 2 * max_warps, warp // 2  # each element has an address, which takes registers
    warps = max(1, min(max_warps, prod(tile) // warp))
    if len(tile) == 2:
        return Tiling(tile, counts, 0, 1, warps, vector_group, has_tail)
    chunk, splits = _split(layout, tile[LOOPED], counts, span, warps)
    return Tiling(tile, (counts[OUTER], counts[TILED]), chunk, splits, warps, vector_group, has_tail)


def _split(layout: Layout, step: int, counts: tuple[int, ...], span: int, warps: int) -> tuple[int, int]:
    """Return the elements of a chunk of the looped group, which tiles walk in steps of ``step``; and the chunks.

    There are so many chunks that one step of each makes ``span`` elements, and that their programs, of so many warps,
    fill the GPU; but no more than one launch finalizes.
    """
    steps, n = counts[LOOPED], layout.extents[LOOPED]
    if not span:
        return steps * step, 1
    beside = counts[OUTER] * counts[TILED]
    programs = max(-(-span // step), -(-FULL_GRID_WARPS // (warps * beside)))
    sums = layout.extents[OUTER] * layout.extents[TILED]
    most = max(MAX_PARTIALS, MAX_SMALL_STEPS * FINALIZE_ELEMENTS // sums)
    chunk = max(1, steps // programs, -(-steps // most)) * step
    return chunk, -(-n // chunk)


def thread_span(layout: Layout, tiling: Tiling, vector: int, aligned: Sequence[bool]) -> tuple[int, bool]:
    """Return how many elements along the loop a thread holds by itself, and whether they are one vector.

    Otherwise they lie as far apart as they can in the tile: threads go along the vector group first. ``aligned`` says
    of each operand whether it starts at a whole vector.
    """
    group, threads = tiling.vector_group, WARP_THREADS * tiling.warps
    if len(tiling.tile) == 2:
        return 1, False
    along = [(s, ok) for s, ok in zip(layout.operand_strides, aligned, strict=True) if s and any(s[group])]
    is_contiguous = all(strides[group][-1] == 1 for strides, _ in along)
    if group != LOOPED:
        held = prod(tiling.tile) // (threads * vector) if is_contiguous else 1
        return max(1, min(held, tiling.tile[LOOPED])), False
    sizes = layout.sizes[group][1:]
    steps = {step for strides, _ in along for axes in strides for step in axes} - {0, 1}
    if is_contiguous and all(ok for _, ok in along) and all(n % vector == 0 for n in (*steps, *sizes)):
        return min(vector, tiling.tile[LOOPED]), True
    return max(1, tiling.tile[LOOPED] // threads), False


def needs_int64(layout: Layout, tiling: Tiling, partial_strides: Iterable[Strides] = ()) -> bool:
    """Return whether a launch has to count in 64 bits: some integer that it computes can pass 2**31 - 1.

    It computes, of every program and every lane, those that a mask hides too (a wrapped index would pass the mask):

    - the index along each group, and the end of a program's tile: at most tile count·tile,
    - the end of a program's chunk of the looped axes, before it is cut to their extent: at most splits·chunk,
    - the start of a tile along that chunk, also the one past the end that ends the loop, and the index in the tile,
    - the offset of each operand and output, along all groups, of indices past their ends,
    - where a program's partial of an output begins: its position·stride along each group.

    A product of tile counts is at most the number of programs, which has 31 bits on any GPU.
    """
    ends = _ends(layout, tiling)
    offsets = [
        sum(_largest_offset(n, strides, end - 1) for n, strides, end in zip(layout.sizes, groups, ends, strict=True))
        for groups in (*layout.operand_strides, *layout.output_strides)
        if groups
    ]
    programs = tiling.tile_counts[0], tiling.splits, tiling.tile_counts[-1]
    partials = [(n - 1) * step for strides in partial_strides for n, step in zip(programs, strides, strict=True)]
    return max(*ends, *offsets, *partials) >= 2**31


def _ends(layout: Layout, tiling: Tiling) -> list[int]:
    """Return the largest end of a tile, a chunk or a loop along each group, past every index along it."""
    counts = tiling.tile_counts
    if len(tiling.tile) == len(counts):
        return [n * size for n, size in zip(counts, tiling.tile, strict=True)]
    size, last_chunk = tiling.tile[LOOPED], (tiling.splits - 1) * tiling.chunk
    steps = -(-(layout.extents[LOOPED] - last_chunk) // size)
    looped = last_chunk + max(tiling.chunk, steps * size)
    return [counts[0] * tiling.tile[OUTER], looped, counts[1] * tiling.row_chunks * tiling.tile[TILED]]


def _largest_offset(sizes: Sequence[int], strides: Strides, last: int) -> int:
    """Return a bound of the offsets along a group whose indices go up to ``last``, which may be past its end."""
    if not sizes:
        return 0
    inner = sum((size - 1) * stride for size, stride in zip(sizes[1:], strides[1:], strict=True))
    return last // prod(sizes[1:]) * strides[0] + inner


def find_vector_group(layout: Layout) -> int:
    """Return the group that holds the smallest stride of the first operand that has strides in most groups."""
    operand = max(layout.operand_strides, key=lambda groups: sum(map(any, groups)), default=())
    smallest = {min(filter(None, strides)): group for group, strides in enumerate(operand) if any(strides)}
    return smallest[min(smallest)] if smallest else LOOPED


def _width(n: int, widest: int) -> int:
    """Return the width of tiles along ``n`` elements: ``widest``, divided by 4 while that leaves many lanes idle."""
    if n <= MIN_TILE_WIDTH:
        return MIN_TILE_WIDTH
    width = widest
    while width > SMALL_GRID_WIDTH and -(-n // width) * width > n * MAX_LANES_PER_ELEMENT:
        width //= 4
    return width


def power_of_2(n: int) -> int:
    """Return the smallest power of two from ``n`` on."""
    return 1 << (n - 1).bit_length()


def power_of_2_in(n: int) -> int:
    """Return the largest power of two up to ``n``, or 1."""
    return 1 << max(n, 1).bit_length() - 1


def power_dividing(n: int) -> int:
    """Return the largest power of two that divides ``n``."""
    return n & -n
