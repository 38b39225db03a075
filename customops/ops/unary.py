"""Operators on one tensor: exponentials, logarithms, roots, sine and cosine, sigmoids, signs."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import formulas as f
from .call import call, call_, call_unary
from .function import Operator

__all__ = [
    "abs",
    "abs_",
    "cos",
    "cos_",
    "erf",
    "erf_",
    "exp",
    "exp2",
    "exp2_",
    "exp_",
    "expm1",
    "expm1_",
    "log",
    "log1p",
    "log1p_",
    "log2",
    "log2_",
    "log_",
    "neg",
    "neg_",
    "reciprocal",
    "reciprocal_",
    "relu",
    "relu_",
    "rsqrt",
    "rsqrt_",
    "sigmoid",
    "sigmoid_",
    "sign",
    "sign_",
    "sin",
    "sin_",
    "softplus",
    "sqrt",
    "sqrt_",
    "tanh",
    "tanh_",
]


class Log(Operator):
    """z = log x.

    x = e^z; differentiating both sides, 1 = e^z·dz/dx, so dz/dx = e^-z = 1/x:

        dx = g / x

    Saves x. There is no branch: dx is -g at x = -1, where the value is nan, as in torch.
    """

    formula = staticmethod(f.log)
    derivatives = (f.log_dx,)


class Exp(Operator):
    """z = e^x.

    The one function that is its own derivative, dz/dx = e^x = z:

        dx = g·z

    Saves z.
    """

    formula = staticmethod(f.exp)
    derivatives = (f.exp_dx,)


class Log1p(Operator):
    """z = log(1 + x).

    The logarithm of u = 1 + x, with du/dx = 1, so dz/dx = 1/u:

        dx = g / (1 + x)

    Saves x. Near 0 it keeps the digits that 1 + x loses.
    """

    formula = staticmethod(f.log1p)
    derivatives = (f.log1p_dx,)


class Exp2(Operator):
    """z = 2^x.

    2^x = e^(x·log 2), so dz/dx = z·log 2:

        dx = g·z·log 2

    Saves z.
    """

    formula = staticmethod(f.exp2)
    derivatives = (f.exp2_dx,)


class Expm1(Operator):
    """z = e^x - 1.

    dz/dx = e^x = z + 1:

        dx = g·(z + 1)

    Saves z. Near 0 the value keeps the digits that e^x loses beside 1.
    """

    formula = staticmethod(f.expm1)
    derivatives = (f.expm1_dx,)


class Log2(Operator):
    """z = log x / log 2.

    The logarithm, scaled, dz/dx = 1/(x·log 2):

        dx = g / (x·log 2)

    Saves x.
    """

    formula = staticmethod(f.log2)
    derivatives = (f.log2_dx,)


class Reciprocal(Operator):
    """z = 1/x.

    z·x = 1; differentiating both sides, dz/dx·x + z = 0, so dz/dx = -z/x = -z²:

        dx = -g·z²

    Saves z.
    """

    formula = staticmethod(f.reciprocal)
    derivatives = (f.reciprocal_dx,)


class Sign(Operator):
    """z = 1 where x > 0, -1 where x < 0, else 0.

    Constant on either side of 0, dz/dx = 0; there torch takes 0 too:

        dx = 0

    Saves nothing. Of nan it is 0.
    """

    formula = staticmethod(f.sign)
    derivatives = (f.sign_dx,)


class Sin(Operator):
    """z = sin x.

    By the addition theorem sin(x + h) - sin x = sin x·(cos h - 1) + cos x·sin h; divided by h, the limits for h → 0 are
    0 and 1, so dz/dx = cos x:

        dx = g·cos x

    Saves x.
    """

    formula = staticmethod(f.sin)
    derivatives = (f.sin_dx,)


class Cos(Operator):
    """z = cos x.

    cos x = sin(x + π/2), so dz/dx = cos(x + π/2) = -sin x:

        dx = -g·sin x

    Saves x.
    """

    formula = staticmethod(f.cos)
    derivatives = (f.cos_dx,)


class Erf(Operator):
    """z = 2/√π·∫ e^(-t²) dt, from 0 to x.

    An integral has its integrand as derivative by the upper end:

        dx = g·2/√π·e^(-x²)

    Saves x.
    """

    formula = staticmethod(f.erf)
    derivatives = (f.erf_dx,)


class Relu(Operator):
    """z = max(x, 0).

    Where x > 0 the output is x and moves with it, dz/dx = 1; where x < 0 it stays 0, dz/dx = 0. At 0, where the two
    meet, any slope between is a subgradient and torch takes 0. z > 0 exactly where x > 0:

        dx = g where z > 0, else 0

    Saves z. A nan passes both ways, since nan <= 0 is false; a gradient of nan or inf is stopped where x <= 0.
    """

    formula = staticmethod(f.relu)
    derivatives = (f.relu_dx,)


class Sigmoid(Operator):
    """z = 1 / (1 + e^-x).

    With u = 1 + e^-x, z = 1/u and the reciprocal rule gives dz/dx = -u'/u² = e^-x/u². One factor 1/u is z, the other
    e^-x/u = (u - 1)/u = 1 - z:

        dx = g·z·(1 - z)

    Saves z, so that backward needs no exponential.
    """

    formula = staticmethod(f.sigmoid)
    derivatives = (f.sigmoid_dx,)


class Tanh(Operator):
    """z = tanh x = (e^x - e^-x) / (e^x + e^-x).

    With s and c for the two sums, s' = c and c' = s; the quotient rule gives dz/dx = (c² - s²)/c² = 1 - z²:

        dx = g·(1 - z²)

    Saves z.
    """

    formula = staticmethod(f.tanh)
    derivatives = (f.tanh_dx,)


class Softplus(Operator):
    """z = log(1 + e^(beta·x)) / beta where beta·x <= threshold, else x, from which that differs by no digit of float32.

    With u = e^(beta·x), dz/dx = u/(1 + u): the sigmoid of beta·x. Past the threshold it is 1:

        dx = g·1/(1 + e^(-beta·x)) where beta·x <= threshold, else g

    Saves x.
    """

    formula = staticmethod(f.softplus)
    derivatives = (f.softplus_dx,)


class Sqrt(Operator):
    """z = √x.

    z² = x; differentiating both sides, 2z·dz/dx = 1:

        dx = g / (2z)

    Saves z. At 0 the slope is infinite, of either sign: dx is -inf for g = 1 at x = -0, as in torch.
    """

    formula = staticmethod(f.sqrt)
    derivatives = (f.sqrt_dx,)


class Rsqrt(Operator):
    """z = 1/√x.

    z² = 1/x; differentiating both sides, 2z·dz/dx = -1/x² = -z⁴, so dz/dx = -z³/2:

        dx = -g·z³/2

    Saves z.
    """

    formula = staticmethod(f.rsqrt)
    derivatives = (f.rsqrt_dx,)


class Abs(Operator):
    """z = |x|.

    On either side of 0 the output is x or -x; at 0 any slope from -1 to 1 is a subgradient and torch takes 0, as it
    does for nan:

        dx = g·sgn x

    Saves x. Of a complex x the output is real, and sgn x = x/|x|: the direction in which |x| grows fastest.
    """

    formula = staticmethod(f.abs)
    derivatives = (f.abs_dx,)


class Neg(Operator):
    """z = -x.

    Linear, dz/dx = -1:

        dx = -g

    Saves nothing.
    """

    formula = staticmethod(f.neg)
    derivatives = (f.neg_dx,)


def log(input: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return the natural logarithm of each element, as :func:`torch.log`; gradient: :class:`Log`.

    Args:
        input: a tensor of any shape and dtype; integers and bool become the default dtype.
        out: a tensor to write the result to, resized to the shape of ``input``.

    Raises:
        TypeError: ``input`` is not a tensor.
        RuntimeError: the result cannot be cast to the dtype of ``out``.

    >>> log(torch.tensor([1.0, 0.0]))
    tensor([0., -inf])
    """
    return call_unary(Log, input, out)


def exp(input: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return e to the power of each element, as :func:`torch.exp`; gradient: :class:`Exp`.

    Args:
        input: a tensor of any shape and dtype; integers and bool become the default dtype.
        out: a tensor to write the result to, resized to the shape of ``input``.

    Raises:
        TypeError: ``input`` is not a tensor.
        RuntimeError: the result cannot be cast to the dtype of ``out``.

    >>> exp(torch.tensor([0.0, -torch.inf]))
    tensor([1., 0.])
    """
    return call_unary(Exp, input, out)


def log1p(input: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return the natural logarithm of 1 plus each element, as :func:`torch.log1p`; gradient: :class:`Log1p`.

    Args:
        input: a tensor of any shape and dtype; integers and bool become the default dtype.
        out: a tensor to write the result to, resized to the shape of ``input``.

    Raises:
        TypeError: ``input`` is not a tensor.
        RuntimeError: the result cannot be cast to the dtype of ``out``.

    >>> log1p(torch.tensor([0.0, 1e-8]))
    tensor([0.0000e+00, 1.0000e-08])
    """
    return call_unary(Log1p, input, out)


def exp2(input: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return 2 to the power of each element, as :func:`torch.exp2`; gradient: :class:`Exp2`.

    Args:
        input: a tensor of any shape and dtype; integers and bool become the default dtype.
        out: a tensor to write the result to, resized to the shape of ``input``.

    Raises:
        TypeError: ``input`` is not a tensor.
        RuntimeError: the result cannot be cast to the dtype of ``out``.

    >>> exp2(torch.tensor([3.0, -1.0]))
    tensor([8.0000, 0.5000])
    """
    return call_unary(Exp2, input, out)


def expm1(input: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return e to the power of each element, minus 1, as :func:`torch.expm1`; gradient: :class:`Expm1`.

    Args:
        input: a tensor of any shape and dtype; integers and bool become the default dtype.
        out: a tensor to write the result to, resized to the shape of ``input``.

    Raises:
        TypeError: ``input`` is not a tensor.
        RuntimeError: the result cannot be cast to the dtype of ``out``.

    >>> expm1(torch.tensor([0.0, -torch.inf]))
    tensor([ 0., -1.])
    """
    return call_unary(Expm1, input, out)


def log2(input: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return the logarithm of each element to base 2, as :func:`torch.log2`; gradient: :class:`Log2`.

    Args:
        input: a tensor of any shape and dtype; integers and bool become the default dtype.
        out: a tensor to write the result to, resized to the shape of ``input``.

    Raises:
        TypeError: ``input`` is not a tensor.
        RuntimeError: the result cannot be cast to the dtype of ``out``.

    >>> log2(torch.tensor([8.0, 0.5]))
    tensor([ 3., -1.])
    """
    return call_unary(Log2, input, out)


def reciprocal(input: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return 1 divided by each element, as :func:`torch.reciprocal`; gradient: :class:`Reciprocal`.

    Args:
        input: a tensor of any shape and dtype; integers and bool become the default dtype.
        out: a tensor to write the result to, resized to the shape of ``input``.

    Raises:
        TypeError: ``input`` is not a tensor.
        RuntimeError: the result cannot be cast to the dtype of ``out``.

    >>> reciprocal(torch.tensor([4.0, 0.0]))
    tensor([0.2500,    inf])
    """
    return call_unary(Reciprocal, input, out)


def sign(input: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return 1, -1 or 0, as each element is above, below or 0, as :func:`torch.sign`; gradient: :class:`Sign`.

    Args:
        input: a tensor of any shape and real dtype; the result has the same dtype.
        out: a tensor to write the result to, resized to the shape of ``input``.

    Raises:
        TypeError: ``input`` is not a tensor.
        RuntimeError: ``input`` is complex, or the result cannot be cast to the dtype of ``out``.

    >>> sign(torch.tensor([-2.0, 0.0, 3.0]))
    tensor([-1.,  0.,  1.])
    """
    return call_unary(Sign, input, out)


def sin(input: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return the sine of each element, in radians, as :func:`torch.sin`; gradient: :class:`Sin`.

    Args:
        input: a tensor of any shape and dtype; integers and bool become the default dtype.
        out: a tensor to write the result to, resized to the shape of ``input``.

    Raises:
        TypeError: ``input`` is not a tensor.
        RuntimeError: the result cannot be cast to the dtype of ``out``.

    >>> sin(torch.tensor([0.0, torch.pi / 2]))
    tensor([0., 1.])
    """
    return call_unary(Sin, input, out)


def cos(input: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return the cosine of each element, in radians, as :func:`torch.cos`; gradient: :class:`Cos`.

    Args:
        input: a tensor of any shape and dtype; integers and bool become the default dtype.
        out: a tensor to write the result to, resized to the shape of ``input``.

    Raises:
        TypeError: ``input`` is not a tensor.
        RuntimeError: the result cannot be cast to the dtype of ``out``.

    >>> cos(torch.tensor([0.0, torch.pi]))
    tensor([ 1., -1.])
    """
    return call_unary(Cos, input, out)


def erf(input: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return the error function of each element, as :func:`torch.erf`; gradient: :class:`Erf`.

    Args:
        input: a tensor of any shape and real dtype; integers and bool become the default dtype.
        out: a tensor to write the result to, resized to the shape of ``input``.

    Raises:
        TypeError: ``input`` is not a tensor.
        RuntimeError: ``input`` is complex, or the result cannot be cast to the dtype of ``out``.

    >>> erf(torch.tensor([0.0, 0.5, 10.0]))
    tensor([0.0000, 0.5205, 1.0000])
    """
    return call_unary(Erf, input, out)


def relu(input: Tensor) -> Tensor:
    """Return the larger of each element and 0, as :func:`torch.relu`; gradient: :class:`Relu`.

    Args:
        input: a tensor of any shape and any real dtype but bool; the result has the same dtype.

    Raises:
        TypeError: ``input`` is not a tensor.
        RuntimeError: ``input`` is bool.
        NotImplementedError: ``input`` is complex.

    >>> relu(torch.tensor([-2, 0, 3]))
    tensor([0, 0, 3])
    """
    return call_unary(Relu, input)


def sigmoid(input: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return 1 / (1 + e^-x) for each element x, as :func:`torch.sigmoid`; gradient: :class:`Sigmoid`.

    Args:
        input: a tensor of any shape and dtype; integers and bool become the default dtype.
        out: a tensor to write the result to, resized to the shape of ``input``.

    Raises:
        TypeError: ``input`` is not a tensor.
        RuntimeError: the result cannot be cast to the dtype of ``out``.

    >>> sigmoid(torch.tensor([0.0, -1000.0]))
    tensor([0.5000, 0.0000])
    """
    return call_unary(Sigmoid, input, out)


def tanh(input: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return the hyperbolic tangent of each element, as :func:`torch.tanh`; gradient: :class:`Tanh`.

    Args:
        input: a tensor of any shape and dtype; integers and bool become the default dtype.
        out: a tensor to write the result to, resized to the shape of ``input``.

    Raises:
        TypeError: ``input`` is not a tensor.
        RuntimeError: the result cannot be cast to the dtype of ``out``.

    >>> tanh(torch.tensor([0.0, -1000.0]))
    tensor([ 0., -1.])
    """
    return call_unary(Tanh, input, out)


def softplus(input: Tensor, beta: float = 1, threshold: float = 20, *, out: Tensor | None = None) -> Tensor:
    """Return log(1 + e^x) of each element, as :func:`torch.nn.functional.softplus`; gradient: :class:`Softplus`.

    Args:
        input: a tensor of any shape and floating dtype.
        beta: a number: the result is log(1 + e^(beta·x)) / beta.
        threshold: the value of beta·x above which the result is x.
        out: a tensor to write the result to, resized to the shape of ``input``.

    Raises:
        TypeError: ``input`` is not a tensor.
        NotImplementedError: the dtype of ``input`` is not floating.
        RuntimeError: ``out`` has another dtype than ``input``.

    >>> softplus(torch.tensor([0.0, -50.0]))
    tensor([6.9315e-01, 1.9287e-22])
    """
    if out is not None:  # of the dtype of ``input``: torch casts nothing
        return torch.nn.functional.softplus(input, beta, threshold, out=out)  # type: ignore[call-arg]
    return call(Softplus, (input, beta, threshold))


def sqrt(input: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return the square root of each element, as :func:`torch.sqrt`; gradient: :class:`Sqrt`.

    Args:
        input: a tensor of any shape and dtype; integers and bool become the default dtype.
        out: a tensor to write the result to, resized to the shape of ``input``.

    Raises:
        TypeError: ``input`` is not a tensor.
        RuntimeError: the result cannot be cast to the dtype of ``out``.

    >>> sqrt(torch.tensor([4.0, -1.0]))
    tensor([2., nan])
    """
    return call_unary(Sqrt, input, out)


def rsqrt(input: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return one over the square root of each element, as :func:`torch.rsqrt`; gradient: :class:`Rsqrt`.

    Args:
        input: a tensor of any shape and dtype; integers and bool become the default dtype.
        out: a tensor to write the result to, resized to the shape of ``input``.

    Raises:
        TypeError: ``input`` is not a tensor.
        RuntimeError: the result cannot be cast to the dtype of ``out``.

    >>> rsqrt(torch.tensor([4.0, 0.0]))
    tensor([0.5000,    inf])
    """
    return call_unary(Rsqrt, input, out)


def abs(input: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return the absolute value of each element, as :func:`torch.abs`; gradient: :class:`Abs`.

    Args:
        input: a tensor of any shape and any dtype but bool; the result has the same dtype, or the real one of a
            complex dtype.
        out: a tensor to write the result to, resized to the shape of ``input``.

    Raises:
        TypeError: ``input`` is not a tensor.
        NotImplementedError: ``input`` is bool.
        RuntimeError: the result cannot be cast to the dtype of ``out``.

    >>> abs(torch.tensor([-2, 3]))
    tensor([2, 3])
    """
    return call_unary(Abs, input, out)


def neg(input: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return ``-input``, elementwise, as :func:`torch.neg`; gradient: :class:`Neg`.

    Args:
        input: a tensor of any shape and any dtype but bool; the result has the same dtype. Unsigned integers wrap.
        out: a tensor of that dtype to write the result to, resized to the shape of ``input``.

    Raises:
        TypeError: ``input`` is not a tensor.
        RuntimeError: ``input`` is bool, or ``out`` has another dtype.

    >>> neg(torch.tensor([-2.0, 0.0]))
    tensor([2., -0.])
    """
    if isinstance(out, Tensor) and isinstance(input, Tensor) and out.dtype != input.dtype:
        return torch.neg(input, out=out)  # raises: this one alone casts nothing
    return call_unary(Neg, input, out)


def log_(input: Tensor) -> Tensor:
    """Write ``log(input)`` into ``input`` and return it; raises what :meth:`torch.Tensor.log_` raises."""
    return call_(Log, torch.Tensor.log_, input)


def exp_(input: Tensor) -> Tensor:
    """Write ``exp(input)`` into ``input`` and return it; raises what :meth:`torch.Tensor.exp_` raises."""
    return call_(Exp, torch.Tensor.exp_, input)


def relu_(input: Tensor) -> Tensor:
    """Write ``relu(input)`` into ``input`` and return it; raises what :meth:`torch.Tensor.relu_` raises."""
    return call_(Relu, torch.Tensor.relu_, input)


def sigmoid_(input: Tensor) -> Tensor:
    """Write ``sigmoid(input)`` into ``input`` and return it; raises what :meth:`torch.Tensor.sigmoid_` raises."""
    return call_(Sigmoid, torch.Tensor.sigmoid_, input)


def tanh_(input: Tensor) -> Tensor:
    """Write ``tanh(input)`` into ``input`` and return it; raises what :meth:`torch.Tensor.tanh_` raises."""
    return call_(Tanh, torch.Tensor.tanh_, input)


def sqrt_(input: Tensor) -> Tensor:
    """Write ``sqrt(input)`` into ``input`` and return it; raises what :meth:`torch.Tensor.sqrt_` raises."""
    return call_(Sqrt, torch.Tensor.sqrt_, input)


def rsqrt_(input: Tensor) -> Tensor:
    """Write ``rsqrt(input)`` into ``input`` and return it; raises what :meth:`torch.Tensor.rsqrt_` raises."""
    return call_(Rsqrt, torch.Tensor.rsqrt_, input)


def abs_(input: Tensor) -> Tensor:
    """Write ``abs(input)`` into ``input`` and return it; raises what :meth:`torch.Tensor.abs_` raises."""
    return call_(Abs, torch.Tensor.abs_, input)


def neg_(input: Tensor) -> Tensor:
    """Write ``neg(input)`` into ``input`` and return it; raises what :meth:`torch.Tensor.neg_` raises."""
    return call_(Neg, torch.Tensor.neg_, input)


def log1p_(input: Tensor) -> Tensor:
    """Write ``log1p(input)`` into ``input`` and return it; raises what :meth:`torch.Tensor.log1p_` raises."""
    return call_(Log1p, torch.Tensor.log1p_, input)


def exp2_(input: Tensor) -> Tensor:
    """Write ``exp2(input)`` into ``input`` and return it; raises what :meth:`torch.Tensor.exp2_` raises."""
    return call_(Exp2, torch.Tensor.exp2_, input)


def expm1_(input: Tensor) -> Tensor:
    """Write ``expm1(input)`` into ``input`` and return it; raises what :meth:`torch.Tensor.expm1_` raises."""
    return call_(Expm1, torch.Tensor.expm1_, input)


def log2_(input: Tensor) -> Tensor:
    """Write ``log2(input)`` into ``input`` and return it; raises what :meth:`torch.Tensor.log2_` raises."""
    return call_(Log2, torch.Tensor.log2_, input)


def reciprocal_(input: Tensor) -> Tensor:
    """Write ``reciprocal(input)`` into ``input`` and return it; raises what :meth:`torch.Tensor.reciprocal_` raises."""
    return call_(Reciprocal, torch.Tensor.reciprocal_, input)


def sign_(input: Tensor) -> Tensor:
    """Write ``sign(input)`` into ``input`` and return it; raises what :meth:`torch.Tensor.sign_` raises."""
    return call_(Sign, torch.Tensor.sign_, input)


def sin_(input: Tensor) -> Tensor:
    """Write ``sin(input)`` into ``input`` and return it; raises what :meth:`torch.Tensor.sin_` raises."""
    return call_(Sin, torch.Tensor.sin_, input)


def cos_(input: Tensor) -> Tensor:
    """Write ``cos(input)`` into ``input`` and return it; raises what :meth:`torch.Tensor.cos_` raises."""
    return call_(Cos, torch.Tensor.cos_, input)


def erf_(input: Tensor) -> Tensor:
    """Write ``erf(input)`` into ``input`` and return it; raises what :meth:`torch.Tensor.erf_` raises."""
    return call_(Erf, torch.Tensor.erf_, input)
