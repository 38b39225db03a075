"""Activations of ``torch.nn.functional`` that are one function in one range and another elsewhere.

Each is a :func:`~customops.fusion.composition.composition`; see ``activations.py``. A comparison with nan is false.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as torchs

from ..fusion.composition import composition
from ..ops.choice import clamp, where
from ..ops.comparison import ge, gt, le
from .activations import refuse

__all__ = ["hardshrink", "prelu", "softshrink", "threshold"]


@composition(torchs.threshold)
def threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
    """Return x where x > t, else v, as :func:`torch.nn.functional.threshold`.

        dx = g where x > t, else 0

    Args:
        input: x, a tensor of any shape and floating dtype.
        threshold: t, a number.
        value: v, a number.
        inplace: whether to write the result into ``input``; torch computes it, and a fused function refuses it.

    >>> threshold(torch.tensor([-2.0, 3.0]), 1.0, 20.0)
    tensor([20.,  3.])
    """
    refuse(inplace)
    return where(le(input, threshold), value, input)


@composition(torchs.hardshrink)
def hardshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """Return 0 where -λ <= x <= λ, else x, as :func:`torch.nn.functional.hardshrink`; λ is ``lambd``.

        dx = 0 where -λ <= x <= λ, else g

    Args:
        input: x, a tensor of any shape and floating dtype.
        lambd: λ, a number.

    >>> hardshrink(torch.tensor([-2.0, 0.3, 0.5]))
    tensor([-2.,  0.,  0.])
    """
    return where(ge(input, -lambd), where(le(input, lambd), 0, input), input)


@composition(torchs.softshrink)
def softshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """Return x less what is nearest to it from -λ to λ, as :func:`torch.nn.functional.softshrink`; λ is ``lambd``.

        dx = 0 where -λ <= x <= λ, else g

    Args:
        input: x, a tensor of any shape and floating dtype.
        lambd: λ, a number of at least 0.

    Raises:
        RuntimeError: ``lambd`` is negative.

    >>> softshrink(torch.tensor([-2.0, 0.3, 2.0]))
    tensor([-1.5000,  0.0000,  1.5000])
    """
    return input - clamp(input, -lambd, lambd)


@composition(torchs.prelu)
def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """Return x where x > 0, else a·x, as :func:`torch.nn.functional.prelu`; a is ``weight``, which is learned.

        dx = g where x > 0, else a·g;   da = Σ 0 where x > 0, else g·x   over what has one a

    Args:
        input: x, a tensor of any shape and floating dtype.
        weight: a, a tensor of one number, or of one for each channel, which dimension 1 counts.

    Raises:
        RuntimeError: ``weight`` has another shape, or another dtype than ``input``.

    >>> prelu(torch.tensor([-2.0, 3.0]), torch.tensor([0.5]))
    tensor([-1.,  3.])
    """
    channels = input.shape[1] if input.dim() > 1 else 1
    if weight.dim() > 1 or weight.numel() not in (1, channels):
        raise ValueError(f"prelu: expected one weight, or {channels}, got shape {tuple(weight.shape)}")
    slopes = weight.view(-1, *[1] * (input.dim() - 2)) if weight.numel() > 1 else weight.view(())
    return input * where(gt(input, 0), 1, slopes)
