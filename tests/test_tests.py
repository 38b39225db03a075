"""The checks can fail: each is shown something wrong and must say so."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

import customops
from customops import formulas
from customops.ops import binary

from . import test_memory
from .cases import CALLS, PATH_OF, ROW
from .compare import STRICT, assert_agree_at_edges, assert_as_by_formula
from .conftest import DEVICE, KERNELS, NO_KERNEL

CALL = {call.name: call for _, call in CALLS}
kernels_only = pytest.mark.skipif(not KERNELS, reason=NO_KERNEL)


def _check_mul():
    xs = [ROW["mul"].draw((2, 3), seed=i, device=DEVICE).requires_grad_() for i in range(2)]
    return gradcheck(customops.mul, xs, raise_exception=False, **STRICT)


def test_gradcheck_sees_a_torch_derivative_off_by_1e_5(deriving):
    with customops.backend("torch"):
        assert _check_mul()
        deriving(binary.Mul, lambda g, y: g * y * 1.00001, formulas.mul_dy)
        assert not _check_mul()


@pytest.mark.sample(compiled="all")
@kernels_only
@pytest.mark.parametrize("name", ["mul_dx", "mul_dy"])
def test_comparison_sees_a_triton_derivative_off_by_1e_9_in_one_of_many_elements(breaking, name):
    xs = [ROW["mul"].draw((700,), seed=i, device=DEVICE) for i in range(2)]
    assert 0 < (xs[0] > 1.99).sum() < 5
    xs = [x.requires_grad_() for x in xs]
    assert_as_by_formula(customops.mul, xs)
    breaking(name)
    with pytest.raises(AssertionError):
        assert_as_by_formula(customops.mul, xs)


def test_default_tolerance_would_miss_a_derivative_off_by_1e_4():
    class Off(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            return g * 2 * 1.0001

    x = torch.rand(3, dtype=torch.float64).requires_grad_()
    assert gradcheck(Off.apply, [x])
    assert not gradcheck(Off.apply, [x], raise_exception=False, **STRICT)


@pytest.mark.sample(compiled="all")
@kernels_only
@pytest.mark.parametrize("name", ["relu", "pow_dx"])
def test_edges_see_a_formula_that_is_wrong_at_special_numbers(breaking, device, name):
    x = torch.tensor([float("nan"), -1.0, 2.0, 0.0], device=device)
    exponent = torch.tensor([2.0, 3.0, 0.0, 0.0], device=device)
    xs = [x] if name == "relu" else [x, exponent]
    call = CALL["relu(x)" if name == "relu" else "pow(x, y)"]
    assert_agree_at_edges(call.function, xs, torch.ones_like(x))
    breaking(name)
    with pytest.raises(AssertionError):
        assert_agree_at_edges(call.function, xs, torch.ones_like(x))


def test_edges_see_the_sign_of_zero():
    class Wrong:
        relu = staticmethod(lambda x: torch.relu(x) + 0.0)

    x = torch.tensor([-0.0])
    with pytest.raises(AssertionError, match="wrong sign"):
        assert_agree_at_edges(lambda lib, x: (Wrong if lib is customops else torch).relu(x), [x], torch.ones(1))


@kernels_only
def test_guard_bands_see_a_dropped_mask(monkeypatch, replan, device):
    from customops.triton_kernels import plan  # noqa: PLC0415 - Triton may be missing

    real = plan.arrange
    monkeypatch.setattr(
        plan, "arrange", lambda *args: (a := real(*args))._replace(extents=tuple(n + 1 for n in a.extents))
    )
    with test_memory.GuardBands() as bands:
        customops.exp(torch.zeros(5, device=device))
    with pytest.raises(AssertionError, match="a write past an output"):
        bands.check()


@kernels_only
def test_comparison_sees_swapped_strides(monkeypatch, replan, device):
    from customops.triton_kernels import plan  # noqa: PLC0415 - Triton may be missing

    row, call = ROW["mul"], CALL["mul(x, y)"]
    test_memory.test_kernels_write_their_outputs_and_nothing_else(row, call, "transposed", device)
    real = plan.Plan._launch_argument

    def swap(self, index, strides, name):
        return real(self, index, strides[::-1] if name and strides and all(strides) else strides, name)

    monkeypatch.setattr(plan.Plan, "_launch_argument", swap)
    replan()
    with pytest.raises(AssertionError):
        test_memory.test_kernels_write_their_outputs_and_nothing_else(row, call, "transposed", device)


@pytest.mark.sample(compiled="all")
@kernels_only
def test_unwritten_memory_shows(device):
    assert bool(torch.empty(3, device=device).isnan().all())


def test_paths_tell_calls_apart_by_what_is_saved_and_by_what_is_a_number():
    """So tests that run one call of each path see all there is to see."""
    alike = [("log(x)", "abs(x)"), ("exp(x)", "tanh(x)"), ("add(x, y)", "sub(x, y, 3)"), ("sum()", "mean(0)")]
    assert all(PATH_OF[one] == PATH_OF[other] for one, other in alike)
    apart = ("neg(x)", "log(x)", "exp(x)", "add(x, y)", "mul(x, y)", "div(x, y)", "pow(x, y)", "add(x, 1.5)", "sum()")
    assert len({PATH_OF[name] for name in (*apart, "add(2, x)", "amax()", "pow(2, x)")}) == len(apart) + 3
