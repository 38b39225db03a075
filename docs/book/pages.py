"""The page of an operator or layer, from the one template."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jinja2

import customops

from ..generate import TRITON, called_by, derivatives_of, explanation, functions_of, markdown
from .edges import edges, table
from .launches import cost
from .notation import NotAFormula, displayed, prose
from .plots import plot
from .samples import Sample, sample
from .subjects import Subject, steps

FORMULAS = TRITON.parent.parent / "customops" / "formulas.py"
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,
)


def page(subject: Subject, folder: Path) -> str:
    """Return the page of a subject; its picture is written into ``folder``."""
    each = sample(subject.name, subject.place, subject.function)
    picture = folder / f"{subject.name}.svg"
    caption = plot(each, picture)
    found = edges(each)
    code = example(each)
    return TEMPLATES.get_template("page.md.jinja").render(
        subject=subject,
        summary=with_formulas(summary(subject.function)),
        derivation=derivation(subject),
        steps=steps(subject),
        reads=list(reads(subject)),
        picture=picture.name,
        caption=caption,
        edges=found,
        table=table(found),
        torch=torch_code(subject),
        triton=triton_code(subject),
        program=program(each) if not subject.operators else "",
        cost=cost(each),
        example=code,
        output=printed(code),
    )


def summary(function: Callable[..., Any]) -> str:
    """Return the first line of a docstring, in Markdown."""
    return markdown((inspect.getdoc(function) or "").partition("\n")[0]).strip()


def derivation(subject: Subject) -> str:
    """Return the derivation in Markdown: what the operators' classes say, or the docstring of a composition."""
    if not subject.operators:
        text = (inspect.getdoc(subject.function) or "").partition("\n")[2]
        return with_formulas(
            re.split(r"^(?:Args:|Raises:|>>> |The arguments )", text, flags=re.MULTILINE)[0].strip("\n")
        )
    told: set[type] = set()
    texts = [(operator, with_formulas(explanation(operator, told))) for operator in subject.operators]
    several = len(texts) > 1
    return "\n\n".join(f"**{operator.__name__}**: {text}" if several else text for operator, text in texts)


def with_formulas(docstring: str) -> str:
    """Return a docstring in Markdown, its formulas between dollars: those that are indented on lines of their own."""
    out = []
    for paragraph in re.split(r"\n{2,}", docstring):
        if paragraph.startswith("    "):
            out.append(_block(textwrap.dedent(paragraph)))
        else:
            out.append(prose(markdown(paragraph).strip(), lambda latex: f"${latex}$"))
    return "\n\n".join(out)


def _block(text: str) -> str:
    try:
        return "\n\n".join(f"$$\n{latex}\n$$" for latex in displayed(text))
    except NotAFormula:
        return f"```text\n{text}\n```"


def reads(subject: Subject) -> Iterator[tuple[str, str]]:
    """Yield each derivative, and what it reads beside the gradient that arrives: its arguments say so."""
    for operator in subject.operators:
        for each in derivatives_of(operator):
            names = [name for name in inspect.signature(each).parameters if name != "g"]
            yield each.__name__, ", ".join(f"`{name}`" for name in names) or "nothing"


def torch_code(subject: Subject) -> str:
    """Return the formulas of the operators as torch computes them, or the body of a composition."""
    if subject.operators:
        return _formulas(subject, FORMULAS)
    function = inspect.unwrap(subject.function)
    module = sys.modules[function.__module__]
    helpers = functions_of(Path(module.__file__ or ""))
    private = [name for name in sorted(called_by([function.__name__], helpers)) if name.startswith("_")]
    bodies = [_without_docstring(inspect.getsource(function)), *(helpers[name] for name in private)]
    return "\n\n\n".join(bodies)


def triton_code(subject: Subject) -> str:
    """Return the formulas as a kernel computes them."""
    return _formulas(subject, TRITON) if subject.operators else ""


def _formulas(subject: Subject, file: Path) -> str:
    """Return the formulas and derivatives of operators, and what they call, in the order of the file."""
    sources = functions_of(file)
    names = {f.__name__ for operator in subject.operators for f in (operator.formula, *derivatives_of(operator))}  # type: ignore[attr-defined]
    every = called_by(names, sources)
    return "\n\n\n".join(source for name, source in sources.items() if name in every)


def _without_docstring(source: str) -> str:
    """Return the source of a function without its docstring and decorators."""
    node = ast.parse(textwrap.dedent(source)).body[0]
    assert isinstance(node, ast.FunctionDef)
    lines = textwrap.dedent(source).split("\n")
    head = lines[node.lineno - 1 : node.body[0].lineno - 1]
    return "\n".join([*head, *lines[node.body[0].end_lineno or 0 :]]).rstrip()


def program(each: Sample) -> str:
    """Return the graph that a composition becomes, one formula a line; of max and min that of the values."""
    try:
        return str(each.call(customops.fuse(each.function).program, *each.tensors))
    except customops.FusionError:  # indices are in no program
        values = customops.fuse(lambda *tensors: each.call(each.function, *tensors)[0])
        return str(values.program(*each.tensors))


def example(each: Sample) -> str:
    """Return Python that calls the function on the tensors of its docstring, and asks for the gradients."""
    lines, passed = [], []
    for argument in each.arguments:
        value = argument.source
        if argument.moves:
            lines.append(f"{argument.name} = {_leaf(value)}")
            value = argument.name
        passed.append(f"{argument.parameter}={value}" if argument.keyword else value)
    call = f"{each.place}.{each.name}({', '.join(passed)})"
    z = each.call(each.function, *each.tensors)
    whole = "z" if not isinstance(z, tuple) else "z[0]"
    lines += [f"z = {call}", "print(z)", "", f"ops.sum({whole}).backward()"]
    lines += [f'print("d{name}", {name}.grad)' for name in each.names]
    imports = ["import math", "", "import torch"] if "math." in "".join(lines) else ["import torch"]
    return "\n".join([*imports, "", "import customops as ops", "", *lines])


def _leaf(source: str) -> str:
    """Return the Python of a tensor, with a gradient; what computes it from another keeps it a leaf."""
    node = ast.parse(source, mode="eval").body
    is_made = isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.tensor"
    return f"{source[:-1]}, requires_grad=True)" if is_made else f"({source}).requires_grad_()"


def printed(code: str) -> str:
    """Return what Python prints, run here."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, "example", "exec"), {"__name__": "example"})
    return out.getvalue().rstrip()
