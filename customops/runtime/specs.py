"""Tensors without their memory, and what torch would return for them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

ShapeAndDtype = tuple[torch.Size, torch.dtype]
# Those of each gradient; or a dtype alone, where all gradients have it and the shape of the cotangent.
GradientSpecs = torch.dtype | Sequence[ShapeAndDtype]


class TensorSpec(NamedTuple):
    """A tensor without its memory."""

    shape: torch.Size
    strides: tuple[int, ...]  # in elements
    dtype: torch.dtype
    device: torch.device


def strides_of(x: Tensor | TensorSpec) -> tuple[int, ...]:
    """Return the strides of a tensor or of its spec, in elements."""
    return x.stride() if isinstance(x, Tensor) else x.strides


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a tensor of this shape whose elements lie in order."""
    strides, step = [1] * len(shape), 1
    for i in range(len(shape) - 1, -1, -1):
        strides[i] = step
        step *= max(shape[i], 1)
    return tuple(strides)


def ask_torch(formula: Callable, args: tuple, **options) -> TensorSpec:
    """Return what torch would return for these arguments; raise what torch would raise.

    It runs ``formula`` on single elements, where all of torch's checks are made, and on meta tensors for the shape.
    """

    def single(spec: TensorSpec) -> Tensor:
        return torch.ones([1] * len(spec.shape), dtype=spec.dtype, device=spec.device)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an ``out`` of one element is resized, the caller's may not be
            one = _on_stand_ins(single, formula, args, options)
            many = _on_stand_ins(on_meta, formula, args, options)
    except Exception:
        formula(*args, **options)  # so that the error speaks of the caller's tensors
        raise
    return TensorSpec(many.shape, many.stride(), one.dtype, one.device)


def infer_on_meta(formula: Callable, args: tuple, options: dict[str, Any]) -> TensorSpec | None:
    """Return the shape and strides of what torch would return; None where it refuses, as it will say itself."""
    try:
        return spec_of(_on_stand_ins(on_meta, formula, args, options))
    except (RuntimeError, IndexError, TypeError, NotImplementedError, ValueError):
        return None


def _on_stand_ins(
    make: Callable[[TensorSpec], Tensor], formula: Callable, args: tuple, options: dict[str, Any]
) -> Tensor:
    """Evaluate ``formula`` on stand-ins that ``make`` makes of the specs of the tensors."""
    stand_ins = [make(spec_of(arg)) if isinstance(arg, Tensor) else arg for arg in args]
    return formula(*stand_ins, **{k: make(spec_of(v)) if isinstance(v, Tensor) else v for k, v in options.items()})


def on_meta(spec: TensorSpec) -> Tensor:
    """Return a meta tensor like ``spec``."""
    return torch.empty_strided(spec.shape, spec.strides, dtype=spec.dtype, device="meta")


def spec_of(x: Tensor) -> TensorSpec:
    """Return what ``x`` is but for its memory."""
    return TensorSpec(x.shape, x.stride(), x.dtype, x.device)
