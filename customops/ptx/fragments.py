"""Put matrices together from the registers of the lanes that hold them, and multiply them.

A warp holds a matrix in fragments. Lane ``4g + t``, of group ``g`` and with the place ``t`` in it, has registers of
``e`` elements each:

- A, 16 x k: register ``r`` holds row ``g + 8(r % 2)``, columns ``4e(r // 2) + et`` to ``+ e - 1`` (8 x k: row ``g``,
  columns ``4er + et`` to ``+ e - 1``);
- B, k x 8: register ``r`` holds column ``g``, rows ``4er + et`` to ``+ e - 1``;
- C and D, 16 x n: element ``i`` is in row ``g + 8(i // 2 % 2)``, column ``8(i // 4) + 2t + i % 2`` (8 x 8: row ``g``).

The ISA leaves open in which order products are added and how precise the sums between are. Here all products but those
of float64 are exact, they are added in float64 with what was in the accumulator, and the sum is rounded once, to
nearest, to the type of the accumulator. The tensor cores of a GPU cut more off. Of a float32 that stands for a tf32 the
last 13 bits are left out, which the ISA leaves open too.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .conversion import VALUES
from .formats import HALF_NAN, Array, canonical, has_nan, widen_bf16

_TF32 = np.uint32(0xFFFFE000)  # the bits of a float32 that are read where a tf32 is wanted
_BITS = {"f16": 16, "bf16": 16, "tf32": 32, "e4m3": 8, "e5m2": 8, "s8": 8, "u8": 8, "f64": 64, "f32": 32, "s32": 32}


class Numbers(NamedTuple):
    """A type of the elements of a matrix."""

    name: str  # as in the opcode: "f16", "tf32", "e4m3" ...

    @property
    def bits(self) -> int:
        """Return the number of bits of an element; KeyError for a type that is not known."""
        return _BITS[self.name]

    @property
    def register(self) -> str:
        """Return the PTX type of a register that holds elements."""
        return "b64" if self.bits == 64 else "b32"

    @property
    def per_register(self) -> int:
        """Return how many elements a register holds."""
        return max(1, 32 // self.bits)

    def values(self, bits: Array) -> Array:
        """Return the values, as float64, of unsigned bits of the element's width."""
        if self.name in VALUES:
            return VALUES[self.name][bits]
        if self.name == "bf16":
            return widen_bf16(bits).astype(np.float64)
        if self.name == "tf32":
            bits = bits & _TF32
        dtype = {"f16": np.float16, "s8": np.int8, "u8": np.uint8, "s32": np.int32, "f64": np.float64}
        return bits.view(dtype.get(self.name, np.float32)).astype(np.float64)

    def bits_of(self, values: Array, saturates: bool = False) -> Array:
        """Return float64 values rounded to this type, which is one of an accumulator, as unsigned bits."""
        if self.name == "s32":
            wide = values.astype(np.int64)  # an exact integer
            return (np.clip(wide, -(2**31), 2**31 - 1) if saturates else wide).astype(np.int32).view(np.uint32)
        if self.name == "f16":
            half = values.astype(np.float16)
            return (np.where(np.isnan(half), HALF_NAN, half) if has_nan(half) else half).view(np.uint16)
        return values.view(np.uint64) if self.name == "f64" else canonical(values.astype(np.float32)).view(np.uint32)


def elements(registers: list[Array], numbers: Numbers) -> Array:
    """Return the values that registers of lanes hold: [warps, groups 8, places 4, registers, elements of each]."""
    words = np.stack(registers, axis=1)
    return numbers.values(words.view(f"u{numbers.bits // 8}")).reshape(-1, 8, 4, len(registers), numbers.per_register)


def left(registers: list[Array], numbers: Numbers, rows: int) -> Array:
    """Return the matrix A of each warp: [warps, rows, k]."""
    held = elements(registers, numbers)
    halves = rows // 8
    split = held.reshape(len(held), 8, 4, -1, halves, numbers.per_register)
    return split.transpose(0, 4, 1, 3, 2, 5).reshape(len(held), rows, -1)


def right(registers: list[Array], numbers: Numbers) -> Array:
    """Return the matrix B of each warp: [warps, k, 8]."""
    held = elements(registers, numbers)
    return held.transpose(0, 3, 2, 4, 1).reshape(len(held), -1, 8)


def accumulators(registers: list[Array], numbers: Numbers, rows: int) -> Array:
    """Return the matrix C of each warp: [warps, rows, columns]."""
    held = elements(registers, numbers)
    split = held.reshape(len(held), 8, 4, -1, rows // 8, 2)
    return split.transpose(0, 4, 1, 3, 2, 5).reshape(len(held), rows, -1)


def registers_of(matrices: Array, numbers: Numbers, saturates: bool = False) -> list[Array]:
    """Return the registers that hold the matrix D of each warp, [warps, rows, columns], in order."""
    warps, rows, _ = matrices.shape
    split = matrices.reshape(warps, rows // 8, 8, -1, 4, 2).transpose(0, 2, 4, 3, 1, 5)
    bits = numbers.bits_of(np.ascontiguousarray(split), saturates).reshape(warps * 32, -1)
    words = bits.view(f"u{numbers.per_register * numbers.bits // 8}")
    return [np.ascontiguousarray(words[:, i]) for i in range(words.shape[1])]
