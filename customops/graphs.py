"""A composition of operators as formulas over named axes, and its derivative by the operators' own rules.

A value has a set of axes instead of a shape: two that broadcast share an axis, one that was reduced has lost some, and
whether it kept them with size 1 does not matter. So undoing a broadcast is a sum over the axes that were gained, and
undoing a sum is nothing at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import formulas
from .autograd import Operator
from .compute import is_identity, parameters, reduced_axes
from .tracing import Ref, Trace

Axes = frozenset[int]
Dims = tuple[int | None, ...]  # the axis of each dimension of a tensor; None for one of size 1
NO_AXES: Axes = frozenset()


class Given(NamedTuple):
    """A tensor that the graph is given."""

    name: str
    dims: Dims


class Number(NamedTuple):
    """A number that the function wrote, or that a rule needs."""

    number: Any


class Step(NamedTuple):
    """A formula of values; over ``over`` if it is a reduction. ``operator`` is whose formula it is, with its rule."""

    formula: str
    reads: tuple[int, ...]
    over: Axes = NO_AXES
    operator: Any = None


class Again(NamedTuple):
    """A value whose axes ``old`` are ``new`` from here on: it meets itself, or what made it, along another axis."""

    reads: tuple[int, ...]
    old: Dims
    new: Dims


class Graph:
    """Values in the order in which they can be computed, and those that are the results, with their dimensions."""

    def __init__(self, sizes: dict[int, int]):
        self.sizes = sizes  # of each axis
        self.values: list[Any] = []  # each Given, Number, Step or Again
        self.axes: list[Axes] = []
        self.results: list[tuple[int, Dims]] = []
        self._known: dict[tuple, int] = {}

    def add(self, value: Given | Number | Step | Again) -> int:
        """The index of ``value``, which is taken once however often it is added; but for tensors, of any name."""
        number = getattr(value, "number", None)
        key = (type(value), type(number), str(number), value, isinstance(value, Given) and len(self.values))
        if key not in self._known:
            self._known[key] = len(self.values)
            self.values.append(value)
            self.axes.append(self._axes_of(value))
        return self._known[key]

    def fold(self, formula: str, value: int, over: Axes, operator: Any = None) -> int:
        """The reduction of a value over axes; over none it is the value."""
        return self.add(Step(formula, (value,), over, operator)) if over else value

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
        return [i for i in needed if isinstance(self.values[i], Given)]

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
        if isinstance(value, Number):
            return str(value.number)
        return value.name if isinstance(value, Given) else f"t{i}"

    def _right_side(self, i: int, tensors: Graph) -> str:
        value = self.values[i]
        if isinstance(value, Again):
            return f"{self.word(value.reads[0])} along {tensors.where(value.new)}"
        words = [self.word(j) for j in value.reads]
        if value.formula in ("add", "sub") and words[2] == "1":  # alpha
            del words[2]
        return f"{value.formula}({', '.join(words)})" + (f" over {tensors.where(value.over)}" if value.over else "")

    def where(self, axes: Iterable[int | None]) -> str:
        """What ``axes`` are called: dimensions of the tensor that has most of them, sizes where it has none."""
        wanted = {a for a in axes if a is not None}
        given = [value for value in self.values if isinstance(value, Given)]
        best = max(given, key=lambda value: (len(wanted & set(value.dims)), len(value.dims)))
        dims = [str(d) for d, a in enumerate(best.dims) if a in wanted]
        rest = [f"an axis of {self.sizes[a]}" for a in sorted(wanted - set(best.dims))]
        return " and ".join([*([f"dim {', '.join(dims)} of {best.name}"] if dims else []), *rest])

    def is_linear(self, value: int) -> bool:
        """Whether this step is linear in its only input that is no number: so that it commutes with sums."""
        step = self.values[value]
        names = ("x",) if step.over else ("x", "y", "alpha")
        numbers = {
            name: self.values[i].number
            for name, i in zip(names, step.reads, strict=False)
            if isinstance(self.values[i], Number)
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

    def _axes_of(self, value: Given | Number | Step | Again) -> Axes:
        if isinstance(value, Given):
            return frozenset(a for a in value.dims if a is not None)
        if isinstance(value, Number):
            return NO_AXES
        axes = NO_AXES.union(*(self.axes[i] for i in value.reads))
        if isinstance(value, Again):
            pairs = zip(value.old, value.new, strict=True)
            return frozenset(new for old, new in pairs if new is not None and old in axes)
        return axes - value.over


def build(trace: Trace, names: Sequence[str], shapes: Sequence[Sequence[int]]) -> Graph:
    """The graph of ``trace`` for tensors of these shapes.

    Where a value would meet itself along another axis, it is seen :class:`Again` along new ones. Raises ValueError
    where the shapes do not broadcast.
    """
    same = _Axes()
    dims: list[Dims] = [same.new(shape) for shape in shapes]
    over: dict[int, Dims] = {}
    again: dict[tuple[int, int], Dims] = {}
    for i, (operator, inputs) in enumerate(trace.nodes, len(shapes)):
        if issubclass(operator, Operator):
            tensors = {k: dims[x.value] for k, x in enumerate(inputs) if isinstance(x, Ref)}
            met = same.broadcast(list(tensors.values()), dims)
            if met is None:
                largest = max(tensors, key=lambda k: len(tensors[k]))
                others = {k: same.renew(tensors[k]) for k in tensors if k != largest}
                again |= {(i, k): new for k, new in others.items()}
                met = same.broadcast([tensors[largest], *others.values()], [])
            assert met is not None  # new axes are no tensor's other ones
            dims.append(met)
        else:
            x, _, *dim = inputs
            gone = reduced_axes(len(dims[x.value]), *dim)
            over[i] = tuple(a for d, a in enumerate(dims[x.value]) if d in gone)
            kept = len(dim) > 1 and dim[1]
            dims.append(tuple(None if d in gone else a for d, a in enumerate(dims[x.value]) if kept or d not in gone))
    dims = [same.roots(each) for each in dims]
    graph = Graph({same.root(a): n for a, n in enumerate(same.sizes)})
    where = [graph.add(Given(name, each)) for name, each in zip(names, dims, strict=False)]
    for i, (operator, inputs) in enumerate(trace.nodes, len(shapes)):
        reads = [where[x.value] if isinstance(x, Ref) else x for x in inputs]
        if i in over:
            axes = frozenset(a for a in same.roots(over[i]) if a is not None)
            where.append(graph.fold(operator.formula.__name__, reads[0], axes, operator))
            continue
        for k, x in enumerate(inputs):
            if not isinstance(x, Ref):
                reads[k] = graph.add(Number(x))
            elif (i, k) in again:
                reads[k] = graph.add(Again((reads[k],), dims[x.value], same.roots(again[i, k])))
        where.append(graph.add(Step(operator.formula.__name__, tuple(reads), operator=operator)))
    graph.results = [(where[ref.value], dims[ref.value]) for ref in trace.outputs]
    return graph


class _Axes:
    """Axes that turn out to be the same: a union-find, each class called by its first member."""

    def __init__(self):
        self.first: list[int] = []
        self.sizes: list[int] = []

    def new(self, shape: Sequence[int]) -> Dims:
        """An axis for each dimension that has more or fewer than one element."""
        dims: list[int | None] = []
        for n in shape:
            dims.append(None if n == 1 else len(self.first))
            if n != 1:
                self.first.append(len(self.first))
                self.sizes.append(n)
        return tuple(dims)

    def renew(self, dims: Dims) -> Dims:
        """An axis of the same size for each of ``dims``."""
        return self.new([1 if a is None else self.sizes[a] for a in dims])

    def root(self, axis: int) -> int:
        """What the class of ``axis`` is called by."""
        while self.first[axis] != axis:
            axis = self.first[axis]
        return axis

    def roots(self, dims: Dims) -> Dims:
        """Each axis by its class."""
        return tuple(None if a is None else self.root(a) for a in dims)

    def broadcast(self, operands: Sequence[Dims], known: Iterable[Dims]) -> Dims | None:
        """The dimensions of what these broadcast to, whose axes at each are from now on the same.

        None, and nothing done, where two axes of one of ``known`` would be.
        """
        before = list(self.first)
        rank = max(map(len, operands))
        met = tuple(self._meet([o[d] for o in operands if len(o) >= -d]) for d in range(-rank, 0))
        for dims in (*known, met):
            axes = [a for a in self.roots(dims) if a is not None]
            if len(set(axes)) < len(axes):
                self.first = before
                return None
        return met

    def _meet(self, axes: Sequence[int | None]) -> int | None:
        roots = sorted({self.root(a) for a in axes if a is not None})
        for other in roots[1:]:
            if self.sizes[other] != self.sizes[roots[0]]:
                raise ValueError("the shapes do not broadcast")
            self.first[other] = roots[0]
        return roots[0] if roots else None


def derive(graph: Graph, wanted: Sequence[int], outputs: Sequence[int]) -> tuple[Graph, list[int | None]]:
    """The graph of the gradients of the tensors ``wanted``, and for each which of its results it is, None for zero.

    It is given a cotangent ``g`` of each of ``outputs``, results of ``graph``, and then what it reads of the tensors
    that ``graph`` was given. Every rule is linear in g: so a sum over the axes that an input was broadcast along can
    wait until the end, where it is done on the way out of a kernel; unless it is over the axes of a row that is folded
    anyway.
    """
    back = Graph(graph.sizes)
    names = [f"g{i}" if len(outputs) > 1 else "g" for i in outputs]
    taken = {value.name for value in graph.values if isinstance(value, Given)}
    names = [name if name not in taken else f"{name} of the result" for name in names]
    cotangents = [back.add(Given(name, graph.results[i][1])) for name, i in zip(names, outputs, strict=True)]
    moved = [back.add(_shift(value, len(cotangents))) for value in graph.values]
    assert moved == list(range(len(cotangents), len(cotangents) + len(moved)))
    first, end = len(cotangents), len(back.values)
    read = {i for value in back.values for i in getattr(value, "reads", ())}
    rows = {v.over for i, v in enumerate(back.values) if isinstance(v, Step) and v.over and i in read}
    targets = {first + i for i in wanted}
    touched = {i for i in range(end) if targets & set(back.needed([i]))}
    found: dict[
        int, dict[Axes, int]
    ] = {}  # of each value: cotangents, by the axes that they have yet to be summed over

    def give(i: int, over: Axes, g: int) -> None:
        if i in touched:
            if over in rows:
                over, g = NO_AXES, back.fold("sum", g, over)
            before = found.setdefault(i, {}).get(over)
            found[i][over] = g if before is None else back.add(Step("add", (before, g, back.add(Number(1)))))

    for i, g in zip(outputs, cotangents, strict=True):
        give(first + graph.results[i][0], NO_AXES, g)
    for i in reversed(range(first, end)):
        step = back.values[i]
        for over, g in list(found.get(i, {}).items()):
            if isinstance(step, Again):
                g = back.fold("sum", g, over)
                give(step.reads[0], NO_AXES, back.add(Again((g,), step.new, step.old)))
                continue
            if not isinstance(step, Step):
                break
            if over & step.over:
                over, g = NO_AXES, back.fold("sum", g, over)
            for read_at, dx in _rules(back, i, step, g, touched):
                give(read_at, over | (back.axes[i] - back.axes[read_at]), dx)
    which: list[int | None] = []
    for i in wanted:
        parts = [back.fold("sum", g, over) for over, g in found.get(first + i, {}).items()]
        for other in parts[1:]:
            parts[0] = back.add(Step("add", (parts[0], other, back.add(Number(1)))))
        which.append(len(back.results) if parts else None)
        back.results += [(part, graph.values[i].dims) for part in parts[:1]]
    return back, which


def _shift(value: Given | Number | Step | Again, by: int) -> Given | Number | Step | Again:
    return value._replace(reads=tuple(i + by for i in value.reads)) if isinstance(value, Step | Again) else value


def _rules(graph: Graph, z: int, step: Step, g: int, touched: set[int]) -> Iterable[tuple[int, int]]:
    """What each input of ``step`` that is ``touched`` gets for ``g``, by the operator's own derivatives."""
    named = {"g": g, "z": z, **dict(zip(("x", "y", "alpha"), step.reads, strict=False))}
    if not step.over:
        for i, derivative in zip(step.reads, step.operator.derivatives, strict=False):
            if i in touched:
                yield i, _apply(graph, derivative, named)
        return
    derivative = step.operator.derivative
    if derivative is None:
        yield step.reads[0], g
        return
    named["count"] = graph.add(Number(graph.count(step.over)))
    if "ties" in parameters(derivative):
        named["ties"] = graph.fold("sum", graph.add(Step("equal", (named["x"], z))), step.over)
    yield step.reads[0], _apply(graph, derivative, named)


def _apply(graph: Graph, derivative: Callable, named: dict[str, int]) -> int:
    others = [graph.values[named[name]] for name in parameters(derivative) if name != "g"]
    numbers = [value.number for value in others if isinstance(value, Number)]
    if len(numbers) == len(others) and is_identity(derivative, numbers):
        return named["g"]
    return graph.add(Step(derivative.__name__, tuple(named[name] for name in parameters(derivative))))


def evaluate(graph: Graph, tensors: dict[int, Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The results by torch's formulas in ``dtype``, for these tensors given.

    Differentiable, and of any class of tensors that torch computes with.
    """
    order = sorted(graph.sizes)
    values: dict[int, Any] = {}
    for i in graph.needed([value for value, _ in graph.results]):
        value = graph.values[i]
        if isinstance(value, Given):
            values[i] = align(tensors[i].to(dtype), value.dims, order)
        elif isinstance(value, Number):
            values[i] = value.number
        elif isinstance(value, Again):
            x = restore(values[value.reads[0]], value.old, order, graph.sizes)
            values[i] = align(x, value.new, order)
        elif value.over:
            x = values[value.reads[0]]
            places = [order.index(a) for a in value.over]
            x = x.expand([graph.sizes[a] if a in value.over else -1 for a in order])
            values[i] = getattr(formulas, value.formula)(x, places, True)
        else:
            values[i] = getattr(formulas, value.formula)(*[values[j] for j in value.reads])
    return [restore(values[value], dims, order, graph.sizes) for value, dims in graph.results]


def align(x: Tensor, dims: Dims, order: Sequence[int]) -> Tensor:
    """A view of ``x`` with a dimension for each axis of ``order``."""
    places = sorted((d for d, a in enumerate(dims) if a is not None), key=lambda d: order.index(dims[d]))
    x = x.permute([*places, *(d for d, a in enumerate(dims) if a is None)])
    sizes = iter(x.shape)
    return x.view([next(sizes) if a in dims else 1 for a in order])


def restore(x: Tensor, dims: Dims, order: Sequence[int], sizes: dict[int, int]) -> Tensor:
    """A view of ``x``, which has a dimension for each axis of ``order``, with those of a tensor."""
    own = [a for a in order if a in dims]
    x = x.expand([sizes[a] if a in dims else 1 for a in order])
    x = x.reshape([sizes[a] for a in own]).permute([own.index(a) for a in dims if a is not None])
    return x.reshape([1 if a is None else sizes[a] for a in dims])
