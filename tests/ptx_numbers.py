"""Decode, compute and encode numbers of PTX types exactly: integers, and floating-point numbers as fractions.

A float is its bits; between decoding and encoding it is a Fraction, or a Python float where it is -0, infinite or nan.
"""

from __future__ import annotations

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


def limit(x, kind):
    bits = width(kind)
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if kind[0] == "s" else (0, (1 << bits) - 1)
    return int(min(max(x, low), high)) if not isinstance(x, float) else (low if x < 0 else high)
