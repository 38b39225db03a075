"""A function in torch's own spelling is fused as one in the package's: methods, functions, signs and constants."""

from __future__ import annotations

import random

import pytest
import torch
from torch.nn import functional as F

import customops
from customops import FusionError, dry_run, fuse

from .compare import assert_equal
from .conftest import KERNELS
from .test_fuse_states import default_dtype

SPELLINGS = {  # what is written, and the same in the package's spelling
    "x.exp()": "ops.exp(x)",
    "torch.exp(x)": "ops.exp(x)",
    "torch.exp(input=x)": "ops.exp(x)",
    "x.log() + x.sqrt()": "ops.add(ops.log(x), ops.sqrt(x))",
    "x.rsqrt()": "ops.rsqrt(x)",
    "torch.tanh(x) * F.tanh(x) * x.tanh()": "ops.tanh(x) * ops.tanh(x) * ops.tanh(x)",
    "torch.relu(x - 1) + F.relu(x - 1)": "ops.relu(x - 1) + ops.relu(x - 1)",
    "F.sigmoid(x) + torch.special.expit(x)": "ops.sigmoid(x) + ops.sigmoid(x)",
    "x.neg() + x.negative() - torch.negative(x)": "-x + -x - -x",
    "x.abs() + torch.absolute(x)": "abs(x) + abs(x)",
    "x.add(y, alpha=2)": "ops.add(x, y, alpha=2)",
    "torch.sub(x, other=y, alpha=0.5)": "ops.sub(x, y, alpha=0.5)",
    "torch.subtract(x, y)": "x - y",
    "torch.rsub(x, y, alpha=2)": "ops.sub(y, x, alpha=2)",
    "torch.rsub(x, 2)": "2 - x",
    "x.mul(y) + torch.multiply(x, 3)": "x * y + x * 3",
    "x.div(y) + torch.true_divide(x, y)": "x / y + x / y",
    "torch.divide(x, 2, rounding_mode=None)": "x / 2",
    "x.pow(2) + torch.pow(2.5, x)": "x**2 + 2.5**x",
    "torch.pow(x, exponent=y)": "x**y",
    "torch.pow(x, 2) * torch.pow(x, 1.7)": "x**2 * x**1.7",
    "torch.maximum(x, y)": "ops.maximum(x, y)",
    "torch.max(x, y) + x.min(y)": "ops.maximum(x, y) + ops.minimum(x, y)",
    "torch.max(x) - x.min()": "ops.amax(x) - ops.amin(x)",
    "torch.linalg.vector_norm(x, dim=-1)": "ops.vector_norm(x, dim=-1)",
    "torch.linalg.norm(x) + torch.linalg.norm(x, ord=3, dim=1)": "ops.vector_norm(x) + ops.vector_norm(x, 3, 1)",
    "torch.linalg.norm(x, dim=(0, 1))": "ops.vector_norm(x, dim=(0, 1))",
    "F.dropout(x, 0.5, False) + F.dropout(x, p=0.0) + torch.dropout(x, 0.5, train=False)": "x + x + x",
    "F.dropout2d(x, training=False) * F.alpha_dropout(x, 0.1)": "x * x",
    "x.sum()": "ops.sum(x)",
    "x.sum(-1)": "ops.sum(x, -1)",
    "x.sum((0, 1), True)": "ops.sum(x, (0, 1), True)",
    "torch.sum(x, axis=0, keepdims=True)": "ops.sum(x, 0, True)",
    "torch.sum(x, None)": "ops.sum(x, None)",
    "x.mean([-1], keepdim=True)": "ops.mean(x, -1, keepdim=True)",
    "torch.mean(input=x, dim=0)": "ops.mean(x, 0)",
    "x.amax(dim=1) - torch.amin(x, 1)": "ops.amax(x, 1) - ops.amin(x, 1)",
    "x.detach() * torch.detach(y) * x": "x.detach() * y.detach() * x",
    "x.contiguous() * y": "x * y",
    "x.clone() * torch.clone(y)": "x * y",
    "x.to(x.dtype).to(y).type_as(y) * x.to(x.device, copy=True)": "x * x",
    "torch.tensor(2.0) * x": "2.0 * x",
    "torch.tensor(0.5) - x": "0.5 - x",
    "x - x.new_tensor(0.5)": "x - 0.5",
    "x / torch.ones(()) + x.new_full((), 3)": "x / 1.0 + 3.0",
    "torch.tensor(1.5) ** x": "1.5**x",
    "x.sum(-1, dtype=x.dtype)": "ops.sum(x, -1)",
    "x * x.size(-1) * x.dim() * x.numel() * x.shape[0]": "x * 8 * 2 * 40 * 5",
    "x * x.element_size() * x.itemsize * torch.finfo(x.dtype).bits": "x * 8 * 8 * 64",
    "x * (torch.is_tensor(x) and isinstance(x, torch.Tensor) and torch.is_floating_point(x))": "x * True",
}


def function_of(expression: str):
    """Return a function of x and y."""
    return eval(f"lambda x, y: {expression}", {"torch": torch, "F": F, "ops": customops})


def inputs(device, dtype=torch.float64, low=0.3):
    """Return two tensors of positive numbers, each another."""
    generator = torch.Generator().manual_seed(5)
    xs = torch.rand(2, 5, 8, dtype=torch.float64, generator=generator) * 2 + low
    return [x.to(device, dtype).requires_grad_() for x in xs]


def value_and_gradients(function, xs):
    """Return the value, and the gradients by all inputs that it depends on."""
    z = function(*xs)
    g = torch.linspace(-1, 2, z.numel(), dtype=torch.float64, device=z.device).view(z.shape).to(z.dtype)
    grads = torch.autograd.grad(z, xs, g, allow_unused=True) if z.requires_grad else ()
    return [z, *(torch.zeros((), device=z.device) if grad is None else grad for grad in grads)]


def assert_like_torchs(got, function, xs, computed=None):
    for k, (mine, theirs) in enumerate(
        zip(value_and_gradients(got, xs), value_and_gradients(function, xs), strict=True)
    ):
        assert_equal(mine, theirs, strides=k == 0, computed=computed)


@pytest.mark.sample(kernels="")
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_each_spelling_is_the_packages_program(spelling, device):
    xs = inputs(device)
    assert str(fuse(function_of(spelling)).program(*xs)) == str(fuse(function_of(SPELLINGS[spelling])).program(*xs))


@pytest.mark.sample(kernels="spelling")
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_each_spelling_computes_what_torch_computes(spelling, device, blocks):
    blocks(16)
    function = function_of(spelling)
    assert_like_torchs(fuse(function), function, inputs(device))


FILLED = (
    "torch.zeros_like(x)",
    "torch.ones_like(x, memory_format=torch.preserve_format)",
    "torch.full_like(x, float('inf')) * y",
    "(torch.full_like(x, -0.0) * y).sum(0)",
    "torch.ones_like(x).sum(-1) * y.sum(-1)",
    "x.new_ones(x.shape).mean(0) * y",
    "torch.maximum(x - 1, torch.zeros_like(x))",
    "torch.minimum(x, torch.tensor(0.75))",
    "torch.maximum(torch.tensor(float('nan')), x)",
    "torch.maximum(x.mean(-1), x.new_zeros(()))",
    "torch.full_like(x, 2, dtype=torch.float32) * y",
)


@pytest.mark.sample(compiled="filled")
@pytest.mark.parametrize("filled", FILLED)
def test_tensors_of_one_number_compute_what_torch_computes(filled, device, blocks):
    blocks(16)
    function = function_of(filled)
    assert_like_torchs(fuse(function), function, inputs(device))


def test_a_0_dim_tensor_promotes_as_torchs_and_no_number_does(device):
    half, double = torch.ones(3, device=device, dtype=torch.float16), torch.tensor(2.0, dtype=torch.float64)
    for x, dtype in ((half, torch.float16), (half[0], torch.float64)):
        assert fuse(lambda x: x * torch.tensor(2.0, dtype=torch.float64))(x).dtype == (x * double).dtype == dtype
    integers = torch.ones(3, device=device, dtype=torch.int32)
    assert fuse(lambda x: x * torch.tensor(2.0, dtype=torch.float64))(integers).dtype == torch.float64


def test_a_tensor_that_is_a_number_is_read_when_it_is_used(device):
    def written(x):
        scale = torch.tensor(2.0)
        z = x * scale
        scale += 1
        return z * scale

    (x, _), fused = inputs(device), fuse(written)
    for _ in range(2):
        assert_equal(fused(x), x * 6)


@pytest.mark.parametrize("draw", [lambda: torch.rand(()), random.random], ids=["torch", "python"])
def test_random_numbers_are_drawn_at_every_call(draw, device, blocks):
    blocks(16)
    fused = fuse(lambda x: x * draw())
    x = torch.ones(3, device=device)
    assert len({float(fused(x)[0]) for _ in range(4)}) == 4


def test_only_isinstance_is_told_that_a_stand_in_is_a_tensor(device):
    """Torch's C++ would read the memory of a tensor where a stand-in stands in the place of a number."""
    seen = []

    def function(x):
        seen.extend(
            [
                isinstance(x, torch.Tensor),
                torch.is_tensor(x),
                isinstance(
                    x,
                    torch.Tensor | int,
                ),
                x.__class__ is not torch.Tensor,
            ]
        )
        return torch.pow(x, 2)

    fuse(function).program(torch.ones(3, device=device))
    assert seen == [True] * 4


def test_under_a_default_dtype_a_number_has_it(device):
    x = torch.ones((), device=device, dtype=torch.float32)
    for dtype in (torch.float32, torch.float64):
        with default_dtype(dtype):
            fused = fuse(lambda x: x * torch.tensor(2.0))
            assert fused(x).dtype == dtype


def test_functions_on_small_complex_and_autocast_tensors_are_torchs_own(device):
    def function(x, y):
        return torch.exp(x).mul(y.to(x.dtype)).mean(-1) - x.sum(0, keepdim=True).float().mean()

    xs = inputs(device, torch.float32)
    assert_equal(fuse(function)(*xs), function(*xs))
    with torch.autocast("cpu", torch.bfloat16):
        assert_equal(fuse(function)(*xs), function(*xs))
    if not KERNELS:
        function, xs = function_of("torch.exp(x).mul(y) + x.mean()"), [x.to(torch.complex64) for x in xs]
        assert_equal(fuse(function)(*xs), function(*xs))


def test_torch_compile_sees_the_function_itself(device):
    def function(x, y):
        return (x.float().pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt().type_as(y) * F.relu(x) + torch.ones_like(y)

    xs = inputs(device, torch.float32)
    assert_like_torchs(torch.compile(fuse(function), fullgraph=True, backend="aot_eager"), function, xs)


@pytest.mark.parametrize(
    "mistake", ["x.sum(0, 1)", "x.mean(keepdim=True)", "torch.exp(x, y)", "x.add(y, beta=2)", "x.no"]
)
def test_a_mistake_is_torchs_error(mistake, device):
    function, xs = function_of(mistake), inputs(device)
    with pytest.raises((TypeError, AttributeError)) as theirs:
        function(*xs)
    with pytest.raises(type(theirs.value)) as mine:
        fuse(function)(*xs)
    assert str(mine.value) == str(theirs.value)


REFUSED = {
    "torch.matmul(x, y)": "matrix product",
    "torch.nn.functional.linear(x, y)": "matrix product",
    "torch.bmm(x, y)": "matrix product",
    "x.index_select(0, y)": "by index",
    "F.embedding(y, x)": "by index",
    "torch.rand_like(x) * x": "random numbers",
    "torch.bernoulli(x)": "random numbers",
    "x.sort(-1)": "order of elements",
    "x.topk(2)": "order of elements",
    "F.conv1d(x, y)": "neighbours",
    "F.max_pool1d(x, 2)": "neighbours",
    "torch.fft.rfft(x)": "no formula of elements",
    "x.equal(y)": "values are not known yet; pass a number",
    "x.item()": "values are not known yet; pass a number",
    "x.mul_(2)": "write x = x.mul(...)",
    "torch.exp_(x)": "write x = x.exp(...)",
    "x.requires_grad": "Tensor.requires_grad cannot be traced",
    "torch.exp(x, out=y)": "leave it out",
    "x.div(y, rounding_mode='floor')": "rounding_mode",
    "x.bool()": "compare, as in x != 0",
    "x & y": "no mask",
}


@pytest.mark.parametrize("refused", REFUSED)
def test_what_is_refused_says_what_it_is_and_what_would_work(refused, device):
    with pytest.raises(FusionError) as error:
        fuse(function_of(refused))(*inputs(device))
    assert REFUSED[refused] in str(error.value)
    assert "lambda x, y" in str(error.value) or "<string>" in str(error.value)


@pytest.mark.skipif(KERNELS, reason="a dry run records the launches of a call that makes none")
def test_a_layer_in_torchs_spelling_is_one_launch_forward():
    def gated(x, y):
        return torch.sigmoid(x).mul(x) * F.tanh(y) + x.mean(-1, keepdim=True).to(y.dtype)

    with dry_run("cuda:90") as launches:
        fuse(gated)(*[x.detach() for x in inputs("cpu")])
    assert len(launches) == 1
