"""An elementwise operator on tensors, forward and backward: by kernel, or by formula."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._compat import overlaps_itself
from .cpu_blocks import derivative_by_blocks, is_large
from .dtensor import ShardingSpec, common_sharding, find_sharding
from .paths import has_kernel, is_by_formula, is_private_cpu
from .plans import Execution, make_plan, plan_key, recall, remember
from .rules import VjpRule, by_parameter, is_identity, other_values
from .specs import GradientSpec, TensorSpec, ask_torch, contiguous, gradient_spec_of, infer_on_meta, on_meta, spec_of

HALVES = frozenset({torch.float16, torch.bfloat16})


def pointwise(formula: Callable, *args, out: Tensor | None = None) -> Tensor:
    """``formula`` on tensors and numbers, broadcast together."""
    found = plan_key(args if out is None else (*args, out))
    if found and (out is None or is_safe_out(out, args)):
        key = formula, found
        call = recall(key)
        if call is None:
            call = remember(key, has_kernel(formula.__name__, args, out) and _plan_pointwise(formula, args))
        if call:
            (z,) = call(args)
            return z if out is None else torch.maximum(z, z, out=out)  # torch's own resizing and casts
    elif out is None and (spread := find_sharding(args)) and (like := infer_on_meta(formula, args, {})):
        z = pointwise(formula, *map(spread.local, args))
        return spread.join(z, like, spread.placements(like.shape))
    return formula(*args) if out is None else formula(*args, out=out)


def pointwise_(formula: Callable, twin: Callable, x: Tensor, *args) -> Tensor:
    """``formula`` on ``x`` and the rest, written over ``x``; ``twin`` is torch's own way to do so."""
    args = x, *args
    found = plan_key(args)
    if found:
        key = formula, twin, found
        call = recall(key)
        if call is None:
            call = remember(key, has_kernel(formula.__name__, args, x) and _plan_in_place(formula, args))
        if call:
            call.plan(args, (x,))
            if not x.is_inference():
                torch.autograd.graph.increment_version(x)
            return x
    return twin(*args)


def pointwise_vjp(rule: VjpRule, values: Sequence, likes: Sequence[GradientSpec]) -> list[Tensor]:
    """The gradients that ``rule`` gives of ``values``, each summed to the shape of its input, in one pass."""
    g = values[0]
    found = None if is_by_formula(g) else plan_key(values)
    if found:
        key = rule.derivatives, found, *likes
        plan = recall(key)
        if plan is None:
            plan = remember(key, has_kernel(rule.derivatives[0].__name__, values) and _plan_vjp(rule, values, likes))
        if plan:
            kept, call = plan
            made = iter(call(values) if call else ())
            return [g if keeps else next(made) for keeps in kept]
    elif (spread := find_sharding(values)) and _is_joint(rule, values, spread):
        return _vjp_on_shards(rule, values, likes, spread)
    if likes[0][1] is not g.dtype or likes[-1][1] is not g.dtype:
        values = widened(values)
    conjugates = g.is_complex()  # as it is where anything is; a cotangent goes in and comes out conjugated
    if conjugates:
        values = (g.conj(), *values[1:])
    grads: list[Any] = [None] * len(likes)
    turns = range(len(likes))
    if len(likes) > 1 and likes[0][0] == g.shape:
        turns = turns[::-1]  # what may be summed first, so that it is gone before the next is made
    large = is_large(g) and is_private_cpu(values)
    for i in turns:
        derivative, positions = rule.steps[i]
        arguments = [values[k] for k in positions]
        grad = derivative_by_blocks(derivative, arguments, likes[i][0]) if large else derivative(*arguments)
        if conjugates:
            grad = grad.conj()
        grads[i] = grad if gradient_spec_of(grad) == likes[i] else _fit(grad, *likes[i])
    return grads


def _vjp_on_shards(
    rule: VjpRule, values: Sequence, likes: Sequence[GradientSpec], spread: ShardingSpec
) -> list[Tensor]:
    """``pointwise_vjp`` on the parts that are here; what is summed over an axis is summed later over processes."""
    g, *_ = values
    here = [spread.local(value) for value in values]
    grads = pointwise_vjp(rule, here, [(spread.local_shape(shape, here[0].shape), dtype) for shape, dtype in likes])
    full = torch.empty_like(on_meta(spec_of(g))).stride()
    joined = []
    for grad, (shape, dtype) in zip(grads, likes, strict=True):
        like = TensorSpec(shape, full if shape == g.shape else contiguous(shape), dtype, grad.device)
        # g itself where it is the gradient: in another guise of its memory autograd would accumulate
        joined.append(g if grad is here[0] else spread.join(grad, like, spread.placements(shape, "sum")))
    return joined


def _is_joint(rule: VjpRule, values: Sequence, spread: ShardingSpec) -> bool:
    """Whether the values of each derivative by itself line up as all of them do: torch goes by those."""
    return all(common_sharding([values[k] for k in arguments]) == spread for _, arguments in rule.steps)


def widened(values: Sequence) -> Sequence:
    """``values``, those of a half type in the dtype of the first: autocast takes a wider result of what it read."""
    dtype = values[0].dtype
    return [x.to(dtype) if isinstance(x, Tensor) and x.dtype in HALVES else x for x in values]


def _plan_pointwise(formula: Callable, args: tuple) -> Execution:
    spec = ask_torch(formula, args)
    return Execution(make_plan([formula], by_parameter(formula, args), [spec], spec), (spec,))


def _plan_in_place(formula: Callable, args: tuple) -> Execution | bool:
    """False where torch would refuse to write the result over the first argument."""
    x, spec = args[0], ask_torch(formula, args)
    if spec.shape != x.shape or not torch.can_cast(spec.dtype, x.dtype):
        return False
    return Execution(make_plan([formula], by_parameter(formula, args), [x], spec), ())


def _plan_vjp(rule: VjpRule, values: Sequence, likes: Sequence[GradientSpec]):
    """Which gradients are g itself, and how to make the others; None where there are none."""
    g, named = values[0], dict(zip(rule.names, values, strict=True))
    pairs = list(zip(rule.derivatives, likes, strict=True))
    whole = g.shape, g.dtype
    kept = [like == whole and is_identity(derivative, other_values(derivative, named)) for derivative, like in pairs]
    made = [pair for pair, keeps in zip(pairs, kept, strict=True) if not keeps]
    if not made:
        return kept, None
    full = torch.empty_like(g, device="meta").stride()
    grads = [
        TensorSpec(shape, full if shape == g.shape else contiguous(shape), dtype, g.device)
        for _, (shape, dtype) in made
    ]
    return kept, Execution(make_plan([derivative for derivative, _ in made], named, grads, spec_of(g)), tuple(grads))


def _fit(grad: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Sum a gradient over the axes that its input was broadcast along, and give it the input's dtype.

    Torch sums what has no axes too, and has no sum of complex halves.
    """
    return cast(grad if grad.shape == shape else grad.sum_to_size(shape), dtype)


def cast(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """A gradient in the dtype of its input: a real one gets the real part."""
    return (grad.real if grad.is_complex() and not dtype.is_complex else grad).to(dtype)


def is_safe_out(out: Any, args: Sequence) -> bool:
    """Whether ``out`` is a tensor apart from ``args`` or laid out as they are: torch may have to refuse any other.

    No tensor suits under autocast, whose lists have no operator with an ``out``.
    """
    if not isinstance(out, Tensor) or overlaps_itself(out) or torch.is_autocast_enabled():
        return False
    return not any(
        isinstance(x, Tensor)
        and x.untyped_storage().data_ptr() == out.untyped_storage().data_ptr()
        and (x.data_ptr(), *spec_of(x)) != (out.data_ptr(), *spec_of(out))
        for x in args
    )
