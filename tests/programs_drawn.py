"""Programs of customops' operators, drawn by Hypothesis: lines of Python over a library, and the tensors for them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from .conftest import DEVICE

Interval = tuple[float, float]
NEAR = 1e-3  # nearer than that to a kink, rounding may decide on which side a value is
LARGEST = 200  # the largest magnitude that a value may have
ELEMENTS = 200  # the most that a value may have: the interpreter takes a tenth of a second for a program of a grid

ANY, FEW, POSITIVE, ONES = (-4, 4), (-2, 2), (0.3, 4), (-1, 1)
UNARY = {  # where each is smooth, and its result not large
    "lib.exp({})": FEW,
    "lib.log({})": POSITIVE,
    "lib.relu({})": ANY,
    "lib.sigmoid({})": ANY,
    "lib.tanh({})": FEW,
    "lib.sqrt({})": POSITIVE,
    "lib.rsqrt({})": POSITIVE,
    "lib.abs({})": ANY,
    "abs({})": ANY,
    "lib.neg({})": ANY,
    "-{}": ANY,
    "{} ** 2": FEW,
    "{} ** 3": FEW,
    "{} ** 2.5": POSITIVE,
    "lib.pow({}, -0.5)": POSITIVE,
    "lib.pow(0.5, {})": FEW,
    "2.5 ** {}": FEW,
    "{} + 2.25": ANY,
    "1.5 - {}": ANY,
    "{} - 1": ANY,
    "0.75 * {}": ANY,
    "{} / 4": ANY,
    "1 / {}": POSITIVE,
    "{}.detach()": ANY,
    "{}.exp()": FEW,
    "{}.pow(2).neg()": FEW,
    "{}.contiguous().clone()": ANY,
    "lib.log1p({})": (-0.5, 4),
    "lib.expm1({})": FEW,
    "lib.exp2({})": FEW,
    "lib.log2({})": POSITIVE,
    "lib.reciprocal({})": POSITIVE,
    "lib.sign({})": ANY,
    "lib.sin({})": ANY,
    "{}.cos()": ANY,
    "lib.erf({})": FEW,
    "lib.square({})": FEW,
    "lib.clamp({}, -0.5, 1.25)": ANY,
    "{}.clamp_min(0.25)": ANY,
    "lib.clamp_max({}, 0.75)": ANY,
    "{0}.masked_fill({0} > 0.5, -1.5)": ANY,
    "lib.where(({0} > -1) & ({0} <= 1.5), {0}, 0.5)": ANY,
    "({0} < 0.25).to({0}.dtype) * {0}": ANY,
    "nn.softplus({})": ANY,
    "nn.silu({})": ANY,
    "nn.gelu({})": FEW,
    "nn.gelu({}, approximate='tanh')": FEW,
    "nn.mish({})": ANY,
    "nn.elu({})": ANY,
    "nn.hardswish({})": ANY,
    "nn.logsigmoid({})": ANY,
}
CASTS = {f"cast({{}} * 1.25, torch.{name})": ANY for name in ("float32", "float16", "bfloat16")}
UNITS = {"torch.bfloat16": 2.0**-8, "torch.float16": 2.0**-11}  # what lines round to that have these casts
BINARY = {
    "{} + {}": (ANY, ANY),
    "{} - {}": (ANY, ANY),
    "{} * {}": (ANY, ANY),
    "{} / {}": (ANY, POSITIVE),
    "{} ** {}": (POSITIVE, FEW),
    "lib.add({}, {}, alpha=-1.5)": (ANY, ANY),
    "lib.sub({}, {}, alpha=2)": (ANY, ANY),
    "lib.mul({}, {})": (ANY, ANY),
    "lib.div({}, {})": (FEW, POSITIVE),
    "lib.pow({}, {})": (POSITIVE, ONES),
    "lib.maximum({}, {})": (ANY, ANY),
    "lib.minimum({}, {})": (ANY, ANY),
    "lib.where({0} > {1}, {0} * 0.5, {1})": (ANY, ANY),
}
ROWS = {  # functions of rows along axes
    "nn.softmax({}, {dim})": ANY,
    "nn.log_softmax({}, {dim})": ANY,
    "nn.layer_norm({0}, {0}.shape[-1:], None, None, 0.1)": ANY,
    "nn.rms_norm({0}, {0}.shape[-1:])": (0.5, 4),
    "nn.normalize({}, dim={dim})": (0.5, 4),
}
FOLDS = ("sum", "mean", "amax", "amin", "prod", "var", "logsumexp", "norm", "max", "min")
LINEAR = ("sum", "mean")
ALONG_ONE = ("prod", "max", "min")  # reductions of one axis, or all
KINKS = {  # where a function of one value is not smooth
    "lib.relu({})": (0,),
    "lib.abs({})": (0,),
    "abs({})": (0,),
    "lib.sign({})": (0,),
    "lib.clamp({}, -0.5, 1.25)": (-0.5, 1.25),
    "{}.clamp_min(0.25)": (0.25,),
    "lib.clamp_max({}, 0.75)": (0.75,),
    "{0}.masked_fill({0} > 0.5, -1.5)": (0.5,),
    "lib.where(({0} > -1) & ({0} <= 1.5), {0}, 0.5)": (-1, 1.5),
    "({0} < 0.25).to({0}.dtype) * {0}": (0.25,),
    "nn.elu({})": (0,),
    "nn.hardswish({})": (-3, 3),
}
KINK_WHERE_EQUAL = ("lib.maximum({}, {})", "lib.minimum({}, {})", "lib.where({0} > {1}, {0} * 0.5, {1})")


class Input(NamedTuple):
    """An input of a drawn program, and how it lies in memory."""

    shape: tuple[int, ...]
    order: tuple[int, ...]  # its axes as they lie in memory, outermost first
    steps: tuple[int, ...]  # for each axis: every so many elements are taken; in steps of 0 the first is repeated
    dtype: torch.dtype
    recorded: bool  # whether it requires a gradient
    seed: int  # of its numbers

    def tensor(self) -> Tensor:
        """Return numbers in (-2, 2); a tensor without dimensions holds a number of eighths, which every dtype has."""
        sizes = [self.shape[a] * max(1, self.steps[a]) for a in self.order]
        x = torch.rand(sizes, dtype=torch.float64, generator=torch.Generator().manual_seed(self.seed)) * 4 - 2
        x = (x if self.shape else x.mul(8).round().div(8)).to(DEVICE, self.dtype)
        x = x.permute([self.order.index(a) for a in range(len(self.order))])
        x = x[tuple(slice(None, None, max(1, step)) for step in self.steps)]
        for a, step in enumerate(self.steps):
            x = x if step else x.narrow(a, 0, 1).expand(self.shape)
        return x.detach().requires_grad_(self.recorded)


class Program(NamedTuple):
    """A function that was drawn, and its inputs x0, x1, ...."""

    inputs: tuple[Input, ...]
    lines: tuple[str, ...]  # expressions in Python, whose values are v0, v1, ...
    returns: tuple[str, ...]  # the names of the values that it returns

    def source(self, noisy: bool = False) -> str:
        """Return the function in Python, each line as an argument of ``noise``, with what it rounds to, if so asked."""
        lines = [f"noise({line}, {_unit(line)})" if noisy else line for line in self.lines]
        body = [f"    v{i} = {line}" for i, line in enumerate(lines)]
        names = ", ".join(f"x{i}" for i in range(len(self.inputs)))
        return "\n".join([f"def f({names}):", *body, f"    return {', '.join(self.returns)}"])

    def __repr__(self) -> str:
        return "\n".join(["", *(f"x{i}: {x}" for i, x in enumerate(self.inputs)), self.source()])

    def function(self, lib: Any, noise: Callable | None = None, cast: Callable | None = None) -> Callable:
        """Return the function on tensors, with the operators of ``lib`` and ``noise`` on what each line gives."""
        names = {"lib": lib, "nn": lib.nn.functional, "torch": torch, "noise": noise, "cast": cast or _cast}
        exec(self.source(noise is not None), names)
        return names["f"]

    def tensors(self) -> list[Tensor]:
        """Make the inputs anew."""
        return [x.tensor() for x in self.inputs]


@st.composite
def programs(draw, dtypes=(torch.float64,), seen: Counter | None = None, casts: bool = False):
    """Draw a program with no operator near a pole or a kink; ``seen`` counts the lines that were dropped for that."""
    inputs = draw(_inputs(dtypes))
    values = {f"x{i}": x.tensor().detach().double() for i, x in enumerate(inputs)}
    made: list[str] = []
    for _ in range(draw(st.sampled_from([1, 2, 4, 6, 8, 10]))):
        unread = [name for name in values if not any(name in line for line in made)]
        line = draw(_line(values, unread, casts))
        z = line and _evaluated(line, values)
        if z is not None and z.abs().max() <= LARGEST:
            values[f"v{len(made)}"] = z.double()
            made.append(line)
        elif seen is not None:
            seen["lines of random programs dropped, near a kink or too large"] += 1
    made = made or ["x0 * 1.5"]
    others = draw(st.lists(st.sampled_from([name for name in values if name[0] == "v"] or ["v0"]), max_size=1))
    return Program(inputs, tuple(made), (f"v{len(made) - 1}", *others))


@st.composite
def _inputs(draw, dtypes):
    """Draw one to four inputs that broadcast together."""
    shape: list[int] = []
    for _ in range(draw(st.sampled_from([2, 3, 1, 4, 0]))):
        n = draw(st.sampled_from([3, 4, 1, 2, 5, 33]))
        shape.append(n if torch.Size(shape).numel() * n <= ELEMENTS else 2)
    given = []
    for i in range(draw(st.integers(1, 4))):
        own = [n if i == 0 or draw(st.integers(0, 5)) else 1 for n in shape]
        own = own[draw(st.sampled_from([0, 0, 0, *range(len(shape))])) :] if i else own
        order = draw(st.permutations(range(len(own)))) if draw(st.booleans()) else range(len(own))
        steps = [draw(st.sampled_from([1, 1, 1, 2, 0])) for _ in own]
        recorded = i == 0 or draw(st.integers(0, 3)) > 0
        seed = draw(st.integers(0, 2**16))
        given.append(Input(tuple(own), tuple(order), tuple(steps), draw(st.sampled_from(dtypes)), recorded, seed))
    return tuple(given)


@st.composite
def _line(draw, values, unread, casts):
    """Draw an operator on values so far, each first moved to where the operator is smooth; return None near a kink."""
    names = list(values)[::-1]
    widest = max(names, key=lambda name: values[name].numel())
    x = draw(st.sampled_from([names[0]] * 2 * len(names) + names))  # mostly the last
    narrow = values[x].numel() < values[widest].numel()
    kind = draw(st.sampled_from([BINARY, BINARY, UNARY, FOLDS] if narrow else [UNARY, UNARY, BINARY, FOLDS, ROWS]))
    kind = CASTS if casts and draw(st.integers(0, 5)) == 0 else kind
    word = draw(st.sampled_from(list(kind)))
    if kind is FOLDS:
        return draw(_fold(word, x, values[x]))
    if kind is ROWS:
        dim = draw(st.integers(0, values[x].dim() - 1)) if values[x].dim() else None
        return None if dim is None else word.format(_moved(x, values, ROWS[word]), dim=dim)
    if kind in (UNARY, CASTS):
        x = _moved(x, values, kind[word])
        return None if any(_near(x, str(kink), values) for kink in KINKS.get(word, ())) else word.format(x)
    y = draw(st.sampled_from([*unread, widest, *unread, *names]))
    y = y if _broadcasts(values[x], values[y]) else x
    pair = (y, x) if draw(st.booleans()) else (x, y)
    x, y = (_moved(name, values, domain) for name, domain in zip(pair, BINARY[word], strict=True))
    return None if word in KINK_WHERE_EQUAL and _near(x, y, values) else word.format(x, y)


@st.composite
def _fold(draw, word, x, value):
    """Draw a reduction over some axes or all; return None where rounding may decide which element is extreme."""
    fewest, most = draw(st.sampled_from([(1, 1), (1, 1), (1, 2), (0, value.dim())]))
    axes = st.lists(st.integers(0, value.dim() - 1), unique=True, min_size=fewest, max_size=min(most, value.dim()))
    dims = draw(axes) if value.dim() else []
    dims = dims[:1] if word in ALONG_ONE else dims or (list(range(value.dim())) if word == "logsumexp" else [])
    if word not in LINEAR and _is_near_a_kink(word, value, tuple(dims) or tuple(range(value.dim()))):
        return None
    if not dims:
        return f"lib.{word}({x})"
    dims = [d - value.dim() if draw(st.booleans()) else d for d in dims]
    options = ", keepdim=True" if draw(st.booleans()) else ""
    order = "2, " if word == "norm" else ""
    first = "[0]" if word in ("max", "min") else ""
    return f"lib.{word}({x}, {order}{dims[0] if len(dims) == 1 else tuple(dims)}{options}){first}"


def _is_near_a_kink(word: str, value: Tensor, dims: tuple[int, ...]) -> bool:
    """Return whether a reduction is not smooth near this value, or rounding may decide which element is extreme."""
    if word in ("prod", "logsumexp"):
        return not dims  # a tensor without dimensions has no logsumexp
    if word == "var":
        return math.prod(value.shape[d] for d in dims) < 2  # then it is nan
    if word == "norm":
        return bool((torch.linalg.vector_norm(value, 2, dims) < NEAR).any())
    extremum = torch.amax if "max" in word else torch.amin
    return _is_close(value, extremum(value, dims, True))


def _near(x: str, y: str, values: dict[str, Tensor]) -> bool:
    return _is_close(_evaluated(x, values), _evaluated(y, values))


def _is_close(x: Tensor, y: Tensor | float) -> bool:
    """Return whether some element of ``x`` is nearly its counterpart in ``y``, but not exactly."""
    apart = (x - y).abs()
    return bool(((apart < NEAR) & (apart > 0)).any())


def _moved(name: str, values: dict[str, Tensor], domain: Interval) -> str:
    """Return an expression for the value, scaled and shifted into ``domain`` where it is not inside."""
    low, high = values[name].min().item(), values[name].max().item()
    if domain[0] <= low and high <= domain[1]:
        return name
    most = 0.9 * (domain[1] - domain[0]) / max(high - low, 1e-9)
    scale = min(1.0, float(f"{most:.1g}"), float(f"{0.9 * most:.1g}"))
    shift = round(sum(domain) / 2 - scale * (low + high) / 2, 2)
    return f"({name} * {scale} + {shift})" if scale != 1 else f"({name} + {shift})"


def _broadcasts(x: Tensor, y: Tensor) -> bool:
    try:
        return torch.broadcast_shapes(x.shape, y.shape).numel() <= ELEMENTS
    except RuntimeError:
        return False


def _evaluated(line: str, values: dict[str, Tensor]) -> Any:
    return eval(line, {"lib": torch, "nn": torch.nn.functional, "torch": torch, "cast": _cast, **values})


def _cast(x: Any, dtype: torch.dtype) -> Any:
    return x.to(dtype)


def _unit(line: str) -> float:
    """Return what a line rounds its value to."""
    return max([2.0**-24, *(unit for cast, unit in UNITS.items() if cast in line)])
