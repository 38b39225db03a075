"""Find axes that values can share though they never meet, so that one kernel computes them.

The queries and the keys of attention are turned by the same angles, and do not meet each other. So the heads of each
are an axis of their own, and a kernel goes over one of them. Where there are as many, which lie alike in memory, both
tensors can have one axis, and one kernel.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

from .axes import NO_AXES, Axes
from .graph import Graph, Op, Position, Renamed
from .nodes import inputs_of
from .stages import Binding, axes_of

LINE = 64  # elements of a cache line of 128 bytes, in half types


def shareable_axes(graph: Graph, values: Collection[int], bindings: Collection[Binding]) -> dict[int, int]:
    """Return new names of axes: of each that another one can take the place of, that other one.

    Two axes can be one if they are as long, if tensors lie alike along both, and if no value, no sum and no tensor has
    both: a gradient may be a sum along an axis that what it adds up is repeated along. Neither may be an axis of rows,
    over which a value is reduced that others are computed from.

    Args:
        graph: has the sizes of axes.
        values: what is read and computed.
        bindings: where inputs and outputs lie in memory.
    """
    strides: dict[int, set[int]] = defaultdict(set)  # of tensors along each axis
    for binding in bindings:
        for axis, stride in zip(binding.dims, binding.strides, strict=True):
            if axis is not None:
                strides[axis].add(stride)
    beside: dict[int, set[int]] = defaultdict(set)  # the axes that a value, a sum or a tensor has together with each
    domains = [graph.axes[i] | getattr(graph.values[i], "reduced", NO_AXES) for i in values]
    for axes in [*domains, *map(axes_of, bindings)]:
        for axis in axes:
            beside[axis] |= axes
    names: dict[int, int] = {}
    taken: list[int] = []  # the axes that stay
    for axis in sorted(strides.keys() - _fixed(graph, values)):
        alike = (a for a in taken if graph.sizes[a] == graph.sizes[axis] and _lie_alike(strides[a], strides[axis]))
        other = next((a for a in alike if axis not in beside[a]), None)
        if other is None:
            taken.append(axis)
        else:
            names[axis] = other
            beside[other] |= beside[axis]
    return names


def _lie_alike(strides: set[int], others: set[int]) -> bool:
    """Return whether tensors have the same strides along two axes, or such that a step passes a whole cache line.

    A kernel for both then loads as wide vectors as one for each.
    """
    return strides == others or min(*strides, *others) >= LINE


def _fixed(graph: Graph, values: Collection[int]) -> Axes:
    """Return the axes that keep their names: those of rows, those that are renamed, and those that have positions."""
    nodes = {i: graph.values[i] for i in values}
    read = {j for node in nodes.values() for j in inputs_of(node)}
    fixed: set[int | None] = set()
    for i, node in nodes.items():
        if isinstance(node, Op) and i in read:
            fixed |= node.reduced
        elif isinstance(node, Renamed):
            fixed.update(node.old, node.new)
        elif isinstance(node, Position):
            fixed.update(node.axes)
    return frozenset(a for a in fixed if a is not None)
