"""Derivatives on a CPU by blocks that stay in its cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

BLOCK_ELEMENTS = 1 << 17  # of a derivative, which are summed while they are in a CPU's cache
LARGE_ELEMENTS = 8 * BLOCK_ELEMENTS  # from where on that is faster
LEAST_TENSORS = 3  # that a derivative reads, g among them, for that to be faster where it is not summed


def is_large(g: Tensor) -> bool:
    """Return whether blocks are faster for derivatives of a cotangent of this size."""
    return g.numel() >= LARGE_ELEMENTS


def derivative_by_blocks(derivative: Callable, values: Sequence, shape: torch.Size | None) -> Tensor:
    """Return a derivative, summed to ``shape`` if that is less than g's; its intermediates stay in the cache.

    Blocks are slices of the axis that is furthest apart in memory, of those that make them small enough. All is
    computed at once, and not summed, where there is none, and where a torch operator or two need no memory in between.
    """
    g, is_summed = values[0], shape is not None and shape != values[0].shape
    count = g.numel() // BLOCK_ELEMENTS
    axis = max(range(-g.dim(), 0), key=lambda a: (4 * g.shape[a] >= count, g.stride(a)))
    if 4 * g.shape[axis] < count or sum(isinstance(x, Tensor) for x in values) < LEAST_TENSORS - is_summed:
        return derivative(*values)
    step = -(-g.shape[axis] // count)
    blocks = zip(*[_split(x, axis, step, g.shape[axis]) for x in values])  # noqa: B905 - repeat() has no end
    if is_summed and shape is not None:
        return _summed(derivative, blocks, g, axis, shape)
    grad: Any = None
    slices: Iterator[Tensor] = iter(())
    for block in blocks:
        result = derivative(*block)
        if grad is None:
            grad = torch.empty_like(g, dtype=result.dtype)
            slices = iter(grad.split(step, axis))
        next(slices).copy_(result)
    return grad


def _summed(derivative: Callable, blocks: Iterable, g: Tensor, axis: int, shape: torch.Size) -> Tensor:
    """Return the derivative summed to ``shape``: each block first, those of half types in float32."""
    axes = [a for a in range(-g.dim(), 0) if len(shape) < -a or shape[a] != g.shape[a]]
    partials: list[Tensor] = []
    for block in blocks:
        result = derivative(*block)
        dtype = torch.float32 if result.dtype.itemsize == 2 else None
        partials.append(result.sum(axes, keepdim=True, dtype=dtype))
    total = torch.cat(partials, axis)
    return (total.sum(axis, keepdim=True) if axis in axes else total).view(shape)


def _split(x: Any, axis: int, step: int, size: int) -> Iterable:
    """Return the slices of ``x`` that go with those of a tensor of ``size`` along ``axis``, to which it broadcasts."""
    if isinstance(x, Tensor) and x.dim() >= -axis and x.shape[axis] == size:
        return x.split(step, axis)
    return repeat(x)
