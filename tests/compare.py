"""Hold a result of ours against torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Half types round once from float32 where torch's CPU kernels may round in between: alpha·y, say.
TOLERANCE = {
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 5e-3},
    torch.float32: {"rtol": 3e-6, "atol": 1e-5},
    torch.float64: {"rtol": 1e-10, "atol": 1e-12},
    torch.complex64: {"rtol": 3e-6, "atol": 1e-5},
    torch.complex128: {"rtol": 1e-10, "atol": 1e-12},
}


def assert_equal(got: Tensor, want: Tensor, strides: bool = False, computed: torch.dtype | None = None) -> None:
    """Value, as close as ``computed`` allows, dtype, shape and, if asked, strides; nan equals nan."""
    tolerance = TOLERANCE.get(computed or want.dtype, {"rtol": 0, "atol": 0})
    torch.testing.assert_close(got, want, equal_nan=True, check_stride=strides, **tolerance)


def outcome(function: Callable, *args, **kwargs) -> Any:
    """What a call returns, or the type of what it raises."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        return type(error)


def assert_same_outcome(got: Any, want: Any, strides: bool = False, computed: torch.dtype | None = None) -> None:
    """Equal results, or the same type of exception."""
    if isinstance(got, Tensor) and isinstance(want, Tensor):
        assert_equal(got, want, strides, computed)
    else:
        assert got is want, f"got {got}, want {want}"


def gradients(function: Callable, inputs: list[Tensor], g: Tensor | None = None) -> list[Tensor | None]:
    """The gradients of ``function(*inputs)`` for the cotangent ``g``, by default one drawn from its shape."""
    leaves = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in inputs]
    z = function(*leaves)
    if g is None:
        g = cotangent(z)
    return list(torch.autograd.grad(z, leaves, g, allow_unused=True))


def cotangent(z: Tensor) -> Tensor:
    """A fixed, irregular gradient for ``z``."""
    numbers = torch.arange(z.numel(), dtype=torch.float64).mul(0.7).sin().add(1.2)
    return numbers.reshape(z.shape).to(z.device, z.dtype)
