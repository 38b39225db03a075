"""Named axes: which of several tensors' dimensions are the same, and tensors seen along them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

Axes = frozenset[int]
Dims = tuple[int | None, ...]  # the axis of each dimension of a tensor; None for one of size 1
NO_AXES: Axes = frozenset()


class AxisUnion:
    """Axes that turn out to be the same: a union-find, each class called by its first member."""

    def __init__(self):
        self.first: list[int] = []
        self.sizes: list[int] = []

    def new(self, shape: Sequence[int]) -> Dims:
        """An axis for each dimension that has more or fewer than one element."""
        dims: list[int | None] = []
        for n in shape:
            dims.append(None if n == 1 else len(self.first))
            if n != 1:
                self.first.append(len(self.first))
                self.sizes.append(n)
        return tuple(dims)

    def renew(self, dims: Dims) -> Dims:
        """An axis of the same size for each of ``dims``."""
        return self.new([1 if a is None else self.sizes[a] for a in dims])

    def root(self, axis: int) -> int:
        """What the class of ``axis`` is called by."""
        while self.first[axis] != axis:
            axis = self.first[axis]
        return axis

    def roots(self, dims: Dims) -> Dims:
        """Each axis by its class."""
        return tuple(None if a is None else self.root(a) for a in dims)

    def broadcast(self, operands: Sequence[Dims], known: Iterable[Dims]) -> Dims | None:
        """The dimensions of what these broadcast to, whose axes at each are from now on the same.

        None, and nothing done, where two axes of one of ``known`` would be.
        """
        before = list(self.first)
        rank = max(map(len, operands))
        met = tuple(self._meet([o[d] for o in operands if len(o) >= -d]) for d in range(-rank, 0))
        for dims in (*known, met):
            axes = [a for a in self.roots(dims) if a is not None]
            if len(set(axes)) < len(axes):
                self.first = before
                return None
        return met

    def _meet(self, axes: Sequence[int | None]) -> int | None:
        roots = sorted({self.root(a) for a in axes if a is not None})
        for other in roots[1:]:
            if self.sizes[other] != self.sizes[roots[0]]:
                raise ValueError("the shapes do not broadcast")
            self.first[other] = roots[0]
        return roots[0] if roots else None


def align(x: Tensor, dims: Dims, order: Sequence[int]) -> Tensor:
    """A view of ``x`` with a dimension for each axis of ``order``."""
    places = sorted((d for d, a in enumerate(dims) if a is not None), key=lambda d: order.index(dims[d]))
    x = x.permute([*places, *(d for d, a in enumerate(dims) if a is None)])
    sizes = iter(x.shape)
    return x.view([next(sizes) if a in dims else 1 for a in order])


def restore(x: Tensor, dims: Dims, order: Sequence[int], sizes: dict[int, int]) -> Tensor:
    """A view of ``x``, which has a dimension for each axis of ``order``, with those of a tensor."""
    own = [a for a in order if a in dims]
    x = x.expand([sizes[a] if a in dims else 1 for a in order])
    x = x.reshape([sizes[a] for a in own]).permute([own.index(a) for a in dims if a is not None])
    return x.reshape([1 if a is None else sizes[a] for a in dims])
