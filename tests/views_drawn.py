"""Programs of views, slices and concatenations among operators, drawn from a seed: lines of Python over a library.

Casts, masks, reductions and functions of rows are among the operators. No number is compared that is near another but
where both are the same by the same operators: chance does not come that near.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor

ELEMENTS = 300  # the most that a value may have
SIZES = (1, 2, 2, 3, 4, 4, 6, 8)
ELEMENTWISE = (
    *("lib.tanh({})", "lib.sigmoid({})", "-{}", "{} * 0.5", "1.5 - {}", "{}.detach()", "lib.sin({})", "{}.cos()"),
    *("lib.erf({})", "lib.exp2({})", "lib.expm1({})", "lib.log1p({0} * {0})", "lib.log2({0} * {0} + 0.75)"),
    *("lib.reciprocal({0} * {0} + 0.75)", "lib.square({})", "lib.clamp({}, -0.31, 0.47)", "{}.clamp_min(-0.13)"),
    *("nn.softplus({})", "nn.silu({})", "nn.gelu({})", "nn.mish({})", "nn.hardtanh({}, -0.33, 0.61)"),
    *("lib.where({0} > 0.11, {0}, -0.5)", "({0} < 0.27).to({0}.dtype) * {0}", "{0}.masked_fill({0} >= 0.21, 0.1)"),
    *(
        "lib.where(({0} > -0.23) & ({0} < 0.41), {0} * 2, 0.25)",
        "{}.float().double()",
        "{}.to(torch.bfloat16).double()",
    ),
)
UNITS = {".float()": 2.0**-24, "bfloat16": 2.0**-8}  # what gradients are rounded to where lines have these casts
REDUCED = (
    *("lib.sum({}, {}, {})", "lib.mean({}, {}, {})", "lib.mean({}, {}, {})", "lib.amax({}, {}, {})"),
    *("lib.amin({}, {}, {})", "lib.var({}, {}, correction=0, keepdim={})", "lib.logsumexp({}, {}, {})"),
    *("lib.norm({} + 1.5, 2, {}, {})",),
)
ROWS = (
    "nn.softmax({}, {})",
    "nn.log_softmax({}, dim={})",
    "nn.normalize({} + 1.25, dim={})",
    "lib.max({}, {}, True)[0]",
)
LAYOUTS = ("dense", "dense", "permuted", "strided", "expanded", "unaligned")


class ViewProgram(NamedTuple):
    """A function that was drawn, and the shapes and layouts of its inputs x0, x1, ...."""

    shapes: tuple[tuple[int, ...], ...]
    layouts: tuple[str, ...]
    lines: tuple[str, ...]  # expressions in Python, whose values are v0, v1, ...
    returns: tuple[str, ...]  # the names of the values that it returns

    def __repr__(self) -> str:
        inputs = [
            f"x{i}: {shape} {layout}" for i, (shape, layout) in enumerate(zip(self.shapes, self.layouts, strict=True))
        ]
        return "\n".join(["", *inputs, self.source()])

    def source(self) -> str:
        """Return the function in Python."""
        lines = [f"    v{i} = {line}" for i, line in enumerate(self.lines)]
        names = ", ".join(f"x{i}" for i in range(len(self.shapes)))
        return "\n".join([f"def f({names}):", *lines, f"    return {', '.join(self.returns)}"])

    def function(self, lib: Any) -> Callable:
        """Return the function on tensors, with the operators of ``lib``."""
        names = {"lib": lib, "nn": lib.nn.functional, "torch": torch}
        exec(self.source(), names)
        return names["f"]

    @property
    def unit(self) -> float:
        """The coarsest rounding of gradients by a cast."""
        return max([0.0, *(unit for cast, unit in UNITS.items() if any(cast in line for line in self.lines))])

    def tensors(self, device: str = "cpu", dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """Make the inputs anew."""
        generator = torch.Generator().manual_seed(0)
        made = [laid_out(s, layout, generator) for s, layout in zip(self.shapes, self.layouts, strict=True)]
        return [_moved_to(x, device, dtype) for x in made]


def _moved_to(x: Tensor, device: str, dtype: torch.dtype) -> Tensor:
    """Return a leaf of these strides and alignment."""
    storage = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage()).to(device, dtype)
    return storage.as_strided(x.shape, x.stride(), x.storage_offset()).detach().requires_grad_()


def laid_out(shape: tuple[int, ...], layout: str, generator: torch.Generator) -> Tensor:
    """Return numbers in (-1, 1) that lie in memory as ``layout`` says."""

    def rand(*sizes: int) -> Tensor:
        return torch.rand(sizes, dtype=torch.float64, generator=generator) * 2 - 1

    if layout == "permuted":
        return rand(*shape[::-1]).permute(tuple(range(len(shape)))[::-1])
    if layout == "strided" and shape:
        return rand(*shape[:-1], 2 * shape[-1])[..., ::2]
    if layout == "expanded" and shape:
        return rand(1, *shape[1:]).expand(shape)
    if layout == "unaligned":
        return rand(1 + torch.Size(shape).numel())[1:].view(shape)
    return rand(*shape)


def view_program(seed: int) -> ViewProgram:
    """Draw a program."""
    random = Random(seed)
    shape = tuple(random.choice(SIZES) for _ in range(random.choice((1, 2, 3, 3, 4))))
    while torch.Size(shape).numel() > ELEMENTS:
        shape = shape[1:]
    shapes = [shape]
    for _ in range(random.choice((0, 1, 2))):
        own = tuple(n if random.random() < 0.8 else 1 for n in shape)
        shapes.append(own[random.choice((0, 0, min(1, len(shape)))) :])
    layouts = tuple(random.choice(LAYOUTS) for _ in shapes)
    generator = torch.Generator().manual_seed(seed)
    drawn = [laid_out(s, layout, generator) for s, layout in zip(shapes, layouts, strict=True)]
    values = {f"x{i}": x for i, x in enumerate(drawn)}
    lines: list[str] = []
    while len(lines) < random.choice((3, 6, 9)):
        line = _line(random, values)
        z = _evaluated(line, values) if line else None
        if z is not None and 0 < z.numel() <= ELEMENTS and z.dim() <= 6:
            values[f"v{len(lines)}"] = z
            lines.append(line)
    lines.append(f"lib.tanh(v{len(lines) - 1})")
    returns = [f"v{len(lines) - 1}"]
    if random.random() < 0.3:
        lines.append(f"{random.choice(list(values))} * 1.5")
        returns.append(f"v{len(lines) - 1}")
    return ViewProgram(tuple(shapes), layouts, tuple(lines), tuple(returns))


def _evaluated(line: str, values: dict[str, Tensor]) -> Tensor | None:
    try:
        return eval(line, {"lib": torch, "nn": torch.nn.functional, "torch": torch, **values})
    except RuntimeError:  # a view that there is not, say
        return None


def _line(random: Random, values: dict[str, Tensor]) -> str:
    names = list(values)
    x = random.choice([*names, *names[-3:] * 2])
    kinds = (
        _elementwise,
        _elementwise,
        _binary,
        _binary,
        _reduction,
        _regrouped,
        _permuted,
        _part,
        _part,
        _joined,
        _rows,
    )
    kind = random.choice(kinds)
    return kind(random, x, values)


def _elementwise(random: Random, x: str, values: dict[str, Tensor]) -> str:
    return random.choice(ELEMENTWISE).format(x)


def _binary(random: Random, x: str, values: dict[str, Tensor]) -> str:
    y = random.choice([y for y in values if _broadcast(values[x], values[y])])
    words = "{} + {}", "{} - {}", "{} * {}", "lib.where({0} > {1}, {0}, {1} * 0.5)", "lib.maximum({}, {})"
    return random.choice(words).format(x, y)


def _rows(random: Random, x: str, values: dict[str, Tensor]) -> str:
    rank = values[x].dim()
    if not rank:
        return ""
    if random.random() < 0.2:
        return f"nn.{random.choice(('layer_norm', 'rms_norm'))}({x} + 0.75, {x}.shape[-1:], None, eps=0.1)"
    return random.choice(ROWS).format(x, random.randrange(-rank, rank))


def _broadcast(x: Tensor, y: Tensor) -> bool:
    return all(n == m or 1 in (n, m) for n, m in zip(x.shape[::-1], y.shape[::-1], strict=False))


def _reduction(random: Random, x: str, values: dict[str, Tensor]) -> str:
    rank = values[x].dim()
    if not rank:
        return f"lib.sum({x})"
    dims = tuple(random.sample(range(rank), random.randint(1, min(2, rank))))
    return random.choice(REDUCED).format(x, dims, random.choice((True, False)))


def _regrouped(random: Random, x: str, values: dict[str, Tensor]) -> str:
    shape, rank = values[x].shape, values[x].dim()
    d = random.randrange(rank) if rank else 0
    halves = [(k, shape[d] // k) for k in range(2, shape[d]) if not shape[d] % k] if rank else []
    return random.choice(
        [
            f"{x}.unsqueeze({random.randint(-rank - 1, rank)})",
            f"{x}.squeeze()",
            f"{x}[..., None]",
            f"{x}.flatten({d if rank else 0})",
            f"{x}.reshape(-1)",
            f"{x}.view(1, {shape[0] if rank else 1}, -1)",
            f"{x}.expand(2, *{tuple(shape)})",
            f"{x}.unsqueeze(0).expand(3, *{tuple(shape)})",
            *[f"{x}.unflatten({d}, {half})" for half in halves],
        ]
    )


def _permuted(random: Random, x: str, values: dict[str, Tensor]) -> str:
    rank = values[x].dim()
    if rank < 2:
        return ""
    a, b = random.sample(range(rank), 2)
    order = random.choice(list(permutations(range(rank))))
    return random.choice(
        (f"{x}.transpose({a}, {b - rank})", f"{x}.mT", f"{x}.permute{order}", f"{x}.movedim({a}, {b})")
    )


def _part(random: Random, x: str, values: dict[str, Tensor]) -> str:
    shape, rank = values[x].shape, values[x].dim()
    if not rank:
        return ""
    d = random.randrange(rank)
    n = shape[d]
    at, colons = random.randrange(n), ":, " * d
    start, stop = sorted(random.sample(range(n + 1), 2))
    return random.choice(
        (
            f"{x}[{colons}{start}:{stop}]",
            f"{x}[{colons}:{-at or None}]",
            f"{x}[{colons}{at}]",
            f"{x}[{colons}{random.choice((0, 1))}::2]",
            f"{x}.narrow({d}, {start}, {stop - start})",
            f"{x}.select({d}, {at - n})",
            f"{x}.chunk(2, {d})[-1]",
            f"{x}.split({max(1, n // 2)}, {d})[0]",
            f"{x}.unbind({d})[{at}]",
        )
    )


def _joined(random: Random, x: str, values: dict[str, Tensor]) -> str:
    rank = values[x].dim()
    d = random.randrange(rank) if rank else 0

    def others(shape: torch.Size) -> list[int]:
        return [n for k, n in enumerate(shape) if k != d]

    alike = [
        y for y in values if rank and values[y].dim() == rank and others(values[y].shape) == others(values[x].shape)
    ]
    same = [y for y in values if values[y].shape == values[x].shape]
    if random.random() < 0.3 or not rank:
        return f"torch.stack(({x}, {random.choice(same)}), {random.randint(0, rank)})"
    halves = f"({x}.chunk(2, {d})[-1], -{x}.chunk(2, {d})[0])"
    pair = f"({x}, {random.choice(alike)})"
    return f"torch.cat({random.choice((halves, pair))}, {random.choice((d, d - rank))})"
