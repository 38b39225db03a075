"""The base class of every ``autograd.Function`` here, and what one saves for the gradients that are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

from torch import Tensor
from torch.autograd import Function

from .._compat import apply_without_binding, name_nodes_after
from ..runtime.rules import VjpRule, tuple_getter

_INPUTS = ("x", "y", "alpha")  # what formulas call the inputs of an operator, in order


class CustomFunction(Function):
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
        twin: Any = type(cls.__name__, (_WithoutSetupContext,), {"function": cls})
        name_nodes_after(twin, cls)
        cls.record = apply_without_binding(twin)


class _WithoutSetupContext(Function):
    """``function`` without a ``setup_context``: of one that has it torch 2.15 binds the arguments in C's ``apply``.

    That takes 50 us a call; in torch 2.13 it is ``Function.apply`` in Python that does it, which ``record`` goes past.
    """

    function: ClassVar[type[CustomFunction]]

    @classmethod
    def forward(cls, ctx, *inputs):
        """Return the value, and keep in ``ctx`` what the function keeps."""
        output = cls.function.forward(*inputs)
        cls.function.setup_context(ctx, inputs, output)
        return output


class NeededVjp(NamedTuple):
    """The rule of those inputs that want a gradient, at ``positions``.

    Then pickers out of (*inputs, output): those inputs, and what the rule reads, tensors apart from numbers. ``saves``
    is whether it reads any, if only a number: torch then refuses a second backward, as asking for saved tensors does.
    """

    rule: VjpRule
    positions: tuple[int, ...]
    inputs: Callable[[Sequence], Sequence]
    tensors: Callable[[Sequence], Sequence[Tensor]]
    numbers: Callable[[Sequence], Sequence]
    saves: bool


@lru_cache(maxsize=1024)
def needed_vjp(derivatives: tuple[Callable, ...], needs: tuple[bool, ...], *types: type) -> NeededVjp:
    """Return the rule of those inputs, of these types, that need a gradient."""
    positions = tuple(i for i, need in enumerate(needs[: len(derivatives)]) if need)
    numbers = {name for name, kind in zip(_INPUTS, types) if not issubclass(kind, Tensor)}  # noqa: B905 - of 1 to 3
    rule = VjpRule.of(tuple(derivatives[i] for i in positions), numbers)
    where = {**{name: i for i, name in enumerate(_INPUTS)}, "z": len(types)}
    tensors = [where[name] for name in rule.names if name != "g" and name not in numbers]
    return NeededVjp(
        rule,
        positions,
        tuple_getter(positions),
        tuple_getter(tensors),
        tuple_getter(where[name] for name in rule.names if name in numbers),
        any(name in "xyz" for name in rule.names),
    )
