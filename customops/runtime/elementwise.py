"""An elementwise operator on tensors, forward and backward: by kernel, or by formula."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import config
from .._compat import overlaps_itself
from .cpu_blocks import derivative_by_blocks, is_large
from .dtensor import ShardingSpec, common_sharding, find_sharding, local_shape
from .paths import CLASSES, NUMBERS, has_kernel, is_private_cpu, plan_key
from .plans import Execution, make_plan, recall, remember
from .rules import VjpRule, by_parameter, is_identity, other_values
from .specs import GradientSpec, TensorSpec, ask_torch, contiguous, infer_on_meta, on_meta, spec_of

HALVES = frozenset({torch.float16, torch.bfloat16})


def pointwise(formula: Callable, *args, out: Tensor | None = None) -> Tensor:
    """Return ``formula`` of tensors and numbers, broadcast together."""
    inputs_key = plan_key(args if out is None else (*args, out))
    if inputs_key and (out is None or is_safe_out(out, args)):
        key = formula, inputs_key
        call = recall(key)
        if call is None:
            call = remember(key, has_kernel(formula.__name__, args, out) and _plan_pointwise(formula, args))
        if call:
            (z,) = call(args)
            return z if out is None else torch.maximum(z, z, out=out)  # torch's own resizing and casts
    elif out is None and (sharding := find_sharding(args)) and (like := infer_on_meta(formula, args, {})):
        z = pointwise(formula, *map(sharding.local, args))
        return sharding.join(z, like, sharding.placements(like.shape))
    return formula(*args) if out is None else formula(*args, out=out)


def pointwise_(formula: Callable, torch_inplace: Callable, x: Tensor, *args) -> Tensor:
    """Write ``formula`` of ``x`` and the rest over ``x``; ``torch_inplace`` is torch's own way to do so."""
    args = x, *args
    inputs_key = plan_key(args)
    if inputs_key:
        key = formula, torch_inplace, inputs_key
        call = recall(key)
        if call is None:
            call = remember(key, has_kernel(formula.__name__, args, x) and _plan_in_place(formula, args))
        if call:
            call.plan(args, (x,))
            if not x.is_inference():
                torch.autograd.graph.increment_version(x)
            return x
    return torch_inplace(*args)


def pointwise_vjp(rule: VjpRule, values: Sequence, specs: Sequence[GradientSpec]) -> Sequence[Tensor]:
    """Return the gradients that ``rule`` gives of ``values``, each summed to its spec's shape, in one pass.

    ``values`` are g, then what the rule reads; ``specs`` has the shape and dtype of each gradient.
    """
    for x in values:
        kind = type(x)
        if kind not in NUMBERS and (kind not in CLASSES or x.is_cuda or not config.cpu_by_formula):
            break
    else:
        return _vjp_by_formula(rule, values, specs)
    inputs_key = plan_key(values)
    if inputs_key:
        key = rule.derivatives, inputs_key, *specs
        plan = recall(key)
        if plan is None:
            plan = remember(key, has_kernel(rule.derivatives[0].__name__, values) and _plan_vjp(rule, values, specs))
        if plan:
            passthrough, call = plan
            grads = iter(call(values) if call else ())
            return [values[0] if passes else next(grads) for passes in passthrough]
    elif (sharding := find_sharding(values)) and _is_joint(rule, values, sharding):
        return _vjp_on_shards(rule, values, specs, sharding)
    return _vjp_by_formula(rule, values, specs)


def _vjp_by_formula(rule: VjpRule, values: Sequence, specs: Sequence[GradientSpec]) -> list[Tensor]:
    """Return the gradients by torch's formulas, large ones by blocks that stay in a CPU's cache."""
    g = values[0]
    if specs[0][1] is not g.dtype or specs[-1][1] is not g.dtype:
        values = widened(values)
    conjugates = g.is_complex()  # as it is where anything is; a cotangent goes in and comes out conjugated
    if conjugates:
        values = (g.conj(), *values[1:])
    grads: list[Any] = [None] * len(specs)
    large = is_large(g) and is_private_cpu(values)
    order = _summed_first(specs, g)
    arguments = [[values[k] for k in positions] for _, positions in rule.steps]
    for i in order:
        derivative, (shape, dtype) = rule.derivatives[i], specs[i]
        grad = derivative_by_blocks(derivative, arguments[i], shape) if large else derivative(*arguments[i])
        if conjugates:
            grad = grad.conj()
        grads[i] = grad if grad.dtype is dtype and grad.shape == shape else _fit(grad, shape, dtype)
    return grads


def _summed_first(specs: Sequence[GradientSpec], g: Tensor) -> Sequence[int]:
    """Return an order in which a gradient that may be summed comes first: its full-size value is then freed."""
    order = range(len(specs))
    return order[::-1] if len(specs) > 1 and specs[0][0] == g.shape else order


def _vjp_on_shards(
    rule: VjpRule, values: Sequence, specs: Sequence[GradientSpec], sharding: ShardingSpec
) -> list[Tensor]:
    """Return the gradients of the local shards; what is summed over an axis is summed later over processes."""
    g, *_ = values
    local = [sharding.local(value) for value in values]
    local_specs = [(local_shape(shape, local[0].shape), dtype) for shape, dtype in specs]
    grads = pointwise_vjp(rule, local, local_specs)
    full = torch.empty_like(on_meta(spec_of(g))).stride()
    joined = []
    for grad, (shape, dtype) in zip(grads, specs, strict=True):
        spec = TensorSpec(shape, full if shape == g.shape else contiguous(shape), dtype, grad.device)
        # g itself where it is the gradient: in another guise of its memory autograd would accumulate
        joined.append(g if grad is local[0] else sharding.join(grad, spec, sharding.placements(shape, "sum")))
    return joined


def _is_joint(rule: VjpRule, values: Sequence, sharding: ShardingSpec) -> bool:
    """Return whether the operands of each derivative by itself have the common sharding: torch goes by those."""
    return all(common_sharding([values[k] for k in positions]) == sharding for _, positions in rule.steps)


def widened(values: Sequence) -> Sequence:
    """Return ``values``, those of a half type in the dtype of the first: under autocast it may be wider."""
    dtype = values[0].dtype
    return [x.to(dtype) if isinstance(x, Tensor) and x.dtype in HALVES else x for x in values]


def _plan_pointwise(formula: Callable, args: tuple) -> Execution:
    """Plan the kernel of ``formula`` for operands like these."""
    spec = ask_torch(formula, args)
    return Execution(make_plan([formula], by_parameter(formula, args), [spec], spec), (spec,))


def _plan_in_place(formula: Callable, args: tuple) -> Execution | bool:
    """Plan the kernel that writes over the first argument; return False where torch would refuse to."""
    x, spec = args[0], ask_torch(formula, args)
    if spec.shape != x.shape or not torch.can_cast(spec.dtype, x.dtype):
        return False
    return Execution(make_plan([formula], by_parameter(formula, args), [x], spec), ())


def _plan_vjp(rule: VjpRule, values: Sequence, specs: Sequence[GradientSpec]) -> tuple[list[bool], Execution | None]:
    """Return which gradients are g itself, and the kernels that make the others; None where there are none."""
    g, named = values[0], dict(zip(rule.names, values, strict=True))
    pairs = list(zip(rule.derivatives, specs, strict=True))
    of_g = g.shape, g.dtype
    passthrough = [spec == of_g and is_identity(f, other_values(f, named)) for f, spec in pairs]
    computed = [pair for pair, passes in zip(pairs, passthrough, strict=True) if not passes]
    if not computed:
        return passthrough, None
    full = torch.empty_like(g, device="meta").stride()
    grads = [
        TensorSpec(shape, full if shape == g.shape else contiguous(shape), dtype, g.device)
        for _, (shape, dtype) in computed
    ]
    plan = make_plan([derivative for derivative, _ in computed], named, grads, spec_of(g))
    return passthrough, Execution(plan, tuple(grads))


def _fit(grad: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Sum a gradient over the axes that its input was broadcast along, and give it the input's dtype.

    Torch sums what has no axes too, and has no sum of complex halves.
    """
    return cast(grad if grad.shape == shape else grad.sum_to_size(shape), dtype)


def cast(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a gradient in the dtype of its input, of which a real one gets the real part."""
    return (grad.real if grad.is_complex() and not dtype.is_complex else grad).to(dtype)


def is_safe_out(out: Any, args: Sequence) -> bool:
    """Return whether ``out`` is a tensor apart from ``args`` or laid out as they are: torch may refuse any other.

    No tensor is safe under autocast, whose lists have no operator with an ``out``.
    """
    if not isinstance(out, Tensor) or overlaps_itself(out) or torch.is_autocast_enabled():
        return False
    return not any(
        isinstance(x, Tensor)
        and x.untyped_storage().data_ptr() == out.untyped_storage().data_ptr()
        and (x.data_ptr(), *spec_of(x)) != (out.data_ptr(), *spec_of(out))
        for x in args
    )
