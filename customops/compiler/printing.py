"""Print graphs: ``t3 = mean(t2) over dim 1 of x``, a line for each value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from .nodes import Constant, Input, Op, Position, Renamed

if TYPE_CHECKING:
    from .graph import Graph

Notation = Callable[[str, Sequence[str]], str]  # of a formula, by the names of it and of the values that it reads


def named(formula: str, labels: Sequence[str]) -> str:
    """Return a formula as a call: ``mul(x, y)``."""
    if formula in ("add", "sub") and [*labels[2:]] == ["1"]:  # alpha
        labels = labels[:2]
    return f"{formula}({', '.join(labels)})"


def text_of(graph: Graph, notation: Notation = named) -> str:
    """Return the program that a graph is: a line for each value, and what is returned."""
    lines = lines_of(graph, notation=notation)
    return "\n".join([*lines, f"return {', '.join(label(graph, value) for value, _ in graph.results)}"])


def lines_of(
    graph: Graph, tensors: Graph | None = None, known: Iterable[int] = (), notation: Notation = named
) -> list[str]:
    """Return a line for each value that is computed, if the values ``known`` need not be.

    ``tensors`` is the graph whose inputs give axes their names, if that is to be another one; ``notation`` has the
    formulas of elements, while reductions go by their names.
    """
    stop = set(known)
    computed = [i for i in graph.ancestors([value for value, _ in graph.results], stop) if i not in stop]
    nodes = [(i, graph.values[i]) for i in computed]
    return [
        f"{label(graph, i)} = {_right_side(graph, node, tensors or graph, notation)}"
        for i, node in nodes
        if isinstance(node, Op | Renamed)
    ]


def label(graph: Graph, i: int) -> str:
    """Return what value ``i`` is called."""
    node = graph.values[i]
    if isinstance(node, Constant):
        return str(graph.number(i))
    return node.name if isinstance(node, Input | Position) else f"t{i}"


def _right_side(graph: Graph, node: Op | Renamed, tensors: Graph, notation: Notation) -> str:
    if isinstance(node, Renamed):
        return f"{label(graph, node.inputs[0])} along {describe_axes(tensors, node.new)}"
    labels = [
        f"detach({label(graph, j)})" if k in node.detached else label(graph, j) for k, j in enumerate(node.inputs)
    ]
    if node.reduced:
        return f"{named(node.formula, labels)} over {describe_axes(tensors, node.reduced)}"
    return notation(node.formula, labels)


def describe_axes(graph: Graph, axes: Iterable[int | None]) -> str:
    """Describe axes as "dim 1 of x": by the input that has most of them, or by size if it has them not."""
    described = {a for a in axes if a is not None}
    inputs = [node for node in graph.values if isinstance(node, Input)]
    best = max(inputs, key=lambda node: (len(described & set(node.dims)), len(node.dims)))
    dims = [str(d) for d, a in enumerate(best.dims) if a in described]
    others = [f"an axis of {graph.sizes[a]}" for a in sorted(described - set(best.dims))]
    return " and ".join([*([f"dim {', '.join(dims)} of {best.name}"] if dims else []), *others])
