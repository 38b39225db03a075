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
from .steps import Pass, Ref, Step, variation_of

ZERO = torch.zeros((), device="cpu")


def without_known(walk: Pass) -> list[Step]:
    """Return as many steps as a pass has, which read what is known in its place.

    It is copied where it is written to a leaf, and where it varies along fewer axes than the value that it is: a sum of
    that value has it once for each element.
    """
    first: dict[Any, Ref] = {}  # by what a step computes
    known: dict[Any, Any] = {}  # by value, what it is
    same: dict[Any, Any] = {}  # by value, what is read in its place
    steps: list[Step] = []
    for k, step in enumerate(walk.steps):
        value = _known(step._replace(args=_replaced(step.args, known)), steps)
        function, args = (step.function, _replaced(step.args, same)) if value is None else (copy, (value,))
        step = step._replace(function=function, args=args)
        steps.append(step)
        if step.out is None:
            ref = Ref(False, k)
            known[ref] = same[ref] = first.setdefault(step._replace(args=tuple(map(_identity, args))), ref)
            if value is not None:
                known[ref] = value
            if isinstance(value, Ref) and variation_of(value, walk.leaves, steps) == step.varies:
                same[ref] = value
    return steps


def _replaced(args: tuple, others: dict[Any, Any]) -> tuple:
    """Return arguments, of which Refs may have others in their place."""
    return tuple([others.get(x, x) if isinstance(x, Ref) else x for x in args])


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
