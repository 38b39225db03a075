"""Differentiate a graph in reverse mode, by the rules of its operators.

Sums that undo broadcasts are deferred. Take ``z = x * w`` for ``x[m, n]`` and ``w[n]``, with a cotangent ``g[m, n]``:
the rule gives w the cotangent ``g * x`` over m and n, and what is left is to sum it over m. Every rule is linear in g,
so that sum can wait: if w is ``exp(v)``, then v gets ``(g * x) * w``, still over m and n and still to be summed over m.
Only the gradient of an input is summed, ``dv = sum(g * x * w) over m``, where a kernel does it on the way out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce

from ..runtime.rules import is_identity, parameters
from .axes import NO_AXES, Axes
from .graph import Constant, Graph, Input, Op, Renamed
from .nodes import Node, inputs_of


def differentiate(graph: Graph, needed: tuple[int, ...], outputs: tuple[int, ...]) -> tuple[Graph, list[int | None]]:
    """Return the graph of the gradients of inputs, and for each which result it is, None if it is zero.

    Args:
        graph: its first values are its inputs.
        needed: the inputs, by index.
        outputs: the results of ``graph`` that cotangents arrive from.

    The gradient's graph is called with a cotangent of each of ``outputs``, then with the inputs of ``graph`` that it
    reads. It is derived once for graphs that differ in sizes only.
    """
    known = graph.derivatives.get((needed, outputs))
    if known is None:
        derivation = _Differentiation(graph, outputs, needed)
        derivation.backpropagate()
        known = graph.derivatives[needed, outputs] = derivation.graph, derivation.collect()
    back, result_index = known
    return back.resized(graph.sizes), result_index


class _Differentiation:
    """The derivation of one graph of gradients.

    That graph starts with the cotangents, of which there are ``offset``, and a copy of the differentiated graph: so
    value i of the latter is value ``offset + i`` here. All indices below are of the gradient's graph, unless said.
    """

    def __init__(self, forward: Graph, outputs: Sequence[int], needed: Sequence[int]):
        self.forward = forward
        self.outputs = outputs  # results of ``forward``, by position
        self.needed = needed  # inputs of ``forward``, by its own indices
        self.graph = Graph(forward.sizes)
        self.offset = len(outputs)
        self._copy_forward()
        self.row_axes = _row_axes(self.graph)
        self.depends_on_needed = _dependents(self.graph, {self.offset + i for i in needed})
        # The cotangents of each value; each is still to be summed over the axes that it is found by.
        self.pending_reductions: dict[int, dict[Axes, int]] = {}

    def _copy_forward(self) -> None:
        """Add the cotangents, then the values of the differentiated graph."""
        for cotangent in _cotangents(self.forward, self.outputs):
            self.graph.add(cotangent)
        for node in self.forward.values:
            self.graph.add(_shifted(node, self.offset))
        assert len(self.graph.values) == self.offset + len(self.forward.values)

    def accumulate(self, value: int, pending: Axes, g: int) -> None:
        """Add ``g``, which is still to be summed over the axes ``pending``, to the cotangents of a value.

        The sum does not wait if these are the axes of a row, which a kernel has to reduce over anyway.
        """
        if value not in self.depends_on_needed:
            return
        if pending in self.row_axes:
            pending, g = NO_AXES, self.graph.reduce("sum", g, pending)
        cotangents = self.pending_reductions.setdefault(value, {})
        cotangents[pending] = _add(self.graph, cotangents[pending], g) if pending in cotangents else g

    def backpropagate(self) -> None:
        """Go through the values from the last to the first, and give each input its share of the cotangents."""
        for g, output in enumerate(self.outputs):
            self.accumulate(self.offset + self.forward.results[output][0], NO_AXES, g)
        for value in reversed(range(self.offset, self.offset + len(self.forward.values))):
            node = self.graph.values[value]
            for pending, g in list(self.pending_reductions.get(value, {}).items()):
                if isinstance(node, Renamed):
                    g = self.graph.reduce("sum", g, pending)
                    self.accumulate(node.inputs[0], NO_AXES, self.graph.add(Renamed((g,), node.new, node.old)))
                elif isinstance(node, Op):
                    self._backpropagate_op(value, node, pending, g)

    def _backpropagate_op(self, value: int, op: Op, pending: Axes, g: int) -> None:
        if pending & op.reduced:  # the op's input has these axes again, but another way
            pending, g = NO_AXES, self.graph.reduce("sum", g, pending)
        for x, dx in _vjp(self.graph, value, op, g, self.depends_on_needed):
            broadcast = self.graph.axes[value] - self.graph.axes[x]
            self.accumulate(x, pending | broadcast, dx)

    def collect(self) -> list[int | None]:
        """Make the sum of its cotangents, reduced, a result for each input; return which one, None where none is."""
        result_index: list[int | None] = []
        for i in self.needed:
            cotangents = self.pending_reductions.get(self.offset + i, {}).items()
            terms = [self.graph.reduce("sum", g, pending) for pending, g in cotangents]
            result_index.append(len(self.graph.results) if terms else None)
            if terms:
                total = reduce(partial(_add, self.graph), terms)
                self.graph.results.append((total, self.forward.values[i].dims))
        return result_index


def _cotangents(graph: Graph, outputs: Sequence[int]) -> list[Input]:
    """Return an input for the cotangent of each output, named ``g`` unless an input of the graph is."""
    taken = {node.name for node in graph.values if isinstance(node, Input)}
    names = [f"g{i}" if len(outputs) > 1 else "g" for i in outputs]
    return [
        Input(f"{name} of the result" if name in taken else name, graph.results[i][1])
        for name, i in zip(names, outputs, strict=True)
    ]


def _row_axes(graph: Graph) -> set[Axes]:
    """Return the sets of axes over which values are reduced that others are computed from."""
    read = {i for node in graph.values for i in inputs_of(node)}
    return {node.reduced for i, node in enumerate(graph.values) if isinstance(node, Op) and node.reduced and i in read}


def _dependents(graph: Graph, values: set[int]) -> set[int]:
    """Return ``values`` and all that depend on them."""
    dependents = set(values)
    for i, node in enumerate(graph.values):
        if dependents.intersection(inputs_of(node)):
            dependents.add(i)
    return dependents


def _shifted(node: Node, offset: int) -> Node:
    return node._replace(inputs=tuple(i + offset for i in node.inputs)) if isinstance(node, Op | Renamed) else node


def _add(graph: Graph, x: int, y: int) -> int:
    return graph.add(Op("add", (x, y, graph.add(Constant(1)))))


def _vjp(graph: Graph, z: int, op: Op, g: int, depends_on_needed: set[int]) -> Iterator[tuple[int, int]]:
    """Yield inputs of ``op`` and their cotangents, by the rule of its operator; not summed over broadcast axes."""
    named = {"g": g, "z": z, **dict(zip(("x", "y", "alpha"), op.inputs, strict=False))}
    if op.reduced:
        yield op.inputs[0], _vjp_of_reduction(graph, op, named)
        return
    for x, derivative in zip(op.inputs, op.operator.derivatives, strict=False):
        if x in depends_on_needed:
            yield x, _apply(graph, derivative, named)


def _vjp_of_reduction(graph: Graph, op: Op, named: dict[str, int]) -> int:
    derivative = op.operator.derivative
    if derivative is None:
        return named["g"]
    named["count"] = graph.add(Constant(None, op.reduced))
    if "ties" in parameters(derivative):
        is_extremum = graph.add(Op("equal", (named["x"], named["z"])))
        named["ties"] = graph.reduce("sum", is_extremum, op.reduced)
    return _apply(graph, derivative, named)


def _apply(graph: Graph, derivative: Callable, named: dict[str, int]) -> int:
    """Return ``derivative`` of the values of these names; if it would return g as it is, g."""
    others = [graph.values[named[name]] for name in parameters(derivative) if name != "g"]
    numbers = [node.number for node in others if isinstance(node, Constant) and not node.counted]  # no count is 1
    if len(numbers) == len(others) and is_identity(derivative, numbers):
        return named["g"]
    return graph.add(Op(derivative.__name__, tuple(named[name] for name in parameters(derivative))))
