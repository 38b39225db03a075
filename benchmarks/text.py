"""Write tables, lists, numbers and verdicts as Markdown, and what was measured as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence


def table(lines: Sequence[dict[str, str]]) -> str:
    """Return a Markdown table without the columns that are empty; numbers stand to the right."""
    columns = {key: [line.get(key, "") for line in lines] for line in lines for key in line}
    columns = {key: column for key, column in columns.items() if any(column)}
    rules = ["---:" if re.fullmatch(r"[\d.e*/ -]*", "".join(column)) else "---" for column in columns.values()]
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, rules, *zip(*columns.values(), strict=True)))


def bullets(texts: Sequence[str]) -> str:
    """Return a Markdown list."""
    return "\n".join(f"- {text}" for text in texts)


def code(text: str) -> str:
    """Return ``text`` as code, on one line."""
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"


def number(x: float | None) -> str:
    """Return a number in three digits, or in all before the point."""
    return "" if x is None else f"{x:.0f}" if x >= 1000 else f"{x:.3g}"


def judged(measured: str, met: bool) -> str:
    """Return what was measured with the verdict behind it."""
    return f"{measured}: {'met' if met else 'MISSED'}"


def rows_as_json(document: dict, digits: int, *first: str) -> str:
    """Return ``document`` as JSON, a line for each row, which begins with a key among ``first``; floats are rounded."""
    rounded = json.loads(json.dumps(document), parse_float=lambda text: float(f"{float(text):.{digits}g}"))
    return re.sub(rf'(\{{"(?:{"|".join(first)})": )', r"\n\1", json.dumps(rounded)) + "\n"
