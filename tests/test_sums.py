"""Sums of gradients over a row, taken by terms: the values and gradients of both orders are torch's in float64."""

from __future__ import annotations

import pytest
import torch

import customops
from customops import fuse

from .compare import cotangent
from .conftest import KERNELS

LIKE_CENTRED = {
    "less the mean": lambda lib, x, y: x - lib.mean(x, -1, keepdim=True),
    "less twice the mean": lambda lib, x, y: lib.sub(x, lib.mean(x, -1, keepdim=True), alpha=2),
    "less another's mean": lambda lib, x, y: x - lib.mean(y, -1, keepdim=True),
    "less the mean of all": lambda lib, x, y: x - lib.mean(x),
    "less the mean along another axis": lambda lib, x, y: x - lib.mean(x, 0, keepdim=True),
    "less the sum": lambda lib, x, y: x - lib.sum(x, -1, keepdim=True),
    "plus the mean": lambda lib, x, y: x + lib.mean(x, -1, keepdim=True),
    "the mean less it": lambda lib, x, y: lib.mean(x, -1, keepdim=True) - x,
}
TERMS = {
    "of a sum": lambda lib, c, y, s: c + y * s,
    "of a difference": lambda lib, c, y, s: c * s - y * (s + 1),
    "of a product": lambda lib, c, y, s: (c * y) * s,
    "of a negative quotient": lambda lib, c, y, s: -(c / 3 + y) * s,
}


@pytest.mark.skipif(not KERNELS, reason="by formulas torch derives")
@pytest.mark.sample(kernels="centre, terms", compiled="terms")
@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("centre", LIKE_CENTRED)
def test_gradients_of_sums_of_terms_are_torchs_in_both_orders(centre, terms):

    x, y = torch.randn(2, 5, 7, dtype=torch.float64).unbind()

    def function(lib, x, y):
        centred = LIKE_CENTRED[centre](lib, x, y)
        scale = lib.rsqrt(lib.mean(centred * centred, -1, keepdim=True) + 1)
        row = lib.sum(TERMS[terms](lib, centred, y, scale), -1, keepdim=True)
        return row * centred * scale, row

    found = []
    for lib in (customops, torch):
        xs = [x.clone().requires_grad_(), y.clone().requires_grad_()]
        run = lambda *xs, lib=lib: function(lib, *xs)
        zs = (fuse(run) if lib is customops else run)(*xs)
        once = torch.autograd.grad(zs, xs, [cotangent(z) for z in zs], create_graph=True)
        found.append([*zs, *once, *torch.autograd.grad(once, xs, [cotangent(dx) for dx in once])])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def _centred_by(lib, x, mean):
    return x - lib.mean(mean, -1, keepdim=True)


ONCE_WRONG = {
    "a square over its sum": lambda lib, x, y, w: x / lib.sum(x * x, -1, keepdim=True),
    "a square and itself over one sum": lambda lib, x, y, w: (x * x) / (s := _total(lib, y)) + x / s,
    "alpha of what is not centred": lambda lib, x, y, w: lib.sum(
        w * lib.add(_centred_by(lib, x, x), y, alpha=2), -1, keepdim=True
    ),
    "centred by a detached mean": lambda lib, x, y, w: lib.sum(
        w * (_centred_by(lib, x, x.detach()) + y), -1, keepdim=True
    ),
}


def _total(lib, y):
    return lib.sum(lib.exp(y), -1, keepdim=True)


@pytest.mark.skipif(not KERNELS, reason="by formulas torch derives")
@pytest.mark.sample(compiled="")
@pytest.mark.parametrize("name", ONCE_WRONG)
def test_gradients_that_were_wrong_are_torchs_in_both_orders(name):
    x, y, w = torch.randn(5, 7).double(), torch.randn(5, 7).double(), torch.randn(5, 1).double()
    found = []
    for lib in (customops, torch):
        xs = [z.clone().requires_grad_() for z in (x, y, w)]
        run = lambda *xs, lib=lib: ONCE_WRONG[name](lib, *xs) * xs[2]
        z = (fuse(run) if lib is customops else run)(*xs)
        plain = torch.autograd.grad(z, xs, cotangent(z), allow_unused=True, retain_graph=True, materialize_grads=True)
        once = torch.autograd.grad(z, xs, cotangent(z), allow_unused=True, create_graph=True, materialize_grads=True)
        twice = torch.autograd.grad(once, xs, [cotangent(dx) for dx in once], allow_unused=True, materialize_grads=True)
        found.append([z, *plain, *once, *twice])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
