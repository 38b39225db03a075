"""Blocks where their pieces meet: numbers of any size that are joined, values that are the same along an axis."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import customops
from customops.blocks import loop

from .conftest import DEVICE, KERNELS

if KERNELS or DEVICE != "cpu":
    pytest.skip("kernels compute here", allow_module_level=True)
IMPORTED_UNDER_A_MODE = """
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
with FakeTensorMode():
    import customops
print(customops.fuse(lambda x: customops.exp(x) * 2)(torch.zeros(1 << 18))[:2].tolist())
"""
EDGES = (0.0, -0.0, 1e-38, 1e-30, 1.0, 1e20, 1e38, float("inf"), float("nan"))
SCALED = {
    "an infinite product": lambda x: x * 1e30 * 1e30,
    "a product that is 0": lambda x: x * 1e-30 * 1e-30,
    "integers without a dtype": lambda x: x * 2**62 * 4,
    "a quotient by almost 0": lambda x: x / 1e-44 / 1e-30,
    "an infinite product in between": lambda x: x * 1e30 * 1e-30,
    "0 times infinity": lambda x: x * 0 * float("inf"),
    "a factor beyond the dtype": lambda x: x + x * 1e300,
    "a difference of one": lambda x: x - x * 1e39,
    "an infinite factor": lambda x: x + x * float("inf"),
    "a factor below the dtype": lambda x: x + x * 1e-300,
}


@pytest.mark.parametrize("name", SCALED)
def test_numbers_of_any_size_multiply_as_operator_by_operator(name, blocks):
    x = torch.tensor(EDGES)
    blocks(4)
    torch.testing.assert_close(customops.fuse(SCALED[name])(x), SCALED[name](x), rtol=1e-6, atol=0, equal_nan=True)


def test_a_result_that_repeats_one_row_leaves_sums_along_it_right(blocks):
    """Both operands are expanded, so every row of the sum is the same; the mean of a row counts it once."""

    def sum_and_norm(x, y, ops=torch):
        z = x + y
        return z, z * ops.rsqrt(ops.mean(z * z, -1, keepdim=True))

    x, y = (torch.randn(1, 35).expand(33, 35) for _ in range(2))
    blocks(16)
    got = customops.fuse(lambda x, y: sum_and_norm(x, y, customops))(x, y)
    torch.testing.assert_close(got, sum_and_norm(x, y))


@pytest.mark.parametrize("operator", [customops.maximum, customops.minimum])
def test_a_wider_number_in_a_tensor_ties_as_it_is_rounded(operator, blocks):
    """Of bfloat16 and a 0-dim float32 torch compares bfloat16: a tie halves the gradient."""
    x, t = torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16, requires_grad=True), torch.tensor(2.001)
    blocks(2)
    fused = customops.fuse(operator)
    for function in (operator, fused):
        z = function(x, t)
        (dx,) = torch.autograd.grad(z, x, torch.ones_like(z))
        assert dx[1] == 0.5


def test_blocks_have_real_memory_wherever_they_were_imported():
    command = [sys.executable, "-c", IMPORTED_UNDER_A_MODE]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.stdout == "[2.0, 2.0]\n", ran.stderr


@pytest.mark.parametrize(
    "function",
    [
        lambda ops, x, y: ops.amax(x * y + y, -1, keepdim=True) * (x * y),
        lambda ops, x, y: ops.amin(x * 3 * 0.1, -1, keepdim=True) * (x * 3),
    ],
    ids=["a product in a sum", "two numbers"],
)
def test_an_extremum_of_a_cut_row_meets_its_elements(function, blocks):
    """The pass that finds it and the pass that compares it compute the same bits, though they read other values."""
    xs = [torch.randn(4, 300, requires_grad=True) for _ in range(2)]
    blocks(50)
    z = customops.fuse(lambda x, y: function(customops, x, y))(*xs)
    g = torch.randn_like(z)
    got = torch.autograd.grad(z, xs, g, allow_unused=True)
    torch.testing.assert_close(got, torch.autograd.grad(function(torch, *xs), xs, g, allow_unused=True))


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "exp"])
def test_extrema_along_two_axes_meet_their_elements(name, blocks):
    """Several stages compare one value; their blocks end elsewhere, where torch's sigmoid may round otherwise."""

    def extrema(x, y, ops=torch):
        z = getattr(ops, name)(x) * y
        return ops.amax(z, -1), ops.amax(z, 0)

    xs = [torch.randn(53, 37).t().requires_grad_() for _ in range(2)]
    blocks(50)
    zs = customops.fuse(lambda x, y: extrema(x, y, customops))(*xs)
    gs = [torch.randn_like(z) for z in zs]
    got = torch.autograd.grad(zs, xs, gs)
    torch.testing.assert_close(got, torch.autograd.grad(extrema(*xs), xs, gs))


def test_explain_lists_no_blocks(capsys, monkeypatch):
    """It counts them: a tensor on the meta device may have more than a list holds."""
    monkeypatch.delattr(loop, "lengths")
    x = torch.empty(1 << 25, 1 << 16, device="meta")
    customops.fuse(lambda x: x * customops.sigmoid(x)).explain(x)
    assert "8,388,608 blocks of 262144," in capsys.readouterr().out


def test_a_choice_between_numbers_is_computed_in_the_dtype_of_the_others(blocks):
    blocks(4)
    x = torch.randn(3, 8, dtype=torch.float64)

    def choose(x):
        return -torch.where(x > 0, 0.25, 1.0)

    torch.testing.assert_close(customops.fuse(choose)(x), choose(x))
