"""When a kernel computes each value of a stage whose ops reduce over rows: numbers alone, no tensor and no Triton.

A row that registers hold is computed in one go, each value once. A longer one is *walked* in chunks, once for each
reduction that another one, or an output, waits for, as softmax is::

    walk 0    amax(x)                          of the row
    walk 1    sum(exp(x - amax))
    walk 2    div(exp(x - amax), sum)          is stored

What varies along the row is computed again in every walk that needs it: memory has it near, and registers do not. What
is one value for the row is computed once, between two walks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .layout import LOOPED, TILED, Layout, accumulator_count, loop_invariants
from .stage import Stage


class Walks(NamedTuple):
    """The order of computation of a row that is walked. Values are numbered as those of the stage."""

    count: int  # how many walks there are
    varies: tuple[bool, ...]  # of each value: whether it varies along the row
    walks: tuple[int, ...]  # of each value that varies: the set of walks that compute it, as bits
    after: tuple[int, ...]  # of each other value: how many walks come before it; for a reduction the last is its own
    stored: tuple[int, ...]  # of each output: the walk that stores or accumulates it; -1 if it is one value for the row


def arrange_walks(stage: Stage, layout: Layout) -> Walks:
    """Return when each value of a stage is computed in as few walks as there can be."""
    inputs = [()] * len(stage.operands) + [op.inputs for op in stage.ops]
    reduces = [False] * len(stage.operands) + [op.reduces for op in stage.ops]
    varies = varying(stage, layout)
    after = [0] * len(inputs)
    for i, read in enumerate(inputs):
        after[i] = max((after[j] for j in read), default=0) + reduces[i]
    stored = tuple(
        -1 if (constant & ~reduced) >> TILED & 1 and not x.segment else after[x.value]
        for x, constant, reduced in zip(stage.outputs, layout.constant_along, layout.reduced_over, strict=True)
    )
    # A sum over many rows is gathered in the last walk, which stores other outputs: that ends what a chunk has in
    # registers, where gathered beside reductions it would all be there until these are done.
    late = tuple(max(stored) if j in accumulates(layout) else walk for j, walk in enumerate(stored))
    ways = [(each, _walks_of_values(stage, each, varies, after)) for each in (late, stored)]
    arity = len(stage.operands)
    stored, needed = min(ways, key=lambda way: sum(bits.bit_count() for bits in way[1][:arity]))
    last = [after[i] - 1 for i in range(len(inputs)) if reduces[i]]
    return Walks(
        count=max(0, *last, *stored) + 1,
        varies=tuple(varies),
        walks=tuple(bits if along else 0 for bits, along in zip(needed, varies, strict=True)),
        after=tuple(after),
        stored=stored,
    )


def _walks_of_values(stage: Stage, stored: Sequence[int], varies: Sequence[bool], after: Sequence[int]) -> list[int]:
    """Return of each value the set of walks that need it, as bits, where outputs are stored in these walks."""
    inputs = [()] * len(stage.operands) + [op.inputs for op in stage.ops]
    reduces = [False] * len(stage.operands) + [op.reduces for op in stage.ops]
    needed = [0] * len(inputs)
    for x, walk in zip(stage.outputs, stored, strict=True):
        needed[x.value] |= 1 << walk if walk >= 0 else 0
    for i in reversed(range(len(inputs))):
        for j in inputs[i]:
            needed[j] |= 1 << after[i] - 1 if reduces[i] else needed[i] if varies[i] else 0
    return needed


def varying(stage: Stage, layout: Layout) -> list[bool]:
    """Return of each value whether it varies along the row; a reduction over the row does not."""
    varies = [groups > 0 and bool(groups >> TILED & 1) for groups in layout.operand_groups]
    for op in stage.ops:
        varies.append(not op.reduces and any(varies[i] for i in op.inputs))
    return varies


def held_values(stage: Stage, layout: Layout, reloads: bool) -> int:
    """Return how many values a program holds at once for each element of a row that it computes in one go.

    Where it goes from row to row it holds from the start what it loads. It also holds what it accumulates, and the
    operands that all rows share, unless it ``reloads`` these for every row.
    """
    varies = varying(stage, layout)
    inputs: list[Sequence[int]] = [()] * len(stage.operands) + [op.inputs for op in stage.ops]
    has_loop = any(groups >> LOOPED & 1 for groups in layout.reduced_over)
    shared = {k for k in loop_invariants(layout) if varies[k] and has_loop}
    last_read = {j: i for i, read in enumerate(inputs) for j in (i, *read)}
    loaded = {k for k in range(len(stage.operands)) if varies[k]} - (shared if reloads else set())
    live = loaded if has_loop else set()
    most = len(live)
    for i in range(len(stage.operands), len(inputs)):
        live |= {j for j in (i, *inputs[i]) if varies[j]}
        most = max(most, len(live))
        live = {j for j in live if last_read[j] > i or (j in shared and not reloads)}
    return most + accumulator_count(layout)


def walked_values(stage: Stage, walks: Walks) -> int:
    """Return how many values a program holds at once for each element of a chunk, over all walks at most."""
    inputs: list[Sequence[int]] = [()] * len(stage.operands) + [op.inputs for op in stage.ops]
    most = 1
    for walk in range(walks.count):
        computed = [i for i, bits in enumerate(walks.walks) if bits >> walk & 1]
        last_read = {j: i for i in computed for j in (i, *inputs[i])}
        live = {i for i in computed if i < len(stage.operands)}
        totals = sum(op.reduces and walks.after[i] == walk + 1 for i, op in enumerate(stage.ops, len(stage.operands)))
        most = max(most, len(live) + totals)
        for i in computed:
            live |= {j for j in (i, *inputs[i]) if walks.varies[j]}
            most = max(most, len(live) + totals)
            live = {j for j in live if last_read.get(j, -1) > i}
    return most


def row_values(stage: Stage, walks: Walks) -> int:
    """Return how many values there are, one for the row each, that something along it is computed from."""
    inputs: list[Sequence[int]] = [()] * len(stage.operands) + [op.inputs for op in stage.ops]
    read = {j for i, along in enumerate(walks.varies) if along for j in inputs[i]}
    return sum(not walks.varies[j] for j in read)


def walk_counts(walks: Walks | None, layout: Layout, steps: int, holds_sums: bool) -> list[int]:
    """Return of each operand and output how often a program goes over a row of it; nothing where rows are not walked.

    A sum that memory holds is read and written in each of ``steps``.
    """
    if walks is None:
        return []
    in_memory = set() if holds_sums else set(accumulates(layout))
    loads = [max(1, bits.bit_count()) for bits in walks.walks[: len(layout.operand_strides)]]
    return loads + [2 * steps if j in in_memory else 1 for j in range(len(layout.output_strides))]


def accumulates(layout: Layout) -> list[int]:
    """Return the outputs, by position, that gather a value for each element of a row over many rows."""
    return [
        j
        for j, (reduced, constant) in enumerate(zip(layout.reduced_over, layout.constant_along, strict=True))
        if reduced >> LOOPED & 1 and not (reduced | constant) >> TILED & 1
    ]
