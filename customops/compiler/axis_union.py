"""Which dimensions of a program's tensors are the same axis, where views take dimensions apart and join them.

A dimension is a product of axes: ``x.view(4, 6)`` of 24 elements makes their axis a product of two. An axis may be
several segments, one after another: ``x[..., :n]`` cuts an axis in two, and ``cat`` makes one of several. Both refine
an axis everywhere at once, so that what meets it elsewhere is refined alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

MAX_PIECES = 64  # of a dimension: each is computed by formulas of its own
Dim = tuple[int, ...]  # the axes whose product a dimension is, outermost first; none of one of size 1
Shape = tuple[Dim, ...]  # of each dimension of a tensor


class NotNested(ValueError):
    """The error of views that divide an axis in ways of which neither refines the other."""


class AxisUnion:
    """A union-find over axes: what broadcasts makes axes one. The first member of a class is its root."""

    def __init__(self):
        self.parents: list[int] = []  # of each axis: an axis of the same class, or itself if it is the root
        self.sizes: list[int] = []  # the number of elements along each axis
        self.factors: dict[int, Dim] = {}  # of a root that was split: the axes whose product it is
        self.segments: dict[int, Shape] = {}  # of a root that was cut or joined: its segments, in order

    def new(self, n: int) -> Dim:
        """Return a dimension of n elements: along a new axis, or none if it has one element."""
        if n == 1:
            return ()
        self.parents.append(len(self.parents))
        self.sizes.append(n)
        return (len(self.parents) - 1,)

    def state(self) -> tuple:
        """Return all that is known of axes so far, for :meth:`restore`."""
        return list(self.parents), dict(self.factors), dict(self.segments)

    def restore(self, state: tuple) -> None:
        """Forget what was found since ``state``, but for new axes."""
        parents, self.factors, self.segments = state
        self.parents = [*parents, *range(len(parents), len(self.parents))]

    def root(self, axis: int) -> int:
        """Return the root of the class of ``axis``."""
        while self.parents[axis] != axis:
            axis = self.parents[axis]
        return axis

    def expand(self, dim: Dim) -> Dim:
        """Return the roots that a dimension is the product of, each of them not split."""
        found: list[int] = []
        for axis in map(self.root, dim):
            found += self.expand(self.factors[axis]) if axis in self.factors else (axis,)
        return tuple(found)

    def size(self, dim: Dim) -> int:
        """Return the number of elements along a dimension."""
        return prod([self.sizes[a] for a in dim])

    def pieces(self, dim: Dim) -> list[Dim]:
        """Return the segments of a dimension, in order: itself, if its outermost axis has none."""
        outer, *inner = self.expand(dim) or (None,)
        if outer not in self.segments:
            return [self.expand(dim)]
        return [piece for segment in self.segments[outer] for piece in self.pieces((*segment, *inner))]

    def unify(self, one: Dim, other: Dim, joins: bool = True) -> None:
        """Refine two dimensions until both have the same structure; and if it ``joins``, make their axes one.

        Raises ValueError if they differ in size, NotNested if they are divided in ways that do not nest.
        """
        if self.size(one) != self.size(other):
            raise ValueError("the shapes do not broadcast")
        left, right = self.expand(one), self.expand(other)
        while left:
            a, b = left[-1], right[-1]
            if self.sizes[a] == self.sizes[b]:
                if a != b:
                    self._unify_axes(a, b, joins)
                left, right = left[:-1], right[:-1]
            else:
                self._split(max(a, b, key=self.sizes.__getitem__), min(self.sizes[a], self.sizes[b]))
            left, right = self.expand(left), self.expand(right)

    def _unify_axes(self, a: int, b: int, joins: bool) -> None:
        """Do the same of two roots of one size."""
        if not joins:
            for axis, other in ((a, b), (b, a)):
                if axis not in self.segments and other in self.segments:
                    self.segments[axis] = tuple(self.new(self.size(piece)) for piece in self.pieces((other,)))
        if a in self.segments and b in self.segments:
            self._align(a, b)
            for pair in zip(self.pieces((a,)), self.pieces((b,)), strict=True):
                self.unify(*pair, joins)
        if joins:
            first, second = min(a, b), max(a, b)
            segments = self.segments.pop(second, None)
            if segments is not None:
                self.segments.setdefault(first, segments)
            self.parents[second] = first

    def _align(self, a: int, b: int) -> None:
        """Cut two roots at the same positions; a cut of one may be one of both, as of ``x[1:]`` and ``x[:-1]``."""
        for _ in range(MAX_PIECES):
            one, other = self._starts((a,)), self._starts((b,))
            if one == other:
                return
            if len(one) > MAX_PIECES:
                break
            for at in {*one, *other}:
                self.cut((a,), at)
                self.cut((b,), at)
        raise NotNested(f"a dimension of {self.sizes[a]} elements meets itself, shifted, or is cut too often")

    def _starts(self, dim: Dim) -> list[int]:
        """Return the position of the first element of each piece of a dimension."""
        sizes = [self.size(piece) for piece in self.pieces(dim)]
        return [sum(sizes[:k]) for k in range(len(sizes))]

    def _split(self, axis: int, inner: int) -> None:
        """Make an axis a product whose inner factor has ``inner`` elements; its segments are made such products."""
        outer, rest = divmod(self.sizes[axis], inner) if inner else (0, 1)  # without elements anything goes
        pieces = self.pieces((axis,)) if axis in self.segments else []
        offsets = {at % inner for at in self._starts((axis,))} if pieces and not rest else {0}
        if rest or (len(offsets) > 1 and outer * len(offsets) > MAX_PIECES):
            raise NotNested(f"views divide {self.sizes[axis]} elements in ways that do not nest, once by {inner}")
        shared = self.new(inner)
        if len(offsets) > 1:
            self._split_in_each(axis, shared, sorted(offsets))
            return
        outers = [self.new(self.size(piece) // inner) for piece in pieces]
        for piece, own in zip(pieces, outers, strict=True):
            self.unify(piece, own + shared)
        self.factors[axis] = (*(self.join(outers) if pieces else self.new(outer)), *shared)
        self.segments.pop(axis, None)

    def _split_in_each(self, axis: int, shared: Dim, offsets: Sequence[int]) -> None:
        """Make an axis a product whose inner factor is ``shared``, cut at ``offsets`` in each of its repetitions.

        The outer factor is then one segment for each of its elements, as a piece of a dimension lies in one place.
        """
        outer = self.sizes[axis] // self.size(shared)
        for k in range(outer):
            for at in offsets:
                self.cut((axis,), k * self.size(shared) + at)
        for at in offsets:
            self.cut(shared, at)
        for piece, own in zip(self.pieces((axis,)), self.pieces(shared) * outer, strict=True):
            self.unify(piece, own)
        self.factors[axis] = (*self.join([()] * outer), *shared)
        self.segments.pop(axis)

    def cut(self, dim: Dim, at: int) -> None:
        """Cut a dimension before element ``at``."""
        if at in (0, self.size(dim)):
            return
        outer, *inner = self.expand(dim)
        position, rest = divmod(at, self.size(tuple(inner)))
        if rest:
            if self.sizes[outer] * (len(self.pieces(tuple(inner))) + 1) > MAX_PIECES:
                size = self.size(tuple(inner))
                raise NotNested(f"a dimension is cut at {at}, and views divide it in groups of {size}")
            for k in range(1, self.sizes[outer]):
                self.cut((outer,), k)
            self.cut(tuple(inner), rest)
            return
        if outer not in self.segments:
            self.segments[outer] = self.new(position), self.new(self.sizes[outer] - position)
            return
        for start, piece in zip(self._starts((outer,)), self.pieces((outer,)), strict=True):
            if start < position < start + self.size(piece):
                self.cut(piece, position - start)

    def part(self, dim: Dim, start: int, stop: int) -> Dim:
        """Return the elements of a dimension from ``start`` to before ``stop``, as a dimension."""
        if (start, stop) == (0, self.size(dim)):
            return dim
        self.cut(dim, start)
        self.cut(dim, stop)
        found = zip(self._starts(dim), self.pieces(dim), strict=True)
        return self.join([piece for at, piece in found if start <= at < stop])

    def join(self, dims: Sequence[Dim]) -> Dim:
        """Return a dimension of these one after another; the inner axes that all of them have stay factors."""
        if len(dims) == 1:
            return dims[0]
        expanded = [self.expand(dim) for dim in dims]
        common = 0
        while all(len(dim) > common + 1 for dim in expanded) and len({dim[-1 - common] for dim in expanded}) == 1:
            common += 1
        outers = [dim[: len(dim) - common] for dim in expanded]
        (axis,) = self.new(sum(map(self.size, outers)))
        self.segments[axis] = tuple(outers)
        return (axis, *expanded[0][len(expanded[0]) - common :])
