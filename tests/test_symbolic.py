"""Formulas proven equal to their definitions, derivatives to those that SymPy takes of the definitions.

What is proven is the code that runs. The functions of both ``formulas.py`` are rebuilt on their own bytecode,
with SymPy for what they call of torch or Triton, and evaluated on symbols.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import inspect
import math
import operator as python
from dataclasses import dataclass
from itertools import product
from types import FunctionType, SimpleNamespace

import pytest

from customops import formulas
from customops.ops import binary, parts, products, reductions, unary
from customops.ops.function import Operator

pytest.importorskip("sympy", reason="the proofs need SymPy")
import sympy
from sympy.logic.boolalg import Boolean

from .definitions import ABOVE, BELOW, DEFINITIONS, ZERO, alpha, g, x, y
from .marks import formulas_only

pytestmark = formulas_only
i, j, after = sympy.symbols("i j after", integer=True, nonnegative=True)
COUNT = j + 1 + after  # so that x[j] is any one of x[0], ..., x[COUNT - 1]
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


def term(value):
    """Return the SymPy expression of a value or number, a decimal fraction as an exact one."""
    if isinstance(value, float) and math.isfinite(value):
        return sympy.Rational(str(value))
    return value.term if isinstance(value, Value) else sympy.sympify(value)


def as_number(truth):
    """Return 1 or 0 for what is true or false, and a number as it is."""
    return sympy.Piecewise((1, truth), (0, True)) if isinstance(truth, Boolean) and not truth.is_Symbol else truth


def lifted(function):
    """Return a function of SymPy expressions as one of values."""

    def on_values(*args, **options):
        return Value(function(*map(term, args), **{name: term(option) for name, option in options.items()}))

    return on_values


def overloaded(function):
    """Return a function of SymPy expressions as one of torch's operators, of which formulas call the first overload."""
    return SimpleNamespace(default=lifted(function))


@dataclass(eq=False)
class Value:
    """An expression that answers what formulas ask of a floating tensor; ``==`` makes an equation of it."""

    term: sympy.Basic

    dtype = SimpleNamespace(is_int=lambda: False, is_floating=lambda: True, is_fp32=lambda: True, is_complex=False)
    is_complex = staticmethod(lambda: False)
    conj = lambda self: self
    to = lambda self, _dtype: Value(as_number(self.term))
    detach = lambda self: self
    __hash__ = __bool__ = None  # no formula may branch on an equation

    __neg__ = lifted(python.neg)
    __add__ = __radd__ = lifted(python.add)
    __sub__, __rsub__ = lifted(python.sub), lifted(lambda a, b: b - a)
    __mul__ = __rmul__ = lifted(lambda a, b: as_number(a) * as_number(b))
    __truediv__, __rtruediv__ = lifted(python.truediv), lifted(lambda a, b: b / a)
    __eq__, __lt__, __le__ = lifted(sympy.Eq), lifted(sympy.Lt), lifted(sympy.Le)
    __gt__, __ge__ = lifted(sympy.Gt), lifted(sympy.Ge)
    __abs__ = lifted(sympy.Abs)
    masked_fill = lifted(lambda x, mask, value: sympy.Piecewise((value, mask), (x, True)))
    clamp = lifted(lambda x, max: sympy.Min(max, x))
    new_zeros = lambda self, _shape: Value(sympy.S.Zero)
    __and__ = __rand__ = lifted(sympy.And)
    __or__ = __ror__ = lifted(sympy.Or)


ELEMENTARY = {
    "log": lifted(sympy.log),
    "exp": lifted(sympy.exp),
    "pow": lifted(lambda x, y: x**y),
    "where": lifted(lambda condition, a, b: sympy.Piecewise((a, condition), (b, True))),
}


class Library(SimpleNamespace):
    """A stand-in for torch or Triton; what it does not define is SymPy's function of that name."""

    def __getattr__(self, name):
        function = getattr(sympy, name)
        return lifted(function)


TORCH = Library(
    **ELEMENTARY,
    relu=lifted(lambda x: sympy.Piecewise((x, x > 0), (0, True))),
    sigmoid=lifted(lambda x: sympy.exp(x) / (sympy.exp(x) + 1)),
    add=lifted(lambda x, y, alpha: x + alpha * y),
    sub=lifted(lambda x, y, alpha: x - alpha * y),
    mul=lifted(lambda x, y: x * y),
    div=lifted(python.truediv),
    neg=lifted(python.neg),
    abs=lifted(sympy.Abs),
    sgn=lifted(sympy.sign),
    rsqrt=lifted(lambda x: 1 / sympy.sqrt(x)),
    maximum=lifted(sympy.Max),
    minimum=lifted(sympy.Min),
    sum=lifted(lambda x: sympy.Sum(x, (i, 0, COUNT - 1))),
    mean=lifted(lambda x: sympy.Sum(x, (i, 0, COUNT - 1)) / COUNT),
    prod=lifted(lambda x: sympy.Product(x, (i, 0, COUNT - 1))),
    isnan=lifted(lambda _x: sympy.false),
    inf=sympy.oo,
    finfo=lambda _dtype: SimpleNamespace(max=sympy.oo),
    clamp=lifted(lambda x, least, most: sympy.Min(sympy.Max(x, least), most)),
    amax=lifted(sympy.Function("greatest")),
    amin=lifted(sympy.Function("least")),
    addcmul=lifted(lambda x, a, b, value: x + value * a * b),
    zeros_like=lifted(lambda x: sympy.S.Zero),
    tensor=lifted(lambda x, **_: x),
    Tensor=Value,
    float64=None,
    ops=SimpleNamespace(
        aten=SimpleNamespace(
            threshold_backward=overloaded(lambda g, z, threshold: sympy.Piecewise((0, z <= threshold), (g, True))),
            sigmoid_backward=overloaded(lambda g, z: g * (1 - z) * z),
            tanh_backward=overloaded(lambda g, z: g * (1 - z**2)),
        )
    ),
)
TRITON = Library(
    **ELEMENTARY,
    abs=lifted(sympy.Abs),
    float32=None,
    sqrt_rn=lifted(sympy.sqrt),
    fma=lifted(lambda x, y, z: x * y + z),
    broadcast=lambda x, y: (x, y),
    to_tensor=lambda x: Value(term(x)),
    full=lambda _shape, y, _dtype: Value(term(y)),
)
LIBRARIES = {
    "customops.formulas": {"torch": TORCH},
    "customops.triton_kernels.formulas": {
        "tl": TRITON,
        "libdevice": TRITON,
        "INTERPRETED": False,
        "division": SimpleNamespace(divide=lifted(python.truediv), divide_by_small=lifted(python.truediv)),
    },
}


@pytest.fixture(params=LIBRARIES)
def spelled(request) -> dict[str, FunctionType]:
    """Return the functions of a module, rebuilt to see each other and stand-ins for its libraries, nothing else."""
    if "triton" in request.param:
        pytest.importorskip("triton", reason="its spelling of the formulas imports Triton")
    functions: dict = {"__builtins__": builtins, **LIBRARIES[request.param]}
    for name, value in vars(importlib.import_module(request.param)).items():
        original = getattr(value, "fn", value)  # what @triton.jit decorates
        if inspect.isfunction(original) and original.__module__ == request.param:
            functions[name] = FunctionType(original.__code__, functions, name, original.__defaults__)
            functions[name].__kwdefaults__ = original.__kwdefaults__
    return functions


def evaluate(function, **values):
    """Apply ``function`` to those of ``values`` that it reads; a Python number is handed over as one."""
    read = {name: values[name] for name in inspect.signature(function).parameters if name in values}
    return term(function(**{name: v if isinstance(v, int | float) else Value(v) for name, v in read.items()}))


def prove(function, truth, **values):
    """Raise unless ``function`` of ``values`` is ``truth``, whatever number each symbol stands for."""
    difference = sympy.simplify((evaluate(function, **values) - truth).rewrite(sympy.exp))
    assert difference == 0, f"{function.__name__} is off by {difference}"


def prove_operator(spelled, operator: type[Operator]) -> int:
    """Prove the formula, and the derivatives with z as defined; return the number of proofs."""
    definition, inputs, kinds, exponents = DEFINITIONS[operator]
    for kind, number in product(kinds, exponents):
        at = {x: kind, y: term(number)}
        values = {"x": kind, "y": number, "alpha": alpha, "g": g, "z": definition.subs(at)}
        prove(spelled[operator.formula.__name__], values["z"], **values)
        for variable, derivative in zip(inputs, operator.derivatives, strict=True):
            prove(spelled[derivative.__name__], g * sympy.diff(definition, variable).subs(at), **values)
    return len(kinds) * len(exponents) * (1 + len(inputs))


def numbers(spelled, value: int) -> list:
    """Return a number as a tensor's and, for torch, as a Python number: conditions on that are bools."""
    return [sympy.Integer(value), *([value] if "torch" in spelled else [])]


def descendants(kind: type) -> set[type]:
    return {kind}.union(*map(descendants, kind.__subclasses__()))


def test_definitions_cover_every_operator_and_formula():
    operators = {o for o in Operator.__subclasses__() if o.__module__.startswith("customops.")}
    functions = {r for r in descendants(reductions.Reduction) if hasattr(r, "formula")}
    assert operators == set(DEFINITIONS)
    assert functions == set(REDUCTIONS)
    proven = {f for o in operators for f in (o.formula, *o.derivatives)}
    proven |= {f for r in functions for f in (r.formula, r.derivative) if f}
    proven |= {formulas.equal, formulas.same, formulas.place, formulas.add_, formulas.sub_}
    proven |= {formulas.is_zero, formulas.one_for_zero, formulas.zero_for_others}
    assert proven == {f for name, f in vars(formulas).items() if inspect.isfunction(f) and name[0] != "_"}


@pytest.mark.parametrize("operator", DEFINITIONS, ids=lambda o: o.__name__)
def test_formula_and_derivatives_follow_from_the_definition(spelled, operator, tally):
    tally("symbolic proofs", prove_operator(spelled, operator))


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
    folded = TOTAL if function in (reductions.Sum, reductions.Mean) else truth
    prove(formula, truth, x=folded if total else ELEMENTS[i], count=COUNT)
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


@pytest.mark.parametrize("operator", DEFINITIONS, ids=lambda o: o.__name__)
def test_prover_rejects_what_is_off_by_one_in_100_000(spelled, operator):
    for name in (f.__name__ for f in (operator.formula, *operator.derivatives)):
        right = spelled[name]
        wrong = functools.wraps(right)(lambda _right=right, **values: _right(**values) * (1 + 1e-5))
        with pytest.raises(AssertionError, match=f"^{name} is off by"):
            prove_operator({**spelled, name: wrong}, operator)


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
        prove_operator({**spelled, name: wrong}, operator)
