"""Steps that need not be computed: their value is that of an equal step, or of one of their arguments.

A formula knows nothing of another: that what it compares with 0 is a mask, that what it multiplies by is 1, or that
both sides of a choice are one value. Here the steps of all formulas of a pass are seen at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .lowering import copy
from .masks import COMPARISONS, exclusive_or, is_zero, keep
from .steps import Ref, Step

ZERO = torch.zeros((), device="cpu")


def without_known(steps: Sequence[Step]) -> list[Step]:
    """Return as many steps, which read what is known in its place; only where it is written to a leaf is it copied."""
    first: dict[Any, Ref] = {}  # by what a step computes
    same: dict[Ref, Any] = {}  # by value, what is read in its place
    read: list[Step] = []
    for k, step in enumerate(steps):
        step = step._replace(args=tuple([same.get(x, x) if isinstance(x, Ref) else x for x in step.args]))
        value = _known(step, read)
        read.append(step if value is None else step._replace(function=copy, args=(value,)))
        if step.out is None:
            key = step._replace(args=tuple(map(_identity, step.args)))
            same[Ref(False, k)] = first.setdefault(key, Ref(False, k)) if value is None else value
    return read


def _known(step: Step, steps: Sequence[Step]) -> Any:
    """Return the value of a step that is one of its arguments, or 0; None if it has to be computed."""
    if step.function is torch.mul:
        return next((x for x, one in (step.args, step.args[::-1]) if repr(one) in ("1", "1.0")), None)
    x, *others = step.args
    if step.function is keep:
        return x if is_zero(x) else None
    before = steps[x.position] if isinstance(x, Ref) and not x.is_leaf else None
    if step.function is torch.ne:
        return x if before and before.function in COMPARISONS and repr(others) == "[0]" else None
    if step.function is exclusive_or:
        return _difference(x, others[0], before)
    return None


def _difference(x: Any, y: Any, before: Step | None) -> Any:
    """Return the bits in which x, which the step ``before`` computes, differs from y; None if they are not known."""
    if is_zero(x) or _identity(x) == _identity(y):
        return y if is_zero(x) else ZERO
    if before and before.function is exclusive_or:
        a, b = before.args
        return next((one for one, other in ((a, b), (b, a)) if _identity(other) == _identity(y)), None)
    return None


def _identity(x: Any) -> Any:
    """Return what tells an argument of a step from others."""
    return x if isinstance(x, Ref) else (id(x) if isinstance(x, torch.Tensor) else repr(x))
