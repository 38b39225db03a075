"""Broadcast, fold axes, choose tiles: integers only, no tensor and no Triton.

Every operand and output is a list of strides over one common shape. An operand with stride 0 along an axis is
broadcast; an output with stride 0 along an axis is *folded* over it, say summed, or constant along it. That duality is
all a backward pass needs: the gradient of a broadcast operand is an output as that operand was an input.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple

Strides = tuple[int, ...]
Fold = list[tuple[int, Strides]]  # axes outermost first: the size, and the stride of every tensor

ROWS, COLUMNS = range(2)  # the groups of axes that the map kernel's tiles span
KEPT, LOOPED, TILED = range(3)  # those of the map-reduce kernel's

WORD = 16  # bytes that one instruction loads at most
LANES = 32  # threads in a warp
WARPS = 4  # warps of a program at most
FLIGHT = 4  # words that a thread loads before it waits, where it has one operand
REGISTERS = 16  # most elements of an operand that a thread holds, or one word
WIDTH = 128  # most elements side by side of a tile of several rows: 256 bytes of 2 or 4 each, two cache lines
PROGRAMS = 512  # programs that fill a large GPU of 132 to 160 multiprocessors; fewer rows than that share their sums
PART = 4  # fewest tiles in a part of a shared sum
SHARE = 400  # fewest bytes that a part adds up: it is written and read again in 8, which costs 4 %
MULTIPROCESSORS = 128  # of a large GPU, at least: so many programs share sums where one holds whole rows
SECTOR = 32  # bytes that memory moves at least
ROW_WARPS = 16  # warps of a program that holds whole rows at most
ROW_VALUES = 48 << 10  # values of 4 bytes in the registers of ROW_WARPS warps, 96 in those of a thread
THREAD_VALUES = 192  # values of 4 bytes in the registers of a thread, of 255 where warps are few
ROW_WORDS = 2  # words of a row that a thread holds, of each value, until there are no more warps
WASTE = 1.3  # most lanes, to elements, that the widest tiles may cost
NARROW = 8  # elements side by side in the narrowest tiles
FEW = 32  # elements side by side in tiles of what does not fill the GPU
WHOLE_ROWS = (64, 256, 1024, 4096)  # widths of tiles that hold rows of whole words, from there on all powers of two;
RAGGED_ROWS = (16, 128, 1024, 4096)  # and of those that words do not fill
TOTALS = 32  # parts, and totals, in the tiles that add up what several programs left


class TooManyGroups(ValueError):
    """A kernel's axes are in three groups, and outputs are folded over more sets of axes."""


class Layout(NamedTuple):
    """Operands and outputs over folded axes, in groups: rows and columns, or kept, looped and tiled axes."""

    sizes: tuple[tuple[int, ...], ...]
    extents: tuple[int, ...]
    operands: tuple[tuple[Strides, ...], ...]  # by group; none for a number
    outputs: tuple[tuple[Strides, ...], ...]
    groups: tuple[int, ...]  # of each operand: bit i says that it has strides in group i; -1 for a number
    lacking: tuple[int, ...]  # of each output: bit i says that there is a group i, in which it has no strides
    folded: tuple[int, ...]  # likewise: that it is folded over group i
    row: int | None  # the group along which every tile has all elements, because the program folds them


class Tiling(NamedTuple):
    """How a layout is cut: elements of a tile and tiles along each group, chunk and parts of looped axes, warps."""

    tile: tuple[int, ...]
    blocks: tuple[int, ...]
    chunk: int
    parts: int
    warps: int
    side: int  # the group along which elements lie side by side
    ragged: bool  # whether whole words do not fill that group


def expand(shape: Sequence[int], size: Sequence[int], strides: Sequence[int]) -> Strides:
    """The strides over ``shape`` of a tensor that broadcasts to it."""
    missing = len(shape) - len(size)
    kept = (0 if one == 1 and many != 1 else s for one, many, s in zip(size, shape[missing:], strides, strict=True))
    return (0,) * missing + tuple(kept)


@lru_cache(maxsize=64)
def arrange(
    shape: tuple[int, ...],
    operands: tuple[Strides | None, ...],
    outputs: tuple[Strides, ...],
    folded: tuple[frozenset[int], ...],
    row: frozenset[int] = frozenset(),
) -> Layout:
    """Sort axes into groups and fold each: by which outputs are folded over them, else into rows and columns.

    ``folded`` has for each output the axes that it is folded over, ``row`` those that the program itself folds over:
    they become one group. Raises TooManyGroups where a kernel has fewer.
    """
    strides = [*outputs, *(s for s in operands if s is not None)]
    is_map = not any(folded) and not _repeats(shape, operands, row)
    groups = [frozenset(range(len(shape))) - row, row] if is_map else _group(shape, folded, row)
    folds = [_fold(shape, axes, strides) for axes in groups]
    if is_map and not row:
        folds = _split(folds[ROWS])
    per_tensor = [tuple(tuple(steps[i] for _, steps in fold) for fold in folds) for i in range(len(strides))]
    given = iter(per_tensor[len(outputs) :])
    by_operand = tuple(() if s is None else next(given) for s in operands)
    return Layout(
        sizes=tuple(tuple(size for size, _ in fold) for fold in folds),
        extents=tuple(prod(size for size, _ in fold) for fold in folds),
        operands=by_operand,
        outputs=tuple(per_tensor[: len(outputs)]),
        groups=tuple(_bits(map(any, groups)) if groups else -1 for groups in by_operand),
        lacking=tuple(
            _bits(bool(fold) and not any(s) for fold, s in zip(folds, z, strict=True))
            for z in per_tensor[: len(outputs)]
        ),
        folded=tuple(_bits(bool(axes & group) for group in groups) for axes in folded),
        row=None if not row else COLUMNS if is_map else TILED,
    )


def _repeats(shape, operands: Sequence[Strides | None], row: frozenset[int]) -> bool:
    """Whether every row of many reads the same of an operand, which one program loads once for several."""
    rows = [a for a, n in enumerate(shape) if n != 1 and a not in row]
    along = [s for s in operands if s and any(s[a] for a in row)]
    return bool(rows) and any(not any(s[a] for a in rows) for s in along)


def _group(shape, folded: Sequence[frozenset[int]], row: frozenset[int]) -> list[frozenset[int]]:
    """The axes of each group: kept, looped and tiled.

    The axes of a group are folded by the same outputs. The kept axes are those of no output, or else one more group.
    Where nothing is folded but in rows, the loop is along the rows.
    """
    axes = [a for a in range(len(shape)) if shape[a] != 1]
    by_outputs: dict[tuple[int, ...], set[int]] = {}
    for a in axes:
        by_outputs.setdefault((a in row, *(j for j, over in enumerate(folded) if a in over)), set()).add(a)
    rows = [frozenset(by_outputs.pop(key)) for key in list(by_outputs) if key[0]]
    kept = frozenset(by_outputs.pop((False,), ()))
    others = [frozenset(group) for _, group in sorted(by_outputs.items(), key=lambda item: item[0])]
    if not any(folded):
        kept, others = frozenset(), [kept]
    free = [g for g in (LOOPED, TILED, KEPT) if not (g == TILED and rows) and not (g == KEPT and kept)]
    if len(rows) > 1 or len(others) > len(free):
        raise TooManyGroups(f"one pass has not the groups to fold over {[sorted(over) for over in folded]}")
    groups = [kept, frozenset[int](), rows[0] if rows else frozenset()]
    for group, members in zip(free, others):  # noqa: B905 - fewer than are free
        groups[group] = members
    return groups


@lru_cache(maxsize=64)
def cut(layout: Layout, itemsize: int, share: bool = True, live: int = 1) -> Tiling:
    """Tiles of a layout whose narrowest element takes ``itemsize`` bytes; programs ``share`` sums where rows are few.

    A program holds ``live`` values of 4 bytes for each element: fewer elements, or more threads, where these are many.

    A thread handles whole words, several of them; tiles shrink to one word for each thread of a warp before they
    leave multiprocessors idle. Each tile is a kernel to compile, so that there are few for all extents: they cost
    lanes without an element.
    """
    word = WORD // itemsize
    if layout.row is None:
        word = min(word, _power_of_2_in(THREAD_VALUES // live))
    reads = sum(groups >= 0 for groups in layout.groups)
    flight = _power_of_2_in(min(FLIGHT // max(reads, 1), REGISTERS // word, THREAD_VALUES // (live * word)))
    cut_tiles = _cut_rows if layout.row is not None else _cut_map if len(layout.extents) == 2 else _cut_reduce
    if not share:
        return _cut_totals(layout, word)
    tiling = cut_tiles(layout, LANES * WARPS * word * flight, word)
    if prod(tiling.blocks) * tiling.parts < PROGRAMS // 2:
        tiling = cut_tiles(layout, LANES * word, word)
    return _spread(layout, tiling, live)


def _spread(layout: Layout, tiling: Tiling, live: int) -> Tiling:
    """Return the tiling with as many warps as it takes to hold a row, of ``live`` values for each element."""
    warps = tiling.warps
    while layout.row is not None and warps < ROW_WARPS and prod(tiling.tile) * live > THREAD_VALUES * LANES * warps:
        warps *= 2
    return tiling._replace(warps=warps)


def _cut_map(layout: Layout, room: int, word: int) -> Tiling:
    """Tiles of about ``room`` elements: flat, or rows of 16 words; near square where an operand runs down the rows."""
    rows, columns = layout.extents
    if any(strides and strides[ROWS][-1:] == (1,) and any(strides[COLUMNS]) for strides in layout.operands):
        width = min(_power_of_2(columns), 8 * word, 64)
        height = min(_power_of_2(rows), width, room // width)
    else:
        few = min(_power_of_2(rows), room)
        most = FEW if room == LANES * word else min(16 * word, WIDTH)
        width = room if rows == 1 else _width(columns, max(most, room // few))
        height = min(few, room // width)
    return _tiling(layout, (height, width), COLUMNS, word)


def _cut_reduce(layout: Layout, room: int, word: int) -> Tiling:
    """Tiles wide along the axes whose elements lie side by side, then along the sum.

    Each tile along the tiled axes writes a sum of its own for the looped ones, so those tiles are large.
    """
    side = _side_by_side(layout)
    tiled = layout.extents[TILED] > 1
    wide = 8 * word if tiled else room if side == LOOPED else min(16 * word, WIDTH)
    others = [group for group in (TILED, LOOPED, KEPT) if group != side]
    few = min(prod(_power_of_2(layout.extents[group]) for group in others), room)
    tile, left = [1, 1, 1], 4 * room if tiled else room
    tile[side] = _width(layout.extents[side], max(wide, room // few)) if layout.extents[side] > 1 else 1
    left //= tile[side]
    for group in others:
        tile[group] = min(_power_of_2(layout.extents[group]), left)
        left //= tile[group]
    return _tiling(layout, tuple(tile), side, word)


def _cut_rows(layout: Layout, room: int, word: int) -> Tiling:
    """Tiles of a whole row, or of several: along the axis on which elements lie side by side, if that is another."""
    assert layout.row is not None
    tile = [1] * len(layout.extents)
    side = _side_by_side(layout)
    tile[layout.row] = width = _row_width(layout.extents[layout.row], word if side == layout.row else 0)
    for group in (side, *(g for g in range(len(tile)) if g != side)):
        if group != layout.row:
            least = SECTOR * word // WORD if group == side else 1
            tile[group] = min(_power_of_2(layout.extents[group]), max(least, room // width))
            width *= tile[group]
    return _tiling(layout, tuple(tile), layout.row, word)


def _cut_totals(layout: Layout, word: int) -> Tiling:
    """The same tiles for any number of parts: there is little to add up, and it is not worth kernels of its own."""
    kept = TOTALS if layout.extents[KEPT] > 1 else 1
    tiling = _tiling(layout, (kept, TOTALS * TOTALS // kept, 1), KEPT, word)
    return tiling._replace(chunk=layout.extents[LOOPED], parts=1, ragged=True)


def _tiling(layout: Layout, tile: tuple[int, ...], side: int, word: int) -> Tiling:
    blocks = tuple(-(-n // size) for n, size in zip(layout.extents, tile, strict=True))
    most, each = (WARPS, LANES * word) if layout.row is None else (ROW_WARPS, LANES * word * ROW_WORDS)
    warps = max(1, min(most, prod(tile) // each))
    ragged = _power_dividing(layout.extents[side]) < word
    if len(tile) == 2:
        return Tiling(tile, blocks, 0, 1, warps, side, ragged)
    steps, programs = blocks[LOOPED], blocks[KEPT] * blocks[TILED]
    bulk = layout.extents[LOOPED] * WORD // word
    if layout.row is None:
        most = min(PROGRAMS // programs, steps // PART, bulk // SHARE)
    else:
        most = (1 if any(layout.folded) else 2) * MULTIPROCESSORS // programs
    parts = max(1, min(most, steps))
    chunk = -(-steps // parts) * tile[LOOPED]
    parts = -(-layout.extents[LOOPED] // chunk)
    return Tiling(tile, (blocks[KEPT], blocks[TILED]), chunk, parts, warps, side, ragged)


def holds(layout: Layout, itemsize: int, live: int, registers: int = 1) -> bool:
    """Whether the registers of one program hold ``live`` values for each element of its smallest tile.

    A value takes ``registers`` of 4 bytes. Where rows are looped over, most are not all alive at once, but doubles take
    more, and so do the addresses of a ragged row, whose elements each thread loads one by one. (Measured for sm_90.)
    """
    if layout.row is None:
        return True
    word = WORD // itemsize
    takes, most = live * registers, ROW_VALUES
    if len(layout.extents) == 3:
        most = ROW_VALUES * 7 // 6
        ragged = _power_dividing(layout.extents[layout.row]) < word
        takes += 2 * (registers - 1) + (max(1, word // 4) if ragged else 0)
    return prod(_cut_rows(layout, 1, word).tile) * takes <= most


def gathered(layout: Layout) -> int:
    """How many outputs gather along the loop, in a tile each."""
    return sum(folded >> LOOPED & 1 for folded in layout.folded) if len(layout.extents) == 3 else 0


def repeated(layout: Layout) -> list[int]:
    """The operands of which every step of the loop reads the same."""
    loops = len(layout.extents) == 3
    return [k for k, groups in enumerate(layout.groups) if loops and groups > 0 and not groups >> LOOPED & 1]


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


def is_wide(layout: Layout, tiling: Tiling, part_strides: Iterable[Strides] = ()) -> bool:
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
    return [blocks[0] * tiling.tile[KEPT], looped, blocks[1] * tiling.tile[TILED]]


def dense(shape: Sequence[int], strides: Strides) -> Strides:
    """Contiguous strides over the axes that an output is not summed over: where its partial sums lie."""
    result, step = [0] * len(shape), 1
    for axis in reversed(range(len(shape))):
        if strides[axis] != 0:
            result[axis] = step
            step *= shape[axis]
    return tuple(result)


def _fold(shape: Sequence[int], axes: frozenset[int], strides: list[Strides]) -> Fold:
    """Merge the axes that every tensor walks as one: sizes outermost first, and each tensor's strides."""
    folded: Fold = []
    for axis in sorted((a for a in axes if shape[a] != 1), key=lambda a: [-s[a] for s in strides]):
        size, steps = shape[axis], tuple(s[axis] for s in strides)
        if folded and all(outer == inner * size for outer, inner in zip(folded[-1][1], steps, strict=True)):
            size *= folded.pop()[0]
        folded.append((size, steps))
    return folded


def _split(folded: Fold) -> list[Fold]:
    """Rows and columns: the last axis is the columns; of the others, one that a tensor walks by 1 is innermost."""
    rows, columns = folded[:-1], folded[-1:]
    return [sorted(rows, key=lambda axis: 1 in axis[1]), columns]


def _side_by_side(layout: Layout) -> int:
    """The group that holds the smallest stride of the first operand that has strides in most groups."""
    operand = max(layout.operands, key=lambda groups: sum(map(any, groups)), default=())
    smallest = {min(filter(None, strides)): group for group, strides in enumerate(operand) if any(strides)}
    return smallest[min(smallest)] if smallest else LOOPED


def _width(n: int, most: int) -> int:
    """Return the width of tiles along ``n`` elements: ``most``, divided by 4 while tiles of it waste many lanes."""
    if n <= NARROW:
        return NARROW
    width = most
    while width > FEW and -(-n // width) * width > n * WASTE:
        width //= 4
    return width


def _row_width(n: int, word: int) -> int:
    """The width of tiles that hold a row of ``n`` elements side by side; if they do not lie so, ``word`` is 0."""
    widths = (RAGGED_ROWS if n % word else WHOLE_ROWS) if word else ()
    return next((width for width in widths if width >= n), _power_of_2(n))


def _bits(flags: Iterable[bool]) -> int:
    """Bit i is flag i."""
    return sum(flag << i for i, flag in enumerate(flags))


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
