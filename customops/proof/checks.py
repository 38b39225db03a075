"""Checks of one call of an operator: derivatives against finite differences, edges against torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import customops

from .cases import EDGES, LAYOUTS, Call, OperatorCase
from .compare import STRICT, TOLERANCE, assert_agree_at_edges

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def drawn(row: OperatorCase, shapes: Sequence[Sequence[int]], device: str = "cpu") -> list[Tensor]:
    """Return inputs in float64 that require gradients, of these shapes."""
    return [row.draw(shape, seed=i, device=device).requires_grad_() for i, shape in enumerate(shapes)]


def laid_out(call: Call, layout: str):
    """Return a call of ours on inputs in a layout, one of LAYOUTS."""
    return lambda *xs: call.function(customops, *map(LAYOUTS[layout], xs))


def check_gradients(row: OperatorCase, call: Call, shapes: Sequence[Sequence[int]], layout: str, device: str = "cpu"):
    """Raise an error unless gradients and tangents match finite differences."""
    gradcheck(laid_out(call, layout), drawn(row, shapes, device), check_forward_ad=True, **STRICT)


def check_second_gradients(row: OperatorCase, call: Call, shapes, layout: str, device: str = "cpu"):
    """Raise an error unless the gradients of gradients match finite differences."""
    gradgradcheck(laid_out(call, layout), drawn(row, shapes, device), **STRICT)


def edges(arity: int, dtype: torch.dtype, device: str = "cpu") -> Iterator[Tensor]:
    """Return all tuples of special numbers: a column for each input, then one of incoming gradients."""
    return iter(torch.tensor(list(product(EDGES, repeat=arity + 1)), dtype=dtype, device=device).unbind(1))


def check_edges(call: Call, dtype: torch.dtype, device: str = "cpu") -> int:
    """Raise AssertionError unless an elementwise call has torch's value and gradients at edges; return how many."""
    *columns, g = edges(call.arity, dtype, device)
    assert_agree_at_edges(call.function, columns, g)
    return g.numel()


def check_edges_of_rows(name: str, dtype: torch.dtype, device: str = "cpu") -> int:
    """Raise AssertionError unless a reduction of two special numbers has torch's value and gradients.

    Of 0 and -0 torch's amax and amin give the first that they meet, and that depends on how they walk a layout.
    """
    *columns, g = edges(2, dtype, device)
    reverse = lambda lib, x: getattr(lib, name)(x.flip(1), 1)  # noqa: E731
    assert_agree_at_edges(lambda lib, x: getattr(lib, name)(x, 1), [torch.stack(columns, 1)], g, reverse)
    return g.numel()


def check_edges_of_products(dtype: torch.dtype, step: int = 7, device: str = "cpu") -> int:
    """Raise AssertionError unless products of rows of special numbers have torch's value and gradients.

    One row at a time, of all rows each so many: torch divides by no element if one of all rows is 0, by each if none
    is. A zero gradient has either sign.
    """
    finite, points = [x for x in EDGES if abs(x) <= 1], 0
    for row in [*product(EDGES, finite, finite)][::step]:
        for g in (1.0, float("inf"), float("nan")):
            x = torch.tensor([row], dtype=dtype, device=device)
            if x[0, 0].isfinite() or 0 not in row:
                got, want = (_product(library, x, g) for library in (customops, torch))
                torch.testing.assert_close(got, want, equal_nan=True, **TOLERANCE[dtype])
                points += 3
    return points


def _product(library: Any, x: Tensor, g: float) -> tuple[Tensor, ...]:
    """Return the product of a row, and its gradient."""
    leaf = x.clone().requires_grad_()
    z = library.prod(leaf, 1)
    return z.detach(), *torch.autograd.grad(z, leaf, torch.full_like(z, g))
