"""A composition of operators as formulas over named axes.

A value has a set of axes instead of a shape: two that broadcast share an axis, one that was reduced has lost some, and
whether it kept them with size 1 does not matter. So undoing a broadcast is a sum over the axes that were gained, and
undoing a sum is nothing at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from math import prod
from typing import Any, NamedTuple

import torch

from ..runtime.rules import parameters
from .axes import NO_AXES, Axes, Dims


class Input(NamedTuple):
    """A tensor that the graph is given."""

    name: str
    dims: Dims


class Constant(NamedTuple):
    """A number that the function wrote, or that a rule needs; where ``over`` has axes, their elements."""

    number: Any
    over: Axes = NO_AXES


class Op(NamedTuple):
    """A formula of values; over ``over`` if it is a reduction. ``operator`` is whose formula it is, with its rule."""

    formula: str
    reads: tuple[int, ...]
    over: Axes = NO_AXES
    operator: Any = None


class Renamed(NamedTuple):
    """A value whose axes ``old`` are ``new`` from here on: it meets itself, or what made it, along another axis."""

    reads: tuple[int, ...]
    old: Dims
    new: Dims


class Graph:
    """Values in the order in which they can be computed, and those that are the results, with their dimensions.

    All but the ``sizes`` of axes is the same for tensors of other shapes, and shared by :meth:`resized` graphs.
    """

    __slots__ = ("_known", "axes", "derivatives", "orders", "results", "sizes", "values")

    def __init__(self, sizes: dict[int, int]):
        self.sizes = sizes  # of each axis
        self.values: list[Any] = []  # each Given, Number, Step or Again
        self.axes: list[Axes] = []
        self.results: list[tuple[int, Dims]] = []
        self.derivatives: dict[tuple, Any] = {}  # what ``derive`` made of it
        self.orders: dict[tuple, list[int]] = {}  # in which kernels compute values, by what they are given
        self._known: dict[tuple, int] = {}

    def resized(self, sizes: dict[int, int]) -> Graph:
        """The same values over axes of other sizes."""
        other = copy(self)
        other.sizes = sizes
        return other

    def sizes_for(self, shapes: Sequence[Sequence[int]]) -> dict[int, int]:
        """The sizes of axes where tensors have these shapes. Raises ValueError where they do not broadcast."""
        sizes: dict[int, int] = {}
        for value, shape in zip(self.values, shapes, strict=False):
            for a, n in zip(value.dims, shape, strict=True):
                if a is not None and sizes.setdefault(a, n) != n:
                    raise ValueError("the shapes do not broadcast")
        for value in self.values:
            if isinstance(value, Renamed):
                for old, new in zip(value.old, value.new, strict=True):
                    if new is not None and old is not None and sizes.setdefault(new, sizes[old]) != sizes[old]:
                        raise ValueError("the shapes do not broadcast")
        return sizes

    def number(self, i: int) -> Any:
        """The number that value ``i`` is."""
        value = self.values[i]
        return self.count(value.over) if value.over else value.number

    def add(self, value: Input | Constant | Op | Renamed) -> int:
        """The index of ``value``, which is taken once however often it is added; but for tensors, of any name."""
        number = getattr(value, "number", None)
        key = (type(value), type(number), str(number), value, isinstance(value, Input) and len(self.values))
        if key not in self._known:
            self._known[key] = len(self.values)
            self.values.append(value)
            self.axes.append(self._axes_of(value))
        return self._known[key]

    def fold(self, formula: str, value: int, over: Axes, operator: Any = None) -> int:
        """The reduction of a value over axes; over none it is the value."""
        return self.add(Op(formula, (value,), over, operator)) if over else value

    def count(self, axes: Iterable[int]) -> int:
        """How many elements lie along ``axes``."""
        return prod(self.sizes[a] for a in axes)

    def needed(self, of: Iterable[int], known: Iterable[int] = ()) -> list[int]:
        """The values that ``of`` are computed from, themselves included, in order; none from which ``known`` are."""
        found, left, stop = set(), list(of), set(known)
        while left:
            i = left.pop()
            if i not in found:
                found.add(i)
                if i not in stop:
                    left.extend(getattr(self.values[i], "reads", ()))
        return sorted(found)

    def given(self) -> list[int]:
        """The tensors that the results are computed from."""
        needed = self.needed([value for value, _ in self.results])
        return [i for i in needed if isinstance(self.values[i], Input)]

    def __str__(self):
        return "\n".join([*self.lines(), f"return {', '.join(self.word(value) for value, _ in self.results)}"])

    def lines(self, tensors: Graph | None = None, known: Iterable[int] = ()) -> list[str]:
        """What is computed where values are ``known``, a line for each: ``t3 = mean(t2) over dim 1 of x``.

        ``tensors`` has those that axes are called by, another graph's than these if they are to be.
        """
        stop = set(known)
        steps = [i for i in self.needed([value for value, _ in self.results], stop) if i not in stop]
        right = {i: self._right_side(i, tensors or self) for i in steps if hasattr(self.values[i], "reads")}
        return [f"{self.word(i)} = {words}" for i, words in right.items()]

    def word(self, i: int) -> str:
        """What value ``i`` is called."""
        value = self.values[i]
        if isinstance(value, Constant):
            return str(self.number(i))
        return value.name if isinstance(value, Input) else f"t{i}"

    def _right_side(self, i: int, tensors: Graph) -> str:
        value = self.values[i]
        if isinstance(value, Renamed):
            return f"{self.word(value.reads[0])} along {tensors.where(value.new)}"
        words = [self.word(j) for j in value.reads]
        if value.formula in ("add", "sub") and words[2] == "1":  # alpha
            del words[2]
        return f"{value.formula}({', '.join(words)})" + (f" over {tensors.where(value.over)}" if value.over else "")

    def where(self, axes: Iterable[int | None]) -> str:
        """What ``axes`` are called: dimensions of the tensor that has most of them, sizes where it has none."""
        wanted = {a for a in axes if a is not None}
        given = [value for value in self.values if isinstance(value, Input)]
        best = max(given, key=lambda value: (len(wanted & set(value.dims)), len(value.dims)))
        dims = [str(d) for d, a in enumerate(best.dims) if a in wanted]
        rest = [f"an axis of {self.sizes[a]}" for a in sorted(wanted - set(best.dims))]
        return " and ".join([*([f"dim {', '.join(dims)} of {best.name}"] if dims else []), *rest])

    def is_linear(self, value: int) -> bool:
        """Whether this step is linear in its only input that is no number: so that it commutes with sums."""
        step = self.values[value]
        names = ("x",) if step.over else ("x", "y", "alpha")
        numbers = {
            name: self.number(i)
            for name, i in zip(names, step.reads, strict=False)
            if isinstance(self.values[i], Constant)
        }
        if len(numbers) + 1 < len(step.reads) or step.operator is None:
            return False
        if step.over:
            derivative = step.operator.derivative
            return derivative is None or set(parameters(derivative)) <= {"g", "count"}
        (x,) = (name for name in names[: len(step.reads)] if name not in numbers)
        slope = step.operator.derivatives[names.index(x)]
        if not set(parameters(slope)) <= {"g", *numbers}:
            return False
        return not step.operator.formula(**{x: torch.zeros((), device="cpu"), **numbers}).item()

    def _axes_of(self, value: Input | Constant | Op | Renamed) -> Axes:
        if isinstance(value, Input):
            return frozenset(a for a in value.dims if a is not None)
        if isinstance(value, Constant):
            return NO_AXES
        axes = NO_AXES.union(*(self.axes[i] for i in value.reads))
        if isinstance(value, Renamed):
            pairs = zip(value.old, value.new, strict=True)
            return frozenset(new for old, new in pairs if new is not None and old in axes)
        return axes - value.over
