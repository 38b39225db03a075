"""In which order one kernel computes its values, how many it holds at once, and where it had better end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from math import inf
from typing import NamedTuple

CHEAP_OPS = 8  # ops that are rather computed again than their value be written and read
MEMORY_COST = 16  # ops that a value costs that passes through memory

InputsOf = Callable[[int], Sequence[int]]  # the values that a value is computed from; none if it is loaded


class Live(NamedTuple):
    """The values that a kernel holds while it computes one value."""

    values: int  # how many
    needed_later: frozenset[int]  # the computed values that are read after it


class SpillPoint(NamedTuple):
    """A point where a kernel ends, so that another can go on."""

    spilled: list[int]  # the values that it leaves in memory
    last: int  # the position of its last value


def kernel_order(targets: Sequence[int], inputs_of: InputsOf, is_computed: Callable[[int], bool]) -> list[int]:
    """Return ``targets`` and all that they are computed from, each value right before it is read.

    A value that is the last to read one that the program computes can take its register, and comes as soon as it can:
    so a sum of many terms holds one sum so far, not the terms.
    """
    order: dict[int, None] = {}
    readers, unread = _readers(targets, inputs_of)
    for target in targets:
        stack = [target]
        while stack:
            value = stack[-1]
            missing = [j for j in inputs_of(value) if j not in order]
            if value in order or not missing:
                stack.pop()
                _append(value, order, readers, unread, inputs_of, is_computed)
            else:
                stack.append(missing[0])
    return list(order)


def _readers(targets: Iterable[int], inputs_of: InputsOf) -> tuple[dict[int, list[int]], Counter[int]]:
    """Return the values that are computed from each value, and how many these are: a target counts one more."""
    readers: dict[int, list[int]] = {}
    unread, pending = Counter(targets), list(targets)
    seen = set(pending)
    while pending:
        value = pending.pop()
        for j in set(inputs_of(value)):
            readers.setdefault(j, []).append(value)
            unread[j] += 1
            if j not in seen:
                seen.add(j)
                pending.append(j)
    return readers, unread


def _append(
    value: int, order: dict[int, None], readers, unread: Counter[int], inputs_of: InputsOf, is_computed
) -> None:
    """Append a value to ``order``, and all that can then take the register of others."""
    pending = [value]
    while pending:
        i = pending.pop()
        if i in order:
            continue
        order.update(dict.fromkeys(j for j in inputs_of(i) if j not in order))  # what is loaded
        order[i] = None
        inputs = set(inputs_of(i))
        unread.subtract(inputs)
        available = [j for j in (i, *inputs) if is_computed(j)]
        for reader in sorted({r for j in available for r in readers.get(j, ()) if r not in order}):
            ready = all(j in order or not inputs_of(j) for j in inputs_of(reader))
            if ready and any(unread[j] == 1 and is_computed(j) for j in inputs_of(reader)):
                pending.append(reader)


def live_values(
    order: Sequence[int], targets: Collection[int], inputs_of: InputsOf, counts: Callable[[int], bool]
) -> Iterator[Live]:
    """Yield what a kernel holds at each value of ``order``: of the values that ``counts`` is true of.

    A target is held from when it is computed, what is loaded from its first use on. As that can be loaded again, it is
    not among what is needed later.
    """
    last_read_at: dict[int, list[int]] = {}  # by position, the values that are read there for the last time
    for j, k in {j: k for k, i in enumerate(order) for j in (i, *inputs_of(i))}.items():
        last_read_at.setdefault(k, []).append(j)
    live: set[int] = set()
    needed_later: set[int] = set()
    for k, i in enumerate(order):
        if inputs_of(i):
            live.update(j for j in (i, *inputs_of(i)) if counts(j))
            needed_later.add(i)
        most = len(live)
        live.difference_update(j for j in last_read_at.get(k, ()) if j not in targets)
        needed_later.difference_update(last_read_at.get(k, ()))
        yield Live(most, frozenset(needed_later))


def best_spill_point(
    order: Sequence[int],
    needed_later: Sequence[Collection[int]],
    targets: Collection[int],
    inputs_of: InputsOf,
    most: float,
) -> SpillPoint | None:
    """Return where in ``order`` a kernel had better end, and what it then leaves in memory; None if it can nowhere.

    ``needed_later`` says what is needed after each value. What few ops compute, beyond those for the others, is
    computed again instead. The end is where that and the memory cost least for each op that is done, and no more than
    ``most`` values are needed: the kernel that computes them again holds others too.
    """
    ops_below = _ops_below(order, inputs_of)
    position = {i: k for k, i in enumerate(order)}
    best, least = None, inf
    finished = ops = 0
    for k, i in enumerate(order):
        finished += i in targets
        ops += bool(inputs_of(i))
        if len(needed_later[k]) > most:
            continue
        spilled, recomputed = _spilled(sorted(needed_later[k], key=position.__getitem__), ops_below, finished)
        cost = (MEMORY_COST * len(spilled) + recomputed) / max(ops, 1)
        if cost <= least and (spilled or finished):
            best, least = SpillPoint(spilled, k), cost
    return best


def _ops_below(order: Sequence[int], inputs_of: InputsOf) -> dict[int, int]:
    """Return for each value the ops that compute it: bit k stands for the op at position k."""
    below: dict[int, int] = {}
    for k, i in enumerate(order):
        below[i] = 1 << k if inputs_of(i) else 0
        for j in inputs_of(i):
            below[i] |= below[j]
    return below


def _spilled(needed_later: Iterable[int], ops_below: dict[int, int], finished: int) -> tuple[list[int], int]:
    """Return the values that take many ops to compute again, and how many ops the others take.

    If there are none, and no target is ``finished``, it returns the value that takes most ops: each kernel has to bring
    the rest nearer.
    """
    recomputed, spilled, deepest = 0, [], None
    for i in needed_later:
        if deepest is None or ops_below[i].bit_count() >= ops_below[deepest].bit_count():
            deepest = i
        if (ops_below[i] & ~recomputed).bit_count() > CHEAP_OPS:
            spilled.append(i)
        else:
            recomputed |= ops_below[i]
    if not spilled and not finished and deepest is not None:
        spilled = [deepest]
    return spilled, recomputed.bit_count()
