"""Formulas as mathematics: SymPy's term of the code that runs, ``-g·z^3/2`` for ``rsqrt_dx(g, z)``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

import sympy
from sympy.printing.str import StrPrinter

from ..compiler.printing import named
from .symbolic import evaluate, spelling


class _Printer(StrPrinter):
    """SymPy's printer, with cases as Python writes them."""

    def _print_Piecewise(self, expr: Any) -> str:
        *some, (last, _) = expr.args
        return " else ".join([*(f"{self._print(x)} if {self._print(when)}" for x, when in some), self._print(last)])


def mathematics(formula: str, labels: Sequence[str], module: str = "customops.formulas") -> str:
    """Return a formula of ``module``, torch's, as a term of values with these labels; by name where it has no term."""
    function = spelling(module).get(formula)
    if function is None:
        return named(formula, labels)
    names = inspect.signature(function).parameters
    for read in (_symbol, _number):  # some formulas branch on a number
        values = {name: read(label) for name, label in zip(names, labels, strict=False)}
        try:
            return text_of(evaluate(function, **values))
        except (TypeError, AttributeError, ValueError, NotImplementedError):
            continue
    return named(formula, labels)


def text_of(term: sympy.Basic) -> str:
    """Return a term in one line."""
    text = _Printer().doprint(term).replace("**", "^").replace("*", "·").replace("sqrt(", "√(")
    return re.sub(r"√\((\w+)\)", r"√\1", text)


def _symbol(label: str) -> Any:
    return int(label) if re.fullmatch(r"-?\d+", label) else sympy.Symbol(label, real=True)


def _number(label: str) -> Any:
    try:
        return float(label)
    except ValueError:
        return _symbol(label)
