"""The iteration space of a stage as a CPU walks it, and how it is cut into blocks: integers only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import NamedTuple

from ..triton_kernels.layout import Strides
from ..triton_kernels.stage import Stage

LINE_ELEMENTS = 16  # of a cache line: an axis that lies in order is not cut shorter, while another can be


Axes = tuple[bool, ...]  # for each axis of a space, whether a value varies along it


class Space(NamedTuple):
    """The axes of a stage, outermost in memory first; neighbours that every tensor walks as one are one.

    What is said of an axis is said by its position here. Axes with one element are left out, but for one of a space
    that has no other: among tensors without axes torch takes a number in double precision for one, and widens all.
    """

    sizes: tuple[int, ...]  # elements along each axis
    operand_strides: tuple[Strides | None, ...]  # of each operand, in elements; None for a number
    output_strides: tuple[Strides, ...]  # of each output, in elements
    row_axes: frozenset[int]  # the axes over which ops reduce
    reduced_axes: tuple[frozenset[int], ...]  # of each output: those that it is reduced over

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.sizes)

    @property
    def in_order(self) -> set[int]:
        """The axes along which the elements of a large tensor, one that varies along as many as any, lie in order."""
        tensors = [s for s in (*self.operand_strides, *self.output_strides) if s is not None]
        rank = max((sum(map(bool, s)) for s in tensors), default=0)
        return {a for s in tensors if sum(map(bool, s)) == rank for a in range(self.rank) if s[a] == 1}

    def without_rows(self, varies: Axes) -> Axes:
        """Return along which axes a value varies that is reduced over rows."""
        return tuple(is_along and a not in self.row_axes for a, is_along in enumerate(varies))


def lay_out(stage: Stage, elements: int) -> Space:
    """Return the space of a stage.

    Where all of it is one block of so many ``elements`` at most, axes stay apart: tensors are then seen as they are.
    """
    coalesces = prod(stage.shape) > elements
    operands = [x.strides for x in stage.operands]
    tensors = [*(s for s in operands if s is not None), *(z.strides for z in stage.outputs)]
    members = [stage.row_axes, *(z.reduced_axes for z in stage.outputs)]
    merged: list[list[int]] = []  # the axes of the stage that are one
    for a in _in_memory_order(stage.shape, tensors):
        if coalesces and merged and _is_one_walk(merged[-1][-1], a, stage.shape, tensors, members):
            merged[-1].append(a)
        else:
            merged.append([a])

    def strides(s: Strides) -> Strides:
        return tuple(s[axes[-1]] for axes in merged) or (0,)

    def positions(axes: frozenset[int]) -> frozenset[int]:
        return frozenset(k for k, each in enumerate(merged) if each[0] in axes)

    return Space(
        tuple(prod(stage.shape[a] for a in axes) for axes in merged) or (1,),
        tuple(None if s is None else strides(s) for s in operands),
        tuple(strides(z.strides) for z in stage.outputs),
        positions(stage.row_axes),
        tuple(positions(z.reduced_axes) for z in stage.outputs),
    )


def _in_memory_order(shape: Sequence[int], tensors: Sequence[Strides]) -> list[int]:
    """Return the axes with several elements, outermost first, as the largest tensors have them."""
    axes = [a for a, n in enumerate(shape) if n != 1]
    largest_first = sorted(tensors, key=lambda s: -prod(shape[a] for a in axes if s[a]))
    return sorted(axes, key=lambda a: [-s[a] for s in largest_first])


def _is_one_walk(
    outer: int, inner: int, shape: Sequence[int], tensors: Sequence[Strides], members: Sequence[frozenset[int]]
) -> bool:
    """Return whether every tensor walks two axes with one stride, and what is reduced over one is over the other."""
    if any((outer in axes) != (inner in axes) for axes in members):
        return False
    return all(s[outer] == s[inner] * shape[inner] for s in tensors)


def variation(strides: Strides | None, rank: int) -> Axes:
    """Return the axes along which a tensor of these strides varies; a number varies along none."""
    return (False,) * rank if strides is None else tuple(map(bool, strides))


def joined(varies: Sequence[Axes], rank: int) -> Axes:
    """Return the axes along which one of several values varies."""
    return tuple(any(axes[a] for axes in varies) for a in range(rank))


def shape_of(shape: Sequence[int], varies: Axes) -> list[int]:
    """Return the shape of a value in a block of this shape."""
    return [n if is_along else 1 for n, is_along in zip(shape, varies, strict=True)]


def share(space: Space, threads: int) -> Space:
    """Return the space with its outermost axis as two, the first of which has one element for each thread.

    Torch gives each thread a contiguous share of an operator's elements, outermost axis first. Left whole, that axis
    makes it the same part of every tensor in all blocks, whose pages a thread then brings while others bring theirs:
    in blocks of neighbouring rows threads wait for each other's pages. A space whose outermost axis does not divide,
    or is reduced over, stays as it is: torch's sums over two axes that are not neighbours are slow.
    """
    n = space.sizes[0]
    if any(0 in axes for axes in (space.row_axes, *space.reduced_axes)) or n % threads or n == threads:
        return space

    def strides(s: Strides) -> Strides:
        return s[0] * (n // threads), *s

    def positions(axes: frozenset[int]) -> frozenset[int]:
        return frozenset(a + 1 for a in axes)

    return Space(
        (threads, n // threads, *space.sizes[1:]),
        tuple(None if s is None else strides(s) for s in space.operand_strides),
        tuple(map(strides, space.output_strides)),
        positions(space.row_axes),
        tuple(map(positions, space.reduced_axes)),
    )


def cut(space: Space, elements: int, uncut_axes: int = 0) -> tuple[int, ...]:
    """Return the length of blocks along each axis, so that a block has about this many elements at most.

    Axes are cut from the outermost on, those of rows last: a reduction over an axis that is cut takes one more pass. An
    axis along which a tensor lies in order is left a cache line long, if others can be cut. So many of the outermost
    axes as ``uncut_axes`` are not cut.
    """
    steps = list(space.sizes)
    in_order = space.in_order
    outermost = [a for a in range(uncut_axes, space.rank) if a not in space.row_axes]
    candidates = [(a, LINE_ELEMENTS if a in in_order else 1) for a in (*outermost, *sorted(space.row_axes))]
    for a, least in (*candidates, *((a, 1) for a, _ in candidates)):
        others = prod(steps) // steps[a]
        if others * steps[a] > elements:
            steps[a] = _even(space.sizes[a], max(elements // others, min(least, steps[a])))
    return tuple(steps)


def _even(size: int, step: int) -> int:
    """Return a step no longer than ``step`` that takes as many blocks, of about one length."""
    return -(-size // -(-size // step))


def lengths(sizes: Sequence[int], steps: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield the shape of each block, the last axis fastest."""
    return product(
        *([min(step, n - start) for start in range(0, n, step)] for n, step in zip(sizes, steps, strict=True))
    )
