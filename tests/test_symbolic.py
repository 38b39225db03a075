"""Formulas proven equal to their definitions, derivatives to those that SymPy takes of the definitions.

What is proven is the code that runs. The functions of both ``formulas.py`` are rebuilt on their own bytecode,
with SymPy for what they call of torch or Triton, and evaluated on symbols.
"""

from __future__ import annotations

import functools
import inspect
from itertools import product
from types import FunctionType

import pytest

from customops import formulas
from customops.ops import binary, comparison, reductions, unary
from customops.ops.function import Operator

pytest.importorskip("sympy", reason="the proofs need SymPy")
import sympy

from customops.proof import claims
from customops.proof.claims import NUMEL_IN, NUMEL_OUT, ORDERS, REDUCTIONS, WHOLE_POWERS, ZERO, x, y
from customops.proof.symbolic import BY_CLAIMS, LIBRARIES, TORCH, evaluate, g, proof_of, prove, prove_call, spelling

from .cases import CALLS, PARTS, ids
from .cases import REDUCTIONS as REDUCING
from .marks import formulas_only

pytestmark = formulas_only
ELEMENTWISE = [(row, call) for row, call in CALLS if row.name not in REDUCING and call.name not in BY_CLAIMS]
ELEMENTWISE += [(row, call) for row in PARTS for call in row.calls]
ONCE = {proof_of(row, call).operator: (row, call) for row, call in reversed(ELEMENTWISE)}  # a call of each operator
PREDICATES = {
    comparison.Lt: x < y, comparison.Le: x <= y, comparison.Gt: x > y, comparison.Ge: x >= y,
    comparison.Eq: sympy.Eq(x, y), comparison.Ne: sympy.Ne(x, y),
    comparison.LogicalAnd: sympy.Ne(x, 0) & sympy.Ne(y, 0), comparison.LogicalOr: sympy.Ne(x, 0) | sympy.Ne(y, 0),
    comparison.LogicalNot: sympy.Eq(x, 0),
}  # fmt: skip


@pytest.fixture(params=LIBRARIES)
def spelled(request) -> dict[str, FunctionType]:
    """Return the functions of a spelling of the formulas, on SymPy."""
    if "triton" in request.param:
        pytest.importorskip("triton", reason="its spelling of the formulas imports Triton")
    return {**spelling(request.param)}


def descendants(kind: type) -> set[type]:
    return {kind}.union(*map(descendants, kind.__subclasses__()))


def test_proofs_cover_every_operator_and_formula():
    operators = {o for o in Operator.__subclasses__() if o.__module__.startswith("customops.")}
    functions = {r for r in descendants(reductions.Reduction) if hasattr(r, "formula")}
    assert operators == set(ONCE)
    assert functions == set(REDUCTIONS)
    proven = {f for o in operators for f in (o.formula, *o.derivatives)}
    proven |= {f for r in functions for f in (r.formula, r.derivative) if f}
    proven |= {
        formulas.equal,
        formulas.same,
        formulas.place,
        formulas.add_,
        formulas.sub_,
        *(p.formula for p in PREDICATES),
    }
    proven |= {formulas.is_zero, formulas.one_for_zero, formulas.zero_for_others}
    proven |= {formulas.full_like, formulas.to_float16, formulas.to_bfloat16, formulas.to_float32}  # test_spelling.py
    assert proven == {f for name, f in vars(formulas).items() if inspect.isfunction(f) and name[0] != "_"}


@pytest.mark.parametrize(("row", "call"), ELEMENTWISE, ids=ids)
def test_formula_and_derivatives_follow_from_the_definition(spelled, row, call, tally):
    tally("symbolic proofs", prove_call(spelled, row, call))


@pytest.mark.parametrize("predicate", PREDICATES, ids=lambda p: p.__name__)
def test_predicates_are_1_where_their_relation_holds(spelled, predicate, tally):
    assert {*PREDICATES} == {*comparison.Predicate.__subclasses__()}
    found = evaluate(spelled[predicate.formula.__name__], x=x, y=y)
    for at in product((-1, 0, 2), (-1, 0, 2)):
        numbers = dict(zip((x, y), at, strict=True))
        assert found.subs(numbers) == (1 if PREDICATES[predicate].subs(numbers) else 0)
        tally("symbolic proofs")


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_bounds_that_are_tensors_have_the_gradient_of_whichever_is_the_output(spelled, order, tally):
    """In each order of x and the bounds the output is one of the three."""
    tally("symbolic proofs", claims.bounds_that_are_tensors(spelled, order))


def test_relu_derivative_at_zero_is_zero(spelled, tally):
    """The definition has no derivative there; this is torch's choice of subgradient."""
    tally("symbolic proofs", claims.zero_slope_at_zero(spelled, "relu"))


def test_absolute_value_derivative_at_zero_is_zero(spelled, tally):
    tally("symbolic proofs", claims.zero_slope_at_zero(spelled, "abs"))


@pytest.mark.parametrize("operator", [binary.Maximum, binary.Minimum])
def test_equal_operands_share_their_gradient(spelled, operator, tally):
    """The definition has no derivative there; torch chooses halves."""
    tally("symbolic proofs", claims.equal_operands_share(spelled, operator))


@pytest.mark.parametrize(("name", "exponent"), WHOLE_POWERS)
def test_whole_powers_derive_on_the_whole_line(spelled, name, exponent, tally):
    """They do so below 0 too, and at 0, where the general expression for x^0 gives 0·inf and the derivative is 0."""
    tally("symbolic proofs", claims.whole_power(spelled, name, exponent))


def test_powers_of_zero_have_derivative_zero_along_the_exponent(spelled, tally):
    """0^y is 0 for every y > 0; at y = 0 it is torch's choice, and for y < 0 there is none."""
    tally("symbolic proofs", claims.powers_of_zero(spelled))
    positive = sympy.Symbol("y", positive=True)
    for base in claims.numbers(spelled, 0):
        with pytest.raises(AssertionError, match="pow_dy is off by"):
            prove(spelled["pow_dy"], 0, g=g, x=base, y=-positive, z=0**-positive)


def test_powers_of_a_number_derive_along_the_exponent(spelled, tally):
    tally("symbolic proofs", claims.powers_of_a_number(spelled))


@pytest.mark.parametrize("function", REDUCTIONS, ids=lambda f: f.__name__)
def test_reduction_follows_from_the_definition(spelled, function, tally):
    """It does for any number of elements. Triton's formulas finish the total that a kernel made."""
    tally("symbolic proofs", claims.reduction_is_its_definition(spelled, function))


def test_derivative_of_a_sum_is_one(tally):
    """This holds for any one element: the gradient is g itself, seen in the shape of the input."""
    tally("symbolic proofs", claims.slope_of_a_sum({}))


def test_derivative_of_a_mean_follows_from_the_definition(spelled, tally):
    """It is beta/alpha for any one element."""
    tally("symbolic proofs", claims.slope_of_a_mean(spelled))


def test_inverse_factor_of_the_mean_is_no_derivative(spelled):
    """The source notebook's slip: alpha/beta is right only where nothing is reduced, alpha = beta."""
    slip = g * NUMEL_IN / NUMEL_OUT
    with pytest.raises(AssertionError, match="mean_dx is off by"):
        prove(spelled["mean_dx"], slip, g=g, count=NUMEL_IN / NUMEL_OUT)
    difference = evaluate(spelled["mean_dx"], g=g, count=NUMEL_IN / NUMEL_OUT) - slip
    assert sympy.solve(difference, NUMEL_IN) == [NUMEL_OUT]


def test_derivative_of_a_product_follows_from_the_definition(spelled, tally):
    """It does for an element x beside others of product y; where others are 0, y is the product of the rest times w."""
    tally("symbolic proofs", claims.slope_of_a_product(spelled))


def test_first_of_ties_has_the_gradient(spelled, tally):
    tally("symbolic proofs", claims.first_of_ties(spelled))


def test_norms_have_no_slope_at_zero(spelled, tally):
    """The power has an infinite one there, or none; this is torch's choice of subgradient."""
    for number in (-1.5, 0.5, 2):
        prove(spelled["norm_power_dx"], 0, g=g, x=ZERO, y=number)
        tally("symbolic proofs")


@pytest.mark.parametrize(("extremum", "sign"), [(sympy.Max, 1), (sympy.Min, -1)], ids=str)
def test_derivative_of_an_extremum_follows_where_it_has_one(spelled, extremum, sign, tally):
    """For an element x, where y is the extremum of the others, it is 1 where x is beyond y, 0 where it is not."""
    tally("symbolic proofs", claims.slope_of_an_extremum(spelled, extremum, sign))


def test_ties_have_the_mean_of_the_gradients_around_them(spelled, tally):
    """Beside a tie of n there are n gradients, each 1 for one of them: their mean is 1/n for each, 0 for the rest."""
    tally("symbolic proofs", claims.ties_have_the_mean(spelled))


@pytest.mark.parametrize("operator", ONCE, ids=lambda o: o.__name__)
def test_prover_rejects_what_is_off_by_one_in_100_000(spelled, operator):
    row, call = ONCE[operator]
    read = proof_of(row, call).tensors[: len(operator.derivatives)]
    for name in (f.__name__ for f in (operator.formula, *operator.derivatives[: len(read)])):
        right = spelled[name]
        wrong = functools.wraps(right)(lambda _right=right, **values: _right(**values) * (1 + 1e-5) + 1e-5)
        with pytest.raises(AssertionError, match=f"^{name} is off by"):
            prove_call({**spelled, name: wrong}, *ONCE[operator])


@pytest.mark.parametrize(
    ("operator", "name", "wrong"),
    [
        (unary.Sigmoid, "sigmoid_dx", lambda g, z: g * z),
        (unary.Log, "log_dx", lambda g, x: g * x),
        (binary.Sub, "sub_dy", lambda g, alpha: alpha * g),
        (binary.Mul, "mul_dx", lambda g, x: g * x),
        (binary.Pow, "pow_dx", lambda g, x, y: TORCH.where(y == 1, 0, g * (y * TORCH.pow(x, y - 1)))),
    ],
)
def test_prover_rejects_a_wrong_derivative(spelled, operator, name, wrong):
    with pytest.raises(AssertionError, match="is off by"):
        prove_call({**spelled, name: wrong}, *ONCE[operator])
