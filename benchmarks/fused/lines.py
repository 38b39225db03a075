"""Write rows: on the terminal a line for each, and the tables of means and of memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import geometric_mean

from ..text import number
from .verdicts import LARGE, PHASES, RIVALS, name_of, select, written

WIDTHS = {"": 76, "ms of ours": 11, "eager": 9, "torch's own": 12, "compile": 9, "ours to": 8, "eager's": 8}
WIDTHS |= {"own": 7, "compile's": 10}
HEADER = "".join(f"{title:<{width}}" for title, width in WIDTHS.items())
RESTS = {"eager": "", "own": "-", "compile": "-"}  # what stands where a contestant has no time


def line(row: dict, no_compiler: str = "") -> str:
    """Return the printed line of one row, below ``HEADER``, and its faults and what failed below."""
    rest = RESTS | ({"compile": "no compiler"} if no_compiler else {})
    times = [number(row["times"][who][1]) if who in row["times"] else rest[who] for who in ("ours", *RIVALS)]
    ratios = [f"{row['ours_to'][who]:.2f}" if who in row["ours_to"] else "-" for who in RIVALS]
    widths = [*WIDTHS.values()]
    cells = [name_of(row), *times, "", *ratios]
    below = [f"\n    {text}" for text in [*row["faults"], *row["failed"]]]
    return "".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip() + "".join(below)


def means(rows: Sequence[dict]) -> Iterator[dict[str, str]]:
    """Yield the lines of the table of geometric means, for each size, dtype, number of threads and phase."""
    keys = dict.fromkeys((*row["size"], row["dtype"], row["threads"], row["phase"]) for row in rows)
    for *size, dtype, threads, phase in sorted(keys, key=lambda key: (key[2] != "float32", -key[0], key[3])):
        chosen = select(rows, size, phase, threads, dtype)
        ratios = {who: [row["ours_to"][who] for row in chosen if who in row["ours_to"]] for who in RIVALS}
        cells = {f"to {RIVALS[who]}": f"{geometric_mean(each):.2f}" for who, each in ratios.items() if each}
        worst = max(chosen, key=lambda row: row["ours_to"]["eager"])
        cells["highest, to the composition's"] = f"{worst['ours_to']['eager']:.2f} of {worst['layer']}"
        yield {
            "size": written(size), "dtype": dtype, "threads": f"{threads}", "phase": PHASES[phase], **cells,
        }  # fmt: skip


def costs(rows: Sequence[dict], first: Sequence[dict]) -> Iterator[dict[str, str]]:
    """Yield each layer's memory, in megabytes, and its first call, in milliseconds."""
    calls: dict[str, dict[str, str]] = {}
    for call in first:
        cells = calls.setdefault(call["layer"], {})
        cells[f"first call, ms: {call['who']}"] = number(call["wall"])
        cells |= {"of CPU: ours": number(call["cpu"])} if call["who"] == "ours" else {}
    memory = {row["layer"]: row for row in select(rows, LARGE, "both") if "peak" in row}
    for layer in dict.fromkeys([*memory, *calls]):
        row = memory.get(layer, {"peak": {}, "saved": {}})
        cells = {
            f"{what} MB: {who}": number(row[what][who] / 1e6)
            for what in ("peak", "saved")
            for who in ("ours", *RIVALS)
            if who in row[what]
        }
        yield {"layer": layer} | cells | calls.get(layer, {})
