"""In which order one kernel computes its values, and how many it holds at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from math import inf
from typing import NamedTuple

CHEAP_OPS = 8  # steps that are rather computed again than their value be written and read
MEMORY_COST = 16  # steps that a value costs that passes through memory

Reads = Callable[[int], Sequence[int]]  # what a value is computed from; nothing where it is loaded


class Held(NamedTuple):
    """What a kernel holds while it computes a value: how many, and which computed ones are read after it."""

    alive: int
    later: frozenset[int]


def in_order(targets: Sequence[int], reads: Reads, own: Callable[[int], bool]) -> list[int]:
    """Return the values that ``targets`` are computed from, themselves included, each right before it is read.

    A value that is the last to read one of the program's ``own`` values can take its register, and comes as soon as it
    can: so a sum of many terms holds one sum so far, not the terms.
    """
    order: dict[int, None] = {}
    readers, left = _readers(targets, reads)
    for target in targets:
        stack = [target]
        while stack:
            value = stack[-1]
            missing = [j for j in reads(value) if j not in order]
            if value in order or not missing:
                stack.pop()
                _compute(value, order, readers, left, reads, own)
            else:
                stack.append(missing[0])
    return list(order)


def _readers(targets: Iterable[int], reads: Reads) -> tuple[dict[int, list[int]], Counter[int]]:
    """The values that are computed from each; and how many are still to be, one more for a target."""
    readers: dict[int, list[int]] = {}
    left, todo = Counter(targets), list(targets)
    seen = set(todo)
    while todo:
        value = todo.pop()
        for j in set(reads(value)):
            readers.setdefault(j, []).append(value)
            left[j] += 1
            if j not in seen:
                seen.add(j)
                todo.append(j)
    return readers, left


def _compute(value: int, order: dict[int, None], readers, left: Counter[int], reads: Reads, own) -> None:
    """Append a value, and all that can then take the place of others."""
    todo = [value]
    while todo:
        i = todo.pop()
        if i in order:
            continue
        order.update(dict.fromkeys(j for j in reads(i) if j not in order))  # what is loaded
        order[i] = None
        operands = set(reads(i))
        left.subtract(operands)
        for r in sorted({r for j in (i, *operands) if own(j) for r in readers.get(j, ()) if r not in order}):
            ready = all(j in order or not reads(j) for j in reads(r))
            if ready and any(left[j] == 1 and own(j) for j in reads(r)):
                todo.append(r)


def held(order: Sequence[int], targets: Collection[int], reads: Reads, counts: Callable[[int], bool]) -> Iterator[Held]:
    """Yield what a kernel holds at each value of ``order``: of the values that ``counts`` is true of.

    A target is held from when it is computed, what is loaded from its first use on. As that can be loaded again, it is
    not among what is needed later.
    """
    ends: dict[int, list[int]] = {}
    for j, k in {j: k for k, i in enumerate(order) for j in (i, *reads(i))}.items():
        ends.setdefault(k, []).append(j)
    alive: set[int] = set()
    later: set[int] = set()
    for k, i in enumerate(order):
        if reads(i):
            alive.update(j for j in (i, *reads(i)) if counts(j))
            later.add(i)
        most = len(alive)
        alive.difference_update(j for j in ends.get(k, ()) if j not in targets)
        later.difference_update(ends.get(k, ()))
        yield Held(most, frozenset(later))


def best_end(
    order: Sequence[int], later: Sequence[Collection[int]], targets: Collection[int], reads: Reads, most: float
) -> tuple[list[int], int] | None:
    """Where in ``order`` a kernel had better end, and what it leaves in memory of what is needed ``later``.

    None if it can end nowhere. What few steps compute, beyond those for the others, is computed again instead. The end
    is where that and the memory cost least for each step that is done, and no more than ``most`` values are needed: the
    kernel that computes them again holds others too.
    """
    under = _steps_under(order, reads)
    place = {i: k for k, i in enumerate(order)}
    best, least = None, inf
    done = steps = 0
    for k, i in enumerate(order):
        done += i in targets
        steps += bool(reads(i))
        if len(later[k]) > most:
            continue
        left, again = _left_in_memory(sorted(later[k], key=place.__getitem__), under, done)
        cost = (MEMORY_COST * len(left) + again) / max(steps, 1)
        if cost <= least and (left or done):
            best, least = (left, k), cost
    return best


def _steps_under(order: Sequence[int], reads: Reads) -> dict[int, int]:
    """For each value the steps that compute it, as bits."""
    under: dict[int, int] = {}
    for k, i in enumerate(order):
        under[i] = 1 << k if reads(i) else 0
        for j in reads(i):
            under[i] |= under[j]
    return under


def _left_in_memory(later: Iterable[int], under: dict[int, int], progress: int) -> tuple[list[int], int]:
    """Return the values needed ``later`` that take many steps to compute again, and how many steps the others take.

    If there are none, and no target was computed (``progress``), it returns the value that takes most steps: each
    kernel has to bring the rest nearer.
    """
    again, left, deepest = 0, [], None
    for i in later:
        deepest = i if deepest is None or under[i].bit_count() >= under[deepest].bit_count() else deepest
        if (under[i] & ~again).bit_count() > CHEAP_OPS:
            left.append(i)
        else:
            again |= under[i]
    if not left and not progress and deepest is not None:
        left = [deepest]
    return left, again.bit_count()
