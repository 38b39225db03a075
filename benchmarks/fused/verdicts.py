"""Compare what was measured with what the project sets out to reach on a CPU, and list the losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import geometric_mean

from ..text import judged

PHASES = {"forward": "forward", "both": "forward + backward"}
RIVALS = {"eager": "the composition's", "own": "torch's own", "compile": "torch.compile's"}
LARGE, SMALL = [4096, 4096], [64, 256]  # sizes that targets are about; float32 and one thread
TO_EAGER = {"forward": 0.45, "both": 0.30}  # geometric means at the large size
WORST = 0.9  # of any layer there
TO_COMPILE = 1.0  # forward + backward there, geometric mean
TO_OWN, WORST_OWN = 1.0, 2.0  # in half the layers that torch has there, and in any
PEAK = 0.5  # of the composition's peak memory there, geometric mean
SMALL_TO_EAGER = 1.0  # forward + backward at the small size, geometric mean
SPEEDUP = 1.6  # of two threads at the large size, geometric mean
FIRST = 20  # milliseconds of the first call of any layer
LOSS = 1.02  # a ratio above it, as it is written, is listed


def verdicts(rows: Sequence[dict], first: Sequence[dict]) -> Iterator[str]:
    """Yield each target that something was measured for, the figure, and whether it is met."""
    for phase in PHASES:
        yield from _means(rows, phase, LARGE, "eager", TO_EAGER[phase], WORST)
    yield from _means(rows, "both", LARGE, "compile", TO_COMPILE)
    yield from _own(rows)
    yield from _means(rows, "both", SMALL, "eager", SMALL_TO_EAGER)
    yield from _memory(select(rows, LARGE, "both"))
    yield from _threads(rows)
    yield from _first(first)
    wrong = [fault for row in rows for fault in row["faults"] if fault.startswith("ours")]
    yield judged(f"results and gradients as the composition's in float64: {len(wrong)} faults of ours", not wrong)


def select(rows: Sequence[dict], size: Sequence[int], phase: str, threads: int = 1, dtype: str = "float32") -> list:
    """Return the rows of all layers at one size, phase, number of threads and dtype."""
    wanted = ([*size], phase, threads, dtype)
    return [row for row in rows if ([*row["size"]], row["phase"], row["threads"], row["dtype"]) == wanted]


def name_of(row: dict) -> str:
    """Return which row it is."""
    threads = "1 thread" if row["threads"] == 1 else f"{row['threads']} threads"
    return f"{row['layer']}, {written(row['size'])}, {row['dtype']}, {threads}, {PHASES[row['phase']]}"


def written(size: Sequence[int]) -> str:
    """Return a size as it is printed."""
    return "x".join(map(str, size))


def losses(rows: Sequence[dict]) -> Iterator[str]:
    """Yield each row in which ours is slower than another, and by how much."""
    for row in rows:
        slower = {who: ratio for who, ratio in row["ours_to"].items() if round(ratio, 2) > LOSS}
        if slower:
            ratios = ", ".join(f"{ratio:.2f} of {RIVALS[who]}" for who, ratio in slower.items())
            yield f"{name_of(row)}: {ratios}"


def _means(
    rows: Sequence[dict], phase: str, size: Sequence[int], rival: str, most: float, worst: float | None = None
) -> Iterator[str]:
    """Yield the geometric mean of the ratios to a rival, and the highest of them where there is a target for it."""
    found = {row["layer"]: row["ours_to"][rival] for row in select(rows, size, phase) if rival in row["ours_to"]}
    if not found:
        return
    title = f"{PHASES[phase]} at {written(size)}"
    mean = geometric_mean(found.values())
    highest = "" if worst else f", highest {_highest(found)}"
    text = f"{title}, geometric mean of {len(found)} ratios to {RIVALS[rival]}, at most {most:g}"
    yield judged(f"{text}: {mean:.2f}{highest}", mean <= most)
    if worst:
        yield judged(f"{title}, no layer above {worst:g}: {_highest(found)}", max(found.values()) <= worst)


def _own(rows: Sequence[dict]) -> Iterator[str]:
    """Yield how ours stand to torch's own functions, in each phase."""
    for phase, title in PHASES.items():
        found = {r["layer"]: r["ours_to"]["own"] for r in select(rows, LARGE, phase) if "own" in r["ours_to"]}
        if not found:
            continue
        reached = sum(ratio <= TO_OWN for ratio in found.values())
        text = f"{title} at {written(LARGE)}, at most {TO_OWN:g} of torch's own in half the layers or more"
        yield judged(f"{text}: in {reached} of {len(found)}", 2 * reached >= len(found))
        text = f"{title} at {written(LARGE)}, no layer above {WORST_OWN:g} of torch's own"
        yield judged(f"{text}: {_highest(found)}", max(found.values()) <= WORST_OWN)


def _memory(rows: Sequence[dict]) -> Iterator[str]:
    """Yield the targets of peak memory and of the bytes saved for backward."""
    rows = [row for row in rows if "peak" in row]
    if not rows:
        return
    peaks = {row["layer"]: row["peak"]["ours"] / row["peak"]["eager"] for row in rows}
    mean = geometric_mean(peaks.values())
    text = f"peak memory of forward + backward, geometric mean of {len(peaks)} ratios to the composition's"
    yield judged(f"{text}, at most {PEAK:g}: {mean:.2f}, highest {_highest(peaks)}", mean <= PEAK)
    saved = {row["layer"]: row["saved"]["ours"] / row["saved"]["own"] for row in rows if row["saved"].get("own")}
    if saved:
        over = sum(ratio > 1 for ratio in saved.values())
        text = f"bytes saved at most those of torch's own: more in {over} of {len(saved)} layers"
        yield judged(f"{text}, highest {_highest(saved)}", not over)


def _threads(rows: Sequence[dict]) -> Iterator[str]:
    """Yield how much faster two threads are than one."""
    for phase, title in PHASES.items():
        one, two = ({r["layer"]: r["times"]["ours"][1] for r in select(rows, LARGE, phase, n)} for n in (1, 2))
        speeds = {layer: one[layer] / two[layer] for layer in two if layer in one}
        if speeds:
            mean = geometric_mean(speeds.values())
            text = f"{title} at {written(LARGE)}, two threads, at least {SPEEDUP:g} times one thread's speed"
            yield judged(
                f"{text}, geometric mean of {len(speeds)}: {mean:.2f}, lowest {_highest(speeds, min)}", mean >= SPEEDUP
            )


def _first(first: Sequence[dict]) -> Iterator[str]:
    """Yield what the first call costs, the dearest layer's, and what it costs others."""
    ours = {call["layer"]: call["wall"] for call in first if call["who"] == "ours"}
    if not ours:
        return
    dearest = max(ours, key=lambda layer: ours[layer])
    calls = {call["who"]: call for call in first if call["layer"] == dearest}
    eager = f", the composition {calls['eager']['wall']:.1f}" if "eager" in calls else ""
    compiled = [call["wall"] for call in first if call["who"] == "compile"]
    least = f", torch.compile of any {min(compiled):.0f} or more" if compiled else ""
    text = f"first forward + backward of a layer in a process, below {FIRST} ms"
    figures = f"{ours[dearest]:.1f} ms of {dearest}, {calls['ours']['cpu']:.1f} of CPU{eager}{least}"
    yield judged(f"{text}: {figures}", ours[dearest] < FIRST)


def _highest(figures: dict[str, float], pick: Callable = max) -> str:
    layer = pick(figures, key=lambda name: figures[name])
    return f"{figures[layer]:.2f} of {layer}"
