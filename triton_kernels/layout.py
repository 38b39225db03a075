"""Broadcast operands, sort axes into groups, coalesce the axes of each: integers only, no tensor and no Triton.

Every operand and output is a list of strides over one common shape. An operand with stride 0 along an axis is
broadcast; an output with stride 0 along an axis is *reduced* over it, or constant along it. That duality is all a
backward pass needs: the gradient of a broadcast operand is an output whose strides are those of the operand.

To *coalesce* axes is to merge neighbours that every tensor walks with one stride, as the axes of a contiguous one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple

Strides = tuple[int, ...]  # in elements, one for each axis
MergedAxes = list[tuple[int, Strides]]  # axes of one group, outermost first: the size, and the stride of every tensor

ROWS, COLUMNS = range(2)  # the groups of axes that the map kernel's tiles span
OUTER, LOOPED, TILED = range(3)  # the groups of the other kernels, see ``body.py``; a row is the tiled group

VECTOR_BYTES = 16  # bytes that one instruction loads at most


class TooManyGroups(ValueError):
    """The error where outputs are reduced over more sets of axes than a kernel has groups."""


class Layout(NamedTuple):
    """The layout of operands and outputs over coalesced axes, which are in groups: two for a map kernel, else three.

    A set of groups is an integer whose bit i stands for group i.
    """

    sizes: tuple[tuple[int, ...], ...]  # of each group: the elements along each of its axes, outermost first
    extents: tuple[int, ...]  # of each group: its elements, which is the product of its sizes
    operand_strides: tuple[tuple[Strides, ...], ...]  # of each operand and group, in elements; () for a number
    output_strides: tuple[tuple[Strides, ...], ...]  # of each output and group, in elements
    operand_groups: tuple[int, ...]  # of each operand: the set of groups that it has strides in; -1 for a number
    constant_along: tuple[int, ...]  # of each output: the set of groups with axes in which it has no strides
    reduced_over: tuple[int, ...]  # of each output: the set of groups that it is reduced over
    has_rows: bool = False  # whether ops reduce over the tiled group, which then is a row
    segments: tuple[int, ...] = ()  # of each output: elements side by side of a row that it adds up to one, else 0


def expand(shape: Sequence[int], size: Sequence[int], strides: Sequence[int]) -> Strides:
    """Return the strides over ``shape`` of a tensor of ``size`` and ``strides`` that broadcasts to it."""
    missing = len(shape) - len(size)
    broadcast = (0 if n == 1 and full != 1 else s for n, full, s in zip(size, shape[missing:], strides, strict=True))
    return (0,) * missing + tuple(broadcast)


@lru_cache(maxsize=64)
def arrange(
    shape: tuple[int, ...],
    operands: tuple[Strides | None, ...],
    outputs: tuple[Strides, ...],
    reduced_axes: tuple[frozenset[int], ...],
    row_axes: frozenset[int] = frozenset(),
    segments: tuple[int, ...] = (),
) -> Layout:
    """Sort axes into groups by which outputs are reduced over them, else into rows and columns; coalesce each group.

    ``reduced_axes`` has for each output the axes that it is reduced over, ``row_axes`` are those that ops reduce over:
    they become one group. ``segments`` has for each output how many elements of a row it adds up to one, 0 for none: it
    has no strides along a row then. Raises TooManyGroups where a kernel has fewer groups than that takes.
    """
    strides = [*outputs, *(s for s in operands if s is not None)]
    is_map = not any(reduced_axes) and not row_axes
    groups = [frozenset(range(len(shape))), frozenset()] if is_map else _group(shape, reduced_axes, row_axes)
    merged = [_coalesce(shape, axes, strides) for axes in groups]
    if is_map:
        merged = _split_rows(merged[ROWS])
    per_tensor = [tuple(tuple(steps[i] for _, steps in axes) for axes in merged) for i in range(len(strides))]
    output_strides, of_tensors = tuple(per_tensor[: len(outputs)]), iter(per_tensor[len(outputs) :])
    operand_strides = tuple(() if s is None else next(of_tensors) for s in operands)
    return Layout(
        sizes=tuple(tuple(size for size, _ in axes) for axes in merged),
        extents=tuple(prod(size for size, _ in axes) for axes in merged),
        operand_strides=operand_strides,
        output_strides=output_strides,
        operand_groups=tuple(_bits(map(any, groups)) if groups else -1 for groups in operand_strides),
        constant_along=tuple(
            _bits(bool(axes) and not any(s) for axes, s in zip(merged, z, strict=True)) for z in output_strides
        ),
        reduced_over=tuple(_bits(bool(axes & group) for group in groups) for axes in reduced_axes),
        has_rows=bool(row_axes),
        segments=segments or (0,) * len(outputs),
    )


def _group(shape, reduced_axes: Sequence[frozenset[int]], row_axes: frozenset[int]) -> list[frozenset[int]]:
    """Return the axes of each group: outer, looped and tiled.

    The same outputs are reduced over all axes of a group. The outer axes are those that no output is reduced over;
    where there are none, they are one more group to use. Where ops alone reduce, the loop goes from row to row.

    An output that is reduced over rows is reduced over the loop, too: a program that walks its rows has one total for
    all of them, and none for each.
    """
    by_outputs: dict[tuple[int, ...], set[int]] = {}
    for a in (a for a in range(len(shape)) if shape[a] != 1):
        key = a in row_axes, *(j for j, axes in enumerate(reduced_axes) if a in axes)
        by_outputs.setdefault(key, set()).add(a)
    rows = [frozenset(by_outputs.pop(key)) for key in list(by_outputs) if key[0]]
    outer = frozenset(by_outputs.pop((False,), ()))
    of_rows = frozenset(j for j, axes in enumerate(reduced_axes) if rows and axes & rows[0])
    keys = sorted(by_outputs, key=lambda key: (not of_rows.issubset(key[1:]), key))
    others = [frozenset(by_outputs[key]) for key in keys]
    if not any(reduced_axes):
        outer, others = frozenset(), [outer]
    free = [g for g in (LOOPED, TILED, OUTER) if not (g == TILED and rows) and not (g == OUTER and outer)]
    of_loop = frozenset(keys[0][1:] if keys else ())
    if len(rows) > 1 or len(others) > len(free) or not of_rows <= of_loop:
        raise TooManyGroups(f"one pass has not the groups to reduce over {[sorted(axes) for axes in reduced_axes]}")
    groups = [outer, frozenset[int](), rows[0] if rows else frozenset()]
    for group, axes in zip(free, others, strict=False):  # there may be more free groups
        groups[group] = axes
    return groups


def accumulator_count(layout: Layout) -> int:
    """Return how many outputs accumulate along the loop, each in a tile of its own."""
    return sum(groups >> LOOPED & 1 for groups in layout.reduced_over) if len(layout.extents) == 3 else 0


def loop_invariants(layout: Layout) -> list[int]:
    """Return the operands, by position, of which every step of the loop reads the same elements."""
    has_loop = len(layout.extents) == 3
    return [k for k, groups in enumerate(layout.operand_groups) if has_loop and groups > 0 and not groups >> LOOPED & 1]


def dense_strides(shape: Sequence[int], strides: Strides) -> Strides:
    """Return strides without gaps over the axes that have a stride, 0 along the others: how a partial result lies.

    The axes keep the order of their strides: a partial result is walked as the output that it is a part of.
    """
    result, step = [0] * len(shape), 1
    for axis in sorted(reversed(range(len(shape))), key=lambda a: strides[a]):
        if strides[axis] != 0:
            result[axis] = step
            step *= shape[axis]
    return tuple(result)


def _coalesce(shape: Sequence[int], axes: frozenset[int], strides: list[Strides]) -> MergedAxes:
    """Merge those of ``axes`` that every tensor walks as one."""
    merged: MergedAxes = []
    for axis in in_order(shape, axes, strides):
        size, steps = shape[axis], tuple(s[axis] for s in strides)
        if merged and all(outer == inner * size for outer, inner in zip(merged[-1][1], steps, strict=True)):
            size *= merged.pop()[0]
        merged.append((size, steps))
    return merged


def in_order(shape: Sequence[int], axes: frozenset[int], strides: Sequence[Strides]) -> list[int]:
    """Return those of ``axes`` with more than one element in the order that a group has them, outermost first.

    ``strides`` are those of outputs, then of operands.
    """
    return sorted((a for a in axes if shape[a] != 1), key=lambda a: [-s[a] for s in strides])


def _split_rows(merged: MergedAxes) -> list[MergedAxes]:
    """Return rows and columns: the last axis is the columns; of the rows, one that a tensor walks by 1 is innermost."""
    rows, columns = merged[:-1], merged[-1:]
    return [sorted(rows, key=lambda axis: 1 in axis[1]), columns]


def _bits(flags: Iterable[bool]) -> int:
    """Return the integer whose bit i is flag i."""
    return sum(flag << i for i, flag in enumerate(flags))
