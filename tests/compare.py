"""Hold results of ours against torch's in ways that only tests need; the others are in ``customops.proof.compare``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import customops
from customops import config
from customops.proof.compare import (
    STRICT,
    TOLERANCE,
    assert_agree_at_edges,
    assert_as_by_formula,
    assert_equal,
    assert_same_outcome,
    cotangent,
    derivatives,
    outcome,
    outcomes,
)

from .cases import Call, OperatorCase

__all__ = [
    "STRICT",
    "TOLERANCE",
    "assert_agree_at_edges",
    "assert_as_by_formula",
    "assert_equal",
    "assert_same_outcome",
    "cotangent",
    "derivatives",
    "outcome",
    "outcomes",
]


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
