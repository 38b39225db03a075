"""Casts, which round as torch's do."""

import triton
import triton.language as tl

from .division import INTERPRETED


@triton.jit
def convert(value, DTYPE: tl.constexpr):
    """Cast to DTYPE, to half types by way of float32: as torch does, and all that the interpreter can do."""
    if DTYPE.is_fp16() or DTYPE.is_bf16():
        value = value.to(tl.float32)
    if INTERPRETED and DTYPE.is_bf16():  # the interpreter cuts the lower bits off, GPUs round to nearest even
        bits = value.to(tl.int32, bitcast=True)
        nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
        value = tl.where(tl.abs(value) >= 0, nearest, value)  # a nan as it is
    return value.to(DTYPE)
