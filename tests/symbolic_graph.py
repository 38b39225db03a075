"""Fused functions computed with SymPy's terms, each beside the number that it is at a point. No assertions here.

A tensor of terms is a tensor of the positions that its elements have in a :class:`Pool`: so the product's own views
and axes move them. Around a point a piecewise formula is one of its pieces, which the numbers there tell.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from math import prod
from types import FunctionType
from typing import Any, NamedTuple

import mpmath
import sympy
import torch
from torch import Tensor

import customops
from customops.compiler.axes import align, rename, restore
from customops.compiler.graph import Constant, Graph, Input, Op, Position, Renamed
from customops.compiler.views import Share, joined
from customops.fusion.decorator import fused_behind
from customops.fusion.function import Fusion
from customops.proof.symbolic import evaluate, spelling

DIGITS = 50  # of numbers
SLOTS = sympy.symbols("a:8", real=True)  # what formulas are evaluated on
PIECES = (sympy.Piecewise, sympy.Max, sympy.Min, sympy.Abs, sympy.sign)
ZERO = 0  # the position of the term 0, as the views of parts pad with it


class Element(NamedTuple):
    """A term, and the number that it is at the point."""

    term: sympy.Expr
    number: Any  # of mpmath


class Pool:
    """The elements of all tensors, by position."""

    def __init__(self) -> None:
        self.elements = [Element(sympy.S.Zero, mpmath.mpf(0))]
        self.point: dict[sympy.Symbol, Any] = {}  # the number of each symbol
        self.constants: dict[sympy.Dummy, sympy.Expr] = {}  # what stands for a term that is not differentiated
        self._computed: dict[tuple, int] = {}  # the positions of the results of formulas
        self._detached: dict[int, int] = {}  # the positions of constants, by those of what they stand for

    def add(self, element: Element) -> int:
        """Return the position of a new element."""
        self.elements.append(element)
        return len(self.elements) - 1

    def symbols(self, name: str, numbers: Tensor) -> Tensor:
        """Return a tensor of new symbols, which are these numbers at the point."""
        elements = [Element(sympy.Symbol(f"{name}{i}", real=True), mpmath.mpf(n)) for i, n in _numbered(numbers)]
        self.point.update(elements)
        return self._tensor(elements, numbers)

    def numbers(self, numbers: Tensor) -> Tensor:
        """Return a tensor of numbers."""
        return self._tensor([Element(sympy.Rational(n), mpmath.mpf(n)) for _, n in _numbered(numbers)], numbers)

    def _tensor(self, elements: Sequence[Element], like: Tensor) -> Tensor:
        return torch.tensor(list(map(self.add, elements)), dtype=torch.int64).reshape(like.shape)

    def terms(self, positions: Tensor) -> list[sympy.Expr]:
        """Return the terms at these positions."""
        return [self.elements[k].term for k in positions.flatten().tolist()]

    def evaluate(self, graph: Graph, given: dict[int, Tensor], known: dict | None = None, detach: bool = False):
        """Return the results, as :func:`customops.compiler.evaluate.evaluate` does.

        If told to ``detach``, what a formula has for a constant is one to SymPy, too.
        """
        order, known = sorted(graph.sizes), known or {}
        values: dict[int, Any] = {}
        for i in graph.ancestors([value for value, _ in graph.results], known):
            node = graph.values[i]
            if i in known:
                values[i] = align(given[i], known[i], order)
            elif isinstance(node, Input):
                values[i] = align(given[i], node.dims, order)
            elif isinstance(node, Constant):
                values[i] = graph.number(i)
            elif isinstance(node, Position):
                sizes = [graph.sizes[a] for a in node.axes]
                values[i] = align(self.numbers(torch.arange(prod(sizes)).view(sizes)), node.axes, order)
            elif isinstance(node, Renamed):
                (x,) = node.inputs
                values[i] = rename(values[x], node.old, node.new, graph.axes[x], order, graph.sizes)
            else:
                inputs = [values[j] for j in node.inputs]
                for k in node.detached if detach else ():
                    inputs[k] = self._constant(inputs[k])
                values[i] = self._reduce(graph, node, inputs[0], order) if node.reduced else self._map(node, inputs)
        return [restore(values[value], dims, order, graph.sizes) for value, dims in graph.results]

    def _map(self, op: Op, inputs: Sequence) -> Tensor:
        """Apply a formula to each element; inputs that are no tensors are numbers."""
        formula = spelling("customops.formulas")[op.formula]
        numbers = tuple(None if isinstance(x, Tensor) else x for x in inputs)
        tensors = torch.broadcast_tensors(*[x for x in inputs if isinstance(x, Tensor)])
        columns = zip(*[x.flatten().tolist() for x in tensors], strict=True)
        found = [self._computed_once((formula, numbers, at), self._formula) for at in columns]
        return torch.tensor(found, dtype=torch.int64).reshape(tensors[0].shape)

    def _reduce(self, graph: Graph, op: Op, x: Tensor, order: Sequence[int]) -> Tensor:
        """Reduce axes."""
        x = x.expand([graph.sizes[a] if a in op.reduced else -1 for a in order])
        dims = [order.index(a) for a in op.reduced]
        rows = x.movedim(dims, [*range(-len(dims), 0)]).flatten(-len(dims))
        totals = [
            self._computed_once((op.formula, tuple(row)), self._total)
            for row in rows.reshape(-1, rows.shape[-1]).tolist()
        ]
        shape = [1 if d in dims else n for d, n in enumerate(x.shape)]
        return torch.tensor(totals, dtype=torch.int64).reshape(shape)

    def _computed_once(self, key: tuple, compute: Callable[..., Element]) -> int:
        if key not in self._computed:
            self._computed[key] = self.add(compute(*key))
        return self._computed[key]

    def _formula(self, formula: FunctionType, numbers: tuple, at: tuple[int, ...]) -> Element:
        """Return a formula of the elements at these positions, in the piece that holds at the point."""
        terms, at_point = zip(*[self.elements[k] for k in at], strict=True)
        piece = _piece(_on_slots(formula, numbers), at_point)
        found = piece.xreplace(dict(zip(SLOTS, terms, strict=False)))
        return Element(self._without_signs(found), _number(piece, at_point))

    def _without_signs(self, x: sympy.Expr) -> sympy.Expr:
        """Return a term without the absolute values that SymPy makes of roots of squares."""
        return x.replace(sympy.Abs, lambda y: y * int(sympy.sign(y.evalf(subs=self.point)))) if x.has(sympy.Abs) else x

    def _total(self, formula: str, row: tuple[int, ...]) -> Element:
        """Return the elements of a row, reduced."""
        elements = [self.elements[k] for k in row]
        if formula in ("amax", "amin"):
            return (max if formula == "amax" else min)(elements, key=lambda x: x.number)
        terms, numbers = zip(*elements, strict=True)
        if formula == "prod":
            return Element(sympy.Mul(*terms), mpmath.fprod(numbers))
        divisor = {"sum": 1, "mean": len(row)}[formula]
        return Element(sympy.Add(*terms) / divisor, mpmath.fsum(numbers) / divisor)

    def _constant(self, x: Any) -> Any:
        """Return a tensor of constants that stand for these elements; a number is one."""
        if not isinstance(x, Tensor):
            return x
        for k in x.flatten().tolist():
            if k not in self._detached:
                dummy = sympy.Dummy(real=True)
                self.constants[dummy], self.point[dummy] = self.elements[k]
                self._detached[k] = self.add(self.elements[k]._replace(term=dummy))
        return x.clone().apply_(self._detached.__getitem__)

    def without_constants(self, x: sympy.Expr) -> sympy.Expr:
        """Return a term with what its constants stand for."""
        while found := {d: self.constants[d] for d in x.free_symbols if d in self.constants}:
            x = x.xreplace(found)
        return x


def _numbered(numbers: Tensor) -> list[tuple[int, float]]:
    return list(enumerate(numbers.detach().flatten().tolist()))


@functools.lru_cache(maxsize=1000)
def _on_slots(formula: FunctionType, numbers: tuple) -> sympy.Expr:
    """Return a formula as a term of one slot for each argument that is no number."""
    slots = iter(SLOTS)
    names = inspect.signature(formula).parameters
    return evaluate(formula, **{name: next(slots) if x is None else x for name, x in zip(names, numbers, strict=False)})


@functools.lru_cache(maxsize=10_000)
def _compiled(expression: sympy.Basic) -> Callable:
    return sympy.lambdify(SLOTS, expression, "mpmath")


def _number(expression: sympy.Basic, at: Sequence) -> Any:
    """Return what a term of slots, or a condition, is where these are numbers."""
    with mpmath.workdps(DIGITS):
        return _compiled(expression)(*at, *[None] * (len(SLOTS) - len(at)))


def _piece(expression: sympy.Expr, at: Sequence) -> sympy.Expr:
    """Return what a term of slots is around a point: it has no condition there."""
    if not expression.has(*PIECES):
        return expression
    if isinstance(expression, sympy.Piecewise):
        return _piece(next(e for e, condition in expression.args if _number(condition, at)), at)
    if isinstance(expression, sympy.Max | sympy.Min):
        choose = max if isinstance(expression, sympy.Max) else min
        return _piece(choose(expression.args, key=lambda x: _number(x, at)), at)
    if isinstance(expression, sympy.Abs | sympy.sign):
        (x,) = expression.args
        sign = int(mpmath.sign(_number(x, at)))
        return sign * _piece(x, at) if isinstance(expression, sympy.Abs) else sympy.Integer(sign)
    return expression.func(*[_piece(x, at) for x in expression.args])


class Derived(NamedTuple):
    """A fused call in terms: its results, and the gradients that are derived, of those inputs that need one."""

    pool: Pool
    inputs: list[Tensor]  # that need a gradient
    results: list[Tensor]
    cotangents: list[Tensor]  # of the results that depend on these inputs
    differentiable: list[int]  # which results those are
    gradients: list[Tensor | None]  # None where no result depends on the input

    @property
    def loss(self) -> sympy.Expr:
        """The sum of the results times their cotangents, of which the gradients are."""
        pairs = zip([self.results[k] for k in self.differentiable], self.cotangents, strict=True)
        return sympy.Add(*[z * g for zs, gs in pairs for z, g in zip(*map(self.pool.terms, (zs, gs)), strict=True)])


def derive(function: Callable, xs: Sequence[Tensor], detach: bool = False) -> Derived:
    """Return a function of tensors, fused, in terms; ``detach`` as :meth:`Pool.evaluate` has it for gradients."""
    made = fused_behind(customops.fuse(function))
    tensors, key = made.read(tuple(xs), {})
    trace, tensors = made.trace(tensors, key, tuple(xs), {})
    fusion: Fusion = made.fuse(trace, tensors, tuple(xs), {})
    needs = [x.requires_grad for x in tensors]
    recording = fusion.recording((False, *needs), True)
    pool = Pool()
    with mpmath.workdps(DIGITS):
        given = [
            pool.symbols(f"x{i}_", x) if needed else pool.numbers(x)
            for i, (x, needed) in enumerate(zip(tensors, needs, strict=True))
        ]
        results = _results(pool, fusion, given)
        gradient = recording.gradient
        shapes = [results[k].shape for k in gradient.outputs]
        gs = [pool.symbols(f"g{i}_", _irregular(shape)) for i, shape in enumerate(shapes)]
        gradients = _gradients(pool, fusion, gradient, given, results, gs, detach)
    inputs = [x for x, needed in zip(given, needs, strict=True) if needed]
    return Derived(pool, inputs, results, gs, list(gradient.outputs), gradients)


def _irregular(shape: Sequence[int]) -> Tensor:
    return (torch.arange(torch.Size(shape).numel()) * 0.7).sin().add(1.25).mul(64).round().div(64).reshape(shape)


def _results(pool: Pool, fusion: Fusion, given: Sequence[Tensor]) -> list[Tensor]:
    pieces = [(piece, x) for x, some in zip(given, fusion.presentation.inputs, strict=True) for piece in some]
    parts = pool.evaluate(fusion.graph, {piece.at: piece.view.of(x) for piece, x in pieces})
    return [joined([Share(*piece) for piece in some], parts) for some in fusion.presentation.results]


def _gradients(pool, fusion, gradient, given, results, gs, detach) -> list[Tensor | None]:
    """Return what :class:`customops.fusion.gradient.Gradient` computes by formulas, in terms."""
    saved = [results[fusion.savable_results[i]] if i in fusion.savable_results else None for i in gradient.saved_values]
    tensors = [*gs, *(given[k] for k in gradient.saved_tensors), *saved]
    by_value = {i: view.of(tensors[k]) for i, k, view in gradient.operands if tensors[k] is not None}
    parts = pool.evaluate(gradient.graph, by_value, gradient.known, detach)
    grads = [joined(shares, parts) for shares in gradient.shares]
    return [None if at is None else grads[at] for at in gradient.result_index]


def value_at(expression: sympy.Expr, of: Derived) -> Any:
    """Return the number that a term is at the point."""
    symbols = sorted(expression.free_symbols, key=str)
    with mpmath.workdps(DIGITS):
        return sympy.lambdify(symbols, expression, "mpmath", cse=True)(*[of.pool.point[x] for x in symbols])
