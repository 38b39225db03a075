"""The operators under test, one case each; the shapes and layouts they meet. No assertions here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class Call(NamedTuple):
    """A call of an operator as ``function(library, *tensors)``, for ``customops`` and ``torch`` alike."""

    name: str
    function: Callable[..., torch.Tensor]
    arity: int = 1
    rank: int = 0  # the least rank of input it makes sense for

    def __str__(self):
        return self.name


class OperatorCase(NamedTuple):
    """An operator and the ways to call it."""

    name: str
    low: float  # from here to ``high`` the operator is smooth, but for a kink at 0
    high: float
    calls: tuple[Call, ...]
    database: str = ""  # its name in torch's database, if that is another

    def __str__(self):
        return self.name

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


ROWS = (
    OperatorCase("log", 0.3, 3, (Call("log(x)", lambda lib, x: lib.log(x)),)),
    OperatorCase("exp", -2, 2, (Call("exp(x)", lambda lib, x: lib.exp(x)),)),
    OperatorCase("relu", -2, 2, (Call("relu(x)", lambda lib, x: lib.relu(x)),), "nn.functional.relu"),
    OperatorCase("sigmoid", -4, 4, (Call("sigmoid(x)", lambda lib, x: lib.sigmoid(x)),)),
    OperatorCase("tanh", -3, 3, (Call("tanh(x)", lambda lib, x: lib.tanh(x)),)),
    OperatorCase("sqrt", 0.3, 3, (Call("sqrt(x)", lambda lib, x: lib.sqrt(x)),)),
    OperatorCase("rsqrt", 0.3, 3, (Call("rsqrt(x)", lambda lib, x: lib.rsqrt(x)),)),
    OperatorCase("abs", -2, 2, (Call("abs(x)", lambda lib, x: lib.abs(x)),)),
    OperatorCase("neg", -2, 2, (Call("neg(x)", lambda lib, x: lib.neg(x)),)),
    OperatorCase("add", -2, 2, _binary("add", Call("add(x, y, 3)", lambda lib, x, y: lib.add(x, y, alpha=3), 2))),
    OperatorCase("sub", -2, 2, _binary("sub", Call("sub(x, y, 3)", lambda lib, x, y: lib.sub(x, y, alpha=3), 2))),
    OperatorCase("mul", -2, 2, _binary("mul")),
    OperatorCase("div", 0.3, 3, _binary("div")),
    OperatorCase("maximum", -2, 2, (Call("maximum(x, y)", lambda lib, x, y: lib.maximum(x, y), 2),)),
    OperatorCase("minimum", -2, 2, (Call("minimum(x, y)", lambda lib, x, y: lib.minimum(x, y), 2),)),
    OperatorCase("pow", 0.3, 2, _binary("pow", *map(_power, (-1, -0.5, 0, 0.5, 2, 3)))),
    OperatorCase("mean", -2, 2, _reduction("mean")),
    OperatorCase("sum", -2, 2, _reduction("sum")),
    OperatorCase("prod", 0.3, 2, _reduction("prod")[:1] + _reduction("prod")[2:4]),
    OperatorCase("amax", -2, 2, _reduction("amax")[::3]),
    OperatorCase("amin", -2, 2, _reduction("amin")[3:5]),
)

EXTREMA = ("amax", "amin")
REDUCTIONS = ("mean", "sum", "prod", *EXTREMA)
CALLS = tuple((row, call) for row in ROWS for call in row.calls)

ELEMENTWISE = [call for row, call in CALLS if row.name not in REDUCTIONS]
EDGES = (0.0, -0.0, 1.0, -1.0, float("inf"), float("-inf"), float("nan"), 1e30, -1e30)  # numbers that are special

# The ways through the code, and the calls that take each. What autograd, transforms, compilers and other tensors do to
# a call depends on its path alone, so that tests of these need not run all calls; test_tests.py holds the table to what
# the calls do.
PATHS: dict[str, tuple[str, ...]] = {
    "a tensor, nothing saved": ("neg(x)",),
    "a tensor, x saved": ("log(x)", "abs(x)"),
    "a tensor, z saved": ("exp(x)", "relu(x)", "sigmoid(x)", "tanh(x)", "sqrt(x)", "rsqrt(x)"),
    "two tensors, nothing saved": ("add(x, y)", "add(x, y, 3)", "sub(x, y)", "sub(x, y, 3)"),
    "two tensors, both saved": ("mul(x, y)",),
    "two tensors, both saved, a tangent of its own": ("div(x, y)", "maximum(x, y)", "minimum(x, y)"),
    "two tensors, all saved": ("pow(x, y)",),
    "a tensor and a number": ("add(x, 1.5)", "sub(x, 1.5)", "mul(x, 1.5)"),
    "a tensor and a number, a tangent of its own": ("div(x, 1.5)",),
    "a tensor and a power": ("pow(x, 1.5)", *(f"pow(x, {n})" for n in (-1, -0.5, 0.5, 2, 3))),
    "a tensor and the power 0": ("pow(x, 0)",),
    "a number and a tensor": ("add(2, x)", "sub(2, x)", "mul(2, x)"),
    "a number and a tensor, x saved": ("div(2, x)",),
    "a number and a tensor, all saved": ("pow(2, x)",),
    "a linear reduction": tuple(call.name for row, call in CALLS if row.name in ("mean", "sum")),
    "a product": tuple(call.name for row, call in CALLS if row.name == "prod"),
    "an extremum": tuple(call.name for row, call in CALLS if row.name in EXTREMA),
}
PATH_OF = {call: path for path, calls in PATHS.items() for call in calls}


def one_of_each_path(number: int = 0, rank: int = 4) -> list[tuple[OperatorCase, Call]]:
    """Return a call of each path that inputs of ``rank`` have; another number takes others where there are more."""
    found = []
    for calls in PATHS.values():
        several = [(row, call) for row, call in CALLS if call.name in calls and call.rank <= rank]
        found.append(several[number % len(several)])
    return found


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


def ids(value: Any) -> str:
    """Return a readable test id for anything in these tables."""
    return str(value).replace("torch.", "")
