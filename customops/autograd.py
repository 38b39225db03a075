"""What the ``autograd.Function`` of every elementwise operator shares: both directions, what is saved, in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from .compute import Like, parameters, pointwise, pointwise_, pointwise_vjp
from .dispatch import is_plain, is_watched


class Operator(Function):
    """An elementwise operator on inputs x, y and numbers, as a ``torch.autograd.Function``.

    A subclass states its derivation as docstring, its ``formula``, and its ``derivatives``: one for each tensor it
    can take. They are its backward, summed over broadcast axes, and its forward mode; and their argument names
    are what it saves. An elementwise operator needs no more: its Jacobian is diagonal.
    """

    formula: ClassVar[Callable]
    derivatives: ClassVar[tuple[Callable, ...]]
    generate_vmap_rule = True

    @classmethod
    def forward(cls, *inputs):
        """The value, by kernel or formula."""
        return pointwise(cls.formula, *inputs)

    @classmethod
    def setup_context(cls, ctx, inputs, output):
        """Keep what the derivatives read of inputs and output, and no more: one that nobody wants reads nothing.

        Only inputs and outputs are ever kept, never an intermediate, so that differentiating twice stays right.
        """
        values = dict(zip(("x", "y", "alpha"), inputs, strict=False), z=output)
        wanted = [True] * len(inputs) if _in_forward_mode() else ctx.needs_input_grad
        read = {name: value for name, value in values.items() if name in cls.reads(wanted)}
        ctx.names = tuple(name for name, value in read.items() if isinstance(value, Tensor))
        ctx.numbers = {name: value for name, value in read.items() if name not in ctx.names}
        ctx.likes = [Like(v.shape, v.dtype) if isinstance(v, Tensor) else None for v in (*inputs, output)]
        ctx.save_for_backward(*(read[name] for name in ctx.names))
        ctx.save_for_forward(*(read[name] for name in ctx.names))

    @classmethod
    def backward(cls, ctx, g):
        """The gradients that are wanted, in one pass; None for every other input."""
        grads: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        wanted = [i for i in range(len(cls.derivatives)) if ctx.needs_input_grad[i]]
        derivatives, likes = [cls.derivatives[i] for i in wanted], [ctx.likes[i] for i in wanted]
        for i, grad in zip(wanted, pointwise_vjp(derivatives, {"g": g, **_saved(ctx)}, likes), strict=True):
            grads[i] = grad
        return tuple(grads)

    @classmethod
    def jvp(cls, ctx, *tangents):
        """The tangent of the output: each derivative applied to the tangent of its input, added up."""
        saved, like = _saved(ctx), ctx.likes[-1]
        total = torch.zeros((), dtype=like.dtype, device="cpu")
        for derivative, tangent in zip(cls.derivatives, tangents, strict=False):
            if tangent is not None:
                values = {"g": tangent, **saved}
                total = total + derivative(**{name: values[name] for name in parameters(derivative)})
        return total.expand(like.shape).to(like.dtype)

    @classmethod
    def reads(cls, wanted: Sequence[bool]) -> set[str]:
        """The names that the wanted derivatives read."""
        return {name for d, wants in zip(cls.derivatives, wanted, strict=False) if wants for name in parameters(d)}


class InPlace(Function):
    """Any operator, written over its first input; its backward is the operator's, on a copy of the old x.

    The copy is an input, made where autograd records it, so that gradients of gradients reach the old x.
    """

    @staticmethod
    def forward(ctx, x, *rest):
        """Write over x, and save as the operator would have."""
        *inputs, before, operator, twin = rest
        z = pointwise_(operator.formula, twin, x, *inputs)
        ctx.mark_dirty(z)
        ctx.operator = operator
        operator.setup_context(ctx, (before, *inputs), z)
        ctx.likes[0] = Like(z.shape, z.dtype)
        return z

    @staticmethod
    def backward(ctx, g):
        """The operator's gradients; none for the copy."""
        return ctx.operator.backward(ctx, g)


def call(operator: type[Operator], *inputs, out: Tensor | None = None) -> Tensor:
    """Apply ``operator``; where no derivative can be asked for, its formula alone."""
    inputs = tuple(map(_as_number, inputs))
    if out is None and differentiates(inputs):
        return operator.apply(*inputs)
    return pointwise(operator.formula, *inputs, out=out)


def call_(operator: type[Operator], twin: Callable, x: Tensor, *inputs) -> Tensor:
    """Apply ``operator`` and write the result over ``x``; ``twin`` is torch's own way to do so.

    Torch answers where it would refuse to write, where memory overlaps, and under transforms.
    """
    inputs = tuple(map(_as_number, inputs))
    if not isinstance(x, Tensor) or not _may_write(x, inputs):
        return twin(x, *inputs)
    if not differentiates((x, *inputs)):
        return pointwise_(operator.formula, twin, x, *inputs)
    reads = operator.reads([isinstance(v, Tensor) and v.requires_grad for v in (x, *inputs)])
    return InPlace.apply(x, *inputs, x.clone() if "x" in reads else None, operator, twin)


def differentiates(inputs: Sequence) -> bool:
    """Whether a derivative may be asked for, and by our rule rather than torch's for the formula."""
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    if is_watched() or not all(map(is_plain, tensors)):
        return False
    if torch._C._functorch.get_dynamic_layer_stack_depth() > 1:
        return False  # torch drops the tangent of a tangent in a custom Function
    return _in_forward_mode() or (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))


def as_scalar(alpha: Any) -> Any:
    """The number in a 0-dim tensor, which torch takes where it wants a number."""
    return alpha.item() if isinstance(alpha, Tensor) and alpha.dim() == 0 else alpha


def _as_number(x: Any) -> Any:
    """A NumPy scalar as Python's number: formulas compute with it."""
    return x.item() if isinstance(x, np.generic) else x


def _may_write(x: Tensor, inputs: Sequence) -> bool:
    """Whether nothing about ``x`` makes torch refuse to write it, or us unable to."""
    tensors = [y for y in inputs if isinstance(y, Tensor)]
    if is_watched() or _in_forward_mode() or not all(map(is_plain, [x, *tensors])):
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


def _saved(ctx) -> dict[str, Any]:
    tensors = ctx.saved_tensors if ctx.names else ()  # to ask for none would still forbid a second backward
    return {**dict(zip(ctx.names, tensors, strict=True)), **ctx.numbers}


def _in_forward_mode() -> bool:
    return forward_ad._current_level >= 0
