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
MergedAxes = list[tuple[int, Strides]]  # axes outermost first: the size, and the stride of every tensor

ROWS, COLUMNS = range(2)  # the groups of axes that the map kernel's tiles span
OUTER, LOOPED, TILED = range(3)  # those of the map-reduce kernel's

VECTOR_BYTES = 16  # bytes that one instruction loads at most


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
    folds = [_coalesce(shape, axes, strides) for axes in groups]
    if is_map and not row:
        folds = _split_rows(folds[ROWS])
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
    free = [g for g in (LOOPED, TILED, OUTER) if not (g == TILED and rows) and not (g == OUTER and kept)]
    if len(rows) > 1 or len(others) > len(free):
        raise TooManyGroups(f"one pass has not the groups to fold over {[sorted(over) for over in folded]}")
    groups = [kept, frozenset[int](), rows[0] if rows else frozenset()]
    for group, members in zip(free, others):  # noqa: B905 - fewer than are free
        groups[group] = members
    return groups


def gathered(layout: Layout) -> int:
    """How many outputs gather along the loop, in a tile each."""
    return sum(folded >> LOOPED & 1 for folded in layout.folded) if len(layout.extents) == 3 else 0


def repeated(layout: Layout) -> list[int]:
    """The operands of which every step of the loop reads the same."""
    loops = len(layout.extents) == 3
    return [k for k, groups in enumerate(layout.groups) if loops and groups > 0 and not groups >> LOOPED & 1]


def dense(shape: Sequence[int], strides: Strides) -> Strides:
    """Contiguous strides over the axes that an output is not summed over: where its partial sums lie."""
    result, step = [0] * len(shape), 1
    for axis in reversed(range(len(shape))):
        if strides[axis] != 0:
            result[axis] = step
            step *= shape[axis]
    return tuple(result)


def _coalesce(shape: Sequence[int], axes: frozenset[int], strides: list[Strides]) -> MergedAxes:
    """Merge the axes that every tensor walks as one: sizes outermost first, and each tensor's strides."""
    folded: MergedAxes = []
    for axis in sorted((a for a in axes if shape[a] != 1), key=lambda a: [-s[a] for s in strides]):
        size, steps = shape[axis], tuple(s[axis] for s in strides)
        if folded and all(outer == inner * size for outer, inner in zip(folded[-1][1], steps, strict=True)):
            size *= folded.pop()[0]
        folded.append((size, steps))
    return folded


def _split_rows(folded: MergedAxes) -> list[MergedAxes]:
    """Rows and columns: the last axis is the columns; of the others, one that a tensor walks by 1 is innermost."""
    rows, columns = folded[:-1], folded[-1:]
    return [sorted(rows, key=lambda axis: 1 in axis[1]), columns]


def _bits(flags: Iterable[bool]) -> int:
    """Bit i is flag i."""
    return sum(flag << i for i, flag in enumerate(flags))
