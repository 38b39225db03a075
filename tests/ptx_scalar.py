"""Evaluate a PTX instruction on the bits of one thread, with Python integers and fractions: slow, but easy to check.

It is written from the PTX ISA alone and shares nothing with ``customops.ptx``. A float is its bits; between decoding
and encoding it is a Fraction, or a Python float where it is -0, infinite or nan.
"""

from __future__ import annotations

import math
import operator
from fractions import Fraction
from math import copysign, inf, isinf, isnan, isqrt, nan

FORMS = {  # bits of the exponent and of the mantissa
    "f16": (5, 10),
    "bf16": (8, 7),
    "f32": (8, 23),
    "f64": (11, 52),
    "tf32": (8, 10),
    "e4m3": (4, 3),
    "e5m2": (5, 2),
}
PAIRS = ("f16x2", "bf16x2", "f32x2", "u16x2", "s16x2", "e4m3x2", "e5m2x2")
INTEGERS = {f"{kind}{bits}" for kind in "bus" for bits in (8, 16, 32, 64)}
TYPES = (*FORMS, *PAIRS, *INTEGERS, "pred")


def width(kind):
    if kind in ("f32x2",):
        return 64
    if kind in PAIRS:
        return 16 if kind[0] == "e" else 32
    if kind == "pred":
        return 1
    if kind == "tf32":
        return 32
    return sum(FORMS[kind]) + 1 if kind in FORMS else int(kind[1:])


def signed(x, kind):
    """Return the value of an integer's bits."""
    bits = width(kind)
    return x - (1 << bits) if kind[0] == "s" and x >> (bits - 1) else x


def wrap(x, kind):
    return x & ((1 << width(kind)) - 1)


def decode(bits, kind):
    exponent_bits, mantissa_bits = FORMS[kind]
    sign = bits >> (exponent_bits + mantissa_bits)
    exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = bits & ((1 << mantissa_bits) - 1)
    top = (1 << exponent_bits) - 1
    if kind == "e4m3" and exponent == top and mantissa == 7:
        return nan
    if kind != "e4m3" and exponent == top:
        return nan if mantissa else (-inf if sign else inf)
    if exponent == mantissa == 0:
        return -0.0 if sign else Fraction(0)
    bias = (1 << (exponent_bits - 1)) - 1
    whole = mantissa + ((1 << mantissa_bits) if exponent else 0)
    value = Fraction(whole) * Fraction(2) ** (max(exponent, 1) - bias - mantissa_bits)
    return -value if sign else value


def largest(kind):
    exponent_bits, mantissa_bits = FORMS[kind]
    top = (1 << exponent_bits) - 1
    code = (top << mantissa_bits | 6) if kind == "e4m3" else (top << mantissa_bits) - 1
    return code


def canonical_nan(kind):
    exponent_bits, mantissa_bits = FORMS[kind]
    return (1 << (exponent_bits + mantissa_bits)) - 1


def encode(x, kind, mode="rn", finite=False):
    """Return the bits of a value, rounded once: the neighbours are found by integer division, not by floats."""
    exponent_bits, mantissa_bits = FORMS[kind]
    sign_bit = 1 << (exponent_bits + mantissa_bits)
    infinite = ((1 << exponent_bits) - 1) << mantissa_bits
    if isinstance(x, float):
        if isnan(x):
            return canonical_nan(kind)
        sign = sign_bit if copysign(1, x) < 0 else 0
        return sign | (0 if x == 0 else largest(kind) if finite else infinite)
    negative, magnitude = x < 0, abs(x)
    lowest = 2 - (1 << (exponent_bits - 1)) - mantissa_bits  # exponent of the smallest subnormal number
    exponent = lowest
    while magnitude >= Fraction(2) ** (exponent + mantissa_bits + 1):
        exponent += max(1, _log2(magnitude) - mantissa_bits - exponent)
    scaled = magnitude / Fraction(2) ** exponent
    whole, rest = divmod(scaled.numerator, scaled.denominator)
    twice = 2 * rest
    up = {
        "rn": twice > scaled.denominator or (twice == scaled.denominator and whole & 1),
        "rna": twice >= scaled.denominator and rest,
        "rz": False,
        "rm": negative and rest,
        "rp": not negative and rest,
    }[mode]
    whole += bool(up)
    code = whole + ((exponent - lowest) << mantissa_bits)  # a carry moves to the exponent by itself
    if code > largest(kind):
        inward = mode == "rz" or (mode == "rm" and not negative) or (mode == "rp" and negative)
        code = largest(kind) if finite or inward else infinite
    return code | (sign_bit if negative else 0)


def _log2(x):
    return x.numerator.bit_length() - x.denominator.bit_length() - 1


def is_nan(x):
    return isinstance(x, float) and isnan(x)


def plain(x):
    """Return a value as a Python float that has its sign and class."""
    return x if isinstance(x, float) else float((x > 0) - (x < 0))


def negative(x):
    return x < 0 if isinstance(x, Fraction) else copysign(1.0, x) < 0


def add(x, y, mode):
    if any(isinstance(v, float) and (isinf(v) or isnan(v)) for v in (x, y)):
        return plain(x) + plain(y)
    total = Fraction(x) + Fraction(y)
    if total:
        return total
    both = negative(x) and negative(y)
    either = negative(x) or negative(y) or x != 0
    return -0.0 if (either if mode == "rm" else both) else Fraction(0)


def mul(x, y):
    if any(isinstance(v, float) and (isinf(v) or isnan(v)) for v in (x, y)):
        return plain(x) * plain(y)
    return Fraction(x) * Fraction(y) or (-0.0 if negative(x) != negative(y) else Fraction(0))


def div(x, y):
    if is_nan(x) or is_nan(y):
        return nan
    sign = -1.0 if negative(x) != negative(y) else 1.0
    if y == 0 or isinf(plain(x)):
        return nan if (y == 0 and x == 0) or isinf(plain(y)) else sign * inf
    if isinf(plain(y)) or x == 0:
        return copysign(0.0, sign) if sign < 0 else Fraction(0)
    return Fraction(x) / Fraction(y)


def sqrt(x):
    if isinstance(x, float):
        return x if x in (0, inf) else nan
    if x <= 0:
        return nan if x else x
    scale = 1200  # bits: leaves more than the 53 asked for, and a last one that says whether it is exact
    square = x.numerator * (1 << 2 * scale) // x.denominator
    root = isqrt(square)
    exact = root * root * x.denominator == x.numerator << 2 * scale
    return Fraction(2 * root + (not exact), 1 << (scale + 1))


def flushed(x, kind):
    exponent_bits, _ = FORMS[kind]
    if isinstance(x, float) or abs(x) >= Fraction(2) ** (2 - (1 << (exponent_bits - 1))):
        return x
    return -0.0 if x < 0 else Fraction(0)


def clamped(x, modifiers):
    if "sat" in modifiers:
        if isinstance(x, float):
            return Fraction(x == inf)
        return min(max(x, Fraction(0)), Fraction(1))
    if "relu" in modifiers and not is_nan(x) and (x <= 0 or x == -inf):
        return Fraction(0)
    return x


def parse(text):
    name, *rest = text.split(".")
    return name, [part for part in rest if part not in TYPES], [part for part in rest if part in TYPES]


def float_arithmetic(name, modifiers, kind, operands):
    mode = next((m for m in modifiers if m in ("rn", "rz", "rm", "rp")), "rn")
    ftz = "ftz" in modifiers
    x, y, z = (*((flushed(decode(o, kind), kind) if ftz else decode(o, kind)) for o in operands), None, None)[:3]
    if name in ("fma", "mad"):
        result = add(mul(x, y), z, mode)
    else:
        result = {
            "add": lambda: add(x, y, mode),
            "sub": lambda: add(x, mul(Fraction(-1), y), mode),
            "mul": lambda: mul(x, y),
            "div": lambda: div(x, y),
            "rcp": lambda: div(Fraction(1), x),
            "sqrt": lambda: sqrt(x),
        }[name]()
    bits = encode(clamped(result, modifiers), kind, mode)
    return encode(flushed(decode(bits, kind), kind), kind) if ftz else bits


def float_extreme(name, modifiers, kind, operands):
    x, y = (flushed(decode(o, kind), kind) if "ftz" in modifiers else decode(o, kind) for o in operands)
    flip = 0
    if "xorsign" in modifiers:
        flip = (operands[0] ^ operands[1]) >> (width(kind) - 1)
        x, y = (abs(v) if not (isinstance(v, float) and v == 0) else Fraction(0) for v in (x, y))
    gone = [is_nan(v) for v in (x, y)]
    if all(gone) or ("NaN" in modifiers and any(gone)):
        return canonical_nan(kind)
    if any(gone):
        result = y if gone[0] else x
    elif x == 0 and y == 0:
        result = (
            (-0.0 if negative(x) or negative(y) else Fraction(0))
            if name == "min"
            else (-0.0 if negative(x) and negative(y) else Fraction(0))
        )
    else:
        result = (min if name == "min" else max)(x, y)
    bits = encode(result, kind)
    sign = 1 << (width(kind) - 1)
    return bits | sign if flip else bits


COMPARE = {"eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt}
COMPARE |= {"ge": operator.ge, "lo": operator.lt, "ls": operator.le, "hi": operator.gt, "hs": operator.ge}


def compare(name, modifiers, kind, a, b):
    if kind not in FORMS:
        return COMPARE[name](signed(a, kind), signed(b, kind))
    x, y = (flushed(decode(o, kind), kind) if "ftz" in modifiers else decode(o, kind) for o in (a, b))
    unordered = any(is_nan(v) for v in (x, y))
    if name in ("num", "nan"):
        return unordered == (name == "nan")
    if unordered:
        return len(name) == 3
    return COMPARE[name[:2]](x, y)


def _pred(value):
    return int(bool(value))


def setp(modifiers, kind, operands):
    a, b, *c = operands
    if kind in PAIRS:
        half = width(kind) // 2
        mask = (1 << half) - 1
        p, q = (compare(modifiers[0], modifiers, kind[:-2], a >> s & mask, b >> s & mask) for s in (0, half))
    else:
        p = compare(modifiers[0], modifiers, kind, a, b)
        q = not p
    if c:
        combine = {"and": lambda v: v and c[0], "or": lambda v: v or c[0], "xor": lambda v: bool(v) != bool(c[0])}
        p, q = (combine[modifiers[1]](v) for v in (p, q))
    return _pred(p), _pred(q)


def whole(x, mode):
    """Return a value rounded to an integer, with the sign of a zero."""
    if isinstance(x, float):
        return x
    result = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}[mode](x)
    return Fraction(result) if result or x >= 0 else -0.0


def cvt(modifiers, types, operands):  # noqa: PLR0911
    result, source = types
    mode = next((m for m in modifiers if m in ("rn", "rz", "rm", "rp", "rna")), "rn")
    integral = next((m for m in modifiers if m in ("rni", "rzi", "rmi", "rpi")), None)
    finite = "satfinite" in modifiers
    if result in PAIRS or source in PAIRS:
        return _cvt_pair(modifiers, result, source, operands, mode, finite)
    (a,) = operands
    if source in INTEGERS:
        x = signed(a, source)
        if result in INTEGERS:
            return wrap(_limit(x, result), result) if "sat" in modifiers else wrap(x, result)
        return encode(clamped(Fraction(x), modifiers), result, mode)
    x = decode(a, source)
    if "ftz" in modifiers and source == "f32":
        x = flushed(x, source)
    if integral:
        x = whole(x, integral)
    if result in INTEGERS:
        if is_nan(x):
            return 1 << (width(result) - 1) if source == "f64" or width(result) == 64 else 0
        return wrap(_limit(x if isinstance(x, float) and isinf(x) else int(x), result), result)
    if result == "tf32":
        bits = encode(clamped(x, modifiers), "tf32", mode, finite)
        return 0x7FFFFFFF if is_nan(x) else bits << 13
    bits = encode(clamped(x, modifiers), result, mode, finite)
    if "ftz" in modifiers and result == "f32":
        bits = encode(flushed(decode(bits, result), result), result)
    return bits


def _limit(x, kind):
    bits = width(kind)
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if kind[0] == "s" else (0, (1 << bits) - 1)
    return int(min(max(x, low), high)) if not isinstance(x, float) else (low if x < 0 else high)


def _cvt_pair(modifiers, result, source, operands, mode, finite):
    to = result[:-2]
    if source == "f32":
        high, low = (decode(o, "f32") for o in operands)
    else:
        half = width(source) // 2
        high, low = (decode(operands[0] >> s & ((1 << half) - 1), source[:-2]) for s in (half, 0))
    high, low = (encode(clamped(x, modifiers), to, mode, finite) for x in (high, low))
    return high << (width(result) // 2) | low


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
        return wrap(_limit(signed(wrap(part, kind), kind) + c, kind) if "sat" in modifiers else part + c, kind)
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
        result = _limit(result, kind)
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


def sign_operation(name, kind, modifiers, operands):
    sign = 1 << (width(kind) - 1)
    if name == "copysign":
        return operands[1] & ~sign | operands[0] & sign
    bits = operands[0]
    if "ftz" in modifiers and not is_nan(decode(bits, kind)):
        bits = encode(flushed(decode(bits, kind), kind), kind)
    return bits ^ sign if name == "neg" else bits & ~sign


def testp(modifier, kind, bits):
    x = decode(bits, kind)
    finite = not (isinstance(x, float) and (isinf(x) or isnan(x)))
    tiny = finite and x != 0 and flushed(x, kind) == 0
    return {
        "finite": finite,
        "infinite": isinstance(x, float) and isinf(x),
        "number": not is_nan(x),
        "notanumber": is_nan(x),
        "normal": finite and not tiny,
        "subnormal": tiny,
    }[modifier]


TRUE = {"u32": 0xFFFFFFFF, "s32": 0xFFFFFFFF, "f32": 0x3F800000, "f16": 0x3C00, "bf16": 0x3F80}


def evaluate(text, *operands):
    """Return the bits of each result of an instruction for the bits of its operands."""
    name, modifiers, types = parse(text)
    kind = types[0]
    if name == "setp":
        return setp(modifiers, kind, operands)
    return (_one(name, modifiers, types, operands),)


def _one(name, modifiers, types, operands):  # noqa: PLR0911
    kind = types[0]
    if name == "cvt":
        return cvt(modifiers, types, operands)
    if name == "set":
        holds = setp(modifiers, types[1], operands)[0]
        return TRUE[kind] if holds else 0
    if name == "slct":
        c = operands[2]
        x = decode(c, "f32") if types[1] == "f32" else signed(c, "s32")
        x = flushed(x, "f32") if "ftz" in modifiers else x
        return operands[0] if x >= 0 else operands[1]
    if name in ("dp4a", "dp2a"):
        return dot(name, modifiers, types, operands)
    if len(types) == 2:  # a half is widened first
        wide = [encode(decode(o, types[1]), kind) for o in operands[:-1]]
        return float_arithmetic(name, modifiers, kind, (*wide, operands[-1]))
    if kind in PAIRS:
        half = width(kind) // 2
        mask = (1 << half) - 1
        low, high = (_one(name, modifiers, [kind[:-2]], [o >> s & mask for o in operands]) for s in (0, half))
        return high << half | low
    if name in ("neg", "abs", "copysign") and kind in FORMS:
        return sign_operation(name, kind, modifiers, operands)
    if name == "testp":
        return _pred(testp(modifiers[0], kind, operands[0]))
    if kind in FORMS and name != "selp":
        family = float_extreme if name in ("min", "max") else float_arithmetic
        return family(name, modifiers, kind, operands)
    if kind[0] in "us" and name in ARITHMETIC:
        return integer_arithmetic(name, modifiers, types, operands)
    return bit_operation(name, modifiers, kind, operands)


ARITHMETIC = {"add", "sub", "min", "max", "neg", "abs", "mul", "mad", "mul24", "mad24", "div", "rem", "sad"}
