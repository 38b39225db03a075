"""Operators on two tensors, or a tensor and a number, broadcast together: add, sub, mul, pow.

Where an input was broadcast, each of its elements went into many outputs and gets the sum of their gradients; so
every derivative below is followed by a sum (Σ) over the axes that its input was broadcast along.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, is_grad_enabled
from torch.compiler import is_dynamo_compiling, is_exporting

from . import formulas as f
from .autograd import Operator, as_scalar, call, call_
from .dispatch import CLASSES, EXPONENTS

Number = bool | int | float | complex

__all__ = ["add", "add_", "mul", "mul_", "pow", "pow_", "sub", "sub_"]


class Add(Operator):
    """z = x + alpha·y.

    Linear in both, dz/dx = 1 and dz/dy = alpha:

        dx = Σ g,   dy = Σ alpha·g

    Saves shapes only.
    """

    formula = staticmethod(f.add)
    derivatives = (f.add_dx, f.add_dy)


class Sub(Operator):
    """z = x - alpha·y.

    Linear in both, dz/dx = 1 and dz/dy = -alpha:

        dx = Σ g,   dy = Σ -alpha·g

    Saves shapes only.
    """

    formula = staticmethod(f.sub)
    derivatives = (f.sub_dx, f.sub_dy)


class Mul(Operator):
    """z = x·y.

    Linear in each while the other is fixed, dz/dx = y and dz/dy = x:

        dx = Σ g·y,   dy = Σ g·x

    Saves y if x wants a gradient, x if y does.
    """

    formula = staticmethod(f.mul)
    derivatives = (f.mul_dx, f.mul_dy)


class Pow(Operator):
    """z = x^y, x or y a number or both tensors.

    Write x^y = e^(y·log x) and apply the chain rule. Along x, e^(y·log x)·y/x = y·x^(y-1); along y,
    e^(y·log x)·log x = z·log x:

        dx = Σ g·y·x^(y-1),   dy = Σ g·z·log x

    x^0 is 1 whatever x, so dz/dx = 0 where y = 0; 0^y is 0 for all y > 0, so dz/dy = 0 where x = 0 and y >= 0. There
    the expressions would give 0·inf. (As in torch, dx is 0 there even if g is nan; dy is not.)

    Saves x and y for dx, and z too for dy.
    """

    formula = staticmethod(f.pow)
    derivatives = (f.pow_dx, f.pow_dy)


class PowNumber(Operator):
    """z = x^y for one of the usual numbers y: -2, -1, -1/2, 1/2, 3/2, 2, 3. Kernels are compiled for each.

    The same function as :class:`Pow`, by products, quotients and roots where those do. Torch takes the numbers ±1/2 for
    roots too: that of -inf is nan and that of -0 is -0, where the power is inf and 0. No y is 0, so there is no branch:

        dx = g·y·x^(y-1)

    Saves x.
    """

    formula = staticmethod(f.pow_number)
    derivatives = (f.pow_number_dx,)


def add(input: Tensor | Number, other: Tensor | Number, *, alpha: Number = 1, out: Tensor | None = None) -> Tensor:
    """``input + alpha * other``, broadcast; as :func:`torch.add`, gradients :class:`Add`.

    Args:
        input: a tensor, or a number, which does not widen the dtype of a tensor.
        other: likewise; the two broadcast together.
        alpha: a number of the result's kind: no float for an integer result.
        out: written instead of a new tensor, resized to the broadcast shape.

    Raises:
        RuntimeError: the shapes do not broadcast, ``alpha`` does not suit the dtype, or the result cannot be cast
            to that of ``out``. TypeError: an argument is neither tensor nor number.

    >>> add(torch.tensor([1, 2]), 10, alpha=3)
    tensor([31, 32])
    """
    return call(Add, input, other, as_scalar(alpha), out=out)


def sub(input: Tensor | Number, other: Tensor | Number, *, alpha: Number = 1, out: Tensor | None = None) -> Tensor:
    """``input - alpha * other``, broadcast; as :func:`torch.sub`, gradients :class:`Sub`.

    Args, errors: as :func:`add`; and RuntimeError where either is bool.

    >>> sub(torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 2.0]))
    tensor([[ 0., -1.],
            [ 1.,  0.]])
    """
    return call(Sub, input, other, as_scalar(alpha), out=out)


def mul(input: Tensor | Number, other: Tensor | Number, *, out: Tensor | None = None) -> Tensor:
    """``input * other``, broadcast; as :func:`torch.mul`, gradients :class:`Mul`.

    Args, errors: as :func:`add`.

    >>> mul(torch.tensor([1, 2]), 0.5)
    tensor([0.5000, 1.0000])
    """
    return call(Mul, input, other, out=out)


def pow(input: Tensor | Number, exponent: Tensor | Number, *, out: Tensor | None = None) -> Tensor:
    """``input ** exponent``, broadcast; as :func:`torch.pow`, gradients :class:`Pow`.

    Args, errors: as :func:`add`; and TypeError where both are numbers, RuntimeError for an integer tensor to a
    negative number, NotImplementedError for bool to bool.

    >>> pow(torch.tensor([1.0, 2.0, 3.0]), 2)
    tensor([1., 4., 9.])
    >>> pow(2, torch.tensor([0, 3]))
    tensor([1, 8])
    """
    return call(_pow_operator(input, exponent), input, exponent, out=out)


def add_(input: Tensor, other: Tensor | Number, *, alpha: Number = 1) -> Tensor:
    """:func:`add`, written over ``input``; errors as :meth:`torch.Tensor.add_`."""
    return call_(Add, f.add_, input, other, as_scalar(alpha))


def sub_(input: Tensor, other: Tensor | Number, *, alpha: Number = 1) -> Tensor:
    """:func:`sub`, written over ``input``; errors as :meth:`torch.Tensor.sub_`."""
    return call_(Sub, f.sub_, input, other, as_scalar(alpha))


def mul_(input: Tensor, other: Tensor | Number) -> Tensor:
    """:func:`mul`, written over ``input``; errors as :meth:`torch.Tensor.mul_`."""
    return call_(Mul, torch.Tensor.mul_, input, other)


def pow_(input: Tensor, exponent: Tensor | Number) -> Tensor:
    """:func:`pow`, written over ``input``; errors as :meth:`torch.Tensor.pow_`."""
    return call_(_pow_operator(input, exponent), torch.Tensor.pow_, input, exponent)


def _pow_operator(x, y) -> type[Operator]:
    """Which of the two powers torch computes; its CPU kernel takes no roots in float16.

    To a compiler they are one: what y is goes unasked, so that one graph may serve all numbers. But torch 2.13 fails to
    differentiate such a graph; where a gradient is wanted, y is asked and becomes a constant.
    """
    if is_dynamo_compiling():
        wanted = is_grad_enabled() and isinstance(x, Tensor) and x.requires_grad
        if is_exporting() or not wanted:
            return Pow
    if not isinstance(y, Number | np.generic) or y not in EXPONENTS:
        return Pow
    return Pow if type(x) in CLASSES and x.dtype == torch.float16 and x.is_cpu else PowNumber
