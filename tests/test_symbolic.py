"""Formulas proven equal to their definitions, derivatives to those that SymPy takes of the definitions.

What is proven is the code that runs. The functions of both ``formulas.py`` are rebuilt on their own bytecode,
with SymPy for what they call of torch or Triton, and evaluated on symbols.
"""

from __future__ import annotations

import functools
import inspect
from itertools import permutations, product
from types import FunctionType

import pytest

from customops import formulas
from customops.ops import binary, choice, comparison, parts, products, reductions, unary
from customops.ops.function import Operator

pytest.importorskip("sympy", reason="the proofs need SymPy")
import sympy

from .cases import CALLS, PARTS, ids
from .cases import REDUCTIONS as REDUCING
from .marks import formulas_only
from .symbolic import COUNT, LIBRARIES, TORCH, evaluate, g, i, j, proof_of, spelling, term

pytestmark = formulas_only
x, y = sympy.symbols("x y", real=True)
ABOVE, BELOW, ZERO = sympy.Symbol("x", positive=True), sympy.Symbol("x", negative=True), sympy.S.Zero
ELEMENTWISE = [(row, call) for row, call in CALLS if row.name not in REDUCING and call.name != "clamp(x, y, 1.125)"]
ELEMENTWISE += [(row, call) for row in PARTS for call in row.calls]
ONCE = {proof_of(row, call).operator: (row, call) for row, call in reversed(ELEMENTWISE)}  # a call of each operator
PREDICATES = {
    comparison.Lt: x < y, comparison.Le: x <= y, comparison.Gt: x > y, comparison.Ge: x >= y,
    comparison.Eq: sympy.Eq(x, y), comparison.Ne: sympy.Ne(x, y),
    comparison.LogicalAnd: sympy.Ne(x, 0) & sympy.Ne(y, 0), comparison.LogicalOr: sympy.Ne(x, 0) | sympy.Ne(y, 0),
    comparison.LogicalNot: sympy.Eq(x, 0),
}  # fmt: skip
ELEMENTS = sympy.IndexedBase("x")
TOTAL = sympy.Sum(ELEMENTS[i], (i, 0, COUNT - 1))
NUMEL_IN, NUMEL_OUT = sympy.symbols("alpha beta", positive=True)
PRODUCT = sympy.Product(ELEMENTS[i], (i, 0, COUNT - 1))
GREATEST, LEAST = (sympy.Function(name)(ELEMENTS[i]) for name in ("greatest", "least"))  # of all x[i]
REDUCTIONS = {
    reductions.Sum: TOTAL,
    reductions.Mean: NUMEL_OUT / NUMEL_IN * TOTAL,
    reductions.Amax: GREATEST,
    reductions.Amin: LEAST,
    products.Prod: PRODUCT,
    parts.Greatest: GREATEST,
    parts.Least: LEAST,
    parts.FirstGreatest: GREATEST,
    parts.FirstLeast: LEAST,
}


@pytest.fixture(params=LIBRARIES)
def spelled(request) -> dict[str, FunctionType]:
    """Return the functions of a spelling of the formulas, on SymPy."""
    if "triton" in request.param:
        pytest.importorskip("triton", reason="its spelling of the formulas imports Triton")
    return {**spelling(request.param)}


def prove(function, truth, **values):
    """Raise unless ``function`` of ``values`` is ``truth``, whatever number each symbol stands for."""
    difference = sympy.simplify((evaluate(function, **values) - truth).rewrite(sympy.exp))
    assert difference == 0, f"{function.__name__} is off by {difference}"


def prove_call(spelled, row, call) -> int:
    """Prove the formula of a call, and its derivatives with z as defined; return the number of proofs."""
    operator, values, definition, kinds = proof = proof_of(row, call)
    derivatives = {name: d for name, d in zip(values, operator.derivatives, strict=False) if name in proof.tensors}
    for kind in kinds:
        at = {name: term(value).subs(kind) if name in proof.tensors else value for name, value in values.items()}
        at |= {"g": g, "z": definition.subs(kind)}
        prove(spelled[operator.formula.__name__], at["z"], **at)
        for name, derivative in derivatives.items():
            prove(spelled[derivative.__name__], g * sympy.diff(definition, values[name]).subs(kind), **at)
    return len(kinds) * (1 + len(derivatives))


def numbers(spelled, value: int) -> list:
    """Return a number as a tensor's and, for torch, as a Python number: conditions on that are bools."""
    return [sympy.Integer(value), *([value] if "torch" in spelled else [])]


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


@pytest.mark.parametrize("order", list(permutations(("x", "low", "high"))), ids=str)
def test_bounds_that_are_tensors_have_the_gradient_of_whichever_is_the_output(spelled, order, tally):
    """In each order of x and the bounds the output is one of the three."""
    first, second = sympy.symbols("first second", positive=True)
    symbol = {name: sympy.Symbol(name, real=True) for name in order}
    at = dict(zip(order, (x, x + first, x + first + second), strict=True))
    definition = sympy.Min(sympy.Max(symbol["x"], symbol["low"]), symbol["high"])
    value = definition.subs({symbol[name]: sympy.Integer(order.index(name)) for name in order})
    chosen = order[int(value)]
    prove(spelled["clamp"], at[chosen], **at)
    for name, derivative in zip(("x", "low", "high"), choice.Clamp.derivatives, strict=True):
        prove(spelled[derivative.__name__], g * int(name == chosen), g=g, **at)
    tally("symbolic proofs", 4)


def test_relu_derivative_at_zero_is_zero(spelled, tally):
    """The definition has no derivative there; this is torch's choice of subgradient."""
    prove(spelled["relu"], 0, x=ZERO)
    prove(spelled["relu_dx"], 0, g=g, z=ZERO)
    tally("symbolic proofs", 2)


def test_absolute_value_derivative_at_zero_is_zero(spelled, tally):
    prove(spelled["abs"], 0, x=ZERO)
    prove(spelled["abs_dx"], 0, g=g, x=ZERO)
    tally("symbolic proofs", 2)


@pytest.mark.parametrize("operator", [binary.Maximum, binary.Minimum])
def test_equal_operands_share_their_gradient(spelled, operator, tally):
    """The definition has no derivative there; torch chooses halves."""
    prove(spelled[operator.formula.__name__], x, x=x, y=x)
    for derivative in operator.derivatives:
        prove(spelled[derivative.__name__], g / 2, g=g, x=x, y=x)
    tally("symbolic proofs", 3)


@pytest.mark.parametrize(
    ("name", "exponent"), [("pow_dx", n) for n in range(-2, 4)] + [("pow_number_dx", n) for n in (-2, -1, 2, 3)]
)
def test_whole_powers_derive_on_the_whole_line(spelled, name, exponent, tally):
    """They do so below 0 too, and at 0, where the general expression for x^0 gives 0·inf and the derivative is 0."""
    kinds = (ABOVE, BELOW, ZERO) if exponent >= 0 else (ABOVE, BELOW)
    for kind, number in product(kinds, numbers(spelled, exponent) if name == "pow_dx" else [exponent]):
        prove(spelled[name], g * sympy.diff(x**exponent, x).subs(x, kind), g=g, x=kind, y=number)
        tally("symbolic proofs")


def test_powers_of_zero_have_derivative_zero_along_the_exponent(spelled, tally):
    """0^y is 0 for every y > 0; at y = 0 it is torch's choice, and for y < 0 there is none."""
    positive = sympy.Symbol("y", positive=True)
    for base in numbers(spelled, 0):
        prove(spelled["pow_dy"], sympy.diff(0**positive, positive), g=g, x=base, y=positive, z=0**positive)
        prove(spelled["pow_dy"], 0, g=g, x=base, y=ZERO, z=sympy.S.One)
        tally("symbolic proofs", 2)
        with pytest.raises(AssertionError, match="pow_dy is off by"):
            prove(spelled["pow_dy"], 0, g=g, x=base, y=-positive, z=0**-positive)


def test_powers_of_a_number_derive_along_the_exponent(spelled, tally):
    for base in numbers(spelled, 2):
        prove(spelled["pow_dy"], g * sympy.diff(2**y, y), g=g, x=base, y=y, z=2**y)
        tally("symbolic proofs")


@pytest.mark.parametrize("function", REDUCTIONS, ids=lambda f: f.__name__)
def test_reduction_follows_from_the_definition(spelled, function, tally):
    """It does for any number of elements. Triton's formulas finish the total that a kernel made."""
    formula = spelled[function.formula.__name__]
    total = "count" in inspect.signature(formula).parameters
    truth = REDUCTIONS[function].subs(NUMEL_IN, NUMEL_OUT * COUNT)
    reduced = TOTAL if function in (reductions.Sum, reductions.Mean) else truth
    prove(formula, truth, x=reduced if total else ELEMENTS[i], count=COUNT)
    tally("symbolic proofs")


def test_derivative_of_a_sum_is_one(tally):
    """This holds for any one element: the gradient is g itself, seen in the shape of the input."""
    assert sympy.diff(REDUCTIONS[reductions.Sum], ELEMENTS[j]).doit() == 1
    tally("symbolic proofs")


def test_derivative_of_a_mean_follows_from_the_definition(spelled, tally):
    """It is beta/alpha for any one element."""
    slope = sympy.diff(REDUCTIONS[reductions.Mean], ELEMENTS[j]).doit()
    prove(spelled["mean_dx"], g * slope, g=g, count=NUMEL_IN / NUMEL_OUT)
    tally("symbolic proofs")


def test_inverse_factor_of_the_mean_is_no_derivative(spelled):
    """The source notebook's slip: alpha/beta is right only where nothing is reduced, alpha = beta."""
    slip = g * NUMEL_IN / NUMEL_OUT
    with pytest.raises(AssertionError, match="mean_dx is off by"):
        prove(spelled["mean_dx"], slip, g=g, count=NUMEL_IN / NUMEL_OUT)
    difference = evaluate(spelled["mean_dx"], g=g, count=NUMEL_IN / NUMEL_OUT) - slip
    assert sympy.solve(difference, NUMEL_IN) == [NUMEL_OUT]


def test_derivative_of_a_product_follows_from_the_definition(spelled, tally):
    """It does for an element x beside others of product y; where others are 0, y is the product of the rest times w."""
    w = sympy.Symbol("w", real=True)
    prove(spelled["prod_dx"], g * sympy.diff(x * y, x), g=g, x=ABOVE, z=ABOVE * y, zeros=0, rest=ABOVE * y, nought=0)
    prove(spelled["prod_dx"], g * sympy.diff(x * y, x), g=g, x=ZERO, z=ZERO, zeros=1, rest=y, nought=0)
    prove(spelled["prod_dx"], g * sympy.diff(x * w * y, x), g=g, x=ZERO, z=ZERO, zeros=2, rest=y, nought=w)
    prove(spelled["prod_dx"], 0, g=g, x=ZERO, z=ZERO, zeros=3, rest=y, nought=0)
    for name, above, zero in (("is_zero", 0, 1), ("one_for_zero", ABOVE, 1), ("zero_for_others", 0, 0)):
        prove(spelled[name], above, x=ABOVE)
        prove(spelled[name], zero, x=ZERO)
    tally("symbolic proofs", 10)


def test_first_of_ties_has_the_gradient(spelled, tally):
    p = sympy.Symbol("p", real=True)
    prove(spelled["same"], 1, x=x, z=x)
    prove(spelled["same"], 0, x=y + ABOVE, z=y)
    prove(spelled["place"], p, mask=sympy.S.One, position=p)
    assert evaluate(spelled["place"], mask=ZERO, position=p) == sympy.oo
    prove(spelled["selected_dx"], g, g=g, position=p, first=p)
    prove(spelled["selected_dx"], 0, g=g, position=p, first=p - ABOVE)
    tally("symbolic proofs", 6)


def test_norms_have_no_slope_at_zero(spelled, tally):
    """The power has an infinite one there, or none; this is torch's choice of subgradient."""
    for number in (-1.5, 0.5, 2):
        prove(spelled["norm_power_dx"], 0, g=g, x=ZERO, y=number)
        tally("symbolic proofs")


@pytest.mark.parametrize(("extremum", "sign"), [(sympy.Max, 1), (sympy.Min, -1)], ids=str)
def test_derivative_of_an_extremum_follows_where_it_has_one(spelled, extremum, sign, tally):
    """For an element x, where y is the extremum of the others, it is 1 where x is beyond y, 0 where it is not."""
    definition = extremum(x, y)
    for beyond, kind in ((1, y + sign * ABOVE), (0, y - sign * ABOVE)):
        z, slope = definition.subs(x, kind), sympy.diff(definition, x).subs(x, kind)
        assert slope == beyond
        prove(spelled["equal"], slope, x=kind, z=z)
        prove(spelled["extremum_dx"], g * slope, g=g, ties=sympy.S.One, mask=slope)
        tally("symbolic proofs", 2)


def test_ties_have_the_mean_of_the_gradients_around_them(spelled, tally):
    """Beside a tie of n there are n gradients, each 1 for one of them: their mean is 1/n for each, 0 for the rest."""
    n = sympy.Integer(3)
    tied = sympy.symbols(f"x:{n}", real=True)
    gradient = [sympy.diff(sympy.Max(*tied), x) for x in tied]
    around = [[slope.subs(dict.fromkeys(tied, y) | {x: y + ABOVE}) for slope in gradient] for x in tied]
    shares = [sympy.Add(*slopes) / n for slopes in zip(*around, strict=True)]
    for share in shares:
        prove(spelled["extremum_dx"], g * share, g=g, ties=n, mask=sympy.S.One)
        tally("symbolic proofs")
    assert sympy.Add(*shares) == 1
    prove(spelled["extremum_dx"], 0, g=g, ties=n, mask=sympy.S.Zero)


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
