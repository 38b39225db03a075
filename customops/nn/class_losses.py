"""What losses of classes are made of: log-probabilities, the one of an index, and sums of these.

Classes lie along dimension 1 of logits, or the only one; an index is compared with the number of each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ..fusion.errors import untraceable
from ..fusion.operators import ClassIndex, PositionsAlong
from ..ops.binary import mul
from ..ops.call import tracing_hook
from ..ops.choice import where
from ..ops.comparison import eq, ge, logical_and, lt
from ..ops.reductions import sum
from ..ops.unary import neg
from .normalizations import log_softmax

MOST = 1 << 24  # classes whose numbers a float32 tells apart


class ClassLosses(NamedTuple):
    """The losses of class indices."""

    losses: Tensor  # of each index
    weights: Tensor  # of each, by which a mean divides; 0 for the index that is ignored


def class_dim(x: Tensor) -> int:
    """Return the dimension of classes."""
    return 0 if x.dim() == 1 else 1


def class_losses(
    x: Tensor,
    logs: tuple[Tensor, Tensor | None],
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    smoothing: float = 0.0,
) -> ClassLosses:
    """Return the losses of indices.

    ``logs`` are logarithms of probabilities, of the shape of ``x``, and what is to be subtracted from those of a row:
    from the one that an index picks, which takes no walk of its own along a row that registers do not hold.
    """
    odds, total = logs
    dim = class_dim(x)
    classes = _count_classes(x, target, weight, ignore_index)
    apply = cast("Callable[..., Tensor]", tracing_hook((x,)))  # these are traced, never called alone
    index, number = apply(ClassIndex, (target, classes, ignore_index)), apply(PositionsAlong, (x, dim))
    is_class, ignored = eq(index.unsqueeze(dim), number), eq(index, ignore_index)
    along = None if weight is None else along_classes(weight, x)
    ones = is_class.to(odds.dtype) if along is None else where(is_class, along, 0)
    own = sum(ones, dim)
    own_log = sum(where(is_class, odds, 0), dim)
    losses = neg(own_log if total is None else own_log - total.squeeze(dim))
    losses = losses if along is None else losses * own
    if smoothing > 0:
        all_logs = odds if total is None else odds - total
        every = sum(all_logs if along is None else mul(all_logs, along), dim)
        losses = losses * (1 - smoothing) - every * (smoothing / classes)
    in_range = logical_and(ge(index, 0), lt(index, classes))
    return ClassLosses(where(ignored, 0, where(in_range, losses, torch.nan)), where(ignored, 0, own))


def probability_losses(x: Tensor, target: Tensor, weight: Tensor | None, smoothing: float) -> Tensor:
    """Return the losses of probabilities ``target``, where ``x`` are logits."""
    classes = _count(x, weight)
    if smoothing > 0:
        target = target * (1 - smoothing) + smoothing / classes
    logs = log_softmax(x, class_dim(x))
    if weight is not None:
        logs = logs * along_classes(weight, x)
    return neg(sum(logs * target, class_dim(x)))


def along_classes(weight: Tensor, x: Tensor) -> Tensor:
    """Return the weights of classes with dimensions that broadcast with ``x``."""
    for _ in range(x.dim() - 2):
        weight = weight.unsqueeze(-1)
    return weight


def reduced(each: ClassLosses, reduction: str) -> Tensor:
    """Return the losses, or their mean or sum."""
    if reduction == "none":
        return each.losses
    total = sum(each.losses)
    return total if reduction == "sum" else total / sum(each.weights)


def _count_classes(x: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int) -> int:
    """Return how many classes there are; raise where torch will, and where a float is no index."""
    dim, shape = class_dim(x), x.shape
    if target.shape != shape[:dim] + shape[dim + 1 :]:
        raise untraceable("indices of another shape than the logits have cannot be traced", "call it outside")
    if max(shape[dim], abs(ignore_index)) >= MOST:
        raise untraceable(f"indices of {MOST} and more cannot be traced", "call it outside the function")
    return _count(x, weight)


def _count(x: Tensor, weight: Tensor | None) -> int:
    """Return how many classes there are; raise where there are none, or weights of others, which would broadcast."""
    classes = x.shape[class_dim(x)]
    if weight is not None and weight.shape != (classes,):
        raise untraceable(f"weights of {tuple(weight.shape)} for {classes} classes cannot be traced", "pass one each")
    if not classes:
        raise untraceable("losses of no classes cannot be traced", "call it outside the function")
    return classes
