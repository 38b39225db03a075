"""Return what a PTX instruction computes on registers."""

from __future__ import annotations

from functools import cache

from . import approximate, bits, comparison, conversion, floating, integer
from .registry import Operation, build

FAMILIES = (approximate, bits, comparison, conversion, floating, integer)  # each fills the table when it is imported


@cache
def operation(opcode: str) -> Operation:
    """Return the function of an opcode such as ``fma.rn.ftz.f32`` with the types of its sources and results.

    Registers are NumPy arrays with one element per lane, see `formats.DTYPES`; halves are packed in 32-bit words.

    Raises:
        KeyError: the opcode is not known.
    """
    return build(opcode)
