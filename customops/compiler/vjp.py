"""The rules of a graph's operators: which cotangents their inputs get."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ..runtime.rules import is_identity, parameters
from .axes import NO_AXES, Axes
from .graph import Constant, Graph, Op, Position

# Operators whose rules multiply by no value.
PASSING = frozenset({"add", "sub", "neg", "sum", "mean", "to_float16", "to_bfloat16", "to_float32"})
FACTORS = {"exp_dx": "z", "mul_dx": "y", "mul_dy": "x"}  # rules that multiply by one value, and which


class Pending(NamedTuple):
    """What is still to be done to a cotangent."""

    reduced: Axes = NO_AXES  # the axes to sum it over
    divisor: int | None = None  # the value to divide it by, if there is one
    detached: bool = False  # whether the divisor counts as a constant where the gradient is differentiated


class Rules:
    """The rules of operators in a graph, for the gradients of the values ``wanted``."""

    def __init__(self, graph: Graph, wanted: set[int]):
        self.graph = graph
        self.wanted = wanted  # the values that gradients pass through
        self._quotients = {  # the values that are one divided by another; by these, and which of them are detached
            (*node.inputs, node.detached): i
            for i, node in enumerate(graph.values)
            if isinstance(node, Op) and node.formula == "div"
        }

    def vjp(self, z: int, op: Op, g: int) -> Iterator[tuple[int, int]]:
        """Yield inputs of ``op``, whose value is z, and their cotangents; not summed over broadcast axes."""
        named = _named(op, g, z)
        if (
            op.formula == "mul" and op.inputs[0] == op.inputs[1] and not op.detached
        ):  # 2g·x is one product, g·x + x·g two
            double = self.graph.add(Op("add", (g, g, self.graph.add(Constant(1)))))
            yield op.inputs[0], self.graph.add(Op("mul_dx", (double, op.inputs[0])))
        elif not op.reduced:
            for x, derivative in self._needed(op):
                yield x, self._apply(derivative, named, op)
        elif not op.detached:
            yield op.inputs[0], self._vjp_of_reduction(op, named)

    def passes(self, op: Op) -> bool:
        """Return whether cotangents pass ``op`` unchanged but for signs and numbers."""
        return op.formula in PASSING

    def defers(self, op: Op) -> bool:
        """Return whether ``op`` divides by a value that is constant along an axis of the quotient.

        It is then divided by after sums along that axis: a division for each row instead of one for each element.
        """
        if op.formula != "div" or isinstance(self.graph.values[op.inputs[1]], Constant):
            return False
        x, y = (self.graph.axes[i] for i in op.inputs)
        return bool(x - y)

    def divide(self, g: int, pending: Pending) -> tuple[int, Pending]:
        """Divide a cotangent by what it is still to be divided by."""
        if pending.divisor is None:
            return g, pending
        detached = frozenset({1} if pending.detached else ())
        quotient = self.graph.add(Op("div_dx", (g, pending.divisor), detached=detached))
        return quotient, pending._replace(divisor=None, detached=False)

    def multiply_by_quotients(self, z: int, op: Op, g: int, pending: Pending) -> dict[int, int] | None:
        """Return the cotangents of inputs, divided by the pending divisor, if they take no division; else None.

        They take none where the rule of ``op`` multiplies g by a value, and the graph has that value divided by the
        same divisor: a product with the quotient does both.
        """
        grads, named = {}, _named(op, g, z)
        for x, derivative in self._needed(op) if not op.reduced else ():
            factor = FACTORS.get(derivative.__name__)
            if factor is None:
                return None
            constant = frozenset({0} if _positions((factor,), op) else ()) | ({1} if pending.detached else set())
            quotient = self._quotients.get((named[factor], pending.divisor, constant))
            if quotient is None or x in grads:  # of x·x each factor has a cotangent
                return None
            grads[x] = self.graph.add(Op("mul_dx", (g, quotient)))
        return grads or None

    def _needed(self, op: Op) -> Iterator[tuple[int, Callable]]:
        """Yield the inputs of an elementwise op that gradients pass through, and the derivative by each."""
        for k, (x, derivative) in enumerate(zip(op.inputs, op.operator.derivatives, strict=False)):
            if x in self.wanted and k not in op.detached:
                yield x, derivative

    def _vjp_of_reduction(self, op: Op, named: dict[str, int]) -> int:
        derivative = op.operator.derivative
        if derivative is None:
            return named["g"]
        named["count"] = self.graph.add(Constant(None, op.reduced))
        add_steps(self.graph, op.operator, named, op.reduced, op.order)
        return self._apply(derivative, named, op)

    def _apply(self, derivative: Callable, named: dict[str, int], op: Op) -> int:
        """Return ``derivative`` of the values of these names; if it would return g as it is, g."""
        names = parameters(derivative)
        others = [self.graph.values[named[name]] for name in names if name != "g"]
        numbers = [node.number for node in others if isinstance(node, Constant) and not node.counted]  # no count is 1
        if len(numbers) == len(others) and is_identity(derivative, numbers):
            return named["g"]
        inputs = tuple(named[name] for name in names)
        # products have one name, so that equal ones are one value
        name = "mul_dx" if derivative.__name__ in FACTORS else derivative.__name__
        return self.graph.add(Op(name, inputs, detached=_positions(names, op)))


def add_steps(graph: Graph, operator: Any, named: dict[str, int], reduced: Axes, order: tuple[int, ...] = ()) -> None:
    """Add the values that the derivative of a reduction over these axes reads, to the graph and to those named.

    ``order`` has the axes outermost first, where there are several and the derivative reads positions.
    """
    if reads_position(operator):
        named["position"] = graph.add(Position(order or tuple(reduced))) if reduced else graph.add(Constant(0))
    for name, formula, inputs, reduces in operator.steps:
        operands = [named[each] for each in inputs]
        named[name] = (
            graph.reduce(formula, operands[0], reduced) if reduces else graph.add(Op(formula, tuple(operands)))
        )


def reads_position(operator: Any) -> bool:
    """Return whether the derivative of a reduction reads where its elements lie along its axis."""
    return "position" in parameters(operator.derivative)


def _named(op: Op, g: int, z: int) -> dict[str, int]:
    return {"g": g, "z": z, **dict(zip(parameters(op.operator.formula), op.inputs, strict=False))}


def _positions(names: tuple[str, ...], op: Op) -> frozenset[int]:
    """Return the positions, among ``names``, of inputs that ``op`` has detached."""
    detached = {name for k, name in enumerate(parameters(op.operator.formula)) if k in op.detached}
    return frozenset(k for k, name in enumerate(names) if name in detached)
