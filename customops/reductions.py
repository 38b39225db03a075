"""Operators over axes: sum, mean.

Let alpha be the number of elements of the input and beta that of the output: each output is made of alpha/beta inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import formulas as f
from .autograd import differentiates
from .compute import pointwise, reduce, reduced_axes

Axes = int | Sequence[int] | None
_ALL: Any = object()  # torch tells dim=None from no dim


__all__ = ["mean", "sum"]


class Sum(Function):
    """z_j = Σ_i x_i over the elements i that output j is made of.

    Each x_i adds 1·x_i to one output, dz_j/dx_i = 1 for that one and 0 for every other:

        dx_i = g_j

    A view of g: nothing is computed or written. Saves shapes only.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x, *options):
        """The value, by kernel or formula; ``options`` are dtype and then what ``reduce`` takes as ``dim``."""
        dtype, *dim = options
        return reduce(f.sum, x, *dim, dtype=dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        """Keep the shape of x."""
        x, ctx.dtype, *ctx.dim = inputs
        ctx.shape, ctx.input_dtype = x.shape, x.dtype

    @staticmethod
    def backward(ctx, g):
        """``g``, seen in the shape of x."""
        return _spread(ctx, g), *[None] * (1 + len(ctx.dim))

    @staticmethod
    def jvp(ctx, dx, *_):
        """A sum is linear: the sum of the tangent."""
        return f.sum(dx, *ctx.dim, dtype=ctx.dtype)


class Mean(Function):
    """z_j = (beta/alpha)·Σ_i x_i over the elements i that output j is made of.

    A sum scaled by one over the alpha/beta elements in it, so dz_j/dx_i = beta/alpha:

        dx_i = (beta/alpha)·g_j

    g is scaled while it is small, then viewed in the shape of x. Saves shapes only. (The source notebook has the
    inverse factor, alpha/beta, for the mean over an axis.)
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x, *options):
        """The value, by kernel or formula; ``options`` as in :class:`Sum`."""
        dtype, *dim = options
        return reduce(f.mean, x, *dim, dtype=dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        """Keep the shape of x, and how many of its elements each output is made of."""
        Sum.setup_context(ctx, inputs, output)
        ctx.count = inputs[0].numel() // max(output.numel(), 1)

    @staticmethod
    def backward(ctx, g):
        """``g`` scaled, and seen in the shape of x."""
        return _spread(ctx, pointwise(f.mean_dx, g, ctx.count)), *[None] * (1 + len(ctx.dim))

    @staticmethod
    def jvp(ctx, dx, *_):
        """A mean is linear: the mean of the tangent."""
        return f.mean(dx, *ctx.dim, dtype=ctx.dtype)


def sum(
    input: Tensor,
    dim: Axes = _ALL,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Sum over axes; as :func:`torch.sum`, gradient :class:`Sum`.

    Args:
        input: any shape and dtype. Integers and bool are summed in int64.
        dim: axes to sum over, negative ones counted from the end; all of them for None, () or nothing.
        keepdim: keep each axis, with size 1.
        dtype: cast ``input`` to this first.
        out: written instead of a new tensor, resized; goes with ``dim``.

    Raises:
        IndexError: ``dim`` is out of range. RuntimeError: an axis appears twice, or ``out`` has another dtype.
        TypeError: ``dim`` is no int, or ``keepdim`` no bool.

    >>> sum(torch.tensor([[1, 2], [3, 4]]), dim=0)
    tensor([4, 6])
    """
    return _call(Sum, f.sum, input, dim, keepdim, dtype, out)


def mean(
    input: Tensor,
    dim: Axes = _ALL,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Mean over axes; as :func:`torch.mean`, gradient :class:`Mean`. The mean of nothing is nan.

    Args, errors: as :func:`sum`; and RuntimeError for integers or bool without a floating ``dtype``.

    >>> mean(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), dim=(0, 1), keepdim=True)
    tensor([[2.5000]])
    """
    return _call(Mean, f.mean, input, dim, keepdim, dtype, out)


def _call(function: type[Function], formula, x, dim, keepdim, dtype, out) -> Tensor:
    if dim is _ALL and keepdim is not False:
        return formula(x, keepdim=keepdim)  # raises: torch wants a dim with it
    axes = () if dim is _ALL else (dim, keepdim)
    if out is None and differentiates((x,)) and (dtype is None or dtype.is_floating_point or dtype.is_complex):
        return function.apply(x, dtype, *axes)
    return reduce(formula, x, *axes, dtype=dtype, out=out)


def _spread(ctx, g: Tensor) -> Tensor:
    """A gradient of the output, seen in the shape of the input."""
    if not (len(ctx.dim) > 1 and ctx.dim[1]):
        for axis in sorted(reduced_axes(len(ctx.shape), *ctx.dim)):
            g = g.unsqueeze(axis)
    if g.is_complex() and not ctx.input_dtype.is_complex:
        g = g.real
    return g.to(ctx.input_dtype).expand(ctx.shape)
