"""No write where none belongs: guard bands around everything a call allocates, and inputs left as they were."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import customops

from .cases import BROADCASTS, CALLS, LAYOUTS, ids, shapes_for
from .compare import assert_equal, cotangent
from .conftest import KERNELS, NO_KERNEL

BAND = 64  # elements before and after


class GuardBands:
    """A context in which every tensor is allocated between bands of a known value; ``check`` looks at them.

    A function mode would see allocations too, but under one no kernel runs.
    """

    def __init__(self):
        self.storages: list[torch.Tensor] = []
        self.patch = pytest.MonkeyPatch()

    def __enter__(self):
        for name in ("empty", "empty_like", "empty_strided"):
            self.patch.setattr(torch, name, partial(self.allocate, getattr(torch, name)))
        return self

    def __exit__(self, *_):
        self.patch.undo()

    def allocate(self, factory, *args, **options):
        """Allocate what ``factory`` would, but between bands."""
        z = factory(*args, **options)
        if z.is_meta:
            return z
        extent = sum((n - 1) * s for n, s in zip(z.shape, z.stride(), strict=True)) + 1
        guarded = torch.full((extent + 2 * BAND,), 77, dtype=z.dtype, device=z.device)
        guarded[BAND:-BAND] = float("nan") if z.is_floating_point() else 99
        self.storages.append(guarded)
        return guarded.as_strided(z.shape, z.stride(), BAND)

    def check(self) -> int:
        """Assert that no band changed; return the number of allocations."""
        for guarded in self.storages:
            band = torch.full((BAND,), 77, dtype=guarded.dtype, device=guarded.device)
            assert torch.equal(guarded[:BAND], band), "a write before an output"
            assert torch.equal(guarded[-BAND:], band), "a write past an output"
        return len(self.storages)


@pytest.mark.sample(formulas="operator, layout", kernels="call, layout", compiled="call, operator*layout")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_kernels_write_their_outputs_and_nothing_else(row, call, layout, device):
    for shapes in shapes_for(call)[-5:]:
        xs = [LAYOUTS[layout](row.draw(shape, seed=i, device=device)) for i, shape in enumerate(shapes)]
        before = [x.clone() for x in xs]
        leaves = [x.detach().requires_grad_() for x in xs]
        with GuardBands() as bands:
            z = call.function(customops, *leaves)
            g = cotangent(z)
            kept = g.clone()
            grads = torch.autograd.grad(z, leaves, g)
        assert bands.check() or not KERNELS, "they allocate what they write"
        for x, old in zip([*xs, g], [*before, kept], strict=True):
            assert torch.equal(x, old), "an input was written"
        want = call.function(torch, *leaves)
        assert_equal(z.detach(), want.detach())
        for got, theirs in zip(grads, torch.autograd.grad(want, leaves, g), strict=True):
            assert_equal(got, theirs)


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize("shapes", BROADCASTS, ids=ids)
def test_writing_in_place_or_into_out_leaves_its_surroundings(shapes, device):
    x, y = (torch.rand(shape, device=device) + 0.5 for shape in shapes)
    want = x * y
    buffer = torch.full((*want.shape, 3), 77.0, device=device)
    assert_equal(customops.mul(x, y, out=buffer[..., 1]), want)
    buffer[..., 1] = x
    customops.mul_(buffer[..., 1], y)
    assert_equal(buffer[..., 1], want)
    assert bool((buffer[..., 0] == 77).all() and (buffer[..., 2] == 77).all())


@pytest.mark.skipif(not KERNELS, reason=NO_KERNEL)
def test_a_gradient_by_kernels_is_laid_out_as_the_cotangent(device):
    x = torch.rand(2, 3, 4, 5, device=device).contiguous(memory_format=torch.channels_last).requires_grad_()
    for g in (torch.ones_like(x), torch.ones_like(x).contiguous()):
        ours, theirs = (torch.autograd.grad(lib.exp(x), x, g)[0].stride() for lib in (customops, torch))
        assert ours == theirs == g.stride()
