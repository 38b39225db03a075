"""Hold a result of ours against torch's, or those of kernels against those of formulas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import customops

from ..ptx.faults import KernelFault

# How far an element may be from torch's, by its own size, as one operator has few roundings. What a function of many
# operators may be off, relative to the largest element, is in models/check.py.
# Half types round once from float32 where torch's CPU kernels may round in between: alpha·y, say.
TOLERANCE: dict[torch.dtype, Any] = {
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 5e-3},
    torch.float32: {"rtol": 3e-6, "atol": 1e-5},
    torch.float64: {"rtol": 1e-10, "atol": 1e-12},
    torch.complex64: {"rtol": 3e-6, "atol": 1e-5},
    torch.complex128: {"rtol": 1e-10, "atol": 1e-12},
}
STRICT: Any = {"rtol": 1e-6, "atol": 1e-8}  # gradcheck's own 1e-3 passes a gradient that is 0.1 % wrong
outcomes: Counter[str] = Counter()  # how many calls of ``outcome`` returned and raised since it was cleared


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
        if got.requires_grad != want.requires_grad:
            raise AssertionError(f"requires_grad: got {got.requires_grad}, want {want.requires_grad}")
        assert_equal(got, want, strides, computed)
    elif got != want:
        raise AssertionError(f"got {got}, want {want}")


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
    if [x is None for x in got] != [x is None for x in want]:
        raise AssertionError("an input has a gradient by kernels or by formulas alone")
    for mine, theirs in zip(got, want, strict=True):
        if mine is not None and theirs is not None:
            assert_equal(mine, theirs)


def cotangent(z: Tensor) -> Tensor:
    """Return a fixed, irregular gradient for ``z``."""
    numbers = torch.arange(z.numel(), dtype=torch.float64).mul(0.7).sin().add(1.2)
    return numbers.reshape(z.shape).to(z.device, z.dtype)


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
        if (wrong & (theirs == 0)).any():
            raise AssertionError("a zero has the wrong sign")


def _value_and_gradients(function, library, columns, g):
    xs = [x.clone().requires_grad_() for x in columns]
    z = function(library, *xs)
    return [z.detach(), *torch.autograd.grad(z, xs, g)]
