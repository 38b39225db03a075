"""Every operator at every special number: value and gradient equal to torch's, nan for nan, sign of zero included."""

from __future__ import annotations

from itertools import product

import pytest
import torch

import customops

from .cases import EDGES, ELEMENTWISE, REDUCTIONS, Call, ids
from .compare import TOLERANCE, assert_agree_at_edges, assert_same_outcome, outcome
from .conftest import KERNELS
from .marks import skip_changed_derivative

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("call", ELEMENTWISE, ids=ids)
def test_edges_have_torchs_value_and_gradients(call, dtype, device, tally):
    """They have them at all tuples of special inputs, each with all special incoming gradients."""
    skip_changed_derivative(call)
    *columns, g = torch.tensor(list(product(EDGES, repeat=call.arity + 1)), dtype=dtype, device=device).unbind(1)
    if KERNELS and call.name == "rsqrt(x)" and dtype == torch.bfloat16:
        g = torch.where(g.isinf(), 2, g)  # torch rounds z³ to 0, which times inf is nan; our kernels keep float32
    assert_agree_at_edges(call.function, columns, g)
    tally("edge points", g.numel())


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("number", EDGES, ids=str)
@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "pow"])
def test_edge_numbers_have_torchs_value_and_gradients(name, number, dtype, device, tally):
    if KERNELS and device == "cpu" and abs(number) == 1e30 and dtype.itemsize == 2:
        pytest.skip("torch's CPU kernels round a number to the half type, its GPU kernels and ours keep float32")
    x, g = torch.tensor(list(product(EDGES, repeat=2)), dtype=dtype, device=device).unbind(1)
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
@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("name", [name for name in REDUCTIONS if name != "prod"])
def test_reductions_of_edges_have_torchs_value_and_gradients(name, dtype, device, tally):
    """Of 0 and -0 torch's amax and amin give the first that they meet, and that depends on how they walk a layout."""
    *columns, g = torch.tensor(list(product(EDGES, repeat=3)), dtype=dtype, device=device).unbind(1)
    reversed_ = lambda lib, x: getattr(lib, name)(x.flip(1), 1)
    assert_agree_at_edges(lambda lib, x: getattr(lib, name)(x, 1), [torch.stack(columns, 1)], g, reversed_)
    tally("edge points", g.numel())


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize("dtype", INTEGERS, ids=ids)
@pytest.mark.parametrize("call", [*ELEMENTWISE, Call("pow(x, 5)", lambda lib, x: lib.pow(x, 5))], ids=ids)
def test_ends_of_integers_have_torchs_value(call, dtype, device):
    """Numbers that a kernel compares with, or chooses, are taken in its own type: an unsigned one has no -1."""
    ends = (False, True) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max, 0, 1, -1, 2, 3)
    values = [value for value in ends if value >= 0 or dtype.is_signed]
    xs = torch.tensor(list(product(values, repeat=call.arity)), dtype=dtype, device=device).unbind(1)
    assert_same_outcome(*(outcome(call.function, library, *xs) for library in (customops, torch)))


def _product(library, x: torch.Tensor, g: float) -> tuple[torch.Tensor, ...]:
    """Return the product of a row, and its gradient."""
    leaf = x.clone().requires_grad_()
    z = library.prod(leaf, 1)
    return z.detach(), *torch.autograd.grad(z, leaf, torch.full_like(z, g))


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
def test_products_of_edges_have_torchs_value_and_gradients(dtype, device, full, tally):
    """One row at a time: torch divides by no element if one of all rows is 0, by each if none is."""
    finite = [x for x in EDGES if abs(x) <= 1]
    for row in [*product(EDGES, finite, finite)][:: 1 if full else 7]:
        for g in (1.0, float("inf"), float("nan")):
            x = torch.tensor([row], dtype=dtype, device=device)
            if x[0, 0].isfinite() or 0 not in row:
                got, want = (_product(lib, x, g) for lib in (customops, torch))  # a zero gradient has either sign
                torch.testing.assert_close(got, want, equal_nan=True, **TOLERANCE[dtype])
                tally("edge points", 3)
