"""Evaluate PTX instructions on integers and bits for one thread, as the ISA writes them down."""

from __future__ import annotations

from .ptx_numbers import limit, signed, width, wrap


def _field(word, start, bits, kind):
    value = word >> start & ((1 << bits) - 1)
    return value - (1 << bits) if kind[0] == "s" and value >> (bits - 1) else value


def bfe(kind, a, start, length):
    start, length, bits = start & 255, length & 255, width(kind)
    sign = 0 if kind[0] == "u" or length == 0 else a >> min(start + length - 1, bits - 1) & 1
    result = 0
    for i in range(bits):
        bit = a >> (start + i) & 1 if i < length and start + i < bits else sign
        result |= bit << i
    return result


def bfi(kind, a, b, start, length):
    start, length, bits = start & 255, length & 255, width(kind)
    for i in range(length):
        if start + i < bits:
            b = (b & ~(1 << (start + i))) | ((a >> i & 1) << (start + i))
    return b


def bfind(modifiers, kind, a):
    bits = width(kind)
    if kind[0] == "s" and a >> (bits - 1):
        a = ~a & ((1 << bits) - 1)
    place = a.bit_length() - 1
    return 0xFFFFFFFF if place < 0 else (bits - 1 - place if modifiers else place)


BYTES = {
    "f4e": lambda i, c: c + i,
    "b4e": lambda i, c: (c - i) % 8,
    "rc8": lambda i, c: c,
    "ecl": max,
    "ecr": min,
    "rc16": lambda i, c: 2 * (c & 1) + (i & 1),
}


def prmt(modifiers, a, b, control):
    both = b << 32 | a
    result = 0
    for i in range(4):
        choice = BYTES[modifiers[0]](i, control & 3) if modifiers else control >> 4 * i & 15
        byte = both >> 8 * (choice & 7) & 255
        if choice & 8:
            byte = 255 if byte & 128 else 0
        result |= byte << 8 * i
    return result


def integer_arithmetic(name, modifiers, types, operands):  # noqa: PLR0911
    kind = types[0]
    bits = width(kind)
    a, b, c = (*(signed(o, kind) for o in operands), 0, 0)[:3]
    if name in ("mul", "mad"):
        double = f"{kind[0]}{2 * bits}"
        if "wide" in modifiers:
            return wrap(a * b + (signed(operands[2], double) if name == "mad" else 0), double)
        part = a * b >> bits if "hi" in modifiers else wrap(a * b, kind)
        return wrap(limit(signed(wrap(part, kind), kind) + c, kind) if "sat" in modifiers else part + c, kind)
    if name in ("mul24", "mad24"):
        a, b = (_field(o, 0, 24, kind) for o in operands[:2])
        return wrap((a * b >> (16 if "hi" in modifiers else 0)) + c, kind)
    if name in ("div", "rem"):
        if b == 0:
            return wrap(-1 if name == "div" else a, kind)
        q = abs(a) // abs(b) * (-1 if (a < 0) != (b < 0) else 1)
        return wrap(q if name == "div" else a - q * b, kind)
    if name == "sad":
        return wrap(operands[2] + abs(a - b), kind)
    result = {"add": a + b, "sub": a - b, "min": min(a, b), "max": max(a, b), "neg": -a, "abs": abs(a)}[name]
    if "sat" in modifiers:
        result = limit(result, kind)
    if "relu" in modifiers:
        result = max(result, 0)
    return wrap(result, kind)


def dot(name, modifiers, types, operands):
    a_kind, b_kind = types
    size = 8 if name == "dp4a" else 16
    start = 16 if "hi" in modifiers else 0
    total = signed(operands[2], "s32" if "s32" in types else "u32")
    for i in range(32 // size):
        total += _field(operands[0], i * size, size, a_kind) * _field(operands[1], start + 8 * i, 8, b_kind)
    return wrap(total, "u32")


def bit_operation(name, modifiers, kind, operands):
    bits = width(kind)
    a, b, c, d = (*operands, 0, 0, 0)[:4]
    value = signed(a, kind)
    table = {
        "and": lambda: a & b,
        "or": lambda: a | b,
        "xor": lambda: a ^ b,
        "not": lambda: wrap(~a, kind),
        "cnot": lambda: int(a == 0),
        "lop3": lambda: sum((d >> (4 * (a >> i & 1) + 2 * (b >> i & 1) + (c >> i & 1)) & 1) << i for i in range(bits)),
        "shl": lambda: wrap(a << min(b, 64), kind),
        "shr": lambda: wrap(value >> min(b, 64), kind),
        "shf": lambda: _shf(modifiers, a, b, c),
        "bfe": lambda: bfe(kind, a, b, c),
        "bfi": lambda: bfi(kind, a, b, c, d),
        "bfind": lambda: bfind(modifiers, kind, a),
        "brev": lambda: int(f"{a:0{bits}b}"[::-1], 2),
        "clz": lambda: bits - a.bit_length(),
        "popc": a.bit_count,
        "prmt": lambda: prmt(modifiers, a, b, c),
        "selp": lambda: a if c else b,
    }
    return table[name]()


def _shf(modifiers, a, b, c):
    steps = c & 31 if "wrap" in modifiers else min(c, 32)
    both = b << 32 | a
    return (both << steps) >> 32 & 0xFFFFFFFF if "l" in modifiers else both >> steps & 0xFFFFFFFF


ARITHMETIC = {"add", "sub", "min", "max", "neg", "abs", "mul", "mad", "mul24", "mad24", "div", "rem", "sad"}
