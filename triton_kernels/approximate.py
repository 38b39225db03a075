"""Formulas for half types on NVIDIA GPUs, by approximate instructions: those that differ from ``formulas.py``.

Values are float32. An approximate instruction is off by about 2^-22, where rounding to float16 or bfloat16 takes 2^-12
or 2^-9: how many results it changes is in docs/accuracy.md. Special values are the same, subnormal numbers too. The
logarithm is not here: by its instruction a result near 0, of a float32 in a fused function, would lose its digits.
"""

import triton
import triton.language as tl
from triton.runtime import driver

from . import division, formulas
from .formulas import ERF_SLOPE, INTERPRETED, LN_2

LOG2_E = tl.constexpr(1.4426950408889634)


def find(name: str, dtype: tl.dtype):
    """Return the JIT function of the formula called ``name``, for operands of ``dtype`` on the current device."""
    if dtype in (tl.float16, tl.bfloat16) and not INTERPRETED and driver.active.get_current_target().backend == "cuda":
        return globals().get(name) or getattr(formulas, name)
    return getattr(formulas, name)


@triton.jit
def log_dx(g, x):
    return _divide(g, x)


@triton.jit
def exp(x):
    root = _instruction(x * (LOG2_E / 2), "ex2.approx.ftz.f32")  # never subnormal
    return root * root


@triton.jit
def log1p_dx(g, x):
    return _divide(g, x + 1)


@triton.jit
def exp2(x):
    root = _instruction(x * 0.5, "ex2.approx.ftz.f32")  # never subnormal
    return root * root


@triton.jit
def expm1(x):
    # (e^x - 1)/x to 2^-23 where |x| < 0.5, from its values at the Chebyshev nodes
    p = tl.fma(tl.fma(tl.fma(x, 0.0013982186, 0.0084080294), x, 0.041665791), x, 0.16665966)
    near = x * tl.fma(tl.fma(p, x, 0.5), x, 1.0)
    return tl.where(tl.abs(x) < 0.5, near, exp(x) - 1)


@triton.jit
def log2_dx(g, x):
    return _divide(g, x * LN_2)


@triton.jit
def reciprocal(x):
    return _divide(tl.full([], 1, x.dtype), x)


@triton.jit
def erf_dx(g, x):
    return (exp((x * x) * -1) * ERF_SLOPE) * g


@triton.jit
def sigmoid(x):
    # 2^-8/(2^-8 + 2^-8·e^-x): no factor is subnormal where the result is
    e = _instruction(tl.fma(x, -LOG2_E, -8.0), "ex2.approx.ftz.f32")
    return _instruction(e + 2.0**-8, "rcp.approx.ftz.f32") * 2.0**-8


@triton.jit
def tanh(x):
    e = _instruction(x * (2 * LOG2_E), "ex2.approx.ftz.f32")
    far = tl.fma(_instruction(e + 1, "rcp.approx.ftz.f32"), -2.0, 1.0)
    # tanh x / x to 2^-24 where |x| < 0.5, from its values at the Chebyshev nodes of x·x
    u = x * x
    p = tl.fma(tl.fma(u, 0.01798874, -0.05338711), u, 0.13330476)
    near = x * tl.fma(tl.fma(p, u, -0.33333311), u, 1.0)
    return tl.where(tl.abs(x) < 0.5, near, far)


@triton.jit
def softplus(x, beta, threshold):
    e = exp(tl.abs(x * beta) * -1)
    s = e * _instruction(e + 2, "rcp.approx.ftz.f32")  # log(1 + e) is 2·atanh s
    # 2·(atanh s)/s to 2^-22 where s² <= 1/9, from its values at the Chebyshev nodes
    p = tl.fma(tl.fma(tl.fma(s * s, 0.3420362, 0.39593187), s * s, 0.6667585), s * s, 1.9999997)
    z = tl.fma(s, p, tl.where(x * beta > 0, x * beta, 0.0))
    return tl.where(x * beta > threshold, x, _divide(z, beta))


@triton.jit
def softplus_dx(g, x, beta, threshold):
    e = exp(tl.abs(x * beta) * -1)  # not by sigmoid, whose subnormal results are good for rounding alone
    slope = tl.where(x * beta > 0, 1, e) * _instruction(e + 1, "rcp.approx.ftz.f32")
    return g * tl.where(x * beta > threshold, 1, slope)


@triton.jit
def sqrt(x):
    return _instruction(x, "sqrt.approx.f32")


@triton.jit
def sqrt_dx(g, z):
    return g * _instruction(2 * z, "rcp.approx.ftz.f32")  # a root is far from the ends of the range


@triton.jit
def rsqrt(x):
    return _instruction(x, "rsqrt.approx.f32")


@triton.jit
def div(x, y):
    return _divide(x, y)


@triton.jit
def div_dx(g, y):
    return _divide(g, y)


@triton.jit
def div_dy(g, x, y):
    return (g * -1) * _divide(_divide(x, y), y)


@triton.jit
def pow_number(x, y: tl.constexpr):
    if y == 0.5:
        return sqrt(x)
    elif y == -0.5:
        return rsqrt(x)
    elif y > 0 or y == -1.5:
        return formulas.pow_number(x, y)
    else:
        return _divide(tl.full([], 1, x.dtype), pow_number(x, -y))


@triton.jit
def pow_number_dx(g, x, y: tl.constexpr):
    return g * (y * pow_number(x, y - 1))


@triton.jit
def norm_power(x, y: tl.constexpr):
    return pow_number(x, y)


@triton.jit
def norm_power_dx(g, x, y: tl.constexpr):
    return tl.where(x == 0, 0, pow_number_dx(g, x, y))


@triton.jit
def mean_dx(g, count):
    return _divide(g, count)


@triton.jit
def extremum_dx(g, ties, mask):
    return _divide(g, ties) * mask


@triton.jit
def _divide(x, y):
    """Return the quotient, off by up to 2 ulp of float32; where y has few elements, by their reciprocals."""
    wide_x, wide_y = tl.broadcast(x, y)
    if y.numel == wide_y.numel:
        return wide_x / wide_y
    else:
        scale = division.scale_of(y)
        return (x * scale) * _instruction(y * scale, "rcp.approx.ftz.f32")


@triton.jit
def _instruction(x, NAME: tl.constexpr):
    """Apply an instruction of PTX to each element."""
    return tl.inline_asm_elementwise(NAME + " $0, $1;", "=r,r", [x], tl.float32, is_pure=True, pack=1)
