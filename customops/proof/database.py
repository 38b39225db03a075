"""PyTorch's own operator database: its samples, on which ours has to do what torch's does."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

import customops

from .._compat import operator_database
from .cases import OperatorCase
from .compare import assert_same_outcome, cotangent, outcome


@cache
def torchs(row: OperatorCase) -> Any:
    """Return torch's record of an operator, which is called as torch's function. Raises ImportError for expecttest."""
    return next(info for info in operator_database() if info.name == (row.database or row.name))


def ours(name: str) -> Callable[..., Tensor]:
    """Return our operator of a name, as the database calls it."""
    if name == "where":
        return lambda x, condition, y, **out: customops.where(condition, x, y, **out)
    return getattr(customops, name)


def check_value(row: OperatorCase, sample: Any, by_kernels: bool = False) -> None:
    """Raise AssertionError unless a sample has torch's value, dtype and strides, or raises what torch raises.

    Where it is computed ``by_kernels``, one that is complex, as ``where`` may have of real numbers, has to be refused.
    """
    want = outcome(torchs(row), sample.input, *sample.args, **sample.kwargs)
    got = outcome(ours(row.name), sample.input, *sample.args, **sample.kwargs)
    is_refused = by_kernels and isinstance(want, Tensor) and want.is_complex()
    assert_same_outcome(got, RuntimeError if is_refused else want, strides=True)


def check_gradients(row: OperatorCase, s: Any, by_kernels: bool = False) -> int:
    """Raise AssertionError unless a sample has torch's gradients; return how many were compared, 1 or 0.

    Where they are computed ``by_kernels``, those of half types are held against torch's in float32.
    """
    inputs = tuple(t for t in (s.input, *s.args) if isinstance(t, Tensor) and t.requires_grad)
    z = torchs(row)(s.input, *s.args, **s.kwargs)
    if not inputs or not z.requires_grad:
        return 0
    g = cotangent(z)
    try:
        want = _torchs_gradients(row, s, inputs, g, by_kernels)
    except RuntimeError as error:  # torch sums no gradient of clamp's over the dimensions that another bound adds
        if row.name != "clamp" or "doesn't match the broadcast shape" not in str(error):
            raise
        return 0
    z = ours(row.name)(s.input, *s.args, **s.kwargs)
    got = torch.autograd.grad(z, inputs, g, allow_unused=True)
    for mine, theirs in zip(got, want, strict=True):
        assert_same_outcome(mine, theirs)
    return 1


def _floats_to(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in another dtype, unless it is a mask."""
    return x.to(dtype) if x.is_floating_point() else x


def _torchs_gradients(row: OperatorCase, s: Any, inputs: tuple, g: Tensor, by_kernels: bool) -> tuple:
    """Return torch's gradients; for half types in a kernel, its float32 ones from rounded saved tensors."""
    if not (by_kernels and g.dtype.itemsize == 2):
        return torch.autograd.grad(torchs(row)(s.input, *s.args, **s.kwargs), inputs, g, allow_unused=True)
    wide = [t.float() if isinstance(t, Tensor) and t.dtype.itemsize == 2 else t for t in (s.input, *s.args)]
    with torch.autograd.graph.saved_tensors_hooks(
        partial(_floats_to, dtype=g.dtype), partial(_floats_to, dtype=torch.float32)
    ):
        z = torchs(row)(*wide, **s.kwargs)
        return torch.autograd.grad(z, inputs, g.to(z.dtype), allow_unused=True)
