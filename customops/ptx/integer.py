"""Compute integer arithmetic. Results wrap around to their width, as NumPy's do."""

from __future__ import annotations

import numpy as np

from .formats import DTYPES, INTEGERS, SIGNED, Array, Function, on_parts, width
from .registry import Opcode, Operation, instruction

SIMPLE: dict[str, Function] = {
    "add": np.add,
    "sub": np.subtract,
    "min": np.minimum,
    "max": np.maximum,
    "neg": np.negative,
    "abs": np.abs,
}
PACKABLE = ("u16x2", "s16x2")


def double_width(kind: str) -> str:
    """Return the type of the same kind with twice the bits."""
    return f"{kind[0]}{2 * width(kind)}"


@instruction("add sub min max neg abs", (*INTEGERS, *PACKABLE), "sat relu")
def simple(opcode: Opcode) -> Operation:
    """Build an operation that is one of NumPy's; ``add.sat.s32`` clamps, ``min.relu.s32`` gives no negative number."""
    kind = opcode.types[0]
    function = SIMPLE[opcode.name]
    if "sat" in opcode.modifiers:
        function = _saturated(function, kind)
    if kind in PACKABLE:
        function = on_parts(kind, function)
    if "relu" in opcode.modifiers:
        function = _not_negative(function)
    return Operation(function, (kind,) * (1 if opcode.name in ("neg", "abs") else 2), (kind,))


def _not_negative(function: Function) -> Function:
    return lambda a, b: np.maximum(function(a, b), a.dtype.type(0))


def _saturated(function: Function, kind: str) -> Function:
    if kind != "s32":
        raise KeyError(f"sat.{kind}")

    def saturated(a: Array, b: Array) -> Array:
        exact = function(a.astype(np.int64), b.astype(np.int64))
        return np.clip(exact, -(2**31), 2**31 - 1).astype(np.int32)

    return saturated


def wide_product(kind: str) -> Function:
    """Return the whole product of integers of up to 32 bits."""
    dtype = DTYPES[double_width(kind)]
    return lambda a, b: a.astype(dtype) * b.astype(dtype)


def high_product(kind: str) -> Function:
    """Return the upper half of a product."""
    bits = width(kind)
    if bits == 64:
        return _high_product_64 if kind == "u64" else _high_product_signed
    product, dtype = wide_product(kind), DTYPES[kind]
    shift = DTYPES[double_width(kind)](bits)
    return lambda a, b: (product(a, b) >> shift).astype(dtype)


def _high_product_64(a: Array, b: Array) -> Array:
    """Return the upper 64 bits of a product of uint64, by 32-bit halves."""
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    a_low, a_high, b_low, b_high = a & low, a >> half, b & low, b >> half
    cross = a_high * b_low + (a_low * b_low >> half)
    other = a_low * b_high + (cross & low)
    return a_high * b_high + (cross >> half) + (other >> half)


def _high_product_signed(a: Array, b: Array) -> Array:
    high = _high_product_64(a.view(np.uint64), b.view(np.uint64)).view(np.int64)
    return high - np.where(a < 0, b, np.int64(0)) - np.where(b < 0, a, np.int64(0))


def product(opcode: Opcode) -> tuple[Function, str]:
    """Return the product that .lo, .hi or .wide asks for, and its type."""
    kind = opcode.types[0]
    part = opcode.choose(("lo", "hi", "wide"))
    if part == "wide" and width(kind) < 64:
        return wide_product(kind), double_width(kind)
    if part == "hi":
        return high_product(kind), kind
    if part == "lo":
        return np.multiply, kind
    raise KeyError(f"{opcode.name}.{part}.{kind}")


@instruction("mul", INTEGERS, "lo hi wide")
def mul(opcode: Opcode) -> Operation:
    """Build a product."""
    function, result = product(opcode)
    return Operation(function, opcode.types * 2, (result,))


@instruction("mad", INTEGERS, "lo hi wide sat")
def mad(opcode: Opcode) -> Operation:
    """Build a product and a sum."""
    function, result = product(opcode)
    add = _saturated(np.add, result) if "sat" in opcode.modifiers else np.add
    return Operation(lambda a, b, c: add(function(a, b), c), (*opcode.types * 2, result), (result,))


@instruction("mul24 mad24", ("u32", "s32"), "lo hi")
def mul24(opcode: Opcode) -> Operation:
    """Build the product of 24-bit numbers: its lower 32 bits, or those from bit 16 on."""
    kind, shift = opcode.types[0], 16 if "hi" in opcode.modifiers else 0
    dtype, wide = DTYPES[kind], DTYPES[double_width(kind)]

    def short(a: Array) -> Array:
        return (a << dtype(8)).astype(wide) >> wide(8)

    def function(a: Array, b: Array, *c: Array) -> Array:
        result = (short(a) * short(b) >> wide(shift)).astype(dtype)
        return result + c[0] if c else result

    return Operation(function, (kind,) * (2 if opcode.name == "mul24" else 3), (kind,))


@instruction("div", INTEGERS)
def div(opcode: Opcode) -> Operation:
    """Build a quotient, rounded towards zero. The ISA leaves a division by zero open; here all bits are set."""
    ones = ~DTYPES[opcode.types[0]](0)

    def unsigned(a: Array, b: Array) -> Array:
        return np.where(b == 0, ones, np.floor_divide(a, b))

    def signed(a: Array, b: Array) -> Array:
        return np.where(b == 0, ones, np.floor_divide(a - np.fmod(a, b), b))

    return Operation(signed if opcode.types[0] in SIGNED else unsigned, opcode.types * 2, opcode.types)


@instruction("rem", INTEGERS)
def rem(opcode: Opcode) -> Operation:
    """Build a remainder with the dividend's sign. The ISA leaves a zero divisor open; here it gives the dividend."""
    return Operation(lambda a, b: np.where(b == 0, a, np.fmod(a, b)), opcode.types * 2, opcode.types)


@instruction("sad", INTEGERS)
def sad(opcode: Opcode) -> Operation:
    """Build the sum of an absolute difference and an accumulator, which is unsigned."""
    kind = opcode.types[0]
    total = "u" + kind[1:]
    dtype = DTYPES[total]
    return Operation(lambda a, b, c: c + np.where(a > b, a - b, b - a).astype(dtype), (kind, kind, total), (total,))


@instruction("dp4a dp2a", ("u32", "s32"), "lo hi", types_count=2)
def dot(opcode: Opcode) -> Operation:
    """Build the dot product of four bytes with four, or of two 16-bit halves with two bytes, and a sum."""
    if (opcode.name == "dp2a") != bool(opcode.modifiers):
        raise KeyError(opcode.name)
    a_kind, b_kind = opcode.types
    result = "s32" if "s32" in opcode.types else "u32"
    a_bits = 8 if opcode.name == "dp4a" else 16
    offset = 16 if "hi" in opcode.modifiers else 0

    def function(a: Array, b: Array, c: Array) -> Array:
        total = c.astype(np.int64)
        for part in range(32 // a_bits):
            total = total + _field(a, part * a_bits, a_bits, a_kind) * _field(b, offset + part * 8, 8, b_kind)
        return total.astype(DTYPES[result])

    return Operation(function, (*opcode.types, result), (result,))


def _field(x: Array, start: int, bits: int, kind: str) -> Array:
    """Return bits of 32-bit words as int64, with their sign if the type has one."""
    shifted = x.astype(np.int64) << (64 - start - bits)
    return (
        shifted >> (64 - bits) if kind in SIGNED else (shifted.view(np.uint64) >> np.uint64(64 - bits)).astype(np.int64)
    )
