"""A Sphinx extension: formulas are MathML in the page, which browsers draw themselves; nothing is fetched."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

NAME = re.compile(r"(?<!<msup>)(?<!<msub>)(<mi>\w{2,}</mi>)(?=<m(?!row><mo))")  # a function, before no bracket
INFINITY = "&#x0221E;"


def mathml(latex: str, display: bool) -> str:
    """Return a formula in LaTeX as MathML, with a thin space around the name of a function: ``y log x``."""
    text = convert(latex.strip(), display="block" if display else "inline")
    text = text.replace(f"<mo>{INFINITY}</mo>", f"<mi>{INFINITY}</mi>")
    space = '<mspace width="0.17em"/>'
    return NAME.sub(rf"<mrow>{space}\1{space}</mrow>", text)


def visit_inline(translator: Any, node: nodes.math) -> None:
    """Write a formula within a line."""
    translator.body.append(mathml(node.astext(), display=False))
    raise nodes.SkipNode


def visit_display(translator: Any, node: nodes.math_block) -> None:
    """Write a formula of its own line, which scrolls where the page is narrower."""
    translator.body.append(f'<div class="math" tabindex="0">{mathml(node.astext(), display=True)}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Register the renderer as ``mathml``."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
