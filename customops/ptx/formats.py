"""Describe the PTX types: the NumPy type of a register, and the precision and range of each floating-point format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Array = Any  # an array or a NumPy scalar; one element per lane
Function = Callable[..., Any]

DTYPES: dict[str, Any] = {
    "pred": np.bool_,
    **{f"{kind}{bits}": getattr(np, f"uint{bits}") for kind in "ub" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": getattr(np, f"int{bits}") for bits in (8, 16, 32, 64)},
    "f16": np.float16,
    "bf16": np.uint16,
    "f32": np.float32,
    "f64": np.float64,
    **dict.fromkeys(("f16x2", "bf16x2", "u16x2", "s16x2", "tf32"), np.uint32),
    "f32x2": np.uint64,
    **dict.fromkeys(("e4m3x2", "e5m2x2"), np.uint16),
}
UNSIGNED = ("u8", "u16", "u32", "u64")
SIGNED = ("s8", "s16", "s32", "s64")
INTEGERS = UNSIGNED + SIGNED
BITS = ("b8", "b16", "b32", "b64")
FLOATS = ("f16", "bf16", "f32", "f64")
PACKED = {"f16x2": "f16", "bf16x2": "bf16", "f32x2": "f32", "u16x2": "u16", "s16x2": "s16"}
MODES = ("rn", "rz", "rm", "rp")


class Format(NamedTuple):
    """A binary floating-point format."""

    precision: int  # bits of the significand, the hidden one included
    emin: int  # exponent of the smallest normal number
    largest: float  # finite number


FORMATS = {
    "f16": Format(11, -14, 65504.0),
    "bf16": Format(8, -126, float.fromhex("0x1.fep127")),
    "tf32": Format(11, -126, float.fromhex("0x1.ffcp127")),
    "f32": Format(24, -126, float.fromhex("0x1.fffffep127")),
    "f64": Format(53, -1022, float.fromhex("0x1.fffffffffffffp1023")),
    "e4m3": Format(4, -6, 448.0),
    "e5m2": Format(3, -14, 57344.0),
}

NAN16 = np.uint16(0x7FFF)
NAN32 = np.uint32(0x7FFFFFFF).view(np.float32)
HALF_NAN = NAN16.view(np.float16)


def width(kind: str) -> int:
    """Return the number of bits of a register of this type."""
    return np.dtype(DTYPES[kind]).itemsize * 8


def has_nan(x: Array) -> bool:
    """Return whether an element is nan: the sum of squares is nan exactly then, and is the quickest test of all."""
    return bool(np.isnan(np.vdot(x, x)))


def canonical(x: Array) -> Array:
    """Return float32 `x` with 0x7fffffff for every nan."""
    return np.where(np.isnan(x), NAN32, x) if has_nan(x) else x


def widen_bf16(x: Array) -> Array:
    """Return the float32 value of bf16 bits."""
    return (x.astype(np.uint32) << np.uint32(16)).view(np.float32)


def bits_bf16(x: Array) -> Array:
    """Return the bf16 bits of float32 or float64 values that bf16 represents; nan gives 0x7fff."""
    bits = (x.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(x), NAN16, bits) if has_nan(x) else bits


def nearest_bf16(x: Array) -> Array:
    """Return the bf16 bits of float32 `x`, rounded to nearest even; nan gives 0x7fff."""
    bits = x.view(np.uint32)
    rounded = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    result = (rounded >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(x), NAN16, result) if has_nan(x) else result


def nearest_f16(x: Array) -> Array:
    """Return float32 or float64 `x` as float16, rounded to nearest even; nan gives 0x7fff."""
    result = x.astype(np.float16)
    return np.where(np.isnan(x), HALF_NAN, result) if has_nan(x) else result


def widen_f16(x: Array) -> Array:
    """Return the float32 value of float16 `x`."""
    return x.astype(np.float32)


DECODE: dict[str, Function] = {"f16": widen_f16, "bf16": widen_bf16}  # to float32; float32 and float64 are as they are
ENCODE: dict[str, Function] = {  # from float64 values that the format represents
    "f16": nearest_f16,
    "bf16": bits_bf16,
    "f32": lambda x: canonical(x.astype(np.float32)),
    "f64": lambda x: x,
}


def parts(x: Array, dtype: Any) -> Array:
    """Return the numbers packed in words: one row per lane, the lowest first."""
    return np.ascontiguousarray(x).reshape(-1, 1).view(dtype)


def packed(x: Array, dtype: Any) -> Array:
    """Return the words that rows of numbers make, see `parts`."""
    return np.ascontiguousarray(x).view(dtype)[:, 0]


def on_parts(kind: str, function: Function) -> Function:
    """Return `function` on registers of a type such as f16, for words of the type f16x2."""
    word, part = DTYPES[kind], DTYPES[PACKED[kind]]
    return lambda *sources: packed(function(*(parts(source, part) for source in sources)), word)


def flush(kind: str) -> Function:
    """Return the function that turns subnormal numbers of the format into zeros of their sign."""
    smallest = 2.0 ** FORMATS[kind].emin

    def flushed(x: Array) -> Array:
        return x * (np.abs(x) >= smallest)

    return flushed


def saturate(x: Array) -> Array:
    """Return `x` clamped to [0, 1]; nan and -0 give +0."""
    one = x.dtype.type(1)
    return np.where(x > 0, np.minimum(x, one), x.dtype.type(0))


def relu(x: Array) -> Array:
    """Return `x` with +0 for negative numbers and -0; nan stays."""
    return np.where(x <= 0, x.dtype.type(0), x)
