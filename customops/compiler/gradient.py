"""Differentiate a graph in reverse mode, by the rules of its operators.

Sums that undo broadcasts are deferred. Take ``z = x * w`` for ``x[m, n]`` and ``w[n]``, with a cotangent ``g[m, n]``:
the rule gives w the cotangent ``g * x`` over m and n, and what is left is to sum it over m. Every rule is linear in g,
so that sum can wait: if w is ``exp(v)``, then v gets ``(g * x) * w``, still over m and n and still to be summed over m.
Only the gradient of an input is summed, ``dv = sum(g * x * w) over m``, where a kernel does it on the way out.

A division by what is constant along rows is deferred likewise. Take ``z = x / s`` for ``x[m, n]`` and ``s[m]``: the
cotangent of x is g, still to be divided by s, and that of s is ``-sum(g * z) over n``, still to be divided by s. If s
is ``sum(x) over n``, both add up to ``g - sum(g * z)``; if x is ``exp(v)``, the product with x and the division are
one product, with z. So softmax's gradient is ``z * (g - sum(g * z))``, which reads no more than g and z.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce

from .axes import Axes
from .graph import Constant, Graph, Input, Op, Renamed
from .nodes import Node, differentiable_inputs, inputs_of
from .sums import sum_over
from .vjp import Pending, Rules


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


def dependent_results(graph: Graph, needed: Sequence[int]) -> list[int]:
    """Return the results, by position, that have a derivative by one of the inputs ``needed``."""
    dependents = _dependents(graph, set(needed))
    return [k for k, (value, _) in enumerate(graph.results) if value in dependents and k not in graph.detached_results]


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
        self.rules = Rules(self.graph, self.depends_on_needed)
        # The cotangents of each value, found by what is still to be done to them.
        self.cotangents: dict[int, dict[Pending, int]] = {}

    def _copy_forward(self) -> None:
        """Add the cotangents, then the values of the differentiated graph."""
        for cotangent in _cotangents(self.forward, self.outputs):
            self.graph.add(cotangent)
        for node in self.forward.values:
            self.graph.add(_shifted(node, self.offset))
        assert len(self.graph.values) == self.offset + len(self.forward.values)

    def accumulate(self, value: int, pending: Pending, g: int) -> None:
        """Add ``g``, of which something is ``pending``, to the cotangents of a value.

        A sum does not wait if it is over the axes of a row, which a kernel has to reduce over anyway.
        """
        if value not in self.depends_on_needed:
            return
        if pending.reduced in self.row_axes:
            total, pending = self._reduce(g, pending)
            if total is None:
                return
            g = total
        cotangents = self.cotangents.setdefault(value, {})
        cotangents[pending] = _add(self.graph, cotangents[pending], g) if pending in cotangents else g

    def backpropagate(self) -> None:
        """Go through the values from the last to the first, and give each input its share of the cotangents."""
        for g, output in enumerate(self.outputs):
            value = self.offset + self.forward.results[output][0]
            self.accumulate(value, Pending(self.graph.axes[g] - self.graph.axes[value]), g)
        for value in reversed(range(self.offset, self.offset + len(self.forward.values))):
            node = self.graph.values[value]
            self._divide_where_due(value, node)
            for pending, g in list(self.cotangents.get(value, {}).items()):
                if isinstance(node, Renamed):
                    total, _ = self._reduce(g, pending)
                    if total is not None:
                        renamed = self.graph.add(Renamed((total,), node.new, node.old))
                        self.accumulate(node.inputs[0], Pending(), renamed)
                elif isinstance(node, Op):
                    self._backpropagate_op(value, node, pending, g)

    def _divide_where_due(self, value: int, node: Node) -> None:
        """Divide the cotangents of a value for which that can wait no longer: its rule is no mere product, say.

        Those of an input are divided before they are summed, so that a kernel adds up all of them on the way out.
        """
        for pending, g in list(self.cotangents.get(value, {}).items()):
            waits = isinstance(node, Op) and (
                self.rules.passes(node) or self.rules.multiply_by_quotients(value, node, g, pending)
            )
            if pending.divisor is not None and not waits:
                self._divide(value, pending)

    def _backpropagate_op(self, value: int, op: Op, pending: Pending, g: int) -> None:
        if pending.reduced & op.reduced:  # the op's input has these axes again, but another way
            total, pending = self._reduce(g, pending)
            if total is None:
                return
            g = total
        if self.rules.defers(op):
            self._backpropagate_division(value, op, pending, g)
        elif pending.divisor is not None and not self.rules.passes(op):
            grads = self.rules.multiply_by_quotients(value, op, g, pending)
            assert grads  # if not, it would have been divided
            for x, dx in grads.items():
                self._share(value, x, pending._replace(divisor=None, detached=False), dx)
        else:
            for k, (x, dx) in enumerate(self.rules.vjp(value, op, g)):
                if self.rules.passes(op) and self._broadcast(value, x, pending).reduced in self.row_axes:
                    # the sum first: so a sign is one of each row, not of each element
                    total, rest = self._reduce(g, self._broadcast(value, x, pending))
                    if total is None:
                        continue
                    _, dx = [*self.rules.vjp(value, op, total)][k]
                    self.accumulate(x, rest, dx)
                else:
                    self._share(value, x, pending, dx)

    def _backpropagate_division(self, z: int, op: Op, pending: Pending, g: int) -> None:
        """Give x and y of ``z = x / y`` their cotangents g and -g·z, both still to be divided by y."""
        x, y = op.inputs
        pending = pending._replace(divisor=y, detached=1 in op.detached)
        if 0 not in op.detached:
            self._share(z, x, pending, g)
        if 1 not in op.detached and y in self.depends_on_needed:
            product = self.graph.add(Op("mul_dx", (g, z)))
            pending = self._broadcast(z, y, pending)
            if pending.reduced in self.row_axes:
                total, pending = self._reduce(product, pending)
                if total is None:
                    return
                product = total
            self.accumulate(y, pending, self.graph.add(Op("neg_dx", (product,))))

    def _share(self, value: int, x: int, pending: Pending, dx: int) -> None:
        """Give an input of a value its cotangent, which is to be summed over the axes that x was broadcast along."""
        self.accumulate(x, self._broadcast(value, x, pending), dx)

    def _broadcast(self, value: int, x: int, pending: Pending) -> Pending:
        """Return what is pending of the cotangent of x, which was broadcast to the axes of a value."""
        return pending._replace(reduced=pending.reduced | (self.graph.axes[value] - self.graph.axes[x]))

    def _reduce(self, g: int, pending: Pending) -> tuple[int | None, Pending]:
        """Sum ``g`` over the axes it is to be summed over; before that it is divided by what varies along them.

        The sum is None where it is 0 whatever the values are: then nothing is added, to anything.
        """
        total: int | None = g
        if pending.divisor is not None and pending.reduced & self.graph.axes[pending.divisor]:
            g, pending = self.rules.divide(g, pending)
            total = g
        if pending.reduced:
            total = sum_over(self.graph, g, pending.reduced)
        return total, pending._replace(reduced=Pending().reduced)

    def _divide(self, value: int, pending: Pending) -> None:
        """Divide one of the cotangents of a value by what it is to be divided by."""
        g, divided = self.rules.divide(self.cotangents[value].pop(pending), pending)
        self.accumulate(value, divided, g)

    def collect(self) -> list[int | None]:
        """Make the sum of its cotangents a result for each input; return which one, None where there is none."""
        result_index: list[int | None] = []
        for i in self.needed:
            cotangents = self.cotangents.get(self.offset + i, {}).items()
            sums = [self._reduce(g, pending)[0] for pending, g in cotangents]
            terms = [total for total in sums if total is not None]
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
    """Return ``values`` and all that have a derivative by them."""
    dependents = set(values)
    for i, node in enumerate(graph.values):
        if dependents.intersection(differentiable_inputs(node)):
            dependents.add(i)
    return dependents


def _shifted(node: Node, offset: int) -> Node:
    return node._replace(inputs=tuple(i + offset for i in node.inputs)) if isinstance(node, Op | Renamed) else node


def _add(graph: Graph, x: int, y: int) -> int:
    return graph.add(Op("add", (x, y, graph.add(Constant(1)))))
