"""Which pointer parameters the value of a register is computed from, found without running the code."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .module import Function, Instruction, Variable

VARIABLE = -1  # the origin of an address in a variable of the module, a table of constants for example
_NAME = re.compile(r"%?[\w$.]+")


def origins_of(function: Function, variables: Iterable[Variable] = ()) -> dict[str, frozenset[int]]:
    """Return for registers the positions of the pointer parameters that they are computed from.

    The order of instructions does not count; a load from memory gives a value of no parameter. What is computed from
    the address of one of the module's ``variables`` has the origin VARIABLE.
    """
    found = {p.name: frozenset({i}) for i, p in enumerate(function.parameters) if p.is_pointer}
    found |= {variable.name: frozenset({VARIABLE}) for variable in variables}
    definitions = [definition for x in function.instructions if (definition := _definition(x))]
    grows = True
    while grows:  # again while a loop carries an origin back
        grows = False
        for written, read in definitions:
            union = frozenset(i for name in read for i in found.get(name, ()))
            for register in written if union else ():
                if not union <= found.get(register, frozenset()):
                    found[register] = found.get(register, frozenset()) | union
                    grows = True
    return found


def _definition(instruction: Instruction) -> tuple[list[str], list[str]] | None:
    """Return the registers that an instruction writes, and the names that their values are computed from."""
    if not instruction.operands or instruction.opcode.startswith(("st.", "setp", "bra", "call", "red.", "ret", "bar")):
        return None
    written, *read = instruction.operands
    if instruction.opcode.startswith("ld.param"):
        return _NAME.findall(written), _NAME.findall(read[0])
    if any("[" in operand for operand in read):
        return None
    return _NAME.findall(written), [name for operand in read for name in _NAME.findall(operand)]
