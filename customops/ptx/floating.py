"""Compute floating-point arithmetic: correctly rounded operations, minimum and maximum, sign and class."""

from __future__ import annotations

from functools import reduce

import numpy as np

from .exact import NATIVE, double, fma32, half_fma, short
from .formats import (
    DECODE,
    ENCODE,
    FLOATS,
    MODES,
    PACKED,
    Array,
    Function,
    canonical,
    flush,
    nearest_bf16,
    nearest_f16,
    on_parts,
    relu,
    saturate,
)
from .registry import Opcode, Operation, instruction

HALF: dict[str, Function] = {"f16": nearest_f16, "bf16": nearest_bf16}
ARITY = {"add": 2, "sub": 2, "mul": 2, "div": 2, "fma": 3, "mad": 3, "rcp": 1, "sqrt": 1}
HALVES = ("f16x2", "bf16x2")


def floating(opcode: Opcode, arity: int, function: Function) -> Operation:
    """Return the operation of a function on registers of the opcode's scalar type, which is lifted to packed pairs."""
    kind = opcode.types[0]
    lifted = on_parts(kind, function) if kind in PACKED else function
    return Operation(lifted, (kind,) * arity, (kind,))


def scalar(opcode: Opcode) -> str:
    """Return the type of one number of the opcode: f16 for f16x2."""
    return PACKED.get(opcode.types[0], opcode.types[0])


def chain(*steps: Function | None) -> Function:
    """Return the function that applies the steps, of which None is left out, one after the other."""
    first, *rest = [step for step in steps if step is not None]
    if not rest:
        return first
    if len(rest) == 1:
        second = rest[0]
        return lambda *sources: second(first(*sources))

    def function(*sources: Array) -> Array:
        result = first(*sources)
        for step in rest:
            result = step(result)
        return result

    return function


def each(step: Function) -> Function:
    """Return the function that applies `step` to every source."""
    return lambda *sources: tuple(step(source) for source in sources)


def spread(function: Function) -> Function:
    """Return `function` taking its arguments as one tuple."""
    return lambda sources: function(*sources)


def prepare(function: Function, *steps: Function | None) -> Function:
    """Return `function` with the steps applied to every source first."""
    wanted = [each(step) for step in steps if step is not None]
    if not wanted:
        return function
    first, *rest = wanted
    return chain(first, *(spread(step) for step in rest), spread(function))


def rounded(name: str, kind: str, mode: str) -> tuple[Function, Function | None]:
    """Return a correctly rounded operation on float32 (float64 for f64) sources, and what makes its result a register.

    The sum or product of two halves is rounded to float32 first. Float32 has more than twice the bits of a half; a sum
    that is subnormal is exact, and so is a product of bf16 that is not below half their smallest number.
    """
    if kind == "f64":
        return (NATIVE[name] if mode == "rn" and name != "fma" else double(name, mode)), None
    if kind in HALF:
        if mode != "rn" or name not in ("add", "sub", "mul", "fma"):
            raise KeyError(f"{name}.{mode}.{kind}")
        return (half_fma(kind) if name == "fma" else NATIVE[name]), HALF[kind]
    if mode == "rn" and kind == "f32":
        return (fma32 if name == "fma" else NATIVE[name]), canonical
    return short(name, kind, mode), canonical


@instruction("add sub mul fma mad div rcp sqrt", (*FLOATS, *HALVES, "f32x2"), "rn rz rm rp ftz sat relu")
def arithmetic(opcode: Opcode) -> Operation:
    """Build an operation with one rounding. `mad` is `fma` since sm_20."""
    name = "fma" if opcode.name == "mad" else opcode.name
    kind = scalar(opcode)
    compute, encode = rounded(name, kind, opcode.choose(MODES, "rn"))
    flushed = flush(kind) if "ftz" in opcode.modifiers else None
    clamp = {"sat": saturate, "relu": relu}.get(opcode.choose(("sat", "relu")))
    function = chain(prepare(compute, flushed and flush_values(kind), DECODE.get(kind)), clamp, encode, flushed)
    return floating(opcode, ARITY[name], function)


@instruction("add sub fma", ("f32",), "rn rz rm rp sat", types_count=2)
def mixed(opcode: Opcode) -> Operation:
    """Build an operation on float32 whose first source (for fma, the first two) is a half, widened before."""
    result, half = opcode.types
    inner = arithmetic(opcode._replace(types=(result,)))
    widen, count = DECODE[half], ARITY[opcode.name] - 1

    def function(*sources: Array) -> Array:
        return inner.function(*(widen(source) for source in sources[:count]), sources[-1])

    return Operation(function, (half,) * count + (result,), (result,))


def flush_values(kind: str) -> Function:
    """Return the function that flushes registers of f16, f32 or f64."""
    if kind == "bf16":
        raise KeyError("ftz.bf16")
    return flush(kind)


def smaller(a: Array, b: Array) -> Array:
    """Return the minimum of float32 or float64 numbers; -0 is less than +0, and a number is preferred to nan.

    NumPy's `fmin` returns nan for a signalling one.
    """
    word = f"u{a.dtype.itemsize}"
    both = (a.view(word) | b.view(word)).view(a.dtype)
    return np.where(a == b, both, np.where((a < b) | np.isnan(b), a, b))


def larger(a: Array, b: Array) -> Array:
    """Return the maximum, like `smaller`."""
    word = f"u{a.dtype.itemsize}"
    both = (a.view(word) & b.view(word)).view(a.dtype)
    return np.where(a == b, both, np.where((a > b) | np.isnan(b), a, b))


def strict(function: Function) -> Function:
    """Return `function` with nan where a source is nan."""
    return lambda a, b: np.where(np.isnan(a) | np.isnan(b), a.dtype.type(np.nan), function(a, b))


def signed_by_both(function: Function) -> Function:
    """Return `function` of magnitudes, with the sign bit set where exactly one source has it (.xorsign.abs)."""

    def extreme(a: Array, b: Array) -> Array:
        magnitude = function(np.abs(a), np.abs(b))
        sign = np.where(np.signbit(a) ^ np.signbit(b), a.dtype.type(-1), a.dtype.type(1))
        return np.where(np.isnan(magnitude), magnitude, np.copysign(magnitude, sign))

    return extreme


def of_several(function: Function) -> Function:
    """Return `function` of two sources for two or, as since sm_100, three."""
    return lambda *sources: reduce(function, sources)


@instruction("min max", (*FLOATS, *HALVES), "ftz NaN xorsign abs")
def extremes(opcode: Opcode) -> Operation:
    """Build a minimum or maximum. The function takes a third source as well; `sources` has the usual two."""
    kind = scalar(opcode)
    compute = smaller if opcode.name == "min" else larger
    if "NaN" in opcode.modifiers:
        compute = strict(compute)
    if "xorsign" in opcode.modifiers:
        compute = signed_by_both(compute)
    flushed = flush_values(kind) if "ftz" in opcode.modifiers else None
    encode = {"f32": canonical, "f64": None}.get(kind, ENCODE[kind])
    return floating(opcode, 2, chain(prepare(of_several(compute), flushed, DECODE.get(kind)), encode))


@instruction("neg abs", (*FLOATS, *HALVES), "ftz")
def signs(opcode: Opcode) -> Operation:
    """Build a negation or magnitude, which changes the sign bit of nan as well."""
    kind = scalar(opcode)
    compute: Function = np.negative if opcode.name == "neg" else np.abs
    if kind == "bf16":
        negate, mask = opcode.name == "neg", np.uint16(0x8000)
        compute = (lambda a: a ^ mask) if negate else (lambda a: a & ~mask)
    flushed = flush_values(kind) if "ftz" in opcode.modifiers else None
    return floating(opcode, 1, prepare(compute, flushed))


@instruction("copysign", ("f32", "f64"))
def copysign(opcode: Opcode) -> Operation:
    """Build the copy of the first source's sign to the second."""
    return floating(opcode, 2, lambda a, b: np.copysign(b, a))


CLASSES: dict[str, Function] = {
    "finite": np.isfinite,
    "infinite": np.isinf,
    "number": lambda a: ~np.isnan(a),
    "notanumber": np.isnan,
    "normal": lambda a: np.isfinite(a) & ((a == 0) | (np.abs(a) >= np.finfo(a.dtype).tiny)),
    "subnormal": lambda a: (a != 0) & (np.abs(a) < np.finfo(a.dtype).tiny),
}


@instruction("testp", ("f32", "f64"), " ".join(CLASSES))
def testp(opcode: Opcode) -> Operation:
    """Build the test for a class of numbers."""
    return Operation(CLASSES[opcode.modifiers[0]], opcode.types, ("pred",))
