"""The in-place operators by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import customops

from .cases import ROWS


def _of_arity(arity: int) -> list[str]:
    """Return the in-place variants of the operators whose first call takes so many tensors, at least."""
    rows = [row for row in ROWS if row.calls[0].arity == arity]
    return [f"{row}_" for row in rows if hasattr(customops, f"{row}_")]


UNARY, BINARY = _of_arity(1), _of_arity(2)


def twin(library: Any, name: str) -> Callable[..., torch.Tensor]:
    """Return ``name`` as a function: torch spells some in-place operators as methods alone."""
    return getattr(torch.Tensor, name) if library is torch else getattr(library, name)
