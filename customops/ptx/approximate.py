"""Model the approximate instructions: ex2, lg2, rcp, rsqrt, sqrt, sin, cos, tanh and div with .approx or .full.

The ISA states the largest error of each and leaves the rest to the chip. The model here computes in float64, moves the
result by a share of that error which is a hash of the operands' bits (of either sign, up to all of it), and rounds to
the format; the error never exceeds what the ISA allows, and comes close to it. So a kernel that is right only because
a chip is better than documented shows it. The same operands always give the same result.

Exact are the special values of the ISA's tables, results that are zero or a power of two (ex2 of integers, rcp of
powers of two, roots of powers of four, a quotient of equal numbers), lg2 of powers of two, and tanh of subnormal
numbers. sin, cos and tanh stay within [-1, 1], and only results whose error is absolute change their sign.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .floating import chain, floating, flush_values, prepare, scalar
from .formats import DECODE, ENCODE, FORMATS, Array, Function, flush
from .registry import Opcode, Operation, instruction
from .rounding import round_to, spacing

MANTISSA = np.int64((1 << 52) - 1)


class Model(NamedTuple):
    """How one approximate instruction is computed."""

    compute: Function  # float64 sources to the float64 result
    slack: Function  # takes the result in units, the unit and the sources; returns how far it may move before rounding
    absolute: bool = False  # whether the bound is absolute: the error may change the sign


def _ulps(count: float) -> Function:
    """Return the slack for an error of `count` units: half a unit less, which the rounding takes."""
    return lambda t, unit, *sources: np.minimum(np.abs(t), count - 0.5)


def _ulps_of_nearest(count: float) -> Function:
    """Return the slack for `count` units from the correctly rounded result, a whole number."""
    return lambda t, unit, *sources: np.minimum(np.abs(t), count)


def _relative(bound: float) -> Function:
    """Return the slack for a relative error."""
    return lambda t, unit, *sources: np.maximum(np.abs(t) * bound - 0.5, 0.0)


def _absolute(bound: float) -> Function:
    """Return the slack for an absolute error."""
    return lambda t, unit, *sources: np.maximum(bound / unit - 0.5, 0.0)


def _log_slack(t: Array, unit: Array, x: Array) -> Array:
    """Return the slack for 2**-22, absolute in (0.5, 2) and relative elsewhere."""
    bound = np.where((x > 0.5) & (x < 2), 1.0 / unit, np.abs(t)) * 2.0**-22
    power = (x.view(np.int64) & MANTISSA) == 0  # of two: exact
    return np.where(power, 0.0, np.maximum(bound - 0.5, 0.0))


def _angle_slack(t: Array, unit: Array, x: Array) -> Array:
    """Return the slack for 2**-20.5 within two pi, and 2**-14.7 beyond; past 100 pi the ISA promises nothing."""
    bound = np.where(np.abs(x) <= 2 * np.pi, 2.0**-20.5, 2.0**-14.7)
    return np.maximum(bound / unit - 0.5, 0.0)


def _div_approx(a: Array, b: Array) -> Array:
    """Return a / b as by a reciprocal, which is zero for the largest divisors: the result is 0, or nan for infinity."""
    huge = (np.abs(b) > 2.0**126) & np.isfinite(b)
    return np.where(huge, a * np.copysign(0.0, b), a / b)


# The largest errors as the notes under each instruction state them: PTX ISA, 9.7.3 for f32 and 9.7.4 for f16 and bf16.
MODELS: dict[tuple[str, str], Model] = {
    ("rcp", "f32"): Model(lambda a: 1.0 / a, _ulps(1)),  # 1 ulp
    ("sqrt", "f32"): Model(np.sqrt, _relative(2.0**-23)),  # relative, 2**-23
    ("rsqrt", "f32"): Model(lambda a: 1.0 / np.sqrt(a), _relative(2.0**-22.9)),  # relative, 2**-22.9
    ("div.full", "f32"): Model(lambda a, b: a / b, _ulps(2)),  # 2 ulp
    ("div.approx", "f32"): Model(_div_approx, _ulps(2)),  # 2 ulp where 2**-126 <= |b| <= 2**126
    ("ex2", "f32"): Model(np.exp2, _ulps_of_nearest(2)),  # 2 ulp from the correctly rounded result
    ("lg2", "f32"): Model(np.log2, _log_slack, absolute=True),  # 2**-22: absolute in (0.5, 2), else relative
    ("sin", "f32"): Model(np.sin, _angle_slack, absolute=True),  # 2**-20.5 in [-2 pi, 2 pi], 2**-14.7 in 100 pi
    ("cos", "f32"): Model(np.cos, _angle_slack, absolute=True),  # as sin
    ("tanh", "f32"): Model(np.tanh, _relative(2.0**-11)),  # relative, 2**-11
    ("tanh", "f16"): Model(np.tanh, _absolute(2.0**-10.987), absolute=True),  # absolute, 2**-10.987
    ("tanh", "bf16"): Model(np.tanh, _absolute(2.0**-8), absolute=True),  # absolute, 2**-8
    ("ex2", "f16"): Model(np.exp2, _relative(2.0**-9.9)),  # relative, 2**-9.9
    ("ex2", "bf16"): Model(np.exp2, _relative(2.0**-7)),  # relative, 2**-7
}
BOUNDED_BY_ONE = ("sin", "cos", "tanh")


def noise(*sources: Array) -> Array:
    """Return numbers in [-1, 1) that look random, a hash of the bits of the sources (the lower 32 of each)."""
    mixed = np.uint32(0x7F4A7C15)
    for source in sources:
        mixed = (mixed ^ source.view(f"u{source.dtype.itemsize}")) * np.uint32(0x9E3779B1)
        mixed = mixed ^ (mixed >> np.uint32(15))
    mixed = mixed * np.uint32(0x2C1B3C6D)
    mixed = mixed ^ (mixed >> np.uint32(16))
    return mixed.view(np.int32) * 2.0**-31


def displaced(model: Model, kind: str, *sources: Array) -> Array:
    """Return the model's value for float32 sources, as float64 that the format represents."""
    form = FORMATS[kind]
    wide = tuple(source.astype(np.float64) for source in sources)
    v = model.compute(*wide)
    unit = spacing(v, form)
    t = v / unit
    moved = np.rint(t + noise(*sources) * model.slack(t, unit, *wide))
    if not model.absolute:  # not beyond the next power of two, where the unit doubles
        top = 2.0**form.precision
        moved = np.minimum(np.maximum(moved, -top), top)
    moved = moved * unit
    result = np.where((v.view(np.int64) & MANTISSA) == 0, v, moved)
    if (unit > form.largest * 2.0**-form.precision).any():  # the last power of two, infinity or nan
        result = overflow(result, v, kind)
    return round_to(result, kind, "rz") if model.absolute else result


def overflow(result: Array, v: Array, kind: str) -> Array:
    """Return `result` with infinity exactly where `v`, rounded to nearest, is infinite."""
    form = FORMATS[kind]
    limit = form.largest * (1 + 0.5 / (2**form.precision - 1))  # half a unit above the largest number
    bounded = np.minimum(np.maximum(result, -form.largest), form.largest)
    return np.where(np.abs(v) >= limit, np.copysign(np.inf, v), bounded)


def approximation(opcode: Opcode, name: str, arity: int) -> Operation:
    """Return the operation of a model."""
    kind = scalar(opcode)
    model = MODELS[name, kind]

    def compute(*sources: Array) -> Array:
        result = displaced(model, kind, *sources)
        if name in BOUNDED_BY_ONE:
            result = np.minimum(np.maximum(result, -1.0), 1.0)
        if name == "tanh":
            result = np.where(np.abs(sources[0]) < 2.0 ** FORMATS[kind].emin, sources[0], result)
        return result

    flushed = flush(kind) if "ftz" in opcode.modifiers else None
    return floating(opcode, arity, chain(prepare(compute, DECODE.get(kind), flushed), flushed, ENCODE[kind]))


@instruction("rcp sqrt rsqrt sin cos lg2 ex2 tanh", ("f16", "bf16", "f16x2", "bf16x2", "f32"), "approx ftz")
def unary(opcode: Opcode) -> Operation:
    """Build an approximation with one source."""
    return approximation(opcode, opcode.name, 1)


@instruction("div", ("f32",), "approx full ftz")
def quotient(opcode: Opcode) -> Operation:
    """Build an approximate quotient."""
    return approximation(opcode, "div." + opcode.choose(("approx", "full")), 2)


GROSS_NAN = np.uint64(0x7FFFFFFF00000000).view(np.float64)
GROSS: dict[str, Function] = {"rcp": lambda a: 1.0 / a, "rsqrt": lambda a: 1.0 / np.sqrt(a)}


@instruction("rcp rsqrt", ("f64",), "approx ftz")
def gross(opcode: Opcode) -> Operation:
    """Build the approximation in float64.

    With .ftz, which only looks at and only sets the upper 32 bits, the ISA calls it gross and states no bound; the
    model is within one unit of the 20 mantissa bits. `rsqrt.approx.f64` has none either: here it has two roundings.
    """
    compute = GROSS[opcode.name]
    if "ftz" not in opcode.modifiers:
        if opcode.name == "rcp":
            raise KeyError("rcp.approx.f64")
        return floating(opcode, 1, compute)
    flushed, half, low = flush_values("f64"), np.int64(1 << 31), np.int64(32)

    def function(a: Array) -> Array:
        word = (a.view(np.int64) >> low) << low
        v = flushed(compute(flushed(word.view(np.float64))))
        bits = v.view(np.int64)
        share = noise((word >> low).astype(np.uint32))
        moved = ((bits + half + (share * 2.0**31).astype(np.int64)) >> low) << low
        exact = ((bits & MANTISSA) == 0) | ~np.isfinite(v)
        return np.where(np.isnan(v), GROSS_NAN, flushed(np.where(exact, bits, moved).view(np.float64)))

    return floating(opcode, 1, function)
