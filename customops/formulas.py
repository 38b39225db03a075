"""Every formula and derivative, spelled in torch; its twin is ``triton_kernels/formulas.py``.

A derivative ``f_dx(g, ...)`` is g·∂f/∂x, elementwise, before any sum over broadcast axes. It names as arguments
exactly what it reads, of g, the inputs x and y, the output z and ``alpha``: that decides what is saved. Read with a
tangent for g it is forward mode; complex conjugation is applied around it (``compute.py``).

Inputs may be tensors or Python numbers, as torch's own operators take them.
"""

from __future__ import annotations

import torch


def log(x, **out):
    return torch.log(x, **out)


def log_dx(g, x):
    return g / x


def exp(x, **out):
    return torch.exp(x, **out)


def exp_dx(g, z):
    return g * z


def relu(x):
    return torch.relu(x)


def relu_dx(g, z):
    return torch.ops.aten.threshold_backward(g, z, 0)  # 0 where z <= 0, else g


def sigmoid(x, **out):
    return torch.sigmoid(x, **out)


def sigmoid_dx(g, z):
    return torch.ops.aten.sigmoid_backward(g, z.conj())  # g·z·(1 - z), of the conjugate of what it gets


def add(x, y, alpha, **out):
    return torch.add(x, y, **out) if _is_one(alpha) else torch.add(x, y, alpha=alpha, **out)


def add_(x, y, alpha):
    return torch.Tensor.add_(x, y, alpha=alpha)


def add_dx(g):
    return g


def add_dy(g, alpha):
    return _times(alpha, g)


def sub(x, y, alpha, **out):
    return torch.sub(x, y, **out) if _is_one(alpha) else torch.sub(x, y, alpha=alpha, **out)


def sub_(x, y, alpha):
    return torch.Tensor.sub_(x, y, alpha=alpha)


def sub_dx(g):
    return g


def sub_dy(g, alpha):
    return -_times(alpha, g)


def mul(x, y, **out):
    return torch.mul(x, y, **out)


def mul_dx(g, y):
    return g * y


def mul_dy(g, x):
    return g * x


def pow(x, y, **out):
    return torch.pow(x, y, **out)


def pow_dx(g, x, y):
    if isinstance(y, torch.Tensor):
        return _where_positive(abs(y), g * (y * torch.pow(x, y - 1)))
    return pow_number_dx(g, x, y) if y != 0 else torch.zeros_like(g)


def pow_dy(g, x, y, z):
    x = _tensor(x, z.dtype)
    return g * _where_positive(_distance(x, y), z * torch.log(x))


def pow_number(x, y, **out):
    return torch.pow(x, y, **out)  # which takes ±1/2, for a number, as roots


def pow_number_dx(g, x, y):
    return _product(y, x if y == 2 else torch.pow(x, y - 1), g)


def root_dx(g, z):
    return torch.addcdiv(_nothing(g), g, z, value=0.5)  # g / 2z


def sum(x, *dim, **options):
    return torch.sum(x, *dim, **options)


def mean(x, *dim, **options):
    return torch.mean(x, *dim, **options)


def mean_dx(g, count):
    return g / count


def _times(number, g):
    """number·g; for 1 that is g itself, which costs nothing."""
    return g if _is_one(number) else number * g


def _is_one(number):
    return type(number) is int and number == 1


def _product(number, a, b):
    """(number·a)·b, in one pass."""
    return torch.addcmul(_nothing(a), a, b, value=number)


def _nothing(like):
    """What changes nothing it is added to: -0, since 0 would make 0 of a -0."""
    return -like.new_zeros(())


def _where_positive(size, value):
    """``value``, but 0 where ``size`` is 0, neither more nor nan: in one pass, where comparing takes two slow ones."""
    if value.is_complex():
        return torch.where(size == 0, 0, value)
    return torch.ops.aten.threshold_backward(value, size, 0)


def _distance(x, y):
    """0 where x = 0 and y >= 0, where a power has no slope along y; elsewhere more, or nan."""
    if y.is_complex():
        return abs(x) + (abs(y.imag) - y.real.clamp(max=0))
    return abs(x) - y.clamp(max=0)


def _tensor(x, dtype):
    """``x`` in ``dtype``; a number in double precision, as a 0-dim tensor that widens nothing."""
    if isinstance(x, torch.Tensor):
        return x.to(dtype)
    return torch.tensor(x, dtype=torch.complex128 if isinstance(x, complex) else torch.float64, device="cpu")
