"""Measure one case: every contestant's times, memory and results, compared with the composition in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from customops.tools.timing import in_turns, prepared

from .. import memory
from ..measure import cotangent, difference, is_as_exact, one_line, over, phases, quantiles, ratios, tensors_of
from .contestants import CONTESTANTS, contestant
from .gallery import EVERY
from .layers import Case, cast
from .verdicts import PHASES

COMPARED = ("forward", "recorded", "both")  # results, those of a call that is recorded, and gradients


class Layers:
    """What the contestants compute in one case, and the operands that all of them take."""

    def __init__(self, case: Case, contestants: Sequence[str]):
        layer, self.dtype = EVERY[case.layer], getattr(torch, case.dtype)
        *xs, last = layer.draw(case.size, self.dtype)
        self.xs, self.target = (xs, [last]) if layer.target else ([*xs, last], [])
        found = {who: contestant(layer, who) for who in contestants}
        self.functions = {who: function for who, function in found.items() if function}
        z = self.functions["eager"](*self.xs, *self.target)
        self.g = tuple(map(cotangent, z)) if isinstance(z, tuple) else cotangent(z)
        exact = {name: tensors_of(self.phase("eager", name, torch.float64)()) for name in PHASES}
        self.exact = [exact["forward"], exact["forward"], exact["both"]]  # for each that is compared

    def phase(self, who: str, name: str, dtype: torch.dtype | None = None) -> Callable[[], Any]:
        """Return one phase of a contestant's layer, ready to be called, on operands in ``dtype``."""
        xs, target = ([cast(x, dtype or self.dtype) for x in tensors] for tensors in (self.xs, self.target))
        g: Any = [x.to(dtype or self.dtype) for x in tensors_of(self.g)]
        function = self.functions[who]
        return phases(lambda *xs: function(*xs, *target), xs, g if isinstance(self.g, tuple) else g[0])[name]()

    def faults(self, who: str) -> Iterator[str]:
        """Yield how a contestant's result is wrong: far from float64's, and farther than the composition's."""
        for phase, exact in zip(COMPARED, self.exact, strict=True):
            got = tensors_of(self.phase(who, phase)())
            differs = difference([x.double() for x in got], exact, self.dtype)
            if differs and not is_as_exact(got, tensors_of(self.phase("eager", phase)()), exact):
                yield f"{who} differs from eager in float64, {phase}: {differs}"


def measure(case: Case, contestants: Sequence[str] = CONTESTANTS, threads: Sequence[int] = (1,)) -> Iterator[dict]:
    """Yield a row for each number of threads and phase; torch.compile takes part with one thread only.

    In the row of forward and backward are the faults of both phases: with the first number of threads all contestants',
    and memory; then ours.
    """
    torch.compiler.reset()
    layers = Layers(case, contestants)
    for count in threads:
        torch.set_num_threads(count)
        chosen = [who for who in layers.functions if who != "compile" or count == 1]
        compared = [who for who in chosen if who == "ours" or (count == threads[0] and who != "eager")]
        faults = [fault for who in compared for fault in _faults(layers, who)]
        for phase in PHASES:
            row = {"layer": case.layer, "size": case.size, "dtype": case.dtype, "threads": count, "phase": phase}
            row |= _times(layers, chosen, phase)
            if phase == "both":
                if count == threads[0]:
                    row |= _memory(layers, row["times"])
                row["faults"] = faults
            yield row
    torch.set_num_threads(threads[0])


def _faults(layers: Layers, who: str) -> list[str]:
    """Return how the results of a contestant are wrong; that it raises is in ``failed``, where it is timed."""
    try:
        return [*layers.faults(who)]
    except Exception:
        if who == "ours":
            raise
        return []


def _times(layers: Layers, contestants: Sequence[str], phase: str) -> dict[str, Any]:
    """Return the times of a phase, their ratios to the composition's, and those of ours to each other's."""
    runs, failed = {}, []
    for who in contestants:
        try:
            runs[who] = prepared([layers.phase(who, phase)])
        except Exception as error:  # such as a compiler that is missing: the others must not be lost
            if who in ("ours", "eager"):
                raise
            failed.append(f"{who}: {one_line(error)}")
    times = in_turns(runs)
    return {
        "times": {who: quantiles(samples) for who, samples in times.items()},
        "ratios": ratios(times),
        "ours_to": {who: over(times["ours"], samples) for who, samples in times.items() if who != "ours"},
        "faults": [],
        "failed": failed,
    }


def _memory(layers: Layers, contestants: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return the bytes at the highest point of forward and backward, and those saved between the two."""
    return {
        "peak": {who: memory.peak(layers.phase(who, "both"), "cpu") for who in contestants},
        "saved": {who: memory.saved(layers.phase(who, "recorded")) for who in contestants},
    }
