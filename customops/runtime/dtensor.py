"""Tensors spread over processes, or still on their way: what an operator computes of them in this process.

An elementwise operator needs no communication where its inputs line up, and a reduction none at all: each process
computes on its own shard, by kernel where one can run. Where inputs do not line up torch's operator moves them.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, is_grad_enabled

from .paths import CLASSES, is_by_formula, is_dense_tensor, must_fall_back

# how what a reduction gives on each shard becomes that of the whole
REDUCE_OPS = {"sum": "sum", "mean": "avg", "amax": "max", "amin": "min"}


class ShardingSpec(NamedTuple):
    """How the inputs of an elementwise operator line up, and with them its output.

    ``dims`` has for each axis of ``mesh`` the dimension that it shards, counted from the end; None where it repeats.
    Without a mesh nothing is spread: the inputs were only late.
    """

    mesh: Any = None
    dims: tuple[int | None, ...] = ()

    def local(self, x: Any) -> Any:
        """The part of input ``x`` that is here, at most a view of what was; a number is itself."""
        if _is_distributed(x):
            wanted = self.placements(x.shape)
            x = (x if wanted == x.placements else x.redistribute(placements=wanted)).to_local()
        return x.wait() if _is_pending(x) else x

    def takes(self, x: Any) -> bool:
        """Whether DTensor ``x`` is where it is wanted, or replicated, so that it has only to be cut."""
        pairs = zip(x.placements, self.placements(x.shape), strict=True)
        # a strided shard may equal a shard, but lies otherwise
        return all(p.is_replicate() or (type(p) is type(q) and p == q) for p, q in pairs)

    def placements(self, shape: Sequence[int], joined: str | None = None) -> tuple:
        """Where a tensor of ``shape`` is that broadcasts to the output.

        An axis of the mesh whose dimension it has not, or has with size 1, repeats it; or, of a result that was reduced
        over that dimension, has a partial one, to be ``joined``.
        """
        from torch.distributed.tensor import Partial, Replicate, Shard  # noqa: PLC0415 - imported where there are any

        def place(dim):
            if dim is not None and len(shape) >= -dim and shape[dim] > 1:
                return Shard(len(shape) + dim)
            return Replicate() if dim is None or joined is None else Partial(joined)

        return tuple(map(place, self.dims))

    def join(self, z: Tensor, like: Any, placements: Sequence) -> Tensor:
        """The tensor whose part here is ``z``, of the shape and strides of ``like``."""
        if self.mesh is None:
            return z
        from torch.distributed.tensor import DTensor  # noqa: PLC0415 - imported where there are any

        options = {"shape": like.shape, "stride": like.strides}
        return DTensor.from_local(z, self.mesh, placements, run_check=False, **options)

    def local_shape(self, shape: Sequence[int], output: Sequence[int]) -> torch.Size:
        """The part of ``shape`` that is here, where ``output`` is that of the output."""
        here = output[len(output) - len(shape) :]
        return torch.Size(1 if n == 1 else m for n, m in zip(shape, here, strict=True))

    def parts(self) -> Counter[int]:
        """In how many parts each sharded dimension is cut."""
        parts: Counter[int] = Counter()
        for axis, dim in enumerate(self.dims):
            if dim is not None:
                parts[dim] = max(parts[dim], 1) * self.mesh.size(axis)
        return parts


def find_sharding(values: Sequence) -> ShardingSpec | None:
    """How ``values`` line up, if kernels may run on the parts that are here; None where torch's operator answers."""
    strange = [x for x in values if type(x) not in CLASSES and isinstance(x, Tensor)]
    if not any(is_distributed_or_pending(x) and not is_by_formula(x) for x in strange):
        return None
    spread = None if must_fall_back() else common_sharding(values)
    if spread and is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in values):
        return None
    return spread


def common_sharding(values: Iterable) -> ShardingSpec | None:
    """How ``values`` line up: all here if late, or all spread over one mesh in the same way, where not repeated.

    None where they do not.
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
    spread = ShardingSpec(mesh, tuple(dims.pop() if dims else None for dims in sharded))
    for dim, n in spread.parts().items():
        if max(x.shape[dim] for x in tensors if x.dim() >= -dim) < n:  # too few to shard, for torch
            return None
    return spread if all(map(spread.takes, tensors)) else None


def drop_dims(placements: Iterable, axes: Iterable[int]) -> tuple:
    """``placements`` of a tensor that has lost these axes."""
    return tuple(type(p)(p.dim - sum(a < p.dim for a in axes)) if p.is_shard() else p for p in placements)


def is_distributed_or_pending(x: Any) -> bool:
    """Whether ``x`` stands for a tensor of torch's own that is in other processes too, or yet to come."""
    return _is_distributed(x) or _is_pending(x)


def _is_distributed(x: Any) -> bool:
    return _is(x, "torch.distributed.tensor", "DTensor")


def _is_pending(x: Any) -> bool:
    """Whether a collective is still to write ``x``."""
    return _is(x, "torch.distributed._functional_collectives", "AsyncCollectiveTensor")


def _is(x: Any, module: str, name: str) -> bool:
    """Whether ``x`` is of the class of this name, of which there is nothing before its module is imported."""
    return type(x) is getattr(sys.modules.get(module), name, None)
