"""Normalisations of ``torch.nn.functional`` as compositions of operators: by sums of exponentials, moments and norms.

Each is a :func:`~customops.fusion.composition.composition`: its gradient follows from those of the operators, and its
docstring says what they come to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as torchs

from ..compositions import norm
from ..fusion.composition import composition
from ..fusion.errors import untraceable
from ..ops.choice import clamp_min
from ..ops.reductions import amax, mean, sum
from ..ops.unary import exp, log, rsqrt
from ..runtime.specs import broadcast_shapes

__all__ = [
    "cosine_similarity",
    "group_norm",
    "layer_norm",
    "log_softmax",
    "normalize",
    "rms_norm",
    "softmax",
    "softmin",
]


@composition(torchs.softmax)
def softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
    """Return z_i = e^x_i / Σ e^x_j along an axis, as :func:`torch.nn.functional.softmax`.

    The greatest x is subtracted first, so that no exponential overflows, and one of them is 1. It cancels, and is
    constant for the gradient:

        dx_i = z_i·(g_i - Σ g_j·z_j)

    A row of which all are -inf, or one is inf, has nan, as in torch.

    Args:
        input: a tensor of any shape and floating dtype.
        dim: the axis, a negative one counted from the end; without it torch computes, and warns.
        dtype: a dtype to cast ``input`` to first.

    Raises:
        IndexError: ``dim`` is out of range.

    >>> softmax(torch.tensor([[1e4, 1e4], [0.0, -1e4]]), 1)
    tensor([[0.5000, 0.5000],
            [1.0000, 0.0000]])
    """
    e = exp(_from_greatest(input, dim, _stacklevel, dtype))
    return e / sum(e, dim, True)


@composition(torchs.log_softmax)
def log_softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    """Return x_i - log Σ e^x_j along an axis, as :func:`torch.nn.functional.log_softmax`.

    With s the :func:`softmax`:

        dx_i = g_i - s_i·Σ g_j

    It stays finite where a softmax rounds to 0. The arguments and errors are those of :func:`softmax`.

    >>> log_softmax(torch.tensor([0.0, -1e4]), 0)
    tensor([     0., -10000.])
    """
    odds, total = log_odds(input, dim, _stacklevel, dtype)
    return odds - total


def log_odds(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Return x less the greatest along an axis, and the logarithm of Σ e^ of that: their difference is log-softmax.

    What picks one element of a row can do so before it subtracts, so before the sum is known.
    """
    odds = _from_greatest(input, dim, _stacklevel, dtype)
    return odds, log(sum(exp(odds), dim, True))


@composition(torchs.softmin)
def softmin(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
    """Return :func:`softmax` of -x, as :func:`torch.nn.functional.softmin`, of the same arguments.

    >>> softmin(torch.tensor([0.0, 1e4]), 0)
    tensor([1., 0.])
    """
    return softmax(-input, dim, _stacklevel, dtype)


def _layer_norm_of_one(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    return torchs.layer_norm(input, [1] * len(normalized_shape), weight, bias, eps)


def _rms_norm_of_one(input, normalized_shape, weight=None, eps=None):
    return torchs.rms_norm(input, [1] * len(normalized_shape), weight, eps)


def _group_norm_of_one(input, num_groups, weight=None, bias=None, eps=1e-5):
    return torch.group_norm(input, 1, weight, bias, eps)


@composition(torchs.layer_norm, _layer_norm_of_one)
def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Return rows of mean 0 and variance 1, scaled and shifted, as :func:`torch.nn.functional.layer_norm`.

    With m the mean of the n elements of a row, v that of (x_i - m)² and r = 1/√(v + eps), y_i = (x_i - m)·r and
    z_i = y_i·weight_i + bias_i. Let h_i be g_i·weight_i:

        dx_i = r·(h_i - (Σ h_j + y_i·Σ h_j·y_j)/n),   dweight = Σ g·y,   dbias = Σ g   over rows

    Args:
        input: a tensor of floating dtype, whose last axes have the shape ``normalized_shape``.
        normalized_shape: the shape of a row.
        weight: a tensor of this shape, or None.
        bias: likewise.
        eps: what is added to a variance, by which a row of equal values is 0.

    Raises:
        RuntimeError: the shapes do not fit.

    >>> layer_norm(torch.tensor([[1.0, 3.0], [2.0, 2.0]]), (2,))
    tensor([[-1.0000,  1.0000],
            [ 0.0000,  0.0000]])
    """
    y = _standardized(input, _rows(input, normalized_shape, weight, bias), eps)
    return _scaled(y, weight, bias).to(input.dtype).contiguous()


@composition(torchs.rms_norm, _rms_norm_of_one)
def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Return rows divided by the root of their mean square, and scaled, as :func:`torch.nn.functional.rms_norm`.

    With r = 1/√(Σ x_j²/n + eps), z_i = x_i·r·weight_i. Let h_i be g_i·weight_i:

        dx_i = r·(h_i - x_i·r²·Σ h_j·x_j/n),   dweight = Σ g·x·r   over rows

    Args:
        input: a tensor of floating dtype, whose last axes have the shape ``normalized_shape``.
        normalized_shape: the shape of a row.
        weight: a tensor of this shape, or None.
        eps: what is added to a mean square; None for the distance from 1 to the next float64 where ``input`` has this
            dtype, else to the next float32.

    Raises:
        RuntimeError: the shapes do not fit.

    >>> rms_norm(torch.tensor([[3.0, 4.0]]), (2,))
    tensor([[0.8485, 1.1314]])
    """
    if eps is None:
        eps = torch.finfo(torch.promote_types(input.dtype, torch.float32)).eps
    scale = rsqrt(mean(input * input, _rows(input, normalized_shape, weight), True) + eps)
    return _scaled(input * scale, weight, None).to(input.dtype).contiguous()


@composition(torchs.group_norm, _group_norm_of_one)
def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Return :func:`layer_norm` of groups of channels, as :func:`torch.nn.functional.group_norm`.

    A row is one group of adjacent channels of one sample, with all of its positions; ``weight`` and ``bias`` have one
    number for each channel.

    Args:
        input: a tensor of floating dtype: samples, channels, and any axes of positions.
        num_groups: how many groups of as many channels there are.
        weight: a tensor of one number for each channel, or None.
        bias: likewise.
        eps: as for :func:`layer_norm`.

    Raises:
        RuntimeError: the channels do not divide into the groups, or the shapes do not fit.

    >>> group_norm(torch.tensor([[1.0, 3.0, 5.0, 5.0]]), 2)
    tensor([[-1.0000,  1.0000,  0.0000,  0.0000]])
    """
    channels = input.shape[1]
    if input.numel() == num_groups or any(x is not None and x.shape != (channels,) for x in (weight, bias)):
        raise ValueError(f"group_norm: expected several elements in a group, and weights of shape ({channels},)")
    grouped = input.unflatten(1, (num_groups, -1))
    y = _standardized(grouped, tuple(range(2, grouped.dim())), eps).flatten(1, 2)
    shape = (-1, *[1] * (input.dim() - 2))
    weight, bias = (x if x is None else x.view(shape) for x in (weight, bias))
    return _scaled(y, weight, bias).to(input.dtype).contiguous()


@composition(torchs.normalize)
def normalize(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Tensor | None = None) -> Tensor:
    """Return x / max(n, eps), where n is the :func:`~customops.norm` of x along an axis.

    So :func:`torch.nn.functional.normalize` has it. Where n >= eps, for the 2-norm, with z the result:

        dx_i = (g_i - z_i·Σ g_j·z_j) / n;   elsewhere dx_i = g_i / eps

    Args:
        input: a tensor of any shape and floating dtype.
        p: the order of the norm.
        dim: the axis, or axes, negative ones counted from the end.
        eps: the least number to divide by.
        out: a tensor to write the result to, resized; torch computes it.

    Raises:
        IndexError: ``dim`` is out of range.

    >>> normalize(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    return input / clamp_min(norm(input, p, dim, True), eps)


@composition(torchs.cosine_similarity)
def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """Return Σ x1·x2 / (n1·n2) along an axis, as :func:`torch.nn.functional.cosine_similarity`.

    n1 and n2 are the 2-norms along it, or ``eps`` where they are below that. With u = x1/n1, v = x2/n2 and z the
    result:

        dx1_i = g·(v_i - z·u_i) / n1,   dx2_i = g·(u_i - z·v_i) / n2

    Args:
        x1: a tensor of floating dtype.
        x2: another, which broadcasts with it.
        dim: the axis of what they broadcast to, a negative one counted from the end.
        eps: the least norm to divide by.

    Raises:
        IndexError: ``dim`` is out of range. RuntimeError: the shapes do not broadcast.

    >>> cosine_similarity(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
    tensor([0.6000])
    """
    shape, dtype = broadcast_shapes(x1.shape, x2.shape), torch.promote_types(x1.dtype, x2.dtype)
    u, v = (_unit(x.to(dtype).expand(shape), dim, eps) for x in (x1, x2))
    return sum(u * v, dim)


def _from_greatest(x: Tensor, dim: int | None, _stacklevel: Any, dtype: torch.dtype | None) -> Tensor:
    """Return x less the greatest along an axis, in ``dtype``, or raise where torch alone knows what is meant."""
    if dim is None:
        raise untraceable("a softmax without dim cannot be traced", "pass dim=")
    if isinstance(_stacklevel, torch.dtype):
        raise untraceable("a softmax whose dtype has no name cannot be traced", "write dtype=")
    if dtype is not None:
        x = x.to(dtype)
    greatest = amax(x, dim, True)
    if x.shape[dim:][:1] in ((), (1,)):  # of one element: the gradient is zero, exactly, where neither is a constant
        return x - greatest
    return x - greatest.detach()


def _rows(x: Tensor, shape: Sequence[int], *of_columns: Tensor | None) -> tuple[int, ...]:
    """Return the axes of a row, or raise where x has no rows of this shape, or what scales columns another one."""
    for each in (x.shape[-len(shape) :], *[w.shape for w in of_columns if w is not None]):
        if tuple(each) != tuple(shape):
            raise ValueError(f"expected rows of shape {tuple(shape)}, got {tuple(each)}")
    return tuple(range(-len(shape), 0))


def _standardized(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    """Return x with mean 0 and variance 1 over axes; of Σ x² - n·m² no digits would be left where m is large."""
    centred = x - mean(x, axes, True)
    return centred * rsqrt(mean(centred * centred, axes, True) + eps)


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return x·weight + bias, without what is None."""
    if weight is not None:
        x = x * weight
    return x if bias is None else x + bias


def _unit(x: Tensor, dim: int, eps: float) -> Tensor:
    """Return x divided by its norm, or by ``eps`` if that is more: the slope is that of the norm, as torch's is."""
    length = norm(x, 2, dim, True)
    return x / (length + (clamp_min(length, eps) - length).detach())
