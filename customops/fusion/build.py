"""Build the graph of a trace for tensors of given shapes."""

from __future__ import annotations

from collections.abc import Sequence

from ..compiler.axes import AxisUnion, Dims
from ..compiler.graph import Constant, Graph, Input, Op, Renamed
from ..ops.function import Operator
from ..runtime.reduction import reduced_axes
from .proxy import Ref
from .trace import Trace


def build(trace: Trace, names: Sequence[str], shapes: Sequence[Sequence[int]]) -> Graph:
    """The graph of ``trace`` for tensors of these shapes; built once for all that have size 1 in the same places.

    Raises ValueError where the shapes do not broadcast.
    """
    key = tuple(names), tuple([tuple([n == 1 for n in shape]) for shape in shapes])
    known = trace.graphs.get(key)
    if known is None:
        known = trace.graphs[key] = _build(trace, names, shapes)
    return known.resized(known.sizes_for(shapes))


def _build(trace: Trace, names: Sequence[str], shapes: Sequence[Sequence[int]]) -> Graph:
    """The graph of ``trace``, with the sizes of these shapes.

    Where a value would meet itself along another axis, it is seen :class:`Again` along new ones. Raises ValueError
    where the shapes do not broadcast.
    """
    same = AxisUnion()
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
    where = [graph.add(Input(name, each)) for name, each in zip(names, dims, strict=False)]
    for i, (operator, inputs) in enumerate(trace.nodes, len(shapes)):
        reads = [where[x.value] if isinstance(x, Ref) else x for x in inputs]
        if i in over:
            axes = frozenset(a for a in same.roots(over[i]) if a is not None)
            where.append(graph.fold(operator.formula.__name__, reads[0], axes, operator))
            continue
        for k, x in enumerate(inputs):
            if not isinstance(x, Ref):
                reads[k] = graph.add(Constant(x))
            elif (i, k) in again:
                reads[k] = graph.add(Renamed((reads[k],), dims[x.value], same.roots(again[i, k])))
        where.append(graph.add(Op(operator.formula.__name__, tuple(reads), operator=operator)))
    graph.results = [(where[ref.value], dims[ref.value]) for ref in trace.outputs]
    return graph
