"""Add, multiply, divide, take roots and fuse with one rounding, in any mode: the operations that NumPy lacks."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np

from .formats import Array, Function
from .rounding import directed, odd, round_fraction, round_to, two_product, two_sum

Exact = tuple[Array, Array]  # value and error, see `rounding`
TIE = np.uint64(1 << 28)  # the 29 bits that float64 has more than float32, half way between two float32
TAIL = np.uint64((1 << 29) - 1)
SUBNORMAL = np.uint64((1023 - 126) << 53)  # bits of 2**-126, shifted left by one
ONE = np.uint64(1)


def exact_add(a: Array, b: Array) -> Exact:
    """Return ``a + b``."""
    return two_sum(a, b)


def exact_sub(a: Array, b: Array) -> Exact:
    """Return ``a - b``."""
    return two_sum(a, -b)


def exact_mul(a: Array, b: Array) -> Exact:
    """Return ``a * b``."""
    return two_product(a, b)


def exact_div(a: Array, b: Array) -> Exact:
    """Return ``a / b``; the error has the sign of the remainder, seen through the divisor's."""
    q = a / b
    p, e = two_product(q, b)
    return q, np.where(np.isfinite(q) & np.isfinite(b), ((a - p) - e) * np.copysign(1.0, b), 0.0)


def exact_rcp(a: Array) -> Exact:
    """Return ``1 / a``."""
    return exact_div(np.ones_like(a), a)


def exact_sqrt(a: Array) -> Exact:
    """Return the square root of `a`; a small `a` is scaled by a power of four."""
    scale = np.where(a < 2.0**-800, 2.0**200, 1.0)
    scaled = a * scale * scale
    s = np.sqrt(scaled)
    p, e = two_product(s, s)
    return s / scale, np.where(np.isfinite(s) & (s > 0), (scaled - p) - e, 0.0)


def exact_fma(a: Array, b: Array, c: Array) -> Exact:
    """Return ``a * b + c`` (Boldo and Melquiond: the low parts are added with rounding to odd)."""
    p, p_low = two_product(a, b)
    t, t_low = two_sum(c, p_low)
    v, v_low = two_sum(p, t)
    low, lower = two_sum(t_low, v_low)
    r, error = two_sum(v, odd(low, lower))
    cancelled = r == 0
    return np.where(cancelled, p + c, r), np.where(cancelled, 0.0, np.where(error != 0, error, lower))


EXACT: dict[str, Callable[..., Exact]] = {
    "add": exact_add,
    "sub": exact_sub,
    "mul": exact_mul,
    "div": exact_div,
    "rcp": exact_rcp,
    "sqrt": exact_sqrt,
    "fma": exact_fma,
}
FRACTIONS: dict[str, Callable[..., Fraction]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "rcp": lambda a: 1 / a,
    "fma": lambda a, b, c: a * b + c,
}
NATIVE: dict[str, Function] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "rcp": lambda a: a.dtype.type(1) / a,
    "sqrt": np.sqrt,
    "fma": lambda a, b, c: a * b + c,
}
SUMS = {"add": (lambda a, b: (a, b)), "sub": (lambda a, b: (a, -b)), "fma": (lambda a, b, c: (a * b, c))}


def minus_zero(name: str, result: Array, sources: tuple[Array, ...]) -> Array:
    """Return `result` with the sign of a sum that is zero when rounding downwards: -0 unless both terms are +0."""
    if name not in SUMS:
        return result
    x, y = SUMS[name](*sources)
    return np.where((result == 0) & (x + y == 0), -(-x - y), result)


def short(name: str, kind: str, mode: str) -> Function:
    """Return the operation for float32 sources, rounded once to the format `kind`, as float64."""
    operation = EXACT[name]

    def function(*sources: Array) -> Array:
        wide = tuple(source.astype(np.float64) for source in sources)
        result = round_to(odd(*operation(*wide)), kind, mode)
        return minus_zero(name, result, wide) if mode == "rm" else result

    return function


def fma32(a: Array, b: Array, c: Array) -> Array:
    """Return ``a * b + c`` of float32 rounded to nearest even once.

    The product is exact in float64. Its sum with `c` is not, but rounding that to float32 goes wrong only where the sum
    lies half way between two float32, or where float32 is subnormal; only then the exact way is taken.
    """
    s = a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)
    bits = s.view(np.uint64)
    doubtful = ((bits & TAIL) == TIE) | ((bits << ONE) - ONE < SUBNORMAL)
    if doubtful.any():
        return short("fma", "f32", "rn")(a, b, c).astype(np.float32)
    return s.astype(np.float32)


def double(name: str, mode: str) -> Function:
    """Return the operation for float64 sources in rounding mode `mode`.

    Operands or results whose error could over- or underflow are computed lane by lane with fractions.
    """
    operation, native = EXACT[name], NATIVE[name]

    def function(*sources: Array) -> Array:
        sources = tuple(np.asarray(source) for source in np.broadcast_arrays(*sources))
        plain = native(*sources)
        result = directed(*operation(*sources), mode)
        finite = np.isfinite(sources[0])
        for source in sources[1:]:
            finite = finite & np.isfinite(source)
        result = np.where(finite & ~_undefined(name, sources), result, plain)
        if name != "sqrt":
            result = _extremes(name, mode, sources, finite, result)
        return minus_zero(name, result, sources) if mode == "rm" else result

    return function


def _undefined(name: str, sources: tuple[Array, ...]) -> Array:
    """Return where a quotient's divisor is zero, or a root's argument is not positive."""
    if name in ("div", "rcp"):
        return sources[-1] == 0
    return sources[0] <= 0 if name == "sqrt" else np.zeros(np.shape(sources[0]), bool)


def _extremes(name: str, mode: str, sources: tuple[Array, ...], finite: Array, result: Array) -> Array:
    """Return `result` with the lanes recomputed in which a product's error is not a float64 number."""
    risky = np.zeros(np.shape(result), bool)
    for source in sources:
        risky |= np.abs(source) > 2.0**980
    if name in ("mul", "fma"):
        product = np.abs(sources[0] * sources[1])
        factors = (sources[0] != 0) & (sources[1] != 0)
        risky |= (product > 2.0**980) | ((product < 2.0**-900) & factors)
    elif name in ("div", "rcp"):
        quotient = np.abs(NATIVE[name](*sources))
        factors = sources[0] != 0
        risky |= (quotient > 2.0**980) | ((quotient < 2.0**-900) & factors) | (np.abs(sources[-1]) < 2.0**-900)
        risky |= (np.abs(sources[0]) < 2.0**-900) & factors
        risky &= sources[-1] != 0
    risky &= finite
    if not risky.any():
        return result
    result = np.array(result)
    for lane in np.argwhere(risky):
        at = tuple(lane)
        value = FRACTIONS[name](*(Fraction(float(source[at])) for source in sources))
        result[at] = round_fraction(value, "f64", mode) if value else NATIVE[name](*(source[at] for source in sources))
    return result
