"""Formulas computed with SymPy's terms, by stand-ins for tensors, torch and Triton, and held against definitions.

The functions of both ``formulas.py`` are rebuilt on their own bytecode, with SymPy for what they call of torch or
Triton. A function of a library that has the name of an operator is that operator's definition, of ``cases.py``.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import inspect
import math
import operator as python
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType, SimpleNamespace
from typing import Any, NamedTuple

import sympy
from sympy.logic.boolalg import Boolean
from torch import Tensor

import customops

from .. import formulas
from ..ops.function import Operator
from ..runtime.rules import parameters
from .cases import ROW, Call, OperatorCase

g, p = sympy.Symbol("g", real=True), sympy.Symbol("p", positive=True)
i, j, after = sympy.symbols("i j after", integer=True, nonnegative=True)
COUNT = j + 1 + after  # so that x[j] is any one of x[0], ..., x[COUNT - 1]

BY_CLAIMS = ("clamp(x, y, 1.125)",)  # calls whose proof is in ``claims.py``


class Spoken:
    """A stand-in for an input: an operator returns what it was called with, instead of computing."""

    __class__ = Tensor  # type: ignore[assignment]  # to isinstance

    def detach(self):
        return self

    def __gt__(self, other):
        return Spoken()

    def new_tensor(self, number):
        return Spoken()

    def __customops__(self):
        return lambda operator, inputs: (operator, inputs)


class Proof(NamedTuple):
    """What is to be proven of a call: which operator it applies, and to what."""

    operator: type[Operator]
    values: dict[str, Any]  # of each input by name: a symbol for a tensor, else the number
    definition: sympy.Expr  # of these symbols
    kinds: tuple[dict, ...]  # the cases of the proof: what stands in each for x, if x is a tensor

    @property
    def tensors(self) -> list[str]:
        """The names of the inputs that are tensors, in order."""
        return [name for name, x in self.values.items() if isinstance(x, sympy.Symbol)]


@functools.cache
def proof_of(row: OperatorCase, call: Call) -> Proof:
    """Return what is to be proven of a call."""
    operator, inputs = call.function(customops, *(Spoken() for _ in range(call.arity)))
    named = zip(parameters(operator.formula), inputs, strict=True)
    values = {name: sympy.Symbol(name, real=True) if isinstance(x, Spoken) else x for name, x in named}
    kinds = [{values["x"]: parse(kind, values)} for kind in row.kinds if isinstance(values["x"], sympy.Symbol)]
    return Proof(operator, values, parse(row.definition, values), tuple(kinds or [{}]))


def parse(text: str, values: dict[str, Any]) -> sympy.Expr:
    """Return a term that a record of ``cases.py`` has as text, of these values by name."""
    return sympy.sympify(text, locals={"p": p, **{name: term(value) for name, value in values.items()}})


def definition(row: OperatorCase) -> Callable:
    """Return an operator as a function of terms, in the order of its formula's arguments."""
    names = parameters(getattr(formulas, row.name))
    return lambda *args: parse(row.definition, dict(zip(names, args, strict=False)))


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
    __hash__ = __bool__ = None  # type: ignore[assignment]  # no formula may branch on an equation

    __neg__ = lifted(python.neg)
    __add__ = __radd__ = lifted(python.add)
    __sub__, __rsub__ = lifted(python.sub), lifted(lambda a, b: b - a)
    __mul__ = __rmul__ = lifted(lambda a, b: as_number(a) * as_number(b))
    __truediv__, __rtruediv__ = lifted(python.truediv), lifted(lambda a, b: b / a)
    __ne__ = lifted(sympy.Ne)
    __eq__, __lt__, __le__ = lifted(sympy.Eq), lifted(sympy.Lt), lifted(sympy.Le)
    __gt__, __ge__ = lifted(sympy.Gt), lifted(sympy.Ge)
    __abs__ = lifted(sympy.Abs)
    masked_fill = lifted(lambda x, mask, value: sympy.Piecewise((value, mask), (x, True)))
    clamp = lifted(lambda x, max: sympy.Min(max, x))
    new_zeros = lambda self, _shape: Value(sympy.S.Zero)
    __and__ = __rand__ = lifted(sympy.And)
    __or__ = __ror__ = lifted(sympy.Or)


ELEMENTARY = {
    "zeros_like": lifted(lambda x: sympy.S.Zero),
    "where": lifted(lambda condition, a, b: sympy.Piecewise((a, condition), (b, True))),
}


class Library(SimpleNamespace):
    """A stand-in for torch or Triton: what it does not define is the operator of that name, or SymPy's function."""

    def __getattr__(self, name):
        return lifted(definition(ROW[name]) if name in ROW and ROW[name].definition else getattr(sympy, name))


TORCH = Library(
    **ELEMENTARY,
    add=lifted(lambda x, y, alpha=1: x + alpha * y),
    sub=lifted(lambda x, y, alpha=1: x - alpha * y),
    sgn=lifted(sympy.sign),
    logical_and=lifted(lambda x, y: sympy.Ne(x, 0) & sympy.Ne(y, 0)),
    logical_or=lifted(lambda x, y: sympy.Ne(x, 0) | sympy.Ne(y, 0)),
    logical_not=lifted(lambda x: sympy.Eq(x, 0)),
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
    tensor=lifted(lambda x, **_: x),
    Tensor=Value,
    bool=None,
    compiler=SimpleNamespace(is_dynamo_compiling=lambda: False),
    float64=None,
    float32=None,  # of indices and positions, which are whole numbers
    nn=SimpleNamespace(functional=Library()),
    ops=SimpleNamespace(
        aten=SimpleNamespace(
            threshold_backward=overloaded(lambda g, z, threshold: sympy.Piecewise((0, z <= threshold), (g, True))),
            softplus_backward=overloaded(
                lambda g, x, beta, threshold: sympy.Piecewise(
                    (g, x * beta > threshold), (g * sympy.exp(x * beta) / (1 + sympy.exp(x * beta)), True)
                )
            ),
            sigmoid_backward=overloaded(lambda g, z: g * (1 - z) * z),
            tanh_backward=overloaded(lambda g, z: g * (1 - z**2)),
        )
    ),
)
TRITON = Library(
    **ELEMENTARY,
    float32=None,
    sqrt_rn=lifted(sympy.sqrt),
    fma=lifted(lambda x, y, z: x * y + z),
    broadcast=lambda x, y: (x, y),
    to_tensor=lambda x: Value(term(x)),
    full=lambda _shape, y, _dtype: Value(term(y)),
)
CONSTANTS = {  # of formulas.py, each as the exact number or the function that its expression says
    ast.unparse(each.targets[0]): eval(
        compile(ast.Expression(each.value), formulas.__file__, "eval"), {"math": sympy, "torch": TORCH}
    )
    for each in ast.parse(inspect.getsource(formulas)).body
    if isinstance(each, ast.Assign) and isinstance(each.targets[0], ast.Name)
}
LIBRARIES = {
    "customops.formulas": {"torch": TORCH, **CONSTANTS},
    "customops.triton_kernels.formulas": {
        "tl": TRITON,
        **CONSTANTS,
        "_or_tiny": lambda x, tangent, z: z,
        "_exp2": lifted(lambda x: 2**x),
        "libdevice": TRITON,
        "INTERPRETED": False,
        "division": SimpleNamespace(divide=lifted(python.truediv), divide_by_small=lifted(python.truediv)),
    },
}


@functools.cache
def spelling(module: str) -> dict[str, FunctionType]:
    """Return the functions of a module, rebuilt to see each other and stand-ins for its libraries, nothing else."""
    functions: dict = {"__builtins__": builtins, **LIBRARIES[module]}
    for name, value in vars(importlib.import_module(module)).items():
        original = getattr(value, "fn", value)  # what @triton.jit decorates
        if inspect.isfunction(original) and original.__module__ == module and name not in functions:
            functions[name] = FunctionType(original.__code__, functions, name, original.__defaults__)
            functions[name].__kwdefaults__ = original.__kwdefaults__
            functions[name].__annotations__ = original.__annotations__
    return functions


def evaluate(function, **values):
    """Apply ``function`` to those of ``values`` that it reads, and return its term.

    Torch's spelling is handed a number as one; Triton's only where a kernel is compiled for it.
    """
    read = {name: values[name] for name in inspect.signature(function).parameters if name in values}
    compiled = read if "torch" in inspect.unwrap(function).__globals__ else function.__annotations__
    numbers = {name for name, value in read.items() if isinstance(value, int | float) and name in compiled}
    return term(function(**{name: v if name in numbers else Value(term(v)) for name, v in read.items()}))


def prove(function: Callable, truth: Any, **values: Any) -> None:
    """Raise AssertionError unless ``function`` of ``values`` is ``truth``, whatever number each symbol stands for."""
    difference = sympy.simplify((evaluate(function, **values) - truth).rewrite(sympy.exp))
    if difference != 0:
        raise AssertionError(f"{function.__name__} is off by {difference}")


def prove_call(spelled: dict[str, FunctionType], row: OperatorCase, call: Call) -> int:
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


class Exact(NamedTuple):
    """The value of a call and its slopes as functions of numbers of mpmath."""

    names: tuple[str, ...]  # of the inputs that are tensors, in the order of the call
    value: Callable  # of these
    slopes: tuple[Callable, ...]  # of z, then these: the derivatives as they are spelled in torch, which are proven


@functools.cache
def exact(row: OperatorCase, call: Call) -> Exact:
    """Return an elementwise call in exact arithmetic."""
    operator, values, definition, _ = proof = proof_of(row, call)
    names, symbols = proof.tensors, [values[name] for name in proof.tensors]
    spelled = spelling("customops.formulas")
    z = sympy.Symbol("z", real=True)
    slopes = []
    for name, derivative in zip(values, operator.derivatives, strict=False):
        if name in names:
            slope = evaluate(spelled[derivative.__name__], **values, g=sympy.S.One, z=z)
            slopes.append(sympy.lambdify([z, *symbols], slope, "mpmath"))
    return Exact(tuple(names), sympy.lambdify(symbols, definition, "mpmath"), tuple(slopes))
