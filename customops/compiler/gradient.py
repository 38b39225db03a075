"""Differentiate a graph by the rules of its operators."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial, reduce

from ..runtime.rules import is_identity, parameters
from .axes import NO_AXES, Axes
from .graph import Constant, Graph, Input, Op, Renamed


def differentiate(graph: Graph, wanted: tuple[int, ...], outputs: tuple[int, ...]) -> tuple[Graph, list[int | None]]:
    """The graph of the gradients of the tensors ``wanted``, and for each which of its results it is, None for zero.

    Derived once for graphs that differ in sizes only.
    """
    made = graph.derivatives.get((wanted, outputs))
    if made is None:
        made = graph.derivatives[wanted, outputs] = _differentiate(graph, wanted, outputs)
    back, which = made
    return back.resized(graph.sizes), which


def _differentiate(graph: Graph, wanted: Sequence[int], outputs: Sequence[int]) -> tuple[Graph, list[int | None]]:
    """The graph of the gradients of the tensors ``wanted``, and for each which of its results it is, None for zero.

    It is given a cotangent ``g`` of each of ``outputs``, results of ``graph``, and then what it reads of the tensors
    that ``graph`` was given. Every rule is linear in g: so a sum over the axes that an input was broadcast along can
    wait until the end, where it is done on the way out of a kernel; unless it is over the axes of a row that is folded
    anyway.
    """
    back = Graph(graph.sizes)
    cotangents = [back.add(given) for given in _cotangents(graph, outputs)]
    first = len(cotangents)
    for value in graph.values:
        back.add(_shift(value, first))
    assert len(back.values) == first + len(graph.values)
    read = {i for value in back.values for i in getattr(value, "reads", ())}
    rows = {v.over for i, v in enumerate(back.values) if isinstance(v, Op) and v.over and i in read}
    touched = _dependents(back, {first + i for i in wanted})
    waiting: dict[int, dict[Axes, int]] = {}  # cotangents of each value, by axes that they have yet to be summed over

    def give(i: int, over: Axes, g: int) -> None:
        if i in touched:
            if over in rows:
                over, g = NO_AXES, back.fold("sum", g, over)
            before = waiting.setdefault(i, {}).get(over)
            waiting[i][over] = g if before is None else _add(back, before, g)

    for i, g in zip(outputs, cotangents, strict=True):
        give(first + graph.results[i][0], NO_AXES, g)
    for i in reversed(range(first, first + len(graph.values))):
        step = back.values[i]
        for over, g in list(waiting.get(i, {}).items()):
            if isinstance(step, Renamed):
                g = back.fold("sum", g, over)
                give(step.reads[0], NO_AXES, back.add(Renamed((g,), step.new, step.old)))
                continue
            if not isinstance(step, Op):
                break
            if over & step.over:
                over, g = NO_AXES, back.fold("sum", g, over)
            for read_at, dx in _rules(back, i, step, g, touched):
                give(read_at, over | (back.axes[i] - back.axes[read_at]), dx)
    which: list[int | None] = []
    for i in wanted:
        parts = [back.fold("sum", g, over) for over, g in waiting.get(first + i, {}).items()]
        which.append(len(back.results) if parts else None)
        if parts:
            back.results.append((reduce(partial(_add, back), parts), graph.values[i].dims))
    return back, which


def _cotangents(graph: Graph, outputs: Sequence[int]) -> list[Input]:
    """One for each of ``outputs``, called ``g`` but where an argument is."""
    taken = {value.name for value in graph.values if isinstance(value, Input)}
    names = [f"g{i}" if len(outputs) > 1 else "g" for i in outputs]
    return [
        Input(f"{name} of the result" if name in taken else name, graph.results[i][1])
        for name, i in zip(names, outputs, strict=True)
    ]


def _dependents(graph: Graph, targets: set[int]) -> set[int]:
    """The values that depend on ``targets``, these included."""
    found = set(targets)
    for i, value in enumerate(graph.values):
        if found.intersection(getattr(value, "reads", ())):
            found.add(i)
    return found


def _add(graph: Graph, x: int, y: int) -> int:
    return graph.add(Op("add", (x, y, graph.add(Constant(1)))))


def _shift(value: Input | Constant | Op | Renamed, by: int) -> Input | Constant | Op | Renamed:
    return value._replace(reads=tuple(i + by for i in value.reads)) if isinstance(value, Op | Renamed) else value


def _rules(graph: Graph, z: int, step: Op, g: int, touched: set[int]) -> Iterable[tuple[int, int]]:
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
    named["count"] = graph.add(Constant(None, step.over))
    if "ties" in parameters(derivative):
        named["ties"] = graph.fold("sum", graph.add(Op("equal", (named["x"], z))), step.over)
    yield step.reads[0], _apply(graph, derivative, named)


def _apply(graph: Graph, derivative: Callable, named: dict[str, int]) -> int:
    others = [graph.values[named[name]] for name in parameters(derivative) if name != "g"]
    numbers = [value.number for value in others if isinstance(value, Constant) and not value.over]  # no count is 1
    if len(numbers) == len(others) and is_identity(derivative, numbers):
        return named["g"]
    return graph.add(Op(derivative.__name__, tuple(named[name] for name in parameters(derivative))))
