"""Find which pointer of a kernel's parameters the address of a load or store in SASS is computed from.

A register holds what was last written to it: the blocks are followed in order, again and again until nothing changes.
Of an address in two registers the lower one counts. What an instruction with a guard writes is what those with the same
guard read; to others it may be that or what was there before.
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

Sources = dict[str, frozenset[Leaf]]  # of each register, as R2 or R2@P0: the pointers its value is computed from
_NONE = frozenset[Leaf]()


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
            grown = {
                register: before[to].get(register, _NONE) | found
                for register, found in after.items()
                if "@" not in register and not found <= before[to].get(register, _NONE)
            }
            if grown:
                before[to] |= grown
                waiting.append(to)
    return [_pointers(block, dict(state), leaves) for block, state in zip(blocks, before, strict=True)]


def _pointers(block: Sequence[Any], state: Sources, leaves: Mapping[int, Leaf]) -> dict[int, Leaf]:
    """Return the pointers of one block, before which registers are as ``state`` says."""
    found = {}
    for i, instruction in enumerate(block):
        address = next((operand for operand in reversed(instruction.operands) if operand.endswith("]")), "")
        sources = _sources(address.rpartition("[")[2], instruction.guard, state)
        if len(sources) == 1:
            (found[i],) = sources
        _follow(instruction, state, leaves)
    return found


def _sources(text: str, guard: str | None, state: Sources) -> frozenset[Leaf]:
    """Return the pointers that the registers named in ``text`` are computed from, read under a guard."""
    found = (state.get(f"{name}@{guard}", state.get(name, _NONE)) for name in _REGISTER.findall(text))
    return _NONE.union(*found)


def _follow(instruction: Any, state: Sources, leaves: Mapping[int, Leaf]) -> None:
    """Note in ``state`` what an instruction writes."""
    _, opcode, operands = instruction
    first = next((i for i, operand in enumerate(operands) if not _PREDICATE.match(operand)), 0)
    for predicate in operands[:first]:
        for register in [name for name in state if name.partition("@")[2].removeprefix("!") == predicate]:
            del state[register]
    name, result = opcode.split(".")[0], _RESULT.match(operands[first])
    if result is None or name.startswith(_NO_RESULT) or "SETP" in name:
        return
    text = " ".join(operands[first + 1 :])
    constants = [int(offset, 16) for offset in _CONSTANT.findall(text)]
    read = _sources(text, instruction.guard, state) | {leaves[n] for n in constants if n in leaves}
    for word in range(_words(opcode)):
        if name in _CONSTANT_LOADS:
            found = frozenset(leaves[n + 4 * word] for n in constants if n + 4 * word in leaves)
        else:
            found = _NONE if name.startswith(_LOADS) else read
        _write(f"{result[1]}{int(result[2]) + word}", found, instruction.guard, state)


def _write(register: str, found: frozenset[Leaf], guard: str | None, state: Sources) -> None:
    """Note that a register is written, under a guard or always."""
    for name in [name for name in state if name.startswith(f"{register}@")]:
        del state[name]
    if guard:
        state[f"{register}@{guard}"] = found
        found = found | state.get(register, _NONE)
    state[register] = found


def _words(opcode: str) -> int:
    """Return how many registers an instruction writes: in each that it does not name, what was there is gone too."""
    name, *parts = opcode.split(".")
    if name == "CS2R":  # of 64 bits unless it says 32
        return 1 if "32" in parts else 2
    if name == "IMAD" and "WIDE" in parts:
        return 2
    return next((int(part) // 32 for part in parts if part in ("64", "128", "256")), 1)
