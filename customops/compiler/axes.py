"""Named axes of the dimensions of tensors, and views of tensors along axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor

Axes = frozenset[int]
Dims = tuple[int | None, ...]  # the axis of each dimension of a tensor; None for a dimension of size 1
NO_AXES: Axes = frozenset()
NOTHING: Mapping[int, Dims] = MappingProxyType({})  # the dimensions of no value


def renamed(axes: Any, names: Mapping[int, int]) -> Any:
    """Return a tuple or set of axes with the names that some of them have from here on."""
    return type(axes)(names.get(a, a) for a in axes)


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


def rename(x: Tensor, old: Dims, new: Dims, own: Axes, order: Sequence[int], sizes: dict[int, int]) -> Tensor:
    """Return a value that :func:`align` gave along other axes; ``own`` are those that it varies along."""
    varying = tuple(a if a in own else None for a in old)
    renamed = tuple(b if a in own else None for a, b in zip(old, new, strict=True))
    return align(restore(x, varying, order, sizes), renamed, order)
