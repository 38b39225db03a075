"""Evaluate a PTX instruction on the bits of one thread, with Python integers and fractions: slow, but easy to check.

It is written from the PTX ISA alone and shares nothing with ``customops.ptx``.
"""

from __future__ import annotations

import math
import operator
from fractions import Fraction
from math import isinf, isnan

from .ptx_numbers import (
    FORMS,
    INTEGERS,
    PAIRS,
    TYPES,
    add,
    canonical_nan,
    clamped,
    decode,
    div,
    encode,
    flushed,
    is_nan,
    limit,
    mul,
    negative,
    signed,
    sqrt,
    width,
    wrap,
)
from .ptx_words import ARITHMETIC, bit_operation, dot, integer_arithmetic


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
            return wrap(limit(x, result), result) if "sat" in modifiers else wrap(x, result)
        return encode(clamped(Fraction(x), modifiers), result, mode)
    x = decode(a, source)
    if "ftz" in modifiers and source == "f32":
        x = flushed(x, source)
    if integral:
        x = whole(x, integral)
    if result in INTEGERS:
        if is_nan(x):
            return 1 << (width(result) - 1) if source == "f64" or width(result) == 64 else 0
        return wrap(limit(x if isinstance(x, float) and isinf(x) else int(x), result), result)
    if result == "tf32":
        bits = encode(clamped(x, modifiers), "tf32", mode, finite)
        return 0x7FFFFFFF if is_nan(x) else bits << 13
    bits = encode(clamped(x, modifiers), result, mode, finite)
    if "ftz" in modifiers and result == "f32":
        bits = encode(flushed(decode(bits, result), result), result)
    return bits


def _cvt_pair(modifiers, result, source, operands, mode, finite):
    to = result[:-2]
    if source == "f32":
        high, low = (decode(o, "f32") for o in operands)
    else:
        half = width(source) // 2
        high, low = (decode(operands[0] >> s & ((1 << half) - 1), source[:-2]) for s in (half, 0))
    high, low = (encode(clamped(x, modifiers), to, mode, finite) for x in (high, low))
    return high << (width(result) // 2) | low


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
