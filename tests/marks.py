"""Marks that several files of tests share."""

from __future__ import annotations

import pytest
import torch

from .cases import CALLS, ids

every_call = pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
by_path = pytest.mark.sample(formulas="operator, path", kernels="path")  # for what a call's path alone decides
formulas_only = pytest.mark.sample(kernels="")  # for what asks nothing of the backend


def is_derivative_changed(call: object, *names: str) -> bool:
    """Return whether ``call`` is of an operator whose derivative torch has changed in 2.15, and ours is as before.

    That is a clamp, where x equals a bound or is nan, or one of ``names``; docs/versions.md has the table.
    """
    return torch.__version__ >= (2, 15) and str(call).partition("(")[0] in ("clamp", "clamp_min", "clamp_max", *names)


def skip_changed_derivative(call: object, *names: str) -> None:
    """Skip a case whose derivative torch has changed; see above."""
    if is_derivative_changed(call, *names):
        pytest.skip("torch has changed this derivative at ties and nan in 2.15: docs/versions.md")
