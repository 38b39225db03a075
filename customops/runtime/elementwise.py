"""An elementwise operator on tensors, forward and backward: by kernel, or by formula."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .. import config
from .._compat import is_any_autocast_enabled, overlaps_itself
from .dtensor import ShardingSpec, common_sharding, find_sharding, local_shape
from .paths import BUILT_FOR_GPUS, CLASSES, has_kernel, is_private_cpu, plan_key, tensors_key
from .plans import Execution, make_plan, recall, remember
from .rules import VjpRule, by_parameter, is_identity, other_values, picked
from .specs import GradientSpecs, ShapeAndDtype, TensorSpec, ask_torch, contiguous, infer, like_strides, spec_of

LARGE_ELEMENTS = 1 << 20  # of a cotangent, from where on its gradients are computed by blocks
HALVES = frozenset({torch.float16, torch.bfloat16})
REAL = HALVES | {torch.float32, torch.float64}


def pointwise(formula: Callable, *args, out: Tensor | None = None) -> Tensor:
    """Return ``formula`` of tensors and numbers, broadcast together."""
    inputs_key = plan_key(args if out is None else (*args, out))
    if inputs_key and (out is None or is_safe_out(out, args)):
        if call := _kernels(formula, args, inputs_key, out):
            (z,) = call.__call__(args)
            return z if out is None else torch.maximum(z, z, out=out)  # torch's own resizing and casts
    elif out is None and (sharding := find_sharding(args)) and (like := infer(formula, args, {})):
        z = pointwise(formula, *map(sharding.local, args))
        return sharding.join(z, like, sharding.placements(like.shape))
    return formula(*args) if out is None else formula(*args, out=out)


def pointwise_recorded(formula: Callable, args: tuple) -> Tensor:
    """Return ``formula`` of ``args``, of torch's own classes, in a call that a Function of ours records.

    Rules 1 and 2 were asked before it was.
    """
    inputs_key = None if config.current_backend == "torch" else tensors_key(args)
    if inputs_key:
        call = recall((formula, inputs_key))
        if call is None:
            call = _kernels(formula, args, inputs_key)
        if call:
            return call.__call__(args)[0]
    return formula(*args)


def _kernels(
    formula: Callable, args: tuple, inputs_key: tuple, out: Tensor | None = None
) -> Execution | Literal[False]:
    """Return the work of a call like this one, False where its formula computes."""
    key = formula, inputs_key
    call = recall(key)
    if call is None:
        call = remember(key, has_kernel(formula.__name__, args, out) and _plan_pointwise(formula, args))
    return call


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


def pointwise_vjp(rule: VjpRule, values: Sequence, specs: GradientSpecs) -> Sequence[Tensor]:
    """Return the gradients that ``rule`` gives of ``values``, each summed to its spec's shape, in one pass.

    ``values`` are g, then what the rule reads.
    """
    g = values[0]
    if config.cpu_by_formula and type(g) in CLASSES and not (BUILT_FOR_GPUS and g.is_cuda):  # nor is another value
        if specs is not g.dtype or specs not in REAL or g.numel() >= LARGE_ELEMENTS:
            return _vjp_by_formula(rule, values, specs)
        if rule.only:
            return (rule.only(*values),)
        grads = []
        for derivative, positions in rule.steps:
            if positions is not None and len(positions) == 2:  # as most that do not read all
                grads.append(derivative(values[positions[0]], values[positions[1]]))
            else:
                grads.append(derivative(*picked(values, positions)))
        return grads
    inputs_key = plan_key(values)
    if inputs_key:
        key = rule.derivatives, inputs_key, specs
        plan = recall(key)
        if plan is None:
            plan = remember(key, has_kernel(rule.derivatives[0].__name__, values) and _plan_vjp(rule, values, specs))
        if plan:
            return plan.__call__(values)
    elif (sharding := find_sharding(values)) and _is_joint(rule, values, sharding):
        return _vjp_on_shards(rule, values, specs, sharding)
    return _vjp_by_formula(rule, values, specs)


def _vjp_by_formula(rule: VjpRule, values: Sequence, specs: GradientSpecs) -> Sequence[Tensor]:
    """Return the gradients by torch's formulas, cast and summed; large ones by blocks that stay in a CPU's cache."""
    g = values[0]
    if g.numel() >= LARGE_ELEMENTS and (blocks := _blocks(rule, values, specs)):
        return blocks(values)
    specs, of_g = _with_shapes(rule, specs, g), g.dtype
    if specs[0][1] is not of_g or specs[-1][1] is not of_g:
        values = widened(values)
    conjugates = of_g.is_complex  # as it is where anything is; a cotangent goes in and comes out conjugated
    if conjugates:
        values = (g.conj(), *values[1:])
    grads: list[Any] = [None] * len(specs)
    for i, ((derivative, positions), (shape, dtype)) in enumerate(zip(rule.steps, specs, strict=True)):
        grad = derivative(*picked(values, positions))
        if conjugates:
            grad = grad.conj()
        grads[i] = grad if grad.dtype is dtype and grad.shape == shape else _fit(grad, shape, dtype)
    return grads


def _blocks(rule: VjpRule, values: Sequence, specs: GradientSpecs) -> Execution | PartialExecution | Literal[False]:
    """Return the blocks of gradients like these, False where there are none."""
    inputs_key = tensors_key(values) if config.cpu_by_formula and is_private_cpu(values) else None
    if not inputs_key:
        return False
    key = rule.derivatives, inputs_key, specs
    plan = recall(key)
    if plan is None:
        is_known = has_kernel(rule.derivatives[0].__name__, values, by_blocks=True)
        plan = remember(key, is_known and _plan_vjp(rule, values, specs))
    return plan


def _vjp_on_shards(rule: VjpRule, values: Sequence, specs: GradientSpecs, sharding: ShardingSpec) -> list[Tensor]:
    """Return the gradients of the local shards; what is summed over an axis is summed later over processes."""
    g, specs = values[0], _with_shapes(rule, specs, values[0])
    local = [sharding.local(value) for value in values]
    local_specs = tuple([(local_shape(shape, local[0].shape), dtype) for shape, dtype in specs])
    grads = pointwise_vjp(rule, local, local_specs)
    full = ask_torch(torch.empty_like, (g,)).strides
    joined = []
    for grad, (shape, dtype) in zip(grads, specs, strict=True):
        spec = TensorSpec(shape, full if shape == g.shape else contiguous(shape), dtype, grad.device)
        # g itself where it is the gradient: in another guise of its memory autograd would accumulate
        joined.append(g if grad is local[0] else sharding.join(grad, spec, sharding.placements(shape, "sum")))
    return joined


def _with_shapes(rule: VjpRule, specs: GradientSpecs, g: Tensor) -> Sequence[ShapeAndDtype]:
    """Return the shape and dtype of each gradient."""
    return [(g.shape, specs)] * len(rule.steps) if isinstance(specs, torch.dtype) else specs


def _is_joint(rule: VjpRule, values: Sequence, sharding: ShardingSpec) -> bool:
    """Return whether the operands of each derivative by itself have the common sharding: torch goes by those."""
    return all(common_sharding(picked(values, positions)) == sharding for _, positions in rule.steps)


def widened(values: Sequence) -> Sequence:
    """Return ``values``, those of a half type in the dtype of the first: under autocast it may be wider."""
    dtype = values[0].dtype
    return [x.to(dtype) if isinstance(x, Tensor) and x.dtype in HALVES else x for x in values]


def _plan_pointwise(formula: Callable, args: tuple) -> Execution:
    """Plan the kernel of ``formula`` for operands like these."""
    spec = ask_torch(formula, args)
    return Execution.of(make_plan([formula], by_parameter(formula, args), [spec], spec), (spec,), args)


def _plan_in_place(formula: Callable, args: tuple) -> Execution | bool:
    """Plan the kernel that writes over the first argument; return False where torch would refuse to."""
    x, spec = args[0], ask_torch(formula, args)
    if spec.shape != x.shape or not torch.can_cast(spec.dtype, x.dtype):
        return False
    return Execution(make_plan([formula], by_parameter(formula, args), [x], spec), (), None)


class PartialExecution(NamedTuple):
    """The work of a call like an earlier one, where some of the gradients are g itself."""

    are_g: tuple[bool, ...]  # of each gradient, whether it is g
    execution: Execution | None  # makes the others; None where there are none

    def __call__(self, values: Sequence) -> list[Tensor]:
        """Return all gradients."""
        grads = iter(self.execution(values) if self.execution else ())
        return [values[0] if is_g else next(grads) for is_g in self.are_g]


def _plan_vjp(rule: VjpRule, values: Sequence, specs: GradientSpecs) -> Execution | PartialExecution:
    """Plan the kernels that make those gradients that are not g itself."""
    g, named = values[0], dict(zip(rule.names, values, strict=True))
    pairs = list(zip(rule.derivatives, _with_shapes(rule, specs, g), strict=True))
    of_g = g.shape, g.dtype
    are_g = tuple(spec == of_g and is_identity(f, other_values(f, named)) for f, spec in pairs)
    computed = [pair for pair, is_g in zip(pairs, are_g, strict=True) if not is_g]
    if not computed:
        return PartialExecution(are_g, None)
    full = like_strides(g)
    grads = [
        TensorSpec(shape, full if shape == g.shape else contiguous(shape), dtype, g.device)
        for _, (shape, dtype) in computed
    ]
    plan = make_plan([derivative for derivative, _ in computed], named, grads, spec_of(g))
    execution = Execution.of(plan, tuple(grads), values)
    return PartialExecution(are_g, execution) if any(are_g) else execution


def _fit(grad: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Sum a gradient over the axes that its input was broadcast along, and give it the input's dtype.

    Torch sums what has no axes too, and has no sum of complex halves.
    """
    if grad.shape != shape:
        grad = grad.sum_to_size(*shape or (shape,))  # one by one: torch takes 1 us longer to read a Size
    return cast(grad, dtype)


def cast(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a gradient in the dtype of its input, of which a real one gets the real part."""
    return (grad.real if grad.is_complex() and not dtype.is_complex else grad).to(dtype)


def is_safe_out(out: Any, args: Sequence) -> bool:
    """Return whether ``out`` is a tensor apart from ``args`` or laid out as they are: torch may refuse any other.

    No tensor is safe under autocast, whose lists have no operator with an ``out``.
    """
    if not isinstance(out, Tensor) or overlaps_itself(out) or is_any_autocast_enabled():
        return False
    return not any(
        isinstance(x, Tensor)
        and x.untyped_storage().data_ptr() == out.untyped_storage().data_ptr()
        and (x.data_ptr(), *spec_of(x)) != (out.data_ptr(), *spec_of(out))
        for x in args
    )
