"""The default dtype and device, complex gradients, deterministic mode; ``test_precision_autocast.py`` has autocast."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

import customops

from .cases import CALLS, ROWS, ids
from .compare import assert_same_outcome, assert_same_outcomes, cotangent, outcome
from .conftest import KERNELS, NO_KERNEL
from .marks import by_path

REAL = (torch.bool, torch.uint8, torch.int64, torch.float16, torch.float32)
COMPLEX = [(a, b) for a in (torch.complex64, torch.complex128) for b in (a, torch.float32)]
COMPLEX += [(b, a) for a, b in COMPLEX if a != b]
VIEWS = {"plain": lambda x: x, "conj": torch.conj, "imag": lambda x: x.conj().imag if x.is_complex() else x}


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.sample(formulas="call, path*dtype", kernels="path, dtype", compiled="path, dtype")
@pytest.mark.parametrize("dtype", REAL, ids=ids)
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_default_dtype_decides_as_in_torch(row, call, dtype, device):
    """It does so whatever it was at an earlier call of the same kind."""
    xs = [row.draw((2, 2, 2, 2), seed=i, device=device).abs().ceil().to(dtype) for i in range(call.arity)]
    for default in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float32):
        with default_dtype(default):
            got, want = (outcome(call.function, library, *xs) for library in (customops, torch))
        assert_same_outcome(got, want)


@by_path
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_default_device_moves_nothing(row, call, device, replan):
    """It moves neither the result nor what is computed on the way: plans are made, constants allocated."""
    xs = [row.draw((2, 2, 2, 2), seed=i, device=device).requires_grad_() for i in range(call.arity)]
    want = call.function(torch, *xs)
    g = cotangent(want)

    def run(library):
        z, pull = torch.func.vjp(lambda *xs: call.function(library, *xs), *xs)
        _, tangent = torch.func.jvp(lambda *xs: call.function(library, *xs), tuple(xs), tuple(xs))
        return z, pull(g), tangent, torch.autograd.grad(call.function(library, *xs), xs, g)

    wanted = run(torch)
    with torch.device("meta"):
        assert_same_outcomes(run(customops), wanted)


@pytest.mark.sample(formulas="call*dtypes, path*view, dtypes*view", kernels="")
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtypes", COMPLEX, ids=ids)
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_complex_gradients_are_torchs(row, call, dtypes, view, device, tally):
    """A real operand beside a complex one has them too; operands and cotangents are lazily conjugated, and negated."""
    if row.name == "where" and len({dtypes[i].is_complex for i in range(call.arity)}) > 1:
        pytest.skip("torch's own gradient of where fails with an internal error there")

    def run(library):
        xs = [_complex(row, dtypes[i], i, device) for i in range(call.arity)]
        z = call.function(library, *map(VIEWS[view], xs))
        g = _complex(ROWS[1], z.dtype, 5, device, z.shape).detach().conj()
        return z, torch.autograd.grad(z, xs, g, retain_graph=True), torch.autograd.grad(z, xs, g, create_graph=True)

    with customops.backend("auto"):
        assert_same_outcomes(outcome(run, customops), outcome(run, torch))
    tally("complex gradients")


@pytest.mark.sample(kernels="")
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_complex_derivatives_follow_the_conjugate_convention(row, call, device):
    """What a cotangent meets in ``vjp``, conjugated, is what a tangent meets in ``jvp``; |x| has a real part alone.

    Torch's gradients are the same.
    """
    if (
        row.name in ("relu", "maximum", "minimum", "amax", "amin", "sign", "erf", "where", "softplus")
        or "clamp" in row.name
    ):
        pytest.skip(f"{row.name} takes no complex numbers")
    xs = [_complex(row, torch.complex128, i, device).detach() for i in range(call.arity)]
    directions = tuple(x.roll(1) * 1j for x in xs)
    with customops.backend("auto"):
        z, pull = torch.func.vjp(lambda *xs: call.function(customops, *xs), *xs)
        _, push = torch.func.jvp(lambda *xs: call.function(customops, *xs), tuple(xs), directions)
        g = cotangent(z) * (1 + 2j if z.is_complex() else 1)
        got = (g.conj() * push).sum()
        gradients, torchs = pull(g), torch.func.vjp(lambda *xs: call.function(torch, *xs), *xs)[1]
        want = sum((dx.conj() * direction).sum() for dx, direction in zip(gradients, directions, strict=True))
        assert_same_outcomes(gradients, torchs(g))
    assert_same_outcome(got, want if z.is_complex() else want.real)


@by_path
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_deterministic_mode_changes_no_bit(row, call, device):
    """A second run changes none either; the gradient of an operand that is broadcast is a sum of many."""
    shape = (3, 4, 5, 9)
    xs = [row.draw(shape[2 * i :], torch.float32, seed=i, device=device).requires_grad_() for i in range(call.arity)]
    results = []
    for deterministic in (True, True, False):
        torch.use_deterministic_algorithms(deterministic)
        z = call.function(customops, *xs)
        results.append((z, *torch.autograd.grad(z, xs, cotangent(z))))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.sample(compiled="all")
def test_gradient_of_tanh_is_right_where_its_value_is_nearly_one(device):
    """There 1 - z·z has lost what z·z rounds off."""
    x = torch.linspace(4, 9, 500, device=device).requires_grad_()
    z = customops.tanh(x)
    (dx,) = torch.autograd.grad(z.sum(), x)
    torch.testing.assert_close(dx.double(), 1 - z.detach().double() ** 2, rtol=4e-7, atol=0)


def _complex(row, dtype, seed, device, shape=(2, 2, 2, 2)):
    """Draw a leaf, complex if ``dtype`` is."""
    x = row.draw(shape, seed=seed, device=device)
    if dtype.is_complex:
        x = torch.complex(x, row.draw(shape, seed=seed + 9, device=device))
    return x.to(dtype).requires_grad_()


@pytest.mark.sample(kernels="name, dtype, n", compiled="name, dtype, n")
@pytest.mark.parametrize("n", [257, 70000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=ids)
@pytest.mark.parametrize("name", ["mean", "amax", "amin", "fused", "sum in float32"])
def test_half_types_count_further_than_they_hold(name, dtype, n, device):
    """Each of n equal elements has 1/n of the slope, and these add up to 1: bfloat16 has no 257, nor 70000."""
    x = torch.ones(n, dtype=dtype, device=device)
    call = {
        "fused": customops.fuse(lambda x: customops.amax(x * x, 0, True) * 0.5),
        "sum in float32": lambda x: customops.sum(x, dtype=torch.float32) / n,
    }.get(name) or getattr(customops, name)
    z, pull = torch.func.vjp(call, x)
    _, tangent = torch.func.jvp(call, (x,), (x,))
    leaf, g = x.clone().requires_grad_(), torch.ones_like(z).requires_grad_()
    (first,) = torch.autograd.grad(call(leaf), leaf, g.detach())
    (again,) = torch.autograd.grad(call(leaf), leaf, g, create_graph=True)
    (second,) = torch.autograd.grad(again, g, x)
    share = torch.full_like(x, 1 / n)
    for gradient in (*pull(g.detach()), first, again):
        torch.testing.assert_close(gradient.detach(), share, rtol=0, atol=0)
    one = torch.ones_like(z)
    torch.testing.assert_close((tangent, second), (one, one), rtol=torch.finfo(z.dtype).eps / 2, atol=0)


@pytest.mark.skipif(not KERNELS, reason=NO_KERNEL)
def test_a_tensor_of_one_wider_number_is_rounded_to_the_dtype_of_the_others(device):
    """As torch's kernels of a GPU do: the result has the dtype of the tensor with axes, in which 1.003 is 1."""
    x = torch.linspace(1, 5, 2048, device=device).bfloat16()
    number = torch.tensor(1.003, device=device)
    assert torch.equal(customops.add(x, number), x + 1)
