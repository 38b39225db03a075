"""Whether autograd records a call, and by which rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, is_grad_enabled, is_inference_mode_enabled

from .._compat import forward_level, has_no_function_rule, is_inside_batching_rule, transform_count, transforms_active
from ..runtime.dtensor import common_sharding, is_distributed_or_pending
from ..runtime.modes import is_intercepted
from ..runtime.paths import CLASSES, NUMBERS, is_by_formula, is_dense_tensor, is_strided


def is_ordinary(x: Any) -> bool:
    """Whether ``x`` is a tensor of torch's own class with elements in strides, under no transform."""
    if forward_level() >= 0 or transforms_active():
        return False
    return type(x) in CLASSES and is_strided(x)


def is_recorded() -> bool:
    """Whether autograd records what is done to tensors that require a gradient, by our rule."""
    return is_grad_enabled() and not is_intercepted() and not is_inference_mode_enabled()


def tracing_hook(inputs: Sequence) -> Callable | None:
    """What writes operators down instead, if one of ``inputs`` is of a class that does: ``__customops__``."""
    for x in inputs:
        if hasattr(type(x), "__customops__"):
            return x.__customops__()
    return None


def differentiates(inputs: Sequence) -> bool:
    """Whether a derivative may be asked for, and by our rule rather than torch's for the formula."""
    if is_intercepted():
        return False
    if has_no_function_rule() or is_inside_batching_rule():
        return False
    forward_mode = forward_level() >= 0
    graph, needs, plain = is_recorded(), forward_mode, True
    for x in inputs:
        if isinstance(x, Tensor):
            if not is_dense_tensor(x):
                if not is_distributed_or_pending(x) or is_by_formula(x):
                    return False
                plain = False
            needs = needs or (graph and x.requires_grad)
        elif type(x) not in NUMBERS:
            return False
    return needs and (plain or (not (forward_mode or transform_count()) and common_sharding(inputs) is not None))
