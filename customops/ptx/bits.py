"""Compute on bits: logic, shifts, fields, permutations and counts."""

from __future__ import annotations

import numpy as np

from .formats import BITS, DTYPES, INTEGERS, Array, Function, packed, width
from .registry import Opcode, Operation, instruction

LOGIC: dict[str, Function] = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


@instruction("and or xor", ("pred", *BITS))
def logic(opcode: Opcode) -> Operation:
    """Build a logical operation of two sources."""
    return Operation(LOGIC[opcode.name], opcode.types * 2, opcode.types)


@instruction("not", ("pred", *BITS))
def invert(opcode: Opcode) -> Operation:
    """Build the complement."""
    return Operation(np.invert, opcode.types, opcode.types)


@instruction("cnot", BITS)
def cnot(opcode: Opcode) -> Operation:
    """Build the logical negation: 1 for zero, 0 for all else."""
    dtype = DTYPES[opcode.types[0]]
    return Operation(lambda a: (a == 0).astype(dtype), opcode.types, opcode.types)


PAIRS: tuple[Function, ...] = (  # the functions of two bits, by their truth table: bit 2b + c is the value at (b, c)
    lambda b, c: (b & c) ^ (b & c),
    lambda b, c: ~(b | c),
    lambda b, c: ~b & c,
    lambda b, c: ~b,
    lambda b, c: b & ~c,
    lambda b, c: ~c,
    lambda b, c: b ^ c,
    lambda b, c: ~(b & c),
    lambda b, c: b & c,
    lambda b, c: ~(b ^ c),
    lambda b, c: c,
    lambda b, c: ~b | c,
    lambda b, c: b,
    lambda b, c: b | ~c,
    lambda b, c: b | c,
    lambda b, c: ~((b & c) ^ (b & c)),
)


@instruction("lop3", ("b32",))
def lop3(opcode: Opcode) -> Operation:
    """Build the logical operation of three sources whose truth table is the fourth, which is an immediate.

    Bit 4a + 2b + c of the table is the value at (a, b, c); the lower half holds for a = 0, and where a = 1 it changes
    by the difference of the halves.
    """

    def function(a: Array, b: Array, c: Array, table: Array) -> Array:
        rows = int(np.ravel(table)[0])
        low, change = rows & 15, (rows ^ rows >> 4) & 15
        return PAIRS[low](b, c) ^ (a if change == 15 else a & PAIRS[change](b, c))

    return Operation(function, ("b32",) * 4, ("b32",))


def shifted(shift: Function, bits: int, dtype: type) -> Function:
    """Return a shift by an unsigned 32-bit amount; NumPy shifts everything out from `bits` on, as PTX does."""

    def function(a: Array, amount: Array) -> Array:
        if not np.ndim(amount):
            return shift(a, dtype(min(int(amount), bits)))
        return shift(a, np.minimum(amount, np.uint32(bits)).astype(dtype))

    return function


@instruction("shl", BITS)
def shl(opcode: Opcode) -> Operation:
    """Build a shift to the left."""
    kind = opcode.types[0]
    return Operation(shifted(np.left_shift, width(kind), DTYPES[kind]), (kind, "u32"), (kind,))


@instruction("shr", (*BITS, *INTEGERS))
def shr(opcode: Opcode) -> Operation:
    """Build a shift to the right, which repeats the sign of a signed type."""
    kind = opcode.types[0]
    return Operation(shifted(np.right_shift, width(kind), DTYPES[kind]), (kind, "u32"), (kind,))


@instruction("shf", ("b32",), "l r wrap clamp")
def shf(opcode: Opcode) -> Operation:
    """Build the funnel shift: of the 64 bits ``b:a`` the upper half shifted left, or the lower one shifted right."""
    left, wrap = "l" in opcode.modifiers, "wrap" in opcode.modifiers

    def function(a: Array, b: Array, amount: Array) -> Array:
        both = b.astype(np.uint64) << np.uint64(32) | a.astype(np.uint64)
        steps = (amount & np.uint32(31) if wrap else np.minimum(amount, np.uint32(32))).astype(np.uint64)
        return ((both << steps) >> np.uint64(32) if left else both >> steps).astype(np.uint32)

    return Operation(function, ("b32", "b32", "u32"), ("b32",))


def ones(count: Array, kind: str) -> Array:
    """Return words with the lowest `count` bits set, as the unsigned type as wide as `kind`."""
    dtype = DTYPES["u" + kind[1:]]
    bits = width(kind)
    return np.where(count >= bits, ~dtype(0), (dtype(1) << np.minimum(count, bits - 1).astype(dtype)) - dtype(1))


@instruction("bfe", ("u32", "s32", "u64", "s64"))
def bfe(opcode: Opcode) -> Operation:
    """Build the extraction of a field; a signed one repeats its highest bit, or the word's if it goes past the word.

    A shift of a signed number by its whole width leaves the sign, for a field that starts past the word.
    """
    kind = opcode.types[0]
    bits, dtype = width(kind), DTYPES[kind]

    def constant(a: Array, start: int, length: int) -> Array:
        left = bits - min(start + length, bits)
        right = left + min(start, bits)
        return (a << dtype(left)) >> dtype(right) if length else a & dtype(0)

    def function(a: Array, start: Array, length: Array) -> Array:
        if not np.ndim(start) and not np.ndim(length):
            return constant(a, int(start) & 0xFF, int(length) & 0xFF)
        start, length = start & np.uint32(0xFF), length & np.uint32(0xFF)
        end = np.minimum(start + length, np.uint32(bits))
        left = (np.uint32(bits) - end).astype(dtype)
        right = left + np.minimum(start, np.uint32(bits)).astype(dtype)
        return np.where(length == 0, dtype(0), (a << left) >> right)

    return Operation(function, (kind, "u32", "u32"), (kind,))


@instruction("bfi", ("b32", "b64"))
def bfi(opcode: Opcode) -> Operation:
    """Build the insertion of the first source's lowest bits into a field of the second."""
    kind = opcode.types[0]
    bits, dtype = width(kind), DTYPES[kind]

    def function(a: Array, b: Array, start: Array, length: Array) -> Array:
        steps = np.minimum(start & np.uint32(0xFF), bits).astype(dtype)
        mask = ones(length & np.uint32(0xFF), kind) << steps
        return (b & ~mask) | ((a << steps) & mask)

    return Operation(function, (kind, kind, "u32", "u32"), (kind,))


def bit_length(x: Array) -> Array:
    """Return the number of bits of unsigned words without leading zeros, as int32."""
    if x.dtype.itemsize < 8:
        return np.frexp(x.astype(np.float64))[1]
    high = (x >> np.uint64(32)).astype(np.uint32)
    return np.where(high != 0, 32 + bit_length(high), bit_length(x.astype(np.uint32)))


@instruction("bfind", ("u32", "s32", "u64", "s64"), "shiftamt")
def bfind(opcode: Opcode) -> Operation:
    """Build the place of the highest bit that differs from the sign, or with .shiftamt its distance from the top."""
    kind = opcode.types[0]
    top = width(kind) - 1

    def function(a: Array) -> Array:
        word = (a ^ (a >> top)).view("u" + str(a.dtype.itemsize)) if kind[0] == "s" else a
        place = bit_length(word) - 1
        if opcode.modifiers:
            place = np.where(place >= 0, top - place, place)
        return place.astype(np.int32).view(np.uint32)

    return Operation(function, (kind,), ("u32",))


@instruction("clz", ("b32", "b64"))
def clz(opcode: Opcode) -> Operation:
    """Build the number of leading zeros."""
    bits = width(opcode.types[0])
    return Operation(lambda a: (bits - bit_length(a)).astype(np.uint32), opcode.types, ("u32",))


def alternating(dtype: type, bits: int) -> Array:
    """Return a word of `bits` ones, `bits` zeros and so on, from the lowest bit."""
    total = np.dtype(dtype).itemsize * 8
    return dtype(sum(((1 << bits) - 1) << start for start in range(0, total, 2 * bits)))


def doubling_fields(kind: str) -> list[tuple[Array, Array]]:
    """Return the widths 1, 2, 4 ... below that of `kind`, each with the mask of every other field so wide."""
    dtype = DTYPES[kind]
    return [(dtype(bits), alternating(dtype, bits)) for bits in (1, 2, 4, 8, 16, 32) if bits < width(kind)]


@instruction("popc", ("b32", "b64"))
def popc(opcode: Opcode) -> Operation:
    """Build the number of ones, added up in fields of doubling width."""
    steps = doubling_fields(opcode.types[0])

    def function(a: Array) -> Array:
        for bits, mask in steps:
            a = (a & mask) + ((a >> bits) & mask)
        return a.astype(np.uint32)

    return Operation(function, opcode.types, ("u32",))


@instruction("brev", ("b32", "b64"))
def brev(opcode: Opcode) -> Operation:
    """Build the reversal of all bits, by swapping fields of doubling width."""
    steps = doubling_fields(opcode.types[0])

    def function(a: Array) -> Array:
        for bits, mask in steps:
            a = ((a & mask) << bits) | ((a >> bits) & mask)
        return a

    return Operation(function, opcode.types, opcode.types)


PERMUTATIONS = {  # selectors of the four bytes, for each value of the two lowest bits of the control
    "f4e": (0x3210, 0x4321, 0x5432, 0x6543),
    "b4e": (0x5670, 0x6701, 0x7012, 0x0123),
    "rc8": (0x0000, 0x1111, 0x2222, 0x3333),
    "ecl": (0x3210, 0x3211, 0x3222, 0x3333),
    "ecr": (0x0000, 0x1110, 0x2210, 0x3210),
    "rc16": (0x1010, 0x3232, 0x1010, 0x3232),
}

NIBBLES = np.arange(0, 16, 4, dtype=np.uint32)


@instruction("prmt", ("b32",), " ".join(PERMUTATIONS))
def prmt(opcode: Opcode) -> Operation:
    """Build the choice of four bytes of eight; bit 3 of a selector repeats the byte's sign instead of the byte."""
    selectors = np.array(PERMUTATIONS[opcode.modifiers[0]], np.uint32) if opcode.modifiers else None

    def function(a: Array, b: Array, control: Array) -> Array:
        if selectors is not None:
            control = selectors[control & np.uint32(3)]
        both = np.empty((np.broadcast(a, b, control).size, 2), np.uint32)
        both[:, 0], both[:, 1] = a, b
        choice = np.asarray(control)[..., None] >> NIBBLES & np.uint32(15)
        if not np.ndim(control):
            chosen = both.view(np.uint8)[:, choice & np.uint32(7)]
        else:
            chosen = np.take_along_axis(both.view(np.uint8), (choice & np.uint32(7)).astype(np.intp), axis=1)
        if (choice > 7).any():
            chosen = np.where(choice > 7, (chosen.view(np.int8) >> 7).view(np.uint8), chosen)
        return packed(chosen, np.uint32)

    return Operation(function, ("b32",) * 3, ("b32",))
