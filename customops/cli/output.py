"""Show what a command found: tables and colours on a terminal where rich is installed, else plain text, or JSON."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TextIO, TypeVar

from ..tools.table import Table

T = TypeVar("T")
FINE, PROBLEM, BAD_ARGUMENTS = range(3)  # exit codes


class Result(NamedTuple):
    """What a command found."""

    code: int  # FINE or PROBLEM
    document: dict[str, Any]  # for --json
    parts: Sequence[str | Table]  # for people


def show(result: Result, as_json: bool) -> None:
    """Print a result."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # what an encoding lacks, as the signs of mathematics, is replaced
        sys.stdout.reconfigure(errors="replace")
    console = _console(sys.stdout)
    if as_json:
        print(json.dumps(result.document, indent=1))
    elif console is None:
        print(*result.parts, sep="\n")
    else:
        for part in result.parts:
            console.print(part, soft_wrap=isinstance(part, str))


def progress(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Yield items, and show on a terminal how far they are."""
    console = _console(sys.stderr)
    if console is None:
        yield from items
        return
    from rich import progress as bars  # noqa: PLC0415 - it is optional

    yield from bars.track(items, what, total, console=console, transient=True)


def _console(file: TextIO) -> Any:
    """Return rich's console of a terminal; None where it is none, or rich is not installed."""
    if not file.isatty():
        return None
    try:
        from rich import console  # noqa: PLC0415 - it is optional
    except ImportError:
        return None
    return console.Console(file=file, markup=False, highlight=False, emoji=False)
