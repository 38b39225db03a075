"""The definition of each operator in SymPy: a term, which SymPy can differentiate. No assertions here."""

from __future__ import annotations

from typing import NamedTuple

import sympy

from customops.ops import binary, parts, unary
from customops.ops.function import Operator
from customops.runtime.paths import EXPONENTS

x, y, g, alpha = sympy.symbols("x y g alpha", real=True)
ABOVE, BELOW, ZERO = sympy.Symbol("x", positive=True), sympy.Symbol("x", negative=True), sympy.S.Zero


class Definition(NamedTuple):
    """The definition of an operator, and the cases that its proof is split into."""

    term: sympy.Expr
    inputs: tuple[sympy.Symbol, ...] = (x,)  # the tensors that it can take
    kinds: tuple[sympy.Expr, ...] = (x,)  # the kinds of x, each a case of the proof
    numbers: tuple = (y,)  # the numbers y, each a case of the proof


DEFINITIONS: dict[type[Operator], Definition] = {
    unary.Log: Definition(sympy.log(x), kinds=(ABOVE,)),
    unary.Exp: Definition(sympy.exp(x)),
    unary.Relu: Definition(sympy.Max(x, 0), kinds=(ABOVE, BELOW)),
    unary.Sigmoid: Definition(1 / (1 + sympy.exp(-x)), kinds=(ABOVE, BELOW, ZERO)),
    unary.Tanh: Definition(sympy.tanh(x)),
    unary.Sqrt: Definition(sympy.sqrt(x), kinds=(ABOVE,)),
    unary.Rsqrt: Definition(1 / sympy.sqrt(x), kinds=(ABOVE,)),
    unary.Abs: Definition(sympy.Abs(x), kinds=(ABOVE, BELOW)),
    unary.Neg: Definition(-x),
    binary.Add: Definition(x + alpha * y, (x, y)),
    binary.Sub: Definition(x - alpha * y, (x, y)),
    binary.Mul: Definition(x * y, (x, y)),
    binary.Div: Definition(x / y, (x, y)),
    binary.Maximum: Definition(sympy.Max(x, y), (x, y), kinds=(y + ABOVE, y + BELOW)),
    binary.Minimum: Definition(sympy.Min(x, y), (x, y), kinds=(y + ABOVE, y + BELOW)),
    binary.Pow: Definition(x**y, (x, y), kinds=(ABOVE,)),
    parts.NormPower: Definition(x**y, kinds=(ABOVE,), numbers=(-1.5, 0.5, 2, 3)),
    parts.Finite: Definition(x),
    binary.PowNumber: Definition(x**y, kinds=(ABOVE,), numbers=tuple(sorted(EXPONENTS))),
}
