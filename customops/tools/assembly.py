"""Read the machine code that a GPU runs: basic blocks, which way each goes on, and what each loads and stores."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from .machine_code import AMD_ACCESS, Access, Leaf, amd_access, parameter_offsets, sass
from .pointers import pointers_of

_SASS = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")
_AMD = re.compile(r"(?:(\.L\w+):)?(?:\t()([a-z]\w+)(?:\s+([^;/\n]*))?)?")
_SASS_ACCESS = re.compile(r"(LDGSTS|LDG|LD|STG|ST|LDL|STL)\b.*")
_ENDS = ("EXIT", "RET", "KILL", "s_endpgm")
_BRANCHES = ("BRA", "s_branch")
_CONDITIONAL = "s_cbranch"


class Instruction(NamedTuple):
    """An instruction of SASS or of AMD's assembly."""

    guard: str | None  # the predicate that it depends on
    opcode: str  # with its modifiers, as LDG.E.128
    operands: tuple[str, ...]


class Block(NamedTuple):
    """A basic block."""

    instructions: int  # how many there are
    accesses: tuple[Access, ...]
    successors: tuple[int, ...]  # the blocks that may follow, by their number in order of the text


def blocks_of(compiled: Any) -> list[Block]:
    """Return the basic blocks of a kernel that Triton compiled, in order of the text: SASS, or AMD's assembly."""
    if compiled.metadata.target.backend == "hip":
        return amd_blocks(compiled.asm["amdgcn"])
    return sass_blocks(sass(compiled), compiled.metadata.name, parameter_offsets(compiled))


def sass_blocks(text: str, name: str, leaves: Mapping[int, Leaf]) -> list[Block]:
    """Return the basic blocks of the function ``name`` in what ``cuobjdump -sass`` prints.

    ``leaves`` are its pointer parameters by their offset in the bank of constants.
    """
    functions = re.split(r"^\s*Function :", text, flags=re.MULTILINE)[1:]
    lines = next(lines for lines in map(str.splitlines, functions) if lines[0].strip() == name)
    instructions, successors = _split(_SASS.match(line) for line in lines)
    pointers = pointers_of(instructions, successors, leaves)
    return [_block(x, to, found) for x, to, found in zip(instructions, successors, pointers, strict=True)]


def amd_blocks(text: str) -> list[Block]:
    """Return the basic blocks in AMD's assembly; which pointers are loaded and stored through is not told."""
    instructions, successors = _split(_AMD.match(line) for line in text.splitlines())
    return [_block(x, to, {}) for x, to in zip(instructions, successors, strict=True)]


def _split(lines: Iterable[re.Match | None]) -> tuple[list[list[Instruction]], list[tuple[int, ...]]]:
    """Return the instructions of each basic block, and the blocks that may follow it.

    A line has a place, as an address or a label, and perhaps an instruction: guard, opcode and operands.
    """
    places: dict[str, int] = {}
    instructions: list[Instruction] = []
    for place, guard, opcode, operands in (line.groups() for line in lines if line):
        if place:
            places[place if place.startswith(".") else hex(int(place, 16))] = len(instructions)
        if opcode:
            parts = tuple(part.strip() for part in (operands or "").split(","))
            instructions.append(Instruction(guard or None, opcode, parts))
    after = {i + 1 for i, x in enumerate(instructions) if _leaves(x)}
    targets = {places[x.operands[-1]] for x in instructions if _leaves(x) and x.operands[-1] in places}
    order = sorted({0, *after, *targets} - {len(instructions)})
    blocks = [instructions[a:b] for a, b in zip(order, [*order[1:], len(instructions)], strict=True)]
    number = {start: i for i, start in enumerate(order)}
    targeted = {place: number[at] for place, at in places.items() if at in number}
    return blocks, [_successors(block[-1], i, targeted, len(blocks)) for i, block in enumerate(blocks)]


def _leaves(x: Instruction) -> bool:
    """Return whether an instruction goes elsewhere or ends the kernel."""
    return x.opcode.split(".")[0] in (*_BRANCHES, *_ENDS) or x.opcode.startswith(_CONDITIONAL)


def _successors(last: Instruction, i: int, targets: Mapping[str, int], count: int) -> tuple[int, ...]:
    """Return the blocks that may follow block ``i``, which ends with ``last``."""
    follows = set()
    if not _leaves(last) or last.guard or len(last.operands) > 1 or last.opcode.startswith(_CONDITIONAL):
        follows.add(i + 1)
    if _leaves(last) and last.operands[-1] in targets:
        follows.add(targets[last.operands[-1]])
    return tuple(sorted(n for n in follows if n < count))


def _block(instructions: Sequence[Instruction], successors: tuple[int, ...], pointers: dict[int, Leaf]) -> Block:
    accesses = (_access(x, pointers.get(i)) for i, x in enumerate(instructions))
    return Block(len(instructions), tuple(access for access in accesses if access), successors)


def _access(x: Instruction, leaf: Leaf | None) -> Access | None:
    """Return what an instruction loads or stores, None where it does neither."""
    if match := _SASS_ACCESS.fullmatch(x.opcode):
        sizes = [int(part.lstrip("US")) for part in x.opcode.split(".") if re.fullmatch(r"[US]?\d+", part)]
        kind = "local" if match[1][-1] == "L" else "load" if match[1].startswith("L") else "store"
        return Access(kind, sizes[-1] if sizes else 32, leaf)
    found = AMD_ACCESS.match(x.opcode)
    return amd_access(found) if found else None
