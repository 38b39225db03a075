"""Inductor computes ours, and fuses them with their neighbours as it does torch's."""

from __future__ import annotations

import pytest
import torch
from torch._inductor import metrics

import customops

from .cases import CALLS, one_of_each_path
from .compare import assert_equal, cotangent
from .compiling import COMPILER, FORMULAS, LIBRARIES, STATIC_AND_DYNAMIC, block, compiling_anew, every, leaf, rand


@pytest.fixture(autouse=True)
def _compile_anew(tmp_path):
    with compiling_anew(tmp_path):
        yield


@pytest.mark.sample(formulas="once")
@FORMULAS
@COMPILER
@STATIC_AND_DYNAMIC
@torch._inductor.config.patch({"cpp.simdlen": 1})  # vectors take g++ twice the time
def test_inductor_computes_calls_and_their_gradients(dynamic, full, tally):
    """It does so for a call of every other path; with ``--full`` for all calls."""
    calls = [call for _, call in (CALLS if full else one_of_each_path()[::2])]
    x = leaf(2, 3, 2, 2)
    function = torch.compile(lambda x: every(customops, x, calls), fullgraph=True, dynamic=dynamic)
    z, want = function(x), every(torch, x, calls)
    assert_equal(z, want)
    assert_equal(*(torch.autograd.grad(value, x)[0] for value in (z, want)))
    tally("calls compiled by Inductor", len(calls))


def kernels(function, dynamic, *xs) -> int:
    """Return how many kernels Inductor makes of ``function`` and, where an input requires a gradient, of backward."""
    torch.compiler.reset()
    metrics.reset()
    z = torch.compile(function, fullgraph=True, dynamic=dynamic)(*xs)
    if z.requires_grad:
        z.backward(cotangent(z))
    return metrics.generated_kernel_count


@pytest.mark.sample(formulas="once")
@FORMULAS
@COMPILER
@STATIC_AND_DYNAMIC
@torch._inductor.config.patch({"cpp.simdlen": 1})
def test_chain_is_fused_into_as_many_kernels_as_torchs(dynamic, full, tally):
    inputs = {"forward and backward": (leaf(64, 32), leaf(32))}
    if full:
        inputs["forward"] = rand(64, 32), rand(32)
    for what, xs in inputs.items():
        ours, torchs = (kernels(lambda *xs: block(library, *xs), dynamic, *xs) for library in LIBRARIES)  # noqa: B023 - used at once
        assert 0 < ours == torchs
        tally(f"kernels of a chain, {what}, {'dynamic' if dynamic else 'static'}", ours)


@FORMULAS
@COMPILER
def test_an_opaque_neighbour_costs_kernels():
    """This shows that the count above would tell if ours were opaque."""
    opaque = torch.library.custom_op(
        "customops_tests::opaque", lambda h: h.clone(), mutates_args=(), schema="(Tensor h) -> Tensor"
    )
    opaque.register_fake(torch.empty_like)
    whole, cut = (
        kernels(lambda *xs: block(customops, *xs, between), False, rand(64, 32), rand(32))  # noqa: B023 - used at once
        for between in (torch.abs, opaque)
    )
    assert cut > whole
