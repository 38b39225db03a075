"""Write rows of the comparison: on the terminal a line for each, for all of them the table of means."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from .verdicts import TARGETS, mean_of, ratio_of

WIDTHS = {  # of the columns of the terminal
    "ours / Liger's": 51,
    "launches": 9,
    "DRAM MB": 16,
    "SASS an element": 16,
    "registers": 10,
    "spills": 9,
    "KiB in flight": 14,
    "estimated us": 16,
    "ratio": 6,
    "limit": 36,
}
HEADER = " ".join(f"{title:<{width}}" for title, width in WIDTHS.items())


def line(row: dict) -> str:
    """Return the printed line of one row, below ``HEADER``."""
    name = f"{row['layer']}, {row['pass']}, {row['dtype']}, {row['length']}"
    cells = [name, *pairs(row).values()]
    return " ".join(f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS.values(), strict=True)).rstrip()


def pairs(row: dict) -> dict[str, str]:
    """Return each figure of both libraries by its title, as ``ours / Liger's``, and the ratio of their times."""
    ours, liger = row["ours"], row["liger"]

    def both(figure: str, unit: float = 1, digits: int = 0) -> str:
        return " / ".join(f"{who[figure] / unit:.{digits}f}" for who in (ours, liger))

    return {
        "launches": both("launches"),
        "DRAM MB": both("dram_bytes", 1e6, 1),
        "SASS an element": both("sass", digits=1),
        "registers": both("registers"),
        "spills": both("spills"),
        "KiB in flight": both("in_flight", 1024),
        "estimated us": both("seconds", 1e-6, 1),
        "ratio": f"{ratio_of(row, 'seconds'):.2f}",
        "limit": f"{ours['limit']} / {liger['limit']}",
    }


def means(rows: Sequence[dict]) -> list[dict[str, str]]:
    """Return the lines of the table of geometric means, for each layer and pass and for all."""
    groups = {
        f"{layer}, {name}": [row for row in rows if (row["layer"], row["pass"]) == (layer, name)]
        for layer, name in product(*(dict.fromkeys(row[key] for row in rows) for key in ("layer", "pass")))
    }
    return [_means(title, chosen) for title, chosen in {**groups, "all": rows}.items() if chosen]


def _means(title: str, rows: Sequence[dict]) -> dict[str, str]:
    cells = {target.title: f"{mean_of(rows, figure):.2f}" for figure, target in TARGETS.items()}
    slowest = max(rows, key=lambda row: ratio_of(row, "seconds"))
    worst = f"{ratio_of(slowest, 'seconds'):.2f} at {slowest['length']}, {slowest['dtype']}"
    return {"ratios to Liger's, geometric means": title} | cells | {"worst estimated time": worst}
