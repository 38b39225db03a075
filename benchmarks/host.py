"""The time that a call costs the host, at 8 elements: on the device, and on a driver that launches nothing.

On so few elements a call takes host time alone. On the recording driver of ``customops.dry_run`` it takes all of the
kernels' path but the GPU driver's own launch.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial

import torch

import customops
from tests.cases import CALLS, Call

from .measure import cotangent, phases, ratios
from .text import judged
from .timing import in_turns, prepared

BUDGET = {"forward": 10, "recorded": 18, "both": 40}  # microseconds on the recording driver, of an operator on x
RATIOS = {"forward": 1.3, "both": 1.5}  # ours to eager on the device, geometric means
REPEATS = 50  # calls in one sample


def measure(device: str, ops: list[str] | None = None) -> Iterator[dict]:
    """Yield results in microseconds: ours and eager's on the device, then ours on the recording driver."""
    for row, call in CALLS:
        if ops and row.name not in ops:
            continue
        xs = [row.draw((2, 1, 2, 2), torch.float32, seed=i, device=device) for i in range(call.arity)]
        for phase in RATIOS:
            times = _microseconds(
                {"ours": phase_of(customops, call, xs, phase), "eager": phase_of(torch, call, xs, phase)}
            )
            yield {"call": call.name, "phase": phase, "where": "GPU" if device == "cuda" else "CPU", **_summary(times)}
        xs = [x.cpu() for x in xs]
        with customops.dry_run() as records:
            calls = {phase: phase_of(customops, call, xs, phase) for phase in BUDGET}
            times = _microseconds({**calls, "clear": records.clear})
        for phase in BUDGET:
            yield {"call": call.name, "phase": phase, "where": "recording driver", **_summary({"ours": times[phase]})}


def verdicts(results: list[dict]) -> Iterator[str]:
    """Yield each budget, what was measured, and whether it is met."""
    for phase, most in RATIOS.items():
        mean = statistics.geometric_mean(r["ratio"] for r in results if r["phase"] == phase and "ratio" in r)
        yield judged(f"host, {phase}, geometric mean of ratios to eager, at most {most}: {mean:.2f}", mean <= most)
    recorded = [result for result in results if result["where"] == "recording driver"]
    for phase, most in BUDGET.items():
        worst = max((result for result in recorded if result["phase"] == phase), key=_microseconds_of_ours)
        measured = f"{_microseconds_of_ours(worst):.0f} of {worst['call']}"
        yield judged(
            f"host, {phase}, recording driver, at most {most} us: {measured}", _microseconds_of_ours(worst) <= most
        )


def _microseconds_of_ours(result: dict) -> float:
    return result["times"]["ours"]


def phase_of(library, call: Call, xs: list, phase: str) -> Callable:
    """Return one phase of a call of ``library`` on ``xs``."""
    return phases(partial(call.function, library), xs, cotangent(call.function(library, *xs)))[phase]()


def _microseconds(functions: dict[str, Callable]) -> dict[str, list[float]]:
    """Time the host alone, on a GPU too, which keeps up with calls on 8 elements."""
    runs = {name: prepared([function], repeats=REPEATS) for name, function in functions.items()}
    return {name: [1e3 * sample for sample in samples] for name, samples in in_turns(runs).items()}


def _summary(times: dict[str, list[float]]) -> dict:
    """Return the medians, and where eager was timed the ratio to it."""
    summary: dict = {"times": {name: statistics.median(samples) for name, samples in times.items()}}
    if "eager" in times:
        summary["ratio"] = ratios(times)["ours"]
    return summary
