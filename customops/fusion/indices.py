"""Indices of classes among the inputs of a fused function: on a CPU they are checked, as torch does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import nll_loss

from .. import config
from .operators import ClassIndex
from .trace import Trace


class Indices(NamedTuple):
    """An input that has indices of classes."""

    input: int  # its position
    classes: int  # how many there are
    ignored: int  # the index of none


def indices_of(trace: Trace) -> tuple[Indices, ...]:
    """Return the inputs that a call has to check: none on a GPU, where a value that is read stops the launches."""
    if trace.device.type != "cpu":
        return ()
    found = [node.inputs for node in trace.nodes if node.operator is ClassIndex]
    sources = [(trace.source(ref.value), classes, ignored) for ref, classes, ignored in found]
    return tuple(dict.fromkeys(Indices(*each) for each in sources if each[0] < trace.arity))


def check_indices(every: Sequence[Indices], tensors: Sequence[Tensor]) -> None:
    """Raise torch's error for an index that is neither of a class nor that of none; a dry run has no values."""
    if config.dry_run_target is not None:
        return
    for i, classes, ignored in every:
        x = tensors[i].detach()
        low, high = torch.aminmax(x)
        if low < 0 or high >= classes:
            x = x.long()  # a byte is compared as one: 255 would be -1
            wrong = x[((x < 0) | (x >= classes)) & (x != ignored)]
            if wrong.numel():
                nll_loss(torch.zeros(1, device="cpu").expand(1, classes), wrong[:1])  # raises
