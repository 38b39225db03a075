"""The tables of docs/models.md, from what was measured."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..documents import RESULTS, load

PAGE = RESULTS.parent.parent / "docs" / "models.md"
FACTS = "device", "cores", "threads", "torch", "commit", "date"
LAUNCHES = r"\| model \| modules fused .*?\n(?=\n)"
STEPS = r"Measured on [^\n]*\n(?:\n\| model .*?\n)?(?=\n)"


def newest(results: Path = RESULTS) -> dict[str, Any]:
    """Return the document that was written last."""
    return load(results, "*/models.json")[0]


def written(text: str, document: dict[str, Any]) -> str:
    """Return the text of the page with the tables that a document has; all else stays."""
    for part, (pattern, lines) in {"launches": (LAUNCHES, launches), "steps": (STEPS, steps)}.items():
        if part in document:
            before, after = re.split(pattern, text, flags=re.DOTALL)
            text = before + "\n".join(lines(document)) + "\n" + after
    return text


def launches(document: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the table of launches."""
    yield "| model | modules fused | stretches, functions | launches, torch | ours | ratio | bytes | difference |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|"
    for name, row in document["launches"].items():
        before, after = row["torch"], row["ours"]
        cells = name, f"{row['fused']} of {row['modules']}", row["others"], before["count"], after["count"]
        ratios = [f"{after[key] / before[key]:.2f}" for key in ("count", "bytes_moved")]
        yield _line(*cells, *ratios, f"{row['difference']:.0e}")


def steps(document: dict[str, Any]) -> Iterator[str]:
    """Yield where steps were measured, and the lines of the table of these."""
    facts = document["where"]
    yield f"Measured on {', '.join(f'{name} {facts[name]}'.removeprefix('device ') for name in FACTS)}:"
    yield ""
    yield "| model | ms, torch | ours | ratio | peak MiB, torch | ours | ratio | difference |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for name, row in document["steps"].items():
        times, peaks = row["milliseconds"], row["peak"]
        cells = [name, *(f"{times[who]:.0f}" for who in ("torch", "ours")), f"{row['ratio']:.2f}"]
        cells += [f"{peaks[who] / 2**20:.0f}" for who in ("torch", "ours")]
        yield _line(*cells, f"{peaks['ours'] / peaks['torch']:.2f}", f"{row['difference']:.0e}")


def _line(*cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"
