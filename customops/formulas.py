"""Every formula and derivative, spelled in torch; ``triton_kernels/formulas.py`` spells them in Triton.

A derivative ``f_dx(g, ...)`` is g·∂f/∂x, elementwise, before any sum over broadcast axes. With a tangent for g it is
forward mode; complex conjugation is applied around it (``runtime/elementwise.py``). Four conventions tie it to the
rest:

- Its parameters name exactly what it reads, of g, the inputs as the formula calls them and the output z: that decides
  what is saved (``runtime/rules.py``).
- Its name is that of its counterpart in Triton, by which kernels find it.
- Where there is no ``out``, no keywords are passed on: to do so takes a tenth of the time of a call on few elements.
- Where the gradient is g itself it returns the object ``g``: then nothing is computed.

Inputs may be tensors or Python numbers, as torch's own operators take them.
"""

from __future__ import annotations

import math

import torch

LN_2 = math.log(2)
ERF_SLOPE = 2 / math.sqrt(math.pi)  # that of erf at 0

# Torch has these for its own derivatives alone. To find one by its four names takes a thirtieth of a call's time.
_threshold_backward = torch.ops.aten.threshold_backward.default
_sigmoid_backward = torch.ops.aten.sigmoid_backward.default
_tanh_backward = torch.ops.aten.tanh_backward.default
_softplus_backward = torch.ops.aten.softplus_backward.default


def log(x, **out):
    return torch.log(x, **out) if out else torch.log(x)


def log_dx(g, x):
    return g / x


def exp(x, **out):
    return torch.exp(x, **out) if out else torch.exp(x)


def exp_dx(g, z):
    return g * z


def log1p(x, **out):
    return torch.log1p(x, **out) if out else torch.log1p(x)


def log1p_dx(g, x):
    return g / (x + 1)


def exp2(x, **out):
    return torch.exp2(x, **out) if out else torch.exp2(x)


def exp2_dx(g, z):
    return g * z * LN_2


def expm1(x, **out):
    return torch.expm1(x, **out) if out else torch.expm1(x)


def expm1_dx(g, z):
    return g * (z + 1)


def log2(x, **out):
    return torch.log2(x, **out) if out else torch.log2(x)


def log2_dx(g, x):
    return g / (x * LN_2)


def reciprocal(x, **out):
    return torch.reciprocal(x, **out) if out else torch.reciprocal(x)


def reciprocal_dx(g, z):
    return -g * (z * z)


def sign(x, **out):
    return torch.sign(x, **out) if out else torch.sign(x)


def sign_dx(g):
    return torch.zeros_like(g)


def sin(x, **out):
    return torch.sin(x, **out) if out else torch.sin(x)


def sin_dx(g, x):
    return g * torch.cos(x)


def cos(x, **out):
    return torch.cos(x, **out) if out else torch.cos(x)


def cos_dx(g, x):
    return g * -torch.sin(x)


def erf(x, **out):
    return torch.erf(x, **out) if out else torch.erf(x)


def erf_dx(g, x):
    return ERF_SLOPE * torch.exp(-torch.pow(x, 2)) * g


def relu(x):
    return torch.relu(x)


def relu_dx(g, z):
    return _threshold_backward(g, z, 0)  # 0 where z <= 0, else g


def sigmoid(x, **out):
    return torch.sigmoid(x, **out) if out else torch.sigmoid(x)


def sigmoid_dx(g, z):
    return _sigmoid_backward(g, z.conj())  # g·z·(1 - z), of the conjugate of what it gets


def tanh(x, **out):
    return torch.tanh(x, **out) if out else torch.tanh(x)


def tanh_dx(g, z):
    return _tanh_backward(g, z.conj())  # g·(1 - z²), of the conjugate of what it gets


def softplus(x, beta, threshold, **out):
    return torch.nn.functional.softplus(x, beta, threshold, **out)


def softplus_dx(g, x, beta, threshold):
    return _softplus_backward(g, x, beta, threshold)


def sqrt(x, **out):
    return torch.sqrt(x, **out) if out else torch.sqrt(x)


def sqrt_dx(g, z):
    return g / (2 * z)


def rsqrt(x, **out):
    return torch.rsqrt(x, **out) if out else torch.rsqrt(x)


def rsqrt_dx(g, z):
    return -0.5 * g * torch.pow(z, 3)


def abs(x, **out):
    return torch.abs(x, **out) if out else torch.abs(x)


def abs_dx(g, x):
    return g * torch.sgn(x)  # of complex x too, where g is real


def neg(x, **out):
    return torch.neg(x, **out) if out else torch.neg(x)


def neg_dx(g):
    return -g


def add(x, y, alpha, **out):
    if out:
        return torch.add(x, y, alpha=alpha, **out)
    return torch.add(x, y) if _is_one(alpha) else torch.add(x, y, alpha=alpha)


def add_(x, y, alpha):
    return torch.Tensor.add_(x, y, alpha=alpha)


def add_dx(g):
    return g


def add_dy(g, alpha):
    return _times(alpha, g)


def sub(x, y, alpha, **out):
    if out:
        return torch.sub(x, y, alpha=alpha, **out)
    return torch.sub(x, y) if _is_one(alpha) else torch.sub(x, y, alpha=alpha)


def sub_(x, y, alpha):
    return torch.Tensor.sub_(x, y, alpha=alpha)


def sub_dx(g):
    return g


def sub_dy(g, alpha):
    return -_times(alpha, g)


def mul(x, y, **out):
    return torch.mul(x, y, **out) if out else torch.mul(x, y)


def mul_dx(g, y):
    return g * y


def mul_dy(g, x):
    return g * x


def div(x, y, **out):
    return torch.div(x, y, **out) if out else torch.div(x, y)


def div_dx(g, y):
    return g / y


def div_dy(g, x, y):
    return -g * torch.div(torch.div(x, y), y)


def maximum(x, y, **out):
    return torch.maximum(x, y, **out) if out else torch.maximum(x, y)


def maximum_dx(g, x, y):
    return torch.where(x == y, g / 2, g).masked_fill(x < y, 0)


def maximum_dy(g, x, y):
    return torch.where(x == y, g / 2, g).masked_fill(x > y, 0)


def minimum(x, y, **out):
    return torch.minimum(x, y, **out) if out else torch.minimum(x, y)


def pow(x, y, **out):
    return torch.pow(x, y, **out) if out else torch.pow(x, y)


def pow_dx(g, x, y):
    if isinstance(y, torch.Tensor):
        return _where_not_zero(y, g * (y * torch.pow(x, y - 1)))
    return g * (y * torch.pow(x, y - 1)) if y != 0 else torch.zeros_like(g)


def pow_dy(g, x, y, z):
    slope = z * _log(x, z.dtype)
    if isinstance(x, torch.Tensor) and x.dtype == y.dtype == z.dtype and not z.is_complex():
        distance = abs(x.detach()) - y.detach().clamp(max=0)  # 0 where x = 0 and y >= 0; elsewhere more, or nan
        return g * _threshold_backward(slope, distance, 0)
    if not isinstance(x, torch.Tensor) and x != 0:
        return g * slope
    return g * torch.where((x == 0) & _not_negative(y), 0, slope)


def pow_number(x, y, **out):
    return torch.pow(x, y, **out) if out else torch.pow(x, y)  # which takes ±1/2, for a number, as roots


def pow_number_dx(g, x, y):
    power = x if y == 2 else torch.pow(x, y - 1)
    return torch.addcmul(-power.new_zeros(()), power, g, value=y)  # -0 + (y·power)·g, in one pass; a -0 stays one


def finite(x):
    largest = torch.finfo(x.dtype).max
    return torch.clamp(x, -largest, largest)  # nan passes


def finite_dx(g):
    return g


def norm_power(x, y):
    return torch.pow(x, y)


def norm_power_dx(g, x, y):
    is_zero = x == 0
    return torch.where(is_zero, 0, pow_number_dx(g, torch.where(is_zero, 1, x), y))  # whose slope is not 0·inf at 0


def where(x, y, condition, **out):
    return torch.where(_as_bool(condition), x, y, **out)


def where_dx(g, condition):
    return torch.where(_as_bool(condition), g, 0)


def where_dy(g, condition):
    return torch.where(_as_bool(condition), 0, g)


def clamp(x, low, high, **out):
    return torch.clamp(x, low, high, **out)


def clamp_dx(g, x, low, high):
    return torch.where((x >= low) & (x <= high), g, 0)


def clamp_dlow(g, x, low, high):
    return torch.where((x < low) & (low < high), g, 0)


def clamp_dhigh(g, x, low, high):
    return torch.where((x > high) | (high < low), g, 0)


def clamp_min(x, y, **out):
    return torch.clamp_min(x, y, **out) if out else torch.clamp_min(x, y)


def clamp_min_dx(g, x, y):
    return torch.where(x >= y, g, 0)


def clamp_min_dy(g, x, y):
    return torch.where(x < y, g, 0)


def clamp_max(x, y, **out):
    return torch.clamp_max(x, y, **out) if out else torch.clamp_max(x, y)


def clamp_max_dx(g, x, y):
    return torch.where(x <= y, g, 0)


def clamp_max_dy(g, x, y):
    return torch.where(x > y, g, 0)


def lt(x, y, **out):
    return torch.lt(x, y, **out) if out else (x < y).to(x.dtype)  # 1 or 0, inside fused functions


def le(x, y, **out):
    return torch.le(x, y, **out) if out else (x <= y).to(x.dtype)  # 1 or 0, inside fused functions


def gt(x, y, **out):
    return torch.gt(x, y, **out) if out else (x > y).to(x.dtype)  # 1 or 0, inside fused functions


def ge(x, y, **out):
    return torch.ge(x, y, **out) if out else (x >= y).to(x.dtype)  # 1 or 0, inside fused functions


def eq(x, y, **out):
    return torch.eq(x, y, **out) if out else (x == y).to(x.dtype)  # 1 or 0, inside fused functions


def ne(x, y, **out):
    return torch.ne(x, y, **out) if out else (x != y).to(x.dtype)  # 1 or 0, inside fused functions


def logical_and(x, y, **out):
    return torch.logical_and(x, y, **out) if out else ((x != 0) & (y != 0)).to(x.dtype)


def logical_or(x, y, **out):
    return torch.logical_or(x, y, **out) if out else ((x != 0) | (y != 0)).to(x.dtype)


def logical_not(x, **out):
    return torch.logical_not(x, **out) if out else (x == 0).to(x.dtype)


def sum(x, *dim, **options):
    return torch.sum(x, *dim, **options)


def mean(x, *dim, **options):
    return torch.mean(x, *dim, **options)


def mean_dx(g, count):
    return g / count


def amax(x, *dim, **options):
    return torch.amax(x, *dim, **options)


def amin(x, *dim, **options):
    return torch.amin(x, *dim, **options)


def prod(x, *dim, **options):
    if dim and isinstance(dim[0], list):  # torch takes one axis, or all
        for axis in dim[0]:
            x = torch.prod(x, axis, True, **options)
        return x
    return torch.prod(x, *dim, **options)


def prod_dx(g, x, z, zeros, rest, nought):
    others = torch.where(zeros == 2, (nought - x) * rest, 0)  # 0 too, but with the slope that the other zero gives it
    return g * torch.where(x == 0, torch.where(zeros == 1, rest, others), z / one_for_zero(x))


def is_zero(x):
    return (x == 0).to(x.dtype)


def one_for_zero(x):
    return torch.where(x == 0, 1, x)


def zero_for_others(x):
    return torch.where(x == 0, x, 0)


def extremum_dx(g, ties, mask):
    share = g / ties
    return (share * mask).to(mask.dtype)  # inf·0 is nan, as is 0/0 where z is nan


def equal(x, z, **out):
    return torch.eq(x, z, **out) if out else (x == z).to(x.dtype)  # 1 or 0


def full_like(x, y):
    return torch.full_like(x, y)


def to_float16(x):
    return x.to(torch.float16).to(x.dtype)


def to_bfloat16(x):
    return x.to(torch.bfloat16).to(x.dtype)


def to_float32(x):
    return x.to(torch.float32).to(x.dtype)


def same(x, z):
    return ((x == z) | (torch.isnan(x) & torch.isnan(z))).to(x.dtype)  # 1 or 0; nan is the same as nan


def place(mask, position):
    return torch.where(mask == 0, torch.inf, position)


def selected_dx(g, position, first):
    return torch.where(position == first, g, 0)


def _as_bool(condition):
    """Return a condition as bool; inside fused functions it is 1 or 0."""
    return condition if condition.dtype == torch.bool else condition != 0


def _times(number, g):
    """Return number·g; for 1 that is g itself, which costs nothing."""
    return g if _is_one(number) else number * g


def _is_one(number):
    """Return whether a factor is the integer 1; False under a compiler, which would make a graph for each number."""
    return type(number) is int and not torch.compiler.is_dynamo_compiling() and number == 1


def _where_not_zero(y, value):
    """Return ``value``, but 0 where y is 0, whatever ``value`` is there."""
    if y.dtype != value.dtype or value.is_complex():
        return torch.where(y == 0, 0, value)
    return _threshold_backward(value, abs(y.detach()), 0)  # 0 where |y| <= 0, in half the time


def _not_negative(y):
    """Return whether y >= 0, which a complex number is only on the real axis."""
    if y.is_complex():
        return (y.imag == 0) & (y.real >= 0)
    return y >= 0


def _log(x, dtype):
    """Return the logarithm in ``dtype``; of a number in double precision, as a 0-dim tensor that widens nothing."""
    if isinstance(x, torch.Tensor):
        return torch.log(x.to(dtype))
    double = torch.complex128 if dtype.is_complex else torch.float64
    return torch.log(torch.tensor(x, dtype=double, device="cpu"))
