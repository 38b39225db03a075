"""Estimate what a GPU takes for each row of the benchmark, and say how far off the model of docs/model.md is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from statistics import geometric_mean

import torch

import customops
from customops.runtime.memory import unbacked
from customops.tools.estimate import total_seconds
from customops.tools.targets import GPUS, TARGETS, Target
from tests.cases import LAYOUTS

from .cases import Case
from .measure import phases

# What torch calls the GPUs of the model. Others of their families have another memory or fewer multiprocessors.
NAMES = {
    "A100 SXM": r"A100-SXM4-80GB$",
    "H100 SXM": r"H100 80GB HBM3$",
    "H200": r"\bH200$",
    "B200": r"\bB200$",
    "RTX 5090": r"RTX 5090$",
    "MI300X": r"MI300X",
}
WORST = 5  # rows that are listed


def gpu_named(name: str) -> Target | None:
    """Return the GPU that torch calls ``name``, None where the model has no constants of it."""
    return next((GPUS[model] for model, pattern in NAMES.items() if re.search(pattern, name)), None)


def estimate(case: Case, phase: str, gpu: Target) -> float:
    """Return the milliseconds that the launches of ours are estimated to take in one phase of a case.

    It is a dry run: operands have no memory, and nothing is computed.
    """
    target = next(name for name, other in TARGETS.items() if (other.backend, other.arch) == (gpu.backend, gpu.arch))
    function = partial(case.call.function, customops)
    with customops.dry_run(target) as records, customops.backend("triton"):
        xs = _operands(case)
        run = phases(function, xs, torch.empty_like(function(*xs)))[phase]()
        records.clear()
        run()
        return 1e3 * total_seconds(records, gpu)


def _operands(case: Case) -> list[torch.Tensor]:
    """Return tensors that lie in memory as the drawn ones do."""
    layout = LAYOUTS.get(case.pattern, LAYOUTS["contiguous"])
    likes = [layout(torch.empty(shape, dtype=case.dtype, device="meta")) for shape in case.shapes]
    return [unbacked(x.shape, x.stride(), x.dtype) for x in likes]


def comparison(results: Sequence[dict]) -> Iterator[str]:
    """Yield how far the estimates are from what was measured, in all and where they are furthest.

    A ratio is that of the measured median to the estimate: above 1 the GPU takes longer than the model says.
    """
    ratios = [(_ratio(row), row) for row in results if row.get("estimate")]
    if not ratios:
        return
    for phase in dict.fromkeys(row["phase"] for _, row in ratios):
        found = [ratio for ratio, row in ratios if row["phase"] == phase]
        off = geometric_mean(max(ratio, 1 / ratio) for ratio in found)
        text = (
            f"model, {phase}: measured {geometric_mean(found):.2f} of the estimate, geometric mean of {len(found)} rows"
        )
        yield f"{text}; off by a factor of {off:.2f}"
    for ratio, row in sorted(ratios, key=lambda pair: max(pair[0], 1 / pair[0]), reverse=True)[:WORST]:
        described = ", ".join(str(row[name]) for name in ("call", "pattern", "numel", "dtype", "phase"))
        times = f"{row['times']['ours'][1]:.3g} ms, estimate {row['estimate']:.3g} ms, {ratio:.2f}"
        yield f"model, furthest off: {described}: {times}"


def _ratio(row: dict) -> float:
    return row["times"]["ours"][1] / row["estimate"]
