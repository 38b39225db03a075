"""A reduction of a tensor: by kernel, or by formula."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .dtensor import REDUCE_OPS, ShardingSpec, drop_dims, find_sharding
from .elementwise import is_safe_out
from .paths import has_kernel, plan_key
from .plans import Execution, make_plan, recall, remember
from .specs import TensorSpec, ask_torch, contiguous, infer


def reduce(formula: Callable, x: Tensor, *dim, dtype: torch.dtype | None = None, out: Tensor | None = None) -> Tensor:
    """Return ``formula`` of ``x`` over all axes where ``dim`` is empty, else over ``dim[0]``, keepdim as ``dim[1]``."""
    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    if out is not None:
        options["out"] = out
    inputs_key = plan_key((x,) if out is None else (x, out))
    usual = _are_axes(*dim) and (dtype is None or isinstance(dtype, torch.dtype))
    if inputs_key and usual and (out is None or is_safe_out(out, (x,))):
        axes = tuple(tuple(d) if isinstance(d, list) else d for d in dim)
        key = formula, inputs_key, axes, tuple(map(type, dim)), dtype
        call = recall(key)
        if call is None:
            runs = has_kernel(formula.__name__, (x,), out, dtype)
            call = remember(key, runs and _plan_reduce(formula, x, axes, options))
        if call:
            (z,) = call((x,))
            return z if out is None else torch.maximum(z, z, out=out)
    elif usual and out is None and (sharding := find_sharding((x,))) and (like := infer(formula, (x, *dim), options)):
        return _reduce_on_shards(formula, x, dim, options, sharding, like)
    return formula(x, *dim, **options)


def _reduce_on_shards(
    formula: Callable, x: Tensor, dim: tuple, options: dict[str, Any], sharding: ShardingSpec, like: TensorSpec
) -> Tensor:
    """Return ``reduce`` of the local shard; what is reduced over a sharded axis is joined later over processes."""
    reduce_op = REDUCE_OPS[formula.__name__]
    uneven = any(x.shape[dim] % n for dim, n in sharding.shard_counts().items())
    if reduce_op == "avg" and uneven:  # averages of unequal parts do not average
        return formula(x, *dim, **options)
    z = reduce(formula, sharding.local(x), *dim, **options)
    placements = sharding.placements(keepdim_shape(x.shape, *dim), reduce_op)
    if len(like.shape) < x.dim():
        placements = drop_dims(placements, reduced_axes(x.dim(), *dim))
    return sharding.join(z, like, placements)


@lru_cache(maxsize=4096)
def keepdim_shape(shape: torch.Size, axes: Any = (), keepdim: bool = False) -> torch.Size:
    """Return ``shape`` with 1 for each axis that a reduction runs over."""
    reduced = reduced_axes(len(shape), axes, keepdim)
    return torch.Size(1 if a in reduced else n for a, n in enumerate(shape))


def reduced_axes(rank: int, axes: Any = (), _keepdim: bool = False) -> set[int]:
    """Return the axes that a reduction runs over: every one where none is named."""
    axes = (axes,) if isinstance(axes, int) else axes
    return {a % rank for a in axes} if axes and rank else set(range(rank))


def _plan_reduce(formula: Callable, x: Tensor, dim: tuple, options: dict[str, Any]) -> Execution:
    """Plan the kernels of a reduction of a tensor like ``x``; they write it with the axes kept, as size 1."""
    spec = ask_torch(formula, (x, *dim), **options)
    keepdim = keepdim_shape(x.shape, *dim)
    total = TensorSpec(keepdim, contiguous(keepdim), spec.dtype, x.device)
    count = x.numel() // keepdim.numel()
    plan = make_plan([], {"x": x}, [total], spec._replace(shape=x.shape), (formula.__name__, count))
    return Execution.of(plan, (spec._replace(strides=contiguous(spec.shape)),), (x,))


def _are_axes(axes: Any = (), _keepdim: bool = False) -> bool:
    """Return whether ``axes`` is what a reduction usually gets; anything odder is torch's to read."""
    axes = axes if isinstance(axes, tuple | list) else () if axes is None else (axes,)
    return all(type(a) is int for a in axes)
