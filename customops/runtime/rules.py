"""The meaning of the parameter names of formulas: they say which values a derivative reads."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Iterable, Sequence
from functools import cache, lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor


class VjpRule(NamedTuple):
    """Derivatives that are taken in one pass, and what they read: g, then tensors, then numbers.

    Tensors come in the order in which torch saves them, the last input first, then z: a checkpoint pairs by it what two
    passes saved, one of which may have run under a mode, where torch's operator computes.
    """

    derivatives: tuple[Callable, ...]
    names: tuple[str, ...]  # of the values that they read
    steps: tuple[tuple[Callable, tuple[int, ...] | None], ...]  # each, and where its arguments are: see ``picked``
    only: Callable | None  # the derivative that is the only one, and reads all of them in order

    @classmethod
    def of(
        cls, derivatives: tuple[Callable, ...], numbers: Container[str] = (), inputs: Sequence[str] = ("x", "y")
    ) -> VjpRule:
        """Return the rule of these derivatives of a formula of ``inputs``, of which ``numbers`` are numbers."""
        read = {name for derivative in derivatives for name in parameters(derivative)}
        order = ("g", *reversed(inputs), "z")
        names = tuple(sorted(read, key=lambda name: (name in numbers, order.index(name))))
        read_by = [(d, tuple(map(names.index, parameters(d)))) for d in derivatives]
        everything = tuple(range(len(names)))
        steps = tuple((d, None if at == everything else at) for d, at in read_by)
        only = derivatives[0] if len(steps) == 1 and steps[0][1] is None else None
        return cls(derivatives, names, steps, only)


def picked(values: Sequence, positions: tuple[int, ...] | None) -> Sequence:
    """Return the values at ``positions``, all where there are none; compiled autograd traces it, and no getter."""
    return values if positions is None else [values[i] for i in positions]


def tuple_getter(positions: Iterable[int]) -> Callable[[Sequence], Sequence]:
    """Return a getter of these positions of a sequence, several as a tuple, without a Python frame."""
    return _tuple_getter(tuple(positions))


@lru_cache(maxsize=1024)  # there are few, and plans hold many
def _tuple_getter(positions: tuple[int, ...]) -> Callable[[Sequence], Sequence]:
    if len(positions) > 1:
        return itemgetter(*positions)
    start = positions[0] if positions else 0
    return itemgetter(slice(start, start + 1 or None) if positions else slice(0))


def is_identity(derivative: Callable, others: Sequence) -> bool:
    """Return whether ``derivative`` of g and ``others``, in the order of its parameters, is g itself, whatever g is."""
    if any(isinstance(value, Tensor) for value in others):
        return False
    one = torch.ones((), device="cpu")
    return derivative(one, *others) is one


def other_values(derivative: Callable, named: dict[str, Any]) -> list:
    """Return the values that ``derivative`` reads, in the order of its parameters, without g."""
    return [named[name] for name in parameters(derivative) if name != "g"]


@cache
def parameters(formula: Callable) -> tuple[str, ...]:
    """Return the names of what a formula reads, in order, ``out`` not among them."""
    return tuple(name for name, p in inspect.signature(formula).parameters.items() if p.kind == p.POSITIONAL_OR_KEYWORD)


def eager_function(formula: Callable) -> Callable:
    """Return torch's function of that name, which takes the same inputs; ``formula`` where there are more than x and y.

    It has no Python frame, which takes a tenth of the time of a call on few elements.
    """
    if not {"x", "y"}.issuperset(parameters(formula)):
        return formula
    return getattr(torch, formula.__name__.removesuffix("_number"), formula)


def by_parameter(formula: Callable, args: Sequence) -> dict[str, Any]:
    """Return ``args`` by the names that ``formula`` has for them."""
    return dict(zip(parameters(formula), args, strict=True))
