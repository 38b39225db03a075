"""Find the usual way through a kernel's machine code, and how often each part of it is passed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ..ptx.control import loops_of
from .assembly import Block
from .machine_code import Access, Leaf

_REMAINDER = 0.75  # of the bytes of a loop beside it: one that moves fewer goes on where an unrolled one has stopped


class Way(NamedTuple):
    """A stretch of code, as one thread passes it once."""

    blocks: tuple[Block, ...] = ()  # those on the way, outside of its loops
    loops: tuple[Way, ...] = ()  # those on the way, each as it is passed once

    def __add__(self, other: Way) -> Way:  # type: ignore[override]
        """Return one stretch after the other."""
        return Way(self.blocks + other.blocks, self.loops + other.loops)

    @property
    def accesses(self) -> list[Access]:
        """Return what is loaded and stored outside of loops."""
        return [access for block in self.blocks for access in block.accesses]

    @property
    def rank(self) -> tuple[int, int]:
        """Return how usual the way is: it moves more than another, or as much by fewer instructions.

        So a way that leaves early, or that handles rare numbers, is not taken.
        """
        ranks = [loop.rank for loop in self.loops]
        moved = sum(access.size for access in self.accesses if access.kind != "local") + sum(n for n, _ in ranks)
        return moved, sum(n for _, n in ranks) - sum(block.instructions for block in self.blocks)


def usual_way(blocks: Sequence[Block]) -> Way:
    """Return the usual way through the basic blocks of a kernel, which begins at the first."""
    return _best(blocks, [{*block.successors} for block in blocks], range(len(blocks)), 0)


def _best(blocks: Sequence[Block], successors: Sequence[set[int]], members: Sequence[int], start: int) -> Way:
    """Return the usual way from ``start`` through ``members``, until it leaves them or comes back."""
    parts = loops_of(members, successors)
    part_of = {block: i for i, part in enumerate(parts) for block in part}
    found: dict[int, Way] = {}
    for i in reversed(range(len(parts))):  # the last part first: what follows a part is known
        head, *inside = parts[i]
        own = Way((blocks[head],))
        if inside and head in successors[head]:  # two loops begin here: the inner one is this block alone
            own = Way(loops=(own,))
        if inside or head in successors[head]:
            entered = [to for to in sorted(successors[head]) if to in inside]
            ways = [own + _best(blocks, successors, inside, to) for to in entered] or [own]
            own = Way(loops=(max(ways, key=lambda way: way.rank),))
        ahead = {part_of[to] for block in parts[i] for to in successors[block] if part_of.get(to, -1) > i}
        found[i] = max([own + found[to] for to in sorted(ahead)] or [own], key=lambda way: way.rank)
    return found[part_of[start]]


def walks_of(way: Way, leaf: Leaf | None) -> int:
    """Return how many loops go over a tensor: those that load from it, without those that continue another."""
    return sum(bool(_bytes(loop, leaf)) for loop in _walking(way))


def passes(way: Way, loaded: Mapping[Leaf | None, float], steps: float | None = None) -> list[tuple[Block, float]]:
    """Return the blocks on a way, each with how often a thread passes it in all.

    A loop that loads from a tensor goes over an equal part of what the thread loads of it as other such loops. What
    continues another, unrolled one is passed once, as are loops that load nothing.

    Args:
        way: through all of the kernel.
        loaded: bytes that a thread loads of each tensor in all, as often as it loads them.
        steps: how often a loop with loops in it is passed, None where that is not known.
    """
    parts = dict(loaded)
    for leaf in loaded:
        walks = walks_of(way, leaf)
        parts[leaf] = loaded[leaf] / walks if walks > 1 else max(0.0, loaded[leaf] - _bytes(way, leaf))
    return list(_passes(way, 1.0, parts, steps))


def _passes(
    way: Way, times: float, parts: Mapping[Leaf | None, float], steps: float | None
) -> Iterator[tuple[Block, float]]:
    """Yield the blocks of a way that is passed so often; ``parts`` are the bytes that a walking loop loads in all."""
    yield from ((block, times) for block in way.blocks)
    main = _main(way.loops)
    for loop in way.loops:
        known = steps if loop.loops and steps else _by_bytes(loop, parts)
        if known is None:  # it loads nothing itself: a guess between once and as often as its inner loops
            known = (times * max((_by_bytes(inner, parts) or times for inner in loop.loops), default=times)) ** 0.5
        yield from _passes(loop, max(times, known) if loop in main else times, parts, steps)


def _by_bytes(loop: Way, parts: Mapping[Leaf | None, float]) -> float | None:
    """Return how often a loop is passed to load what it loads, None where it loads nothing itself.

    What it loads most of at a time tells: of a tensor that several lanes share an element of, it may load that once.
    """
    sizes = {leaf: _bytes(loop, leaf) for leaf in parts}
    most = max(sizes.values(), default=0)
    return max((parts[leaf] / size for leaf, size in sizes.items() if size == most), default=None) if most else None


def _walking(way: Way) -> Iterator[Way]:
    """Yield the loops that go over tensors, inner ones too."""
    for loop in way.loops:
        if loop in _main(way.loops):
            yield loop
        yield from _walking(loop)


def _main(loops: Sequence[Way]) -> list[Way]:
    """Return of loops side by side those that do most: of some on the same tensors, those with the widest accesses."""
    groups: dict[frozenset, list[Way]] = {}
    for loop in loops:
        groups.setdefault(frozenset((access.kind, access.leaf) for access in all_accesses(loop)), []).append(loop)
    main = []
    for touched, group in groups.items():
        widest = max((access.size for loop in group for access in all_accesses(loop)), default=0)
        wide = [loop for loop in group if max((access.size for access in all_accesses(loop)), default=0) == widest]
        most = max(sum(access.size for access in all_accesses(loop)) for loop in wide)
        main += [x for x in wide if touched and sum(access.size for access in all_accesses(x)) >= _REMAINDER * most]
    return main


def all_accesses(way: Way) -> list[Access]:
    """Return what is loaded and stored, with each loop passed once."""
    return [*way.accesses, *(access for loop in way.loops for access in all_accesses(loop))]


def _bytes(way: Way, leaf: Leaf | None) -> int:
    """Return the bytes that are loaded of a tensor outside of loops."""
    return sum(access.size for access in way.accesses if (access.kind, access.leaf) == ("load", leaf))
