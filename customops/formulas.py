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
    return _unless(y == 0, g * (y * torch.pow(x, y - 1)))


def pow_dy(g, x, y, z):
    return g * _unless((x == 0) & _not_negative(y), z * _log(x, z.dtype))


def pow_number(x, y, **out):
    return torch.pow(x, y, **out)  # which takes ±1/2, for a number, as roots


def pow_number_dx(g, x, y):
    return pow_dx(g, x, y)


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


def _unless(condition, value):
    """0 where ``condition`` holds, else ``value``; the condition on two numbers is a bool."""
    if isinstance(condition, bool):
        return torch.zeros_like(value) if condition else value
    return torch.where(condition, 0, value)


def _not_negative(y):
    """Whether y >= 0, which a complex number is only on the real axis."""
    if isinstance(y, complex) or (isinstance(y, torch.Tensor) and y.is_complex()):
        return (y.imag == 0) & (y.real >= 0)
    return y >= 0


def _log(x, dtype):
    """The logarithm in ``dtype``; of a number in double precision, as a 0-dim tensor that widens nothing."""
    if isinstance(x, torch.Tensor):
        return torch.log(x.to(dtype))
    double = torch.complex128 if isinstance(x, complex) else torch.float64
    return torch.log(torch.tensor(x, dtype=double, device="cpu"))
