"""Call one layer in each way that is compared: fused, in torch's operators, by torch's own function, compiled."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import cache
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch.nn import functional

from .layers import Layer

CONTESTANTS = ("ours", "eager", "own", "compile")


def contestant(layer: Layer, who: str) -> Callable[..., Any] | None:
    """Return a layer as one of ``CONTESTANTS`` computes it; None where torch has no function of its own."""
    if who == "ours":
        return layer.ours
    if who == "own":
        return layer.own
    eager = layer.eager or composition(layer.ours)
    return torch.compile(eager, dynamic=False) if who == "compile" else eager


def composition(layer: Callable[..., Any]) -> Callable[..., Any]:
    """Return a layer of the examples or of ours in torch's operators, not fused: the same code, of other names."""
    function = inspect.unwrap(layer)
    return _in_torch(sys.modules[function.__module__])[function.__name__]


@cache
def _in_torch(module: ModuleType) -> dict[str, Any]:
    """Return the names of a module, as if it imported torch's operators instead of ours."""
    names = {**vars(module), "ops": torch}
    for name, value in vars(module).items():
        function = inspect.unwrap(value) if inspect.isfunction(value) else None  # what is fused wraps what was written
        if function is None:
            continue
        if function.__module__ == module.__name__:
            names[name] = FunctionType(function.__code__, names, name, function.__defaults__)
            names[name].__kwdefaults__ = function.__kwdefaults__
        elif function.__module__.startswith("customops."):
            twin = function.__name__  # it may have been imported as another
            names[name] = getattr(torch, twin, None) or getattr(functional, twin, value)
    return names
