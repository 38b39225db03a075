"""Choose tiles, and count what they move: integers only, no tensor and no Triton."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple

from .layout import COLUMNS, LOOPED, OUTER, ROWS, TILED, VECTOR_BYTES, Layout, Strides, repeated

WARP_THREADS = 32  # threads in a warp
MAX_WARPS = 4  # warps of a program at most
LOADS_IN_FLIGHT = 4  # words that a thread loads before it waits, where it has one operand
MAX_THREAD_ELEMENTS = 16  # most elements of an operand that a thread holds, or one word
MAX_TILE_WIDTH = 128  # most elements side by side of a tile of several rows: 256 bytes of 2 or 4 each, two cache lines
FULL_GRID = 512  # programs that fill a large GPU of 132 to 160 multiprocessors; fewer rows than that share their sums
MIN_TILES_PER_PARTIAL = 4  # fewest tiles in a part of a shared sum
MIN_BYTES_PER_PARTIAL = 400  # fewest bytes that a part adds up: it is written and read again in 8, which costs 4 %
MULTIPROCESSORS = 128  # of a large GPU, at least: so many programs share sums where one holds whole rows
SECTOR_BYTES = 32  # bytes that memory moves at least
MAX_ROW_WARPS = 16  # warps of a program that holds whole rows at most
MAX_ROW_VALUES = 48 << 10  # values of 4 bytes in the registers of ROW_WARPS warps, 96 in those of a thread
MAX_THREAD_VALUES = 192  # values of 4 bytes in the registers of a thread, of 255 where warps are few
ROW_VECTORS_PER_THREAD = 2  # words of a row that a thread holds, of each value, until there are no more warps
MAX_PADDING = 1.3  # most lanes, to elements, that the widest tiles may cost
MIN_TILE_WIDTH = 8  # elements side by side in the narrowest tiles
SMALL_GRID_WIDTH = 32  # elements side by side in tiles of what does not fill the GPU
EVEN_ROW_WIDTHS = (
    64,
    256,
    1024,
    4096,
)  # widths of tiles that hold rows of whole words, from there on all powers of two;
RAGGED_ROW_WIDTHS = (16, 128, 1024, 4096)  # and of those that words do not fill
FINALIZE_TILE = 32  # parts, and totals, in the tiles that add up what several programs left


class Tiling(NamedTuple):
    """How a layout is cut: elements of a tile and tiles along each group, chunk and parts of looped axes, warps."""

    tile: tuple[int, ...]
    blocks: tuple[int, ...]
    chunk: int
    parts: int
    warps: int
    side: int  # the group along which elements lie side by side
    ragged: bool  # whether whole words do not fill that group


@lru_cache(maxsize=64)
def choose_tiling(layout: Layout, itemsize: int, share: bool = True, live: int = 1) -> Tiling:
    """Tiles of a layout whose narrowest element takes ``itemsize`` bytes; programs ``share`` sums where rows are few.

    A program holds ``live`` values of 4 bytes for each element: fewer elements, or more threads, where these are many.

    A thread handles whole words, several of them; tiles shrink to one word for each thread of a warp before they
    leave multiprocessors idle. Each tile is a kernel to compile, so that there are few for all extents: they cost
    lanes without an element.
    """
    word = VECTOR_BYTES // itemsize
    if layout.row is None:
        word = min(word, _power_of_2_in(MAX_THREAD_VALUES // live))
    reads = sum(groups >= 0 for groups in layout.groups)
    flight = _power_of_2_in(
        min(LOADS_IN_FLIGHT // max(reads, 1), MAX_THREAD_ELEMENTS // word, MAX_THREAD_VALUES // (live * word))
    )
    cut_tiles = _row_tiling if layout.row is not None else _map_tiling if len(layout.extents) == 2 else _reduce_tiling
    if not share:
        return _finalize_tiling(layout, word)
    tiling = cut_tiles(layout, WARP_THREADS * MAX_WARPS * word * flight, word)
    if prod(tiling.blocks) * tiling.parts < FULL_GRID // 2:
        tiling = cut_tiles(layout, WARP_THREADS * word, word)
    return _with_warps_for_rows(layout, tiling, live)


def _with_warps_for_rows(layout: Layout, tiling: Tiling, live: int) -> Tiling:
    """Return the tiling with as many warps as it takes to hold a row, of ``live`` values for each element."""
    warps = tiling.warps
    while (
        layout.row is not None
        and warps < MAX_ROW_WARPS
        and prod(tiling.tile) * live > MAX_THREAD_VALUES * WARP_THREADS * warps
    ):
        warps *= 2
    return tiling._replace(warps=warps)


def _map_tiling(layout: Layout, room: int, word: int) -> Tiling:
    """Tiles of about ``room`` elements: flat, or rows of 16 words; near square where an operand runs down the rows."""
    rows, columns = layout.extents
    if any(strides and strides[ROWS][-1:] == (1,) and any(strides[COLUMNS]) for strides in layout.operands):
        width = min(_power_of_2(columns), 8 * word, 64)
        height = min(_power_of_2(rows), width, room // width)
    else:
        few = min(_power_of_2(rows), room)
        most = SMALL_GRID_WIDTH if room == WARP_THREADS * word else min(16 * word, MAX_TILE_WIDTH)
        width = room if rows == 1 else _width(columns, max(most, room // few))
        height = min(few, room // width)
    return _tiling(layout, (height, width), COLUMNS, word)


def _reduce_tiling(layout: Layout, room: int, word: int) -> Tiling:
    """Tiles wide along the axes whose elements lie side by side, then along the sum.

    Each tile along the tiled axes writes a sum of its own for the looped ones, so those tiles are large.
    """
    side = _side_by_side(layout)
    tiled = layout.extents[TILED] > 1
    wide = 8 * word if tiled else room if side == LOOPED else min(16 * word, MAX_TILE_WIDTH)
    others = [group for group in (TILED, LOOPED, OUTER) if group != side]
    few = min(prod(_power_of_2(layout.extents[group]) for group in others), room)
    tile, left = [1, 1, 1], 4 * room if tiled else room
    tile[side] = _width(layout.extents[side], max(wide, room // few)) if layout.extents[side] > 1 else 1
    left //= tile[side]
    for group in others:
        tile[group] = min(_power_of_2(layout.extents[group]), left)
        left //= tile[group]
    return _tiling(layout, tuple(tile), side, word)


def _row_tiling(layout: Layout, room: int, word: int) -> Tiling:
    """Tiles of a whole row, or of several: along the axis on which elements lie side by side, if that is another."""
    assert layout.row is not None
    tile = [1] * len(layout.extents)
    side = _side_by_side(layout)
    tile[layout.row] = width = _row_width(layout.extents[layout.row], word if side == layout.row else 0)
    for group in (side, *(g for g in range(len(tile)) if g != side)):
        if group != layout.row:
            least = SECTOR_BYTES * word // VECTOR_BYTES if group == side else 1
            tile[group] = min(_power_of_2(layout.extents[group]), max(least, room // width))
            width *= tile[group]
    return _tiling(layout, tuple(tile), layout.row, word)


def _finalize_tiling(layout: Layout, word: int) -> Tiling:
    """The same tiles for any number of parts: there is little to add up, and it is not worth kernels of its own."""
    kept = FINALIZE_TILE if layout.extents[OUTER] > 1 else 1
    tiling = _tiling(layout, (kept, FINALIZE_TILE * FINALIZE_TILE // kept, 1), OUTER, word)
    return tiling._replace(chunk=layout.extents[LOOPED], parts=1, ragged=True)


def _tiling(layout: Layout, tile: tuple[int, ...], side: int, word: int) -> Tiling:
    blocks = tuple(-(-n // size) for n, size in zip(layout.extents, tile, strict=True))
    most, each = (
        (MAX_WARPS, WARP_THREADS * word)
        if layout.row is None
        else (MAX_ROW_WARPS, WARP_THREADS * word * ROW_VECTORS_PER_THREAD)
    )
    warps = max(1, min(most, prod(tile) // each))
    ragged = _power_dividing(layout.extents[side]) < word
    if len(tile) == 2:
        return Tiling(tile, blocks, 0, 1, warps, side, ragged)
    steps, programs = blocks[LOOPED], blocks[OUTER] * blocks[TILED]
    bulk = layout.extents[LOOPED] * VECTOR_BYTES // word
    if layout.row is None:
        most = min(FULL_GRID // programs, steps // MIN_TILES_PER_PARTIAL, bulk // MIN_BYTES_PER_PARTIAL)
    else:
        most = (1 if any(layout.folded) else 2) * MULTIPROCESSORS // programs
    parts = max(1, min(most, steps))
    chunk = -(-steps // parts) * tile[LOOPED]
    parts = -(-layout.extents[LOOPED] // chunk)
    return Tiling(tile, (blocks[OUTER], blocks[TILED]), chunk, parts, warps, side, ragged)


def holds(layout: Layout, itemsize: int, live: int, registers: int = 1) -> bool:
    """Whether the registers of one program hold ``live`` values for each element of its smallest tile.

    A value takes ``registers`` of 4 bytes. Where rows are looped over, most are not all alive at once, but doubles take
    more, and so do the addresses of a ragged row, whose elements each thread loads one by one. (Measured for sm_90.)
    """
    if layout.row is None:
        return True
    word = VECTOR_BYTES // itemsize
    takes, most = live * registers, MAX_ROW_VALUES
    if len(layout.extents) == 3:
        most = MAX_ROW_VALUES * 7 // 6
        ragged = _power_dividing(layout.extents[layout.row]) < word
        takes += 2 * (registers - 1) + (max(1, word // 4) if ragged else 0)
    return prod(_row_tiling(layout, 1, word).tile) * takes <= most


def traffic(layout: Layout, tiling: Tiling, reloads: bool = False) -> tuple[list[int], list[int]]:
    """How many elements of each operand, then of each output, all programs load or store; and how many there are.

    What two tiles both load counts twice, though a cache may have it the second time; so does what one program
    ``reloads`` in every step of its loop.
    """
    tiles = tiling.blocks if len(layout.extents) == 2 else (tiling.blocks[0], tiling.parts, tiling.blocks[1])
    moved, floor = [], []
    steps_of_loop = (*tiles[:1], -(-layout.extents[LOOPED] // tiling.tile[LOOPED]), *tiles[2:]) if reloads else tiles
    again = repeated(layout) if reloads else ()
    for k, groups in enumerate((*layout.operands, *layout.outputs)):
        loads = elements = 1
        walks = steps_of_loop if k in again else tiles
        for steps, n, count, sizes in zip(groups, layout.extents, walks, layout.sizes):  # noqa: B905 - a number has none
            loads *= n if any(steps) else count
            for step, size in zip(steps, sizes, strict=True):
                elements *= size if step else 1
        moved.append(loads)
        floor.append(elements)
    return moved, floor


def needs_int64(layout: Layout, tiling: Tiling, part_strides: Iterable[Strides] = ()) -> bool:
    """Whether a launch has to count in 64 bits: some integer that it computes can pass 2**31 - 1.

    It computes, of every program and every lane, those that a mask hides too (a wrapped index would pass the mask):

    - the index along each group, and the end of a program's tile: at most blocks·tile,
    - the end of a program's chunk of the looped axes, before it is cut to their extent: at most parts·chunk,
    - the start of a tile along that chunk, also the one past the end that ends the loop, and the index in the tile,
    - the offset of each operand and output, along all groups, of indices past their ends,
    - where a program's part of a total begins: its position·stride along each group.

    A product of counts of blocks is at most that of programs, which has 31 bits on any GPU.
    """
    ends = _ends(layout, tiling)
    offsets = [
        sum(_furthest(n, strides, end - 1) for n, strides, end in zip(layout.sizes, groups, ends, strict=True))
        for groups in (*layout.operands, *layout.outputs)
        if groups
    ]
    counts = tiling.blocks[0], tiling.parts, tiling.blocks[-1]
    parts = [(n - 1) * step for strides in part_strides for n, step in zip(counts, strides, strict=True)]
    return max(*ends, *offsets, *parts) >= 2**31


def _ends(layout: Layout, tiling: Tiling) -> list[int]:
    """The largest end of a tile, a chunk or a loop along each group, past every index along it."""
    blocks = tiling.blocks
    if len(tiling.tile) == len(blocks):
        return [n * size for n, size in zip(blocks, tiling.tile, strict=True)]
    size, first = tiling.tile[LOOPED], (tiling.parts - 1) * tiling.chunk
    steps = -(-(layout.extents[LOOPED] - first) // size)
    looped = first + max(tiling.chunk, steps * size)
    return [blocks[0] * tiling.tile[OUTER], looped, blocks[1] * tiling.tile[TILED]]


def _side_by_side(layout: Layout) -> int:
    """The group that holds the smallest stride of the first operand that has strides in most groups."""
    operand = max(layout.operands, key=lambda groups: sum(map(any, groups)), default=())
    smallest = {min(filter(None, strides)): group for group, strides in enumerate(operand) if any(strides)}
    return smallest[min(smallest)] if smallest else LOOPED


def _width(n: int, most: int) -> int:
    """Return the width of tiles along ``n`` elements: ``most``, divided by 4 while tiles of it waste many lanes."""
    if n <= MIN_TILE_WIDTH:
        return MIN_TILE_WIDTH
    width = most
    while width > SMALL_GRID_WIDTH and -(-n // width) * width > n * MAX_PADDING:
        width //= 4
    return width


def _row_width(n: int, word: int) -> int:
    """The width of tiles that hold a row of ``n`` elements side by side; if they do not lie so, ``word`` is 0."""
    widths = (RAGGED_ROW_WIDTHS if n % word else EVEN_ROW_WIDTHS) if word else ()
    return next((width for width in widths if width >= n), _power_of_2(n))


def _furthest(sizes: Sequence[int], strides: Strides, last: int) -> int:
    """No element of a group of axes is further than this, where indices go up to ``last``, past the group's end."""
    if not sizes:
        return 0
    within = sum((size - 1) * stride for size, stride in zip(sizes[1:], strides[1:], strict=True))
    return last // prod(sizes[1:]) * strides[0] + within


def _power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _power_of_2_in(n: int) -> int:
    """The largest power of two up to ``n``, or 1."""
    return 1 << max(n, 1).bit_length() - 1


def _power_dividing(n: int) -> int:
    """The largest power of two that divides ``n``."""
    return n & -n
