"""Which results of a fused function share a kernel: those of tensors that never meet, and sums over several axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import customops

from .compare import assert_same_outcome
from .conftest import MODE
from .test_fuse import draw, results


class Case(NamedTuple):
    """A function, and what its fused call launches on a GPU."""

    function: Callable[..., Tensor | tuple[Tensor, ...]]  # of a library and tensors
    shapes: tuple[tuple[int, ...], ...]
    launches: tuple[int, int]  # kernels forward and backward
    layout: Callable[[Tensor], Tensor] = lambda x: x  # how the second tensor lies in memory


def _turned(lib, q, k, c, s):
    def turn(x):
        a, b = x.chunk(2, -1)
        return x * c + torch.cat((-b, a), -1) * s

    return turn(q), turn(k)


def _turned_in_groups(lib, q, k, c, s):
    groups = q.chunk(q.shape[1] // k.shape[1], 1)
    return torch.cat([_turned(lib, g, k, c, s)[0] for g in groups], 1), _turned(lib, q, k, c, s)[1]


def _normed(lib, q, k, w):
    return [x * lib.rsqrt(lib.mean(x * x, -1, keepdim=True) + 1e-6) * w for x in (q, k)]


HEADS = (2, 3, 4, 6)  # samples, heads, tokens, elements
CASES = {
    "heads turned by the same angles": Case(_turned, (HEADS, HEADS, (4, 6), (4, 6)), (1, 3)),
    "other numbers of heads": Case(_turned, (HEADS, (2, 1, 4, 6), (4, 6), (4, 6)), (2, 3)),
    "tensors that meet nowhere": Case(lambda lib, x, y: (lib.exp(x), lib.tanh(y)), ((5, 7), (5, 7)), (1, 1)),
    "one that lies otherwise": Case(
        lambda lib, x, y: (lib.exp(x), lib.tanh(y)), ((6, 6), (6, 6)), (1, 1), lambda y: y.mT.contiguous().mT
    ),
    "other strides": Case(
        lambda lib, x, y: (lib.exp(x), lib.tanh(y)), ((5, 7), (5, 7)), (2, 1), lambda y: y.repeat(1, 2)[:, :7]
    ),
    "rows of lines that lie apart": Case(
        lambda lib, x, y: (lib.exp(x), lib.tanh(y)),
        ((2, 4, 64), (2, 4, 64)),
        (1, 1),
        lambda y: y.repeat(1, 2, 1)[:, :4],
    ),
    "groups of heads as many as others": Case(_turned_in_groups, ((2, 6, 4, 8), (2, 2, 4, 8), (4, 8), (4, 8)), (1, 7)),
    "as long as each other": Case(lambda lib, x, y: (lib.exp(x), lib.tanh(y)), ((5, 5), (5, 5)), (1, 1)),
    "norms of the same weights": Case(_normed, (HEADS, HEADS, (6,)), (1, 4)),
    "a row of one alone": Case(lambda lib, x, y: (x / lib.sum(x), lib.exp(y)), ((5,), (5,)), (2, 2)),
    "sums of columns": Case(lambda lib, x, y: (lib.sum(lib.exp(x), 0), lib.sum(y * y, 0)), ((7, 3), (7, 3)), (1, 1)),
    "sums along each axis": Case(
        lambda lib, x, y: (lib.sum(lib.exp(x + y), 0), lib.sum(lib.exp(x + y), 1)), ((5, 7), (7,)), (1, 1)
    ),
    "an outer product": Case(lambda lib, x, y: (lib.exp(x[:, None] - y), lib.exp(y)), ((5,), (5,)), (2, 1)),
    "a sum along what meets it there alone": Case(
        lambda lib, x, y: (lib.sum(x.detach()[:, None] + y, 0), lib.exp(x)), ((5,), (5,)), (2, 2)
    ),
    "a sum over two axes": Case(lambda lib, x, y, w: (lib.exp(x), lib.sum(y[:, None] * w)), ((5,), (5,), (5,)), (2, 1)),
}


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_torchs(name, device, blocks):
    blocks(8)
    case = CASES[name]
    xs = draw(case.shapes, device)
    xs[1] = case.layout(xs[1])
    fused = customops.fuse(lambda *xs: case.function(customops, *xs))
    got, want = results(fused, xs), results(lambda *xs: case.function(torch, *xs), xs)
    for mine, theirs in zip(got, want, strict=True):
        assert_same_outcome(mine, theirs)


@pytest.mark.sample(kernels="", compiled="")
@pytest.mark.parametrize("name", CASES)
def test_results_share_a_kernel_where_they_can(name):
    assert _launches(CASES[name]) == CASES[name].launches


SUMS = {
    "gradients of weights of channels": Case(
        lambda lib, x, w, b: torch.nn.functional.group_norm(x, 4, w, b), ((64, 64, 16, 16), (64,), (64,)), (1, 2)
    ),
    "vectors along each of four axes": Case(
        lambda lib, x, a, b, c, d: x * a * b * c * d,
        ((64, 64, 64, 64), (64, 1, 1, 1), (64, 1, 1), (64, 1), (64,)),
        (1, 8),
    ),
}


@pytest.mark.sample(kernels="", compiled="")
@pytest.mark.parametrize("name", SUMS)
def test_sums_over_several_sets_of_axes_share_a_kernel_where_they_can(name):
    assert _launches(SUMS[name]) == SUMS[name].launches


def _launches(case: Case) -> tuple[int, int]:
    """Return how many kernels a call launches, and its gradients."""
    if MODE != "formulas":
        pytest.skip("a dry run compiles")
    pytest.importorskip("triton", reason="a dry run compiles")
    xs = [torch.empty(shape) for shape in case.shapes]
    xs = [x.requires_grad_() for x in (xs[0], *[case.layout(x) for x in xs[1:2]], *xs[2:])]
    with customops.dry_run("cuda:90") as records:
        zs = customops.fuse(lambda *xs: case.function(customops, *xs))(*xs)
        forward, zs = len(records), (zs,) if isinstance(zs, Tensor) else zs
        torch.autograd.grad(zs, xs, list(map(torch.empty_like, zs)))
    return forward, len(records) - forward
