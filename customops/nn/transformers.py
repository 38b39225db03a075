"""Functions of transformer layers that torch has no name for, each one kernel; :func:`~customops.fuse` made them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..fusion.decorator import fuse
from ..ops.unary import tanh
from .activations import gelu, silu
from .normalizations import rms_norm

__all__ = ["add_rms_norm", "geglu", "rotary_embedding", "softcap", "swiglu"]


@fuse
def swiglu(input: Tensor, gate: Tensor) -> Tensor:
    """Return x·silu(gate), for the two projections of a feed-forward block.

        dx = g·silu(gate),   dgate = g·x·silu'(gate)

    Args:
        input: x, a tensor of any shape and floating dtype.
        gate: a tensor that broadcasts with it.

    >>> swiglu(torch.tensor([2.0]), torch.tensor([1.0]))
    tensor([1.4621])
    """
    return input * silu(gate)


@fuse
def geglu(input: Tensor, gate: Tensor, approximate: str = "none") -> Tensor:
    """Return x·gelu(gate), for the two projections of a feed-forward block.

        dx = g·gelu(gate),   dgate = g·x·gelu'(gate)

    Args:
        input: x, a tensor of any shape and floating dtype.
        gate: a tensor that broadcasts with it.
        approximate: "none" or "tanh", as for :func:`gelu`.

    >>> geglu(torch.tensor([2.0]), torch.tensor([1.0]))
    tensor([1.6827])
    """
    return input * gelu(gate, approximate=approximate)


@fuse
def add_rms_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return :func:`rms_norm` of ``input + residual``, and that sum, which the next block adds to.

    The gradient of the sum is that which arrives for it, and that of the norm; both terms of the sum have it.

    Args:
        input: a tensor of floating dtype, whose last axes have the shape ``normalized_shape``.
        residual: a tensor that broadcasts with it.
        normalized_shape: the shape of a row.
        weight: a tensor of this shape, or None.
        eps: as for :func:`rms_norm`.

    >>> add_rms_norm(torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 2.0]]), (2,))
    (tensor([[0.8485, 1.1314]]), tensor([[3., 4.]]))
    """
    total = input + residual
    return rms_norm(total, normalized_shape, weight, eps), total


@fuse
def softcap(input: Tensor, cap: float) -> Tensor:
    """Return c·tanh(x/c), which is near x for |x| far below c, and below c for all x: a bound for logits.

        dx = g·(1 - tanh²(x/c))

    Args:
        input: x, a tensor of any shape and floating dtype.
        cap: c, a number above 0.

    >>> softcap(torch.tensor([1.0, 1000.0]), 30.0)
    tensor([ 0.9996, 30.0000])
    """
    return cap * tanh(input / cap)


@fuse
def rotary_embedding(input: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return pairs of elements of the last axis, turned by angles of which cosines and sines are given.

    Element i of the first half and of the second are a pair (a, b), as in most transformers since GPT-NeoX:

        z = (a·cos - b·sin, b·cos + a·sin),   da = ga·cos + gb·sin,   db = gb·cos - ga·sin

    Args:
        input: a tensor of floating dtype, whose last axis has an even size n.
        cos: a tensor that broadcasts with ``input``; its last axis has the size n, in two halves alike.
        sin: likewise.

    >>> rotary_embedding(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0]))
    tensor([0., 1.])
    """
    (a, b), (cos_a, cos_b), (sin_a, sin_b) = (x.chunk(2, -1) for x in (input, cos, sin))
    return torch.cat((a * cos_a - b * sin_a, b * cos_b + a * sin_b), -1)
