"""Convert between integers, floating-point formats and packed pairs of them: the instruction cvt."""

from __future__ import annotations

import numpy as np

from .floating import chain, flush_values, prepare
from .formats import (
    DECODE,
    DTYPES,
    ENCODE,
    FLOATS,
    INTEGERS,
    MODES,
    NAN32,
    PACKED,
    Array,
    Function,
    canonical,
    nearest_bf16,
    nearest_f16,
    packed,
    parts,
    relu,
    saturate,
    width,
)
from .registry import Opcode, Operation, instruction
from .rounding import directed, odd, round_to, two_sum

WHOLE = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
SMALL = ("e4m3x2", "e5m2x2")
NUMBERS = (*INTEGERS, *FLOATS)
MODIFIERS = " ".join((*MODES, "rna", *WHOLE, "ftz", "sat", "relu", "satfinite"))


@instruction("cvt", (*NUMBERS, "tf32", "f16x2", "bf16x2", *SMALL), MODIFIERS, types_count=2)
def cvt(opcode: Opcode) -> Operation:
    """Build a conversion."""
    result, source = opcode.types
    if result in PACKED and source == "f32":
        return Operation(pair(opcode, PACKED[result]), ("f32", "f32"), (result,))
    if result in SMALL or source in SMALL:
        return small(opcode)
    if result in PACKED or source in PACKED:
        raise KeyError(f"cvt.{result}.{source}")
    if source in INTEGERS:
        function = integer_to_integer(opcode) if result in INTEGERS else integer_to_float(opcode)
    else:
        function = float_to_integer(opcode) if result in INTEGERS else float_to_float(opcode)
    return Operation(function, (source,), (result,))


def integer_to_integer(opcode: Opcode) -> Function:
    """Return the conversion that keeps the lowest bits or extends the sign; with .sat it clamps."""
    result, source = (np.dtype(DTYPES[kind]) for kind in opcode.types)
    if "sat" not in opcode.modifiers:
        return lambda a: a.astype(result)
    have, want = np.iinfo(source), np.iinfo(result)
    low, high = source.type(max(have.min, want.min)), source.type(min(have.max, want.max))
    return lambda a: np.clip(a, low, high).astype(result)


def exact_float64(a: Array) -> tuple[Array, Array]:
    """Return integers as float64, and what is missing."""
    if a.dtype.itemsize < 8:
        return a.astype(np.float64), np.float64(0)
    return two_sum(
        (a >> a.dtype.type(32)).astype(np.float64) * 2.0**32, (a & a.dtype.type(0xFFFFFFFF)).astype(np.float64)
    )


def integer_to_float(opcode: Opcode) -> Function:
    """Return the conversion with one rounding; NumPy has it for float32 and float64 to nearest."""
    kind = opcode.types[0]
    mode, clamp = opcode.choose(MODES, "rn"), saturate if "sat" in opcode.modifiers else None
    if mode == "rn" and kind in ("f32", "f64"):
        dtype = DTYPES[kind]
        return chain(lambda a: a.astype(dtype), clamp)
    if kind == "f64":
        return chain(lambda a: directed(*exact_float64(a), mode), clamp)
    return chain(lambda a: round_to(odd(*exact_float64(a)), kind, mode), clamp, ENCODE[kind])


def float_to_integer(opcode: Opcode) -> Function:
    """Return the conversion, which clamps to the range of the integer.

    The ISA's value for nan is zero, but the highest bit alone where the source is f64 or the result has 64 bits.
    """
    result, source = opcode.types
    dtype, bits = DTYPES[result], width(result)
    limits = np.iinfo(dtype)
    low, high = float(limits.min), float(limits.max)  # of 64 bits: the power of two above
    nan = np.uint64(1 << (bits - 1) if source == "f64" or bits == 64 else 0).astype(dtype)
    whole = WHOLE[opcode.choose(WHOLE)]

    def function(a: Array) -> Array:
        value = whole(a.astype(np.float64))
        inside = np.clip(value, low, high)
        clamped = inside.astype(dtype) if bits < 64 else np.where(inside < high, inside.astype(dtype), limits.max)
        return np.where(np.isnan(value), nan, clamped).astype(dtype)

    flushed = flush_values(source) if "ftz" in opcode.modifiers else None
    return prepare(function, flushed, DECODE.get(source))


def narrow(kind: str, source: str, mode: str, finite: bool) -> Function | None:
    """Return the function from float32 (float64 for f64) values to registers of a format, with one rounding."""
    if kind == source and not finite:
        return {"f32": canonical, "f64": None}.get(kind, ENCODE[kind])
    if kind == "f64":
        return lambda a: a.astype(np.float64)
    if kind == "f32" and source != "f64":
        return canonical
    if mode == "rn" and not finite:
        quick = {"f32": lambda a: canonical(a.astype(np.float32)), "f16": nearest_f16}
        if kind in quick:
            return quick[kind]
        if source != "f64":
            return nearest_bf16
    encode = ENCODE[kind]
    return lambda a: encode(round_to(a.astype(np.float64), kind, mode, finite))


def float_to_float(opcode: Opcode) -> Function:
    """Return the conversion between formats, or the rounding to an integer inside one."""
    result, source = opcode.types
    if result == "tf32":
        return to_tf32(opcode)
    mode, finite = opcode.choose(MODES, "rn"), "satfinite" in opcode.modifiers
    whole = WHOLE.get(opcode.choose(WHOLE))
    clamp = {"sat": saturate, "relu": relu}.get(opcode.choose(("sat", "relu")))
    ftz = "ftz" in opcode.modifiers
    before = flush_values(source) if ftz and source == "f32" else None
    after = flush_values(result) if ftz and result == "f32" else None
    return chain(
        prepare(whole or _same, before, DECODE.get(source)), clamp, narrow(result, source, mode, finite), after
    )


def _same(a: Array) -> Array:
    return a


def to_tf32(opcode: Opcode) -> Function:
    """Return the conversion of float32 to TF32: a float32 whose 13 lowest bits are zero."""
    mode, finite = opcode.choose((*MODES, "rna")), "satfinite" in opcode.modifiers
    clamp = relu if "relu" in opcode.modifiers else None

    def function(a: Array) -> Array:
        rounded = round_to(a.astype(np.float64), "tf32", mode, finite).astype(np.float32)
        return np.where(np.isnan(a), NAN32, rounded).view(np.uint32)

    return prepare(function, clamp)


def pair(opcode: Opcode, kind: str) -> Function:
    """Return the conversion of two float32 to packed halves: the first source is the upper half."""
    clamp = relu if "relu" in opcode.modifiers else None
    mode, finite = opcode.choose(MODES, "rn"), "satfinite" in opcode.modifiers
    one = chain(clamp, narrow(kind, "f32", mode, finite))

    def function(high: Array, low: Array) -> Array:
        upper, lower = one(high).view(np.uint16), one(low).view(np.uint16)
        return upper.astype(np.uint32) << np.uint32(16) | lower

    return function


def _values(kind: str) -> Array:
    """Return the numbers that the codes 0 to 255 of an 8-bit format stand for."""
    mantissa_bits, bias = (3, 7) if kind == "e4m3" else (2, 15)
    codes = np.arange(128)
    exponent, mantissa = codes >> mantissa_bits, codes & ((1 << mantissa_bits) - 1)
    fraction = mantissa / (1 << mantissa_bits) + (exponent > 0)
    values = np.ldexp(fraction, np.maximum(exponent, 1) - bias)
    values = np.where(codes == 127, np.nan, values)
    if kind == "e5m2":
        values = np.where(codes >= 124, np.where(codes == 124, np.inf, np.nan), values)
    return np.concatenate([values, -values])


VALUES = {kind: _values(kind) for kind in ("e4m3", "e5m2")}
FINITE = {"e4m3": 127, "e5m2": 124}  # codes of numbers that are not negative


def to_code(kind: str, mode: str, finite: bool) -> Function:
    """Return the function from float32 values to the codes of an 8-bit format."""
    numbers = VALUES[kind][: FINITE[kind]]

    def function(a: Array) -> Array:
        r = round_to(a.astype(np.float64), kind, mode, finite)
        code = np.searchsorted(numbers, np.abs(r)).astype(np.uint8)  # infinity has the code after the numbers
        code = code | (np.signbit(r).astype(np.uint8) << np.uint8(7))
        return np.where(np.isnan(r), np.uint8(0x7F), code)

    return function


def small(opcode: Opcode) -> Operation:
    """Build a conversion to or from a packed pair of 8-bit numbers."""
    result, source = opcode.types
    clamp = relu if "relu" in opcode.modifiers else None
    if result in SMALL:
        one = chain(clamp, to_code(result[:-2], "rn", "satfinite" in opcode.modifiers))
        if source == "f32":
            return Operation(
                lambda high, low: one(high).astype(np.uint16) << np.uint16(8) | one(low), (source,) * 2, (result,)
            )
        kind = PACKED[source]
        wide = prepare(one, DECODE[kind])
        return Operation(lambda a: packed(wide(parts(a, DTYPES[kind])), np.uint16), (source,), (result,))
    if result != "f16x2":
        raise KeyError(f"cvt.{result}.{source}")
    values = VALUES[source[:-2]].astype(np.float32)
    expand = chain(lambda code: values[code], clamp, nearest_f16)

    def function(a: Array) -> Array:
        return packed(expand(parts(a, np.uint8)), np.uint32)

    return Operation(function, (source,), (result,))
