"""Quotients, rounded to nearest, in as few instructions as what is known of the divisor allows."""

import triton
import triton.language as tl
from triton.language.target_info import is_cuda

# The interpreter runs formulas in NumPy; there libdevice answers None instead of a value.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def divide(x, y):
    """Return the quotient, rounded to nearest; Triton's own float32 division is off by up to 2 ulp."""
    wide_x, wide_y = tl.broadcast(x, y)
    if not y.dtype.is_fp32():
        return wide_x / wide_y
    elif INTERPRETED or y.numel == wide_y.numel:
        return tl.div_rn(wide_x.to(tl.float32), wide_y)
    else:
        return _divide_by_few(x, y)


@triton.jit
def divide_by_small(x, y):
    """Return the quotient, where y is in [1, 2] and 0 <= x <= y: the reciprocal needs no care for its range.

    In float32 it is rounded to nearest, or is one of the two numbers next to the quotient where that is subnormal.
    """
    if y.dtype.is_fp32() and not INTERPRETED and is_cuda():
        r = tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=r,r", [y], tl.float32, is_pure=True, pack=1)
        q0 = x * r
        return tl.fma(tl.fma(y * -1, q0, x), r, q0)
    else:
        return divide(x, y)


@triton.jit
def scale_of(y):
    """Return the power of two that x and y are multiplied by before x/y is computed from 1/y, in float32.

    Then 1/y is a normal number. A divisor below 1 comes to [1/2, 1), where x overflows only if the quotient does.
    """
    size, exponent = tl.abs(y), y.to(tl.int32, bitcast=True) & 0x7F800000
    inverse = (0x7E800000 - exponent).to(tl.float32, bitcast=True)
    return tl.where(size < 1, inverse, tl.where(size < 2.0**64, 1.0, 2.0**-64))


@triton.jit
def _divide_by_few(x, y):
    """Return the quotient in float32, by one division for each element of y, which has fewer than the quotient.

    With r = 1/y rounded to nearest and q0 = x·r, q0 + (x - q0·y)·r is the quotient rounded to nearest: Markstein,
    "Computation of elementary functions on the IBM RISC System/6000 processor", 1990. So scaled, the remainder is
    exact, but for quotients below 2^-100: these are off by up to 1 ulp. The correction is nan where q0 is infinite, and
    its zero has no sign: there q0 stands.
    """
    scale = scale_of(y)
    x, y = x * scale, y * scale
    r = tl.div_rn(tl.full([], 1, tl.float32), y)
    q0 = x * r
    q = tl.fma(tl.fma(y * -1, q0, x), r, q0)
    return tl.where((q < q0) | (q > q0), q, q0)
