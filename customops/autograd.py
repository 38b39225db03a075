"""What the ``autograd.Function`` of every elementwise operator shares: both directions, what is saved, in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, is_grad_enabled, is_inference_mode_enabled
from torch._C import DispatchKey, _are_functorch_transforms_active, _dispatch_tls_is_dispatch_key_excluded
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import Function, forward_ad

from . import dispatch, shards
from .compute import Rule, like_of, picker, pointwise, pointwise_, pointwise_vjp, widened
from .dispatch import CLASSES, NUMBERS, is_idle, is_plain, is_strided, is_watched

_INPUTS = ("x", "y", "alpha")  # what formulas call the inputs of an operator, in order


class Recorded(Function):
    """A Function that can be applied without the binding of arguments that only transforms need, by ``record``.

    What may be fused also gives its value ``by_formula``, and is ``applied`` as its function does it.
    """

    record: ClassVar[Callable[..., Any]]
    by_formula: ClassVar[Callable[..., Tensor]]
    applied: ClassVar[Callable[..., Tensor]]
    generate_vmap_rule = True

    def __init_subclass__(cls):
        """Give each subclass its ``record``: C's apply of a twin of its name, whose nodes name the subclass."""
        super().__init_subclass__()
        twin: Any = type(cls.__name__, (_Twin,), {"function": cls})
        twin._backward_cls._forward_cls = cls
        cls.record = super(Function, twin).apply  # type: ignore[misc]  # torch._C has no types


class _Twin(Function):
    """``function`` without a ``setup_context``: of one that has it torch 2.15 binds the arguments in C's ``apply``.

    That takes 50 us a call; in torch 2.13 it is ``Function.apply`` in Python that does it, which ``record`` goes past.
    """

    function: ClassVar[type[Recorded]]

    @classmethod
    def forward(cls, ctx, *inputs):
        """Return the value, and keep in ``ctx`` what the function keeps."""
        output = cls.function.forward(*inputs)
        cls.function.setup_context(ctx, inputs, output)
        return output


class Operator(Recorded):
    """An elementwise operator on inputs x, y and numbers, as a ``torch.autograd.Function``.

    A subclass states its derivation as docstring, its ``formula``, and its ``derivatives``: one for each tensor it
    can take. They are its backward, summed over broadcast axes, and its forward mode; and their argument names
    are what it saves. An elementwise operator needs no more: its Jacobian is diagonal.
    """

    formula: ClassVar[Callable]
    derivatives: ClassVar[tuple[Callable, ...]]
    in_place: ClassVar[type[InPlace]]

    def __init_subclass__(cls):
        """Give each operator its in-place twin, of its name: by that, anomaly mode and profilers speak of it."""
        super().__init_subclass__()
        cls.in_place = type(cls.__name__, (InPlace,), {"operator": cls, "__module__": cls.__module__})

    @classmethod
    def forward(cls, *inputs):
        """The value, by kernel or formula."""
        return pointwise(cls.formula, *inputs)

    @classmethod
    def by_formula(cls, *inputs):
        """The value, by formula."""
        return cls.formula(*inputs)

    @classmethod
    def applied(cls, *inputs):
        """Apply the operator, by kernel or formula, recorded where that is asked for."""
        return call(cls, *inputs)

    @classmethod
    def setup_context(cls, ctx, inputs, output):
        """Keep what the derivatives read of inputs and output, and no more: one that nobody wants reads nothing.

        Only inputs and outputs are ever kept, never an intermediate, so that differentiating twice stays right. What is
        saved for backward does not depend on tangents: a checkpoint may compute the call again where there are none.
        """
        types, values = tuple(map(type, inputs)), (*inputs, output)
        wanted = _wanted(cls.derivatives, ctx.needs_input_grad, *types)
        ctx.kept = wanted, wanted.numbers(values), list(map(like_of, wanted.inputs(values)))
        ctx.set_materialize_grads(False)  # 0 for what does not arrive, or move, would meet slopes of inf
        if wanted.saves:
            ctx.save_for_backward(*wanted.tensors(values))
        if forward_ad._current_level >= 0:
            moved = _wanted(cls.derivatives, tuple([isinstance(x, Tensor) for x in inputs]), *types)
            ctx.moved = moved, moved.numbers(values), like_of(output)
            ctx.save_for_forward(*moved.tensors(values))

    @staticmethod
    def backward(ctx, g):
        """The gradients that are wanted, in one pass; None for every other input."""
        if g is None:
            return (None,) * len(ctx.needs_input_grad)
        wanted, numbers, likes = ctx.kept
        saved = ctx.saved_tensors if wanted.saves else ()
        values = (g, *saved, *numbers)[: len(wanted.rule.names)]  # a power may have saved more than it reads
        grads = pointwise_vjp(wanted.rule, values, likes)
        if len(grads) == len(ctx.needs_input_grad):
            return tuple(grads)
        every: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        for i, grad in zip(wanted.positions, grads, strict=True):
            every[i] = grad
        return tuple(every)

    @classmethod
    def jvp(cls, ctx, *tangents):
        """The tangent of the output: each derivative applied to the tangent of its input, added up."""
        moved, numbers, (shape, dtype) = ctx.moved
        total = -torch.zeros((), dtype=dtype, device="cpu")  # a tangent of -0 stays one
        for position, (derivative, arguments) in zip(moved.positions, moved.rule.steps, strict=True):
            if tangents[position] is not None:
                tangent = tangents[position]
                turned = tangent.is_complex() and not dtype.is_complex  # of |x|: the part along the slope
                values = widened((tangent.conj() if turned else tangent.to(dtype), *ctx.saved_tensors, *numbers))
                along = derivative(*[values[k] for k in arguments])
                total = total + (along.real if turned else along)
        return total.expand(shape).to(dtype)


class _Wanted(NamedTuple):
    """The rule of those inputs that want a gradient, at ``positions``.

    Then pickers out of (*inputs, output): those inputs, and what the rule reads, tensors apart from numbers. ``saves``
    is whether it reads any, if only a number: torch then refuses a second backward, as asking for saved tensors does.
    """

    rule: Rule
    positions: tuple[int, ...]
    inputs: Callable[[Sequence], Sequence]
    tensors: Callable[[Sequence], Sequence[Tensor]]
    numbers: Callable[[Sequence], Sequence]
    saves: bool


@lru_cache(maxsize=1024)
def _wanted(derivatives: tuple[Callable, ...], needs: tuple[bool, ...], *types: type) -> _Wanted:
    positions = tuple(i for i, need in enumerate(needs[: len(derivatives)]) if need)
    numbers = {name for name, kind in zip(_INPUTS, types) if not issubclass(kind, Tensor)}  # noqa: B905 - of 1 to 3
    rule = Rule.of(tuple(derivatives[i] for i in positions), numbers)
    where = {**{name: i for i, name in enumerate(_INPUTS)}, "z": len(types)}
    tensors = [where[name] for name in rule.names if name != "g" and name not in numbers]
    return _Wanted(
        rule,
        positions,
        picker(positions),
        picker(tensors),
        picker(where[name] for name in rule.names if name in numbers),
        any(name in "xyz" for name in rule.names),
    )


class InPlace(Function):
    """Any operator, written over its first input; its backward is the operator's, on a copy of the old x.

    The copy is an input, made where autograd records it, so that gradients of gradients reach the old x.
    """

    operator: ClassVar[type[Operator]]

    @classmethod
    def forward(cls, ctx, x, *rest):
        """Write over x, and save as the operator would have."""
        operator, (*inputs, before, twin) = cls.operator, rest
        z = pointwise_(operator.formula, twin, x, *inputs)
        ctx.mark_dirty(z)
        operator.setup_context(ctx, (z if before is None else before, *inputs), z)  # unread, x is only of z's shape
        return z

    @classmethod
    def backward(cls, ctx, g):
        """The operator's gradients; none for the copy."""
        return cls.operator.backward(ctx, g)


def call(operator: type[Operator], *inputs, out: Tensor | None = None) -> Tensor:
    """Apply ``operator``; where no derivative can be asked for, its formula alone."""
    if out is not None:
        return pointwise(operator.formula, *map(_as_number, inputs), out=out)
    needs, idle = False, dispatch.dormant
    for x in inputs:
        kind = type(x)
        if kind in CLASSES:
            needs = needs or x.requires_grad
            idle = idle and not x.is_cuda
        elif kind not in NUMBERS:
            return _call_unusual(operator, inputs)
    if forward_ad._current_level >= 0:
        return _call_unusual(operator, inputs)
    if needs and is_recorded():
        usual = not _are_functorch_transforms_active()
        for x in inputs:
            usual = usual and (type(x) in NUMBERS or is_strided(x))
        return operator.record(*inputs) if usual else _call_unusual(operator, inputs)
    return operator.formula(*inputs) if idle else pointwise(operator.formula, *inputs)


def is_usual(x: Any) -> bool:
    """Whether ``x`` is a tensor of torch's own class with elements in strides, under no transform."""
    if forward_ad._current_level >= 0 or _are_functorch_transforms_active():
        return False
    return type(x) in CLASSES and is_strided(x)


def is_recorded() -> bool:
    """Whether autograd records what is done to tensors that require a gradient, by our rule."""
    return is_grad_enabled() and not is_watched() and not is_inference_mode_enabled()


def _call_unusual(operator: type[Operator], inputs: Sequence) -> Tensor:
    """``call`` under transforms, and for subclasses of tensors, NumPy's scalars, and what torch will refuse."""
    inputs = tuple(map(_as_number, inputs))
    if trace := tracer_of(inputs):
        return trace(operator, inputs)
    return operator.apply(*inputs) if differentiates(inputs) else pointwise(operator.formula, *inputs)


def tracer_of(inputs: Sequence) -> Callable | None:
    """What writes operators down instead, if one of ``inputs`` is of a class that does: ``__customops__``."""
    for x in inputs:
        if hasattr(type(x), "__customops__"):
            return x.__customops__()
    return None


def call_(operator: type[Operator], twin: Callable, x: Tensor, *inputs) -> Tensor:
    """Apply ``operator`` and write the result over ``x``; ``twin`` is torch's own way to do so.

    Torch answers where it would refuse to write, where memory overlaps, and under transforms.
    """
    inputs = tuple(map(_as_number, inputs))
    if trace := tracer_of((x,)):
        return trace(operator.in_place, (x, *inputs))
    if not isinstance(x, Tensor) or not _may_write(x, inputs):
        return twin(x, *inputs)
    if not differentiates((x, *inputs)):
        return pointwise_(operator.formula, twin, x, *inputs)
    every = (x, *inputs)
    needs = tuple(isinstance(v, Tensor) and v.requires_grad for v in every)
    wanted = _wanted(operator.derivatives, needs, *map(type, every))
    return operator.in_place.apply(x, *inputs, x.clone() if "x" in wanted.rule.names else None, twin)


def differentiates(inputs: Sequence) -> bool:
    """Whether a derivative may be asked for, and by our rule rather than torch's for the formula."""
    if is_watched():
        return False
    layers = get_interpreter_stack() or ()
    if len(layers) > 1 or (layers and layers[0].key() == TransformType.Functionalize):
        return False  # of a custom Function torch drops the tangent of a tangent, and has no functional form
    if layers and _dispatch_tls_is_dispatch_key_excluded(DispatchKey.FuncTorchDynamicLayerFrontMode):
        return False  # inside the batching rule of a custom operator, where torch takes no custom Function
    forward_mode = forward_ad._current_level >= 0
    graph, needs, plain = is_recorded(), forward_mode, True
    for x in inputs:
        if isinstance(x, Tensor):
            if not is_plain(x):
                if not shards.is_elsewhere(x) or is_idle(x):
                    return False
                plain = False
            needs = needs or (graph and x.requires_grad)
        elif type(x) not in NUMBERS:
            return False
    return needs and (plain or (not (forward_mode or layers) and shards.align(inputs) is not None))


def as_scalar(alpha: Any) -> Any:
    """The number in a 0-dim tensor, which torch takes where it wants a number: but for one that wants a gradient."""
    if not isinstance(alpha, Tensor) or alpha.dim() or tracer_of((alpha,)):
        return alpha
    if alpha.requires_grad:
        torch.add(0, 0, alpha=alpha)  # type: ignore[call-overload]  # raises
    return alpha.item()


def _as_number(x: Any) -> Any:
    """A NumPy scalar as Python's number: formulas compute with it."""
    return x.item() if isinstance(x, np.generic) else x


def _may_write(x: Tensor, inputs: Sequence) -> bool:
    """Whether nothing about ``x`` makes torch refuse to write it, or us unable to."""
    tensors = [y for y in inputs if isinstance(y, Tensor)]
    if is_watched() or forward_ad._current_level >= 0 or not all(map(is_plain, [x, *tensors])):
        return False
    if torch._C._functorch.get_dynamic_layer_stack_depth() or x.is_neg() or torch._debug_has_internal_overlap(x) == 1:
        return False
    outside = x.is_inference() and not torch.is_inference_mode_enabled()
    if outside or any(y.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for y in tensors):
        return False
    if not torch.is_grad_enabled() or not any(y.requires_grad for y in [x, *tensors]):
        return True
    if x._base is None:
        return not (x.requires_grad and x.is_leaf)
    ordinary = torch._C._autograd._get_creation_meta(x) == torch._C._autograd.CreationMeta.DEFAULT
    return ordinary and not (x._base.requires_grad and x._base.is_leaf)
