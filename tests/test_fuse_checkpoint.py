"""A checkpoint may compute a call once by kernels and once by formulas: it then saves the same both times."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import customops
from customops import fuse

from .cases import CALLS, ids
from .compare import assert_equal, assert_same_outcomes, cotangent, outcome
from .conftest import KERNELS
from .programs import PROGRAMS
from .test_fuse import draw, small
from .test_fuse_states import PassDispatch, PassFunctions

MODES = {
    "none": nullcontext,
    "dispatch mode": PassDispatch,
    "function mode": PassFunctions,
    "formulas": lambda: customops.backend("torch"),
    "dual level": torch.autograd.forward_ad.dual_level,
}


def gradients(function, xs, forward: str, backward: str):
    """Return the gradients of a checkpoint under one mode, computed again under another."""
    leaves = [x.detach().requires_grad_(x.requires_grad) for x in xs]
    with MODES[forward]():
        z = checkpoint(function, *leaves, use_reentrant=False)
    zs = z if isinstance(z, tuple | list) else (z,)
    with MODES[backward]():
        return torch.autograd.grad(zs, [x for x in leaves if x.requires_grad], [cotangent(z) for z in zs])


@pytest.mark.sample(formulas="program, forward*backward", kernels="program, forward*backward")
@pytest.mark.parametrize("backward", MODES)
@pytest.mark.parametrize("forward", MODES)
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_a_fused_call_is_computed_again_under_another_mode(program, forward, backward, device):
    xs = [x.requires_grad_() for x in draw(small(program.small, 3), device)]
    got = gradients(fuse(program.of(customops)), xs, forward, backward)
    for mine, theirs in zip(got, gradients(program.of(torch), xs, "none", "none"), strict=True):
        assert_equal(mine, theirs)


@pytest.mark.sample(
    formulas="operator, path*forward, path*backward, forward*backward", kernels="path, forward*backward"
)
@pytest.mark.parametrize("backward", MODES)
@pytest.mark.parametrize("forward", MODES)
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_an_operator_is_computed_again_under_another_mode(row, call, forward, backward, device):
    for wanted in range(1, 1 << call.arity):
        xs = [
            row.draw((3, 4), torch.float64, seed).to(device).requires_grad_(bool(wanted >> seed & 1))
            for seed in range(call.arity)
        ]
        got, want = (
            outcome(gradients, lambda *xs, lib=lib: call.function(lib, *xs), xs, forward, backward)
            for lib in (customops, torch)
        )
        assert_same_outcomes(got, want)


def test_tangents_of_a_power_under_hooks_save_nothing(device):
    x, y = draw([(3,), (3,)], device)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        tangents = [torch.func.jvp(lambda x, lib=lib: lib.pow(x, y), (x,), (x,))[1] for lib in (customops, torch)]
    assert_equal(*tangents)


@pytest.mark.parametrize("hooks", [True, False])
def test_a_fused_call_saves_no_statistics_under_hooks(hooks, device):
    """It saves no value that only kernels return, which formulas do not know of."""
    (x,), saved = draw([(3, 300)], device), []
    context = torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t.data_ptr()), t)[1], lambda t: t)
    with context if hooks else nullcontext():
        z = fuse(lambda x: customops.log(customops.sum(customops.exp(x), -1, True)))(x.requires_grad_())
    if KERNELS:
        assert z.grad_fn.name() == "FusedFunctionBackward"
        assert (saved if hooks else [t.data_ptr() for t in z.grad_fn.saved_tensors[:1]]) == [x.data_ptr()]
        assert hooks or len(z.grad_fn.saved_tensors) == 2
    (got,) = torch.autograd.grad(z, x, cotangent(z))
    (want,) = torch.autograd.grad(torch.logsumexp(x, -1, True), x, cotangent(z))
    assert_equal(got, want)
