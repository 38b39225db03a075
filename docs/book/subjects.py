"""What has a page: every operator, every composition and every layer, found in the package's own lists."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import customops
from customops import compositions
from customops.nn import functional
from customops.ops import binary, choice, products, reductions, unary

from ..generate import every_operator

ROOT = Path(__file__).resolve().parent.parent.parent
NOTEBOOK = ROOT / "notebooks" / "gradients.ipynb"


class Subject(NamedTuple):
    """A public function with a page of its own."""

    name: str
    kind: str  # operators or layers, the folder of the page
    place: str  # what a user calls its module: ops, or ops.nn.functional
    function: Callable[..., Any]
    operators: tuple[type, ...]  # the classes that its docstring names, whose docstrings are the derivation; or none

    @property
    def qualified(self) -> str:
        """Return the name that the function is imported by."""
        return f"{self.place.replace('ops', 'customops', 1)}.{self.name}"

    @property
    def in_place(self) -> str:
        """Return the variant that writes over its first argument, or nothing."""
        variant = f"{self.name}_"
        return f"customops.{variant}" if self.kind == "operators" and variant in customops.__all__ else ""


def subjects() -> list[Subject]:
    """Return everything that has a page, in the order of the package."""
    classes = {operator.__name__: operator for operator in every_operator()}
    found = []
    for module in (unary, binary, choice, reductions, products, compositions):
        for name in module.__all__:
            if not name.endswith("_"):
                function = getattr(customops, name)
                named = re.findall(r":class:`(\w+)`", (inspect.getdoc(function) or "").split("\n\n")[0])
                found.append(Subject(name, "operators", "ops", function, tuple(classes[each] for each in named)))
    own = [each.function for each in found]
    for name in functional.__all__:
        function = getattr(functional, name)
        if not any(function is each for each in own):  # torch has some operators there, too
            found.append(Subject(name, "layers", "ops.nn.functional", function, ()))
    return found


def page_of(function: Callable[..., Any], every: list[Subject]) -> str:
    """Return the page of a public function, relative to the site."""
    return next(f"{each.kind}/{each.name}" for each in every if each.function is function)


def steps(subject: Subject) -> str:
    """Return the derivation that the notebook has of an operator, in Markdown, or nothing."""
    if subject.kind != "operators":
        return ""
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    for text in texts:
        title, _, body = text.partition("\n")
        if title.startswith("### ") and title.removeprefix("### ").split(" ")[0].lower() == subject.name:
            return body.strip()
    return ""
