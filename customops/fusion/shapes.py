"""The operators of a trace that compute nothing: where in a value the elements of others lie.

All of torch's views, slices and concatenations are made of these five; see reshaping.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .operators import TraceOperator


class ShapeOperator(TraceOperator):
    """An operator that moves elements. Its inputs are values and numbers, in the order of ``by_formula``."""

    may_alias = True
    is_elementwise = False

    @classmethod
    def view(cls, *inputs: Any) -> Tensor | None:
        """Return the value if torch's is a view, None if it copies."""
        return cls.by_formula(*inputs)

    @classmethod
    def is_empty(cls, *_inputs: Any) -> bool:
        """Return whether the value has no elements, whatever the values among the inputs have."""
        return False

    @classmethod
    def shape(cls, *inputs: Any) -> torch.Size:
        """Return the shape of the value, where inputs that are values are given as their shapes.

        Raises an error where torch raises one for dense tensors. A meta tensor has no memory, and torch has its views
        in C++: for other operators it would import SymPy.
        """
        with torch.no_grad():
            values = [torch.empty(x, device="meta") if isinstance(x, torch.Size) else x for x in inputs]
            return cls.by_formula(*values).shape


class Regroup(ShapeOperator):
    """The elements of x in order, in other dimensions: ``view`` and ``reshape``, ``flatten``, ``unsqueeze`` ...."""

    @staticmethod
    def by_formula(x: Tensor, copies: bool, sizes: tuple[int, ...]) -> Tensor:
        """Return x in this shape; as a view, unless it ``copies`` what no view has in this shape."""
        return x.reshape(sizes) if copies else x.view(sizes)

    @classmethod
    def view(cls, x: Tensor, _copies: bool, sizes: tuple[int, ...]) -> Tensor | None:
        """Return the value if it is a view."""
        try:
            return x.view(sizes)
        except RuntimeError:
            return None


class Contiguous(ShapeOperator):
    """x with its elements in order in memory."""

    @staticmethod
    def by_formula(x: Tensor) -> Tensor:
        """Return x, or a copy of it."""
        return x.contiguous()

    @classmethod
    def view(cls, x: Tensor) -> Tensor | None:
        """Return x if it is contiguous."""
        return x if x.is_contiguous() else None


class Permute(ShapeOperator):
    """The dimensions of x in another order."""

    @staticmethod
    def by_formula(x: Tensor, order: tuple[int, ...]) -> Tensor:
        """Return x with dimension ``order[d]`` as dimension d."""
        return x.permute(order)


class Expand(ShapeOperator):
    """x repeated along dimensions of size 1, and new ones in front."""

    @staticmethod
    def by_formula(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """Return x expanded to this shape."""
        return x.expand(sizes)

    @classmethod
    def is_empty(cls, _x: Any, sizes: tuple[int, ...]) -> bool:
        """Return whether x is repeated no times."""
        return 0 in sizes


class Narrow(ShapeOperator):
    """A range of a dimension of x."""

    @staticmethod
    def by_formula(x: Tensor, dim: int, start: int, length: int) -> Tensor:
        """Return ``length`` elements of dimension ``dim`` from ``start`` on."""
        return x.narrow(dim, start, length)

    @classmethod
    def is_empty(cls, _x: Any, _dim: int, _start: int, length: int) -> bool:
        """Return whether the range is empty."""
        return not length


class Cat(ShapeOperator):
    """Values one after another along a dimension."""

    may_alias = False

    @staticmethod
    def by_formula(dim: int, *values: Tensor) -> Tensor:
        """Return the values joined along dimension ``dim``."""
        return torch.cat(values, dim)

    @classmethod
    def view(cls, *_inputs: Any) -> Tensor | None:
        """Return None: it is a copy."""
        return None

    @classmethod
    def shape(cls, dim: int, *shapes: torch.Size) -> torch.Size:
        """Return the shape of the value. Raises ValueError where torch raises an error."""
        first = shapes[0]
        if any((*each[:dim], *each[dim + 1 :]) != (*first[:dim], *first[dim + 1 :]) for each in shapes):
            raise ValueError("tensors of these shapes cannot be joined")  # torch says why
        return torch.Size([*first[:dim], sum(each[dim] for each in shapes), *first[dim + 1 :]])


def is_shape_operator(operator: Any) -> bool:
    """Return whether an operator of a trace computes nothing, and is no ``detach``."""
    return isinstance(operator, type) and issubclass(operator, ShapeOperator)
