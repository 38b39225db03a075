"""Read the JSON files that the parts of the page are made from, and begin the part of each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from .text import bullets, code

RESULTS = Path(__file__).parent / "results"


def load(results: Path, pattern: str) -> list[dict]:
    """Return the documents in ``results`` whose path fits ``pattern``, each with its ``path``, the newest first."""
    found = [json.loads(path.read_text()) | {"path": path} for path in sorted(results.glob(pattern))]
    return sorted(found, key=lambda document: document["where"].get("date", ""), reverse=True)


def address(document: dict, results: Path) -> Path:
    """Return where a document lies, seen from the page beside ``results``."""
    return document["path"].relative_to(results.parent)


def facts(document: dict) -> list[str]:
    """Return where a document was measured, and how: a line for each fact."""
    return [f"{name}: {code(fact) if name == 'command' else fact}" for name, fact in document["where"].items()]


def opening(title: str, document: dict, results: Path) -> Iterator[str]:
    """Yield the first blocks of a document's part of the page: its title, where it was measured, and the targets."""
    yield f"### {title}"
    yield bullets([*facts(document), f"[every figure, as JSON]({address(document, results)})"])
    if document.get("no_compiler"):
        yield f"torch.compile is left out: {code(document['no_compiler'])}"
    yield "Targets:\n\n" + bullets(document["verdicts"])
