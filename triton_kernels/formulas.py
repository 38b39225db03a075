"""Every formula and derivative, spelled in Triton: the counterpart of ``customops/formulas.py``.

Names, argument names and order are the same. Arguments arrive in the compute dtype (float32 for half types), as
blocks that broadcast or as scalars. The kernel itself reduces: ``sum``, ``mean``, ``prod``, ``amax`` and ``amin``
finalize what it made of ``count`` values.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice

from . import casts, division
from .division import INTERPRETED

LN_2 = tl.constexpr(0.6931471805599453)
ERF_SLOPE = tl.constexpr(1.1283791670955126)  # of erf at 0, 2/√π


@triton.jit
def log(x):
    return tl.log(x)


@triton.jit
def log_dx(g, x):
    return division.divide(g, x)


@triton.jit
def exp(x):
    # tl.exp in float32 is ex2.approx(x·log2 e), whose relative error grows with |x|
    if INTERPRETED:
        return tl.exp(x)
    else:
        return libdevice.exp(x)


@triton.jit
def exp_dx(g, z):
    return g * z


@triton.jit
def log1p(x):
    if INTERPRETED:
        return _portable_log1p(x)
    else:
        return _or_tiny(x, x, libdevice.log1p(x))


@triton.jit
def log1p_dx(g, x):
    return division.divide(g, x + 1)


@triton.jit
def exp2(x):
    if INTERPRETED:
        return tl.exp2(x)
    else:
        return _exp2(x)


@triton.jit
def exp2_dx(g, z):
    return (g * z) * LN_2


@triton.jit
def expm1(x):
    if INTERPRETED:
        return _portable_expm1(x)
    else:
        return _or_tiny(x, x, libdevice.expm1(x))


@triton.jit
def expm1_dx(g, z):
    return g * (z + 1)


@triton.jit
def log2(x):
    if INTERPRETED:
        return tl.log2(x)
    else:
        return libdevice.log2(x)


@triton.jit
def log2_dx(g, x):
    return division.divide(g, x * LN_2)


@triton.jit
def reciprocal(x):
    return division.divide(tl.full([], 1, x.dtype), x)


@triton.jit
def reciprocal_dx(g, z):
    return (g * -1) * (z * z)


@triton.jit
def sign(x):
    return (x > 0).to(x.dtype) - (x < 0).to(x.dtype)


@triton.jit
def sign_dx(g):
    return tl.zeros_like(g)


@triton.jit
def sin(x):
    if INTERPRETED:
        return tl.sin(x)
    else:
        return _or_tiny(x, x, libdevice.sin(x))


@triton.jit
def sin_dx(g, x):
    return g * cos(x)


@triton.jit
def cos(x):
    if INTERPRETED:
        return tl.cos(x)
    else:
        return libdevice.cos(x)


@triton.jit
def cos_dx(g, x):
    return g * (sin(x) * -1)


@triton.jit
def erf(x):
    return _or_tiny(x, x * ERF_SLOPE, tl.erf(x))


@triton.jit
def erf_dx(g, x):
    return (exp((x * x) * -1) * ERF_SLOPE) * g


@triton.jit
def relu(x):
    return tl.where(x < 0, 0, x)  # not maximum: nan and -0 pass


@triton.jit
def relu_dx(g, z):
    return tl.where(z <= 0, 0, g)


@triton.jit
def sigmoid(x):
    e = exp(tl.abs(x) * -1)  # in (0, 1]: cannot overflow
    return division.divide_by_small(tl.where(x < 0, e, 1), 1 + e)


@triton.jit
def sigmoid_dx(g, z):
    return g * _fma(z * -1, z, z)  # z - z·z, rounded once


@triton.jit
def tanh(x):
    if INTERPRETED:
        return _portable_tanh(x)
    else:
        return libdevice.tanh(x)


@triton.jit
def tanh_dx(g, z):
    return g * _fma(z * -1, z, 1)  # 1 - z·z would lose what z·z rounds off, near ±1 all digits


@triton.jit
def softplus(x, beta, threshold):
    return tl.where(x * beta > threshold, x, division.divide(log1p(exp(x * beta)), beta))


@triton.jit
def softplus_dx(g, x, beta, threshold):
    return g * tl.where(x * beta > threshold, 1, sigmoid(x * beta))


@triton.jit
def sqrt(x):
    return _root(x)


@triton.jit
def sqrt_dx(g, z):
    return division.divide(g, 2 * z)


@triton.jit
def rsqrt(x):
    return division.divide(tl.full([], 1, x.dtype), _root(x))


@triton.jit
def rsqrt_dx(g, z):
    return (g * -0.5) * (z * z * z)


@triton.jit
def abs(x):
    return tl.abs(x)


@triton.jit
def abs_dx(g, x):
    return g * tl.where(x > 0, 1, tl.where(x < 0, -1, 0))


@triton.jit
def neg(x):
    if x.dtype.is_int():
        return 0 - x
    else:
        return x * -1


@triton.jit
def neg_dx(g):
    return g * -1


@triton.jit
def add(x, y, alpha=1):
    return x + alpha * y


@triton.jit
def add_dx(g):
    return g


@triton.jit
def add_dy(g, alpha=1):
    return alpha * g


@triton.jit
def sub(x, y, alpha=1):
    return x - alpha * y


@triton.jit
def sub_dx(g):
    return g


@triton.jit
def sub_dy(g, alpha=1):
    return (alpha * g) * -1  # Triton's unary minus is 0 - x, which loses the sign of zero


@triton.jit
def mul(x, y):
    return x * y


@triton.jit
def mul_dx(g, y):
    return g * y


@triton.jit
def mul_dy(g, x):
    return g * x


@triton.jit
def div(x, y):
    return division.divide(x, y)


@triton.jit
def div_dx(g, y):
    return division.divide(g, y)


@triton.jit
def div_dy(g, x, y):
    return (g * -1) * division.divide(division.divide(x, y), y)


@triton.jit
def maximum(x, y):
    x, y = tl.broadcast(x, y)
    return tl.where(x <= y, y, tl.where(x > y, x, x + y))  # the sum is nan, as one of them is


@triton.jit
def maximum_dx(g, x, y):
    return tl.where(x < y, 0, tl.where(x == y, g * 0.5, g))


@triton.jit
def maximum_dy(g, x, y):
    return tl.where(x > y, 0, tl.where(x == y, g * 0.5, g))


@triton.jit
def minimum(x, y):
    x, y = tl.broadcast(x, y)
    return tl.where(x >= y, y, tl.where(x < y, x, x + y))


@triton.jit
def pow(x, y):
    if x.dtype.is_int():
        return _integer_pow(x, y)
    elif INTERPRETED:
        return _portable_pow(x, y)
    else:
        return libdevice.pow(x, y)


@triton.jit
def pow_dx(g, x, y):
    return tl.where(y == 0, 0, g * (y * pow(x, y - 1)))


@triton.jit
def pow_dy(g, x, y, z):
    x, y = tl.broadcast(x, y)  # the interpreter cannot take & of a scalar and a block
    return g * tl.where((x == 0) & (y >= 0), 0, z * tl.log(x))


@triton.jit
def pow_number(x, y: tl.constexpr):
    if y == 1:
        return x
    elif y == 2:
        return x * x
    elif y == 3:
        return x * x * x
    elif y == 0.5:
        return _root(x)
    elif y > 0 or y == -1.5:  # (-inf)^-1.5 is 0, where one over the root's cube is nan
        return pow(x, tl.full([], y, x.dtype))
    else:
        return division.divide(tl.full([], 1, x.dtype), pow_number(x, -y))


@triton.jit
def pow_number_dx(g, x, y: tl.constexpr):
    return g * (y * pow_number(x, y - 1))


@triton.jit
def finite(x):
    largest = tl.where(x < 0, -1.7976931348623157e308, 1.7976931348623157e308).to(x.dtype)
    if x.dtype.is_fp32():
        largest = tl.where(x < 0, -3.4028234663852886e38, 3.4028234663852886e38)
    return tl.where(tl.abs(x) == float("inf"), largest, x)


@triton.jit
def finite_dx(g):
    return g


@triton.jit
def norm_power(x, y: tl.constexpr):
    return pow_number(x, y)


@triton.jit
def norm_power_dx(g, x, y: tl.constexpr):
    return tl.where(x == 0, 0, pow_number_dx(g, x, y))


@triton.jit
def where(x, y, condition):
    return tl.where(condition != 0, x, y)


@triton.jit
def where_dx(g, condition):
    return tl.where(condition != 0, g, 0)


@triton.jit
def where_dy(g, condition):
    return tl.where(condition != 0, 0, g)


@triton.jit
def clamp(x, low, high):
    return clamp_max(clamp_min(x, low), high)


@triton.jit
def clamp_dx(g, x, low, high):
    return tl.where(x >= low, tl.where(x <= high, g, 0), 0)


@triton.jit
def clamp_dlow(g, x, low, high):
    return tl.where(x < low, tl.where(low < high, g, 0), 0)


@triton.jit
def clamp_dhigh(g, x, low, high):
    return tl.where(x > high, g, tl.where(high < low, g, 0))


@triton.jit
def clamp_min(x, y):
    return maximum(x, y)


@triton.jit
def clamp_min_dx(g, x, y):
    return tl.where(x >= y, g, 0)


@triton.jit
def clamp_min_dy(g, x, y):
    return tl.where(x < y, g, 0)


@triton.jit
def clamp_max(x, y):
    return minimum(x, y)


@triton.jit
def clamp_max_dx(g, x, y):
    return tl.where(x <= y, g, 0)


@triton.jit
def clamp_max_dy(g, x, y):
    return tl.where(x > y, g, 0)


@triton.jit
def lt(x, y):
    x, y = tl.broadcast(x, y)
    return (x < y).to(x.dtype)


@triton.jit
def le(x, y):
    x, y = tl.broadcast(x, y)
    return (x <= y).to(x.dtype)


@triton.jit
def gt(x, y):
    x, y = tl.broadcast(x, y)
    return (x > y).to(x.dtype)


@triton.jit
def ge(x, y):
    x, y = tl.broadcast(x, y)
    return (x >= y).to(x.dtype)


@triton.jit
def eq(x, y):
    x, y = tl.broadcast(x, y)
    return (x == y).to(x.dtype)


@triton.jit
def ne(x, y):
    x, y = tl.broadcast(x, y)
    return (x != y).to(x.dtype)


@triton.jit
def logical_and(x, y):
    x, y = tl.broadcast(x, y)
    return ((x != 0) & (y != 0)).to(x.dtype)


@triton.jit
def logical_or(x, y):
    x, y = tl.broadcast(x, y)
    return ((x != 0) | (y != 0)).to(x.dtype)


@triton.jit
def logical_not(x):
    return (x == 0).to(x.dtype)


@triton.jit
def sum(x, count):
    return x


@triton.jit
def mean(x, count):
    return division.divide(x, count)


@triton.jit
def mean_dx(g, count):
    return division.divide(g, count)


@triton.jit
def amax(x, count):
    return x


@triton.jit
def amin(x, count):
    return x


@triton.jit
def prod(x, count):
    return x


@triton.jit
def prod_dx(g, x, z, zeros, rest, nought):
    others = tl.where(zeros == 2, (nought - x) * rest, 0)
    return g * tl.where(x == 0, tl.where(zeros == 1, rest, others), division.divide(z, one_for_zero(x)))


@triton.jit
def is_zero(x):
    return (x == 0).to(x.dtype)


@triton.jit
def one_for_zero(x):
    return tl.where(x == 0, 1, x)


@triton.jit
def zero_for_others(x):
    return tl.where(x == 0, x, 0)


@triton.jit
def extremum_dx(g, ties, mask):
    return division.divide(g, ties) * mask


@triton.jit
def equal(x, z):
    x, z = tl.broadcast(x, z)
    return (x == z).to(x.dtype)


@triton.jit
def full_like(x, y):
    _, z = tl.broadcast(x, y)  # no element of x is read
    return z


@triton.jit
def to_float16(x):
    return casts.convert(x, tl.float16).to(x.dtype)


@triton.jit
def to_bfloat16(x):
    return casts.convert(x, tl.bfloat16).to(x.dtype)


@triton.jit
def to_float32(x):
    return casts.convert(x, tl.float32).to(x.dtype)


@triton.jit
def same(x, z):
    x, z = tl.broadcast(x, z)
    is_number = (tl.abs(x) <= float("inf")) | (tl.abs(z) <= float("inf"))
    return ((x == z) | (is_number == 0)).to(x.dtype)


@triton.jit
def place(mask, position):
    mask, position = tl.broadcast(mask, position)
    return tl.where(mask == 0, float("inf"), position)


@triton.jit
def selected_dx(g, position, first):
    position, first = tl.broadcast(position, first)
    return tl.where(position == first, g, 0)


@triton.jit
def _fma(x, y, z):
    """Return x·y + z, rounded once; the interpreter rounds the product too, but for float32 to float64."""
    if not INTERPRETED:
        return tl.fma(x, y, z)
    else:
        return (x.to(tl.float64) * y + z).to(x.dtype)


@triton.jit
def _root(x):
    """Return the square root, rounded to nearest; Triton's own in float32 is approximate."""
    if x.dtype.is_fp32():
        return tl.sqrt_rn(x)
    else:
        return tl.sqrt(x)


@triton.jit
def _or_tiny(x, tangent, z):
    """Return ``z``, a function of x, but its tangent at 0 where x is tiny: libdevice takes subnormal numbers for 0."""
    return tl.where(tl.abs(x) < 2.0**-60, tangent, z)


@triton.jit
def _exp2(x):
    """Return 2^x by libdevice, which gives 0 for what is subnormal in float32: by 2^(x + 64) there."""
    z = libdevice.exp2(tl.where(x < -125, x + 64, x))
    return tl.where(x < -125, z * 2.0**-64, z)


@triton.jit
def _portable_expm1(x):
    """Return e^x - 1 to a few ulp, for the interpreter: Kahan's (e - 1)·x/log e, where e is e^x as it is rounded.

    The errors of both factors cancel.
    """
    e = tl.exp(x)
    z = tl.where(tl.abs(x) < 1, (e - 1) * division.divide(x, tl.log(e)), e - 1)
    return tl.where(e == 1, x, z)


@triton.jit
def _portable_tanh(x):
    """Return tanh x to a few ulp, for the interpreter: tanh |x| = -m / (2 + m), where m = e^(-2|x|) - 1."""
    m = _portable_expm1(tl.abs(x) * -2)
    z = division.divide(m * -1, 2 + m)
    return tl.where(x < 0, z * -1, tl.where(x == 0, x, z))


@triton.jit
def _portable_log1p(x):
    """Return log(1 + x) to a few ulp, for the interpreter: Kahan's x·log u/(u - 1), where u is 1 + x as it is rounded.

    The errors of both factors cancel.
    """
    u = x + 1
    z = tl.log(u) * division.divide(x, u - 1)
    return tl.where((u == 1) | (x == float("inf")), x, z)


@triton.jit
def _integer_pow(x, y):
    """Square and multiply, wrapping as torch wraps; with a negative exponent only powers of 1 and -1 are not 0."""
    # in 32 bits no step has to be cut to the 8 or 16 of the type, which takes registers; the last bits are the same
    wide: tl.constexpr = tl.int32 if x.dtype.primitive_bitwidth < 32 else x.dtype
    base, rest = x.to(wide), y.to(wide)  # of a number there is one for all elements
    one = base * 0 + rest * 0 + 1
    inverse = tl.where(base == 1, one, tl.where(base + 1 == 0, tl.where((rest & 1) == 1, 0 - one, one), 0))
    z = tl.where(rest < 0, inverse, one)  # before the loop, which so has no more values to hold than three
    rest = tl.where(rest < 0, 0, rest)
    # the loop ends with the highest bit of a tile: one of a known length would be unrolled, and spill
    most = tl.max(rest + tl.zeros([1], wide))
    while most > 0:
        z = tl.where((rest & 1) == 1, z * base, z)
        base = base * base
        rest = rest >> 1
        most = most >> 1
    return z.to(x.dtype)


@triton.jit
def _portable_pow(x, y):
    """Return what C's pow does, by exp2 and log2 in float64, for the interpreter."""
    a, b = tl.broadcast(x.to(tl.float64), y.to(tl.float64))
    infinity = float("inf")
    size = tl.exp2(b * tl.log2(tl.abs(a)))
    size = tl.where((b == 0) | ((tl.abs(a) == 1) & (tl.abs(b) == infinity)), 1, size)
    is_integer = tl.floor(b) == b
    odd = is_integer & (tl.floor(b / 2) * 2 != b)
    negative = (a < 0) | ((a == 0) & (1 / a < 0))
    z = tl.where(negative & odd, size * -1, size)
    z = tl.where(negative & (a != 0) & (a != -infinity) & (is_integer == 0), float("nan"), z)
    return tl.where((b == 0) | (a == 1), 1, z).to(x.dtype)


@triton.jit
def _plus(x, y):
    return x + y


@triton.jit
def _times(x, y):
    return x * y


@triton.jit
def _prod_tile(x, axis):
    return tl.reduce(x, axis, _times, keep_dims=True)


@triton.jit
def _sum_tile(x, axis):
    return tl.sum(x, axis=axis, keep_dims=True)


@triton.jit
def _max_tile(x, axis):
    if INTERPRETED or not x.dtype.is_floating():
        return _or_nan(tl.max(x, axis=axis, keep_dims=True), x, axis)
    else:
        return tl.reduce(x, axis, _larger, keep_dims=True)


@triton.jit
def _min_tile(x, axis):
    if INTERPRETED or not x.dtype.is_floating():
        return _or_nan(tl.min(x, axis=axis, keep_dims=True), x, axis)
    else:
        return tl.reduce(x, axis, _smaller, keep_dims=True)


@triton.jit
def _larger(x, y):
    if INTERPRETED:
        return maximum(x, y)
    else:
        return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)  # one instruction; the larger of -0 and 0 is 0


@triton.jit
def _smaller(x, y):
    if INTERPRETED:
        return minimum(x, y)
    else:
        return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _or_nan(z, x, axis):
    """Return ``z``, but nan where x has one along the axis: tl.max and tl.min pass over them."""
    if x.dtype.is_floating():
        z = tl.where(tl.max(tl.where(tl.abs(x) >= 0, 0, 1), axis=axis, keep_dims=True) > 0, float("nan"), z)
    return z


def _lowest(dtype):
    if dtype.is_floating():
        return float("-inf")
    return -(1 << dtype.int_bitwidth - 1) if dtype.is_int_signed() else 0


def _highest(dtype):
    return float("inf") if dtype.is_floating() else (1 << dtype.int_bitwidth - dtype.is_int_signed()) - 1


# The reducer of each reduction, with the fields of ``body.Reducer``; the identity depends on the dtype.
_SUM = (lambda _dtype: 0, _plus, _sum_tile)
REDUCERS = {
    "sum": _SUM,
    "mean": _SUM,
    "prod": (lambda _dtype: 1, _times, _prod_tile),
    "amax": (_lowest, _larger, _max_tile),
    "amin": (_highest, _smaller, _min_tile),
}
