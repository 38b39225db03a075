"""Call one layer in each way that is compared: fused, in torch's operators, by torch's own function, compiled."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

import torch

from examples import layers as examples

from .layers import Layer

CONTESTANTS = ("ours", "eager", "own", "compile")


def contestant(layer: Layer, who: str) -> Callable[..., Any] | None:
    """Return a layer as one of ``CONTESTANTS`` computes it; None where torch has no function of its own."""
    if who == "ours":
        return layer.ours
    if who == "own":
        return layer.own
    eager = composition(layer.ours)
    return torch.compile(eager, dynamic=False) if who == "compile" else eager


def composition(layer: Callable[..., Any]) -> Callable[..., Any]:
    """Return a layer of the examples in torch's operators, not fused: the same code, where ``ops`` is torch."""
    return _examples_in_torch()[inspect.unwrap(layer).__name__]


@cache
def _examples_in_torch() -> dict[str, Any]:
    """Return the names of the examples' module, as if it imported torch instead of customops."""
    names = {**vars(examples), "ops": torch}
    for name, value in vars(examples).items():
        function = inspect.unwrap(value) if inspect.isfunction(value) else value
        if function is not value:  # what is fused wraps what was written
            names[name] = FunctionType(function.__code__, names, name, function.__defaults__)
    return names
