"""Model the approximate instructions: ex2, lg2, rcp, rsqrt, sqrt, sin, cos, tanh and div with .approx or .full.

The ISA states the largest error of each and leaves the rest to the chip. The model here computes in float64, moves the
result by a share of that error which is a hash of the operands' bits (of either sign, up to all of it), and rounds to
the format; the error never exceeds what the ISA allows, and comes close to it. So a kernel that is right only because
a chip is better than documented shows it. Same operands give the same result.

Exact are the special values of the ISA's tables, results that are zero or a power of two (ex2 of integers, rcp of
powers of two, roots of powers of four, a quotient of equal numbers), and tanh of subnormal numbers. sin, cos and tanh
stay within [-1, 1], and no result but those of sin, cos and lg2 changes its sign.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .floating import chain, floating, flush_values, prepare, scalar
from .formats import DECODE, ENCODE, FORMATS, Array, Function
from .registry import Opcode, Operation, instruction
from .rounding import round_to, spacing

MANTISSA = np.int64((1 << 52) - 1)
ANGLE_NEAR, ANGLE_FAR = 2.0**-20.5, 2.0**-14.7


class Model(NamedTuple):
    """How one approximate instruction is computed."""

    compute: Function  # float64 sources to the float64 result
    bound: Function  # takes the result, its unit in the last place and the sources; returns the largest absolute error
    signed: bool = False  # whether the error may change the sign of the result
    limit: float = np.inf  # largest magnitude of a result


def ulps(count: float) -> Function:
    """Return the bound of `count` units in the last place."""
    return lambda v, unit, *sources: count * unit


def relative(bound: float) -> Function:
    """Return the bound of a relative error."""
    return lambda v, unit, *sources: np.abs(v) * bound


def absolute(bound: float) -> Function:
    """Return the bound of an absolute error."""
    return lambda v, unit, *sources: np.full_like(v, bound)


def _log_bound(v: Array, unit: Array, x: Array) -> Array:
    """Return 2**-22, absolute in (0.5, 2) and relative elsewhere."""
    return np.where((x > 0.5) & (x < 2), 1.0, np.abs(v)) * 2.0**-22


def _angle_bound(v: Array, unit: Array, x: Array) -> Array:
    """Return 2**-20.5 for angles within two pi, 2**-14.7 beyond; past 100 pi the ISA promises nothing."""
    return np.where(np.abs(x) <= 2 * np.pi, ANGLE_NEAR, ANGLE_FAR)


def _div_approx(a: Array, b: Array) -> Array:
    """Return a / b as by a reciprocal, which is zero for the largest divisors: 0, or nan for infinity."""
    huge = (np.abs(b) > 2.0**126) & np.isfinite(b)
    return np.where(huge, a * np.copysign(0.0, b), a / b)


# Bounds as in the PTX ISA 8.7, sections 9.7.3 (f32) and 9.7.4 (f16 and bf16), under each instruction's notes.
# ex2.f32: 2 ulp from the correctly rounded result, hence 1.5 ulp from the exact one here at least, 2.5 at most.
MODELS: dict[tuple[str, str], Model] = {
    ("rcp", "f32"): Model(lambda a: 1.0 / a, ulps(1)),
    ("sqrt", "f32"): Model(np.sqrt, relative(2.0**-23)),
    ("rsqrt", "f32"): Model(lambda a: 1.0 / np.sqrt(a), relative(2.0**-22.9)),
    ("div.full", "f32"): Model(lambda a, b: a / b, ulps(2)),
    ("div.approx", "f32"): Model(_div_approx, ulps(2)),
    ("ex2", "f32"): Model(np.exp2, ulps(2)),
    ("lg2", "f32"): Model(np.log2, _log_bound, signed=True),
    ("sin", "f32"): Model(np.sin, _angle_bound, signed=True, limit=1.0),
    ("cos", "f32"): Model(np.cos, _angle_bound, signed=True, limit=1.0),
    ("tanh", "f32"): Model(np.tanh, relative(2.0**-11), limit=1.0),
    ("tanh", "f16"): Model(np.tanh, absolute(2.0**-10.987), limit=1.0),
    ("tanh", "bf16"): Model(np.tanh, absolute(2.0**-8), limit=1.0),
    ("ex2", "f16"): Model(np.exp2, relative(2.0**-9.9)),
    ("ex2", "bf16"): Model(np.exp2, relative(2.0**-7)),
}
MULTIPLIERS = (np.uint32(0x9E3779B1), np.uint32(0x85EBCA6B), np.uint32(0x2C1B3C6D))


def noise(*sources: Array) -> Array:
    """Return numbers in [-1, 1) that depend on all bits of the sources, of up to 32 bits each, and look random."""
    mixed = np.uint32(0x7F4A7C15)
    for source in sources:
        bits = source.view(f"u{source.dtype.itemsize}").astype(np.uint32)
        mixed = (mixed ^ bits) * MULTIPLIERS[0]
        mixed = (mixed ^ (mixed >> np.uint32(15))) * MULTIPLIERS[2]
    mixed = (mixed ^ (mixed >> np.uint32(13))) * MULTIPLIERS[1]
    mixed = mixed ^ (mixed >> np.uint32(16))
    return mixed.astype(np.float64) * 2.0**-31 - 1.0


def displaced(model: Model, kind: str, *sources: Array) -> Array:
    """Return the model's value, as float64 that the format represents."""
    form = FORMATS[kind]
    wide = tuple(source.astype(np.float64) for source in sources)
    v = model.compute(*wide)
    unit = spacing(v, form)
    slack = np.maximum(model.bound(v, unit, *wide) / unit - 0.5, 0.0)
    moved = np.rint(v / unit + noise(*sources) * slack) * unit
    if not model.signed:
        moved = np.where(moved * v < 0, 0.0, np.abs(moved))
        moved = np.copysign(moved, v)
    simple = (v.view(np.int64) & MANTISSA) == 0
    moved = np.where(simple, v, np.clip(moved, -model.limit, model.limit))
    overflow = np.abs(v) >= form.largest * (1 + 2.0**-form.precision / (2 - 2.0 ** (1 - form.precision)))
    return np.where(overflow, np.copysign(np.inf, v), round_to(moved, kind, "rz"))


def approximation(opcode: Opcode, name: str, arity: int) -> Operation:
    """Return the operation of a model."""
    kind = scalar(opcode)
    model = MODELS[name, kind]

    def compute(*sources: Array) -> Array:
        result = displaced(model, kind, *sources)
        if name == "tanh":
            result = np.where(np.abs(sources[0]) < 2.0 ** FORMATS[kind].emin, sources[0], result)
        return result

    ftz = "ftz" in opcode.modifiers
    before = chain(DECODE.get(kind, _same), FLUSH[kind] if ftz else None)
    after = FLUSH[kind] if ftz else None
    return floating(opcode, arity, chain(prepare(compute, before), after, ENCODE[kind]))


def _same(a: Array) -> Array:
    return a


def _flush_below(smallest: float) -> Function:
    return lambda x: np.where(np.abs(x) < smallest, x * x.dtype.type(0), x)


FLUSH = {kind: _flush_below(2.0 ** FORMATS[kind].emin) for kind in ("f16", "bf16", "f32")}


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
