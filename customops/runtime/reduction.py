"""A reduction of a tensor: by kernel, or by formula."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .dtensor import REDUCE_OPS, ShardingSpec, drop_dims, find_sharding
from .elementwise import is_safe_out
from .paths import has_kernel
from .plans import Execution, make_plan, plan_key, recall, remember
from .specs import TensorSpec, ask_torch, contiguous, infer_on_meta


def reduce(formula: Callable, x: Tensor, *dim, dtype: torch.dtype | None = None, out: Tensor | None = None) -> Tensor:
    """``formula`` over axes: over all of them where ``dim`` is empty, else it holds the axes and ``keepdim``."""
    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    if out is not None:
        options["out"] = out
    found = plan_key((x,) if out is None else (x, out))
    usual = _are_axes(*dim) and (dtype is None or isinstance(dtype, torch.dtype))
    if found and usual and (out is None or is_safe_out(out, (x,))):
        axes = tuple(tuple(d) if isinstance(d, list) else d for d in dim)
        key = formula, found, axes, tuple(map(type, dim)), dtype
        call = recall(key)
        if call is None:
            runs = has_kernel(formula.__name__, (x,), out, dtype)
            call = remember(key, runs and _plan_reduce(formula, x, axes, options))
        if call:
            (z,) = call((x,))
            return z if out is None else torch.maximum(z, z, out=out)
    elif (
        usual
        and out is None
        and (spread := find_sharding((x,)))
        and (like := infer_on_meta(formula, (x, *dim), options))
    ):
        return _reduce_on_shards(formula, x, dim, options, spread, like)
    return formula(x, *dim, **options)


def _reduce_on_shards(
    formula: Callable, x: Tensor, dim: tuple, options: dict[str, Any], spread: ShardingSpec, like: TensorSpec
) -> Tensor:
    """``reduce`` of the part that is here; what is reduced over a sharded axis is joined later over processes."""
    joined = REDUCE_OPS[formula.__name__]
    uneven = any(x.shape[dim] % n for dim, n in spread.parts().items())
    if joined == "avg" and uneven:  # averages of unequal parts do not average
        return formula(x, *dim, **options)
    z = reduce(formula, spread.local(x), *dim, **options)
    placements = spread.placements(keepdim_shape(x.shape, *dim), joined)
    if len(like.shape) < x.dim():
        placements = drop_dims(placements, reduced_axes(x.dim(), *dim))
    return spread.join(z, like, placements)


@lru_cache(maxsize=4096)
def keepdim_shape(shape: torch.Size, axes: Any = (), keepdim: bool = False) -> torch.Size:
    """``shape`` with 1 for each axis that a reduction runs over."""
    reduced = reduced_axes(len(shape), axes, keepdim)
    return torch.Size(1 if a in reduced else n for a, n in enumerate(shape))


def reduced_axes(rank: int, axes: Any = (), _keepdim: bool = False) -> set[int]:
    """The axes that a reduction runs over, which is every one where none is named."""
    axes = (axes,) if isinstance(axes, int) else axes
    return {a % rank for a in axes} if axes and rank else set(range(rank))


def _plan_reduce(formula: Callable, x: Tensor, dim: tuple, options: dict[str, Any]) -> Execution:
    spec = ask_torch(formula, (x, *dim), **options)
    kept = keepdim_shape(x.shape, *dim)
    total = TensorSpec(kept, contiguous(kept), spec.dtype, x.device)
    count = x.numel() // kept.numel()
    plan = make_plan([], {"x": x}, [total], spec._replace(shape=x.shape), (formula.__name__, count))
    return Execution(plan, (spec._replace(strides=contiguous(spec.shape)),))


def _are_axes(axes: Any = (), _keepdim: bool = False) -> bool:
    """Whether ``axes`` is what a reduction usually gets; anything odder is torch's to read."""
    axes = axes if isinstance(axes, tuple | list) else () if axes is None else (axes,)
    return all(type(a) is int for a in axes)
