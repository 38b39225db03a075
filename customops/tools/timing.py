"""Time functions against each other on a machine that does other things too, and on GPUs by what they do there."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch

from .._compat import sleep_on_gpu

ROUND = 1e-3  # seconds that a contestant takes in a round at least
SECONDS = 0.7  # that all rounds take together, unless told otherwise, or there are too few or too many
LEAST_ROUNDS, MOST_ROUNDS = 5, 15
HEAD_START = 200_000  # GPU cycles, about 0.1 ms, in which the host puts a graph behind the first event

Run = Callable[[], float]
K = TypeVar("K")


def prepared(functions: Sequence[Callable], device: str = "cpu", repeats: int = 0) -> Run:
    """Return a function to be run in turn with others, which returns the milliseconds of one call.

    ``functions`` do the same on different tensors. A run calls them all, ``repeats`` times or for a millisecond; on a
    GPU it replays a graph of them.
    """
    if device == "cuda":
        return _graph(functions)
    first = _loop(functions, 1)
    return _loop(functions, repeats or math.ceil(ROUND / (first() * len(functions) / 1e3)))


def in_turns(runs: Mapping[K, Run], seconds: float = SECONDS) -> dict[K, list[float]]:
    """Return the milliseconds of each contestant in each of some rounds, in which they take turns at random."""
    start = time.perf_counter()
    for run in runs.values():
        run()
    rounds = int(seconds / (time.perf_counter() - start))
    times: dict[K, list[float]] = {name: [] for name in runs}
    shuffler = random.Random(0)
    for _ in range(min(MOST_ROUNDS, max(LEAST_ROUNDS, rounds))):
        for name in shuffler.sample(list(runs), len(runs)):
            times[name].append(runs[name]())
    return times


def _loop(functions: Sequence[Callable], repeats: int) -> Run:
    """Return a run that calls all functions in a loop and reads the host's clock."""

    def run() -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            results = [function() for function in functions]  # alive together: none is written where one just was
        return (time.perf_counter() - start) / repeats / len(results) * 1e3

    run()
    return run


def _graph(functions: Sequence[Callable]) -> Run:
    """Return a run that replays a graph of all calls between two events, so that no time of the host's is in it."""
    for function in functions:
        function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):  # where the forward ran, so backward does too
        results = [function() for function in functions]
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def run() -> float:
        sleep_on_gpu(HEAD_START)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / len(results)

    run()
    return run
