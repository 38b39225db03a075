"""Find the axes of each value of a trace: which dimensions of which values are the same, or a part of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from ..compiler.axis_union import AxisUnion, Dim, NotNested, Shape
from ..compiler.views import parts
from ..runtime.reduction import reduced_axes
from .errors import untraceable
from .operators import Detach, PositionsAlong, Ref, is_elementwise
from .proxy import ELSEWHERE
from .replay import Node
from .shapes import Cat, Contiguous, Expand, Narrow, Permute, Regroup
from .trace import Trace

Operands = Mapping[int, Shape]  # the shape of each input of a node that is a value, by position


class ValueAxes:
    """The axes of each value of a trace. Raises ValueError if the shapes do not broadcast, NotNested if views do not.

    If two axes of one part of a value would become one, as a value meets itself along another axis, all inputs of the
    operator but that of most dimensions are renamed.
    """

    def __init__(self, trace: Trace, shapes: Sequence[Sequence[int]]):
        self.trace = trace
        self.union = AxisUnion()
        self.shapes: list[Shape] = [tuple(map(self.union.new, shape)) for shape in shapes]  # of each value
        self._distinct = set(self.shapes)  # these shapes, each once
        self.reduced: dict[int, set[int]] = {}  # by value, the dimensions that a reduction reduces
        self.renamed: dict[tuple[int, int], Shape] = {}  # by value and position, the new axes of an input
        for i, node in enumerate(trace.nodes, len(shapes)):
            try:
                self.shapes.append(self._shape(i, node))
                self._distinct.add(self.shapes[-1])
            except NotNested as error:
                raise untraceable(str(error), ELSEWHERE, trace.places[i - len(shapes)]) from None
        if self.renamed and trace.has_views:
            self._refine_renamed()
        if trace.has_views and not self._are_apart(self._distinct):
            raise NotNested("a value meets a part of itself along another axis")

    def _shape(self, i: int, node: Node) -> Shape:
        operands = {k: self.shapes[x.value] for k, x in enumerate(node.inputs) if isinstance(x, Ref)}
        if node.operator is Detach or self.trace.is_unread[i - self.trace.arity]:  # what stands there does not matter
            return next(iter(operands.values()))
        if not is_elementwise(node.operator) and node.operator not in _RULES:
            return self._reduce(i, node)
        rule = _RULES.get(node.operator, _broadcast)
        before = self.union.state()
        shape = rule(self.union, operands, node.inputs)
        if self._are_apart({*self._distinct, shape}):
            return shape
        self.union.restore(before)
        largest = max(operands, key=lambda k: len(operands[k])) if len(operands) > 1 else None
        renamed = {k: self._renewed(operands[k]) for k in operands if k != largest}
        self.renamed |= {(i, k): new for k, new in renamed.items()}
        return rule(self.union, {**operands, **renamed}, node.inputs)

    def _renewed(self, shape: Shape) -> Shape:
        """Return a shape of new axes that are divided as those of ``shape`` are."""
        new = tuple(self.union.new(self.union.size(dim)) for dim in shape)
        for dim, own in zip(shape, new, strict=True):
            self.union.unify(dim, own, joins=False)
        return new

    def _refine_renamed(self) -> None:
        """Divide what was renamed as what it is called from there on, and that alike, until nothing changes."""
        before = None
        while before != (now := self.union.state()[1:]):
            before = now
            for (i, k), new in self.renamed.items():
                x = self.trace.nodes[i - self.trace.arity].inputs[k]
                for dim, own in zip(self.shapes[x.value], new, strict=True):
                    self.union.unify(dim, own, joins=False)

    def _are_apart(self, shapes: Iterable[Shape]) -> bool:
        """Return whether no two dimensions of a part of a value are along one axis."""
        for shape in {tuple(map(self.union.expand, shape)) for shape in shapes}:
            dims = [part.dims for part in parts(self.union, shape)] if self.union.segments else [_joined(shape)]
            for each in dims:
                axes = [a for a in each if a is not None]
                if len(set(axes)) < len(axes):
                    return False
        return True

    def _reduce(self, i: int, node: Node) -> Shape:
        """Return the axes of a reduction's value."""
        x, _, *dim = node.inputs
        shape = self.shapes[x.value]
        self.reduced[i] = positions = reduced_axes(len(shape), *dim)
        keepdim = len(dim) > 1 and dim[1]
        return tuple(() if d in positions else own for d, own in enumerate(shape) if keepdim or d not in positions)


def _joined(shape: Shape) -> Dim:
    """Return the dimension that all elements in order are."""
    return tuple(chain.from_iterable(shape))


def _broadcast(union: AxisUnion, operands: Operands, _inputs: Sequence = (), apart: int | None = None) -> Shape:
    """Return the shape that operands broadcast to; dimension ``apart``, from the end, is not unified."""
    shapes, found = list(operands.values()), []
    for d in range(-max(map(len, shapes)), 0):
        dims = [shape[d] for shape in shapes if len(shape) >= -d and shape[d] and union.size(shape[d]) != 1]
        for other in dims[1:] if d != apart else ():
            union.unify(dims[0], other)
        found.append(dims[0] if dims else ())
    return tuple(found)


def _same(_union: AxisUnion, operands: Operands, _inputs: Sequence) -> Shape:
    return operands[0]


def _regroup(union: AxisUnion, operands: Operands, inputs: Sequence) -> Shape:
    shape = tuple(map(union.new, inputs[2]))
    union.unify(_joined(operands[0]), _joined(shape))
    return shape


def _permute(_union: AxisUnion, operands: Operands, inputs: Sequence) -> Shape:
    return tuple(operands[0][d] for d in inputs[1])


def _expand(union: AxisUnion, operands: Operands, inputs: Sequence) -> Shape:
    sizes = inputs[1]
    own = ((),) * (len(sizes) - len(operands[0])) + operands[0]
    return tuple(dim if union.size(dim) == n else union.new(n) for dim, n in zip(own, sizes, strict=True))


def _narrow(union: AxisUnion, operands: Operands, inputs: Sequence) -> Shape:
    _, d, start, length = inputs
    shape = operands[0]
    return (*shape[:d], union.part(shape[d], start, start + length), *shape[d + 1 :])


def _cat(union: AxisUnion, operands: Operands, inputs: Sequence) -> Shape:
    d = inputs[0]
    shapes = list(operands.values())
    others = _broadcast(union, operands, apart=d - len(shapes[0]))
    return (*others[:d], union.join([shape[d] for shape in shapes]), *others[d + 1 :])


def _along(_union: AxisUnion, operands: Operands, inputs: Sequence) -> Shape:
    return tuple(dim if d == inputs[1] else () for d, dim in enumerate(operands[0]))


_RULES: dict[Any, Callable[[AxisUnion, Operands, Sequence], Shape]] = {
    Contiguous: _same,
    Regroup: _regroup,
    Permute: _permute,
    Expand: _expand,
    Narrow: _narrow,
    Cat: _cat,
    PositionsAlong: _along,
}
