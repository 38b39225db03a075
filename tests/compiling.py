"""Helpers that tests of compiled code share."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

import customops

from .cases import CALLS, Call
from .conftest import DEVICE, MODE

LIBRARIES = (customops, torch)
STATIC_AND_DYNAMIC = pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
COMPILER = pytest.mark.skipif(not shutil.which("g++"), reason="Inductor needs g++")
FORMULAS = pytest.mark.skipif(MODE == "kernels", reason="compiled, formulas compute whatever the backend")


@contextmanager
def compiling_anew(directory) -> Iterator[None]:
    """Use no graph or kernel of an earlier test; take a number in a closure for a constant, which it is in a model."""
    torch.compiler.reset()
    with (
        pytest.MonkeyPatch.context() as patch,
        torch._dynamo.config.patch(specialize_int=True),
        torch._functorch.config.patch(enable_autograd_cache=False),
        torch._inductor.config.patch(fx_graph_cache=False, compile_threads=1),
    ):
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(directory))
        yield
    torch.compiler.reset()


def rand(*shape: int, **options) -> Tensor:
    """Return numbers from 0.4 to 1.9."""
    return (torch.rand(shape, dtype=torch.float64) * 1.5 + 0.4).to(device=DEVICE, **options)


def leaf(*shape: int) -> Tensor:
    """Return numbers from 0.4 to 1.9 that require a gradient."""
    return rand(*shape).requires_grad_()


def every(library, x: Tensor, calls: Iterable[Call] = tuple(call for _, call in CALLS)) -> Tensor:
    """Return the sum of all calls there are on an ``x`` of rank 4, each with a weight of its own."""
    total = x.sum()
    for i, call in enumerate(calls):
        total = total + (i + 7) * call.function(library, *(x, x[:1])[: call.arity]).sin().sum()
    return total


def block(library, x, gain, between=lambda h: h):
    """Compute a gated RMSNorm and a loss: ten operators in a chain."""
    power = library.mean(library.pow(x, 2), -1, keepdim=True)
    h = library.mul(library.mul(x, library.pow(library.add(power, 1e-6), -0.5)), gain)
    h = library.mul(h, library.sigmoid(library.sub(between(h), 1.0)))
    return library.sum(library.log(library.add(library.exp(library.relu(h)), 1)), -1)
