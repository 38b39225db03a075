"""Tensors without their memory, and what torch would return for them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

ShapeAndDtype = tuple[torch.Size, torch.dtype]
# Those of each gradient; or a dtype alone, where all gradients have it and the shape of the cotangent.
GradientSpecs = torch.dtype | Sequence[ShapeAndDtype]

CPU = torch.device("cpu")


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


def like_strides(x: Tensor) -> tuple[int, ...]:
    """Return the strides of what :func:`torch.empty_like` makes of ``x``, which is no meta tensor."""
    return torch.empty_like(x, device="meta").stride()


def packed(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a dense tensor of ``shape`` whose dimensions lie in the order of ``strides``."""
    dims = list(zip(shape, strides, strict=True))
    return tuple(prod(n for n, other in dims if n > 1 and other < stride) for stride in strides)


def broadcast_shapes(*shapes: Sequence[int]) -> torch.Size:
    """Return :func:`torch.broadcast_shapes` of shapes, which would import SymPy. Raises RuntimeError as torch does."""
    zero = torch.zeros((), device="cpu")
    return torch.broadcast_tensors(*map(zero.expand, shapes))[0].shape


class Miniatures:
    """Small tensors laid out as larger ones, and what torch's results for them tell about those for the larger ones.

    Meta tensors would tell as much, but torch computes with them in Python, and imports SymPy and ``torch._dynamo`` to
    do so, which takes 2.5 s. Torch chooses the strides of a result by the order of its inputs' sizes and strides, by
    which of them are equal, by what has size 1 or stride 0, and by which inputs are dense: miniatures keep all of it.
    """

    def __init__(self, tensors: Iterable[Tensor], device: torch.device | None = None):
        """Make them on ``device``, or else each on the device of its tensor."""
        self._device = device
        sizes = {n for x in tensors for n in x.shape}
        self._sizes = (0, 1, *sorted(sizes - {0, 1}))  # the size that each size of a miniature stands for
        self._small = {n: i for i, n in enumerate(self._sizes)}

    def of(self, x: Tensor, element: int = 1) -> Tensor:
        """Return the miniature of one of the tensors; its elements are all this one."""
        shape, strides = [self._small[n] for n in x.shape], x.stride()
        if _is_dense(x.shape, strides):
            strides = packed(shape, strides)
        else:
            order = sorted({0, *strides})
            strides = tuple([2 * order.index(stride) for stride in strides])  # even, so it is not dense either
        flat = torch.full((_span(shape, strides),), element, dtype=x.dtype, device=self._device or x.device)
        return flat.as_strided(shape, strides)

    def spec(self, z: Tensor) -> TensorSpec:
        """Return what the result is that ``z``, torch's result for miniatures, stands for."""
        shape = torch.Size([self._sizes[n] for n in z.shape])
        return TensorSpec(shape, packed(shape, z.stride()), z.dtype, z.device)


def _is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Return whether the elements fill a range of memory, each at an address of its own."""
    dense = packed(shape, strides)
    is_packed = all([n == 1 or a == b for n, a, b in zip(shape, strides, dense, strict=True)])
    return is_packed and _span(shape, strides) == prod(shape)


def _span(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Return how many elements lie from the first of a tensor to its last."""
    return 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True) if n)


def ask_torch(formula: Callable, args: tuple, **options) -> TensorSpec:
    """Return what torch would return for these arguments; raise what torch would raise."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a miniature of ``out`` is resized, the caller's may not be
            return _ask_for_miniatures(formula, args, options)
    except Exception:
        formula(*args, **options)  # so that the error speaks of the caller's tensors
        raise


def infer(formula: Callable, args: tuple, options: dict[str, Any]) -> TensorSpec | None:
    """Return what torch would return, but on the CPU; None where it refuses, as it will say itself."""
    try:
        return _ask_for_miniatures(formula, args, options, CPU)
    except (RuntimeError, IndexError, TypeError, NotImplementedError, ValueError):
        return None


def _ask_for_miniatures(
    formula: Callable, args: tuple, options: dict[str, Any], device: torch.device | None = None
) -> TensorSpec:
    """Return what torch's result is, as its result for miniatures on ``device`` tells."""
    tensors = [x for x in (*args, *options.values()) if isinstance(x, Tensor)]
    miniatures = Miniatures(tensors, device)
    stand_ins = [miniatures.of(x) if isinstance(x, Tensor) else x for x in args]
    named = {name: miniatures.of(x) if isinstance(x, Tensor) else x for name, x in options.items()}
    return miniatures.spec(formula(*stand_ins, **named))


def spec_of(x: Tensor) -> TensorSpec:
    """Return what ``x`` is but for its memory."""
    return TensorSpec(x.shape, x.stride(), x.dtype, x.device)
