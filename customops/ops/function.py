"""The ``autograd.Function`` of an elementwise operator: both directions, what it saves, and its in-place variant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import Function
from torch.compiler import is_dynamo_compiling

from .. import config
from .._compat import apply_without_binding, forward_level, give_nodes_to
from ..runtime.elementwise import pointwise, pointwise_, pointwise_recorded, pointwise_vjp, widened
from ..runtime.paths import BUILT_FOR_GPUS, are_any_on_gpu
from ..runtime.rules import VjpRule, eager_function, parameters, picked, tuple_getter
from ..runtime.specs import GradientSpecs


class CustomFunction(Function):
    """A Function that can be applied without the binding of arguments that only transforms need, by ``record``.

    A subclass has ``forward(*inputs)``, and ``prepare(ctx, inputs)`` instead of a ``setup_context``.
    """

    record: ClassVar[Callable[..., Any]]  # ``apply``, of torch's own classes, where nothing sees or replaces calls
    by_formula: ClassVar[Callable[..., Tensor]]  # the value by torch's formula
    generate_vmap_rule = True

    def __init_subclass__(cls):
        """Give each subclass its ``record``: C's apply of a counterpart of its name, whose nodes name the subclass."""
        super().__init_subclass__()
        counterpart: Any = type(cls.__name__, (Function,), {"forward": staticmethod(cls.recorded)})
        give_nodes_to(cls, counterpart)
        cls.record = apply_without_binding(counterpart)

    @classmethod
    def eager_call(cls, inputs: Sequence) -> tuple[Callable[..., Tensor], Sequence]:
        """Return torch's function for these inputs, and those that it takes: as few frames as there can be."""
        return cls.by_formula, inputs

    @classmethod
    def recorded(cls, ctx, *inputs):
        """Return the value, and save in ``ctx`` what the function saves: what ``record`` calls.

        Of a Function with a ``setup_context`` torch 2.15 binds the arguments in C's ``apply``, which takes 50 us a
        call; in torch 2.13 it is ``Function.apply`` in Python that does it, which ``record`` goes past.
        """
        pick = cls.prepare(ctx, inputs)
        output = cls.recorded_value(inputs)
        if pick:
            ctx.save_for_backward(*pick((*inputs, output)))
        return output

    @classmethod
    def recorded_value(cls, inputs: Sequence) -> Tensor:
        """Return the value inside ``record``: rules 1 and 2 of runtime/paths.py need not be asked again."""
        raise NotImplementedError

    @classmethod
    def prepare(cls, ctx, inputs: Sequence) -> Callable[[Sequence], Sequence[Tensor]] | None:
        """Keep in ``ctx`` what backward needs but tensors; return a getter of the tensors to save.

        The getter is applied to ``(*inputs, output)``; it is None if there are none.
        """
        raise NotImplementedError

    @classmethod
    def setup_context(cls, ctx, inputs, output):
        """Save for backward, as :meth:`prepare` says."""
        pick = cls.prepare(ctx, inputs)
        if pick:
            ctx.save_for_backward(*pick((*inputs, output)))


class Operator(CustomFunction):
    """An elementwise operator on tensors and numbers, as a ``torch.autograd.Function``.

    A subclass states its derivation as docstring, its ``formula``, and its ``derivatives``: one for each of the first
    inputs of the formula. They are its backward, summed over broadcast axes, and its forward mode; and their argument
    names are what it saves. An elementwise operator needs no more: its Jacobian is diagonal.
    """

    formula: ClassVar[Callable]
    eager: ClassVar[Callable]  # torch's function of the same inputs, the formula without its frame where there is one
    derivatives: ClassVar[tuple[Callable, ...]]
    tensors: ClassVar[
        int
    ]  # how many of the inputs, the first, may be tensors; as many as there are derivatives, if unsaid
    alone: ClassVar[NeededVjp | None]  # the rule of the only input, None where there are more
    known_vjps: ClassVar[dict[tuple, NeededVjp]]  # what :meth:`needed_vjp` returned so far
    in_place: ClassVar[type[InPlace]]  # the operator, written over its first input

    def __init_subclass__(cls):
        """Give each operator its in-place variant, of its name: by that, anomaly mode and profilers speak of it."""
        super().__init_subclass__()
        cls.known_vjps = {}
        is_alone = len(parameters(cls.formula)) == 1
        cls.alone = NeededVjp.of(cls.formula, cls.derivatives, (True,), Tensor) if is_alone else None
        cls.eager = staticmethod(eager_function(cls.formula))
        cls.tensors = vars(cls).get("tensors", len(cls.derivatives))
        cls.in_place = type(cls.__name__, (InPlace,), {"operator": cls, "__module__": cls.__module__})

    @classmethod
    def forward(cls, *inputs):
        """Return the value, by kernel or formula."""
        return pointwise(cls.formula, *inputs)

    @classmethod
    def recorded_value(cls, inputs):
        """Return the value inside ``record``, by kernel or formula."""
        if config.cpu_by_formula and not (BUILT_FOR_GPUS and are_any_on_gpu(inputs)):
            return cls.eager(*inputs)
        return pointwise_recorded(cls.formula, inputs)

    @classmethod
    def by_formula(cls, *inputs):
        """Return the value, by formula."""
        return cls.formula(*inputs)

    @classmethod
    def needed_vjp(cls, needs: tuple[bool, ...], inputs: Sequence) -> NeededVjp:
        """Return the rule of those inputs that need a gradient; it depends on the types of all."""
        key = needs, *map(type, inputs)
        needed = cls.known_vjps.get(key)
        if needed is None:
            needed = cls.known_vjps[key] = NeededVjp.of(cls.formula, cls.derivatives, needs, *map(type, inputs))
        return needed

    @classmethod
    def eager_call(cls, inputs):
        """Return torch's function for these inputs, and those that it takes: all but an alpha of 1."""
        *others, alpha = inputs
        if cls.eager is cls.formula and type(alpha) is int and alpha == 1 and "alpha" in parameters(cls.formula):
            return getattr(torch, cls.formula.__name__), others
        return cls.eager, inputs

    @classmethod
    def prepare(cls, ctx, inputs):
        """Keep what the derivatives read of inputs and output, and no more: one that nobody needs reads nothing.

        Only inputs and outputs are ever saved, never an intermediate, so that differentiating twice stays right. What
        is saved for backward does not depend on tangents: a checkpoint may compute the call again without any.
        """
        needs = ctx.needs_input_grad
        needed = cls.alone if cls.alone and needs[0] else cls.needed_vjp(needs, inputs)
        numbers = needed.numbers(inputs) if needed.numbers else ()
        specs = needed.gradient_specs(inputs) if needed.lone is None else inputs[needed.lone].dtype
        ctx.saved_meta = needed, numbers, specs
        ctx.set_materialize_grads(False)  # 0 for what does not arrive, or move, would meet slopes of inf
        return needed.tensors if needed.saves else None

    @classmethod
    def setup_context(cls, ctx, inputs, output):
        """Save for backward, and for forward mode what all derivatives read."""
        super().setup_context(ctx, inputs, output)
        if forward_level() >= 0:
            are_tensors = tuple([isinstance(x, Tensor) for x in inputs])
            needed = cls.needed_vjp(are_tensors, inputs)
            ctx.tangent_meta = needed, needed.numbers(inputs) if needed.numbers else (), (output.shape, output.dtype)
            ctx.save_for_forward(*needed.tensors((*inputs, output)))

    @staticmethod
    def backward(ctx, g):
        """Return the gradients that are needed, taken in one pass, and None for every other input."""
        needed, numbers, specs = ctx.saved_meta
        if g is None:
            return (None,) * needed.arity
        values = (g, *ctx.saved_tensors, *numbers) if needed.saves else (g, *numbers)
        if len(values) > needed.reads:  # a power may have saved more than it reads
            values = values[: needed.reads]
        grads = pointwise_vjp(needed.rule, values, specs)
        if len(grads) == needed.arity:
            return tuple(grads)
        by_input: list[Tensor | None] = [None] * needed.arity
        for i, grad in zip(needed.positions, grads, strict=True):
            by_input[i] = grad
        return tuple(by_input)

    @classmethod
    def jvp(cls, ctx, *tangents):
        """Return the tangent of the output: each derivative applied to the tangent of its input, added up."""
        needed, numbers, (shape, dtype) = ctx.tangent_meta
        total = -torch.zeros((), dtype=dtype, device="cpu")  # a tangent of -0 stays one
        for position, (derivative, arguments) in zip(needed.positions, needed.rule.steps, strict=True):
            tangent = tangents[position]
            if tangent is not None:
                real_from_complex = tangent.is_complex() and not dtype.is_complex  # |x|: the part along the slope
                first = tangent.conj() if real_from_complex else tangent.to(dtype)
                term = derivative(*picked(widened((first, *ctx.saved_tensors, *numbers)), arguments))
                total = total + (term.real if real_from_complex else term)
        return total.expand(shape).to(dtype)


@dataclass(frozen=True, slots=True)
class NeededVjp:
    """The rule of those inputs that need a gradient, and what picks its values out of a call."""

    rule: VjpRule
    saves: bool  # whether it reads any, if only a number: torch then refuses a second backward
    reads: int  # how many values it reads
    arity: int  # how many inputs there are
    tensors: Callable[[Sequence], Sequence[Tensor]]  # pick the tensors that the rule reads out of (*inputs, output)
    numbers: Callable[[Sequence], Sequence] | None  # pick the numbers that it reads out of the inputs, if there are any
    positions: tuple[int, ...]  # of those inputs, among all
    operands: tuple[int, ...]  # the positions of all tensors, whether they need a gradient or not
    lone: int | None  # the position of the only tensor, if one alone is there and needs a gradient

    @classmethod
    def of(
        cls, formula: Callable, derivatives: tuple[Callable, ...], needs: tuple[bool, ...], *types: type
    ) -> NeededVjp:
        """Return the rule of those inputs of a formula, of these types, that need a gradient."""
        inputs = parameters(formula)
        positions = tuple(i for i, need in enumerate(needs[: len(derivatives)]) if need)
        numbers = {name for name, kind in zip(inputs, types, strict=True) if not issubclass(kind, Tensor)}
        rule = VjpRule.of(tuple(derivatives[i] for i in positions), numbers, inputs)
        where = {**{name: i for i, name in enumerate(inputs)}, "z": len(types)}
        operands = tuple(i for i, kind in enumerate(types) if issubclass(kind, Tensor))
        read_numbers = [where[name] for name in rule.names if name in numbers]
        return cls(
            rule,
            any(name not in ("g", "alpha") for name in rule.names),
            len(rule.names),
            len(types),
            tuple_getter(where[name] for name in rule.names if name != "g" and name not in numbers),
            tuple_getter(read_numbers) if read_numbers else None,
            positions,
            operands,
            positions[0] if positions and len(operands) == 1 else None,
        )

    def gradient_specs(self, inputs: Sequence) -> GradientSpecs:
        """Return what gradients have to know of those inputs: no shape where all tensors have one shape and dtype."""
        x = inputs[self.operands[0]]
        for i in self.operands[1:]:
            y = inputs[i]
            if x.dtype is not y.dtype or x.shape != y.shape:
                return tuple([((x := inputs[i]).shape, x.dtype) for i in self.positions])
        return x.dtype


class InPlace(Function):
    """Any operator, written over its first input; its backward is the operator's, on a copy of the old x.

    The copy is an input, made where autograd records it, so that gradients of gradients reach the old x.
    """

    operator: ClassVar[type[Operator]]

    @classmethod
    def forward(cls, ctx, x, *rest):
        """Write over x, and save as the operator would have."""
        operator, (*inputs, before, torch_inplace) = cls.operator, rest
        z = pointwise_(operator.formula, torch_inplace, x, *inputs)
        ctx.mark_dirty(z)
        operator.setup_context(ctx, (z if before is None else before, *inputs), z)  # unread, x is only of z's shape
        return z

    @staticmethod
    def backward(ctx, g):
        """Return the operator's gradients, and none for the copy; compiled autograd traces no class method."""
        of_copy = None
        if is_dynamo_compiling() and ctx.needs_input_grad[-2]:  # compiled autograd adds up what it gets, None too
            of_copy = torch.zeros_like(g)
        return (*Operator.backward(ctx, g), of_copy, None)
