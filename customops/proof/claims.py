"""What is proven of operators beside :func:`symbolic.prove_call`: where a definition has no slope, and of reductions.

Each function proves one claim of one spelling of the formulas, raises AssertionError where it is wrong, and returns the
number of proofs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from itertools import permutations, product
from types import FunctionType

import sympy

from ..ops import choice, parts, products, reductions
from .symbolic import COUNT, evaluate, g, i, j, prove

Spelled = dict[str, FunctionType]  # the functions of a spelling, on SymPy
x, y = sympy.symbols("x y", real=True)
ABOVE, BELOW, ZERO = sympy.Symbol("x", positive=True), sympy.Symbol("x", negative=True), sympy.S.Zero
ELEMENTS = sympy.IndexedBase("x")
TOTAL = sympy.Sum(ELEMENTS[i], (i, 0, COUNT - 1))
NUMEL_IN, NUMEL_OUT = sympy.symbols("alpha beta", positive=True)
PRODUCT = sympy.Product(ELEMENTS[i], (i, 0, COUNT - 1))
GREATEST, LEAST = (sympy.Function(name)(ELEMENTS[i]) for name in ("greatest", "least"))  # of all x[i]
REDUCTIONS: dict[type, sympy.Expr] = {
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


def numbers(spelled: Spelled, value: int) -> list:
    """Return a number as a tensor's and, for torch, as a Python number: conditions on that are bools."""
    return [sympy.Integer(value), *([value] if "torch" in spelled else [])]


def zero_slope_at_zero(spelled: Spelled, name: str) -> int:
    """The value at 0 is 0, and so is the derivative, which the definition lacks: torch's choice of subgradient."""
    prove(spelled[name], 0, x=ZERO)
    prove(spelled[f"{name}_dx"], 0, g=g, x=ZERO, z=ZERO)
    return 2


def equal_operands_share(spelled: Spelled, operator: type) -> int:
    """Equal operands have half of the gradient each; the definition has no derivative there, torch chooses halves."""
    prove(spelled[operator.formula.__name__], x, x=x, y=x)  # type: ignore[attr-defined]
    for derivative in operator.derivatives:  # type: ignore[attr-defined]
        prove(spelled[derivative.__name__], g / 2, g=g, x=x, y=x)
    return 3


def bounds_that_are_tensors(spelled: Spelled, order: tuple[str, ...]) -> int:
    """Of x and bounds that are tensors, in this order, the one that is the output has the gradient."""
    first, second = sympy.symbols("first second", positive=True)
    symbol = {name: sympy.Symbol(name, real=True) for name in order}
    at = dict(zip(order, (x, x + first, x + first + second), strict=True))
    definition = sympy.Min(sympy.Max(symbol["x"], symbol["low"]), symbol["high"])
    value = definition.subs({symbol[name]: sympy.Integer(order.index(name)) for name in order})
    chosen = order[int(value)]
    prove(spelled["clamp"], at[chosen], **at)
    for name, derivative in zip(("x", "low", "high"), choice.Clamp.derivatives, strict=True):
        prove(spelled[derivative.__name__], g * int(name == chosen), g=g, **at)
    return 4


def whole_power(spelled: Spelled, name: str, exponent: int) -> int:
    """A whole power derives on the whole line: below 0 too, and at 0, where the general expression gives 0·inf."""
    kinds = (ABOVE, BELOW, ZERO) if exponent >= 0 else (ABOVE, BELOW)
    pairs = [*product(kinds, numbers(spelled, exponent) if name == "pow_dx" else [exponent])]
    for kind, number in pairs:
        prove(spelled[name], g * sympy.diff(x**exponent, x).subs(x, kind), g=g, x=kind, y=number)
    return len(pairs)


def powers_of_zero(spelled: Spelled) -> int:
    """0^y has derivative 0 along the exponent: it is 0 for every y > 0; at y = 0 it is torch's choice."""
    positive = sympy.Symbol("y", positive=True)
    for base in numbers(spelled, 0):
        prove(spelled["pow_dy"], sympy.diff(0**positive, positive), g=g, x=base, y=positive, z=0**positive)
        prove(spelled["pow_dy"], 0, g=g, x=base, y=ZERO, z=sympy.S.One)
    return 2 * len(numbers(spelled, 0))


def powers_of_a_number(spelled: Spelled) -> int:
    """2^y derives along the exponent, for a base that is a number and one that is a tensor's."""
    for base in numbers(spelled, 2):
        prove(spelled["pow_dy"], g * sympy.diff(2**y, y), g=g, x=base, y=y, z=2**y)
    return len(numbers(spelled, 2))


def reduction_is_its_definition(spelled: Spelled, function: type) -> int:
    """A reduction is its definition for any number of elements. Triton's formulas finish the total a kernel made."""
    formula = spelled[function.formula.__name__]  # type: ignore[attr-defined]
    total = "count" in inspect.signature(formula).parameters
    truth = REDUCTIONS[function].subs(NUMEL_IN, NUMEL_OUT * COUNT)
    reduced = TOTAL if function in (reductions.Sum, reductions.Mean) else truth
    prove(formula, truth, x=reduced if total else ELEMENTS[i], count=COUNT)
    return 1


def slope_of_a_sum(_spelled: Spelled) -> int:
    """The derivative of a sum is 1 for any one element: the gradient is g itself, seen in the shape of the input."""
    slope = sympy.diff(REDUCTIONS[reductions.Sum], ELEMENTS[j]).doit()
    if slope != 1:
        raise AssertionError(f"the slope of a sum is {slope}")
    return 1


def slope_of_a_mean(spelled: Spelled) -> int:
    """The derivative of a mean of alpha elements in beta results is beta/alpha for any one element."""
    slope = sympy.diff(REDUCTIONS[reductions.Mean], ELEMENTS[j]).doit()
    prove(spelled["mean_dx"], g * slope, g=g, count=NUMEL_IN / NUMEL_OUT)
    return 1


def slope_of_a_product(spelled: Spelled) -> int:
    """It is the product y of the others; where others are 0, y is the product of the rest times w."""
    w = sympy.Symbol("w", real=True)
    prove(spelled["prod_dx"], g * sympy.diff(x * y, x), g=g, x=ABOVE, z=ABOVE * y, zeros=0, rest=ABOVE * y, nought=0)
    prove(spelled["prod_dx"], g * sympy.diff(x * y, x), g=g, x=ZERO, z=ZERO, zeros=1, rest=y, nought=0)
    prove(spelled["prod_dx"], g * sympy.diff(x * w * y, x), g=g, x=ZERO, z=ZERO, zeros=2, rest=y, nought=w)
    prove(spelled["prod_dx"], 0, g=g, x=ZERO, z=ZERO, zeros=3, rest=y, nought=0)
    for name, above, zero in (("is_zero", 0, 1), ("one_for_zero", ABOVE, 1), ("zero_for_others", 0, 0)):
        prove(spelled[name], above, x=ABOVE)
        prove(spelled[name], zero, x=ZERO)
    return 10


def slope_of_an_extremum(spelled: Spelled, extremum: type, sign: int) -> int:
    """For an element x, where y is the extremum of the others, it is 1 where x is beyond y, 0 where it is not."""
    definition = extremum(x, y)
    for beyond, kind in ((1, y + sign * ABOVE), (0, y - sign * ABOVE)):
        z, slope = definition.subs(x, kind), sympy.diff(definition, x).subs(x, kind)
        if slope != beyond:
            raise AssertionError(f"the slope of {definition} is {slope}")
        prove(spelled["equal"], slope, x=kind, z=z)
        prove(spelled["extremum_dx"], g * slope, g=g, ties=sympy.S.One, mask=slope)
    return 4


def ties_have_the_mean(spelled: Spelled) -> int:
    """Beside a tie of n there are n gradients, each 1 for one of them: their mean is 1/n for each, 0 for the rest."""
    n = sympy.Integer(3)
    tied = sympy.symbols(f"x:{n}", real=True)
    gradient = [sympy.diff(sympy.Max(*tied), x) for x in tied]
    around = [[slope.subs(dict.fromkeys(tied, y) | {x: y + ABOVE}) for slope in gradient] for x in tied]
    shares = [sympy.Add(*slopes) / n for slopes in zip(*around, strict=True)]
    for share in shares:
        prove(spelled["extremum_dx"], g * share, g=g, ties=n, mask=sympy.S.One)
    if sympy.Add(*shares) != 1:
        raise AssertionError(f"the shares of a tie are {shares}")
    prove(spelled["extremum_dx"], 0, g=g, ties=n, mask=sympy.S.Zero)
    return len(shares)


def first_of_ties(spelled: Spelled) -> int:
    """Where one of several equal elements is selected, the first of them has the gradient."""
    position = sympy.Symbol("p", real=True)
    prove(spelled["same"], 1, x=x, z=x)
    prove(spelled["same"], 0, x=y + ABOVE, z=y)
    prove(spelled["place"], position, mask=sympy.S.One, position=position)
    if evaluate(spelled["place"], mask=ZERO, position=position) != sympy.oo:
        raise AssertionError("an element that is not selected has a place")
    prove(spelled["selected_dx"], g, g=g, position=position, first=position)
    prove(spelled["selected_dx"], 0, g=g, position=position, first=position - ABOVE)
    return 6


WHOLE_POWERS = [("pow_dx", n) for n in range(-2, 4)] + [("pow_number_dx", n) for n in (-2, -1, 2, 3)]
ORDERS = tuple(permutations(("x", "low", "high")))
_SLOPES: dict[type, tuple[Callable[[Spelled], int], ...]] = {
    reductions.Sum: (slope_of_a_sum,),
    reductions.Mean: (slope_of_a_mean,),
    products.Prod: (slope_of_a_product,),
    reductions.Amax: (partial(slope_of_an_extremum, extremum=sympy.Max, sign=1), ties_have_the_mean),
    reductions.Amin: (partial(slope_of_an_extremum, extremum=sympy.Min, sign=-1), ties_have_the_mean),
}
_AT_POINTS: dict[str, list[Callable[[Spelled], int]]] = {
    "relu": [partial(zero_slope_at_zero, name="relu")],
    "abs": [partial(zero_slope_at_zero, name="abs")],
    "clamp": [partial(bounds_that_are_tensors, order=order) for order in ORDERS],
    "pow": [
        *(partial(whole_power, name=name, exponent=n) for name, n in WHOLE_POWERS),
        powers_of_zero,
        powers_of_a_number,
    ],
}


def claims_of(name: str, operator: type) -> Iterator[Callable[[Spelled], int]]:
    """Yield what else is claimed of an operator, by its name and the class that calls of it apply."""
    yield from _AT_POINTS.get(name, ())
    if operator in REDUCTIONS:
        yield partial(reduction_is_its_definition, function=operator)
        yield from _SLOPES.get(operator, ())
    if name in ("maximum", "minimum"):
        yield partial(equal_operands_share, operator=operator)
