"""Named axes: which dimensions of several tensors are the same axis, and views of tensors along axes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from torch import Tensor

Axes = frozenset[int]
Dims = tuple[int | None, ...]  # the axis of each dimension of a tensor; None for a dimension of size 1
NO_AXES: Axes = frozenset()
NOTHING: Mapping[int, Dims] = MappingProxyType({})  # the dimensions of no value


class AxisUnion:
    """A union-find over axes: broadcasting makes axes one. The first member of a class is its root."""

    def __init__(self):
        self.parents: list[int] = []  # of each axis: an axis of the same class, or itself if it is the root
        self.sizes: list[int] = []  # the number of elements along each axis

    def new(self, shape: Sequence[int]) -> Dims:
        """Return a new axis for each dimension of ``shape``, None for those of size 1."""
        dims: list[int | None] = []
        for n in shape:
            dims.append(None if n == 1 else len(self.parents))
            if n != 1:
                self.parents.append(len(self.parents))
                self.sizes.append(n)
        return tuple(dims)

    def renew(self, dims: Dims) -> Dims:
        """Return a new axis of the same size for each of ``dims``."""
        return self.new([1 if a is None else self.sizes[a] for a in dims])

    def root(self, axis: int) -> int:
        """Return the root of the class of ``axis``."""
        while self.parents[axis] != axis:
            axis = self.parents[axis]
        return axis

    def roots(self, dims: Dims) -> Dims:
        """Return the root of each of ``dims``."""
        return tuple(None if a is None else self.root(a) for a in dims)

    def broadcast(self, operands: Sequence[Dims], known: Iterable[Dims]) -> Dims | None:
        """Unify the axes of ``operands``, and return those of the tensor that they broadcast to.

        Returns None, and unifies nothing, if two axes of one of the tensors ``known`` would become one.
        """
        before = list(self.parents)
        rank = max(map(len, operands))
        unified = tuple(self._unify([o[d] for o in operands if len(o) >= -d]) for d in range(-rank, 0))
        for dims in (*known, unified):
            axes = [a for a in self.roots(dims) if a is not None]
            if len(set(axes)) < len(axes):
                self.parents = before
                return None
        return unified

    def _unify(self, axes: Sequence[int | None]) -> int | None:
        roots = sorted({self.root(a) for a in axes if a is not None})
        for other in roots[1:]:
            if self.sizes[other] != self.sizes[roots[0]]:
                raise ValueError("the shapes do not broadcast")
            self.parents[other] = roots[0]
        return roots[0] if roots else None


def align(x: Tensor, dims: Dims, order: Sequence[int]) -> Tensor:
    """Return a view of ``x`` with a dimension for each axis of ``order``, of size 1 for those it does not have."""
    positions = sorted((d for d, a in enumerate(dims) if a is not None), key=lambda d: order.index(dims[d]))
    x = x.permute([*positions, *(d for d, a in enumerate(dims) if a is None)])
    sizes = iter(x.shape)
    return x.view([next(sizes) if a in dims else 1 for a in order])


def restore(x: Tensor, dims: Dims, order: Sequence[int], sizes: dict[int, int]) -> Tensor:
    """Invert :func:`align`: return a view of ``x`` with the dimensions ``dims`` instead of those of ``order``."""
    own = [a for a in order if a in dims]
    x = x.expand([sizes[a] if a in dims else 1 for a in order])
    x = x.reshape([sizes[a] for a in own]).permute([own.index(a) for a in dims if a is not None])
    return x.reshape([1 if a is None else sizes[a] for a in dims])
