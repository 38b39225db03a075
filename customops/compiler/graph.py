"""The compiler's intermediate representation: a composition of operators as formulas over named axes.

A value has a set of axes instead of a shape: two values that broadcast share an axis, a value that was reduced has lost
some, and whether it kept them with size 1 does not matter. So undoing a broadcast is a sum over the axes that were
gained, and undoing a sum is nothing at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from math import prod
from typing import Any

import torch

from ..runtime.rules import parameters
from .axes import NO_AXES, Axes, Dims, renamed
from .nodes import Constant, Input, Node, Op, Position, Renamed, SegmentSums, inputs_of, renamed_node
from .printing import text_of

__all__ = ["Constant", "Graph", "Input", "Op", "Position", "Renamed"]


class Graph:
    """Values in an order in which they can be computed, the results among them, and the sizes of axes.

    Everything but the sizes is the same for tensors of other shapes, and :meth:`resized` graphs share it.
    """

    __slots__ = ("_index", "axes", "derivatives", "detached_results", "orders", "results", "sizes", "values")

    def __init__(self, sizes: dict[int, int]):
        self.sizes = sizes  # the number of elements along each axis
        self.values: list[Any] = []  # the node of each value; a value's index is its position here
        self.axes: list[Axes] = []  # the axes along which each value varies
        self.results: list[tuple[int, Dims]] = []  # the value of each result, and the axis of each of its dimensions
        self.detached_results: frozenset[int] = frozenset()  # the positions of results that have no derivative
        self.derivatives: dict[tuple, Any] = {}  # a cache of gradient.py: the graphs of its gradients
        self.orders: dict[tuple, list[int]] = {}  # a cache of partition.py: in which order kernels compute values
        self._index: dict[tuple, int] = {}  # the index of each node that was added

    def resized(self, sizes: dict[int, int]) -> Graph:
        """Return the same graph over axes of other sizes."""
        other = copy(self)
        other.sizes = sizes
        return other

    def renamed(self, names: Mapping[int, int]) -> Graph:
        """Return the same graph, in which some axes have the names of others."""
        other = copy(self)
        other.values = [renamed_node(node, names) for node in self.values]
        other.axes = [renamed(axes, names) for axes in self.axes]
        other.results = [(value, renamed(dims, names)) for value, dims in self.results]
        other.derivatives, other._index = {}, {}
        return other

    def extended(self) -> Graph:
        """Return the same graph, to which values and axes can be added that this one does not get."""
        other = copy(self)
        other.sizes, other.values, other.axes = dict(self.sizes), list(self.values), list(self.axes)
        other.derivatives, other.orders, other._index = {}, {}, dict(self._index)
        return other

    def sizes_for(self, shapes: Sequence[Sequence[int]]) -> dict[int, int]:
        """Return the sizes of axes if the inputs have these shapes. Raises ValueError if they do not broadcast."""
        sizes: dict[int, int] = {}
        for node, shape in zip(self.values, shapes, strict=False):
            for a, n in zip(node.dims, shape, strict=True):
                if a is not None and sizes.setdefault(a, n) != n:
                    raise ValueError("the shapes do not broadcast")
        for node in self.values:
            if isinstance(node, Renamed):
                for old, new in zip(node.old, node.new, strict=True):
                    if new is not None and old is not None and sizes.setdefault(new, sizes[old]) != sizes[old]:
                        raise ValueError("the shapes do not broadcast")
        return sizes

    def number(self, i: int) -> Any:
        """Return the number that value ``i`` is."""
        constant = self.values[i]
        return self.count(constant.counted) if constant.counted else constant.number

    def add(self, node: Node) -> int:
        """Return the index of ``node``. Equal nodes are one value; but each input is another, whatever its name."""
        number = getattr(node, "number", None)
        key = (type(node), type(number), str(number), node, isinstance(node, Input) and len(self.values))
        if key not in self._index:
            self._index[key] = len(self.values)
            self.values.append(node)
            self.axes.append(self._axes_of(node))
        return self._index[key]

    def reduce(
        self,
        formula: str,
        value: int,
        reduced: Axes,
        operator: Any = None,
        detached: bool = False,
        order: tuple[int, ...] = (),
    ) -> int:
        """Return the index of a value reduced over axes, as ``Op`` has it; without axes it is the value."""
        positions = frozenset({0} if detached else ())
        return self.add(Op(formula, (value,), reduced, operator, positions, order)) if reduced else value

    def count(self, axes: Iterable[int]) -> int:
        """Return how many elements lie along ``axes``."""
        return prod([self.sizes[a] for a in axes])  # a list, which compiled autograd traces

    def ancestors(self, values: Iterable[int], known: Iterable[int] = ()) -> list[int]:
        """Return ``values`` and all that they are computed from, in topological order, not looking past ``known``."""
        visited, pending, stop = set(), list(values), set(known)
        while pending:
            i = pending.pop()
            if i not in visited:
                visited.add(i)
                if i not in stop:
                    pending.extend(inputs_of(self.values[i]))
        return sorted(visited)

    def inputs(self) -> list[int]:
        """Return the inputs that the results are computed from."""
        ancestors = self.ancestors([value for value, _ in self.results])
        return [i for i in ancestors if isinstance(self.values[i], Input)]

    def __str__(self):
        return text_of(self)

    __repr__ = __str__

    def is_linear(self, value: int) -> bool:
        """Return whether an op is linear in its only input that is not a number, so that it commutes with sums."""
        op = self.values[value]
        if op.operator is None:
            return False
        names = parameters(op.operator.formula)
        numbers = {
            name: self.number(i)
            for name, i in zip(names, op.inputs, strict=False)
            if isinstance(self.values[i], Constant)
        }
        if len(numbers) + 1 < len(op.inputs):
            return False
        if op.reduced:
            return _is_linear_reduction(op.operator)
        (x,) = (name for name in names[: len(op.inputs)] if name not in numbers)
        return _is_linear_formula(op.operator, x, names.index(x), numbers)

    def _axes_of(self, node: Node) -> Axes:
        if isinstance(node, Input):
            return frozenset(a for a in node.dims if a is not None)
        if isinstance(node, Constant):
            return NO_AXES
        if isinstance(node, Position):
            return frozenset(node.axes)
        axes = NO_AXES.union(*(self.axes[i] for i in node.inputs))
        if isinstance(node, Renamed):
            pairs = zip(node.old, node.new, strict=True)
            return frozenset(new for old, new in pairs if new is not None and old in axes)
        return axes - node.reduced | ({node.along} if isinstance(node, SegmentSums) else NO_AXES)


def _is_linear_reduction(operator: Any) -> bool:
    """Return whether the derivative reads no value, but the cotangent and how many elements were reduced."""
    return operator.derivative is None or set(parameters(operator.derivative)) <= {"g", "count"}


def _is_linear_formula(operator: Any, x: str, position: int, numbers: dict[str, Any]) -> bool:
    """Return whether the derivative by ``x`` reads nothing but numbers, and the formula of a sum is that of its terms.

    A rounding has the derivative of its input, but not the second property.
    """
    if position >= len(operator.derivatives):
        return False
    slope = operator.derivatives[position]
    if not set(parameters(slope)) <= {"g", *numbers}:
        return False
    x_, y_ = torch.linspace(-1.7320508, 1.4142135, 32, dtype=torch.float64, device="cpu").view(2, 16)
    at_x, at_y, at_sum, at_0 = (operator.formula(**{x: each, **numbers}) for each in (x_, y_, x_ + y_, x_ * 0))
    return bool(torch.isclose(at_x + at_y, at_sum, rtol=1e-12).all() and not at_0.any())
