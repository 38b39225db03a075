"""Evaluate a graph by torch's formulas."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import formulas
from .axes import align, restore
from .graph import Constant, Graph, Input, Renamed


def evaluate(graph: Graph, tensors: dict[int, Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The results by torch's formulas in ``dtype``, for these tensors given.

    Differentiable, and of any class of tensors that torch computes with.
    """
    order = sorted(graph.sizes)
    values: dict[int, Any] = {}
    for i in graph.needed([value for value, _ in graph.results]):
        value = graph.values[i]
        if isinstance(value, Input):
            values[i] = align(tensors[i].to(dtype), value.dims, order)
        elif isinstance(value, Constant):
            values[i] = graph.number(i)
        elif isinstance(value, Renamed):
            x = restore(values[value.reads[0]], value.old, order, graph.sizes)
            values[i] = align(x, value.new, order)
        elif value.over:
            x = values[value.reads[0]]
            places = [order.index(a) for a in value.over]
            x = x.expand([graph.sizes[a] if a in value.over else -1 for a in order])
            values[i] = getattr(formulas, value.formula)(x, places, True)
        else:
            values[i] = getattr(formulas, value.formula)(*[values[j] for j in value.reads])
    return [restore(values[value], dims, order, graph.sizes) for value, dims in graph.results]
