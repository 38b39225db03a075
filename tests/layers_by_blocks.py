"""The fused layers that blocks are tried on, each with torch's own in its place. No assertions here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import customops as ops
from examples import layers

ROWS, COLUMN = (5, 11), (11,)  # lengths that no block of a few elements divides


class Layer(NamedTuple):
    """A layer, what it computes by torch, and the shapes of the tensors that both take."""

    name: str
    ours: Callable[..., Any]
    torchs: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]

    def __str__(self):
        return self.name

    def draw(self, dtype: torch.dtype = torch.float32, shapes: Any = None) -> list[Tensor]:
        """Return inputs, the same at each call."""
        random = torch.Generator().manual_seed(0)
        return [torch.randn(s, generator=random, dtype=torch.float64).to(dtype) for s in shapes or self.shapes]


def _of_example(row: layers.Comparison) -> Layer:
    shapes = tuple(ROWS if shape == layers.ROWS else COLUMN for shape in row.shapes)
    return Layer(row.ours.__name__, row.ours, row.torchs, shapes)


def _of_function(function: Callable[..., Any], *shapes: tuple[int, ...]) -> Layer:
    """Return the layer of a function whose first argument is a library of operators."""
    return Layer(function.__name__, ops.fuse(lambda *xs: function(ops, *xs)), lambda *xs: function(torch, *xs), shapes)


def softmax_of_columns(x: Tensor) -> Tensor:
    return layers.softmax(x, 0)


def log_softmax_of_columns(x: Tensor) -> Tensor:
    return layers.log_softmax(x, 0)


def softmax_of_both(x: Tensor) -> Tensor:
    return layers.softmax(x, (0, 1))  # type: ignore[arg-type]


def log_softmax_of_both(x: Tensor) -> Tensor:
    return layers.log_softmax(x, (0, 1))  # type: ignore[arg-type]


def centred(lib, x):
    return x - lib.mean(x, (0, 1), keepdim=True)


def rows_then_columns(lib, x, y):
    return lib.sum(lib.sigmoid(lib.sum(x * y, -1, keepdim=True)) * x, 0)


def several_results(lib, x, y):
    return x * y, lib.sum(x * y, 0), lib.amax(x, 1), lib.mean(y)


def broadcast_operands(lib, x, y, z):
    return lib.sum(lib.tanh(x * y + z), -1, keepdim=True) * x - y


def numbers_without_axes(lib, x, s, t):
    return x * s + lib.exp(t) * lib.mean(x)


def sums_of_constants(lib, x, y):
    """Add up values that lack an axis over which they are added."""
    return lib.sum(x * y, (0, 1)) + lib.sum(lib.exp(y) + 0 * x, 0, keepdim=True)


def powers(lib, x, y):
    return lib.pow(lib.abs(x) + 0.5, y) + (x * x + 1) ** -0.5 - 2**y


def power_of_maximum(lib, x, y):
    return 2.5 ** lib.maximum(x, y)


def extrema(lib, x, y):
    return lib.maximum(x, y) - lib.minimum(x, 2 * y) / lib.amin(lib.abs(x) + 1, (0, 1))


def signed_terms(lib, x, y):
    """Add and subtract products, with signs and numbers that steps are joined by."""
    return (x - 3 * y) + x * y - (-(x * x)) - (2 * y) * 0.25 - lib.sub(x, y * y, alpha=2) + lib.add(x, x)


LAYERS = (
    *map(_of_example, layers.COMPARISONS),
    Layer("softmax(0)", softmax_of_columns, lambda x: torch.softmax(x, 0), (ROWS,)),
    Layer("log_softmax(0)", log_softmax_of_columns, lambda x: torch.log_softmax(x, 0), (ROWS,)),
    Layer("softmax(0, 1)", softmax_of_both, lambda x: torch.softmax(x.flatten(), 0).view_as(x), (ROWS,)),
    Layer("log_softmax(0, 1)", log_softmax_of_both, lambda x: torch.log_softmax(x.flatten(), 0).view_as(x), (ROWS,)),
    _of_function(centred, ROWS),
    _of_function(rows_then_columns, ROWS, COLUMN),
    _of_function(several_results, ROWS, ROWS),
    _of_function(broadcast_operands, (3, 4, 5), (3, 1, 5), (4, 1)),
    _of_function(numbers_without_axes, ROWS, (), ()),
    _of_function(sums_of_constants, ROWS, COLUMN),
    _of_function(powers, ROWS, COLUMN),
    _of_function(power_of_maximum, ROWS, COLUMN),
    _of_function(extrema, ROWS, COLUMN),
    _of_function(signed_terms, ROWS, COLUMN),
)
BY_NAME = {layer.name: layer for layer in LAYERS}
