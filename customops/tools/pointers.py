"""Find which pointer of a kernel's parameters the address of a load or store in SASS is computed from.

A register holds what was last written to it: the blocks are followed in order, again and again until nothing changes.
Of an address in two registers the lower one counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .machine_code import Leaf

_REGISTER = re.compile(r"\bU?R\d+")
_RESULT = re.compile(r"(U?R)(\d+)")
_PREDICATE = re.compile(r"!?U?P[\dT]")
_CONSTANT = re.compile(r"c\[0x0\]\[(0x[0-9a-f]+)\]")
_CONSTANT_LOADS = ("LDC", "ULDC", "LDCU")
_NO_RESULT = ("ST", "BRA", "EXIT", "RET", "BAR", "RED", "MEMBAR")
_LOADS = ("LD", "ATOM", "SHFL", "S2", "CS2")

Sources = dict[str, frozenset[Leaf]]  # of each register: the pointers that its value is computed from


def pointers_of(
    blocks: Sequence[Sequence[Any]], successors: Sequence[Sequence[int]], leaves: Mapping[int, Leaf]
) -> list[dict[int, Leaf]]:
    """Return for each block the pointer behind each access, by the position of the instruction, where it is one alone.

    ``leaves`` are the pointer parameters by their offset in the bank of constants.
    """
    before: list[Sources] = [{} for _ in blocks]
    waiting = list(range(len(blocks)))
    while waiting:
        block = waiting.pop(0)
        after = dict(before[block])
        for instruction in blocks[block]:
            _follow(instruction, after, leaves)
        for to in successors[block]:
            union = {name: before[to].get(name, frozenset()) | found for name, found in after.items()}
            if any(found != before[to].get(name, frozenset()) for name, found in union.items()):
                before[to] |= union
                waiting.append(to)
    return [_pointers(block, dict(state), leaves) for block, state in zip(blocks, before, strict=True)]


def _pointers(block: Sequence[Any], state: Sources, leaves: Mapping[int, Leaf]) -> dict[int, Leaf]:
    found = {}
    for i, instruction in enumerate(block):
        address = next((operand for operand in reversed(instruction.operands) if operand.endswith("]")), "")
        registers = _REGISTER.findall(address.rpartition("[")[2])
        sources = frozenset[Leaf]().union(*(state.get(name, frozenset()) for name in registers))
        if len(sources) == 1 and "c[" not in address:
            (found[i],) = sources
        _follow(instruction, state, leaves)
    return found


def _follow(instruction: Any, state: Sources, leaves: Mapping[int, Leaf]) -> None:
    """Note in ``state`` what an instruction writes."""
    name = instruction.opcode.split(".")[0]
    results = [i for i, operand in enumerate(instruction.operands) if not _PREDICATE.match(operand)]
    result = _RESULT.match(instruction.operands[results[0]]) if results else None
    if result is None or name.startswith(_NO_RESULT) or "SETP" in name:
        return
    text = " ".join(instruction.operands[results[0] + 1 :])
    kind, register = result[1], int(result[2])
    constants = {int(offset, 16) for offset in _CONSTANT.findall(text)}
    if name in _CONSTANT_LOADS:
        for word in range(_words(instruction.opcode)):
            found = frozenset(leaves[n + 4 * word] for n in constants if n + 4 * word in leaves)
            state[f"{kind}{register + word}"] = found
        return
    found = frozenset[Leaf]()
    if not name.startswith(_LOADS):
        found = found.union(*(state.get(name, frozenset()) for name in _REGISTER.findall(text)))
        found |= {leaves[n] for n in constants if n in leaves}
    kept = state.get(f"{kind}{register}", frozenset()) if instruction.guard else frozenset()
    state[f"{kind}{register}"] = found | kept


def _words(opcode: str) -> int:
    """Return how many registers an instruction loads from the bank of constants."""
    return next((int(part) // 32 for part in opcode.split(".") if part in ("64", "128", "256")), 1)
