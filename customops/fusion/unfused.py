"""What a trace would launch operator by operator: what fusing it saves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from .. import config
from ..config import backend
from ..runtime.memory import unbacked, unbacked_like
from ..runtime.specs import contiguous
from ..tools.dry_run import dry_run
from .proxy import Ref
from .trace import Trace


class Cost(NamedTuple):
    """Kernels of one direction, and the bytes that they load and store."""

    kernels: int
    moved: int


def unfused(trace: Trace, tensors: Sequence[Tensor], wanted: Sequence[int], target: str) -> list[Cost]:
    """Of each operator applied by itself to tensors on the CPU, forward, and backward if gradients are ``wanted``.

    The sums that autograd makes where several operators read a value are counted, though they are no kernels of ours.
    """
    with dry_run(target) as records, backend("triton"), torch.enable_grad(), _no_plans_kept():
        values, touched, calls = list(tensors), set(wanted), []
        for i, (operator, inputs) in enumerate(trace.nodes, trace.arity):
            reads = [x.value if isinstance(x, Ref) else None for x in inputs]
            given = [
                x if k is None else values[k].detach().requires_grad_(k in touched)
                for k, x in zip(reads, inputs, strict=True)
            ]
            values.append(operator.apply(*given))
            if touched.intersection(reads):
                touched.add(i)
                calls.append((i, {x: k for k, x in zip(reads, given, strict=True) if k in touched}))
        forward = Cost(len(records), sum(record.bytes_moved for record in records))
        if not wanted:
            return [forward]
        sums = _differentiate(values, calls, {ref.value for ref in trace.outputs})
        launched = records[forward.kernels :]
    return [forward, Cost(len(launched) + len(sums), sum(record.bytes_moved for record in launched) + sum(sums))]


def _differentiate(values: Sequence[Tensor], calls: Sequence[tuple], outputs: set[int]) -> list[int]:
    """Take the gradients of calls one by one; the bytes of each sum of two of them."""
    found = {i: unbacked_like(values[i]) for i in outputs}
    sums = []
    for i, inputs in reversed(calls):
        if i not in found:
            continue
        grads = torch.autograd.grad(values[i], list(inputs), found.pop(i))
        for k, grad in zip(inputs.values(), grads, strict=True):
            if k in found:
                total = unbacked(grad.shape, contiguous(grad.shape), grad.dtype)
                sums.append(sum(map(filled, (found[k], grad, total))))
                grad = total
            found[k] = grad
    return sums


def filled(x: Tensor) -> int:
    """The bytes of a tensor, however often it is expanded."""
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
