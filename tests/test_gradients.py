"""Gradients, tangents and second derivatives against finite differences, and the backward pass by itself."""

from __future__ import annotations

import pytest
import torch

import customops
from benchmarks import memory
from customops.proof.checks import check_gradients, check_second_gradients, drawn, laid_out

from .cases import CALLS, LAYOUTS, ids, shapes_for
from .compare import assert_as_by_formula, cotangent
from .conftest import KERNELS

PATTERNS = [
    pytest.param(row, call, shapes, layout, id=f"{call}-{ids(shapes)}-{layout}")
    for row, call in CALLS
    for shapes in shapes_for(call)
    for layout in LAYOUTS
    if layout != "channels_last" or len(shapes[0]) == 4
]


@pytest.mark.sample(
    formulas="call, operator*layout, path*ranks, layout*ranks",
    kernels="call, operator*layout, path*ranks",
    compiled="call, operator*layout, path*ranks, layout*ranks",
)
@pytest.mark.parametrize(("row", "call", "shapes", "layout"), PATTERNS)
def test_gradients_match_finite_differences(row, call, shapes, layout, device, tally):
    """Those by formula do; those by kernel are equal to those by formula."""
    if KERNELS:
        assert_as_by_formula(laid_out(call, layout), drawn(row, shapes, device))
        tally("derivatives by kernel as by formula")
    else:
        check_gradients(row, call, shapes, layout, device)
        check_second_gradients(row, call, shapes, layout, device)
        tally("gradchecks", 2)


@pytest.mark.sample(
    formulas="call*ranks, operator*layout, layout*ranks", kernels="path*layout, ranks", compiled="path*layout, ranks"
)
@pytest.mark.parametrize(("row", "call", "shapes", "layout"), PATTERNS)
def test_backward_alone_returns_gradients_that_fit_their_inputs(row, call, shapes, layout, device):
    """Autograd would sum a gradient of the wrong shape to size by itself, and pay for it."""
    xs = [LAYOUTS[layout](row.draw(shape, seed=i, device=device)).requires_grad_() for i, shape in enumerate(shapes)]
    z = call.function(customops, *xs)
    grads = [g for g in _backward(z) if g is not None]
    assert [(g.shape, g.dtype) for g in grads] == [(x.shape, x.dtype) for x in xs]


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize(("row", "call"), [c for c in CALLS if c[1].arity == 2], ids=ids)
@pytest.mark.parametrize("wanted", [0, 1])
def test_backward_skips_a_gradient_nobody_wants(row, call, wanted, device):
    xs = [row.draw((2, 3), seed=i, device=device).requires_grad_(i == wanted) for i in range(2)]
    z = call.function(customops, *xs)
    grads = _backward(z)
    assert [g is not None for g in grads[:2]] == [wanted == 0, wanted == 1]
    want = torch.autograd.grad(call.function(torch, *xs), xs[wanted], cotangent(z))[0]
    torch.testing.assert_close(grads[wanted], want)


@pytest.mark.sample(kernels="path")
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_saves_no_more_bytes_than_torch(row, call, device):
    for wanted in range(1, 2**call.arity):
        saved = {}
        for library in (customops, torch):
            xs = [row.draw((2, 3, 4, 5), seed=i, device=device) for i in range(call.arity)]
            xs = [x.requires_grad_(bool(wanted >> i & 1)) for i, x in enumerate(xs)]
            assert call.function(library, *xs).requires_grad
            saved[library] = memory.saved(lambda xs=xs, library=library: call.function(library, *xs))
        assert saved[customops] <= saved[torch], f"{saved[customops]} bytes saved, torch {saved[torch]}"


@pytest.mark.sample(kernels="path")
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_tangents_match_torch(row, call, device):
    """Gradcheck's forward mode passes at its own loose tolerance; this does not."""
    xs = [row.draw((2, 3, 2, 2), seed=i, device=device) for i in range(call.arity)]
    tangents = [row.draw(x.shape, seed=7 + i, device=device) for i, x in enumerate(xs)]
    for library, results in ((customops, got := []), (torch, want := [])):
        results += torch.func.jvp(lambda *xs, lib=library: call.function(lib, *xs), tuple(xs), tuple(tangents))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


@torch.no_grad()
def _backward(z):
    """Return what backward does, before the engine mends it."""
    return z.grad_fn.apply(cotangent(z))
