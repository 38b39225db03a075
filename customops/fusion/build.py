"""Build the graph of a trace for tensors of given shapes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce
from itertools import accumulate
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..compiler.axes import NO_AXES
from ..compiler.axis_union import NotNested, Shape
from ..compiler.graph import Constant, Graph, Input, Op, Position, Renamed
from ..compiler.views import Part, Piece, Presentation, parts
from ..compiler.vjp import reads_position
from ..ops.binary import Add, Div, Maximum, Minimum, Mul
from ..ops.comparison import Predicate
from ..ops.parts import FirstGreatest, FirstLeast, Greatest, Least
from ..ops.products import Prod
from ..ops.reductions import Amax, Amin, Mean, Sum
from .errors import FusionError, untraceable
from .miniature import SmallTrace, small_trace
from .operators import Cast, Detach, Fill, PositionsAlong, Ref, is_elementwise, rounding
from .proxy import ELSEWHERE
from .shapes import Cat, Contiguous, Expand, Narrow, Permute, Regroup, is_shape_operator
from .trace import Node, Trace
from .value_axes import ValueAxes

_REPEATED = Sum, Mean, Amax, Amin  # the reductions of equal elements that are known: the element, or for Sum a product
_JOINS: dict[Any, Any] = {  # what joins those of two parts
    **{Sum: Add, Prod: Mul, Amax: Maximum, Amin: Minimum, Greatest: Maximum, Least: Minimum},
    **{FirstGreatest: Maximum, FirstLeast: Minimum},
}
First = tuple[int, ...]  # the position of the first element of a part of a value, along each of its dimensions


class Built(NamedTuple):
    """What is built of a trace for tensors of some shapes."""

    graph: Graph
    presentation: Presentation  # how the graph sees the tensors
    shapes: tuple[tuple[int, ...], ...]  # of the results, if it has views; none otherwise, as they depend on the sizes
    small: SmallTrace | None  # the trace as it is for small tensors, if it has views


def build(trace: Trace, names: Sequence[str], shapes: Sequence[Sequence[int]]) -> Built:
    """Return the graph of ``trace`` for tensors of these names and shapes.

    Without views it is built once for all shapes that have size 1 in the same places. Raises ValueError if the shapes
    do not broadcast, FusionError where views divide a dimension in ways that do not nest.
    """
    if trace.has_views:
        try:
            return _Builder(trace, names, shapes).built()
        except NotNested as error:
            raise FusionError(f"fuse: {error}; {ELSEWHERE}") from None
    key = tuple(names), tuple([tuple([n == 1 for n in shape]) for shape in shapes])
    known = trace.graphs.get(key)
    if known is None:
        known = trace.graphs[key] = _Builder(trace, names, shapes).built()
    return known._replace(graph=known.graph.resized(known.graph.sizes_for(shapes)))


class _Value(NamedTuple):
    """A part of a value of the trace, in the graph."""

    at: int  # which value of the graph
    is_detached: bool  # whether its derivative is zero


class _Builder:
    """Makes the graph of a trace: for each part of a value of the trace, a value of the graph."""

    def __init__(self, trace: Trace, names: Sequence[str], shapes: Sequence[Sequence[int]]):
        self.trace, self.names = trace, names
        self.axes = ValueAxes(trace, shapes)
        union = self.axes.union
        self.sizes = [tuple(map(union.size, shape)) for shape in self.axes.shapes]  # of each value
        self.parts = [self._parts(shape) for shape in self.axes.shapes]
        self.renamed = {key: self._parts(shape) for key, shape in self.axes.renamed.items()}
        found = [part.dims for each in (*self.parts, *self.renamed.values()) for part in each.values()]
        self.graph = Graph({a: union.sizes[a] for a in sorted({a for dims in found for a in dims if a is not None})})
        self.values: list[dict[First, _Value]] = []
        read = [x for node in trace.nodes if node.operator is not Detach for x in node.inputs if isinstance(x, Ref)]
        self.differentiated = {ref.value for ref in (*read, *trace.outputs)}  # the values that are not just detached

    def _parts(self, shape: Shape) -> dict[First, Part]:
        return {part.first: part for part in parts(self.axes.union, shape)}

    def built(self) -> Built:
        """Return the graph, and how it sees tensors."""
        arity = self.trace.arity
        inputs = [self._input(name, parts) for name, parts in zip(self.names, self.parts[:arity], strict=True)]
        for i, node in enumerate(self.trace.nodes, arity):
            try:
                is_read = not self.trace.is_unread[i - arity]
                self.values.append({first: self._value(i, node, first) for first in self.parts[i] if is_read})
            except NotNested as error:
                raise untraceable(str(error), ELSEWHERE, self.trace.places[i - arity]) from None
        results = tuple(self._result(ref.value) for ref in self.trace.outputs)
        presentation = Presentation(tuple(self.names), tuple(inputs), results)
        if not self.trace.has_views:
            return Built(self.graph, presentation, (), None)
        shapes = tuple(self.sizes[ref.value] for ref in self.trace.outputs)
        return Built(self.graph, presentation, shapes, small_trace(self.trace, self.axes))

    def _input(self, name: str, parts: dict[First, Part]) -> tuple[Piece, ...]:
        """Add an input of the graph for each part of a tensor."""
        indices = [self.graph.add(Input(part.view.text(name), part.dims)) for part in parts.values()]
        self.values.append({first: _Value(index, False) for first, index in zip(parts, indices, strict=True)})
        return tuple(Piece(index, part.view) for index, part in zip(indices, parts.values(), strict=True))

    def _result(self, value: int) -> tuple[Piece, ...]:
        """Make each part of a value a result of the graph."""
        pieces = []
        for first, part in self.parts[value].items():
            index, is_detached = self.values[value][first]
            pieces.append(Piece(len(self.graph.results), part.view))
            if is_detached:
                self.graph.detached_results |= {len(self.graph.results)}
            self.graph.results.append((index, part.dims))
        return tuple(pieces)

    def _value(self, i: int, node: Node, first: First) -> _Value:
        """Add the part of value ``i`` that starts at ``first``."""
        if node.operator is Detach:
            return self.values[node.inputs[0].value][first]._replace(is_detached=True)
        if is_shape_operator(node.operator):
            return self._operand(i, node, *self._moved_from(i, node, first))
        if node.operator is PositionsAlong:
            return self._positions(self.parts[i][first], node.inputs[1])
        if issubclass(node.operator, Cast | Fill):
            return self._rounded_or_filled(i, node, self._operand(i, node, 0, first))
        if is_elementwise(node.operator):
            return self._elementwise(i, node, first)
        return self._reduced(i, node, first)

    def _positions(self, part: Part, dim: int) -> _Value:
        """Add the numbers of the elements of a part along dimension ``dim``, all others of which have size 1."""
        axes = tuple(a for a in part.dims if a is not None)
        start = self.graph.add(Constant(part.first[dim]))
        if not axes:
            return _Value(start, False)
        along = self.graph.add(Position(axes))
        return _Value(self._op(Add, (along, start, self.graph.add(Constant(1)))) if part.first[dim] else along, False)

    def _rounded_or_filled(self, i: int, node: Node, x: _Value) -> _Value:
        """Return the part ``x`` rounded to another dtype, or a number in place of its elements."""
        detached = {0} if x.is_detached else set()
        if node.operator is Fill:
            number = self.graph.add(Constant(node.inputs[1]))
            return _Value(self.graph.add(Op("full_like", (x.at, number), detached=frozenset({0}))), True)
        rounds = rounding(self.trace.dtypes[node.inputs[0].value], self.trace.dtypes[i])
        return x._replace(at=self._op(rounds, [x.at], detached)) if rounds else x

    def _operand(self, i: int, node: Node, k: int, first: First) -> _Value:
        """Return the part of input ``k`` of a node that starts at ``first``, with the axes that the node sees."""
        x = node.inputs[k].value
        value = self.values[x][first]
        renamed = self.renamed.get((i, k))
        if renamed is None:
            return value
        alias = Renamed((value.at,), self.parts[x][first].dims, renamed[first].dims)
        return value._replace(at=self.graph.add(alias))

    def _moved_from(self, i: int, node: Node, first: First) -> tuple[int, First]:
        """Return from which input, and where in it, a part of the value of a shape operator comes."""
        operator, inputs = node
        if operator is Cat:
            d, *tensors = inputs
            ends = list(accumulate(self.sizes[x.value][d] for x in tensors))
            k = next(k for k, end in enumerate(ends) if first[d] < end)
            start = ends[k] - self.sizes[tensors[k].value][d]
            return k + 1, (*first[:d], first[d] - start, *first[d + 1 :])
        own = self.sizes[inputs[0].value]
        if operator is Contiguous:
            return 0, first
        if operator is Regroup:
            return 0, _unraveled(_raveled(first, self.sizes[i]), own)
        if operator is Permute:
            return 0, tuple(first[inputs[1].index(d)] for d in range(len(own)))
        if operator is Narrow:
            _, d, start, _ = inputs
            return 0, (*first[:d], first[d] + start, *first[d + 1 :])
        assert operator is Expand
        return 0, _without_repetition(first, own)

    def _elementwise(self, i: int, node: Node, first: First) -> _Value:
        operands, detached = [], set()
        dtypes = [self.trace.dtypes[x.value] for x in node.inputs if isinstance(x, Ref)]
        for k, x in enumerate(node.inputs):
            if not isinstance(x, Ref):
                number = x.item() if isinstance(x, Tensor) else x
                common = reduce(torch.promote_types, dtypes)
                if issubclass(node.operator, Predicate) and common.is_floating_point:  # as torch compares
                    number = torch.tensor(number, dtype=common, device="cpu").item()
                operands.append(self.graph.add(Constant(number)))
                continue
            value = self._operand(i, node, k, _without_repetition(first, self.sizes[x.value]))
            operands.append(value.at)
            if value.is_detached:
                detached.add(k)
        return _Value(self._op(node.operator, operands, detached), False)

    def _op(self, operator: Any, operands: Sequence[int], detached: Sequence[int] | set[int] = ()) -> int:
        name = operator.formula.__name__
        return self.graph.add(Op(name, tuple(operands), NO_AXES, operator, frozenset(detached)))

    def _reduced(self, i: int, node: Node, first: First) -> _Value:
        """Reduce each of the parts of the input that the value is reduced of, and add these up."""
        x, positions = node.inputs[0].value, self.axes.reduced[i]
        keeps = len(first) == len(self.sizes[x])
        kept = [n for d, n in enumerate(first) if not keeps or d not in positions]
        apart = [p for p in self.parts[x].values() if [n for d, n in enumerate(p.first) if d not in positions] == kept]
        if len(apart) == 1:
            return self._reduce(i, node.operator, apart[0])
        operator = Sum if node.operator is Mean else node.operator
        joins = _JOINS[operator]
        if joins in (Maximum, Minimum) and i in self.differentiated:
            raise NotNested(
                f"{operator.formula.__name__} reduces a dimension that is sliced or concatenated; reduce each part and "
                f"join them by {joins.formula.__name__}, or detach it"
            )
        total = reduce(partial(self._joined, joins), [self._reduce(i, operator, part) for part in apart])
        if node.operator is Mean:
            count = self.graph.add(Constant(prod(self.sizes[x][d] for d in positions)))
            total = _Value(self._op(Div, (total.at, count), {0} if total.is_detached else ()), False)
        return total

    def _joined(self, operator: Any, x: _Value, y: _Value) -> _Value:
        """Return ``operator`` of what two parts were reduced to."""
        numbers = (self.graph.add(Constant(1)),) if operator is Add else ()  # alpha
        detached = {k for k, each in enumerate((x, y)) if each.is_detached}
        return _Value(self._op(operator, (x.at, y.at, *numbers), detached), False)

    def _reduce(self, i: int, operator: Any, part: Part) -> _Value:
        """Reduce one part of the input of value ``i``; along axes that it is repeated along, that is a product."""
        x = self.trace.nodes[i - self.trace.arity].inputs[0].value
        index, is_detached = self.values[x][part.first]
        dims = zip(part.dims, part.origin, strict=True)
        reduced = tuple(a for a, d in dims if a is not None and d in self.axes.reduced[i])
        axes = frozenset(reduced)
        varying = axes & self.graph.axes[index]
        order = tuple(a for a in reduced if a in varying) if operator.derivative and reads_position(operator) else ()
        if varying != axes and operator not in _REPEATED:
            raise NotNested(f"{operator.__name__.lower()} reduces a dimension along which a value is repeated")
        value = self.graph.reduce(operator.formula.__name__, index, varying, operator, is_detached, order)
        is_detached = is_detached and not varying
        if varying != axes and operator is Sum:
            count = self.graph.add(Constant(self.graph.count(axes - varying)))
            return _Value(self._op(Mul, (value, count), {0} if is_detached else ()), False)
        return _Value(value, is_detached)


def _without_repetition(first: First, own: Sequence[int]) -> First:
    """Return where a part of a value starts in what was broadcast to it, of these sizes."""
    aligned = first[len(first) - len(own) :]
    return tuple(at if n != 1 else 0 for at, n in zip(aligned, own, strict=True))


def _raveled(first: First, sizes: Sequence[int]) -> int:
    """Return the position of an element among all, in order."""
    at = 0
    for position, n in zip(first, sizes, strict=True):
        at = at * n + position
    return at


def _unraveled(at: int, sizes: Sequence[int]) -> First:
    """Return the position of element ``at`` along each dimension."""
    found = []
    for n in reversed(sizes):
        at, position = divmod(at, n)
        found.append(position)
    return tuple(reversed(found))
