"""Parts of ``fuse`` where they meet: views beside compositions, tensors around a function, masks of half types."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import customops

from .marks import formulas_only

pytestmark = formulas_only


@pytest.fixture(autouse=True)
def _by_blocks(blocks):
    blocks(8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_half_tensor_is_compared_with_the_number_in_its_dtype(dtype):
    x = torch.tensor([0.1, 0.2, 0.3], dtype=dtype)
    for compare in (torch.ge, torch.gt, torch.eq, torch.lt):
        choose = lambda x, compare=compare: torch.where(compare(x, 0.1), x, -x)
        torch.testing.assert_close(customops.fuse(choose)(x), choose(x), rtol=0, atol=0)


def test_a_tensor_around_the_function_is_seen_in_the_shape_of_a_stand_in():
    p, x = torch.randn(6), torch.randn(4, 6)
    for function in (
        lambda x: p.expand_as(x) * x,
        lambda x: p.reshape_as(x[0].unflatten(0, (2, 3))) * x.unflatten(1, (2, 3)),
        lambda x: p.view_as(x[0].unflatten(0, (3, 2))) + x.unflatten(1, (3, 2)),
    ):
        torch.testing.assert_close(customops.fuse(function)(x), function(x))


@pytest.mark.parametrize("rows", [3, 30_000])
def test_a_function_of_torch_of_a_tensor_around_the_function_and_a_traced_one_by_name(rows, monkeypatch):
    """Torch's own function computes small tensors, but a traced one among them has no elements yet."""
    monkeypatch.undo()  # of blocks: what is small is small
    weight, x = torch.randn(4), torch.randn(rows, 4)
    for function in (
        lambda w: F.layer_norm(x, (4,), weight=w),
        lambda w: customops.nn.functional.rms_norm(x, (4,), weight=w),
        lambda w: F.mse_loss(x, target=w.expand_as(x), reduction="none"),
        lambda w: torch.max(x, other=w.expand_as(x)),
    ):
        torch.testing.assert_close(customops.fuse(function)(weight), function(weight))


def test_a_sparse_cotangent_has_the_gradients_of_a_dense_one():
    """An embedding's table that a fused function makes has one."""
    index = torch.tensor([2, 0, 2])
    for function in (lambda x: x * torch.sigmoid(x), lambda x: torch.softmax(x, -1)):
        found = []
        for f, sparse in ((customops.fuse(function), True), (function, False)):
            x = torch.linspace(-2, 2, 24).view(4, 6).requires_grad_()
            F.embedding(index, f(x), sparse=sparse).square().sum().backward()
            found.append(x.grad)
        torch.testing.assert_close(*found)


def test_max_over_a_dimension_that_is_divided_elsewhere_has_torchs_gradient():
    y = torch.randn(4, 6, requires_grad=True)
    function = lambda y: y.flatten().max(-1).values * y.sum(1)
    got, want = (torch.autograd.grad(f(y).sum(), y) for f in (customops.fuse(function), function))
    torch.testing.assert_close(got, want)


def test_a_gradient_that_is_zero_by_derivation_is_there():
    x, p = torch.randn(4, 6, requires_grad=True), torch.randn(6, requires_grad=True)
    z = customops.fuse(lambda x, p: (x + p).var(0))(x, p)
    _, gradient = torch.autograd.grad(z.sum(), [x, p])
    assert torch.equal(gradient, torch.zeros(6))
