"""Time functions against each other on a machine that does other things too."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

ROUNDS = 31


def rounds(functions: Sequence[Callable], repeats: int, count: int = ROUNDS) -> list[list[float]]:
    """Microseconds of a call of each function, for each of ``count`` rounds in which they take turns."""
    for function in functions:
        function()
    return [[_microseconds(function, repeats) for function in functions] for _ in range(count)]


def _microseconds(function: Callable, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - start) / repeats * 1e6
