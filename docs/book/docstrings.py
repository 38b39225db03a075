"""A Sphinx extension: formulas in the docstrings that autodoc shows become formulas of the page."""

from __future__ import annotations

import re
from typing import Any

from .notation import NotAFormula, displayed, prose


def with_formulas(lines: list[str]) -> list[str]:
    """Return a docstring in which equations are in directives and roles of reStructuredText."""
    text, out = "\n".join(lines), []
    for paragraph in re.split(r"\n{2,}", text):
        body = paragraph.strip("\n")
        if body.startswith("    ") and not re.match(r"\s*\S+: ", body):
            out += [_block(body)]
        elif body.startswith((">>>", "Args:", "Raises:", "Yields:", "Returns:", ":", "..")):
            out += [_without_bars(body)]
        else:
            out += [_without_bars(prose(body, lambda latex: f":math:`{latex}`"))]
    return "\n\n".join(out).split("\n")


def _block(body: str) -> str:
    try:
        return "\n\n".join(f".. math:: {latex}" for latex in displayed(body))
    except NotAFormula:
        return "::\n\n" + body


def _without_bars(text: str) -> str:
    """Return text without what reStructuredText takes for a substitution: bars that no role holds."""
    pieces = re.split(r"(:math:`[^`]*`|``.*?``)", text)
    return "".join(piece if i % 2 else piece.replace("|", r"\|") for i, piece in enumerate(pieces))


def process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Change the lines of a docstring, for autodoc; a page of the book has the derivation above, and not again."""
    if app.env.current_document.docname.startswith(("operators/", "layers/")):
        lines[:] = without_derivation(lines)
    lines[:] = with_formulas(lines)


def without_derivation(lines: list[str]) -> list[str]:
    """Return the first line of a docstring, and what follows from the arguments, errors or examples on."""
    starts = ("Args:", "Raises:", "The arguments ", ">>> ")
    rest = next((i for i, line in enumerate(lines) if line.startswith(starts)), len(lines))
    return [*lines[:1], "", *lines[rest:]]


def setup(app: Any) -> dict[str, bool]:
    """Connect to autodoc, before napoleon reads the sections."""
    app.connect("autodoc-process-docstring", process, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
