"""Shapes, strides and dtypes nobody thought of, drawn by Hypothesis: value and gradients equal torch's."""

from __future__ import annotations

import pytest
import torch

import customops

from .cases import CALLS
from .compare import TOLERANCE, assert_same_outcome, cotangent, outcome
from .conftest import DEVICE, KERNELS
from .marks import is_derivative_changed

pytest.importorskip("hypothesis", reason="it draws the cases")
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

DTYPES = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
)
settings.register_profile(
    "customops",
    max_examples=40 if KERNELS else 200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("customops")


@st.composite
def tensors(draw, shape, low, high):
    """Draw a tensor of ``shape`` in any dtype, any order of axes, sliced, offset and expanded."""
    dtype = draw(st.sampled_from(DTYPES))
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.integers(1, 3)) for _ in shape]
    sizes = [shape[a] * step for a, step in zip(order, steps, strict=True)]
    seed = draw(st.integers(0, 2**16))
    x = torch.rand(sizes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * (high - low) + low
    x = x if dtype.is_floating_point or dtype == torch.bool else x.round().clamp(0)
    x = x.to(DEVICE, dtype)
    x = x[tuple(slice(draw(st.integers(0, step - 1)), None, step) for step in steps)]
    x = x.permute(tuple(sorted(range(len(order)), key=order.__getitem__)))
    for axis in range(x.dim()):
        if x.shape[axis] > 1 and draw(st.integers(0, 5)) == 0:
            x = x.narrow(axis, 0, 1).expand(x.shape)
    return x


@st.composite
def calls(draw):
    """Draw an operator call and inputs that broadcast together."""
    row, call = draw(st.sampled_from(CALLS))
    shape = draw(st.lists(st.integers(0, 5), min_size=call.rank, max_size=5))
    xs = []
    for _ in range(call.arity):
        smaller = [n if draw(st.booleans()) else 1 for n in shape] if call.arity == 2 else shape
        start = draw(st.integers(0, len(shape))) if call.arity == 2 else 0
        xs.append(draw(tensors(tuple(smaller[start:]), row.low, row.high)))
    return call, xs


@pytest.mark.sample(compiled="all")
@given(calls())
def test_any_layout_has_torchs_value_dtype_and_shape(drawn):
    call, xs = drawn
    assert_same_outcome(outcome(call.function, customops, *xs), outcome(call.function, torch, *xs))


@pytest.mark.sample(compiled="all")
@given(calls())
def test_any_layout_has_torchs_gradients(drawn):
    """All floating inputs have gradients; sums of half types are held to their own rounding."""
    call, xs = drawn
    assume(not is_derivative_changed(call))
    leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in xs]
    wanted = [x for x in leaves if x.requires_grad]
    want = outcome(call.function, torch, *leaves)
    assume(wanted and isinstance(want, torch.Tensor) and want.requires_grad)
    z, g = call.function(customops, *leaves), cotangent(want)
    theirs = outcome(torch.autograd.grad, want, wanted, g)
    assume(not isinstance(theirs, type))  # of x to the power of a bool torch has no gradient
    for got, expected in zip((z, *torch.autograd.grad(z, wanted, g)), (want, *theirs), strict=True):
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        coarsest = max((TOLERANCE[d] for d in (got.dtype, z.dtype)), key=lambda t: t["rtol"])
        tolerance = {name: 10 * value for name, value in coarsest.items()}
        torch.testing.assert_close(got, expected, equal_nan=True, **tolerance)
