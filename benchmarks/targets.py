"""Compare what was measured with what the project sets out to reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import geometric_mean

from .cases import KINDS
from .text import judged

CPU = {"forward": 1.02, "both": 0.80}  # time over eager's, geometric mean of the standard cases
WORST = 1.08  # time over eager's, of any one
SCALARS = 1024  # bytes of peak memory that ours may have more, for scalars
BACKWARD = {"pow(x, y)": 4, "mul(x, y)": 1.8}  # times eager's speed on a GPU, where y is a row


def verdicts(kind: str, results: list[dict]) -> Iterator[str]:
    """Yield each target, what was measured, and whether it is met."""
    chosen = [result for result in results if result["numel"] == KINDS[kind] and result["dtype"] == "float32"]
    standard = [result for result in chosen if result["standard"]]
    if standard:
        yield from map(judged, *zip(*(_cuda if kind == "cuda" else _cpu)(standard, chosen), strict=True))
    higher = [result for result in results if result["peak"]["ours"] > result["peak"]["eager"] + SCALARS]
    yield judged(f"peak memory no higher than eager's: {_extreme(higher, _peak) or 'none'}", not higher)
    faults = [fault for result in results for fault in result["faults"]]
    ours = [fault for fault in faults if fault.startswith("ours")]
    fast = ", none faster than memory" * (kind == "cuda")
    counted = f"{len(ours)} faults of ours, {len(faults) - len(ours)} of others, in {len(results)} comparisons"
    yield judged(f"results as eager's{fast}: {counted}", not ours)


def _cpu(standard: list[dict], _chosen: list[dict]) -> Iterator[tuple[str, bool]]:
    """Yield each target on a CPU with what was measured, and whether it is met."""
    for phase, most in CPU.items():
        results = [result for result in standard if result["phase"] == phase]
        mean = geometric_mean(map(_ratio, results))
        yield f"{phase}, geometric mean of {len(results)} ratios to eager, at most {most}: {mean:.3f}", mean <= most
        yield f"{phase}, none above {WORST}: {_extreme(results, _ratio)}", max(map(_ratio, results)) <= WORST


def _cuda(standard: list[dict], chosen: list[dict]) -> Iterator[tuple[str, bool]]:
    """Yield each target on a GPU with what was measured, and whether it is met."""
    forward = [result for result in standard if result["phase"] == "forward" and result["pattern"] == "contiguous"]
    count = f"over {len(forward)}"
    yield (
        f"forward, 0.9 of a copy's speed, {count}: {_extreme(forward, _copy_fraction, min)}",
        min(map(_copy_fraction, forward)) >= 0.9,
    )
    yield (
        f"forward, 0.98 of eager's speed, {count}: {_extreme(forward, _speed, min)}",
        min(map(_speed, forward)) >= 0.98,
    )
    for call, least in BACKWARD.items():
        named = [r for r in chosen if (r["call"], r["pattern"], r["phase"]) == (call, "[M, N], [N]", "backward")]
        measured = _extreme(named, _speed) or "not measured"
        yield f"{call}, {least} times eager's speed: {measured}", bool(named) and _speed(named[0]) >= least
    both = [result for result in standard if result["phase"] == "both"]
    speed = 1 / geometric_mean(map(_ratio, both))
    yield f"both, geometric mean of {len(both)}, 1.3 times eager's speed: {speed:.2f}", speed >= 1.3
    against = [result["ratios"]["compile"] / _ratio(result) for result in both if "compile" in result["ratios"]]
    if against:
        yield (
            f"both, geometric mean, torch.compile's speed: {geometric_mean(against):.2f}",
            geometric_mean(against) >= 1,
        )


def _ratio(result: dict) -> float:
    return result["ratios"]["ours"]


def _speed(result: dict) -> float:
    return 1 / _ratio(result)


def _peak(result: dict) -> float:
    return result["peak"]["ours"] / max(result["peak"]["eager"], 1)


def _copy_fraction(result: dict) -> float:
    """Return the bytes a second, over those of a copy."""
    return (result["bytes"] / result["times"]["ours"][1]) / (result["copy_bytes"] / result["copy"][1])


def _extreme(results: list[dict], key: Callable[[dict], float], pick: Callable = max) -> str:
    """Return the key of the result that ``pick`` chooses, and the name of that result."""
    result = pick(results, key=key, default=None)
    return f"{key(result):.2f} of {result['call']}, {result['pattern']}, {result['phase']}" if result else ""
