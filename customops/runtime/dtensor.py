"""Tensors of several processes, or still on their way: what an operator computes of them in this process.

An elementwise operator needs no communication where its inputs have a common sharding, and a reduction none at all:
each process computes on its local shard, by kernel where one can run. Where shardings differ torch's operator moves the
inputs.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, is_grad_enabled

from .. import config
from .._compat import transforms_active
from .paths import CLASSES, NUMBERS, is_by_formula, is_dense_tensor, is_intercepted, moves_tangents

# By which operation over processes the results of a reduction on each shard become that of the full tensor.
REDUCE_OPS = {"sum": "sum", "mean": "avg", "prod": "product", "amax": "max", "amin": "min"}


class ShardingSpec(NamedTuple):
    """The common sharding of the inputs of an elementwise operator, and with them of its output.

    Without a mesh nothing is distributed: collectives were still to write the inputs.
    """

    mesh: Any = None  # the DeviceMesh
    dims: tuple[int | None, ...] = ()  # by axis of the mesh: the dimension sharded, counted from the end, or None

    def local(self, x: Any) -> Any:
        """Return the local shard of input ``x``, at most a view of what was; a number is itself."""
        if _is_distributed(x):
            placements = self.placements(x.shape)
            x = (x if placements == x.placements else x.redistribute(placements=placements)).to_local()
        return x.wait() if _is_pending(x) else x

    def suits(self, x: Any) -> bool:
        """Return whether DTensor ``x`` is sharded so, or replicated, and has only to be sliced."""
        pairs = zip(x.placements, self.placements(x.shape), strict=True)
        # a strided shard may equal a shard, but lies otherwise
        return all(p.is_replicate() or (type(p) is type(q) and p == q) for p, q in pairs)

    def placements(self, shape: Sequence[int], reduce_op: str | None = None) -> tuple:
        """Return the placements of a tensor of ``shape`` that broadcasts to the output.

        Along an axis of the mesh whose dimension the tensor lacks, or has with size 1, it is replicated; or, if it is a
        result that was reduced over that dimension, partial, to be joined by ``reduce_op``.
        """
        from torch.distributed.tensor import Partial, Replicate, Shard  # noqa: PLC0415 - imported where there are any

        def place(dim):
            if dim is not None and len(shape) >= -dim and shape[dim] > 1:
                return Shard(len(shape) + dim)
            return Replicate() if dim is None or reduce_op is None else Partial(reduce_op)

        return tuple(map(place, self.dims))

    def join(self, z: Tensor, like: Any, placements: Sequence) -> Tensor:
        """Return the tensor whose local shard is ``z``, of the shape and strides of ``like``."""
        if self.mesh is None:
            return z
        from torch.distributed.tensor import DTensor  # noqa: PLC0415 - imported where there are any

        options = {"shape": like.shape, "stride": like.strides}
        return DTensor.from_local(z, self.mesh, placements, run_check=False, **options)

    def shard_counts(self) -> Counter[int]:
        """Return in how many shards each sharded dimension is divided."""
        counts: Counter[int] = Counter()
        for axis, dim in enumerate(self.dims):
            if dim is not None:
                counts[dim] = max(counts[dim], 1) * self.mesh.size(axis)
        return counts


def local_shape(shape: Sequence[int], local_output: Sequence[int]) -> torch.Size:
    """Return the shape of the local shard of a tensor that broadcasts to an output with this local shape."""
    aligned = local_output[len(local_output) - len(shape) :]
    return torch.Size(1 if n == 1 else local for n, local in zip(shape, aligned, strict=True))


def find_sharding(values: Sequence) -> ShardingSpec | None:
    """Return the common sharding of ``values`` if kernels may run on local shards, else None."""
    subclasses = [x for x in values if type(x) not in CLASSES and type(x) not in NUMBERS]
    if not subclasses or not any(is_distributed_or_pending(x) and not is_by_formula(x) for x in subclasses):
        return None
    sharding = None if _must_fall_back() else common_sharding(values)
    if sharding and is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in values):
        return None
    return sharding


def common_sharding(values: Iterable) -> ShardingSpec | None:
    """Return how ``values`` are all sharded over one mesh, where not replicated; None where they are not.

    Of tensors that are only pending, it is a sharding without a mesh.
    """
    tensors: list[Any] = [x for x in values if isinstance(x, Tensor)]
    if not all(map(_is_distributed, tensors)):
        return ShardingSpec() if all(is_dense_tensor(x) or _is_pending(x) for x in tensors) else None
    mesh = tensors[0].device_mesh
    if mesh.get_coordinate() is None or any(x.device_mesh != mesh for x in tensors):
        return None
    sharded = [{p.dim - x.dim() for x in tensors if (p := x.placements[axis]).is_shard()} for axis in range(mesh.ndim)]
    if any(len(dims) > 1 for dims in sharded):
        return None
    sharding = ShardingSpec(mesh, tuple(dims.pop() if dims else None for dims in sharded))
    for dim, n in sharding.shard_counts().items():
        if max(x.shape[dim] for x in tensors if x.dim() >= -dim) < n:  # too few to shard, for torch
            return None
    return sharding if all(map(sharding.suits, tensors)) else None


def drop_dims(placements: Iterable, axes: Iterable[int]) -> tuple:
    """Return ``placements`` for a tensor that has lost these axes."""
    return tuple(type(p)(p.dim - sum(a < p.dim for a in axes)) if p.is_shard() else p for p in placements)


def is_distributed_or_pending(x: Any) -> bool:
    """Return whether ``x`` is a DTensor or the result of an unfinished collective."""
    return _is_distributed(x) or _is_pending(x)


def _is_distributed(x: Any) -> bool:
    return _is(x, "torch.distributed.tensor", "DTensor")


def _is_pending(x: Any) -> bool:
    """Return whether a collective is still to write ``x``."""
    return _is(x, "torch.distributed._functional_collectives", "AsyncCollectiveTensor")


def _is(x: Any, module: str, name: str) -> bool:
    """Return whether ``x`` is of the class of this name, of which there is nothing before its module is imported."""
    return type(x) is getattr(sys.modules.get(module), name, None)


def _must_fall_back() -> bool:
    """Return whether the formula computes, whatever the tensors."""
    return config.current_backend == "torch" or is_intercepted() or transforms_active() or moves_tangents()
