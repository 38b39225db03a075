"""Compare the figures of both libraries with what the project sets out to reach."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import geometric_mean
from typing import NamedTuple

from ..text import judged


class Target(NamedTuple):
    """What a ratio of ours to Liger's may be."""

    title: str  # what is counted
    mean: float  # the most that the geometric mean over all rows may be
    row: float | None  # the most that the ratio of any row may be; None where only the mean counts


TARGETS = {
    "sass": Target("SASS instructions an element", 1.0, 1.3),
    "dram_bytes": Target("DRAM bytes", 1.0, 1.05),
    "launches": Target("launches", 0.7, None),
    "seconds": Target("estimated time", 0.85, 1.05),
}


def name_of(row: dict) -> str:
    """Return which row it is."""
    return f"{row['layer']}, {row['dtype']}, {row['length']}, {row['pass']}"


def ratio_of(row: dict, figure: str) -> float:
    """Return ours over Liger's: below 1 ours is better."""
    return row["ours"][figure] / row["liger"][figure]


def mean_of(rows: Sequence[dict], figure: str) -> float:
    """Return the geometric mean of the ratios."""
    return geometric_mean(ratio_of(row, figure) for row in rows)


def verdicts(rows: Sequence[dict]) -> Iterator[str]:
    """Yield each target, what was counted, and whether it is met."""
    for figure, (title, most, of_row) in TARGETS.items():
        mean = mean_of(rows, figure)
        text = f"{title}, geometric mean of {len(rows)} ratios to Liger's, at most {most}"
        yield judged(f"{text}: {mean:.3f}", mean <= most)
        if of_row is not None:
            worst = max(rows, key=lambda row: ratio_of(row, figure))
            over = sum(ratio_of(row, figure) > of_row for row in rows)
            text = f"{title}, no row above {of_row}: {over} of {len(rows)} are; highest {ratio_of(worst, figure):.2f}"
            yield judged(f"{text} of {name_of(worst)}", not over)
    spilled = [row for row in rows if row["ours"]["spills"]]
    yield judged(f"spills of ours, in no row: in {len(spilled)}", not spilled)


def short(rows: Sequence[dict]) -> Iterator[str]:
    """Yield each row that misses a target of its own, and by how much."""
    for row in rows:
        for figure, (title, _, most) in TARGETS.items():
            if most is not None and ratio_of(row, figure) > most:
                ours, liger = (written(figure, row[who][figure]) for who in ("ours", "liger"))
                times = f"{ratio_of(row, figure):.2f} times, over {most}"
                yield f"{name_of(row)}: {title} {ours} against {liger}: {times}"
        if row["ours"]["spills"]:
            yield f"{name_of(row)}: spills {row['ours']['spills']} bytes of a thread"


def written(figure: str, value: float) -> str:
    """Return a figure with its unit, as it is printed."""
    if figure == "dram_bytes":
        return f"{value / 1e6:.1f} MB"
    if figure == "seconds":
        return f"{value * 1e6:.1f} us"
    return f"{value:.1f}" if figure == "sass" else f"{value}"
