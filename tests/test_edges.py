"""Every operator at every special number: value and gradient equal to torch's, nan for nan, sign of zero included."""

from __future__ import annotations

from itertools import product

import pytest
import torch

import customops
from customops.ops.products import Prod
from customops.ops.reductions import slope_by_formula
from customops.proof.checks import FLOATS, check_edges_of_products, check_edges_of_rows, edges

from .cases import EDGES, ELEMENTWISE, REDUCTIONS, Call, ids
from .compare import assert_agree_at_edges, assert_same_outcome, outcome
from .conftest import KERNELS
from .marks import skip_changed_derivative

INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize("dtype", FLOATS, ids=ids)
@pytest.mark.parametrize("call", ELEMENTWISE, ids=ids)
def test_edges_have_torchs_value_and_gradients(call, dtype, device, tally):
    """They have them at all tuples of special inputs, each with all special incoming gradients."""
    skip_changed_derivative(call)
    *columns, g = edges(call.arity, dtype, device)
    if KERNELS and call.name == "rsqrt(x)" and dtype == torch.bfloat16:
        g = torch.where(g.isinf(), 2, g)  # torch rounds z³ to 0, which times inf is nan; our kernels keep float32
    assert_agree_at_edges(call.function, columns, g)
    tally("edge points", g.numel())


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize("dtype", FLOATS, ids=ids)
@pytest.mark.parametrize("number", EDGES, ids=str)
@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "pow"])
def test_edge_numbers_have_torchs_value_and_gradients(name, number, dtype, device, tally):
    if KERNELS and device == "cpu" and abs(number) == 1e30 and dtype.itemsize == 2:
        pytest.skip("torch's CPU kernels round a number to the half type, its GPU kernels and ours keep float32")
    x, g = edges(1, dtype, device)
    for function in (
        lambda lib, x: getattr(lib, name)(x, number),
        lambda lib, x: getattr(lib, name)(number, x),
    ):
        if isinstance(want := outcome(function, torch, x), type):  # 1e30 is no float16
            assert outcome(function, customops, x) is want
        else:
            assert_agree_at_edges(function, [x], g)
            tally("edge points", g.numel())


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize("dtype", FLOATS, ids=ids)
@pytest.mark.parametrize("name", [name for name in REDUCTIONS if name != "prod"])
def test_reductions_of_edges_have_torchs_value_and_gradients(name, dtype, device, tally):
    tally("edge points", check_edges_of_rows(name, dtype, device))


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize("dtype", INTEGERS, ids=ids)
@pytest.mark.parametrize("call", [*ELEMENTWISE, Call("pow(x, 5)", lambda lib, x: lib.pow(x, 5))], ids=ids)
def test_ends_of_integers_have_torchs_value(call, dtype, device):
    """Numbers that a kernel compares with, or chooses, are taken in its own type: an unsigned one has no -1."""
    ends = (False, True) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max, 0, 1, -1, 2, 3)
    values = [value for value in ends if value >= 0 or dtype.is_signed]
    xs = torch.tensor(list(product(values, repeat=call.arity)), dtype=dtype, device=device).unbind(1)
    assert_same_outcome(*(outcome(call.function, library, *xs) for library in (customops, torch)))


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize("dtype", FLOATS, ids=ids)
def test_products_of_edges_have_torchs_value_and_gradients(dtype, device, full, tally):
    tally("edge points", check_edges_of_products(dtype, 1 if full else 7, device))


@pytest.mark.parametrize("dtype", [*FLOATS, torch.complex64], ids=ids)
def test_a_product_without_zeros_has_the_gradient_that_its_steps_give(dtype):
    """Without steps it has the same bits, and those of nan and infinities."""
    g = torch.rand(64, 1).to(dtype)
    x = torch.randn(64, 9).to(dtype)
    x[::8, 0], x[1::8, 1] = torch.inf, torch.nan
    z = x.prod(1, keepdim=True)
    steps = Prod.slope._replace(without_zeros=None)
    with torch.no_grad():
        short, long = (slope_by_formula(slope, g, x, z, 1).to(dtype) for slope in (Prod.slope, steps))
    torch.testing.assert_close(short, long, rtol=0, atol=0, equal_nan=True)
