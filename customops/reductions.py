"""Operators over axes: sum, mean.

Let alpha be the number of elements of the input and beta that of the output: each output is made of alpha/beta inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import index
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from . import formulas as f
from .autograd import Recorded, differentiates, is_recorded, is_usual
from .compute import cast, kept_shape, pointwise, reduce
from .dispatch import is_idle

Axes = int | Sequence[int] | None
DIFFERENTIABLE = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128}
_UNSET: Any = object()  # torch tells dim=None from no dim

__all__ = ["mean", "sum"]


class Reduction(Recorded):
    """An operator over axes: its ``formula``, and ``scale(g, alpha/beta)``, None where each slope is 1.

    Takes x, a dtype, and what ``reduce`` takes as ``dim``. Saves shapes only.
    """

    formula: ClassVar[Callable]
    scale: ClassVar[Callable | None] = None

    @classmethod
    def forward(cls, x, dtype, *dim):
        """The value, by kernel or formula."""
        if dtype is None and is_idle(x):
            return cls.formula(x, *dim)
        return reduce(cls.formula, x, *dim, dtype=dtype)

    @classmethod
    def setup_context(cls, ctx, inputs, output):
        """Keep what the call was, of x only what it looked like."""
        x = inputs[0]
        ctx.kept = cls.scale, x.shape, x.dtype, inputs[1:]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, g):
        """``g`` scaled while it is small, then viewed in the shape of x: nothing of that size is written."""
        scale, shape, dtype, (_, *dim) = ctx.kept
        if g is None:
            return None, *[None] * (1 + len(dim))
        if scale and (count := shape.numel() // max(g.numel(), 1)):
            g = pointwise(scale, g, count)
        if g.dtype != dtype:
            g = cast(g, dtype)
        if dim and g.shape != (kept := kept_shape(shape, *dim)):
            g = g.view(kept)
        return g.expand(shape), *[None] * (1 + len(dim))

    @classmethod
    def jvp(cls, ctx, dx, *_):
        """Linear: the same of the tangent."""
        *_, (dtype, *dim) = ctx.kept
        return cls.formula(dx, *dim, dtype=dtype)


class Sum(Reduction):
    """z_j = Σ_i x_i over the elements i that output j is made of.

    Each x_i adds 1·x_i to one output, dz_j/dx_i = 1 for that one and 0 for every other:

        dx_i = g_j
    """

    formula = staticmethod(f.sum)


class Mean(Reduction):
    """z_j = (beta/alpha)·Σ_i x_i over the elements i that output j is made of.

    A sum scaled by one over the alpha/beta elements in it, so dz_j/dx_i = beta/alpha:

        dx_i = (beta/alpha)·g_j

    (The source notebook has the inverse factor, alpha/beta, for the mean over an axis.)
    """

    formula = staticmethod(f.mean)
    scale = staticmethod(f.mean_dx)


def sum(
    input: Tensor,
    dim: Axes = _UNSET,
    keepdim: bool = _UNSET,
    *,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Sum over axes; as :func:`torch.sum`, gradient :class:`Sum`.

    Args:
        input: any shape and dtype. Integers and bool are summed in int64.
        dim: axes to sum over, negative ones counted from the end; all of them for None, () or nothing.
        keepdim: keep each axis, with size 1; goes with ``dim``.
        dtype: cast ``input`` to this first.
        out: written instead of a new tensor, resized; goes with ``dim``.

    Raises:
        IndexError: ``dim`` is out of range.
        RuntimeError: an axis appears twice, or ``dtype`` is not that of ``out``.
        TypeError: ``dim`` is no int, or ``keepdim`` no bool.

    >>> sum(torch.tensor([[1, 2], [3, 4]]), dim=0)
    tensor([4, 6])
    """
    return _call(Sum, input, dim, keepdim, dtype, out)


def mean(
    input: Tensor,
    dim: Axes = _UNSET,
    keepdim: bool = _UNSET,
    *,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Mean over axes; as :func:`torch.mean`, gradient :class:`Mean`. The mean of nothing is nan.

    Args, errors: as :func:`sum`, but that ``out`` goes without ``dim`` too; and RuntimeError for integers or bool
    without a floating ``dtype``.

    >>> mean(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), dim=(0, 1), keepdim=True)
    tensor([[2.5000]])
    """
    return _call(Mean, input, dim, keepdim, dtype, out)


def _call(operator: type[Reduction], x, dim, keepdim, dtype, out) -> Tensor:
    if dim is _UNSET and keepdim is not _UNSET:
        return operator.formula(x, keepdim=keepdim)  # raises: torch wants a dim with it
    axes: tuple = ()
    if dim is not _UNSET:
        axes = dim if type(dim) is int else _as_ints(dim), False if keepdim is _UNSET else keepdim
    if out is None and dtype is None and is_usual(x):
        if x.requires_grad and is_recorded():
            return operator.record(x, dtype, *axes)
        if is_idle(x):
            return operator.formula(x, *axes)
    elif out is None and differentiates((x,)) and (dtype is None or dtype in DIFFERENTIABLE):
        return operator.apply(x, dtype, *axes)
    return reduce(operator.formula, x, *axes, dtype=dtype, out=out)


def _as_ints(dim: Any) -> Any:
    """``dim`` in Python's integers, and not the caller's list, which may change before backward."""
    if isinstance(dim, list | tuple):
        return tuple([axis if type(axis) is int else _as_ints(axis) for axis in dim])
    return index(dim) if isinstance(dim, np.integer | Tensor) else dim
