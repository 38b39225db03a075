"""Comparisons and logic: inside fused functions, for the conditions of where; anywhere else torch's own.

A kernel has 1 for true and 0 for false. There is no derivative: the value does not move with its inputs, but jumps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from .. import formulas as f
from .call import tracing_hook

Number = bool | int | float

__all__ = ["eq", "ge", "gt", "le", "logical_and", "logical_not", "logical_or", "lt", "ne"]


class Predicate:
    """An elementwise operator that is true or false: torch's own, which a fused function computes as 1 or 0."""

    by_formula: ClassVar[Callable[..., Tensor]]  # torch's function
    formula: ClassVar[Callable]  # of 1 and 0
    derivatives: ClassVar[tuple[Callable, ...]] = ()
    tensors: ClassVar[int] = 2

    @classmethod
    def eager_call(cls, inputs: Sequence) -> tuple[Callable[..., Tensor], Sequence]:
        """Return torch's function, and the inputs that it takes."""
        return cls.by_formula, inputs


class Lt(Predicate):
    """z = 1 where x < y, else 0."""

    by_formula, formula = staticmethod(torch.lt), staticmethod(f.lt)


class Le(Predicate):
    """z = 1 where x <= y, else 0."""

    by_formula, formula = staticmethod(torch.le), staticmethod(f.le)


class Gt(Predicate):
    """z = 1 where x > y, else 0."""

    by_formula, formula = staticmethod(torch.gt), staticmethod(f.gt)


class Ge(Predicate):
    """z = 1 where x >= y, else 0."""

    by_formula, formula = staticmethod(torch.ge), staticmethod(f.ge)


class Eq(Predicate):
    """z = 1 where x = y, else 0."""

    by_formula, formula = staticmethod(torch.eq), staticmethod(f.eq)


class Ne(Predicate):
    """z = 1 where x ≠ y, else 0."""

    by_formula, formula = staticmethod(torch.ne), staticmethod(f.ne)


class LogicalAnd(Predicate):
    """z = 1 where neither x nor y is 0, else 0."""

    by_formula, formula = staticmethod(torch.logical_and), staticmethod(f.logical_and)


class LogicalOr(Predicate):
    """z = 1 where x or y is not 0, else 0."""

    by_formula, formula = staticmethod(torch.logical_or), staticmethod(f.logical_or)


class LogicalNot(Predicate):
    """z = 1 where x is 0, else 0."""

    by_formula, formula = staticmethod(torch.logical_not), staticmethod(f.logical_not)


def lt(input: Tensor, other: Tensor | Number) -> Tensor:
    """Return whether each element is below ``other``: :func:`torch.lt`, which :func:`fuse` can trace."""
    return _apply(Lt, input, other)


def le(input: Tensor, other: Tensor | Number) -> Tensor:
    """Return whether each element is at most ``other``: :func:`torch.le`, which :func:`fuse` can trace."""
    return _apply(Le, input, other)


def gt(input: Tensor, other: Tensor | Number) -> Tensor:
    """Return whether each element is above ``other``: :func:`torch.gt`, which :func:`fuse` can trace."""
    return _apply(Gt, input, other)


def ge(input: Tensor, other: Tensor | Number) -> Tensor:
    """Return whether each element is at least ``other``: :func:`torch.ge`, which :func:`fuse` can trace."""
    return _apply(Ge, input, other)


def eq(input: Tensor, other: Tensor | Number) -> Tensor:
    """Return whether each element equals ``other``: :func:`torch.eq`, which :func:`fuse` can trace."""
    return _apply(Eq, input, other)


def ne(input: Tensor, other: Tensor | Number) -> Tensor:
    """Return whether each element differs from ``other``: :func:`torch.ne`, which :func:`fuse` can trace."""
    return _apply(Ne, input, other)


def logical_and(input: Tensor, other: Tensor) -> Tensor:
    """Return whether neither element is 0: :func:`torch.logical_and`, which :func:`fuse` can trace."""
    return _apply(LogicalAnd, input, other)


def logical_or(input: Tensor, other: Tensor) -> Tensor:
    """Return whether one element is not 0: :func:`torch.logical_or`, which :func:`fuse` can trace."""
    return _apply(LogicalOr, input, other)


def logical_not(input: Tensor) -> Tensor:
    """Return whether each element is 0: :func:`torch.logical_not`, which :func:`fuse` can trace."""
    return _apply(LogicalNot, input)


def _apply(predicate: type[Predicate], *inputs) -> Tensor:
    trace = tracing_hook(inputs)
    return trace(predicate, inputs) if trace else predicate.by_formula(*inputs)
