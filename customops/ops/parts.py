"""Operators that only compositions are made of: torch has no name for them, and they are traced, never called alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from .. import formulas as f
from .call import call
from .function import Operator
from .reductions import Amax, Amin, Selective, Step, call_reduction

__all__ = ["finite", "first_greatest", "first_least", "greatest", "least", "norm_power"]

_SAME = Step("mask", "same", ("x", "z"))


def _values(function: Callable, x: Tensor, dim: int | Sequence[int], keepdim: bool = False) -> Tensor:
    """Return what torch's ``max`` or ``min`` gives along one axis, whose gradient is that of its index."""
    (axis,) = (dim,) if isinstance(dim, int) else dim
    return function(x, axis, keepdim).values


class NormPower(Operator):
    """z = x^y, for x >= 0 and a number y, with slope 0 at x = 0: what norms are made of.

    The p-norm is (Σ |x_i|^p)^(1/p). Where all x are 0 it has no derivative for p >= 1, and torch takes 0, which is a
    subgradient. But the chain rule has a factor s^(1/p - 1) there, inf at s = 0, and inf·0 is nan; for p < 1 so has
    |x_i|^(p-1). Elsewhere it is the power that :class:`PowNumber` is:

        dx = g·y·x^(y-1), 0 where x = 0

    Saves x. Kernels of a composition know any y, those of the operator alone only the exponents that PowNumber has.
    """

    formula = staticmethod(f.norm_power)
    derivatives = (f.norm_power_dx,)


class Finite(Operator):
    """z = x, but the largest finite number of its sign for ±inf, by which a sum of exponentials is then scaled.

    Its slope is 1 where there is one:

        dx = g
    """

    formula = staticmethod(f.finite)
    derivatives = (f.finite_dx,)


class Greatest(Amax):
    """z_j = max_i x_i, as :class:`Amax`, but where z_j is nan those that are nan share its gradient.

    So torch has it for ``max`` of all elements and for norms of order inf. Nothing equals a nan, but a nan is the
    output.
    """

    steps = _SAME, *Amax.steps[1:]


class Least(Amin):
    """z_j = min_i x_i, as :class:`Amin`, with the gradient of :class:`Greatest`."""

    steps = _SAME, *Amin.steps[1:]


class FirstGreatest(Selective):
    """z_j = max_i x_i over one axis, with all of the gradient for the first element that is the output.

    Torch returns the index of that element, i_j, beside its value, and the slope is 1 there, else 0: one of the
    gradients that the tie has around it. A nan is the output where there is one. With positions p_i along the axis:

        dx_i = g_j where p_i = i_j, else 0,   i_j = min of p_i where x_i = z_j, or both are nan
    """

    formula = staticmethod(f.amax)
    eager = staticmethod(partial(_values, torch.max))
    derivative = staticmethod(f.selected_dx)
    steps = (
        _SAME,
        Step("place", "place", ("mask", "position")),
        Step("first", "amin", ("place",), reduces=True),
    )


class FirstLeast(FirstGreatest):
    """z_j = min_i x_i over one axis, with the gradient of :class:`FirstGreatest`."""

    formula = staticmethod(f.amin)
    eager = staticmethod(partial(_values, torch.min))


def norm_power(x: Tensor, y: float) -> Tensor:
    """Return ``x ** y`` with slope 0 where x is 0."""
    return call(NormPower, (x, y))


def finite(x: Tensor) -> Tensor:
    """Return ``x`` with the largest finite numbers for infinities."""
    return call(Finite, (x,))


def greatest(x: Tensor, dim: int | Sequence[int] = (), keepdim: bool = False) -> Tensor:
    """Return the greatest value over axes, all for (); elements equal to it share its gradient, and nans likewise."""
    return call_reduction(Greatest, x, None, dim, keepdim)


def least(x: Tensor, dim: int | Sequence[int] = (), keepdim: bool = False) -> Tensor:
    """Return the least value over axes, likewise."""
    return call_reduction(Least, x, None, dim, keepdim)


def first_greatest(x: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    """Return the greatest value over an axis; the first element equal to it, or nan, has its gradient."""
    return call_reduction(FirstGreatest, x, None, dim, keepdim)


def first_least(x: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    """Return the least value over an axis, likewise."""
    return call_reduction(FirstLeast, x, None, dim, keepdim)
