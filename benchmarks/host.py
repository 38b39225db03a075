"""``python -m benchmarks --host``: what a call costs the host, on the CPU and on a driver that launches nothing.

At 8 elements a call is host time alone. On the recording driver of ``customops.dry_run`` that is all of the kernels'
path but the GPU driver's own launch. Rounds of ours and of eager alternate; each figure is the median of the rounds,
each ratio the median of the ratios within one.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch
from tqdm import tqdm

import customops
from tests.cases import CALLS

from .timing import rounds

BUDGET = {"forward": 10, "recorded": 18, "both": 40}  # microseconds on the recording driver, of an operator on x
RATIOS = {"forward": 1.3, "both": 1.5}  # ours to eager on the CPU, geometric means


class Phases(NamedTuple):
    """A call without gradient, with one that autograd records, and with its backward, as functions of nothing."""

    forward: Callable
    recorded: Callable
    both: Callable

    @classmethod
    def of(cls, library, call, xs) -> Phases:
        """The phases of ``call`` in ``library``."""
        leaves = [x.clone().requires_grad_() for x in xs]
        g = torch.ones_like(call.function(torch, *xs))
        return cls(
            lambda: call.function(library, *xs),
            lambda: call.function(library, *leaves),
            lambda: torch.autograd.grad(call.function(library, *leaves), leaves, g),
        )


def main(names=None) -> int:
    """Print the table, and each figure that is over its budget."""
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, 8 elements, float32, microseconds\n")
    print(f"{'':<18}{'CPU: forward':>26}{'forward + backward':>26}{'recording driver':>36}")
    print(
        f"{'':<18}" + f"{'ours':>10}{'eager':>8}{'ratio':>8}" * 2 + f"{'forward':>14}{'recorded':>11}{'+ backward':>11}"
    )
    ratios: dict[str, list[float]] = {phase: [] for phase in RATIOS}
    over = []
    for row, call in tqdm([c for c in CALLS if not names or c[0].name in names]):
        xs = [row.draw((2, 1, 2, 2), torch.float32, seed=i) for i in range(call.arity)]
        ours, eager = Phases.of(customops, call, xs), Phases.of(torch, call, xs)
        line = f"{call.name:<18}"
        for phase in RATIOS:
            times = rounds([getattr(ours, phase), getattr(eager, phase)], repeats=50)
            ratios[phase].append(statistics.median(mine / theirs for mine, theirs in times))
            mine, theirs = map(statistics.median, zip(*times, strict=True))
            line += f"{mine:>10.1f}{theirs:>8.1f}{ratios[phase][-1]:>8.2f}"
        with customops.dry_run() as records:
            times = rounds([*ours, records.clear], repeats=50)
        recorded = dict(zip(BUDGET, map(statistics.median, zip(*times, strict=True)), strict=False))
        tqdm.write(line + "   " + "".join(f"{recorded[phase]:>11.1f}" for phase in BUDGET))
        over += [f"{call.name}, {p}: {recorded[p]:.1f} of {BUDGET[p]} us" for p in BUDGET if recorded[p] > BUDGET[p]]
    means = {phase: statistics.geometric_mean(ratios[phase]) for phase in RATIOS}
    print("\ngeometric mean of the ratios: " + ", ".join(f"{p} {m:.2f} of {RATIOS[p]}" for p, m in means.items()))
    print(*["over budget on the recording driver:", *over] if over else ["all in budget"], sep="\n  ")
    return 0
