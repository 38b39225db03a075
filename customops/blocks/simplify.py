"""Fewer steps for the same values: of products that are added, signs, and numbers that are multiplied by one another.

A step reads and writes a block, so a product that is only added is no step of its own where torch has one operator for
both. Values change by less than their rounding: a product is rounded once less, and numbers are multiplied first. Only
moderate numbers are joined: the product of others may be infinite, and torch refuses an ``alpha`` beyond the dtype. A
value that is multiplied by two numbers may stay finite where the first product alone would overflow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from .known import without_known
from .steps import Pass, Ref, Step

MODERATE = 1e18  # the largest number that is joined to another; the square of it, and of its inverse, is a float32

Definition = Callable[[Any], Step | None]  # the step that computes a value which only one step reads


class Product(NamedTuple):
    """A value as a product: a number times one or two values."""

    number: Any
    factors: tuple


def simplify(walk: Pass) -> Pass:
    """Return a pass whose steps write the same leaves."""
    steps = without_known(walk)
    uses = Counter(x.position for step in steps for x in step.args if isinstance(x, Ref) and not x.is_leaf)
    simplified: list[Step] = []

    def definition(x: Any) -> Step | None:
        once = isinstance(x, Ref) and not x.is_leaf and uses[x.position] == 1 and steps[x.position].out is None
        return simplified[x.position] if once else None

    for step in steps:
        simplified.append(step if step.is_compared else _scaled(_added(step, definition), definition))
    return walk._replace(steps=_without_unread(simplified))


def _added(step: Step, definition: Definition) -> Step:
    """Return a sum or difference of which one term is a product as one step, if it can be one."""
    if step.function not in (torch.add, torch.sub):
        return step
    x, y = step.args
    sign = 1 if step.function is torch.add else -1
    for term, product, is_swapped in ((x, y, False), (y, x, True)):
        definite = None if is_swapped and sign < 0 else definition(product)
        found = _product(definite) if definite and isinstance(term, Ref) and definite.dtype == step.dtype else None
        if found and len(found.factors) == 2:
            return step._replace(
                function=partial(torch.addcmul, value=sign * found.number), args=(term, *found.factors)
            )
        if found:
            return step._replace(function=partial(torch.add, alpha=sign * found.number), args=(term, *found.factors))
    return step


def _product(step: Step) -> Product | None:
    """Return what a step multiplies, None if that is not all it does."""
    if step.function is torch.neg:
        return Product(-1, step.args)
    if step.function is torch.mul:
        numbers = [x for x in step.args if not isinstance(x, Ref)]
        factors = tuple(x for x in step.args if isinstance(x, Ref))
        return Product(numbers[0] if numbers else 1, factors) if all(map(_is_moderate, numbers)) and factors else None
    if isinstance(step.function, partial) and step.function.func is torch.addcmul:
        zero, *others = step.args
        is_zero = isinstance(zero, torch.Tensor) and not zero.any()
        return Product(step.function.keywords.get("value", 1), tuple(others)) if is_zero else None
    return None


def _scaled(step: Step, definition: Definition) -> Step:
    """Return a step that multiplies by a number what another number was multiplied by, as one by both."""
    number, x = _scale(step)
    inner = definition(x) if number is not None else None
    other, source = _scale(inner) if inner else (None, None)
    if other is None:
        return step
    return step._replace(function=torch.mul, args=(source, float(number) * other))  # integers might have no dtype


def _scale(step: Step) -> tuple[Any, Any]:
    """Return the number that a step multiplies a value by, and the value; None for both if it does something else."""
    if step.function is torch.neg:
        return -1, step.args[0]
    if step.function is torch.add and step.args[0] == step.args[1]:
        return 2, step.args[0]
    if step.function is torch.div and _is_moderate(step.args[1]):
        return 1 / step.args[1], step.args[0]
    if step.function is torch.mul:
        for number, x in (step.args, step.args[::-1]):
            if _is_moderate(number) and isinstance(x, Ref):
                return number, x
    return None, None


def _is_moderate(x: Any) -> bool:
    """Return whether ``x`` is a number that may be joined to another: not 0 either."""
    return type(x) in (int, float) and 1 / MODERATE <= abs(x) <= MODERATE


def _without_unread(steps: Sequence[Step]) -> list[Step]:
    """Return steps without those whose value nothing reads."""
    read: set[int] = set()
    for k in reversed(range(len(steps))):
        if steps[k].out is not None or k in read:
            read.update(x.position for x in steps[k].args if isinstance(x, Ref) and not x.is_leaf)
            read.add(k)
    new = {k: i for i, k in enumerate(sorted(read))}

    def renumbered(x: Any) -> Any:
        return x._replace(position=new[x.position]) if isinstance(x, Ref) and not x.is_leaf else x

    return [steps[k]._replace(args=tuple(map(renumbered, steps[k].args))) for k in new]
