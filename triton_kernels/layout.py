"""Broadcast, fold axes, choose tiles: integers only, no tensor and no Triton.

Every operand and output is a list of strides over one common shape. An operand with stride 0 along an axis is
broadcast; an output with stride 0 along an axis is *summed* over it. That duality is all a backward pass needs: the
gradient of a broadcast operand is an output as that operand was an input.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple

Strides = tuple[int, ...]

KEPT, LOOPED, TILED = range(3)

BLOCK = 1024  # elements a program of the map kernel handles
TILE = 2048  # elements in a tile of the map-reduce kernel
ROW = 1024  # most elements a tile takes along the axis whose elements lie side by side, where that axis is summed
SPAN = 128  # the same, where that axis is kept
PROGRAMS = 512  # programs that fill a large GPU; fewer rows than that share out their sums
PART = 4  # fewest tiles in a part of a shared sum


class Layout(NamedTuple):
    """Operands and outputs over folded axes, in groups: all axes in one, or kept, looped and tiled ones."""

    sizes: tuple[tuple[int, ...], ...]
    extents: tuple[int, ...]
    operands: tuple[tuple[Strides, ...], ...]  # by group; none for a number
    outputs: tuple[tuple[Strides, ...], ...]
    groups: tuple[int, ...]  # of each operand: bit i says that it has strides in group i; -1 for a number
    summed: tuple[int | None, ...]  # the group that each output is summed over
    wide: bool  # whether an offset can pass 2**31


class Tiling(NamedTuple):
    """How the box of a map-reduce is cut: tile shape, blocks of kept and tiled axes, chunk and parts of looped ones."""

    tile: tuple[int, int, int]
    blocks: tuple[int, int]
    chunk: int
    parts: int


def expand(shape: Sequence[int], size: Sequence[int], strides: Sequence[int]) -> Strides:
    """The strides over ``shape`` of a tensor that broadcasts to it."""
    missing = len(shape) - len(size)
    kept = (0 if one == 1 and many != 1 else s for one, many, s in zip(size, shape[missing:], strides, strict=True))
    return (0,) * missing + tuple(kept)


@lru_cache(maxsize=4096)
def arrange(shape: tuple[int, ...], operands: tuple[Strides | None, ...], outputs: tuple[Strides, ...]) -> Layout:
    """Sort axes into groups by which outputs are summed over them, and fold each group.

    Raises ValueError where outputs are summed over more than two different sets of axes, or over overlapping ones.
    """
    strides = [*outputs, *(s for s in operands if s is not None)]
    summed_axes = [frozenset(a for a, n in enumerate(shape) if n != 1 and s[a] == 0) for s in outputs]
    sums = list(dict.fromkeys(axes for axes in summed_axes if axes))
    if len(sums) > TILED or (len(sums) == TILED and sums[0] & sums[1]):
        raise ValueError(f"one pass sums over at most two separate sets of axes, got {[sorted(s) for s in sums]}")
    kept = frozenset(range(len(shape))).difference(*sums)
    groups = [kept] if not sums else [kept, *sums, *[frozenset[int]()] * (TILED - len(sums))]
    folds = [_fold(shape, axes, strides) for axes in groups]
    per_tensor = [tuple(column) for column in zip(*(fold_strides for _, fold_strides in folds), strict=True)]
    given = iter(per_tensor[len(outputs) :])
    by_operand = tuple(() if s is None else next(given) for s in operands)
    return Layout(
        sizes=tuple(sizes for sizes, _ in folds),
        extents=tuple(prod(sizes) for sizes, _ in folds),
        operands=by_operand,
        outputs=tuple(per_tensor[: len(outputs)]),
        groups=tuple(sum(any(g) << i for i, g in enumerate(groups)) if groups else -1 for groups in by_operand),
        summed=tuple(1 + sums.index(axes) if axes else None for axes in summed_axes),
        wide=prod(shape) > 2**31 - 1 - TILE or any(_span(shape, s) > 2**31 - 1 for s in strides),
    )


@lru_cache(maxsize=4096)
def cut(layout: Layout) -> Tiling:
    """Tiles for a map-reduce: wide along the axis whose elements lie side by side, then along the sum."""
    side = _side_by_side(layout)
    order = [side, *(group for group in (LOOPED, KEPT, TILED) if group != side)]
    tile, room = [1, 1, 1], TILE
    for group in order:
        most = (ROW if group == LOOPED else SPAN) if group == side else room
        tile[group] = min(_power_of_2(layout.extents[group]), most, room)
        room //= tile[group]
    blocks = (_blocks(layout.extents[KEPT], tile[KEPT]), _blocks(layout.extents[TILED], tile[TILED]))
    steps = _blocks(layout.extents[LOOPED], tile[LOOPED])
    parts = max(1, min(PROGRAMS // (blocks[0] * blocks[1]), steps // PART))
    chunk = -(-steps // parts) * tile[LOOPED]
    return Tiling((tile[0], tile[1], tile[2]), blocks, chunk, _blocks(layout.extents[LOOPED], chunk))


def dense(shape: Sequence[int], strides: Strides) -> Strides:
    """Contiguous strides over the axes that an output is not summed over: where its partial sums lie."""
    result, step = [0] * len(shape), 1
    for axis in reversed(range(len(shape))):
        if strides[axis] != 0:
            result[axis] = step
            step *= shape[axis]
    return tuple(result)


def _fold(shape: Sequence[int], axes: frozenset[int], strides: list[Strides]) -> tuple[tuple[int, ...], list[Strides]]:
    """Merge the axes that every tensor walks as one: sizes outermost first, and each tensor's strides."""
    folded: list[tuple[int, tuple[int, ...]]] = []
    for axis in sorted((a for a in axes if shape[a] != 1), key=lambda a: [-s[a] for s in strides]):
        size, steps = shape[axis], tuple(s[axis] for s in strides)
        if folded and all(outer == inner * size for outer, inner in zip(folded[-1][1], steps, strict=True)):
            size *= folded.pop()[0]
        folded.append((size, steps))
    return tuple(size for size, _ in folded), [tuple(steps[i] for _, steps in folded) for i in range(len(strides))]


def _side_by_side(layout: Layout) -> int:
    """The group that holds the smallest stride of the first operand that has one."""
    for operand in layout.operands:
        smallest = {min(filter(None, strides)): group for group, strides in enumerate(operand) if any(strides)}
        if smallest:
            return smallest[min(smallest)]
    return LOOPED


def _span(shape: Sequence[int], strides: Strides) -> int:
    return sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def _power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _blocks(n: int, block: int) -> int:
    return -(-n // block)
