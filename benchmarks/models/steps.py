"""Time a training step on the CPU, and measure its peak memory, before and after ``customops.apply``."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import customops
from customops.models.check import difference
from customops.tools.timing import in_turns

from ..memory import peak
from .families import FAMILIES, inputs_of, made, step

ROWS = 4
SECONDS = 6.0  # that the rounds of a model take together, unless there are too few or too many


def timed(name: str, seconds: float = SECONDS, rows: int = ROWS) -> dict[str, Any]:
    """Return what a step of a family's wide model takes: medians of rounds, in which the two take turns.

    The step is forward and backward, by one thread, whose processor time is measured. Its peak is that of the tensors
    it makes, above where it begins, as torch counts it. ``difference`` is the largest of logits, loss and gradients,
    relative to the largest element of each.
    """
    family = FAMILIES[name]
    plain, inputs = made(name, **family.wide), inputs_of(name, rows, family.length, **family.wide)
    applied = copy.deepcopy(plain)
    customops.apply(applied, inputs_of(name, 1, min(family.length, 8), **family.wide))
    calls = {"torch": partial(step, plain, inputs), "ours": partial(step, applied, inputs)}
    far = max(map(partial(difference, tolerance=1e-3), calls["ours"](), calls["torch"]()))
    times = in_turns({who: partial(_milliseconds, call) for who, call in calls.items()}, seconds)
    return {
        "difference": far,
        "rounds": len(times["ours"]),
        "milliseconds": {who: median(each) for who, each in times.items()},
        "ratio": median(ours / torch for ours, torch in zip(times["ours"], times["torch"], strict=True)),
        "peak": {who: peak(call, "cpu") for who, call in calls.items()},
    }


def _milliseconds(call: Callable[[], object]) -> float:
    """Return the processor time of this thread that a call takes."""
    start = time.thread_time()
    call()
    return (time.thread_time() - start) * 1e3
