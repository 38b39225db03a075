"""Tensors of one number that a traced function makes: of the shape of a stand-in, or without dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .errors import untraceable
from .operators import Fill

LIKE = "zeros_like", "ones_like", "full_like"
NEW = "new_tensor", "new_zeros", "new_ones", "new_full"


def factory(name: str) -> Callable[..., Any]:
    """Return what makes such a tensor of a stand-in, as torch's function ``name`` does of a tensor."""
    make = getattr(torch, name) if name in LIKE else getattr(Tensor, name)

    def made_like(x: Any, *args, **kwargs) -> Any:
        kwargs.pop("memory_format", None)
        example = x.example()
        z = make(example, *args, **kwargs)
        if z.device != example.device:
            raise untraceable(f"a tensor on {z.device} cannot be traced", "leave out the device")
        if name in LIKE or (z.dim() and z.shape == x.shape):
            number = z.flatten()[0].item() if z.numel() else 0
            return x._tracing.apply(Fill, (x, number, z.dtype))
        if z.dim():
            raise untraceable(f"Tensor.{name} of another shape cannot be traced", "use torch.full_like, or a number")
        return z.cpu()

    return made_like


def is_number(x: Tensor) -> bool:
    """Return whether a tensor that is no stand-in is read as the number that it holds, of its dtype."""
    return x.dim() == 0 and not x.requires_grad


def key_of(x: Tensor) -> tuple:
    """Return what stands for such a tensor in a key: its dtype, and its number."""
    return x.dtype, repr(x.item())
