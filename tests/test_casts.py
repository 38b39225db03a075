"""Casts in a fused function round as torch's do, and cost nothing where nothing changes."""

from __future__ import annotations

from itertools import product

import pytest
import torch

import customops
from customops import dry_run, fuse

from .compare import TOLERANCE, assert_equal
from .conftest import INTERPRETED
from .test_spelling import assert_like_torchs, value_and_gradients

DTYPES = torch.float16, torch.bfloat16, torch.float32, torch.float64
WIDE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
SUBNORMAL = 1e-40
# Halfway between two numbers of a half type, beyond the largest, subnormal, and what is no number.
EDGES = [1.00390625, 1.01171875, 1.00048828125, 1.00146484375, 65504, 65519, 65520, 3.39e38, 6e-8, 2.9e-8, SUBNORMAL]
EDGES += [0.0, 0.1, 2.5, 3.3333333, 1e3, float("inf"), float("nan")]


def edges(device, dtype=torch.float64):
    """Return numbers at which casts differ, of both signs."""
    numbers = [x for x in EDGES if not (INTERPRETED and x == SUBNORMAL)]  # the interpreter makes 0 of a bfloat16
    return torch.tensor([sign * x for x in numbers for sign in (1, -1)], dtype=torch.float64).to(device, dtype)


def wide(*dtypes):
    """Return the dtype in which kernels compute values of these."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


@pytest.mark.sample(formulas="source*target", kernels="source*target", compiled="source*target")
@pytest.mark.parametrize(("source", "target"), [*product(DTYPES, DTYPES)])
def test_a_cast_between_operators_rounds_once_forward_and_not_backward(source, target, device, blocks):
    blocks(16)
    x = edges(device, source).requires_grad_()
    z = fuse(lambda x: (-x).to(target) * 3)(x)
    computed = wide(source, target)
    inner = -x.detach().to(computed)
    rounds = source != target and torch.promote_types(source, target) != target
    inner = inner.to(target).to(computed) if rounds else inner
    assert z.dtype == target
    assert_same(z, (inner * 3).to(target))
    g = torch.linspace(0.1, 3.3, len(z), device=device).to(target)
    (dx,) = torch.autograd.grad(z, x, g)
    assert_same(dx, (g.to(computed) * -3).to(source))


def assert_same(got, want):
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.sample(compiled="target")
@pytest.mark.parametrize("target", [torch.float16, torch.bfloat16])
def test_a_function_that_leaves_the_rounding_out_would_be_seen(target, device, blocks):
    blocks(16)
    x = torch.linspace(1, 2, 37, device=device)
    rounded, kept = fuse(lambda x: x.to(target).float() - x)(x), fuse(lambda x: x.float() - x)(x)
    assert_same(rounded, x.to(target).float() - x)
    assert rounded.abs().max() > 2**-13
    assert not kept.any()


NOTHING = {
    "float": (torch.float32, torch.float16, torch.bfloat16),
    "double": (torch.float64, torch.float32, torch.float16),
    "half": (torch.float16,),
    "bfloat16": (torch.bfloat16,),
}


@pytest.mark.parametrize(("name", "dtype"), [(name, dtype) for name, dtypes in NOTHING.items() for dtype in dtypes])
def test_a_cast_that_changes_no_value_is_no_operator(name, dtype, device):
    x = torch.ones(3, device=device, dtype=dtype)
    program = str(fuse(lambda x: getattr(x, name)() * 2).program(x))
    assert program == "t2 = mul(x, 2)\nreturn t2"


SPELLED = {
    "to dtype": lambda x, y: x.to(torch.float16) * y,
    "to keyword": lambda x, y: x.to(dtype=torch.float16, non_blocking=True, copy=True) * y,
    "to device and dtype": lambda x, y: x.to(x.device, torch.float16) * y,
    "to another": lambda x, y: x.to(y) * y,
    "half": lambda x, y: x.half() * y,
    "type": lambda x, y: x.type(torch.float16) * y,
    "type as": lambda x, y: x.type_as(y) * y,
    "type as of torch": lambda x, y: torch.Tensor.type_as(torch.tensor(2.0), y) * x.half() * y / 2,
}


@pytest.mark.sample(compiled="spelled")
@pytest.mark.parametrize("spelled", SPELLED)
def test_each_spelling_of_a_cast_is_one(spelled, device, blocks):
    blocks(16)
    x = torch.linspace(0.1, 7, 40, device=device)
    function, xs = SPELLED[spelled], (x.requires_grad_(), x.detach().half().requires_grad_())
    assert_like_torchs(fuse(function), function, xs, torch.float16)  # torch rounds the cotangent
    assert "= to_float16(x)" in str(fuse(function).program(*xs))


ELSEWHERE = {
    "integers": (lambda x, i, mask: i.float() * x, None),
    "integers to a half type": (lambda x, i, mask: i.to(torch.bfloat16).float() * x, None),
    "a mask": (lambda x, i, mask: mask.to(x.dtype) * x, None),
    "a copy": (lambda x, i, mask: x.clone(), None),
    "a copy in rows": (lambda x, i, mask: x.mul(2).clone(memory_format=torch.contiguous_format), None),
    "in rows": (lambda x, i, mask: (x * 2).contiguous(), None),
    "an argument": (lambda x, i, mask: x.float(), "an argument is returned as it is"),
    "an argument in rows": (lambda x, i, mask: x.contiguous(), "an argument is returned as it is"),
    "a mean in another dtype": (lambda x, i, mask: (x * 1.25).mean(-1, dtype=torch.float64), None),
    "a sum in a half type": (lambda x, i, mask: (x * 1.25).sum(-1, dtype=torch.float16), None),
    "a detour by doubles": (lambda x, i, mask: ((x.double() + 1e-9 - x) * 1e9).float(), None),
    "detached": (lambda x, i, mask: x.detach().half().float() * x + x.half().detach().float() * x, None),
    "detached and widened": (lambda x, i, mask: x.half().detach().double() * x, None),
}


@pytest.mark.sample(compiled="name")
@pytest.mark.parametrize("name", ELSEWHERE)
def test_other_casts_compute_what_torch_computes(name, device, blocks, capsys):
    blocks(16)
    function, reason = ELSEWHERE[name]
    x = torch.linspace(0.1, 7, 60, device=device).view(6, 10).mT.requires_grad_()
    xs = (x, torch.arange(60, device=device).view(10, 6) * 17, x.detach() > 3)
    got, want = fuse(function)(*xs), function(*xs)
    assert_equal(got, want, strides=True, computed=max(want.dtype, torch.float32, key=lambda dtype: -dtype.itemsize))
    assert (got.data_ptr() == x.data_ptr()) == (want.data_ptr() == x.data_ptr())
    grads = [torch.autograd.grad(z.sum(), x)[0] for z in (got, want)]
    assert_equal(*grads)
    if not INTERPRETED:
        fuse(function).explain(*xs)
        assert reason is None or f"not fused: {reason}" in capsys.readouterr().out


@pytest.mark.sample(compiled="all")
def test_a_gradient_of_a_gradient_goes_through_casts(device, blocks):
    blocks(16)
    x = torch.linspace(0.5, 2, 40, device=device).requires_grad_()

    def function(x):
        return (x.to(torch.bfloat16).float() ** 3 * x).sum()

    second = []
    for f in (fuse(function), function):
        (dx,) = torch.autograd.grad(f(x), x, create_graph=True)
        second.append(torch.autograd.grad(dx.sum(), x)[0])
    torch.testing.assert_close(*second, **TOLERANCE[torch.bfloat16])


LINEAR = (  # what can be done to each element, before the sum
    (lambda x: x.sum(0).half(), False),
    (lambda x: x.sum(0).bfloat16(), False),
    (lambda x: x.sum(0).double().float(), False),
    (lambda x: x.sum(0) + 1e-300, False),
    (lambda x: -x.sum(0), True),
    (lambda x: x.sum(0) * 1e-30, True),
    (lambda x: x.sum(0) / 3, True),
)


def test_a_rounding_is_not_linear_though_its_derivative_is_constant(device):
    x = torch.ones(3, 4, device=device)
    for function, is_linear in LINEAR:
        graph = fuse(function).program(x)
        assert graph.is_linear(graph.results[0][0]) == is_linear


@pytest.mark.sample(compiled="all")
def test_a_total_is_rounded_once(device, blocks):
    """It is the sum of what many programs, or blocks, have: none of these may be rounded."""
    blocks(16)
    x = torch.full((3000, 2), 1.0009765625, device=device)
    assert_same(fuse(lambda x: x.sum(0).bfloat16().float())(x), x.double().sum(0).bfloat16().float())


def rms_norm(hidden_states, weight, eps=1e-6):
    """Normalize as the models of the zoo do."""
    input_dtype = hidden_states.dtype
    hidden_states = hidden_states.to(torch.float32)
    variance = hidden_states.pow(2).mean(-1, keepdim=True)
    hidden_states = hidden_states * torch.rsqrt(variance + eps)
    return weight * hidden_states.to(input_dtype)


@pytest.mark.sample(compiled="activation*weight")
@pytest.mark.parametrize(("activation", "weight"), [*product(DTYPES[:3], repeat=2)])
def test_the_rms_norm_of_the_zoo_computes_what_torch_computes(activation, weight, device, blocks):
    blocks(64)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(7, 33, generator=generator).to(device, activation).requires_grad_()
    w = torch.randn(33, generator=generator).to(device, weight).requires_grad_()
    narrow = min(activation, weight, key=lambda dtype: (dtype.itemsize, dtype is torch.float16))
    mine, theirs = value_and_gradients(fuse(rms_norm), (x, w)), value_and_gradients(rms_norm, (x, w))
    for got, want in zip(mine, theirs, strict=True):
        assert got.dtype == want.dtype
        tolerance = TOLERANCE[narrow]
        torch.testing.assert_close(got, want, rtol=tolerance["rtol"], atol=4 * tolerance["atol"])


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles no kernels")
@pytest.mark.sample(formulas="activation", kernels="", compiled="")
@pytest.mark.parametrize(("activation", "weight"), [*product(DTYPES[:3], repeat=2)])
def test_the_rms_norm_of_the_zoo_is_one_kernel_forward(activation, weight, capsys):
    x, w = torch.ones(64, 4096, dtype=activation), torch.ones(4096, dtype=weight)
    with dry_run("cuda:90") as launches:
        fuse(rms_norm)(x, w)
    assert len(launches) == 1
    fuse(rms_norm).explain(x, w, verbose=True)
    assert "kernels 1 forward, 2 backward" in capsys.readouterr().out


def test_the_packages_operators_take_what_was_cast(device):
    x = torch.linspace(0.1, 7, 40, device=device)
    function = fuse(lambda x: customops.exp(x.half()) + customops.sum(x, dtype=torch.float64))
    assert function(x).dtype == torch.float16
    assert "to_float16" in str(function.program(x))
