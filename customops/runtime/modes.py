"""The modes of torch that an operator heeds, and what observes its calls."""

from __future__ import annotations

import torch
from torch import get_default_dtype, is_grad_enabled, is_inference_mode_enabled
from torch.compiler import is_dynamo_compiling

from .. import config
from .._compat import (
    dispatch_mode_count,
    forward_level,
    function_mode_count,
    function_modes,
    is_any_autocast_enabled,
    is_default_device,
    is_deterministic,
    is_tracing,
    saved_tensor_hooks,
)


def is_intercepted() -> bool:
    """Whether something sees the calls to torch, or replaces them: ``torch.compile``, a tracer, a mode."""
    if is_dynamo_compiling() or dispatch_mode_count() > 0 or is_tracing():
        return True
    return function_mode_count() > 0 and _is_overridden()


def _is_overridden() -> bool:
    """Whether a function mode wants to see calls; that of a default device only cares where tensors are made."""
    return not all(map(is_default_device, function_modes()))


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
