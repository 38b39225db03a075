"""The ``autograd.Function`` of every elementwise operator: both directions, in place, and how it is called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function

from .. import config
from .._compat import forward_level, is_writable_view, overlaps_itself, transform_count, transforms_active, view_base
from ..runtime.elementwise import pointwise, pointwise_, pointwise_vjp, widened
from ..runtime.modes import is_intercepted
from ..runtime.paths import CLASSES, NUMBERS, is_dense_tensor, is_strided
from ..runtime.specs import gradient_spec_of
from .function import CustomFunction, needed_vjp
from .recording import differentiates, is_recorded, tracing_hook


class Operator(CustomFunction):
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
        wanted = needed_vjp(cls.derivatives, ctx.needs_input_grad, *types)
        ctx.kept = wanted, wanted.numbers(values), list(map(gradient_spec_of, wanted.inputs(values)))
        ctx.set_materialize_grads(False)  # 0 for what does not arrive, or move, would meet slopes of inf
        if wanted.saves:
            ctx.save_for_backward(*wanted.tensors(values))
        if forward_level() >= 0:
            moved = needed_vjp(cls.derivatives, tuple([isinstance(x, Tensor) for x in inputs]), *types)
            ctx.moved = moved, moved.numbers(values), gradient_spec_of(output)
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
    needs, idle = False, config.cpu_by_formula
    for x in inputs:
        kind = type(x)
        if kind in CLASSES:
            needs = needs or x.requires_grad
            idle = idle and not x.is_cuda
        elif kind not in NUMBERS:
            return _call_unusual(operator, inputs)
    if forward_level() >= 0:
        return _call_unusual(operator, inputs)
    if needs and is_recorded():
        usual = not transforms_active()
        for x in inputs:
            usual = usual and (type(x) in NUMBERS or is_strided(x))
        return operator.record(*inputs) if usual else _call_unusual(operator, inputs)
    return operator.formula(*inputs) if idle else pointwise(operator.formula, *inputs)


def _call_unusual(operator: type[Operator], inputs: Sequence) -> Tensor:
    """``call`` under transforms, and for subclasses of tensors, NumPy's scalars, and what torch will refuse."""
    inputs = tuple(map(_as_number, inputs))
    if trace := tracing_hook(inputs):
        return trace(operator, inputs)
    return operator.apply(*inputs) if differentiates(inputs) else pointwise(operator.formula, *inputs)


def call_(operator: type[Operator], twin: Callable, x: Tensor, *inputs) -> Tensor:
    """Apply ``operator`` and write the result over ``x``; ``twin`` is torch's own way to do so.

    Torch answers where it would refuse to write, where memory overlaps, and under transforms.
    """
    inputs = tuple(map(_as_number, inputs))
    if trace := tracing_hook((x,)):
        return trace(operator.in_place, (x, *inputs))
    if not isinstance(x, Tensor) or not _may_write(x, inputs):
        return twin(x, *inputs)
    if not differentiates((x, *inputs)):
        return pointwise_(operator.formula, twin, x, *inputs)
    every = (x, *inputs)
    needs = tuple(isinstance(v, Tensor) and v.requires_grad for v in every)
    wanted = needed_vjp(operator.derivatives, needs, *map(type, every))
    return operator.in_place.apply(x, *inputs, x.clone() if "x" in wanted.rule.names else None, twin)


def as_scalar(alpha: Any) -> Any:
    """The number in a 0-dim tensor, which torch takes where it wants a number: but for one that wants a gradient."""
    if not isinstance(alpha, Tensor) or alpha.dim() or tracing_hook((alpha,)):
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
