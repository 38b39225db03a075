"""Derivatives of derivatives, and of batches, against torch's; two trainings that need them are in test_demo.py."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import grad

import customops

from .cases import CALLS, ids, shapes_for
from .compare import assert_same_outcome, cotangent

PATTERNS = [
    pytest.param(row, call, shapes, id=f"{call}-{ids(shapes)}") for row, call in CALLS for shapes in shapes_for(call)
]


def derivatives(library, row, call, shapes, order, device, dtype):
    """Return what the last of ``order`` calls of grad gives, each of what the one before gave.

    The first cotangent is recorded like the inputs: backward is a function of it too. The last call records nothing, so
    that kernels run in it. None where nothing is left to differentiate.
    """
    xs = [row.draw(shape, dtype, seed=i, device=device).requires_grad_() for i, shape in enumerate(shapes)]
    found = [call.function(library, *xs)]
    g = cotangent(found[0]).requires_grad_()
    cotangents = [g]
    for left in reversed(range(order)):
        found = grad(found, (*xs, g), cotangents, create_graph=left > 0, allow_unused=True)
        if left:
            found = [d for d in found if d is not None and d.requires_grad]
            if not found:
                return None
            cotangents = list(map(cotangent, found))
    return found


@pytest.mark.sample(
    formulas="call*order, operator*ranks, path*shapes",
    kernels="operator, path*order",
    compiled="operator, path*order, path*ranks",
)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("row", "call", "shapes"), PATTERNS)
def test_first_three_derivatives_match_torch(row, call, shapes, order, device, tally):
    for dtype in (torch.float64, torch.float32):
        got, want = (derivatives(lib, row, call, shapes, order, device, dtype) for lib in (customops, torch))
        for mine, theirs in zip(got or [None], want or [None], strict=True):
            assert_same_outcome(mine, theirs)
        tally("derivatives of orders 1 to 3", len(want or ()))


@pytest.mark.sample(formulas="call, path*ranks, path*create_graph", kernels="path, create_graph", compiled="path")
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize(("row", "call", "shapes"), PATTERNS)
def test_batches_of_cotangents_match_torch(row, call, shapes, create_graph, device):
    results = []
    for library in (customops, torch):
        xs = [row.draw(shape, seed=i, device=device).requires_grad_() for i, shape in enumerate(shapes)]
        z = call.function(library, *xs)
        g = torch.stack([cotangent(z), -2 * cotangent(z), cotangent(z).flip(-1) if z.dim() else cotangent(z)])
        batched = grad(z, xs, g, is_grads_batched=True, create_graph=create_graph)
        again = [d.pow(2).sum() for d in batched if d.requires_grad]
        results.append(batched + (grad(again, xs, allow_unused=True) if again else ()))
    for mine, theirs in zip(*results, strict=True):
        assert_same_outcome(mine, theirs)


def test_first_derivatives_without_a_graph_cannot_be_differentiated_again(device):
    for library in (customops, torch):
        x = torch.ones(3, device=device, requires_grad=True)
        (dx,) = grad(library.exp(x).sum(), x)
        assert not dx.requires_grad
        with pytest.raises(RuntimeError, match="does not require grad"):
            grad(dx.sum(), x)
