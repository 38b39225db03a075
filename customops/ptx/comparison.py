"""Compare, and select by a comparison."""

from __future__ import annotations

import numpy as np

from .floating import flush_values, prepare
from .formats import (
    BITS,
    DECODE,
    DTYPES,
    FLOATS,
    INTEGERS,
    PACKED,
    Array,
    Function,
    flush,
    parts,
)
from .registry import Opcode, Operation, instruction

COMPARE: dict[str, Function] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
INTEGER_COMPARE = COMPARE | {"lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal}
FLOAT_COMPARE: dict[str, Function] = COMPARE | {
    "ne": lambda a, b: (a < b) | (a > b),
    "equ": lambda a, b: ~((a < b) | (a > b)),
    "neu": np.not_equal,
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
    "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "nan": lambda a, b: np.isnan(a) | np.isnan(b),
}
COMBINE: dict[str, Function] = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}
SCALARS = (*BITS, *INTEGERS, *FLOATS)
MODIFIERS = " ".join((*INTEGER_COMPARE, *FLOAT_COMPARE, *COMBINE, "ftz"))


def comparison(opcode: Opcode, kind: str) -> Function:
    """Return the comparison of two registers of a scalar type.

    Raises:
        KeyError: the type has no such comparison.
    """
    names = FLOAT_COMPARE if kind in FLOATS else INTEGER_COMPARE
    function = names[opcode.modifiers[0]]
    flushed = flush_values(kind) if "ftz" in opcode.modifiers else None
    return prepare(function, flushed, DECODE.get(kind) if kind == "bf16" else None)


@instruction("setp", (*SCALARS, "f16x2", "bf16x2"), MODIFIERS)
def setp(opcode: Opcode) -> Operation:
    """Build a comparison that sets two predicates: itself and its negation, or for packed halves that of each half.

    With .and, .or or .xor both are combined with a third source.
    """
    kind = opcode.types[0]
    compare = halves_compared(opcode) if kind in PACKED else negated_too(comparison(opcode, kind))
    combine = COMBINE.get(opcode.choose(COMBINE))
    if combine is None:
        return Operation(compare, (kind, kind), ("pred", "pred"))

    def combined(a: Array, b: Array, c: Array) -> tuple[Array, Array]:
        p, q = compare(a, b)
        return combine(p, c), combine(q, c)

    return Operation(combined, (kind, kind, "pred"), ("pred", "pred"))


def negated_too(compare: Function) -> Function:
    """Return the function that gives a comparison and its negation."""

    def both(a: Array, b: Array) -> tuple[Array, Array]:
        result = compare(a, b)
        return result, ~result

    return both


def halves_compared(opcode: Opcode) -> Function:
    """Return the function that compares the low and the high halves of two words."""
    kind = PACKED[opcode.types[0]]
    compare, dtype = comparison(opcode, kind), DTYPES[kind]

    def both(a: Array, b: Array) -> tuple[Array, Array]:
        result = compare(parts(a, dtype), parts(b, dtype))
        return result[:, 0], result[:, 1]

    return both


TRUE: dict[str, Array] = {
    "u32": np.uint32(0xFFFFFFFF),
    "s32": np.int32(-1),
    "f32": np.float32(1),
    "f16": np.float16(1),
    "bf16": np.uint16(0x3F80),
}


@instruction("set", TRUE, MODIFIERS, types_count=2)
def set_(opcode: Opcode) -> Operation:
    """Build a comparison that returns 1.0, or all bits set for an integer, where it holds."""
    result, kind = opcode.types
    compare, yes = comparison(opcode, kind), TRUE[result]
    no = yes.dtype.type(0)
    combine = COMBINE.get(opcode.choose(COMBINE))

    def function(a: Array, b: Array, *c: Array) -> Array:
        holds = compare(a, b)
        return np.where(combine(holds, *c) if combine else holds, yes, no)

    return Operation(function, (kind, kind, *(("pred",) if combine else ())), (result,))


@instruction("selp", SCALARS)
def selp(opcode: Opcode) -> Operation:
    """Build the choice of one of two sources by a predicate."""
    return Operation(lambda a, b, c: np.where(c, a, b), (*opcode.types * 2, "pred"), opcode.types)


@instruction("slct", SCALARS, "ftz", types_count=2)
def slct(opcode: Opcode) -> Operation:
    """Build the choice of one of two sources by the sign of a third; -0 and, with .ftz, -subnormals count as zero."""
    kind, sign = opcode.types
    flushed = flush("f32") if "ftz" in opcode.modifiers else None

    def function(a: Array, b: Array, c: Array) -> Array:
        return np.where((flushed(c) if flushed else c) >= 0, a, b)

    return Operation(function, (kind, kind, sign), (kind,))
