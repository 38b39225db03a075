"""Take a sum over a segment of each row, and over other axes, as a sum of sums of segments.

A kernel that holds the rows of GroupNorm, each all channels of a group, cannot add up a weight's gradient, which is a
sum over one channel of each row and over all samples. But it can add up elements that lie side by side in a row, and
what another kernel then has to add up is small.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..triton_kernels.tiling import power_dividing
from .axes import Axes
from .graph import Graph, SegmentSums

# Elements of a segment, at least and at most: two sums of 4 bytes for each 16 elements are less than to read both
# tensors of a product again, and sums of more than 1024 elements would be of several warps.
LEAST, MOST = 16, 1024


def by_segments(graph: Graph, sums: Sequence[int], row: Sequence[int]) -> tuple[Graph, dict[int, int]]:
    """Return the graph with sums of segments, and for each of ``sums`` the value of it that is computed from these.

    A sum is left out where it is not over the innermost axes of the row, where segments would be short, and where its
    input does not vary along all axes of the row and of the sum: that is less to read than the rows.

    Args:
        graph: is left as it is: the axes of segments are those of one partition.
        sums: values, each reduced over some axes of a row, and others.
        row: the axes of a row, outermost first; none where there is no kernel for it.
    """
    graph = graph.extended()
    along: dict[Axes, int] = {}  # by the axes that are summed over: the axis of their segments
    instead: dict[int, int] = {}
    for value in sums:
        op = graph.values[value]
        inner = op.reduced.intersection(row)
        length = min(MOST, power_dividing(graph.count(inner)))
        is_innermost = inner == frozenset(row[len(row) - len(inner) :])
        varies = op.reduced.union(row) <= graph.axes[op.inputs[0]]
        if length < LEAST or not is_innermost or not varies or op.formula != "sum":
            continue
        if inner not in along:
            along[inner] = max(graph.sizes) + 1
            graph.sizes[along[inner]] = graph.count(inner) // length
        segments = graph.add(SegmentSums(op.inputs, tuple(row), inner, length, along[inner]))
        instead[value] = graph.reduce("sum", segments, op.reduced.difference(row) | {along[inner]})
    return graph, instead
