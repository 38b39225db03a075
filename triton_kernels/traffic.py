"""Count the bytes of each operand and output that a launch moves: integers only, no tensor and no Triton.

A byte may be asked for several times: by one program, which walks its rows more than once, or by several programs,
which share a row of weights. Where it comes from the second time depends on how many bytes are touched in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import NamedTuple

from .layout import LOOPED, TILED, Layout, Strides, loop_invariants
from .tiling import Tiling


class TensorMoves(NamedTuple):
    """The bytes of one operand or output that a launch moves; all are 0 for an operand that is a number."""

    unique: int  # bytes of the tensor that some program touches, each counted once
    by_programs: int  # bytes that the programs touch, each counted once for every program
    requested: int  # bytes that the programs load or store, each as often as a program asks for it
    by_lanes: int  # bytes that the threads of one program ask for: also past an end, and several threads for the same
    apart: int  # how many programs later, by their ids, another touches the same byte; 0 where none does
    distance: int  # bytes that a program touches from one use of a byte to its next; 0 where it uses each once
    itemsize: int  # bytes of an element
    is_stored: bool  # whether it is an output
    is_scratch: bool  # whether it only passes from one launch to another


class Moves(NamedTuple):
    """What a launch moves."""

    tensors: tuple[TensorMoves, ...]  # of each operand, then of each output
    steps: int  # how often a program goes round its loop over the looped group; 1 where it has none
    block: tuple[int, ...] = ()  # of each group: the elements along it that a program computes, but for the last ones


class _Walk(NamedTuple):
    """The programs of a launch, by the groups of its layout."""

    programs: tuple[int, ...]  # programs along the group
    id_steps: tuple[int, ...]  # from the id of a program to that of the next along the group
    tiles: tuple[int, ...]  # tiles along the group, of all programs
    visits: tuple[int, ...]  # tiles along the group that one program visits


def traffic(
    layout: Layout,
    tiling: Tiling,
    arguments: Sequence[tuple[int, bool]],
    walks: Sequence[int] = (),
) -> Moves:
    """Return what is moved of each operand, then of each output.

    Args:
        layout: of the operands and outputs.
        tiling: the division of its iteration space among programs.
        arguments: of each operand and output the bytes of an element, 0 for a number, and whether it is scratch.
        walks: of each operand and output how often a program goes over a row of it; once if left out.
    """
    walk, reloaded = _walk(layout, tiling), loop_invariants(layout) if tiling.reloads else ()
    strides_of_all = (*layout.operand_strides, *layout.output_strides)
    moved = []
    for k, (strides, (itemsize, is_scratch)) in enumerate(zip(strides_of_all, arguments, strict=True)):
        counted = _moves(layout, tiling, walk, strides, k, k in reloaded)
        moved.append(_in_bytes(counted, walks[k] if walks else 1, itemsize, is_scratch))
    steps = walk.visits[LOOPED] if len(walk.visits) == 3 else 1
    own = [m for k, m in enumerate(moved) if k not in reloaded]
    both = bytes_between(own), sum(m.by_programs for m in moved)
    in_walk, in_step = (n // (prod(walk.programs) * steps) for n in both)
    distances = [in_step if m.is_stored or k in reloaded else in_walk for k, m in enumerate(moved)]
    again = zip(moved, distances, strict=True)
    sizes = zip(walk.visits, tiling.tile, layout.extents, strict=True)
    block = tuple(min(tiles * size, extent) for tiles, size, extent in sizes)
    return Moves(tuple(m._replace(distance=n * (m.requested > m.by_programs)) for m, n in again), steps, block)


def bytes_between(moved: Iterable[TensorMoves]) -> int:
    """Return the bytes that all programs touch between two walks: of what the last one stores half, on average."""
    return sum(m.by_programs // (2 if m.is_stored else 1) for m in moved)


def _alike(sizes: Sequence[int], strides: Strides) -> int:
    """Return how many indices of a group, one after the other, belong to the same element."""
    inner = next((k for k in range(len(strides), 0, -1) if strides[k - 1]), 0)
    return prod(sizes[inner:])


def _in_bytes(moved: TensorMoves, walks: int, itemsize: int, is_scratch: bool) -> TensorMoves:
    """Return in bytes, and of all walks, what is counted in elements of one.

    A partial is its program's own: no other touches the same.
    """
    unique, by_programs, requested, by_lanes, apart, *_ = moved
    if moved.is_stored and is_scratch:
        unique, apart = by_programs, 0
    sizes = [itemsize * n for n in (unique, by_programs, requested * walks, by_lanes * walks)]
    return TensorMoves(*sizes, apart, 0, itemsize, moved.is_stored, is_scratch)


def _walk(layout: Layout, tiling: Tiling) -> _Walk:
    """Return how the programs divide the groups among them: see the legend of ``body.py``."""
    counts = tiling.tile_counts
    if len(layout.extents) == 2:
        programs, id_steps = counts, (counts[1], 1)
    else:
        programs, id_steps = (counts[0], tiling.splits, counts[1]), (1, counts[0] * counts[1], counts[0])
    tiles = tuple(-(-n // size) for n, size in zip(layout.extents, tiling.tile, strict=True))
    visits = tuple(-(-n // times) for n, times in zip(tiles, programs, strict=True))
    return _Walk(programs, id_steps, tiles, visits)


def _moves(
    layout: Layout, tiling: Tiling, walk: _Walk, groups: Sequence[Strides], k: int, is_reloaded: bool
) -> TensorMoves:
    """Return what is moved of tensor ``k``, which has these strides in each group, in elements."""
    if not groups:
        return TensorMoves(0, 0, 0, 0, 0, 0, 0, False, False)
    unique = touched = lanes = 1
    apart, is_stored = 0, k >= len(layout.operand_strides)
    spans_tile = not is_stored and any(groups[tiling.vector_group])  # each thread loads the elements that it works on
    segment = layout.segments[k - len(layout.operand_strides)] if is_stored else 0
    for g, strides in enumerate(groups):
        if segment and g == TILED:
            count = -(-layout.extents[g] // segment)
            unique, touched, lanes = unique * count, touched * count, lanes * walk.visits[g] * tiling.tile[g] // segment
            continue
        unique *= prod(n for n, stride in zip(layout.sizes[g], strides, strict=True) if stride)
        varies = any(strides)
        touched *= max(layout.extents[g] // _alike(layout.sizes[g], strides), walk.programs[g])
        lanes *= (tiling.tile[g] if varies or spans_tile else 1) * (walk.visits[g] if varies else 1)
        if not varies and walk.programs[g] > 1:
            apart = max(apart, walk.id_steps[g])
    if touched > unique and not apart:  # it varies along some axes of a group and not along others
        apart = max(1, prod(walk.programs) * unique // touched)
    requested = touched
    if is_reloaded:
        requested = requested // walk.programs[LOOPED] * walk.tiles[LOOPED]
        lanes *= walk.visits[LOOPED]
    return TensorMoves(unique, touched, requested, lanes, apart, 0, 0, is_stored, False)
