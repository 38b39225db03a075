"""The operators, one record each: the ways to call it, where it is smooth, its definition; shapes, layouts and edges.

What is proven of an operator, and what tests ask of it, follows from its record.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

import customops

from ..ops import parts


class Call(NamedTuple):
    """A call of an operator as ``function(library, *tensors)``, for ``customops`` and ``torch`` alike."""

    name: str
    function: Callable[..., torch.Tensor]
    arity: int = 1
    rank: int = 0  # the least rank of input it makes sense for

    def __str__(self):
        return self.name


class OperatorCase(NamedTuple):
    """All that proofs and tests are told of an operator: what it is, where it is smooth, and the ways to call it.

    What else they need follows from this: ``symbolic.py`` proves both spellings equal to the definition and takes exact
    values of it; of the tests ``audit.py`` has the launches that it may take, ``inplace.py`` its in-place variant.
    """

    name: str
    low: float  # from here to ``high`` the operator is smooth, but for a kink at 0
    high: float
    calls: tuple[Call, ...]
    definition: str = ""  # in SymPy's words, of the names that the formula has for its inputs; none of a reduction
    kinds: tuple[str, ...] = ("x",)  # the kinds of x, each a case of the proof; p is any number above 0
    database: str = ""  # its name in torch's database, if that is another

    def __str__(self):
        return self.name

    @property
    def node(self) -> str:
        """What the name of its node in a graph starts with, in lower case."""
        node, _, _ = recorded_call(self, self.calls[0])
        return node.name().lower().partition("backward")[0].removesuffix("number")

    def draw(self, shape, dtype=torch.float64, seed: int = 0, device="cpu") -> torch.Tensor:
        """Return values inside the domain, none within 0.05 of a kink at 0, and the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.rand(shape, generator=generator, dtype=torch.float64) * (self.high - self.low) + self.low
        return torch.where(x.abs() < 0.05, 0.5, x).to(device, dtype)


def _reduction(name: str) -> tuple[Call, ...]:
    return (
        Call(f"{name}()", lambda lib, x: getattr(lib, name)(x)),
        Call(f"{name}(None)", lambda lib, x: getattr(lib, name)(x, None, keepdim=True)),
        Call(f"{name}(0)", lambda lib, x: getattr(lib, name)(x, 0), rank=1),
        Call(f"{name}(-1, keepdim)", lambda lib, x: getattr(lib, name)(x, dim=-1, keepdim=True), rank=1),
        Call(f"{name}(0, -1)", lambda lib, x: getattr(lib, name)(x, (0, -1)), rank=2),
        Call(f"{name}(1)", lambda lib, x: getattr(lib, name)(x, [1]), rank=3),
        Call(f"{name}(1, 3)", lambda lib, x: getattr(lib, name)(x, (1, 3), True), rank=4),
    )


def _binary(name: str, *more: Call) -> tuple[Call, ...]:
    return (
        Call(f"{name}(x, y)", lambda lib, x, y: getattr(lib, name)(x, y), 2),
        Call(f"{name}(x, 1.5)", lambda lib, x: getattr(lib, name)(x, 1.5)),
        Call(f"{name}(2, x)", lambda lib, x: getattr(lib, name)(2, x)),
        *more,
    )


def _power(exponent: float) -> Call:
    return Call(f"pow(x, {exponent})", lambda lib, x: lib.pow(x, exponent))


def _unary(name: str) -> tuple[Call, ...]:
    return (Call(f"{name}(x)", lambda lib, x: getattr(lib, name)(x)),)


def _pair(name: str) -> tuple[Call, ...]:
    return (Call(f"{name}(x, y)", lambda lib, x, y: getattr(lib, name)(x, y), 2),)


def _bound(name: str) -> Call:
    return Call(f"{name}(x, 0.75)", lambda lib, x: getattr(lib, name)(x, 0.75))


def functions_of(lib: Any, name: str) -> Any:
    """Return where a library has a function, which torch may have in ``nn.functional`` alone."""
    return lib if hasattr(lib, name) else torch.nn.functional


_ABOVE, _EITHER = ("p",), ("p", "-p")
ROWS = (
    OperatorCase("log", 0.3, 3, _unary("log"), "log(x)", _ABOVE),
    OperatorCase("exp", -2, 2, _unary("exp"), "exp(x)"),
    OperatorCase("log1p", -0.7, 3, _unary("log1p"), "log(1 + x)"),
    OperatorCase("exp2", -2, 2, _unary("exp2"), "2**x"),
    OperatorCase("expm1", -2, 2, _unary("expm1"), "exp(x) - 1"),
    OperatorCase("log2", 0.3, 3, _unary("log2"), "log(x)/log(2)", _ABOVE),
    OperatorCase("reciprocal", 0.3, 3, _unary("reciprocal"), "1/x"),
    OperatorCase("sign", -2, 2, _unary("sign"), "sign(x)", _EITHER),
    OperatorCase("sin", -4, 4, _unary("sin"), "sin(x)"),
    OperatorCase("cos", -4, 4, _unary("cos"), "cos(x)"),
    OperatorCase("erf", -2, 2, _unary("erf"), "erf(x)"),
    OperatorCase("square", -2, 2, _unary("square"), "x**2"),
    OperatorCase("relu", -2, 2, _unary("relu"), "Max(x, 0)", _EITHER, "nn.functional.relu"),
    OperatorCase("sigmoid", -4, 4, _unary("sigmoid"), "1/(1 + exp(-x))", (*_EITHER, "0")),
    OperatorCase("tanh", -3, 3, _unary("tanh"), "tanh(x)"),
    OperatorCase("sqrt", 0.3, 3, _unary("sqrt"), "sqrt(x)", _ABOVE),
    OperatorCase("rsqrt", 0.3, 3, _unary("rsqrt"), "1/sqrt(x)", _ABOVE),
    OperatorCase("abs", -2, 2, _unary("abs"), "Abs(x)", _EITHER),
    OperatorCase("neg", -2, 2, _unary("neg"), "-x"),
    OperatorCase(
        "add", -2, 2, _binary("add", Call("add(x, y, 3)", lambda lib, x, y: lib.add(x, y, alpha=3), 2)), "x + alpha*y"
    ),
    OperatorCase(
        "sub", -2, 2, _binary("sub", Call("sub(x, y, 3)", lambda lib, x, y: lib.sub(x, y, alpha=3), 2)), "x - alpha*y"
    ),
    OperatorCase("mul", -2, 2, _binary("mul"), "x*y"),
    OperatorCase("div", 0.3, 3, _binary("div"), "x/y"),
    OperatorCase("maximum", -2, 2, _pair("maximum"), "Max(x, y)", ("y + p", "y - p")),
    OperatorCase("minimum", -2, 2, _pair("minimum"), "Min(x, y)", ("y + p", "y - p")),
    OperatorCase(
        "where",
        -2,
        2,
        (
            Call("where(x, y)", lambda lib, x, y: lib.where(x.detach() > 0, x, y), 2),
            Call("where(x, 2)", lambda lib, x: lib.where(x.detach() > 0, x, 2)),
        ),
        "Piecewise((x, Ne(condition, 0)), (y, True))",
    ),
    OperatorCase(
        "clamp",
        -2,
        2,
        (
            Call("clamp(x, y, 1.125)", lambda lib, x, y: lib.clamp(x, y, x.new_tensor(1.125)), 2),
            Call("clamp(x, -0.625, 1.125)", lambda lib, x: lib.clamp(x, -0.625, 1.125)),
        ),
        "Min(Max(x, low), high)",
        ("low - p", "(low + high)/2", "high + p"),
    ),
    OperatorCase("clamp_min", -2, 2, (*_pair("clamp_min"), _bound("clamp_min")), "Max(x, y)", ("y + p", "y - p")),
    OperatorCase("clamp_max", -2, 2, (*_pair("clamp_max"), _bound("clamp_max")), "Min(x, y)", ("y + p", "y - p")),
    OperatorCase(
        "softplus",
        -3,
        3,
        (
            Call("softplus(x)", lambda lib, x: functions_of(lib, "softplus").softplus(x)),
            Call("softplus(x, 2, 5)", lambda lib, x: functions_of(lib, "softplus").softplus(x, 2, 5)),
        ),
        "Piecewise((x, beta*x > threshold), (log(1 + exp(beta*x))/beta, True))",
        ("-p", "threshold/(2*beta)", "(threshold + p)/beta"),
        "nn.functional.softplus",
    ),
    OperatorCase("pow", 0.3, 2, _binary("pow", *map(_power, (-1, -0.5, 0, 0.5, 2, 3))), "x**y", _ABOVE),
    OperatorCase("mean", -2, 2, _reduction("mean")),
    OperatorCase("sum", -2, 2, _reduction("sum")),
    OperatorCase("prod", 0.3, 2, _reduction("prod")[:1] + _reduction("prod")[2:4]),
    OperatorCase("amax", -2, 2, _reduction("amax")[::3]),
    OperatorCase("amin", -2, 2, _reduction("amin")[3:5]),
)
ROW = {row.name: row for row in ROWS}


def _norm_power(y: float) -> Call:
    return Call(f"norm_power(x, {y})", lambda lib, x: parts.norm_power(x, y))


PARTS = (  # operators that only compositions are made of
    OperatorCase("norm_power", 0.3, 2, tuple(map(_norm_power, (-1.5, 0.5, 2, 3))), "x**y", _ABOVE),
    OperatorCase("finite", -2, 2, (Call("finite(x)", lambda lib, x: parts.finite(x)),), "x"),
)

EXTREMA = ("amax", "amin")
REDUCTIONS = ("mean", "sum", "prod", *EXTREMA)
CALLS = tuple((row, call) for row in ROWS for call in row.calls)
ELEMENTWISE = [call for row, call in CALLS if row.name not in REDUCTIONS]
EDGES = (0.0, -0.0, 1.0, -1.0, float("inf"), float("-inf"), float("nan"), 1e30, -1e30)  # numbers that are special


def recorded_call(row: OperatorCase, call: Call) -> tuple[Any, list[torch.Tensor], torch.Tensor]:
    """Return the node that records a call, and the tensors that it was called with and returned."""
    xs = [row.draw((2, 3, 2, 2), seed=i).requires_grad_() for i in range(call.arity)]
    with customops.backend("torch"), torch.enable_grad():
        z = call.function(customops, *xs)
    return z.grad_fn, xs, z


SHAPES: tuple[tuple[int, ...], ...] = (
    (),
    (3,),
    (2, 3),
    (3, 3),
    (2, 3, 2),
    (2, 2, 2),
    (2, 2, 2, 2),
    (2, 3, 1, 2),
)

BROADCASTS: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((), ()),
    ((3,), ()),
    ((), (2, 3)),
    ((3,), (3,)),
    ((1,), (3,)),
    ((2, 3), (3,)),
    ((3,), (3, 3)),
    ((3, 3), (3, 3)),
    ((2, 3), (2, 1)),
    ((3, 1), (1, 3)),
    ((2, 3, 2), (3, 1)),
    ((2, 2, 2), (2, 2, 2)),
    ((2, 2, 2), (2, 1, 2)),
    ((2, 1, 2), (1, 2, 1)),
    ((2, 2, 2, 2), (2, 2)),
    ((2, 2, 2, 2), (1, 2, 1, 1)),
    ((2, 3, 1, 2), (1, 3, 2, 1)),
)


def shapes_for(call: Call) -> list[tuple[tuple[int, ...], ...]]:
    """Return the shapes of the inputs that a call is tried on."""
    if call.arity == 2:
        return list(BROADCASTS)
    return [(shape,) for shape in SHAPES if len(shape) >= call.rank]


def _reversed(x: torch.Tensor) -> torch.Tensor:
    return x.permute(tuple(reversed(range(x.dim()))))


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda x: x,
    "transposed": lambda x: _reversed(_reversed(x).contiguous()),
    "sliced": lambda x: x.repeat_interleave(2, -1)[..., ::2] if x.dim() else x.expand(3)[1],
    "expanded": lambda x: x[..., :1].expand_as(x) if x.dim() else x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x,
}
