"""The modes of torch that an operator heeds."""

from __future__ import annotations

import torch
from torch import get_default_dtype, is_grad_enabled, is_inference_mode_enabled

from .. import config
from .._compat import (
    dispatch_mode_count,
    forward_level,
    function_mode_count,
    function_modes,
    is_any_autocast_enabled,
    is_default_device,
    is_deterministic,
    saved_tensor_hooks,
)

MODES = (
    "inference mode",
    "grad mode",
    "default dtype",
    "deterministic mode",
    "autocast",
    "default device or function mode",
    "dispatch mode",
    "saved-tensor hooks",
    "forward mode",
    "backend",
)


def modes() -> tuple:
    """Return the state of every mode that a function can switch for the operators it calls, in the order of MODES."""
    return (
        is_inference_mode_enabled(),
        is_grad_enabled(),
        get_default_dtype(),
        is_deterministic(),
        is_any_autocast_enabled() and _autocast(),
        function_mode_count() and _describe_function_modes(),
        dispatch_mode_count(),
        saved_tensor_hooks() is not None,
        forward_level(),
        config.current_backend,
    )


def _autocast() -> tuple:
    return tuple((kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda"))


def _describe_function_modes() -> tuple[str, ...]:
    return tuple(str(mode.device) if is_default_device(mode) else type(mode).__name__ for mode in function_modes())
