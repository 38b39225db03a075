"""The gradients that ``fuse`` derives, proven to be those that SymPy takes of what it computes.

What is proven is the code that runs: the graph of the gradients and its formulas, evaluated on symbols for a row of a
few elements. Around the numbers that these stand for, which lie in all pieces, the derivative of every composition is
its derivative on the whole piece.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from itertools import product
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

pytest.importorskip("sympy", reason="the proofs need SymPy")
import sympy

import customops
from customops.compiler import gradient
from customops.nn import functional as ours
from customops.proof.symbolic import spelling

from . import test_compositions, test_functional, test_functional_losses
from .cases import Call
from .marks import formulas_only
from .symbolic_graph import Derived, derive, value_at

pytestmark = [formulas_only, pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")]
SIZES = {6: 4, 4: 2, 3: 2}  # what the sizes of cases become
# in pieces of all activations, none near an end of one
NUMBERS = (-1.75, 0.375, 7.625, 2.25, -0.625, -25.5, 1.125, 4.25, 25.25, -3.875, 0.75, -0.25)
ROUNDED = ("norm(x, 1.5)", "vector_norm(1.5)")  # Python rounds 1/1.5, and then 1/1.5 - 1: other numbers to SymPy


class Case(NamedTuple):
    """A function of tensors, and these."""

    name: str
    function: Callable[..., Tensor | tuple[Tensor, ...]]
    tensors: tuple[Tensor, ...]
    is_pointwise: bool = False  # then every element is in a piece of its own

    def __str__(self) -> str:
        return self.name

    def elements(self, count: int) -> list[int]:
        """Return the positions of the elements that are proven: all if pointwise, else the first and the last."""
        return list(range(count)) if self.is_pointwise else sorted({0, count - 1})


def _numbers(shape: tuple[int, ...], start: int) -> Tensor:
    count = torch.Size(shape).numel()
    numbers = [NUMBERS[(start + i) % len(NUMBERS)] + i // len(NUMBERS) / 64 for i in range(count)]
    return torch.tensor(numbers, dtype=torch.float64).reshape(shape)


def _of_the_gallery(case: test_functional.Case) -> Case:
    shapes = [tuple(SIZES.get(n, n) for n in shape) for shape in case.shapes]
    tensors = tuple(_numbers(shape, 5 * i) for i, shape in enumerate(shapes))
    return Case(case.name, lambda *xs: case.function(ours, *xs), tensors, case in test_functional.ACTIVATIONS)


def _of_losses(case: test_functional_losses.Case) -> Case:
    return Case(case.name, lambda *xs: case(ours, *xs), tuple(case.tensors.values()))


def _of_a_composition(call: Call) -> Case:
    return Case(call.name, lambda x: call.function(customops, x), (_numbers((2, 3), 0),))


CASES = [
    *map(_of_the_gallery, test_functional.CASES),
    *map(_of_losses, test_functional_losses.CASES),
    *map(_of_a_composition, test_compositions.CALLS),
]
BY_NAME = {case.name: case for case in CASES}


def derived(case: Case, **options: bool) -> Derived:
    """Return a case in terms."""
    return derive(case.function, [x.clone().requires_grad_() for x in case.tensors], **options)


def prove(case: Case, got: sympy.Expr, want: sympy.Expr, of: Derived, symbolic: bool = True) -> None:
    """Raise unless two terms are the same number at the point, to many digits; and for all numbers if ``symbolic``."""
    off = value_at(got - want, of) / (1 + abs(value_at(want, of)))
    assert abs(off) < (1e-14 if case.name in ROUNDED else 1e-42), f"off by {off}"
    if symbolic and case.name not in ROUNDED:
        assert sympy.cancel(sympy.together((got - want).rewrite(sympy.exp))) == 0, f"{got} is not {want}"


def prove_gradients(case: Case) -> int:
    """Prove the gradients; return of how many elements."""
    of, proofs = derived(case), 0
    for x, dx in zip(of.inputs, of.gradients, strict=True):
        symbols, gradients = map(of.pool.terms, (x, dx))
        for i in case.elements(len(symbols)):
            prove(case, gradients[i], sympy.diff(of.loss, symbols[i]), of)
            proofs += 1
    return proofs


def prove_twice(case: Case) -> int:
    """Prove gradients of gradients: by each element if pointwise, else those of the first by the first and by others.

    Where a row is reduced SymPy takes long to find that a difference is 0: there they are proven at the point.
    """
    of, proofs = derived(case, detach=True), 0
    for (x, dx), y in product(zip(of.inputs, of.gradients, strict=True), of.inputs):
        (symbols, gradients), others = map(of.pool.terms, (x, dx)), of.pool.terms(y)
        pairs = [(i, i) for i in range(len(symbols))] if case.is_pointwise else [(0, 0), (0, 1), (0, -1)]
        for i, j in pairs:
            by = others[j if j < len(others) else 0]
            got = of.pool.without_constants(sympy.diff(gradients[i], by))
            prove(case, got, sympy.diff(of.loss, symbols[i], by), of, case.is_pointwise)
            proofs += 1
    return proofs


@pytest.mark.parametrize("case", CASES, ids=str)
def test_derived_gradients_are_the_derivatives_of_what_is_computed(case, tally):
    tally("symbolic proofs of fused gradients", prove_gradients(case))


@pytest.mark.sample(formulas="is_pointwise", kernels="")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_of_derived_gradients_are_second_derivatives(case, tally):
    """What formulas have for a constant counts as one, as to autograd."""
    tally("symbolic proofs of fused gradients", prove_twice(case))


def test_cases_call_every_function():
    called = {case.loss for case in test_functional_losses.CASES}

    class Library:
        def __getattr__(self, name):
            called.add(name)
            return getattr(ours, name)

    for case in test_functional.CASES:
        case.function(Library(), *test_functional.draw(case))
    assert called == {*ours.__all__}


WRONG = {"silu(x)": "sigmoid_dx", "softmax(x, 1)": "mul_dx", "var(1)": "mul_dx", "mse": "mean_dx", "ce": "log_dx"}


@pytest.mark.parametrize("prove_case", [prove_gradients, prove_twice])
@pytest.mark.parametrize("name", WRONG)
def test_prover_rejects_a_rule_that_is_off_by_1e_5(name, prove_case, monkeypatch):
    functions = spelling("customops.formulas")
    right = functions[WRONG[name]]
    monkeypatch.setitem(functions, WRONG[name], wraps(right)(lambda **values: right(**values) * (1 + 1e-5)))
    with pytest.raises(AssertionError, match="off by"):
        prove_case(BY_NAME[name])


@pytest.mark.parametrize("name", ["softmax(x, 1)", "layer_norm(x)", "rms_norm(x, w)"])
def test_prover_rejects_a_sum_that_is_left_out(name, monkeypatch):
    monkeypatch.setattr(gradient, "sum_over", lambda graph, value, axes: None)
    with pytest.raises(AssertionError, match="off by"):
        prove_gradients(BY_NAME[name])
