"""What tests add to the records of operators: which stand for others, and the path of each call. No assertions here."""

from __future__ import annotations

from typing import Any

from customops.ops.function import Operator
from customops.ops.reductions import Extremum, Reduction
from customops.proof.cases import (
    BROADCASTS,
    CALLS,
    EDGES,
    ELEMENTWISE,
    EXTREMA,
    LAYOUTS,
    PARTS,
    REDUCTIONS,
    ROW,
    ROWS,
    SHAPES,
    Call,
    OperatorCase,
    functions_of,
    recorded_call,
    shapes_for,
)

__all__ = [
    "BROADCASTS",
    "CALLS",
    "EDGES",
    "ELEMENTWISE",
    "EXTREMA",
    "LAYOUTS",
    "PARTS",
    "REDUCTIONS",
    "ROW",
    "ROWS",
    "SHAPES",
    "Call",
    "OperatorCase",
    "functions_of",
    "shapes_for",
]

# The operators whose every feature `make test` samples and docs/compatibility.md has a column for: of each path that a
# call takes, each number of operands and each kind of what is saved. Another differs from these by its formula, which
# all tests of formulas cover in every run; the rest of its cases are in the shares.
REPRESENTATIVES = (
    *("log", "exp", "relu", "sigmoid", "tanh", "sqrt", "rsqrt", "abs", "neg", "add", "sub", "mul", "div"),
    *("maximum", "minimum", "pow", "mean", "sum", "amax", "amin"),
)
BY_METHODS = ("where(x, y)", "where(x, 2)", "clamp(x, y, 1.125)")  # those that call a method of x, too
BY_FUNCTIONS = tuple((row, call) for row, call in CALLS if call.name not in BY_METHODS)


def path_of(row: OperatorCase, call: Call) -> tuple:
    """Return what autograd sees of a call: the kind of operator, its derivatives, what it has of its own and saves."""
    node, xs, z = recorded_call(row, call)
    operator = node._forward_cls
    base = next(kind for kind in (Extremum, Reduction, Operator) if issubclass(operator, kind))
    own = {"forward", "setup_context", "backward", "jvp"} & {*vars(operator)}
    names = {t.data_ptr(): name for name, t in zip(("x", "y"), xs, strict=False)} | {z.data_ptr(): "z"}
    saved = tuple(names.get(t.data_ptr(), "another") for t in z.grad_fn.saved_tensors)
    needs = z.grad_fn.needs_input_grad
    operands = needs[:2] if base is Operator else needs[:1]  # then come alpha, a dtype and axes
    return base.__name__, len(getattr(operator, "derivatives", ())), tuple(sorted(own)), saved, operands


# What autograd, transforms, compilers and other tensors do to a call depends on its path through the code alone, so
# that tests of these need not run all calls.
PATH_OF: dict[str, tuple] = {call.name: path_of(row, call) for row, call in CALLS}
PATHS = {path: tuple(name for name, other in PATH_OF.items() if other == path) for path in PATH_OF.values()}


def one_of_each_path(number: int = 0, rank: int = 4) -> list[tuple[OperatorCase, Call]]:
    """Return a call of each path that inputs of ``rank`` have; another number takes others where there are more."""
    found = []
    for calls in PATHS.values():
        several = [(row, call) for row, call in CALLS if call.name in calls and call.rank <= rank]
        found.append(several[number % len(several)])
    return found


def ids(value: Any) -> str:
    """Return a readable test id for anything in these tables."""
    return str(value).replace("torch.", "")
