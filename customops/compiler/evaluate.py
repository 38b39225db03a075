"""Evaluate a graph by torch's formulas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import formulas
from ..blocks.lowering import operands
from ..runtime.memory import positions
from .axes import NOTHING, Dims, align, rename, restore
from .graph import Constant, Graph, Input, Op, Position, Renamed


def evaluate(
    graph: Graph, tensors: dict[int, Tensor], dtype: torch.dtype, known: Mapping[int, Dims] = NOTHING
) -> list[Tensor]:
    """Return the results for these inputs, computed by torch's formulas in ``dtype``.

    They are differentiable, and tensors may be of any class that torch computes with. Of the values ``known``, of which
    it gives the axis of each dimension, there are tensors, too.
    """
    order = sorted(graph.sizes)
    values: dict[int, Any] = {}
    for i in graph.ancestors([value for value, _ in graph.results], known):
        node = graph.values[i]
        if i in known:
            values[i] = align(tensors[i].to(dtype), known[i], order)
        elif isinstance(node, Input):
            values[i] = align(tensors[i].to(dtype), node.dims, order)
        elif isinstance(node, Constant):
            values[i] = graph.number(i)
        elif isinstance(node, Position):
            device = next(iter(tensors.values())).device
            values[i] = align(positions(tuple([graph.sizes[a] for a in node.axes]), dtype, device), node.axes, order)
        elif isinstance(node, Renamed):
            (x,) = node.inputs
            values[i] = rename(values[x], node.old, node.new, graph.axes[x], order, graph.sizes)
        else:
            inputs = [values[j] for j in node.inputs]
            for k in node.detached:
                inputs[k] = inputs[k].detach()
            values[i] = _apply(graph, node, operands(node.formula, inputs, dtype), order)
    return [restore(values[value], dims, order, graph.sizes) for value, dims in graph.results]


def _apply(graph: Graph, op: Op, inputs: Sequence, order: Sequence[int]) -> Tensor:
    formula = getattr(formulas, op.formula)
    if not op.reduced:
        return formula(*inputs)
    if op.order:  # the derivative reads positions
        formula = op.operator.eager  # of elements that are equal the formula's gradient would be another
    x = inputs[0].expand([graph.sizes[a] if a in op.reduced else -1 for a in order])
    return formula(x, [order.index(a) for a in op.reduced], True)
