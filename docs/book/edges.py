"""A table of what a function makes of special numbers, by the compiled kernels, beside torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

import customops
from customops.proof.cases import EDGES
from customops.proof.compare import TOLERANCE

from .samples import Sample, counterpart, is_elementwise

FEW = (0.0, 1.0, torch.inf, -torch.inf, torch.nan, 1e30)  # where each pair is a call by itself


class Cell(NamedTuple):
    """One call: the results and gradients, ours and torch's."""

    got: list[float]  # the first element of each
    want: list[float]
    agrees: bool  # all elements


class Edges(NamedTuple):
    """The calls at all tuples of special numbers."""

    names: tuple[str, ...]  # of the elements that are special
    shown: list[str]  # what each number of a cell is
    cells: dict[tuple[str, ...], Cell]  # by the numbers as they are shown, of which 0 and -0 are two
    against: str  # what ours is held against, in words

    @property
    def count(self) -> int:
        """Return how many cells agree with torch."""
        return sum(cell.agrees for cell in self.cells.values())


def edges(each: Sample) -> Edges:
    """Return what the function makes of special numbers: value, and the gradients for an incoming gradient of 1."""
    theirs, against = counterpart(each), "torch"
    if theirs is None:
        theirs, against = each.function.__wrapped__, "the same composition, one operator after the other"  # type: ignore[attr-defined]
    elementwise = is_elementwise(each)
    names = tuple(each.names)
    if len(names) != 2:
        names = names[:1] if elementwise else (f"{names[0]}[0]", f"{names[0]}[1]")
    elif not elementwise:
        names = tuple(f"{name}[0]" for name in names)
    numbers = EDGES if elementwise else FEW
    points = list(product(numbers, repeat=len(names)))
    got = _outcomes(each, each.function, points, elementwise, kernels=True)
    want = _outcomes(each, theirs, points, elementwise, kernels=False)
    cells = {
        tuple(map(number, point)): Cell(
            *([first for first, _ in side] for side in (ours, torchs)), agrees=_agree(ours, torchs)
        )
        for point, ours, torchs in zip(points, got, want, strict=True)
    }
    values = ["z"] if len(got[0]) == 1 + len(each.tensors) else [f"z{i}" for i in range(len(got[0]) - len(each.names))]
    return Edges(names, [*values, *(f"d{name}" for name in each.names)], cells, against)


Outcome = list[tuple[float, Tensor]]  # of each result and gradient: the first element, and all


def _outcomes(each: Sample, function: Callable, points: list, elementwise: bool, kernels: bool) -> list[Outcome]:
    """Return the results and gradients at each point, in one call where the function is elementwise."""
    if elementwise:
        columns = [torch.tensor(column) for column in zip(*points, strict=True)]
        every = _call(each, function, columns, kernels)
        return [[(float(x[i]), x[i]) for x in every] for i in range(len(points))]
    calls = []
    for point in points:
        xs = [x.clone() for x in each.tensors]
        if len(xs) == 2:
            for x, value in zip(xs, point, strict=True):
                x.view(-1)[0] = value
        else:
            flat = xs[0].view(-1)
            flat[: min(2, flat.numel())] = torch.tensor(point)[: flat.numel()]
        calls.append([(float(x.reshape(-1)[0]), x) for x in _call(each, function, xs, kernels)])
    return calls


def _call(each: Sample, function: Callable, xs: list[Tensor], kernels: bool) -> list[Tensor]:
    """Return results and gradients: by the code that was compiled for a GPU, executed on the CPU, or as torch does."""
    leaves = [x.clone().requires_grad_() for x in xs]

    def compute() -> list[Tensor]:
        zs = [z for z in each.results(function, *leaves)]
        moved = [z for z in zs if z.requires_grad]
        grads = torch.autograd.grad(moved, leaves, [torch.ones_like(z) for z in moved], allow_unused=True)
        return [
            *(z.detach() for z in zs),
            *(torch.zeros_like(x) if dx is None else dx for x, dx in zip(leaves, grads, strict=True)),
        ]

    if not kernels:
        return compute()
    with customops.backend("triton"), customops.dry_run("cuda:90", execute=True):
        return compute()


def _agree(got: Outcome, want: Outcome) -> bool:
    tolerance = TOLERANCE[torch.float32]
    return all(
        torch.isclose(mine, theirs, equal_nan=True, **tolerance).all()
        for (_, mine), (_, theirs) in zip(got, want, strict=True)
    )


def number(x: float) -> str:
    """Return a number as the table shows it."""
    if math.isnan(x):
        return "nan"
    if x in (torch.inf, -torch.inf):
        return "∞" if x > 0 else "-∞"
    if x == 0:
        return "-0" if str(x).startswith("-") else "0"
    text = f"{x:.3g}"
    return text.replace("e+", "e")


def table(found: Edges) -> str:
    """Return the table as HTML: a row for each number, or, of two numbers, a grid for each result."""
    if len(found.names) == 1:
        head = "".join(f"<th>{name}</th>" for name in (*found.names, *found.shown, "as torch"))
        rows = "".join(_row(point[0], cell) for point, cell in found.cells.items())
        return _wrapped(f"<table class='edges'><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>")
    return "".join(_grid(found, i) for i in range(len(found.shown)))


def _row(label: str, cell: Cell) -> str:
    values = "".join(f"<td>{_shown(got, want, cell)}</td>" for got, want in zip(cell.got, cell.want, strict=True))
    return f"<tr><th>{label}</th>{values}<td class='{_kind(cell)}'>{'✓' if cell.agrees else 'no'}</td></tr>"


def _grid(found: Edges, i: int) -> str:
    labels = list(dict.fromkeys(point[0] for point in found.cells))
    head = "".join(f"<th>{label}</th>" for label in labels)
    rows = []
    for a in labels:
        cells = [found.cells[a, b] for b in labels]
        shown = "".join(f"<td class='{_kind(c)}'>{_shown(c.got[i], c.want[i], c)}</td>" for c in cells)
        rows.append(f"<tr><th>{a}</th>{shown}</tr>")
    corner = f"<th>{found.names[0]} ↓ &nbsp;{found.names[1]} →</th>"
    caption = f"<caption>{found.shown[i]}</caption>"
    body = f"<thead><tr>{corner}{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return _wrapped(f"<table class='edges grid'>{caption}{body}</table>")


def _shown(got: float, want: float, cell: Cell) -> str:
    ours, torchs = number(got), number(want)
    return ours if cell.agrees or ours == torchs else f"{ours} <small>torch {torchs}</small>"


def _kind(cell: Cell) -> str:
    return "agrees" if cell.agrees else "differs"


def _wrapped(text: str) -> str:
    return f"<div class='table-wrapper edges-wrapper' tabindex='0'>{text}</div>\n"
