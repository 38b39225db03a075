"""Find what computes an opcode: the table of instructions, filled by the decorator `instruction`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from .formats import DTYPES, Function


class Operation(NamedTuple):
    """What one instruction computes, lane by lane."""

    function: Function  # takes one array per source; returns an array, or a tuple where there are several results
    sources: tuple[str, ...]  # PTX type of each source operand
    results: tuple[str, ...]  # PTX type of each result


class Opcode(NamedTuple):
    """An opcode, taken apart: ``fma.rn.ftz.f32`` has the name fma, the modifiers rn and ftz and the type f32."""

    name: str
    modifiers: tuple[str, ...]
    types: tuple[str, ...]

    def choose(self, options: Iterable[str], default: str = "") -> str:
        """Return the one of `options` that is among the modifiers."""
        return next((modifier for modifier in self.modifiers if modifier in options), default)


class Row(NamedTuple):
    """One entry of the table."""

    types: frozenset[str]  # of the result, or of all
    types_count: int  # how many types the opcode has
    modifiers: frozenset[str]  # that may be there
    build: Callable[[Opcode], Operation]


TABLE: dict[str, list[Row]] = {}


Builder = Callable[[Opcode], Operation]


def instruction(
    names: str, types: Iterable[str], modifiers: str = "", types_count: int = 1
) -> Callable[[Builder], Builder]:
    """Enter a function that builds the operation of an opcode, for `names` on `types` with any of `modifiers`."""

    def enter(build: Builder) -> Builder:
        row = Row(frozenset(types), types_count, frozenset(modifiers.split()), build)
        for name in names.split():
            TABLE.setdefault(name, []).append(row)
        return build

    return enter


def parse(text: str) -> Opcode:
    """Return the parts of an opcode."""
    name, *parts = text.split(".")
    types = tuple(part for part in parts if part in DTYPES)
    return Opcode(name, tuple(part for part in parts if part not in DTYPES), types)


def build(text: str) -> Operation:
    """Return the operation of an opcode.

    Raises:
        KeyError: no row of the table has this name, type and modifiers.
    """
    opcode = parse(text)
    for row in TABLE.get(opcode.name, ()):
        fits = len(opcode.types) == row.types_count and opcode.types[0] in row.types
        if fits and row.modifiers.issuperset(opcode.modifiers):
            return row.build(opcode)
    raise KeyError(text)
