"""Programs of the pack's operators, drawn by Hypothesis: lines of Python over a library, and the tensors for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from .conftest import DEVICE

Interval = tuple[float, float]
NEAR = 1e-3  # nearer than that to a kink, rounding may decide on which side a value is
LARGEST = 200  # of any value
ELEMENTS = 500  # of any value, at most

ANY, FEW, POSITIVE, ONES = (-4, 4), (-2, 2), (0.3, 4), (-1, 1)
UNARY = {
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
}
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
}
FOLDS = ("sum", "mean", "amax", "amin")


class Input(NamedTuple):
    """How a tensor is made: its axes lie in memory in this ``order``, each in steps or, in steps of 0, repeated."""

    shape: tuple[int, ...]
    order: tuple[int, ...]
    steps: tuple[int, ...]
    dtype: torch.dtype
    recorded: bool
    seed: int

    def tensor(self) -> Tensor:
        """Numbers in (-2, 2), in eighths where there is one, which every dtype has."""
        sizes = [self.shape[a] * max(1, self.steps[a]) for a in self.order]
        x = torch.rand(sizes, dtype=torch.float64, generator=torch.Generator().manual_seed(self.seed)) * 4 - 2
        x = (x if self.shape else x.mul(8).round().div(8)).to(DEVICE, self.dtype)
        x = x.permute([self.order.index(a) for a in range(len(self.order))])
        x = x[tuple(slice(None, None, max(1, step)) for step in self.steps)]
        for a, step in enumerate(self.steps):
            x = x if step else x.narrow(a, 0, 1).expand(self.shape)
        return x.detach().requires_grad_(self.recorded)


class Program(NamedTuple):
    """What is computed line by line, from which inputs, and what is returned."""

    inputs: tuple[Input, ...]
    lines: tuple[str, ...]
    returns: tuple[str, ...]

    def source(self, around: str = "{}") -> str:
        """The function in Python, with something ``around`` each operator."""
        lines = [f"    v{i} = {around.format(line)}" for i, line in enumerate(self.lines)]
        names = ", ".join(f"x{i}" for i in range(len(self.inputs)))
        return "\n".join([f"def f({names}):", *lines, f"    return {', '.join(self.returns)}"])

    def __repr__(self) -> str:
        return "\n".join(["", *(f"x{i}: {x}" for i, x in enumerate(self.inputs)), self.source()])

    def function(self, lib: Any, noise: Callable | None = None) -> Callable:
        """The function on tensors, with the operators of ``lib`` and ``noise`` on what each returns."""
        names = {"lib": lib, "noise": noise}
        exec(self.source("noise({})" if noise else "{}"), names)
        return names["f"]

    def tensors(self) -> list[Tensor]:
        """The inputs."""
        return [x.tensor() for x in self.inputs]


@st.composite
def programs(draw, dtypes=(torch.float64,), lines=10, seen: Counter | None = None):
    """A program in whose every value no operator is near a pole or a kink; what is dropped for that is ``seen``."""
    inputs = draw(_inputs(dtypes))
    values = {f"x{i}": x.tensor().detach().double() for i, x in enumerate(inputs)}
    made: list[str] = []
    for _ in range(draw(st.integers(1, lines))):
        line = draw(_line(values))
        z = line and _value(line, values)
        if z is None:
            if seen is not None:
                seen["lines dropped, near a kink or too large"] += 1
            continue
        values[f"v{len(made)}"] = z
        made.append(line)
    if not made:
        made.append("x0 * 1.5")
    last = f"v{len(made) - 1}"
    others = draw(st.lists(st.sampled_from(list(values)), max_size=1))
    return Program(inputs, tuple(made), (last, *others))


@st.composite
def _inputs(draw, dtypes):
    """One to four that broadcast together."""
    sizes = st.sampled_from([3, 4, 1, 2, 5, 33])
    shape: list[int] = []
    for n in [draw(sizes) for _ in range(draw(st.sampled_from([2, 3, 1, 4, 0])))]:
        shape.append(n if torch.Size(shape).numel() * n <= ELEMENTS else 2)
    given = []
    for i in range(draw(st.integers(1, 4))):
        own = [n if draw(st.integers(0, 5)) or not i else 1 for n in shape][draw(st.sampled_from([0, 0, 0, *range(len(shape) * (i > 0))])) :]
        order = draw(st.permutations(range(len(own)))) if draw(st.booleans()) else range(len(own))
        steps = [draw(st.sampled_from([1, 1, 1, 2, 0])) for _ in own]
        recorded = draw(st.integers(0, 3)) > 0 or i == 0
        seed = draw(st.integers(0, 2**16))
        given.append(Input(tuple(own), tuple(order), tuple(steps), draw(st.sampled_from(dtypes)), recorded, seed))
    return tuple(given)


@st.composite
def _line(draw, values):
    """An operator on values so far, each first moved to where the operator is smooth; None near a kink."""
    names = list(values)[::-1]
    widest = max(names, key=lambda name: values[name].numel())
    x = draw(st.sampled_from([names[0]] * 2 * len(names) + names))  # mostly the last
    kinds = [UNARY, BINARY, FOLDS] if values[x].numel() == values[widest].numel() else [BINARY, BINARY, UNARY, FOLDS]
    kind = draw(st.sampled_from(kinds))
    word = draw(st.sampled_from(list(kind)))
    if kind is FOLDS:
        return draw(_fold(word, x, values[x]))
    if kind is UNARY:
        x = _moved(x, values, UNARY[word])
        return None if word in ("lib.relu({})", "lib.abs({})", "abs({})") and _near(x, "0", values) else word.format(x)
    y = draw(st.sampled_from([widest, *names]))
    if not _broadcasts(values[x], values[y]):
        y = x
    x, y = (y, x) if draw(st.booleans()) else (x, y)
    x, y = (_moved(name, values, domain) for name, domain in zip((x, y), BINARY[word], strict=True))
    return None if word in ("lib.maximum({}, {})", "lib.minimum({}, {})") and _near(x, y, values) else word.format(x, y)


@st.composite
def _fold(draw, word, x, value):
    """A reduction over some axes or all; None where rounding may decide which element is the extreme one."""
    most = draw(st.sampled_from([1, 1, 2, value.dim()]))
    axes = st.lists(st.integers(0, value.dim() - 1), unique=True, min_size=draw(st.sampled_from([1, 1, 1, 0])), max_size=max(most, 1))
    dims = draw(axes) if value.dim() else []
    options = ", keepdim=True" if draw(st.booleans()) else ""
    if not dims:
        return None if _ambiguous(word, value, tuple(range(value.dim()))) else f"lib.{word}({x})"
    if _ambiguous(word, value, tuple(dims)):
        return None
    dims = [d - value.dim() if draw(st.booleans()) else d for d in dims]
    return f"lib.{word}({x}, {dims[0] if len(dims) == 1 else tuple(dims)}{options})"


def _ambiguous(word: str, value: Tensor, dims: tuple[int, ...]) -> bool:
    if word in ("sum", "mean"):
        return False
    apart = (value - getattr(torch, word)(value, dims, True)).abs()
    return bool(((apart < NEAR) & (apart > 0)).any())


def _near(x: str, y: str, values: dict[str, Tensor]) -> bool:
    apart = abs(_evaluated(x, values) - _evaluated(y, values))
    return bool(((apart < NEAR) & (apart > 0)).any())


def _moved(name: str, values: dict[str, Tensor], domain: Interval) -> str:
    """The value, scaled and shifted into ``domain`` where it is not inside."""
    low, high = values[name].min().item(), values[name].max().item()
    if domain[0] <= low and high <= domain[1]:
        return name
    scale = min(1.0, float(f"{0.9 * (domain[1] - domain[0]) / max(high - low, 1e-9):.1g}"))
    shift = round(sum(domain) / 2 - scale * (low + high) / 2, 2)
    if domain[0] > scale * low + shift or scale * high + shift > domain[1]:
        scale = float(f"{scale * 0.5:.1g}")
        shift = round(sum(domain) / 2 - scale * (low + high) / 2, 2)
    return f"({name} * {scale} + {shift})" if scale != 1 else f"({name} + {shift})"


def _broadcasts(x: Tensor, y: Tensor) -> bool:
    try:
        return torch.broadcast_shapes(x.shape, y.shape).numel() <= ELEMENTS
    except RuntimeError:
        return False


def _value(line: str, values: dict[str, Tensor]) -> Tensor | None:
    """What a line gives; None where that is too large."""
    z = _evaluated(line, values)
    return z if z.abs().max() <= LARGEST else None


def _evaluated(line: str, values: dict[str, Tensor]) -> Any:
    return eval(line, {"lib": torch, **values})
