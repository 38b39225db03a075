"""The ways of calling an elementwise operator: recorded by autograd or not, traced, or written over its first input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import config
from .._compat import (
    forward_level,
    has_no_function_rule,
    is_inside_batching_rule,
    is_writable_view,
    overlaps_itself,
    transform_count,
    transforms_active,
    view_base,
)
from ..runtime.dtensor import common_sharding, is_distributed_or_pending
from ..runtime.elementwise import pointwise, pointwise_
from ..runtime.paths import (
    BUILT_FOR_GPUS,
    CLASSES,
    NUMBERS,
    is_by_formula,
    is_dense_tensor,
    is_intercepted,
    is_recorded,
    is_strided,
)
from .function import Operator


def call_unary(operator: type[Operator], x: Tensor, out: Tensor | None = None) -> Tensor:
    """Apply ``operator`` to one tensor: at once where it is recorded as usual, or not and no kernel runs."""
    if out is None and type(x) in CLASSES and forward_level() < 0:
        if x.requires_grad:
            if is_recorded() and is_strided(x) and not transforms_active():
                return operator.record(x)
        elif config.cpu_by_formula and not (BUILT_FOR_GPUS and x.is_cuda):
            return operator.eager(x)
    return call(operator, (x,), out)


def call(operator: type[Operator], inputs: tuple, out: Tensor | None = None) -> Tensor:
    """Apply ``operator``, and let autograd record it where a derivative can be asked for."""
    if out is not None:
        return pointwise(operator.formula, *map(_as_number, inputs), out=out)
    needs, by_formula = False, config.cpu_by_formula
    for x in inputs:
        kind = type(x)
        if kind in CLASSES:
            if x.requires_grad:
                needs = True
            if BUILT_FOR_GPUS and x.is_cuda:
                by_formula = False
        elif kind not in NUMBERS:
            return _call_unusual(operator, inputs)
    if forward_level() >= 0:
        return _call_unusual(operator, inputs)
    if needs and is_recorded():
        for x in inputs:
            if type(x) in CLASSES and not is_strided(x):
                return _call_unusual(operator, inputs)
        return _call_unusual(operator, inputs) if transforms_active() else operator.record(*inputs)
    return operator.eager(*inputs) if by_formula else pointwise(operator.formula, *inputs)


def _call_unusual(operator: type[Operator], inputs: tuple) -> Tensor:
    """Apply ``operator`` under transforms, to subclasses of tensors, NumPy's scalars, and what torch will refuse."""
    inputs = tuple(map(_as_number, inputs))
    if trace := tracing_hook(inputs):
        return trace(operator, inputs)
    return operator.apply(*inputs) if differentiates(inputs) else pointwise(operator.formula, *inputs)


def call_(operator: type[Operator], torch_inplace: Callable, x: Tensor, *inputs) -> Tensor:
    """Apply ``operator`` and write the result over ``x``; ``torch_inplace`` is torch's own way to do so.

    Torch answers where it would refuse to write, where memory overlaps, and under transforms.
    """
    inputs = tuple(map(_as_number, inputs))
    if trace := tracing_hook((x,)):
        return trace(operator.in_place, (x, *inputs))
    if not isinstance(x, Tensor) or not _may_write(x, inputs):
        return torch_inplace(x, *inputs)
    if not differentiates((x, *inputs)):
        return pointwise_(operator.formula, torch_inplace, x, *inputs)
    operands = (x, *inputs)
    needs = tuple(isinstance(y, Tensor) and y.requires_grad for y in operands)
    needed = operator.needed_vjp(needs, operands)
    before = x.clone() if "x" in needed.rule.names else None
    return operator.in_place.apply(*operands, before, torch_inplace)


def as_scalar(alpha: Any) -> Any:
    """Return the number in a 0-dim tensor, which torch takes for a number unless it requires a gradient."""
    if not isinstance(alpha, Tensor) or alpha.dim() or tracing_hook((alpha,)):
        return alpha
    if alpha.requires_grad:
        torch.add(0, 0, alpha=alpha)  # type: ignore[call-overload]  # raises
    return alpha.item()


def _as_number(x: Any) -> Any:
    """Return a NumPy scalar as Python's number, which formulas compute with."""
    return x.item() if isinstance(x, np.generic) else x


def _may_write(x: Tensor, inputs: Sequence) -> bool:
    """Return whether nothing about ``x`` makes torch refuse to write it, or us unable to."""
    tensors = [y for y in inputs if isinstance(y, Tensor)]
    if is_intercepted() or forward_level() >= 0 or not all(map(is_dense_tensor, [x, *tensors])):
        return False
    if transform_count() or x.is_neg() or overlaps_itself(x):
        return False
    outside = x.is_inference() and not torch.is_inference_mode_enabled()
    if outside or any(y.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for y in tensors):
        return False
    if not torch.is_grad_enabled() or not any(y.requires_grad for y in [x, *tensors]):
        return True
    base = view_base(x)
    if base is None:
        return not (x.requires_grad and x.is_leaf)
    return is_writable_view(x) and not (base.requires_grad and base.is_leaf)


def tracing_hook(inputs: Sequence) -> Callable | None:
    """Return what records operators instead, if one of ``inputs`` stands for a tensor that is traced."""
    for x in inputs:
        if hasattr(type(x), "__customops__"):
            return x.__customops__()
    return None


def differentiates(inputs: Sequence) -> bool:
    """Return whether a derivative may be asked for, and by our rule rather than torch's for the formula."""
    if is_intercepted() or has_no_function_rule() or is_inside_batching_rule():
        return False
    forward_mode = forward_level() >= 0
    records, needs, dense = is_recorded(), forward_mode, True
    for x in inputs:
        if isinstance(x, Tensor):
            if not is_dense_tensor(x):
                if not is_distributed_or_pending(x) or is_by_formula(x):
                    return False
                dense = False
            needs = needs or (records and x.requires_grad)
        elif type(x) not in NUMBERS:
            return False
    return needs and (dense or (not (forward_mode or transform_count()) and common_sharding(inputs) is not None))
