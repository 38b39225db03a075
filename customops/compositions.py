"""Reductions of torch as compositions of operators: moments, norms, logsumexp, the greatest and the least of an axis.

Each is a :func:`~customops.fusion.composition.composition`. Its gradient follows from those of the operators, and its
docstring says what they come to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .fusion.composition import composition
from .fusion.errors import untraceable
from .ops.binary import maximum, minimum, pow
from .ops.choice import where
from .ops.comparison import ne
from .ops.parts import finite, first_greatest, first_least, greatest, least, norm_power
from .ops.reductions import amax, mean, sum
from .ops.unary import abs, exp, log, sign
from .runtime.reduction import reduced_axes

__all__ = ["logsumexp", "max", "min", "norm", "std", "std_mean", "var", "var_mean", "vector_norm"]

Axes = int | Sequence[int] | None
LONGEST = 1 << 24  # elements along an axis whose positions a float32 tells apart


@composition(torch.var)
def var(
    input: Tensor,
    dim: Any = None,
    unbiased: Any = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Return the variance over axes, as :func:`torch.var`.

    With n elements in each and m their mean, z = Σ (x_i - m)² / (n - c), where c is the correction. The mean is taken
    first: of Σ x² - n·m², both terms as large as the mean is, the difference would have no digits left. By m the slope
    is -2·Σ (x_i - m) / (n - c) = 0, so

        dx_i = g·2·(x_i - m) / (n - c)

    Args:
        input: a tensor of any shape and floating or complex dtype.
        dim: the axes, negative ones counted from the end; all axes for None or nothing.
        unbiased: whether the correction is 1; takes the second place, if it is a bool.
        keepdim: whether to keep each of these axes, with size 1.
        correction: c, by default 1; nan results where n = c and all x_i are equal, else inf where n <= c.
        out: a tensor to write the result to, resized; torch computes it.

    Raises:
        IndexError: ``dim`` is out of range. RuntimeError: ``input`` has integers or bool.

    >>> var(torch.tensor([[1.0, 2.0, 3.0], [4.0, 4.0, 4.0]]), 1)
    tensor([1., 0.])
    """
    return _moments(input, dim, unbiased, keepdim, correction)[0]


@composition(torch.std)
def std(
    input: Tensor,
    dim: Any = None,
    unbiased: Any = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Return the standard deviation over axes, as :func:`torch.std`: the root of :func:`var`, of the same arguments.

    The slope of the root is 1/2z; where z = 0 torch takes 0, as for a norm:

        dx_i = g·(x_i - m) / (n - c) / z, 0 where z = 0

    >>> std(torch.tensor([[1.0, 2.0, 3.0], [4.0, 4.0, 4.0]]), 1)
    tensor([1., 0.])
    """
    return norm_power(_moments(input, dim, unbiased, keepdim, correction)[0], 0.5)


@composition(torch.var_mean)
def var_mean(
    input: Tensor,
    dim: Any = None,
    unbiased: Any = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the variance and the mean over axes, as :func:`torch.var_mean`; see :func:`var`.

    >>> var_mean(torch.tensor([1.0, 2.0, 3.0]), correction=0)
    (tensor(0.6667), tensor(2.))
    """
    return _moments(input, dim, unbiased, keepdim, correction)


@composition(torch.std_mean)
def std_mean(
    input: Tensor,
    dim: Any = None,
    unbiased: Any = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the standard deviation and the mean over axes, as :func:`torch.std_mean`; see :func:`std`.

    >>> std_mean(torch.tensor([1.0, 2.0, 3.0]), 0, True)
    (tensor(1.), tensor(2.))
    """
    z, m = _moments(input, dim, unbiased, keepdim, correction)
    return norm_power(z, 0.5), m


@composition(torch.logsumexp)
def logsumexp(input: Tensor, dim: Any, keepdim: bool = False, *, out: Tensor | None = None) -> Tensor:
    """Return the logarithm of the sum of exponentials over axes, as :func:`torch.logsumexp`.

    z = m + log Σ e^(x_i - m) whatever m. With the greatest x for m, no exponential overflows, and one of them is 1. A
    greatest x that is ±inf is taken as the largest finite number, so that inf - inf is nowhere. m cancels, and is
    constant for the gradient:

        dx_i = g·e^(x_i - m) / Σ e^(x_j - m) = g·e^(x_i - z)

    Args:
        input: a tensor of any shape and dtype; integers give floats, by torch.
        dim: the axes, negative ones counted from the end.
        keepdim: whether to keep each of these axes, with size 1.
        out: a tensor to write the result to, resized; torch computes it.

    Raises:
        IndexError: ``dim`` is out of range. TypeError: there is no ``dim``.

    >>> logsumexp(torch.tensor([[1000.0, 0.0], [-math.inf, -math.inf]]), 1)
    tensor([1000.,  -inf])
    """
    most = finite(amax(input, dim, True).detach())
    z = log(sum(exp(input - most), dim, keepdim))
    return z + (most if keepdim else amax(most, dim))


@composition(torch.linalg.vector_norm)
def vector_norm(
    x: Tensor,
    ord: float = 2,
    dim: Axes = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Return the p-norm over axes, as :func:`torch.linalg.vector_norm`: z = (Σ |x_i|^p)^(1/p) for p = ``ord``.

    For p = inf and -inf it is the greatest and the least |x_i|, and the n elements that have it share the gradient; for
    p = 0 it is how many are not 0, which has none. Else, with 0 where x_i or z is 0:

        dx_i = g·sign(x_i)·(|x_i| / z)^(p-1)

    Args:
        x: a tensor of any shape and floating or complex dtype.
        ord: p, any number.
        dim: the axes, negative ones counted from the end; all axes for None.
        keepdim: whether to keep each of these axes, with size 1.
        dtype: a dtype to cast ``x`` to first.
        out: a tensor to write the result to, resized; torch computes it.

    Raises:
        IndexError: ``dim`` is out of range. RuntimeError: ``x`` has integers or bool.

    >>> vector_norm(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), dim=1)
    tensor([5., 0.])
    """
    return _norm(x, ord, dim, keepdim, dtype)


@composition(torch.norm)
def norm(
    input: Tensor,
    p: float | str | None = "fro",
    dim: Axes = None,
    keepdim: bool = False,
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the norm of all elements, or of vectors over axes, as :func:`torch.norm`; see :func:`vector_norm`.

    Args:
        input: a tensor of any shape and floating or complex dtype.
        p: the order, as for :func:`vector_norm`; "fro" is 2, "nuc" the nuclear norm, which torch computes.
        dim: the axes, negative ones counted from the end; all axes for None.
        keepdim: whether to keep each of these axes, with size 1.
        out: a tensor to write the result to, resized; torch computes it.
        dtype: as for :func:`vector_norm`.

    Raises:
        IndexError: ``dim`` is out of range. RuntimeError: ``input`` has integers or bool.

    >>> norm(torch.tensor([[1.0, 1.0], [1.0, 1.0]]))
    tensor(2.)
    """
    return _norm(input, 2 if p in ("fro", None) else p, dim, keepdim, dtype)


@composition(torch.max)
def max(input: Tensor, dim: Any = None, keepdim: bool = False, *, other: Any = None, out: Any = None) -> Any:
    """Return the greatest of all elements, of an axis with its index, or of two tensors, as :func:`torch.max`.

    Of all, those that are the greatest share the gradient, as of :func:`amax`, but nans share that of a nan. Of an
    axis, the element at the index has it: the first that is the greatest, or nan. In a function that is fused the index
    is not known; kernels and blocks find it again where the gradient needs it. Of two tensors it is :func:`maximum`.

    Args:
        input: a tensor of any shape and real dtype.
        dim: the axis, negative ones counted from the end; or another tensor.
        keepdim: whether to keep the axis, with size 1.
        other: the other tensor, by name.
        out: a tensor to write the result to, two with an axis; torch computes it.

    Raises:
        IndexError: ``dim`` is out of range, or an axis of size 0.
        RuntimeError: ``input`` is empty and ``dim`` not given, or complex.

    >>> max(torch.tensor([[1.0, 3.0, 3.0]]), 1).indices
    tensor([1])
    """
    return _select(input, dim, keepdim, other, (torch.return_types.max, greatest, first_greatest, maximum))


@composition(torch.min)
def min(input: Tensor, dim: Any = None, keepdim: bool = False, *, other: Any = None, out: Any = None) -> Any:
    """Return the least of all elements, of an axis with its index, or of two tensors, as :func:`torch.min`.

    The arguments, gradients and errors are those of :func:`max`.

    >>> min(torch.tensor([[1.0, 3.0], [0.0, 2.0]]))
    tensor(0.)
    """
    return _select(input, dim, keepdim, other, (torch.return_types.min, least, first_least, minimum))


class _Indices:
    """What stands for the indices of max and min while a function is traced: nothing can be done with them."""

    def __customops__(self):
        raise untraceable("the indices of max and min cannot be traced", "use torch.argmax outside the function")

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise untraceable("the indices of max and min cannot be traced", "use torch.argmax outside the function")


def _moments(x: Tensor, dim: Any, unbiased: Any, keepdim: bool, correction: float | None) -> tuple[Tensor, Tensor]:
    """Return the variance and the mean."""
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    if correction is None:
        correction = 0 if unbiased is False else 1
    centred = x - mean(x, dim, True)
    count = math.prod(x.shape[axis] for axis in reduced_axes(x.dim(), () if dim is None else dim))
    freedom = count - correction
    return sum(centred * centred, dim, keepdim) / (freedom if freedom > 0 else 0), mean(x, dim, keepdim)


def _norm(x: Tensor, p: Any, dim: Axes, keepdim: bool, dtype: torch.dtype | None) -> Tensor:
    """Return the norm of order ``p``, or raise where operators do not compute it."""
    if isinstance(p, str):
        raise untraceable(f"a norm of order {p!r} cannot be traced, as it is one of matrices", "call it outside")
    if dtype is not None:
        x = x.to(dtype)
    axes = () if dim is None else dim
    if p == 0:
        return sum(where(ne(x, 0), 1.0, sign(x)), axes, keepdim)  # the sign, for a gradient of 0 everywhere
    if math.isinf(p):
        return (greatest if p > 0 else least)(abs(x), axes, keepdim)
    if p == 1:
        return sum(abs(x), axes, keepdim)
    if p == 2:
        return norm_power(sum(x * x, axes, keepdim), 0.5)
    power, root = (pow if p > 1 else norm_power), (norm_power if p > 0 else pow)  # where slopes at 0 would be inf
    return root(sum(power(abs(x), p), axes, keepdim), 1 / p)


def _select(x: Tensor, dim: Any, keepdim: bool, other: Any, functions: tuple) -> Any:
    """Return what ``max`` or ``min`` return: ``functions`` are the type of values and indices, and the operators."""
    with_indices, of_all, of_axis, of_two = functions
    if isinstance(dim, Tensor) or other is not None:
        return of_two(x, dim if other is None else other)
    if dim is None:
        return of_all(x)
    if x.dim() and x.shape[dim] > LONGEST:
        raise untraceable(f"max and min of more than {LONGEST} elements cannot be traced", "use amax or amin")
    return with_indices((of_axis(x, dim, keepdim), _Indices()))
