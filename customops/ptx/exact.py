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
    """Return the square root of `a`."""
    s = np.sqrt(a)
    p, e = two_product(s, s)
    return s, np.where(np.isfinite(s) & (s > 0), (a - p) - e, 0.0)


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
    "fma": lambda a, b, c: np.where(
        np.isinf(c) & np.isfinite(a) & np.isfinite(b), c, a * b + c
    ),  # the product may overflow
}
SUMS: dict[str, Function] = {"add": lambda a, b: (a, b), "sub": lambda a, b: (a, -b), "fma": lambda a, b, c: (a * b, c)}


def minus_zero(name: str, result: Array, sources: tuple[Array, ...]) -> Array:
    """Return `result` with the sign of a sum that is zero when rounding downwards: -0 unless both terms are +0."""
    if name not in SUMS:
        return result
    x, y = SUMS[name](*sources)
    return np.where((result == 0) & (x + y == 0), (-(-x - y)).astype(result.dtype), result)


def exact_short_fma(a: Array, b: Array, c: Array) -> Exact:
    """Return ``a * b + c`` of numbers of up to 26 bits, whose product is exact."""
    return two_sum(a * b, c)


SHORT = EXACT | {"mul": lambda a, b: (a * b, np.float64(0)), "fma": exact_short_fma}


def short(name: str, kind: str, mode: str) -> Function:
    """Return the operation for float32 sources, rounded once to the format `kind`, as float64 (float32 for f32)."""
    operation = SHORT[name]

    def function(*sources: Array) -> Array:
        wide = tuple(source.astype(np.float64) for source in sources)
        exact = operation(*wide)
        if kind == "f32" and mode != "rn":
            result = directed(*exact, mode, np.float32)
        else:
            result = round_to(odd(*exact), kind, mode)
        return minus_zero(name, result, wide) if mode == "rm" else result

    return function


def is_tie(x: Array, kind: str) -> bool:
    """Return whether float32 numbers may lie half way between two of the format f16 or bf16.

    A result rounded to float32, and then to the format, is right wherever the first rounding does not end there.
    """
    bits = x.view(np.uint32)
    if kind == "bf16":
        return bool(((bits & np.uint32(0xFFFF)) == np.uint32(0x8000)).any())
    subnormal = (bits << np.uint32(1)) - np.uint32(1) < np.uint32(0x71000000)  # below 2**-14, and not zero
    return bool((((bits & np.uint32(0x1FFF)) == np.uint32(0x1000)) | subnormal).any())


def half_fma(kind: str) -> Function:
    """Return ``a * b + c`` of f16 or bf16 numbers in float32, as float32 from which rounding to nearest is right."""

    def function(a: Array, b: Array, c: Array) -> Array:
        product = a.astype(np.float64) * b
        s = product + c
        r = s.astype(np.float32)
        if not is_tie(r, kind):
            return r
        missing = s - r
        return odd(r, np.where(missing != 0, missing, two_sum(product, c.astype(np.float64))[1]))

    return function


def fma32(a: Array, b: Array, c: Array) -> Array:
    """Return ``a * b + c`` of float32 rounded to nearest even once.

    The product is exact in float64. Its sum with `c` is not, but rounding that to float32 goes wrong only where the sum
    lies half way between two float32, or where float32 is subnormal; only then the exact way is taken.
    """
    s = a.astype(np.float64) * b + c
    bits = s.view(np.uint64)
    doubtful = ((bits & TAIL) == TIE) | ((bits << ONE) - ONE < SUBNORMAL)
    if doubtful.any():
        return short("fma", "f32", "rn")(a, b, c).astype(np.float32)
    return s.astype(np.float32)


def double(name: str, mode: str) -> Function:
    """Return the operation for float64 sources in rounding mode `mode`."""
    operation = EXACT[name]

    def function(*sources: Array) -> Array:
        value, error = operation(*sources)
        result = value if mode == "rn" else directed(value, error, mode)
        if mode == "rm":
            result = minus_zero(name, result, sources)
        unusual = ~usual(sources[0])
        for source in sources[1:]:
            unusual = unusual | ~usual(source)
        return by_lane(name, mode, sources, unusual, result) if unusual.any() else result

    return function


def usual(x: Array) -> Array:
    """Return whether numbers are zero, or so far from both ends of the range that no error over- or underflows."""
    magnitude = np.abs(x)
    return (magnitude < 2.0**400) & ((magnitude > 2.0**-400) | (magnitude == 0))


def by_lane(name: str, mode: str, sources: tuple[Array, ...], lanes: Array, result: Array) -> Array:
    """Return `result` with some lanes recomputed with fractions; or by NumPy where they are not finite, or zero."""
    plain = NATIVE[name](*sources)
    if mode == "rm":
        plain = minus_zero(name, plain, sources)
    result, plain, lanes, *operands = (np.atleast_1d(x) for x in np.broadcast_arrays(result, plain, lanes, *sources))
    result = np.where(lanes, plain, result)
    defined = lanes & np.isfinite(operands).all(axis=0)
    if name in ("div", "rcp"):
        defined &= operands[-1] != 0
    if name == "sqrt":
        return np.where(defined & (operands[0] > 0), _scaled_root(operands[0], mode), result)
    for lane in np.argwhere(defined):
        at = tuple(lane)
        value = FRACTIONS[name](*(Fraction(float(source[at])) for source in operands))
        if value:
            result[at] = round_fraction(value, mode)
    return result


def _scaled_root(a: Array, mode: str) -> Array:
    """Return the square root of numbers near the ends of the range, scaled by a power of four."""
    scale = np.where(a < 1, 2.0**300, 2.0**-300)
    return directed(*exact_sqrt(a * scale * scale), mode) / scale
