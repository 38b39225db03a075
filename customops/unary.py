"""Operators on one tensor: log, exp, relu, sigmoid."""

from __future__ import annotations

import torch
from torch import Tensor

from . import formulas as f
from .autograd import Operator, call, call_

__all__ = ["exp", "exp_", "log", "log_", "relu", "relu_", "sigmoid", "sigmoid_"]


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


def log(input: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Natural logarithm, elementwise; as :func:`torch.log`, gradient :class:`Log`.

    Args:
        input: any shape and dtype; integers and bool become the default dtype.
        out: written instead of a new tensor, resized to the shape of ``input``.

    Raises:
        TypeError: ``input`` is not a tensor.
        RuntimeError: the result cannot be cast to the dtype of ``out``.

    >>> log(torch.tensor([1.0, 0.0]))
    tensor([0., -inf])
    """
    return call(Log, input, out=out)


def exp(input: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Exponential, elementwise; as :func:`torch.exp`, gradient :class:`Exp`.

    Args, errors: as :func:`log`.

    >>> exp(torch.tensor([0.0, -torch.inf]))
    tensor([1., 0.])
    """
    return call(Exp, input, out=out)


def relu(input: Tensor) -> Tensor:
    """The larger of ``input`` and 0, elementwise; as :func:`torch.relu`, gradient :class:`Relu`.

    Args:
        input: any shape, any real dtype but bool; the result has the same.

    Raises:
        TypeError: ``input`` is not a tensor.
        RuntimeError: ``input`` is bool. NotImplementedError: it is complex.

    >>> relu(torch.tensor([-2, 0, 3]))
    tensor([0, 0, 3])
    """
    return call(Relu, input)


def sigmoid(input: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Logistic function, elementwise, without overflow; as :func:`torch.sigmoid`, gradient :class:`Sigmoid`.

    Args, errors: as :func:`log`.

    >>> sigmoid(torch.tensor([0.0, -1000.0]))
    tensor([0.5000, 0.0000])
    """
    return call(Sigmoid, input, out=out)


def log_(input: Tensor) -> Tensor:
    """:func:`log`, written over ``input``; errors as :meth:`torch.Tensor.log_`."""
    return call_(Log, torch.Tensor.log_, input)


def exp_(input: Tensor) -> Tensor:
    """:func:`exp`, written over ``input``; errors as :meth:`torch.Tensor.exp_`."""
    return call_(Exp, torch.Tensor.exp_, input)


def relu_(input: Tensor) -> Tensor:
    """:func:`relu`, written over ``input``; errors as :meth:`torch.Tensor.relu_`."""
    return call_(Relu, torch.Tensor.relu_, input)


def sigmoid_(input: Tensor) -> Tensor:
    """:func:`sigmoid`, written over ``input``; errors as :meth:`torch.Tensor.sigmoid_`."""
    return call_(Sigmoid, torch.Tensor.sigmoid_, input)
