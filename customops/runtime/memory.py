"""Memory for results: real, or in a dry run addresses alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import prod
from mmap import mmap

import torch
from torch import Tensor

from .. import config
from .specs import TensorSpec, like_strides, spec_of

LARGE_BYTES = 1 << 28  # bytes; to map less takes longer than to allocate it
_PRIVATE_ANONYMOUS_NORESERVE = 0x4022  # Linux's flags, the last of which Python names from 3.13 on


def empty(shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor whose elements are to be written; in a dry run, where none are, a large one takes no memory."""
    if config.dry_run_target is None or prod(shape) * dtype.itemsize < LARGE_BYTES:
        return torch.empty_strided(shape, strides, dtype=dtype, device=device)
    return unbacked(shape, strides, dtype)


def write_zeros(x: Tensor) -> None:
    """Write zeros to a tensor that was allocated, or a part of it; the memory of a large one in a dry run is zero."""
    if config.dry_run_target is None or x.untyped_storage().nbytes() < LARGE_BYTES:
        x.zero_()


def allocate(specs: Iterable[TensorSpec], like: int | None, args: Sequence) -> list[Tensor]:
    """Return a tensor for each of ``specs``, as :func:`empty` does, which is called only where it has a choice.

    ``like`` is what :func:`like_argument` found for ``specs`` and arguments such as ``args``.
    """
    if like is not None:
        return [torch.empty_like(args[like])]
    if config.dry_run_target is not None:
        return [empty(*spec) for spec in specs]
    return [torch.empty_strided(shape, strides, dtype=dtype, device=device) for shape, strides, dtype, device in specs]


def like_argument(specs: Sequence[TensorSpec], args: Sequence) -> int | None:
    """Return the position of an argument that ``torch.empty_like`` makes the only one of ``specs`` of, if there is one.

    It takes half the time of a tensor made of shape, strides, dtype and device.
    """
    if len(specs) != 1:
        return None
    (spec,) = specs
    if config.dry_run_target is not None and prod(spec.shape) * spec.dtype.itemsize >= LARGE_BYTES:
        return None
    for i, x in enumerate(args):
        if isinstance(x, Tensor) and spec_of(x) == spec and like_strides(x) == spec.strides:
            return i
    return None


@lru_cache(maxsize=64)
def positions(sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the numbers from 0 on in this shape. They are one tensor for all that reads them, and are not written."""
    with torch.inference_mode(False):
        return torch.arange(prod(sizes), dtype=dtype, device=device).view(sizes)


def unbacked(shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype, shift: int = 0) -> Tensor:
    """Return a tensor on the CPU, ``shift`` elements behind a whole page, whose pages come when they are touched.

    So it may be larger than the machine's memory, as long as nobody reads or writes it.
    """
    length = shift + 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True) if n)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flat = torch.frombuffer(mmap(-1, length * dtype.itemsize, flags=_PRIVATE_ANONYMOUS_NORESERVE), dtype=dtype)
    return flat.as_strided(tuple(shape), tuple(strides), shift)


def unbacked_like(x: Tensor) -> Tensor:
    """Return an unbacked tensor laid out as :func:`torch.empty_like` lays one out."""
    like = torch.empty_like(x, device="meta")
    return unbacked(like.shape, like.stride(), like.dtype)
