"""The order in which basic blocks are run, where lanes take different ways through the code.

Lanes at the block that is first in this order go first. A block comes after all that lead to it without going round a
loop, and what follows a loop after all of the loop: so all lanes that can meet at a block do. It is the weak
topological order of F. Bourdoncle, "Efficient chaotic iteration strategies with widenings" (1993).
"""

from __future__ import annotations

from collections.abc import Sequence

from .module import Function

_ENDS = ("ret", "exit", "trap")
_BARRIERS = ("bar.sync", "barrier", "bar.cta")  # of the program: lanes go on one by one


def starts_of(function: Function) -> list[int]:
    """Return the first instruction of each basic block, in the order of the text."""
    instructions = function.instructions
    after = {
        i + 1
        for i, x in enumerate(instructions)
        if x.opcode.split(".")[0] in ("bra", *_ENDS) or x.opcode.startswith(_BARRIERS)
    }
    return sorted({0, *after, *function.labels.values()} - {len(instructions)})


def ranks_of(function: Function) -> dict[int, int]:
    """Return the place of each basic block in the order, by its first instruction."""
    starts = starts_of(function)
    number = {start: i for i, start in enumerate(starts)}
    successors: list[set[int]] = []
    for i, end in enumerate([*starts[1:], len(function.instructions)]):
        last = function.instructions[end - 1]
        name = last.opcode.split(".")[0]
        follows = set() if name in ("bra", *_ENDS) and last.guard is None else {i + 1}
        if name == "bra":
            follows.add(number.get(function.labels[last.operands[0]], len(starts)))
        successors.append(follows - {len(starts)})
    order = _order(range(len(starts)), successors)
    return {starts[block]: rank for rank, block in enumerate(order)}


def loops_of(blocks: Sequence[int], successors: Sequence[set[int]]) -> list[list[int]]:
    """Return ``blocks`` in parts, each after those that lead to it: one block, or a loop from where it is entered."""
    reached = _reached(blocks, successors)
    loops: dict[int, list[int]] = {}  # blocks that lead to one another, by what they lead to
    for block in blocks:
        loops.setdefault(reached[block], []).append(block)
    parts = []
    for members in sorted(loops.values(), key=lambda members: -reached[members[0]].bit_count()):
        entries = {to for block in blocks if block not in members for to in successors[block]}
        head = next((block for block in members if block in entries), members[0])
        parts.append([head, *[block for block in members if block != head]])
    return parts


def _order(blocks: Sequence[int], successors: Sequence[set[int]]) -> list[int]:
    """Return ``blocks``, each after those that lead to it; of a loop the first block, then the others so ordered."""
    order: list[int] = []
    for head, *others in loops_of(blocks, successors):
        order += [head, *_order(others, successors)]
    return order


def _reached(blocks: Sequence[int], successors: Sequence[set[int]]) -> dict[int, int]:
    """Return, as bits of a number, the blocks that each leads to through ``blocks`` alone, itself among them."""
    reached = {block: 1 << block for block in blocks}
    changes = True
    while changes:
        changes = False
        for block in reversed(blocks):
            union = reached[block]
            for to in successors[block]:
                union |= reached.get(to, 0)
            changes |= union != reached[block]
            reached[block] = union
    return reached
