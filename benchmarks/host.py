"""The time that a call costs the host, at 8 elements: on the device, and on a driver that launches nothing.

On so few elements a call takes host time alone. On the recording driver of ``customops.dry_run`` it takes all of the
kernels' path but the GPU driver's own launch. Targets are ratios of times in the same rounds, as no two machines agree
on microseconds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

import customops
from customops._compat import apply_without_binding
from customops.tools.timing import in_turns, prepared
from tests.cases import CALLS, Call

from .measure import cotangent, phases, ratios
from .text import judged

RATIOS = {"forward": 1.3, "both": 1.5}  # ours to eager on the device, geometric means over all calls
LAUNCHED = {"forward": 0.45, "both": 1.6}  # exp on the recording driver, to eager's exp forward and backward on the CPU
FUSED = 1.3  # a fused call to exp, both on the recording driver
PHASES = ("forward", "recorded", "both")  # what is timed on the recording driver
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
            calls = {phase: phase_of(customops, call, xs, phase) for phase in PHASES}
            times = _microseconds({**calls, "clear": records.clear})
        for phase in PHASES:
            yield {"call": call.name, "phase": phase, "where": "recording driver", **_summary({"ours": times[phase]})}
    yield from measure_launches()


def measure_launches() -> Iterator[dict]:
    """Yield exp and a fused call on the recording driver, and a bare Function, all beside eager's exp on the CPU.

    ``to_eager`` is each to eager's forward and backward in the same rounds, ``to_exp`` a fused call to exp.
    """
    x = torch.rand(2, 1, 2, 2)
    phased = partial(phases, xs=[x], g=cotangent(x))
    ours, fused = phased(customops.exp), phased(_silu)
    with customops.dry_run() as records:
        calls = {("exp(x)", phase): ours[phase]() for phase in PHASES}
        calls |= {("x * sigmoid(x), fused", phase): fused[phase]() for phase in PHASES}
        calls[FLOOR, "both"] = phased(apply_without_binding(_Exp))["both"]()
        contestants = {"eager": phased(torch.exp)["both"](), "clear": records.clear, **calls}
        times = _microseconds(contestants)
    for (call, phase), samples in ((key, times[key]) for key in calls):
        result = {"call": call, "phase": phase, "where": "beside eager's exp", **_summary({"ours": samples})}
        for name, others in {"to_eager": times["eager"], "to_exp": times["exp(x)", phase]}.items():
            result[name] = ratios({"ours": samples, "eager": others})["ours"]
        yield result


FLOOR = "a Function that computes e^x and g·z alone"


class _Exp(torch.autograd.Function):
    """The least that a derivative written in Python takes: torch's own part of ours."""

    @staticmethod
    def forward(ctx, x):
        """Return e^x, and save it."""
        z = torch.exp(x)
        ctx.save_for_backward(z)
        return z

    @staticmethod
    def backward(ctx, g):
        """Return the gradient."""
        (z,) = ctx.saved_tensors
        return g * z


@customops.fuse
def _silu(x):
    return x * customops.sigmoid(x)


def verdicts(results: list[dict]) -> Iterator[str]:
    """Yield each target, what was measured, and whether it is met."""
    for phase, most in RATIOS.items():
        found = [r["ratio"] for r in results if r["phase"] == phase and "ratio" in r]
        if found:
            mean = statistics.geometric_mean(found)
            yield judged(f"host, {phase}, geometric mean of ratios to eager, at most {most}: {mean:.2f}", mean <= most)
    beside = {(result["call"], result["phase"]): result for result in results if "to_eager" in result}
    if not beside:
        return
    floor = beside[FLOOR, "both"]["to_eager"]
    for phase, most in LAUNCHED.items():
        measured = beside["exp(x)", phase]["to_eager"]
        least = f" ({FLOOR}: {floor:.2f})" * (phase == "both")
        target = f"host, {phase} of exp on the recording driver to eager's forward and backward, at most {most}"
        yield judged(f"{target}: {measured:.2f}{least}", measured <= most)
        fused = beside["x * sigmoid(x), fused", phase]["to_exp"]
        yield judged(f"host, {phase} of a fused call to that of exp, at most {FUSED}: {fused:.2f}", fused <= FUSED)


def phase_of(library, call: Call, xs: list, phase: str) -> Callable:
    """Return one phase of a call of ``library`` on ``xs``."""
    return phases(partial(call.function, library), xs, cotangent(call.function(library, *xs)))[phase]()


def _microseconds(functions: Mapping[Any, Callable]) -> dict[Any, list[float]]:
    """Time the host alone, on a GPU too, which keeps up with calls on 8 elements."""
    runs = {name: prepared([function], repeats=REPEATS) for name, function in functions.items()}
    return {name: [1e3 * sample for sample in samples] for name, samples in in_turns(runs).items()}


def _summary(times: dict[str, list[float]]) -> dict:
    """Return the medians, and where eager was timed the ratio to it."""
    summary: dict = {"times": {name: statistics.median(samples) for name, samples in times.items()}}
    if "eager" in times:
        summary["ratio"] = ratios(times)["ours"]
    return summary
