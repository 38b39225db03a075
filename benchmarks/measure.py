"""Measure one case: every contestant's times, memory and results, compared with eager's."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import customops
from customops.tools.timing import in_turns, prepared
from tests.compare import TOLERANCE

from . import memory
from .cases import Case
from .peers import peers

PHASES = ("forward", "backward", "both")
DRAWS, LARGE = 3, 1 << 28  # draws that even out where tensors lie in memory, and the bytes that they may take together
PAST_CACHE = 4  # times that the operands of all draws fill the cache
MOST_DRAWS = 64  # whatever the cache
PIECE = 1 << 17  # elements of two tensors that are compared at a time
ROUNDING = 32  # torch.compile's sums on a CPU, in no tree, are ten times as far from float64 as eager's
FASTER_THAN_COPY = {"cuda": 1.3, "cpu": 2}  # times a copy's speed: more is a fault; a CPU reads what it will write


def phases(function: Callable, xs: list[Tensor], g: Tensor) -> dict[str, Callable[[], Callable]]:
    """Return, for each phase of ``function(*xs)``, what sets it up and returns a function of nothing that runs it."""
    leaves = [x.detach().requires_grad_() for x in xs]
    return {
        "forward": lambda: lambda: function(*xs),
        "recorded": lambda: lambda: function(*leaves),
        "backward": lambda: partial(torch.autograd.grad, function(*leaves), leaves, g, retain_graph=True),
        "both": lambda: lambda: torch.autograd.grad(function(*leaves), leaves, g),
    }


def cotangent(z: Tensor) -> Tensor:
    """Return a gradient for ``z``, always the same."""
    generator = torch.Generator(z.device).manual_seed(0)
    return torch.rand(z.shape, generator=generator, dtype=z.dtype, device=z.device)


def measure(case: Case, phase: str, device: str, cache: int = 0, draws: int = 0, compiles: bool = False) -> dict:
    """Measure one phase of a case on every contestant.

    Operands are drawn ``draws`` times, or until they fill a cache of ``cache`` bytes several times, and used in turn.
    """
    functions, failed = _functions(case, phase, compiles)
    xs = case.draw(device, 0)
    draws = draws or _draws(memory.footprint(xs), cache)
    operands = [xs, *(case.draw(device, seed) for seed in range(1, draws))]
    gs = [cotangent(functions["eager"](*xs)) for xs in operands]
    widest = max(xs, key=Tensor.numel)
    contestants, runs = {}, {"copy": prepared(_copies(widest, cache), device)}
    for name, function in functions.items():
        try:
            calls = [phases(function, xs, g)[phase]() for xs, g in zip(operands, gs, strict=True)]
            runs[name] = prepared(calls, device)
        except Exception as error:
            if name in ("ours", "eager"):
                raise
            failed.append(f"{name}, {case}, {phase}: {one_line(error)}")
        else:
            contestants[name] = calls
    times = in_turns(runs)

    def exact(i: int) -> Any:
        return phases(functions["eager"], [x.double() for x in operands[i]], gs[i].double())[phase]()()

    least = _least_bytes(functions["ours"], xs, gs[0], phase)
    result: dict[str, Any] = {
        **_description(case, phase),
        "bytes": least,
        "copy": quantiles(times.pop("copy")),
        "copy_bytes": 2 * widest.numel() * widest.element_size(),
        "cached": draws * least < 2 * cache if cache else True,
        "times": {name: quantiles(samples) for name, samples in times.items()},
        "ratios": ratios(times),
        "peak": {name: memory.peak(calls[0], device) for name, calls in contestants.items()},
        "faults": _disagreements(contestants, exact, case),
        "failed": failed,
    }
    if phase == "both":
        recorded = {name: phases(functions[name], xs, gs[0])["recorded"]() for name in contestants}
        result["saved"] = {name: memory.saved(call) for name, call in recorded.items()}
    result["faults"] += _cache_hits(result, FASTER_THAN_COPY[device])
    return result


def one_line(error: Exception) -> str:
    """Return an error in one line."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _functions(case: Case, phase: str, compiles: bool) -> tuple[dict[str, Callable], list[str]]:
    """Return the call in every library that has it, and an error for those that cannot be imported."""
    functions = {"ours": partial(case.call.function, customops), "eager": partial(case.call.function, torch)}
    if compiles:
        if phase == PHASES[0]:
            torch.compiler.reset()
        functions["compile"] = torch.compile(functions["eager"], dynamic=False)
    try:
        return functions | peers(case.call, phase), []
    except Exception as error:
        return functions, [f"peers of {case}, {phase}: {one_line(error)}"]


def _description(case: Case, phase: str) -> dict[str, Any]:
    """Return what tells one result from another."""
    return {
        "operator": case.row.name,
        "call": case.call.name,
        "pattern": case.pattern,
        "shapes": [list(shape) for shape in case.shapes],
        "numel": case.numel,
        "dtype": str(case.dtype).removeprefix("torch."),
        "standard": case.is_standard,
        "phase": phase,
    }


def ratios(times: dict[str, list[float]]) -> dict[str, float]:
    """Return the median of each contestant's times over eager's in the same round."""
    return {name: over(samples, times["eager"]) for name, samples in times.items() if name != "eager"}


def over(mine: list[float], theirs: list[float]) -> float:
    """Return the median of the ratios of two contestants' times in the same round."""
    return statistics.median(a / b for a, b in zip(mine, theirs, strict=True))


def _draws(size: int, cache: int) -> int:
    """Return how often operands of ``size`` bytes are drawn: once where they are large, else by the constants above."""
    return max(1, min(DRAWS, LARGE // size), min(MOST_DRAWS, math.ceil(PAST_CACHE * cache / size)))


def _copies(x: Tensor, cache: int) -> list[Callable]:
    """Return copies of as many bytes as ``x`` has, from and to memory that no other copy touches."""
    n = _draws(x.numel() * x.element_size(), cache)
    sources, targets = torch.empty((2, n, x.numel()), dtype=x.dtype, device=x.device).unbind()
    sources.fill_(1)
    return [partial(target.copy_, source) for source, target in zip(sources, targets, strict=True)]


def _least_bytes(function: Callable, xs: list[Tensor], g: Tensor, phase: str) -> int:
    """Return the bytes to be moved at least: operands and result once, or the gradients and what was saved for them.

    A gradient that is g itself is no work.
    """
    forward = memory.footprint([*xs, g])  # g is of the result's size
    if phase == "forward":
        return forward
    setups = phases(function, xs, g)
    storage = g.untyped_storage().data_ptr()
    grads = [grad for grad in setups["both"]()() if grad.untyped_storage().data_ptr() != storage]
    backward = memory.footprint([g, *grads]) + memory.saved(setups["recorded"]()) if grads else 0
    return backward + (forward if phase == "both" else 0)


def quantiles(samples: list[float]) -> list[float]:
    """Return the quantiles that ``triton.testing`` shows: the median between 20 % and 80 %."""
    fifths = statistics.quantiles(samples, n=5, method="inclusive")
    return [fifths[0], statistics.median(samples), fifths[3]]


def _disagreements(contestants: dict[str, list[Callable]], exact: Callable[[int], Any], case: Case) -> list[str]:
    """Return a fault for each contestant whose result differs from eager's, on the very tensors that were timed.

    Other rounding is no fault: a result may be ``ROUNDING`` times as far as eager's from ``exact``, that in float64.
    """
    faults = []
    for name in contestants.keys() - {"eager"}:
        for i, (call, eager) in enumerate(zip(contestants[name], contestants["eager"], strict=True)):
            got, want = tensors_of(call()), tensors_of(eager())
            differs = difference(got, want, case.dtype)
            if differs and not is_as_exact(got, want, tensors_of(exact(i))):
                faults.append(f"{name} differs from eager: {differs}")
                break
    return faults


def tensors_of(result: Any) -> list[Tensor]:
    """Return the tensors of a result, one or several, without their graph."""
    return [x.detach() for x in ([result] if isinstance(result, Tensor) else result)]


def difference(got: list[Tensor], want: list[Tensor], dtype: torch.dtype) -> str:
    """Return where the two are further apart than an elementwise operator in ``dtype`` rounds, nothing where not."""
    for mine, theirs in zip(got, want, strict=True):
        if _is_near(mine, theirs, **TOLERANCE[dtype]):
            continue
        try:
            torch.testing.assert_close(mine, theirs, **TOLERANCE[dtype])
        except AssertionError as error:
            return " ".join(str(error).split())
    return ""


def _is_near(mine: Tensor, theirs: Tensor, rtol: float, atol: float) -> bool:
    """Return whether two tensors of a kind are near; False where one is not finite. Pieces stay in the cache."""
    if (mine.shape, mine.dtype, mine.device) != (theirs.shape, theirs.dtype, theirs.device):
        return False
    pieces = zip(mine.reshape(-1).split(PIECE), theirs.reshape(-1).split(PIECE), strict=True)
    return all(bool(((x.double() - y.double()).abs() <= atol + rtol * y.double().abs()).all()) for x, y in pieces)


def is_as_exact(got: list[Tensor], want: list[Tensor], exact: list[Tensor]) -> bool:
    """Return whether ``got`` is at most ``ROUNDING`` times as far from ``exact`` as ``want``."""
    return all(
        mine.shape == theirs.shape and (mine - true).abs().max() <= ROUNDING * (theirs - true).abs().max()
        for mine, theirs, true in zip(got, want, exact, strict=True)
    )


def _cache_hits(result: dict, most: float) -> list[str]:
    """Return a fault for each contestant that moves bytes faster than a copy can, though not from the cache."""
    if result["cached"]:
        return []
    copy = result["copy_bytes"] / result["copy"][1] / 1e6
    speeds = {name: result["bytes"] / quantiles[1] / 1e6 for name, quantiles in result["times"].items()}
    fast = [name for name, speed in speeds.items() if speed > most * copy]
    return [f"{name} is faster than memory: {speeds[name]:.0f} GB/s, where a copy has {copy:.0f}" for name in fast]
