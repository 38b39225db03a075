"""Operators that choose: where, clamp. Where an input was broadcast its gradient is summed over those axes (Σ)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import formulas as f
from ..runtime.paths import CLASSES
from .call import call, call_
from .function import Operator

Number = bool | int | float

__all__ = ["clamp", "clamp_", "clamp_max", "clamp_max_", "clamp_min", "clamp_min_", "where"]


class Where(Operator):
    """z = x where the condition holds, else y.

    Each element of z is one of x or of y, and moves with that alone:

        dx = Σ g where the condition holds, else 0
        dy = Σ 0 where the condition holds, else g

    Saves the condition, which has no derivative. A nan or inf of what was not chosen reaches no gradient.
    """

    formula = staticmethod(f.where)
    derivatives = (f.where_dx, f.where_dy)
    tensors = 3

    @classmethod
    def jvp(cls, ctx, dx, dy, _):
        """Return the tangent of whichever was chosen."""
        return _chosen(ctx, f.where, dx, dy, **_read(ctx))

    @classmethod
    def by_formula(cls, x, y, condition):
        """Return torch's value; it takes no condition but of bool."""
        return torch.where(condition, x, y)


class Clamp(Operator):
    """z = min(max(x, low), high).

    Between the bounds the output is x, below them low, above them high; where low > high it is high. At a bound any
    share is a subgradient, and torch gives all to x:

        dx = Σ g where low <= x <= high, else 0
        dlow = Σ g where x < low and low < high, else 0
        dhigh = Σ g where x > high or low > high, else 0

    Saves x and the bounds. A nan of either is the output, and has no gradient, as in torch.
    """

    formula = staticmethod(f.clamp)
    derivatives = (f.clamp_dx, f.clamp_dlow, f.clamp_dhigh)

    @classmethod
    def jvp(cls, ctx, dx, dlow, dhigh):
        """Return the tangent of whichever is the output; between numbers as a gradient, as torch does."""
        x, low, high = (_read(ctx)[name] for name in ("x", "low", "high"))
        if not isinstance(low, Tensor):
            return super().jvp(ctx, dx, dlow, dhigh)
        dx, dlow, dhigh = (0 if tangent is None else tangent for tangent in (dx, dlow, dhigh))
        above = torch.where(x > high, dhigh, dx)
        return _fitted(ctx, torch.where(low > high, dhigh, torch.where(x < low, dlow, above)))


class ClampMin(Operator):
    """z = max(x, y), where y is a bound.

    Where x >= y the output is x, else y. At the bound torch gives all to x, where :class:`Maximum` halves it:

        dx = Σ g where x >= y, else 0
        dy = Σ g where x < y, else 0

    Saves x and y. A nan of either is the output, and has no gradient, as in torch.
    """

    formula = staticmethod(f.clamp_min)
    derivatives = (f.clamp_min_dx, f.clamp_min_dy)

    @classmethod
    def jvp(cls, ctx, dx, dy):
        """Return the tangent of x where x >= y, else that of y: of a nan too, as torch does."""
        return _chosen(ctx, lambda dx, dy, x, y: torch.where(x >= y, dx, dy), dx, dy, **_read(ctx))


class ClampMax(Operator):
    """z = min(x, y), where y is a bound.

    :class:`ClampMin` with both signs turned, min(x, y) = -max(-x, -y):

        dx = Σ g where x <= y, else 0
        dy = Σ g where x > y, else 0

    Saves x and y.
    """

    formula = staticmethod(f.clamp_max)
    derivatives = (f.clamp_max_dx, f.clamp_max_dy)

    @classmethod
    def jvp(cls, ctx, dx, dy):
        """Return the tangent of x where x <= y, else that of y: of a nan too, as torch does."""
        return _chosen(ctx, lambda dx, dy, x, y: torch.where(x <= y, dx, dy), dx, dy, **_read(ctx))


def where(condition: Tensor, input: Tensor | Number, other: Tensor | Number, *, out: Tensor | None = None) -> Tensor:
    """Return ``input`` where the condition holds, else ``other``, as :func:`torch.where`; gradients: :class:`Where`.

    Args:
        condition: a tensor of bool; the three broadcast together.
        input: a tensor of any shape and dtype, or a number, which does not widen the dtype of a tensor.
        other: likewise.
        out: a tensor to write the result to, resized to the broadcast shape.

    Raises:
        TypeError: ``condition`` is no tensor, or another argument neither a tensor nor a number.
        RuntimeError: ``condition`` is not of bool, the shapes do not broadcast, or the result cannot be cast to the
            dtype of ``out``.

    >>> where(torch.tensor([True, False]), torch.tensor([1.0, 2.0]), 0)
    tensor([1., 0.])
    >>> where(torch.tensor([True, False]), torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    tensor([1., 4.])
    """
    is_mask = isinstance(condition, Tensor) and getattr(condition, "dtype", torch.bool) is torch.bool
    if not is_mask or out is not None:
        options = {} if out is None else {"out": out}  # of the result's dtype: torch casts nothing
        return torch.where(condition, input, other, **options)  # type: ignore[call-overload]  # raises, or a tracer sees it
    return call(Where, (input, other, condition))


def clamp(
    input: Tensor,
    min: Tensor | Number | None = None,
    max: Tensor | Number | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Return each element, or the bound that it is beyond, as :func:`torch.clamp`; gradients: :class:`Clamp`.

    With one bound it is :func:`clamp_min` or :func:`clamp_max`.

    Args:
        input: a tensor of any shape and real dtype but bool.
        min: the lower bound: a number, a tensor that broadcasts with ``input``, or None for no bound.
        max: the upper bound, likewise: both tensors or both numbers. Where it is below ``min`` it is the result.
        out: a tensor to write the result to, resized to the broadcast shape.

    Raises:
        TypeError: ``input`` is not a tensor, or one bound is a tensor and the other a number.
        RuntimeError: there is no bound, ``input`` is complex, the shapes do not broadcast, or the result cannot be cast
            to the dtype of ``out``.

    >>> clamp(torch.tensor([-3.0, 0.5, 2.0]), -1, 1)
    tensor([-1.0000,  0.5000,  1.0000])
    """
    if (min is None and max is None) or (out is not None and type(input) not in CLASSES):
        return torch.clamp(input, min, max, out=out)  # type: ignore[arg-type]  # raises, or is a subclass's
    if min is None or max is None:
        return call(ClampMax, (input, max), out) if min is None else call(ClampMin, (input, min), out)
    return call(Clamp, (input, min, max), out)


def clamp_min(input: Tensor, min: Tensor | Number, *, out: Tensor | None = None) -> Tensor:
    """Return each element, or the bound that it is below, as :func:`torch.clamp_min`; gradients: :class:`ClampMin`.

    Args:
        input: a tensor of any shape and real dtype but bool.
        min: a number, or a tensor that broadcasts with ``input``.
        out: a tensor to write the result to, resized to the broadcast shape.

    Raises:
        TypeError: ``input`` is not a tensor, or ``min`` neither a tensor nor a number.
        RuntimeError: ``input`` is complex, the shapes do not broadcast, or the result cannot be cast to the dtype of
            ``out``.

    >>> clamp_min(torch.tensor([-3, 2]), 0)
    tensor([0, 2])
    """
    return call(ClampMin, (input, min), out)


def clamp_max(input: Tensor, max: Tensor | Number, *, out: Tensor | None = None) -> Tensor:
    """Return each element, or the bound that it is above, as :func:`torch.clamp_max`; gradients: :class:`ClampMax`.

    Args:
        input: a tensor of any shape and real dtype but bool.
        max: a number, or a tensor that broadcasts with ``input``.
        out: a tensor to write the result to, resized to the broadcast shape.

    Raises:
        TypeError: ``input`` is not a tensor, or ``max`` neither a tensor nor a number.
        RuntimeError: ``input`` is complex, the shapes do not broadcast, or the result cannot be cast to the dtype of
            ``out``.

    >>> clamp_max(torch.tensor([-3, 2]), 0)
    tensor([-3,  0])
    """
    return call(ClampMax, (input, max), out)


def clamp_(input: Tensor, min: Tensor | Number | None = None, max: Tensor | Number | None = None) -> Tensor:
    """Write ``clamp(input, min, max)`` into ``input``; raises what :meth:`torch.Tensor.clamp_` raises."""
    if min is None and max is None:
        return torch.Tensor.clamp_(input, min, max)  # type: ignore[call-overload]  # raises
    if min is None:
        return call_(ClampMax, lambda x, high: torch.Tensor.clamp_(x, max=high), input, max)
    if max is None:
        return call_(ClampMin, torch.Tensor.clamp_, input, min)
    return call_(Clamp, torch.Tensor.clamp_, input, min, max)


def clamp_min_(input: Tensor, min: Tensor | Number) -> Tensor:
    """Write ``clamp_min(input, min)`` into ``input``; raises what :meth:`torch.Tensor.clamp_min_` raises."""
    return call_(ClampMin, torch.Tensor.clamp_min_, input, min)


def clamp_max_(input: Tensor, max: Tensor | Number) -> Tensor:
    """Write ``clamp_max(input, max)`` into ``input``; raises what :meth:`torch.Tensor.clamp_max_` raises."""
    return call_(ClampMax, torch.Tensor.clamp_max_, input, max)


def _read(ctx) -> dict:
    """Return what the derivatives read, by name, inside ``jvp``."""
    needed, numbers, _ = ctx.tangent_meta
    return dict(zip(needed.rule.names[1:], (*ctx.saved_tensors, *numbers), strict=True))


def _chosen(ctx, choose, dx, dy, **read) -> Tensor:
    """Return the tangent that ``choose`` takes of two, 0 in place of one that does not move."""
    return _fitted(ctx, choose(0 if dx is None else dx, 0 if dy is None else dy, **read))


def _fitted(ctx, tangent: Tensor) -> Tensor:
    *_, (shape, dtype) = ctx.tangent_meta
    return tangent.expand(shape).to(dtype)
