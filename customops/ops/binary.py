"""Operators on two tensors, or a tensor and a number, broadcast together: add, sub, mul, div, maximum, minimum, pow.

Where an input was broadcast, each of its elements went into many outputs and gets the sum of their gradients; so
every derivative below is followed by a sum (Σ) over the axes that its input was broadcast along.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, is_grad_enabled
from torch.compiler import is_dynamo_compiling

from .. import formulas as f
from .._compat import is_exporting, saved_tensor_hooks
from ..runtime.paths import CLASSES, EXPONENTS
from ..runtime.rules import tuple_getter
from .call import as_scalar, call, call_
from .function import Operator

Number = bool | int | float | complex
_NUMBERS = bool, int, float, complex, np.generic
_Y_X_Z = tuple_getter((1, 0, 2))  # out of (x, y, z), in the order in which torch saves them
_TAKES_SYMBOLS = torch.__version__ >= (2, 15)  # type: ignore[operator]  # whether torch differentiates a power whose exponent is one

__all__ = ["add", "add_", "div", "div_", "maximum", "minimum", "mul", "mul_", "pow", "pow_", "square", "square_"]
__all__ += ["sub", "sub_"]


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

    Saves y if x needs a gradient, x if y does.
    """

    formula = staticmethod(f.mul)
    derivatives = (f.mul_dx, f.mul_dy)


class Div(Operator):
    """z = x/y.

    Linear in x, dz/dx = 1/y. Along y, z·y = x; differentiating both sides, dz/dy·y + z = 0, so dz/dy = -z/y:

        dx = Σ g/y,   dy = Σ -g·(x/y)/y

    Saves y, and x too for dy; the quotient is taken again, as in torch.
    """

    formula = staticmethod(f.div)
    derivatives = (f.div_dx, f.div_dy)

    @classmethod
    def jvp(cls, ctx, dx, dy):
        """Return (dx - dy·z)/y, as torch computes it: inf and nan then meet as they do there."""
        if dx is None or dy is None:
            return super().jvp(ctx, dx, dy)
        y, x = (value.to(ctx.tangent_meta[2][1]) for value in ctx.saved_tensors)
        return (dx - dy * (x / y)) / y


class Maximum(Operator):
    """z = max(x, y), of two tensors.

    Where x > y the output is x, dz/dx = 1 and dz/dy = 0; where x < y the other way round. Where they are equal any
    shares that add up to 1 are a subgradient, and torch takes a half for each:

        dx = Σ g where x > y, g/2 where x = y, else 0
        dy = Σ g where x < y, g/2 where x = y, else 0

    A nan, on either side, is the output, and both get g, as in torch.

    Saves x and y.
    """

    formula = staticmethod(f.maximum)
    derivatives = (f.maximum_dx, f.maximum_dy)

    @classmethod
    def jvp(cls, ctx, dx, dy):
        """Return the tangent of whichever was chosen: see :func:`_jvp_of_choice`."""
        return _jvp_of_choice(ctx, torch.gt, dx, dy)


class Minimum(Operator):
    """z = min(x, y), of two tensors.

    :class:`Maximum` with both signs turned, min(x, y) = -max(-x, -y), and so are its gradients:

        dx = Σ g where x < y, g/2 where x = y, else 0
        dy = Σ g where x > y, g/2 where x = y, else 0

    A nan, on either side, is the output, and both get g, as in torch.

    Saves x and y.
    """

    formula = staticmethod(f.minimum)
    derivatives = (f.maximum_dy, f.maximum_dx)

    @classmethod
    def jvp(cls, ctx, dx, dy):
        """Return the tangent of whichever was chosen: see :func:`_jvp_of_choice`."""
        return _jvp_of_choice(ctx, torch.lt, dx, dy)


class Pow(Operator):
    """z = x^y, x or y a number or both tensors.

    Write x^y = e^(y·log x) and apply the chain rule. Along x, e^(y·log x)·y/x = y·x^(y-1); along y,
    e^(y·log x)·log x = z·log x:

        dx = Σ g·y·x^(y-1),   dy = Σ g·z·log x

    x^0 is 1 whatever x, so dz/dx = 0 where y = 0; 0^y is 0 for all y > 0, so dz/dy = 0 where x = 0 and y > 0. There
    the expressions would give 0·inf. At 0^0, where 0^y jumps, dz/dy is 0 as in torch. (So is dx where y = 0, even if g
    is nan; dy is not.)

    Saves x and y for dx, and z too for dy.
    """

    formula = staticmethod(f.pow)
    derivatives = (f.pow_dx, f.pow_dy)

    @classmethod
    def prepare(cls, ctx, inputs):
        """Under hooks save z of two tensors even where it is not read, as torch does.

        A checkpoint pairs by position what two passes saved, one of which torch's operator may have computed.
        """
        pick = super().prepare(ctx, inputs)
        if saved_tensor_hooks() and any(ctx.needs_input_grad) and all(isinstance(x, Tensor) for x in inputs):
            return _Y_X_Z
        return pick


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
    """Return ``input + alpha * other``, broadcast, as :func:`torch.add`; gradients: :class:`Add`.

    Args:
        input: a tensor of any shape and dtype, or a number, which does not widen the dtype of a tensor.
        other: likewise; the two broadcast together.
        alpha: a number that ``other`` is multiplied by; no float for an integer result.
        out: a tensor to write the result to, resized to the broadcast shape.

    Raises:
        TypeError: an argument is neither a tensor nor a number.
        RuntimeError: the shapes do not broadcast, ``alpha`` does not suit the dtype of the result, or the result
            cannot be cast to the dtype of ``out``.

    >>> add(torch.tensor([[1.0], [2.0]]), torch.tensor([3.0, 4.0]))
    tensor([[4., 5.],
            [5., 6.]])
    >>> add(torch.tensor([1, 2]), 10, alpha=3)
    tensor([31, 32])
    """
    return call(Add, (input, other, alpha if type(alpha) is int else as_scalar(alpha)), out)


def sub(input: Tensor | Number, other: Tensor | Number, *, alpha: Number = 1, out: Tensor | None = None) -> Tensor:
    """Return ``input - alpha * other``, broadcast, as :func:`torch.sub`; gradients: :class:`Sub`.

    Args:
        input: a tensor of any shape and dtype, or a number, which does not widen the dtype of a tensor.
        other: likewise; the two broadcast together.
        alpha: a number that ``other`` is multiplied by; no float for an integer result.
        out: a tensor to write the result to, resized to the broadcast shape.

    Raises:
        TypeError: an argument is neither a tensor nor a number.
        RuntimeError: an argument is bool, the shapes do not broadcast, ``alpha`` does not suit the dtype of the result,
            or the result cannot be cast to the dtype of ``out``.

    >>> sub(torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 2.0]))
    tensor([[ 0., -1.],
            [ 1.,  0.]])
    """
    return call(Sub, (input, other, alpha if type(alpha) is int else as_scalar(alpha)), out)


def mul(input: Tensor | Number, other: Tensor | Number, *, out: Tensor | None = None) -> Tensor:
    """Return ``input * other``, broadcast, as :func:`torch.mul`; gradients: :class:`Mul`.

    Args:
        input: a tensor of any shape and dtype, or a number, which does not widen the dtype of a tensor.
        other: likewise; the two broadcast together.
        out: a tensor to write the result to, resized to the broadcast shape.

    Raises:
        TypeError: an argument is neither a tensor nor a number.
        RuntimeError: the shapes do not broadcast, or the result cannot be cast to the dtype of ``out``.

    >>> mul(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.5]))
    tensor([3., 1.])
    >>> mul(torch.tensor([1, 2]), 0.5)
    tensor([0.5000, 1.0000])
    """
    return call(Mul, (input, other), out)


def div(
    input: Tensor | Number, other: Tensor | Number, *, rounding_mode: str | None = None, out: Tensor | None = None
) -> Tensor:
    """Return ``input / other``, broadcast, as :func:`torch.div`; gradients: :class:`Div`.

    Args:
        input: a tensor of any shape and dtype, or a number, which does not widen the dtype of a tensor.
        other: likewise; the two broadcast together. Integers and bool give the default dtype.
        rounding_mode: ``"trunc"`` or ``"floor"`` to round the quotient: torch's own operator then computes, with
            gradients of 0.
        out: a tensor to write the result to, resized to the broadcast shape.

    Raises:
        TypeError: an argument is neither a tensor nor a number.
        RuntimeError: the shapes do not broadcast, or the result cannot be cast to the dtype of ``out``.

    >>> div(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 0.0]))
    tensor([0.5000,    inf])
    >>> div(torch.tensor([1, -3]), 2)
    tensor([ 0.5000, -1.5000])
    """
    if rounding_mode is not None:
        return torch.div(input, other, rounding_mode=rounding_mode, out=out)  # type: ignore[arg-type]
    return call(Div, (input, other), out)


def maximum(input: Tensor, other: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return the larger of two elements, broadcast, as :func:`torch.maximum`; gradients: :class:`Maximum`.

    Args:
        input: a tensor of any shape and real dtype.
        other: likewise; the two broadcast together.
        out: a tensor to write the result to, resized to the broadcast shape.

    Raises:
        TypeError: an argument is not a tensor.
        RuntimeError: one is complex, the shapes do not broadcast, or the result cannot be cast to the dtype of ``out``.

    >>> maximum(torch.tensor([1.0, torch.nan]), torch.tensor([2.0, 0.0]))
    tensor([2., nan])
    """
    return call(Maximum, (input, other), out)


def minimum(input: Tensor, other: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return the smaller of two elements, broadcast, as :func:`torch.minimum`; gradients: :class:`Minimum`.

    Args:
        input: a tensor of any shape and real dtype.
        other: likewise; the two broadcast together.
        out: a tensor to write the result to, resized to the broadcast shape.

    Raises:
        TypeError: an argument is not a tensor.
        RuntimeError: one is complex, the shapes do not broadcast, or the result cannot be cast to the dtype of ``out``.

    >>> minimum(torch.tensor([[1], [3]]), torch.tensor([2, 4]))
    tensor([[1, 1],
            [2, 3]])
    """
    return call(Minimum, (input, other), out)


def pow(input: Tensor | Number, exponent: Tensor | Number, *, out: Tensor | None = None) -> Tensor:
    """Return ``input ** exponent``, broadcast, as :func:`torch.pow`; gradients: :class:`Pow`, :class:`PowNumber`.

    Args:
        input: a tensor of any shape and dtype, or a number, which does not widen the dtype of a tensor.
        exponent: likewise; the two broadcast together.
        out: a tensor to write the result to, resized to the broadcast shape.

    Raises:
        TypeError: both are numbers, or one is neither a tensor nor a number.
        RuntimeError: the shapes do not broadcast, an integer tensor is raised to a negative number, or the result
            cannot be cast to the dtype of ``out``.
        NotImplementedError: both are tensors of bool.

    >>> pow(torch.tensor([1.0, 2.0, 3.0]), 2)
    tensor([1., 4., 9.])
    >>> pow(torch.tensor([2.0, 4.0]), torch.tensor([3.0, 0.5]))
    tensor([8., 2.])
    >>> pow(2, torch.tensor([0, 3]))
    tensor([1, 8])
    """
    return call(_pow_operator(input, exponent), (input, exponent), out)


def square(input: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return the square of each element, as :func:`torch.square`; gradient: :class:`PowNumber`.

    Args:
        input: a tensor of any shape and dtype; the result has the same dtype, int64 of bool.
        out: a tensor to write the result to, resized to the shape of ``input``.

    Raises:
        TypeError: ``input`` is not a tensor.
        RuntimeError: the result cannot be cast to the dtype of ``out``.

    >>> square(torch.tensor([-2, 3]))
    tensor([4, 9])
    """
    if not isinstance(input, Tensor):
        return torch.square(input, out=out)  # raises
    return pow(input, 2, out=out)


def add_(input: Tensor, other: Tensor | Number, *, alpha: Number = 1) -> Tensor:
    """Write ``input + alpha * other`` into ``input`` and return it; raises what :meth:`torch.Tensor.add_` raises."""
    return call_(Add, f.add_, input, other, alpha if type(alpha) is int else as_scalar(alpha))


def sub_(input: Tensor, other: Tensor | Number, *, alpha: Number = 1) -> Tensor:
    """Write ``input - alpha * other`` into ``input`` and return it; raises what :meth:`torch.Tensor.sub_` raises."""
    return call_(Sub, f.sub_, input, other, alpha if type(alpha) is int else as_scalar(alpha))


def mul_(input: Tensor, other: Tensor | Number) -> Tensor:
    """Write ``input * other`` into ``input`` and return it; raises what :meth:`torch.Tensor.mul_` raises."""
    return call_(Mul, torch.Tensor.mul_, input, other)


def div_(input: Tensor, other: Tensor | Number, *, rounding_mode: str | None = None) -> Tensor:
    """Write ``input / other`` into ``input`` and return it; raises what :meth:`torch.Tensor.div_` raises."""
    if rounding_mode is not None:
        return torch.Tensor.div_(input, other, rounding_mode=rounding_mode)  # type: ignore[arg-type]
    return call_(Div, torch.Tensor.div_, input, other)


def pow_(input: Tensor, exponent: Tensor | Number) -> Tensor:
    """Write ``input ** exponent`` into ``input`` and return it; raises what :meth:`torch.Tensor.pow_` raises."""
    return call_(_pow_operator(input, exponent), torch.Tensor.pow_, input, exponent)


def square_(input: Tensor) -> Tensor:
    """Write ``square(input)`` into ``input`` and return it; raises what :meth:`torch.Tensor.square_` raises."""
    return call_(_pow_operator(input, 2), torch.Tensor.pow_, input, 2)


def _jvp_of_choice(ctx, chooses, dx, dy) -> Tensor:
    """Return the tangent of x where ``chooses(x, y)``, half of each where the two are equal, else that of y.

    Where one is nan, that is the tangent of y too. Torch computes it in this form, in which inf and nan meet otherwise
    than in gradients.
    """
    *_, (shape, dtype) = ctx.tangent_meta
    y, x = ctx.saved_tensors
    dx, dy = (0 if tangent is None else tangent.to(dtype) for tangent in (dx, dy))
    share = torch.where(x == y, 0.5, chooses(x, y).to(dtype))
    return (dy + share * (dx - dy)).expand(shape)


def _pow_operator(x, y) -> type[Operator]:
    """Return which of the two powers computes x^y: :class:`PowNumber` where torch has products or roots for y.

    Torch's CPU kernel takes no roots in float16. To a compiler the two are one: it does not ask for the value of y, so
    that one graph may serve all numbers. But torch before 2.15 fails to differentiate such a graph; where x needs a
    gradient, y is asked for there and becomes a constant.
    """
    if is_dynamo_compiling():
        needs_grad = is_grad_enabled() and isinstance(x, Tensor) and x.requires_grad
        if is_exporting() or _TAKES_SYMBOLS or not needs_grad:
            return Pow
    if type(y) in CLASSES or not isinstance(y, _NUMBERS) or y not in EXPONENTS:
        return Pow
    return Pow if type(x) in CLASSES and x.dtype == torch.float16 and x.is_cpu else PowNumber
