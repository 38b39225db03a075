"""What calls give with the torch that is installed, to be compared between versions: ``python -m tests.bits FILE``.

Of each call of ``cases.py``, by torch's operator and by ours, the value and the gradients: at drawn points, and the
elementwise ones at all special numbers. By torch's formulas on a CPU, with one thread.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

import customops

from .accuracy import name_of, spacing
from .cases import CALLS, EDGES, ELEMENTWISE, Call

DTYPES = torch.float32, torch.float64, torch.bfloat16
LIBRARIES = {"torch": torch, "customops": customops}
SHAPE = (4, 2, 8, 16)  # of what is drawn
FAR = 1000  # ulp from which on two results are no roundings of one


def main(argv: list[str] | None = None) -> int:
    """Save the results of all calls."""
    (file,) = sys.argv[1:] if argv is None else argv
    torch.set_num_threads(1)
    torch.save(dict(results()), file)
    return 0


def results() -> Iterator[tuple[str, Tensor]]:
    """Yield what is computed, with its name: ``library, call, dtype, points, value or gradient``."""
    for (row, call), dtype in product(CALLS, DTYPES):
        drawn = [row.draw(SHAPE, dtype, seed=i) for i in range(call.arity)]
        points = {"drawn": (drawn, row.draw(SHAPE, dtype, seed=9))}
        if call in ELEMENTWISE:
            *special, g = torch.tensor(list(product(EDGES, repeat=call.arity + 1)), dtype=dtype).unbind(1)
            points["special"] = [x.contiguous() for x in special], g.contiguous()
        for (name, library), (kind, (xs, g)) in product(LIBRARIES.items(), points.items()):
            for what, tensor in _value_and_gradients(call, library, xs, g):
                yield f"{name}, {call}, {name_of(dtype)}, {kind}, {what}", tensor


def differences(before: dict[str, Tensor], after: dict[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Yield the names of results whose bits differ, nan being nan, and by how much."""
    for name in before.keys() & after.keys():
        x, y = before[name], after[name]
        if x.shape != y.shape or x.dtype != y.dtype:
            yield name, f"{list(x.shape)} of {name_of(x.dtype)}, then {list(y.shape)} of {name_of(y.dtype)}"
            continue
        same = (x == y) & (x.signbit() == y.signbit()) | x.isnan() & y.isnan()
        if not same.all():
            finite = x.isfinite() & y.isfinite()
            off = ((x.double() - y.double()).abs() / spacing(x.double(), x.dtype))[finite & ~same]
            near = off[off < FAR]
            ulps = f", up to {near.max().item():.3g} ulp" if near.numel() else ""
            others = int((~same).sum()) - near.numel()
            far = f", {others} of them far apart, or inf or nan in one" if others else ""
            yield name, f"{int((~same).sum())} of {same.numel()} elements{ulps}{far}"


def load(file: Path) -> dict[str, Tensor]:
    """Return what ``main`` has saved."""
    return torch.load(file, weights_only=True)


def _value_and_gradients(call: Call, library, xs: list[Tensor], g: Tensor) -> Iterator[tuple[str, Tensor]]:
    leaves = [x.clone().requires_grad_() for x in xs]
    z = call.function(library, *leaves)
    yield "value", z.detach()
    if z.requires_grad:
        cotangent = g if z.shape == g.shape else g.flatten()[: z.numel()].reshape(z.shape)
        gradients = torch.autograd.grad(z, leaves, cotangent, allow_unused=True)
        yield from ((f"gradient {i}", dx) for i, dx in enumerate(gradients) if dx is not None)


if __name__ == "__main__":
    sys.exit(main())
