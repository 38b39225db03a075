"""Every operator at every special number: value and gradient equal to torch's, nan for nan, sign of zero included."""

from __future__ import annotations

from itertools import product

import pytest
import torch

import customops

from .cases import CALLS, ids
from .compare import TOLERANCE, outcome
from .conftest import KERNELS

EDGES = (0.0, -0.0, 1.0, -1.0, float("inf"), float("-inf"), float("nan"), 1e30, -1e30)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
ELEMENTWISE = [call for row, call in CALLS if row.name not in ("mean", "sum")]


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("call", ELEMENTWISE, ids=ids)
def test_edges_have_torchs_value_and_gradients(call, dtype, tally):
    """All tuples of special inputs, each with all special incoming gradients."""
    *columns, g = torch.tensor(list(product(EDGES, repeat=call.arity + 1)), dtype=dtype).unbind(1)
    _assert_agree(call.function, columns, g)
    tally("edge points", g.numel())


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("number", EDGES, ids=str)
@pytest.mark.parametrize("name", ["add", "sub", "mul", "pow"])
def test_edge_numbers_have_torchs_value_and_gradients(name, number, dtype, tally):
    if KERNELS and abs(number) == 1e30 and dtype.itemsize == 2:
        pytest.skip("torch's CPU kernels round a number to the half type, its GPU kernels and ours keep float32")
    x, g = torch.tensor(list(product(EDGES, repeat=2)), dtype=dtype).unbind(1)
    for function in (
        lambda lib, x: getattr(lib, name)(x, number),
        lambda lib, x: getattr(lib, name)(number, x),
    ):
        if isinstance(want := outcome(function, torch, x), type):  # 1e30 is no float16
            assert outcome(function, customops, x) is want
        else:
            _assert_agree(function, [x], g)
            tally("edge points", g.numel())


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("name", ["mean", "sum"])
def test_reductions_of_edges_have_torchs_value_and_gradients(name, dtype, tally):
    *columns, g = torch.tensor(list(product(EDGES, repeat=3)), dtype=dtype).unbind(1)
    _assert_agree(lambda lib, x: getattr(lib, name)(x, 1), [torch.stack(columns, 1)], g)
    tally("edge points", g.numel())


def _assert_agree(function, columns, g):
    results = []
    for library in (customops, torch):
        xs = [x.clone().requires_grad_() for x in columns]
        z = function(library, *xs)
        results.append([z.detach(), *torch.autograd.grad(z, xs, g)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, equal_nan=True, **TOLERANCE[g.dtype])
        zeros = want == 0
        assert torch.equal(got[zeros].signbit(), want[zeros].signbit()), "a zero has the wrong sign"
