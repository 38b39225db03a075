"""Round exact results once: to every format, in every rounding mode of PTX.

An exact result is a pair ``(value, error)`` of float64 arrays: `value` is the result rounded to nearest even, `error` has
the sign of what is missing (zero where `value` is exact). From it follow

- float64 in any mode: `value`, or its neighbour towards the error (`directed`);
- a shorter format in any mode: `value` rounded to odd (`odd`), which keeps "there is more" in its last bit, and then to
  the format (`round_to`). Boldo and Melquiond, "When double rounding is odd" (2005), prove that nothing is lost while
  the format has at least two bits less than float64.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from .formats import FORMATS, Array, Format

EXPONENT = np.int64(0x7FF << 52)
SPLIT = float(2**27 + 1)


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Return ``a + b`` rounded, and its error (Knuth)."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """Return float64 ``a * b`` rounded, and its error (Dekker). Magnitudes stay between 2**-900 and 2**990."""
    p = a * b
    t, u = SPLIT * a, SPLIT * b
    a_high, b_high = t - (t - a), u - (u - b)
    a_low, b_low = a - a_high, b - b_high
    return p, ((a_high * b_high - p) + a_high * b_low + a_low * b_high) + a_low * b_low


def odd(value: Array, error: Array) -> Array:
    """Return the exact result `value` + `error` rounded to odd: the neighbour whose last bit is 1 unless it is exact."""
    bits = value.view(np.int64)
    step = np.where((error > 0) == (value > 0), np.int64(1), np.int64(-1))
    inexact = (error != 0) & (error == error) & ((bits & 1) == 0)
    return np.where(inexact, bits + step, bits).view(np.float64)


def directed(value: Array, error: Array, mode: str) -> Array:
    """Return the exact result `value` + `error` as float64 in rounding mode `mode`."""
    if mode == "rn":
        return value
    down, up = np.nextafter(value, -np.inf), np.nextafter(value, np.inf)
    below, above = error < 0, error > 0
    if mode == "rz":
        below, above = below & (value > 0), above & (value < 0)
    elif mode == "rm":
        above = np.zeros_like(above)
    else:
        below = np.zeros_like(below)
    return np.where(below, down, np.where(above, up, value))


def spacing(x: Array, form: Format) -> Array:
    """Return the distance of neighbours in the format around float64 `x`."""
    bits = (x.view(np.int64) & EXPONENT) - np.int64((form.precision - 1) << 52)
    return np.maximum(bits, np.int64((1024 + form.emin - form.precision) << 52)).view(np.float64)


def _away(x: Array) -> Array:
    """Return `x` rounded to an integer, ties away from zero."""
    whole = np.trunc(x)
    return whole + np.where(np.abs(x - whole) >= 0.5, np.copysign(1.0, x), 0.0)


TO_INTEGER = {"rn": np.rint, "rz": np.trunc, "rm": np.floor, "rp": np.ceil, "rna": _away}


def round_to(x: Array, kind: str, mode: str = "rn", finite: bool = False) -> Array:
    """Return float64 `x` rounded to a format that is shorter than float64, as float64.

    With `finite` a magnitude beyond the largest number gives that number, also in place of infinity.
    """
    form = FORMATS[kind]
    unit = spacing(x, form)
    r = np.copysign(TO_INTEGER[mode](x / unit) * unit, x)
    beyond = np.abs(r) > form.largest
    if not beyond.any():
        return r
    largest = np.copysign(form.largest, x)
    if finite:
        return np.where(beyond, largest, r)
    inward = {"rz": True, "rm": x > 0, "rp": x < 0}.get(mode, False)
    return np.where(beyond & np.isfinite(x), np.where(inward, largest, np.copysign(np.inf, x)), r)


def round_fraction(x: Fraction, kind: str, mode: str) -> float:
    """Return a nonzero fraction rounded to a format, for the operands that floating point cannot split exactly."""
    form = FORMATS[kind]
    exponent = max(_floor_log2(abs(x)), form.emin) - form.precision + 1
    scaled = x / Fraction(2) ** exponent
    towards = {"rz": "rm" if x > 0 else "rp"}.get(mode, mode)
    whole = {"rn": round, "rm": lambda v: v.__floor__(), "rp": lambda v: v.__ceil__()}[towards](scaled)
    result = whole * Fraction(2) ** exponent
    sign = 1.0 if x > 0 else -1.0
    if abs(result) > Fraction(form.largest):
        return sign * (form.largest if mode == "rz" or ((mode == "rm") == (x > 0) and mode != "rn") else float("inf"))
    return sign * abs(float(result))


def _floor_log2(x: Fraction) -> int:
    guess = x.numerator.bit_length() - x.denominator.bit_length()
    return guess if Fraction(2) ** guess <= x else guess - 1
