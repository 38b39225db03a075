"""Write the pages that follow from the source: ``python docs/generate.py``.

These are derivations.md, api.md, the walk in architecture.md, whose rest stays as it is, and the tables of what holds,
which ``tests/compatibility.py`` makes of the results that are recorded. Tests fail where a committed page is not what
this writes.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import customops

DOCS = Path(__file__).resolve().parent
TRITON = DOCS.parent / "triton_kernels" / "formulas.py"

DERIVATIONS = """\
# Derivations

This page is generated from the source by `python docs/generate.py`: the text is the docstring of the operator's
`torch.autograd.Function`, the code is each formula as torch computes it and as a Triton kernel does. The tests prove
with SymPy that both spellings are the formula and its derivative.

z is the output, g the gradient that arrives for it, dx the gradient of x, and Σ a sum over the axes along which an
input was broadcast. A derivative is called `<name>_dx` or `<name>_dy`. Its arguments are exactly what it reads of g,
of the inputs x and y and of the output z; so they say what is saved. The sum over broadcast axes, the type promotion,
strides and dtypes are written once, around all formulas.

The derivations of log, exp, relu, sigmoid, add, sub, mul, pow, mean and sum follow a notebook that has one slip. With
alpha elements in and beta elements out, it scales the mean over an axis by alpha/beta. The factor is the inverse,
beta/alpha: the mean of 12 elements along an axis of 4 has 3 outputs, each is a sum of 4 inputs, and 3/12 = 1/4.
"""

API = """\
# API

This page is generated from the source by `python docs/generate.py`. It lists everything in `customops.__all__` and in
that of `customops.nn` and `customops.nn.functional`, with its signature and the first line of its docstring;
`help(customops.exp)` prints the rest. **Anything else is private** and may change in any release, submodules included.

In the signatures `Number` is `bool | int | float | complex`, `Axes` is `int | Sequence[int] | None`, and `...` stands
for an argument that was not given, which torch tells from None.

`from customops import *` hides Python's own `abs`, `sum` and `pow`, as it does with NumPy. The documentation writes
`import customops as ops`.
"""


def derivations() -> str:
    """Return the text of derivations.md."""
    operators = list(every_operator())
    torchs, tritons = functions_of(Path(operators[0].formula.__code__.co_filename)), functions_of(TRITON)
    parts = [DERIVATIONS]
    used: set[str] = set()
    explained: set[type] = set()
    for operator in operators:
        names = [operator.formula.__name__, *[f.__name__ for f in derivatives_of(operator)]]
        used |= {*names}
        parts += [f"## {operator.__name__}\n", markdown(explanation(operator, explained))]
        parts += ["```python\n# torch\n" + "\n\n\n".join(torchs[name] for name in names) + "\n```\n"]
        parts += ["```python\n# Triton\n" + "\n\n\n".join(tritons[name] for name in names) + "\n```\n"]
    parts += ["## Functions that the formulas call\n"]
    for title, functions in ("torch", torchs), ("Triton", tritons):
        called = called_by(used, functions) - used
        rest = [source for name, source in functions.items() if name in called]
        parts += [f"```python\n# {title}\n" + "\n\n\n".join(rest) + "\n```\n"]
    return "\n".join(parts)


def api() -> str:
    """Return the text of api.md."""
    operators = {operator.formula.__name__ for operator in every_operator()}
    sections: dict[str, list[str]] = {"Operators": [], "Operators that write over their first argument": []}
    sections |= {"Compositions of operators": [], "Fusing and looking": []}
    for name in sorted(customops.__all__):
        kind = "Operators" if name in operators else "Fusing and looking"
        if name in sys.modules["customops.compositions"].__all__:
            kind = "Compositions of operators"
        if name.endswith("_"):
            kind = "Operators that write over their first argument"
        sections[kind].append(_entry(name))
    for place in customops.nn.functional, customops.nn:
        names = [name for name in sorted(place.__all__) if callable(getattr(place, name))]
        sections[f"`{place.__name__}`"] = [_entry(name, place) for name in names]
    return "\n".join([API, *(f"## {title}\n\n" + "\n".join(lines) + "\n" for title, lines in sections.items())])


def architecture() -> str:
    """Return architecture.md with the walk as it is now."""
    command = [sys.executable, "-m", "benchmarks.walk"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    walk = subprocess.run(command, env=environment, cwd=DOCS.parent, check=True, capture_output=True, text=True).stdout
    before, after = re.split(WALK, (DOCS / "architecture.md").read_text(), flags=re.DOTALL)
    return f"{before}```text\n{walk}```{after}"


WALK = r"```text\nmul by formulas.*?```"

PAGES: dict[str, Callable[[], str]] = {"derivations.md": derivations, "api.md": api, "architecture.md": architecture}


def every_operator() -> Iterator[Any]:
    """Yield the class of every operator, in the order of the source."""
    modules = [
        _module_of(function)
        for function in (customops.log, customops.add, customops.where, customops.sum, customops.prod)
    ]
    for module in [*modules, sys.modules["customops.ops.parts"]]:
        for value in vars(module).values():
            own = isinstance(value, type) and value.__module__ == module.__name__ and vars(value).get("formula")
            if isinstance(own, staticmethod):
                yield value


def derivatives_of(operator: Any) -> tuple[Callable, ...]:
    """Return the derivatives of an operator; a reduction has one, or none where each slope is 1."""
    if hasattr(operator, "derivatives"):
        return operator.derivatives
    return (operator.derivative,) if operator.derivative else ()


def explanation(operator: type, explained: set[type]) -> str:
    """Return the docstring of an operator, followed by that of a base class that it refers to for the first time."""
    text, base = inspect.getdoc(operator) or "", operator.__mro__[1]
    if f":class:`{base.__name__}`" not in text or base in explained:
        return text
    explained.add(base)
    return f"{text}\n\n`{base.__name__}`: {inspect.getdoc(base)}"


def markdown(docstring: str) -> str:
    """Return a docstring in Markdown: roles and double backticks become code, indented equations a block."""
    text = re.sub(r":\w+:`~?(.*?)`", r"`\1`", docstring)
    text = re.sub(r"``(.*?)``", r"`\1`", text)
    return re.sub(r"((?:^    .*\n?)+)", lambda block: f"```text\n{_dedented(block[0])}\n```\n", text + "\n", flags=re.M)


def _dedented(block: str) -> str:
    return "\n".join(line.removeprefix("    ") for line in block.rstrip().split("\n"))


def functions_of(file: Path) -> dict[str, str]:
    """Return the source of every function of a file, without its decorators."""
    text = file.read_text()
    lines, nodes = text.split("\n"), [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    return {node.name: "\n".join(lines[node.lineno - 1 : node.end_lineno]) for node in nodes}


def called_by(names: Iterable[str], functions: dict[str, str]) -> set[str]:
    """Return which of ``functions`` those of ``names`` call, and those call in turn."""
    called = {*names}
    for name in names:
        words = {node.id for node in ast.walk(ast.parse(functions[name])) if isinstance(node, ast.Name)}
        new = (words & functions.keys()) - called
        called |= new and called_by(new, functions)
    return called


def _module_of(function: Callable) -> ModuleType:
    """Return the module that defines a function, whatever its ``__module__`` says."""
    file = inspect.unwrap(function).__code__.co_filename
    return next(module for module in [*sys.modules.values()] if getattr(module, "__file__", None) == file)


class _Written:
    """An annotation, shown as it is written."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _entry(name: str, place: ModuleType = customops) -> str:
    """Return the line of a public name of ``place``: its signature, and the first line of its docstring."""
    value = getattr(place, name)
    first = (inspect.getdoc(value) or "").partition("\n")[0]
    return f"- `{name}{_signature(value)}`<br>\n  {markdown(first).strip()}"


def _signature(value: Any) -> str:
    if isinstance(value, type) and issubclass(value, Exception):
        return ""
    signature = inspect.signature(value)
    parameters = [p.replace(annotation=_written(p.annotation)) for p in signature.parameters.values()]
    text = str(signature.replace(parameters=parameters, return_annotation=_written(signature.return_annotation)))
    return re.sub(r"<object object at 0x\w+>", "...", text)


def _written(annotation: Any) -> Any:
    text = getattr(annotation, "__forward_arg__", annotation)  # of a named tuple's fields
    return _Written(text) if isinstance(text, str) else annotation


def main() -> None:
    """Write the pages."""
    for name, page in PAGES.items():
        (DOCS / name).write_text(page())
    subprocess.run([sys.executable, "-m", "tests.compatibility"], cwd=DOCS.parent, check=True)


if __name__ == "__main__":
    main()
