"""Marks that several files of tests share."""

from __future__ import annotations

import pytest

from .cases import CALLS, ids

every_call = pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
by_path = pytest.mark.sample(formulas="operator, path", kernels="path")  # for what a call's path alone decides
formulas_only = pytest.mark.sample(kernels="")  # for what asks nothing of the backend
