"""The launches that a trace would take operator by operator, to tell what fusing it saves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import config
from ..config import backend
from ..ops.comparison import Predicate
from ..runtime.memory import unbacked, unbacked_like
from ..runtime.specs import broadcast_shapes, contiguous
from ..tools.dry_run import dry_run
from ..tools.report import total
from .operators import Cast, ClassIndex, Detach, Fill, PositionsAlong, Ref, TraceOperator
from .shapes import Expand, Narrow
from .trace import Trace


class Cost(NamedTuple):
    """The cost of one direction."""

    kernels: int  # how many are launched
    bytes_moved: int | None  # bytes that they load and store


def unfused(trace: Trace, tensors: Sequence[Tensor], needed: Sequence[int], target: str) -> list[Cost]:
    """Return the cost of a trace operator by operator: forward and, if inputs are ``needed`` gradients of, backward.

    The tensors are on the CPU. The sums that autograd makes where several operators read a value are counted, though
    they are no kernels of ours, and so are casts.
    """
    with dry_run(target) as records, backend("triton"), torch.enable_grad(), _no_plans_kept():
        values, applied, copies = _apply(trace, tensors, needed)
        launches = len(records)
        forward = Cost(launches + len(copies), total([*(record.bytes_moved for record in records), *copies]))
        if not needed:
            return [forward]
        sums = _differentiate(values, applied, {ref.value for ref in trace.outputs})
        launched = records[launches:]
    moved = total([*(record.bytes_moved for record in launched), *sums])
    return [forward, Cost(len(launched) + len(sums), moved)]


class _Applied(NamedTuple):
    """An operator applied, on the way from a needed input to a result."""

    value: int  # what it returned, by number in the trace
    inputs: list[tuple[Tensor, int]]  # those that depend on a needed input, each with its number
    operator: Any  # its class


def _apply(
    trace: Trace, tensors: Sequence[Tensor], needed: Sequence[int]
) -> tuple[list[Tensor], list[_Applied], list[int]]:
    """Apply each operator by itself.

    Returns all values, the operators that gradients pass through, and the bytes of each copy, cast or fill, which is
    torch's kernel.
    """
    values, depends_on_needed, applied = list(tensors), set(needed), []
    copies: list[int] = []
    for i, (operator, inputs) in enumerate(trace.nodes, trace.arity):
        if issubclass(operator, Predicate):  # torch's own, which the count leaves out
            shape = broadcast_shapes(*(values[x.value].shape for x in inputs if isinstance(x, Ref)))
            values.append(unbacked(shape, contiguous(shape), torch.bool))
            continue
        numbers = [x.value if isinstance(x, Ref) else None for x in inputs]
        args = [
            x if k is None else values[k].detach().requires_grad_(k in depends_on_needed)
            for k, x in zip(numbers, inputs, strict=True)
        ]
        dependent = [(x, k) for k, x in zip(numbers, args, strict=True) if k is not None and k in depends_on_needed]
        if issubclass(operator, TraceOperator):
            value, copied = _copied(operator, args, trace.dtypes[i])
            copies += [copied] if copied else []
        else:
            value = operator.apply(*args)
        values.append(value)
        if dependent and operator not in (Detach, Fill, PositionsAlong, ClassIndex):
            depends_on_needed.add(i)
            applied.append(_Applied(i, dependent, operator))
    return values, applied, copies


def _copied(operator: Any, args: Sequence, dtype: torch.dtype) -> tuple[Tensor, int]:
    """Return the value of an operator that only traces have, and the bytes that are moved if it is no view."""
    if operator is Detach:
        return args[0].detach(), 0
    if operator is PositionsAlong:
        return operator.by_formula(*args), 0
    if issubclass(operator, Cast | Fill):
        like = unbacked_like(args[0])
        value = unbacked(like.shape, like.stride(), dtype)
        return value, filled(value) + (filled(args[0]) if issubclass(operator, Cast) else 0)
    z = operator.view(*args)
    if z is not None:
        return z, 0
    shape = operator.shape(*[x.shape if isinstance(x, Tensor) else x for x in args])
    value = unbacked(shape, contiguous(shape), dtype)
    return value, 2 * filled(value)


def _copied_back(operator: Any, inputs: Sequence[Tensor], g: Tensor) -> tuple[list[Tensor], list[int]]:
    """Return the cotangents of the inputs of such an operator, and the bytes of each kernel of torch's for them.

    A range is written into zeros, what was repeated is summed, a cast is undone, all else is a view.
    """
    if operator is Cast:
        grad = unbacked_like(inputs[0])
        return [grad], [filled(g) + filled(grad)]
    grads = [unbacked(x.shape, contiguous(x.shape), g.dtype) for x in inputs]
    if operator is Narrow:
        return grads, [filled(grads[0]), 2 * filled(g)]
    return grads, [filled(g) + filled(grads[0])] if operator is Expand else []


def _differentiate(values: Sequence[Tensor], applied: Sequence[_Applied], outputs: set[int]) -> list[int]:
    """Take the gradients of operators one by one; return the bytes of each sum of two cotangents, and of each copy."""
    cotangents = {i: unbacked_like(values[i]) for i in outputs}
    sums = []
    for value, inputs, operator in reversed(applied):
        if value not in cotangents:
            continue
        own, g = [x for x, _ in inputs], cotangents.pop(value)
        if issubclass(operator, TraceOperator):
            grads, moved = _copied_back(operator, own, g)
            sums += moved
        else:
            grads = [*torch.autograd.grad(values[value], own, g)]
        for (_, k), grad in zip(inputs, grads, strict=True):
            if k in cotangents:
                total = unbacked(grad.shape, contiguous(grad.shape), grad.dtype)
                sums.append(sum(map(filled, (cotangents[k], grad, total))))
                grad = total
            cotangents[k] = grad
    return sums


def filled(x: Tensor) -> int:
    """Return the bytes of a tensor in memory, however often it is expanded."""
    return prod(n for n, stride in zip(x.shape, x.stride(), strict=True) if stride) * x.itemsize


@contextmanager
def _no_plans_kept() -> Iterator[None]:
    """Forget the plans made inside."""
    before = set(config.plans)
    try:
        yield
    finally:
        for key in set(config.plans) - before:
            config.plans.pop(key, None)
