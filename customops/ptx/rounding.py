"""Round exact results once: to every format, in every rounding mode of PTX.

An exact result is a pair ``(value, error)`` of float64 arrays: `value` is the result rounded to nearest even, `error`
has the sign of what is missing (zero where `value` is exact). From it follow

- float64 and float32 in a directed mode: `value`, or its neighbour towards the error (`directed`);
- a shorter format in any mode: `value` rounded to odd (`odd`), which keeps "there is more" in its last bit, and then to
  the format (`round_to`). Boldo and Melquiond, "When double rounding is odd" (2005), prove that nothing is lost while
  the format has at least two bits less than float64.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor, inf

import numpy as np

from .formats import FORMATS, Array, Format, Function

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
    """Return an exact result rounded to odd: if it is not exact, the neighbour whose last bit is 1.

    `value` can be float32 as well, and then zero of the sign of an error that float32 cannot tell from it.
    """
    integer = np.dtype(f"i{value.dtype.itemsize}").type
    bits = value.view(integer)
    step = np.where((error > 0) != np.signbit(value), integer(1), integer(-1))
    inexact = (error != 0) & ~np.isnan(error) & ((bits & integer(1)) == 0)
    return np.where(inexact, bits + step, bits).view(value.dtype)


def directed(value: Array, error: Array, mode: str, dtype: type = np.float64) -> Array:
    """Return an exact result as float64 or float32, rounded towards zero (rz), downwards (rm) or upwards (rp)."""
    r = value.astype(dtype)
    wide = r.astype(np.float64)
    same = wide == value
    above = (wide > value) | (same & (error < 0))  # r is above the exact result
    below = (wide < value) | (same & (error > 0))
    if mode == "rz":
        inwards = np.where(r > 0, above, below)
        return np.where(inwards, np.nextafter(r, dtype(0)), r)
    if mode == "rm":
        return np.where(above, np.nextafter(r, dtype(-np.inf)), r)
    return np.where(below, np.nextafter(r, dtype(np.inf)), r)


def spacing(x: Array, form: Format) -> Array:
    """Return the distance of neighbours in the format around float64 `x`."""
    bits = (x.view(np.int64) & EXPONENT) - np.int64((form.precision - 1) << 52)
    return np.maximum(bits, np.int64((1024 + form.emin - form.precision) << 52)).view(np.float64)


def _away(x: Array) -> Array:
    """Return `x` rounded to an integer, ties away from zero."""
    whole = np.trunc(x)
    return whole + np.where(np.abs(x - whole) >= 0.5, np.copysign(1.0, x), 0.0)


TO_INTEGER: dict[str, Function] = {"rn": np.rint, "rz": np.trunc, "rm": np.floor, "rp": np.ceil, "rna": _away}


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


def round_fraction(x: Fraction, mode: str) -> float:
    """Return a nonzero fraction rounded to float64, for operands that floating point cannot split exactly."""
    form = FORMATS["f64"]
    unit = Fraction(2) ** (max(_floor_log2(abs(x)), form.emin) - form.precision + 1)
    if mode == "rz":
        mode = "rm" if x > 0 else "rp"
    scaled, sign = x / unit, 1.0 if x > 0 else -1.0
    whole = round(scaled) if mode == "rn" else floor(scaled) if mode == "rm" else ceil(scaled)
    if abs(whole * unit) <= Fraction(form.largest):
        return sign * float(abs(whole) * unit)
    inwards = mode == ("rm" if x > 0 else "rp")
    return sign * (form.largest if inwards else inf)


def _floor_log2(x: Fraction) -> int:
    guess = x.numerator.bit_length() - x.denominator.bit_length()
    return guess if Fraction(2) ** guess <= x else guess - 1
