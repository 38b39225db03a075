"""What the project sets out to reach, held against what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import geometric_mean

from .cases import KINDS

CPU = {"forward": 1.02, "both": 0.80}  # time over eager's, geometric mean of the standard cases
WORST = 1.08  # and of any one
SCALARS = 1024  # bytes of peak memory that are no tensor's
BACKWARD = {"pow(x, y)": 4, "mul(x, y)": 1.8}  # times eager's speed on a GPU, where y is a row


def verdicts(kind: str, rows: list[dict]) -> Iterator[str]:
    """Each target, what was measured, and whether it is met."""
    chosen = [row for row in rows if row["numel"] == KINDS[kind] and row["dtype"] == "float32"]
    standard = [row for row in chosen if row["standard"]]
    if standard:
        yield from map(judged, *zip(*(_cuda if kind == "cuda" else _cpu)(standard, chosen), strict=True))
    higher = [row for row in rows if row["peak"]["ours"] > row["peak"]["eager"] + SCALARS]
    yield judged(f"peak memory no higher than eager's: {_extreme(higher, _peak) or 'none'}", not higher)
    faults = [fault for row in rows for fault in row["faults"]]
    ours = [fault for fault in faults if fault.startswith("ours")]
    fast = ", none faster than memory" * (kind == "cuda")
    counted = f"{len(ours)} faults of ours, {len(faults) - len(ours)} of others, in {len(rows)} comparisons"
    yield judged(f"results as eager's{fast}: {counted}", not ours)


def judged(measured: str, met: bool) -> str:
    """With the verdict in a word."""
    return f"{measured}: {'met' if met else 'MISSED'}"


def _cpu(standard: list[dict], _chosen: list[dict]) -> Iterator[tuple[str, bool]]:
    for phase, most in CPU.items():
        rows = [row for row in standard if row["phase"] == phase]
        mean = geometric_mean(map(_ratio, rows))
        yield f"{phase}, geometric mean of {len(rows)} ratios to eager, at most {most}: {mean:.3f}", mean <= most
        yield f"{phase}, none above {WORST}: {_extreme(rows, _ratio)}", max(map(_ratio, rows)) <= WORST


def _cuda(standard: list[dict], chosen: list[dict]) -> Iterator[tuple[str, bool]]:
    forward = [row for row in standard if row["phase"] == "forward" and row["pattern"] == "contiguous"]
    of = f"over {len(forward)}"
    yield f"forward, 0.9 of a copy's speed, {of}: {_extreme(forward, _share, min)}", min(map(_share, forward)) >= 0.9
    yield f"forward, 0.98 of eager's speed, {of}: {_extreme(forward, _speed, min)}", min(map(_speed, forward)) >= 0.98
    for call, least in BACKWARD.items():
        named = [r for r in chosen if (r["call"], r["pattern"], r["phase"]) == (call, "[M, N], [N]", "backward")]
        found = _extreme(named, _speed) or "not measured"
        yield f"{call}, {least} times eager's speed: {found}", bool(named) and _speed(named[0]) >= least
    both = [row for row in standard if row["phase"] == "both"]
    speed = 1 / geometric_mean(map(_ratio, both))
    yield f"both, geometric mean of {len(both)}, 1.3 times eager's speed: {speed:.2f}", speed >= 1.3
    against = [row["ratios"]["compile"] / _ratio(row) for row in both if "compile" in row["ratios"]]
    if against:
        yield (
            f"both, geometric mean, torch.compile's speed: {geometric_mean(against):.2f}",
            geometric_mean(against) >= 1,
        )


def _ratio(row: dict) -> float:
    return row["ratios"]["ours"]


def _speed(row: dict) -> float:
    return 1 / _ratio(row)


def _peak(row: dict) -> float:
    return row["peak"]["ours"] / max(row["peak"]["eager"], 1)


def _share(row: dict) -> float:
    """Of the copy's bytes a second."""
    return (row["bytes"] / row["times"]["ours"][1]) / (row["copy_bytes"] / row["copy"][1])


def _extreme(rows: list[dict], key: Callable[[dict], float], pick: Callable = max) -> str:
    """The row at one end, by name."""
    row = pick(rows, key=key, default=None)
    return f"{key(row):.2f} of {row['call']}, {row['pattern']}, {row['phase']}" if row else ""
