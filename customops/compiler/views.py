"""How the tensors of a call are seen by a graph: which part of which tensor each of its inputs and results is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from .axes import Dims
from .axis_union import MAX_PIECES, AxisUnion, Dim, NotNested, Shape


class Unflatten(NamedTuple):
    """Take dimensions apart: always a view."""

    before: tuple[int, ...]  # the shape
    after: tuple[int, ...]  # the shape in which dimensions are several

    def of(self, x: Tensor) -> Tensor:
        """Return the view of ``x``."""
        return x.view(self.after)

    def inverse(self, x: Tensor) -> Tensor:
        """Return the tensor that ``x`` is the view of."""
        return x.reshape(self.before)

    def text(self) -> str:
        """Return the step as a suffix in Python."""
        return f".view{self.after}"


class Narrow(NamedTuple):
    """Take a range of a dimension."""

    rank: int  # the number of dimensions
    dim: int  # which of them
    start: int  # the first element
    length: int  # how many elements
    total: int  # how many there are along the dimension

    def of(self, x: Tensor) -> Tensor:
        """Return the view of ``x``."""
        return x.narrow(self.dim, self.start, self.length)

    def inverse(self, x: Tensor) -> Tensor:
        """Return the tensor that ``x`` is the view of, with zeros around it."""
        after = self.total - self.start - self.length
        sides = [0, 0] * (self.rank - 1 - self.dim) + [self.start, after]
        return torch.nn.functional.pad(x, sides)

    def text(self) -> str:
        """Return the step as a suffix in Python."""
        start, stop = self.start or "", self.start + self.length
        range_text = f"{start}:{'' if stop == self.total else stop}"
        if self.dim == self.rank - 1 and self.dim:
            return f"[..., {range_text}]"
        return f"[{':, ' * self.dim}{range_text}]"


class View(NamedTuple):
    """A part of a tensor, with a dimension for each axis of a graph, and those of size 1."""

    steps: tuple[Unflatten | Narrow, ...] = ()

    def of(self, x: Tensor) -> Tensor:
        """Return the part of ``x``."""
        for step in self.steps:
            x = step.of(x)
        return x

    def inverse(self, x: Tensor) -> Tensor:
        """Return the tensor of which ``x`` is this part, and all else is zero."""
        for step in reversed(self.steps):
            x = step.inverse(x)
        return x

    def text(self, name: str) -> str:
        """Return the part in Python."""
        return name + "".join(step.text() for step in self.steps)


WHOLE = View()


class Part(NamedTuple):
    """A part of a value whose elements lie along axes that are not divided."""

    first: tuple[int, ...]  # the position of its first element along each dimension of the value, which no other has
    dims: Dims  # the axis of each dimension of its view
    origin: tuple[int, ...]  # the dimension of the value that each dimension of its view comes of
    view: View  # how it is seen in a tensor of the value


class Piece(NamedTuple):
    """A part of a tensor, as an input or result of a graph."""

    at: int  # which input or result of the graph
    view: View  # how it is seen in the tensor


Pieces = tuple[Piece, ...]


class Presentation(NamedTuple):
    """How a graph sees the tensors of a call: of each, the pieces that its inputs or results are."""

    names: tuple[str, ...]  # of the tensors
    inputs: tuple[Pieces, ...]  # of each tensor
    results: tuple[Pieces, ...]  # of each result

    @property
    def is_plain(self) -> bool:
        """Whether each input and result of the graph is a tensor as it is."""
        return all(is_whole(pieces) for pieces in (*self.inputs, *self.results))


def is_whole(pieces: Sequence[Piece | Share]) -> bool:
    """Return whether a tensor is one piece, as it is."""
    return len(pieces) == 1 and not pieces[0].view.steps


class Operand(NamedTuple):
    """A value that is loaded: a part of a tensor that kernels are called with."""

    value: int  # of the graph
    position: int  # of the tensor
    view: View


class Share(NamedTuple):
    """A part of a tensor that kernels write."""

    result: int | None  # of the graph; None if the part is zero
    view: View


def joined(shares: Sequence[Share], parts: Sequence[Tensor]) -> Tensor:
    """Return the tensor of which results of a graph are parts, and all else is zero; it is differentiable."""
    there = [view.inverse(parts[k]) for k, view in shares if k is not None]
    return reduce(torch.add, there)


class Seen(NamedTuple):
    """How kernels see the tensors that they are called with and that they write, where they see parts of them."""

    operands: Sequence[Operand]
    shares: Sequence[Sequence[Share]]  # of each tensor that is written


class _Item(NamedTuple):
    """A dimension of a view, perhaps still to be divided."""

    axes: Dim  # it is the product of
    dim: int  # the dimension of the value that it comes of
    stride: int  # along that dimension, in elements


def parts(union: AxisUnion, shape: Shape) -> list[Part]:
    """Return the parts of a value of this shape, in order. Raises NotNested if they are many."""
    found = []
    items = [_Item(union.expand(dim), d, 1) for d, dim in enumerate(shape)]
    for part in _parts(union, items, (0,) * len(shape), ()):
        found.append(part)
        if len(found) > MAX_PIECES:
            raise NotNested(f"slices and concatenations divide a value in more than {MAX_PIECES} parts")
    return found


def _parts(union: AxisUnion, items: list[_Item], first: tuple[int, ...], steps: tuple) -> Iterator[Part]:
    if any(len(item.axes) > 1 for item in items):
        apart = [each for item in items for each in _factors(union, item)]
        before, after = (tuple(union.size(item.axes) for item in some) for some in (items, apart))
        items, steps = apart, (*steps, Unflatten(before, after))
    for k, (axes, dim, stride) in enumerate(items):
        if axes and axes[0] in union.segments:
            start, total = 0, union.size(axes)
            for piece in union.pieces(axes):
                length = union.size(piece)
                inside = [*items[:k], _Item(piece, dim, stride), *items[k + 1 :]]
                moved = (*first[:dim], first[dim] + start * stride, *first[dim + 1 :])
                yield from _parts(union, inside, moved, (*steps, Narrow(len(items), k, start, length, total)))
                start += length
            return
    dims = tuple(item.axes[0] if item.axes else None for item in items)
    yield Part(first, dims, tuple(item.dim for item in items), View(steps))


def _factors(union: AxisUnion, item: _Item) -> list[_Item]:
    """Return a dimension as one for each axis that it is the product of."""
    if len(item.axes) < 2:
        return [item]
    return [_Item((a,), item.dim, item.stride * union.size(item.axes[k + 1 :])) for k, a in enumerate(item.axes)]
