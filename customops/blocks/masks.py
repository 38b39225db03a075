"""Comparisons and choices in a block, by operators of torch that use a CPU's vector registers.

What reads or writes bool takes its elements one by one: ``torch.where`` some thirty times as long as a product. So in
a block a comparison is a *mask*, 1 or 0 in the dtype of values, and a choice is made of bits::

    where(mask, x, y)  =  y ^ ((x ^ y) where mask is 1, else 0)

No bit is computed with: nan, infinities and -0.0 stay what they are, where m·x + (1 - m)·y would be nan for an
infinite value that is not chosen. Of y = 0 it is one call, of x = 0 two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

BITS = {torch.float32: torch.int32, torch.float64: torch.int64}  # by dtype of values, integers of as many bits

COMPARISONS = frozenset({torch.lt, torch.le, torch.gt, torch.ge, torch.eq, torch.ne})


def keep(x: Tensor, mask: Tensor, out: Tensor) -> Tensor:
    """Write ``x`` where a mask is 1, else 0."""
    return torch.ops.aten.threshold_backward.grad_input(x, mask, 0, grad_input=out)


def exclusive_or(x: Tensor, y: Tensor, out: Tensor) -> Tensor:
    """Write the bits in which two values differ."""
    bits = BITS[out.dtype]
    torch.bitwise_xor(x.view(bits), y.view(bits), out=out.view(bits))
    return out


def is_nan(x: Tensor, out: Tensor) -> Tensor:
    """Write the mask of the elements that are nan."""
    return torch.ne(x, x, out=out)


def relu(x: Tensor, out: Tensor) -> Tensor:
    """Write what ``torch.relu`` returns, which has no variant that takes ``out``."""
    return torch.clamp_min(x, 0, out=out)


# By the name of an operator: what computes it on masks, or in one call.
IN_ONE_CALL: dict[str, Callable[..., Any]] = {
    "bitwise_and": torch.mul,
    "bitwise_or": torch.maximum,
    "isnan": is_nan,
    "relu": relu,
}
# By the name of an operator that chooses: its condition, and what it is where that is true, and where not.
CHOICES: dict[str, Callable[..., tuple]] = {
    "where": lambda condition, x, y: (condition, x, y),
    "masked_fill": lambda x, mask, value: (mask, value, x),
}


def is_zero(x: Any) -> bool:
    """Return whether ``x`` is a constant all of whose bits are 0."""
    return isinstance(x, Tensor) and not x.any() and not x.signbit().any()
