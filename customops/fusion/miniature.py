"""A trace with views, made small: what its values' strides are is asked of torch, with two elements along each axis.

The numbers of a view do not fit smaller tensors, so they are made anew from the axes of its values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..compiler.axis_union import AxisUnion, Dim
from ..runtime.specs import CPU, packed
from .operators import Detach, Ref
from .replay import Composed, Node, Replay
from .shapes import Expand, Narrow, Regroup
from .trace import Trace
from .value_axes import ValueAxes


class SmallTrace(NamedTuple):
    """The operators of a trace, for tensors of these shapes."""

    shapes: tuple[tuple[int, ...], ...]  # of the tensors
    nodes: tuple[Node, ...]
    outputs: tuple[Ref, ...]  # the values that are returned
    composed: tuple[
        Composed, ...
    ]  # the runs of operators that are functions of torch, which lay out results as it does

    def strides(self, tensors: Sequence[Tensor]) -> list[tuple[int, ...]]:
        """Return strides in the order of those that torch's results have for ``tensors``; raise what torch raises."""
        small = [_laid_out_as(x, shape) for x, shape in zip(tensors, self.shapes, strict=True)]
        with torch.no_grad():
            values = Replay(len(small), self.nodes, self.composed)(small)
        return [values[ref.value].stride() for ref in self.outputs]


def small_trace(trace: Trace, axes: ValueAxes) -> SmallTrace:
    """Return a trace whose axes have two elements."""
    shapes = [tuple(small(axes.union, dim) for dim in shape) for shape in axes.shapes]
    nodes = []
    for i, (operator, inputs) in enumerate(trace.nodes, trace.arity):
        if trace.is_unread[i - trace.arity]:
            nodes.append(Node(Detach, tuple(x for x in inputs if isinstance(x, Ref))[:1]))
            continue
        nodes.append(Node(operator, _inputs(axes, operator, inputs, shapes[i])))
    composed = tuple([each for each in trace.composed if each.takes_any_size])
    return SmallTrace(tuple(shapes[: trace.arity]), tuple(nodes), trace.outputs, composed)


def _inputs(axes: ValueAxes, operator: Any, inputs: tuple, shape: tuple[int, ...]) -> tuple:
    """Return the inputs of a node whose value has this small shape."""
    if operator in (Regroup, Expand):
        return (*inputs[:-1], shape)
    if operator is Narrow:
        x, d, start, _ = inputs
        return x, d, _position(axes.union, axes.shapes[x.value][d], start), shape[d]
    return inputs


def small(union: AxisUnion, dim: Dim) -> int:
    """Return the number of elements along a dimension if each axis has two."""
    n = 1
    for a in union.expand(dim):
        n *= sum(small(union, each) for each in union.segments[a]) if a in union.segments else 2
    return n


def _position(union: AxisUnion, dim: Dim, at: int) -> int:
    """Return which small element stands for element ``at``, where the dimension is cut."""
    position = start = 0
    for piece in union.pieces(dim):
        if start >= at:
            break
        position += small(union, piece)
        start += union.size(piece)
    return position


def _laid_out_as(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return zeros of a small shape; dimensions that can be seen as one in ``x`` can be in it.

    They count as indices of classes, too: 0 is one of any class there is.
    """
    strides = [int(n == 1) for n in shape]
    step, end = 1, 1  # between the next elements, in the small tensor and in x
    for d in sorted(range(len(shape)), key=x.stride):
        if x.stride(d) and x.shape[d] != 1:
            step = step if x.stride(d) == end else 2 * step  # a gap
            strides[d] = step
            step, end = step * shape[d], x.stride(d) * x.shape[d]
    length = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    return torch.zeros(length, dtype=x.dtype, device=CPU).as_strided(shape, strides)


def strides_of_results(small: SmallTrace, tensors: Sequence[Tensor], shapes: Sequence) -> list[tuple[int, ...]]:
    """Return the strides of results of these shapes: dense, their dimensions in torch's order; 0 where it repeats."""
    found = []
    for shape, strides in zip(shapes, small.strides(tensors), strict=True):
        dense = packed([n if stride else 1 for n, stride in zip(shape, strides, strict=True)], strides)
        found.append(tuple(a if stride else 0 for a, stride in zip(dense, strides, strict=True)))
    return found
