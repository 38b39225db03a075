"""Hold a result of ours against torch's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import customops
from customops import config
from customops.ptx.faults import KernelFault

from .cases import Call, OperatorCase

# Half types round once from float32 where torch's CPU kernels may round in between: alpha·y, say.
TOLERANCE = {
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 5e-3},
    torch.float32: {"rtol": 3e-6, "atol": 1e-5},
    torch.float64: {"rtol": 1e-10, "atol": 1e-12},
    torch.complex64: {"rtol": 3e-6, "atol": 1e-5},
    torch.complex128: {"rtol": 1e-10, "atol": 1e-12},
}
STRICT = {"rtol": 1e-6, "atol": 1e-8}  # gradcheck's own 1e-3 passes a gradient that is 0.1 % wrong
outcomes: Counter[str] = Counter()  # how many calls returned and how many raised, in the test that runs


def assert_equal(got: Tensor, want: Tensor, strides: bool = False, computed: torch.dtype | None = None) -> None:
    """Assert equal values, as close as ``computed`` allows, dtypes, shapes and, if asked, strides; nan equals nan."""
    tolerance = TOLERANCE.get(computed or want.dtype, {"rtol": 0, "atol": 0})
    torch.testing.assert_close(got, want, equal_nan=True, check_stride=strides, **tolerance)


def outcome(function: Callable, *args, **kwargs) -> Any:
    """Return what a call returns, or the type of what it raises; a fault of a kernel is nothing to compare."""
    try:
        result = function(*args, **kwargs)
    except KernelFault:
        raise
    except Exception as error:
        outcomes["raised"] += 1
        return type(error)
    outcomes["returned"] += 1
    return result


def assert_same_outcome(got: Any, want: Any, strides: bool = False, computed: torch.dtype | None = None) -> None:
    """Assert equal results, both recorded or neither, or the same type of exception."""
    if isinstance(got, Tensor) and isinstance(want, Tensor):
        assert got.requires_grad == want.requires_grad
        assert_equal(got, want, strides, computed)
    else:
        assert got == want, f"got {got}, want {want}"


def assert_same_outcomes(got: Any, want: Any) -> None:
    """Assert equal results one by one, nested or not, or the same type of exception."""
    if not isinstance(got, list | tuple) or not isinstance(want, list | tuple):
        return assert_same_outcome(got, want)
    for mine, theirs in zip(got, want, strict=True):
        assert_same_outcomes(mine, theirs)


def assert_as_near(got: Any, want: Any, exact: Any) -> None:
    """Assert that results, nested, are about as near to those in float64 as torch's are, of which some are far off."""
    if not isinstance(want, Tensor) or want.is_complex():
        if not isinstance(want, tuple | list):
            return assert_same_outcome(got, want)
        for each in zip(got, want, exact, strict=True):
            assert_as_near(*each)
        return None
    off = (want.double() - exact).abs().nan_to_num(0, 0, 0)
    tolerance = TOLERANCE[want.dtype]
    atol = tolerance["atol"] + 2 * off.max().item() if off.numel() else 0
    assert (got.dtype, got.requires_grad) == (want.dtype, want.requires_grad)
    rounded = exact.to(got.dtype)
    overflows = exact.isfinite() & ~want.isfinite()
    rounded = torch.where(exact.isfinite() & rounded.isinf(), want, rounded)  # it may be the eps of a dtype's own
    rounded = torch.where(overflows & ~got.isfinite(), got, rounded)  # to inf or nan, as sums go
    torch.testing.assert_close(got, rounded, equal_nan=True, rtol=tolerance["rtol"], atol=atol)


def assert_as_torch(
    use: Callable, row: OperatorCase, call: Call, device: str, raises: bool | None = False, **options
) -> None:
    """Assert that ``use(f, *leaves)`` does the same for our f as for torch's, which raises or not; None allows both."""
    results = []
    for library in (customops, torch):
        xs = [row.draw((2, 3, 2, 2), seed=i, device=device, **options).requires_grad_() for i in range(call.arity)]
        results.append(outcome(use, partial(call.function, library), *xs))
    if raises is not None:
        assert isinstance(results[1], type) is raises, results[1]
    assert_same_outcomes(*results)


def backward(z: Tensor, *leaves: Tensor, **options) -> list[Tensor | None]:
    """Return the gradients that the backward pass of ``z`` leaves in these tensors."""
    z.backward(cotangent(z), **options)
    return [x.grad for x in leaves]


def gradients(function: Callable, inputs: list[Tensor], g: Tensor | None = None) -> list[Tensor | None]:
    """Return the gradients of ``function(*inputs)`` for ``g``, by default the cotangent that its shape has."""
    leaves = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in inputs]
    z = function(*leaves)
    if g is None:
        g = cotangent(z)
    return list(torch.autograd.grad(z, leaves, g, allow_unused=True))


def derivatives(function: Callable, xs: list[Tensor]) -> list[Tensor | None]:
    """Return values, gradients, the same recorded, and the gradients of these for inputs and cotangents."""
    z = function(*xs)
    zs = z if isinstance(z, tuple | list) else (z,)
    gs = [cotangent(z).requires_grad_() for z in zs]
    once = torch.autograd.grad(zs, xs, gs, retain_graph=True, allow_unused=True)
    again = torch.autograd.grad(zs, xs, gs, create_graph=True, allow_unused=True)
    moved = [dx for dx in again if dx is not None and dx.requires_grad]
    twice = moved and torch.autograd.grad(moved, [*xs, *gs], list(map(cotangent, moved)), allow_unused=True)
    return [*zs, *once, *again, *twice]


def assert_as_by_formula(function: Callable, xs: list[Tensor]) -> None:
    """Assert that values and derivatives in float64 are those of the formulas, which match finite differences.

    So any element that is off by 1e-10 shows, where gradcheck's fast mode passes one in a thousand that is off by 1 %.
    """
    got = derivatives(function, xs)
    with customops.backend("torch"):
        want = derivatives(function, xs)
    assert [x is None for x in got] == [x is None for x in want]
    for mine, theirs in zip(got, want, strict=True):
        if theirs is not None:
            assert_equal(mine, theirs)


def cotangent(z: Tensor) -> Tensor:
    """Return a fixed, irregular gradient for ``z``."""
    numbers = torch.arange(z.numel(), dtype=torch.float64).mul(0.7).sin().add(1.2)
    return numbers.reshape(z.shape).to(z.device, z.dtype)


def record_launches(monkeypatch: pytest.MonkeyPatch, fact: Callable = lambda launch: launch.kernel.__name__) -> list:
    """Return a list that gets a ``fact`` of each launch from now on: by default the name of its kernel."""
    from customops.triton_kernels.launch import Launch  # noqa: PLC0415 - Triton may be missing

    made: list = []
    method = "interpret" if config.is_interpreted() else "__call__"
    real = getattr(Launch, method)

    def record(self, *args):
        made.append(fact(self))
        real(self, *args)

    monkeypatch.setattr(Launch, method, record)
    return made


def assert_agree_at_edges(function, columns, g, *others):
    """Assert that value and gradients are torch's on the same device.

    A zero has the sign that it has there, or on the CPU, where relu keeps that of -0, or the sign that ``others``,
    which compute the same, give it on the CPU.
    """
    got, want = (_value_and_gradients(function, library, columns, g) for library in (customops, torch))
    cpu = [x.cpu() for x in columns], g.cpu()
    signs = zip(*(_value_and_gradients(same, torch, *cpu) for same in (function, *others)), strict=True)
    for mine, theirs, known in zip(got, want, signs, strict=True):
        torch.testing.assert_close(mine, theirs, equal_nan=True, **TOLERANCE[g.dtype])
        wrong = mine.signbit() != theirs.signbit()
        for sign in known:
            wrong &= mine.signbit() != sign.to(mine.device).signbit()
        assert not (wrong & (theirs == 0)).any(), "a zero has the wrong sign"


def _value_and_gradients(function, library, columns, g):
    xs = [x.clone().requires_grad_() for x in columns]
    z = function(library, *xs)
    return [z.detach(), *torch.autograd.grad(z, xs, g)]
