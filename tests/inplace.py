"""The in-place operators by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

UNARY = ["log_", "exp_", "relu_", "sigmoid_", "tanh_", "sqrt_", "rsqrt_", "abs_", "neg_"]
BINARY = ["add_", "sub_", "mul_", "div_", "pow_"]


def twin(library: Any, name: str) -> Callable[..., torch.Tensor]:
    """Return ``name`` as a function: torch spells some in-place operators as methods alone."""
    return getattr(torch.Tensor, name) if library is torch else getattr(library, name)
