"""Sum a value over a row, term by term where that lets the sum wait for fewer others.

LayerNorm's gradient has the sum of ``r·h + s·c`` over a row. Here r is the row's scale, and s comes of another sum over
it. That is ``r·sum(h) + s·sum(c)``: so all sums come of one walk along the row, instead of one after the other.
"""

from __future__ import annotations

from .axes import Axes
from .graph import Constant, Graph, Op

PRODUCTS = frozenset({"mul", "mul_dx", "mul_dy", "exp_dx"})  # formulas that multiply their two inputs
SCALED = frozenset({"neg", "neg_dx", "add_dy", "sub_dy", "mean_dx"})  # formulas that multiply the first by numbers


def sum_over(graph: Graph, value: int, axes: Axes) -> int | None:
    """Return the index of the sum of ``value`` over ``axes``, None if that is 0 whatever the values are."""
    whole = graph.reduce("sum", value, axes)
    by_terms = _sum_of_terms(graph, value, axes)
    if by_terms is None:
        return None
    if _depth(graph, by_terms, axes) >= _depth(graph, whole, axes):
        return whole
    return by_terms


def _sum_of_terms(graph: Graph, value: int, axes: Axes) -> int | None:
    """Return the sum of ``value``, taken of each of its terms, without the factors that are constant along ``axes``.

    Returns None for 0, which the sum of ``x - mean(x)`` is.
    """
    op = graph.values[value]
    if not isinstance(op, Op) or op.reduced or not axes <= graph.axes[value]:
        return graph.reduce("sum", value, axes)
    if _is_centred(graph, op, axes):
        return None
    varying = [k for k, i in enumerate(op.inputs) if graph.axes[i] & axes]
    numbers = all(isinstance(graph.values[i], Constant) for i in op.inputs[1:])
    is_sum = op.formula == "add" and len(varying) == 2
    is_linear = len(varying) == 1 and (op.formula in PRODUCTS or (op.formula in SCALED and numbers))
    if not (is_sum or is_linear) or not all(axes <= graph.axes[op.inputs[k]] for k in varying):
        return graph.reduce("sum", value, axes)
    sums = {k: _sum_of_terms(graph, op.inputs[k], axes) for k in varying}
    terms = {k: i for k, i in sums.items() if i is not None}
    if is_sum and len(terms) == 1:
        ((k, term),) = terms.items()
        is_as_it_is = k == 0 or graph.values[op.inputs[2]] == Constant(1)  # the second term is times alpha
        return term if is_as_it_is else graph.add(Op("mul_dx", (term, op.inputs[2])))
    return graph.add(op._replace(inputs=tuple(terms.get(k, i) for k, i in enumerate(op.inputs)))) if terms else None


def _is_centred(graph: Graph, op: Op, axes: Axes) -> bool:
    """Return whether ``op`` is ``x - mean(x)`` over these axes, and neither of them is a constant for derivatives."""
    if op.formula != "sub" or op.detached or graph.values[op.inputs[2]] != Constant(1):
        return False
    mean = graph.values[op.inputs[1]]
    if not isinstance(mean, Op) or mean.detached:
        return False
    return (mean.formula, mean.inputs, mean.reduced) == ("mean", op.inputs[:1], axes)


def _depth(graph: Graph, value: int, axes: Axes) -> int:
    """Return how many sums over ``axes`` wait for one another, to the last that ``value`` is computed from."""
    depths: dict[int, int] = {}
    for i in graph.ancestors([value]):
        op = graph.values[i]
        below = max((depths[j] for j in getattr(op, "inputs", ())), default=0)
        depths[i] = below + (isinstance(op, Op) and bool(op.reduced & axes))
    return depths[value]
