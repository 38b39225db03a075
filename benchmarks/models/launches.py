"""Count what a training step launches, and the bytes that it moves, before and after ``customops.apply``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

from torch import Tensor
from torch.nn import Module

import customops
from customops._compat import without_modes
from customops.fusion.decorator import Fused
from customops.fusion.function import FusedFunction
from customops.models.cost import TorchKernels

from .families import inputs_of, made, step

PRODUCTS = "mm", "bmm", "addmm", "baddbmm", "convolution", "embedding", "attention"  # parts of torch's names


class Launches(NamedTuple):
    """The launches of a step that are no matrix product, attention or embedding."""

    count: int
    bytes_moved: int


def launches(model: Module, inputs: dict[str, Tensor]) -> Launches:
    """Return what a step launches: torch's operators, and for fused calls what is compiled for a GPU."""
    backward = FusedFunction._backward_cls
    step(model, inputs)  # a first call copies what a module has, to be able to give it back
    with (
        mock.patch.object(Fused, "call", _unseen(Fused.call)),
        mock.patch.object(backward, "apply", _unseen(backward.apply)),
        customops.dry_run("cuda:90") as records,
        TorchKernels() as seen,
    ):
        step(model, inputs)
    each = [size for name, size in seen.launches if not any(part in name for part in PRODUCTS)]
    each += [record.bytes_moved or 0 for record in records]
    return Launches(len(each), sum(each))


def _unseen(function: Callable) -> Callable:
    """Return a function in which torch's operators are not counted."""

    def call(*args, **kwargs):
        with without_modes():
            return function(*args, **kwargs)

    return call


def counted(name: str) -> dict[str, Any]:
    """Return what ``apply`` makes of a family's small model, and what a step launches."""
    plain, inputs = made(name), inputs_of(name)
    applied = copy.deepcopy(plain)
    taken = customops.apply(applied, inputs).taken
    modules = sum(not any(True for _ in x.children()) for x in plain.modules())
    fused = sum(x.extent == "forward" for x in taken)
    return {
        "modules": modules,
        "fused": fused,
        "others": len(taken) - fused,  # stretches and functions
        "difference": max([x.difference for x in taken], default=0.0),
        "torch": launches(plain, inputs)._asdict(),
        "ours": launches(applied, inputs)._asdict(),
    }
