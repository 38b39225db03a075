"""The nodes of a graph: inputs, constants, positions, operators' formulas, sums of segments, values of other axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .axes import NO_AXES, Axes, Dims, renamed


class Input(NamedTuple):
    """A tensor that a graph is called with."""

    name: str  # what printed programs call it
    dims: Dims  # the axis of each dimension


class Constant(NamedTuple):
    """A number: one that the traced function or a rule has, or how many elements lie along axes."""

    number: Any  # None for a count, which is another for each size of the axes
    counted: Axes = NO_AXES  # the axes whose elements it counts; none if it is no count


class Position(NamedTuple):
    """The number of each element along an axis, from 0: a tensor that goes with the kernels which read it.

    Along several axes it is that of their product, as that of a dimension that is divided.
    """

    axes: tuple[int, ...]  # outermost first

    @property
    def name(self) -> str:
        """What printed programs call it."""
        return "position"


class Op(NamedTuple):
    """A formula applied to values; a reduction, if ``reduced`` has axes."""

    formula: str  # its name in ``formulas.py``
    inputs: tuple[int, ...]  # the values that it is applied to, by index
    reduced: Axes = NO_AXES  # the axes that it reduces
    operator: Any = None  # the class whose formula it is, with the rule of its gradient; None in a gradient's graph
    detached: frozenset[int] = frozenset()  # the positions of inputs that count as constants where it is differentiated
    order: tuple[int, ...] = ()  # ``reduced``, outermost first, where the derivative reads positions along them


class Renamed(NamedTuple):
    """An alias of a value whose axes are renamed, as the second x in ``x[:, None] * x[None, :]``.

    A value that meets itself, or a value that it was made of, along another axis is seen along new axes: within one
    kernel a value has one set of axes.
    """

    inputs: tuple[int, ...]  # the value, by index: one
    old: Dims  # its axes
    new: Dims  # what each of them is called from here on


class SegmentSums(NamedTuple):
    """The sums of a value over segments of each row: a kernel that holds rows adds up elements that lie side by side.

    They go through memory to the kernel that sums them further, as that of a weight's gradient over samples.
    """

    inputs: tuple[int, ...]  # the value, by index: one
    row: tuple[int, ...]  # the axes of a row, outermost first
    reduced: Axes  # those that a segment lies along, which are the innermost
    length: int  # the elements of a segment
    along: int  # the axis of the segments, which take the place of ``reduced``


Node = Input | Constant | Position | Op | Renamed | SegmentSums

AXES = ("axes", "counted", "dims", "new", "old", "order", "reduced")  # the fields of nodes that have axes


def renamed_node(node: Node, names: Mapping[int, int]) -> Node:
    """Return the node along axes of which some have other names."""
    return node._replace(**{field: renamed(getattr(node, field), names) for field in AXES if field in node._fields})


def inputs_of(node: Node) -> tuple[int, ...]:
    """Return the values that a node is computed from, by index: none for an input and for a constant."""
    return getattr(node, "inputs", ())


def differentiable_inputs(node: Node) -> tuple[int, ...]:
    """Return the values that a node has a derivative by: its inputs but conditions and those detached."""
    inputs, detached = inputs_of(node), getattr(node, "detached", ())
    if isinstance(node, Op) and hasattr(node.operator, "derivatives"):
        inputs = inputs[: len(node.operator.derivatives)]
    return tuple(x for k, x in enumerate(inputs) if k not in detached) if detached else inputs
