"""Build the graph of a trace for tensors of given shapes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..compiler.axes import NO_AXES, AxisUnion, Dims
from ..compiler.graph import Constant, Graph, Input, Op, Position, Renamed
from ..runtime.reduction import reduced_axes
from .operators import Cast, Detach, Fill, PositionsAlong, Ref, TraceOperator, Unsqueeze, is_elementwise, rounding
from .trace import Node, Trace


def build(trace: Trace, names: Sequence[str], shapes: Sequence[Sequence[int]]) -> Graph:
    """Return the graph of ``trace`` for tensors of these names and shapes.

    It is built once for all shapes that have size 1 in the same places. Raises ValueError if the shapes do not
    broadcast.
    """
    key = tuple(names), tuple([tuple([n == 1 for n in shape]) for shape in shapes])
    known = trace.graphs.get(key)
    if known is None:
        known = trace.graphs[key] = _build(trace, names, shapes)
    return known.resized(known.sizes_for(shapes))


def _build(trace: Trace, names: Sequence[str], shapes: Sequence[Sequence[int]]) -> Graph:
    axes = _Axes(trace, shapes)
    graph = Graph(axes.sizes())
    index = [graph.add(Input(name, dims)) for name, dims in zip(names, axes.dims, strict=False)]  # of each value
    detached: set[int] = set()  # values of the trace
    for i, (operator, inputs) in enumerate(trace.nodes, len(shapes)):
        positions = frozenset(k for k, x in enumerate(inputs) if isinstance(x, Ref) and x.value in detached)
        if operator is PositionsAlong:
            axis = axes.dims[i][inputs[1]]
            index.append(graph.add(Constant(0) if axis is None else Position(axis)))
        elif issubclass(operator, TraceOperator):
            index.append(_own(graph, trace, index[inputs[0].value], i, positions))
            if operator in (Detach, Fill) or positions:
                detached.add(i)
        elif i in axes.reduced:
            reduced = frozenset(a for a in axes.reduced[i] if a is not None)
            if not reduced and positions:
                detached.add(i)
            x = index[inputs[0].value]
            index.append(graph.reduce(operator.formula.__name__, x, reduced, operator, bool(positions)))
        else:
            operands = _operands(graph, axes, index, i, inputs)
            index.append(graph.add(Op(operator.formula.__name__, operands, NO_AXES, operator, positions)))
    graph.results = [(index[ref.value], axes.dims[ref.value]) for ref in trace.outputs]
    graph.detached_results = frozenset(k for k, ref in enumerate(trace.outputs) if ref.value in detached)
    return graph


def _own(graph: Graph, trace: Trace, x: int, i: int, positions: frozenset[int]) -> int:
    """Return what value ``i`` of the trace, of an operator that only traces have, is in the graph: ``x``, or of it."""
    operator, inputs = trace.nodes[i - trace.arity]
    if operator is Fill:
        return graph.add(Op("full_like", (x, graph.add(Constant(inputs[1]))), detached=frozenset({0})))
    rounds = rounding(trace.dtypes[inputs[0].value], trace.dtypes[i]) if issubclass(operator, Cast) else None
    return graph.add(Op(rounds.formula.__name__, (x,), NO_AXES, rounds, positions)) if rounds else x


def _operands(graph: Graph, axes: _Axes, index: Sequence[int], i: int, inputs: Sequence) -> tuple[int, ...]:
    """Return the values of the graph that elementwise operator ``i`` of the trace is applied to."""
    operands = []
    for k, x in enumerate(inputs):
        number = x.item() if isinstance(x, Tensor) else x
        operand = index[x.value] if isinstance(x, Ref) else graph.add(Constant(number))
        if (i, k) in axes.renamed:
            operand = graph.add(Renamed((operand,), axes.dims[x.value], axes.renamed[i, k]))
        operands.append(operand)
    return tuple(operands)


class _Axes:
    """The axes of each value of a trace. Raises ValueError if the shapes do not broadcast."""

    def __init__(self, trace: Trace, shapes: Sequence[Sequence[int]]):
        self._union = AxisUnion()
        self.dims: list[Dims] = [self._union.new(shape) for shape in shapes]  # of each value
        self.reduced: dict[int, Dims] = {}  # by value, the axes that a reduction reduces
        self.renamed: dict[tuple[int, int], Dims] = {}  # by value and position, the new axes of an input
        for i, node in enumerate(trace.nodes, len(shapes)):
            self.dims.append(self._dims_of(i, node))
        self.dims = [self._union.roots(each) for each in self.dims]
        self.reduced = {i: self._union.roots(each) for i, each in self.reduced.items()}
        self.renamed = {key: self._union.roots(each) for key, each in self.renamed.items()}

    def _dims_of(self, i: int, node: Node) -> Dims:
        """Return the axes of what a node computes."""
        if node.operator in (PositionsAlong, Unsqueeze):
            x, dim = node.inputs
            own = self.dims[x.value]
            if node.operator is PositionsAlong:
                return tuple(a if d == dim else None for d, a in enumerate(own))
            at = dim % (len(own) + 1)
            return *own[:at], None, *own[at:]
        return self._broadcast(i, node) if is_elementwise(node.operator) else self._reduce(i, node)

    def sizes(self) -> dict[int, int]:
        """Return the number of elements along each axis."""
        return {self._union.root(a): n for a, n in enumerate(self._union.sizes)}

    def _broadcast(self, i: int, node: Node) -> Dims:
        """Return the axes of an elementwise operator's value.

        If two axes of one tensor would become one, as a value meets itself along another axis, all but the input of
        most dimensions are renamed.
        """
        tensors = {k: self.dims[x.value] for k, x in enumerate(node.inputs) if isinstance(x, Ref)}
        dims = self._union.broadcast(list(tensors.values()), self.dims)
        if dims is None:
            largest = max(tensors, key=lambda k: len(tensors[k]))
            renamed = {k: self._union.renew(tensors[k]) for k in tensors if k != largest}
            self.renamed |= {(i, k): new for k, new in renamed.items()}
            dims = self._union.broadcast([tensors[largest], *renamed.values()], [])
        assert dims is not None  # new axes are no tensor's other ones
        return dims

    def _reduce(self, i: int, node: Node) -> Dims:
        """Return the axes of a reduction's value."""
        x, _, *dim = node.inputs
        dims = self.dims[x.value]
        positions = reduced_axes(len(dims), *dim)
        self.reduced[i] = tuple(a for d, a in enumerate(dims) if d in positions)
        keepdim = len(dim) > 1 and dim[1]
        return tuple(None if d in positions else a for d, a in enumerate(dims) if keepdim or d not in positions)
