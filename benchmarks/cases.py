"""List what is timed: the calls of the tests' rows, on patterns of operands, dtypes and sizes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

import customops
from tests.cases import CALLS, LAYOUTS, Call, OperatorCase

DRAWN = 1 << 20  # elements that are drawn; a larger operand repeats them
KINDS = {"cpu": 1 << 22, "cuda": 1 << 26}  # elements of an input where patterns and dtypes are compared
SIZES = (1 << 10, 1 << 15, 1 << 20, 1 << 22, 1 << 26)  # elements of an input where sizes are compared


def square(numel: int) -> tuple[int, int]:
    """Return the sides of a matrix of ``numel`` elements, a power of two, with no more rows than columns."""
    rows = 1 << (numel.bit_length() - 1) // 2
    return rows, numel // rows


def _image(numel: int) -> tuple[int, ...]:
    """Return the shape of a batch of images of ``numel`` elements: batch, channels, height, width."""
    rows, columns = square(numel)
    channels = min(64, rows)
    return rows // channels, channels, *square(columns)


SHAPES: dict[str, Callable[[int], tuple[tuple[int, ...], ...]]] = {
    "contiguous": lambda n: (square(n), square(n)),
    "[M, N], [N]": lambda n: (square(n), square(n)[1:]),
    "[M, N], [M, 1]": lambda n: (square(n), (square(n)[0], 1)),
    "[B, C, H, W], [C, 1, 1]": lambda n: (_image(n), (_image(n)[1], 1, 1)),
    "transposed": lambda n: (square(n), square(n)),
    "sliced": lambda n: (square(n), square(n)),
}
BROADCASTS = ("[M, N], [N]", "[M, N], [M, 1]", "[B, C, H, W], [C, 1, 1]")
STRIDED = ("transposed", "sliced")


def _rms_norm(library, x: Tensor, weight: Tensor) -> Tensor:
    power = library.mean(library.pow(x, 2), -1, keepdim=True)
    return library.mul(library.mul(x, library.pow(library.add(power, 1e-6), -0.5)), weight)


_fused = customops.fuse(_rms_norm)


def rms_norm(library, x: Tensor, weight: Tensor) -> Tensor:
    """Compute a layer as a composition, for what other libraries have as one kernel; ours is fused."""
    return (_fused if library is customops else _rms_norm)(library, x, weight)


LAYER = OperatorCase("layer", -2, 2, (Call("rms_norm(x, weight)", rms_norm, 2),))
FIRST = [row.calls[0].name for row, _ in dict(CALLS).items()]
STANDARD = [
    *((name, "contiguous") for name in FIRST),
    ("add(x, y)", "[M, N], [N]"),
    ("mul(x, y)", "[M, N], [N]"),
    ("mul(x, y)", "[M, N], [M, 1]"),
    *((name, "contiguous") for name in ("pow(x, 2)", "pow(x, 0.5)")),
    *((f"{name}({axis})", "contiguous") for name in ("mean", "sum") for axis in ("0", "-1, keepdim")),
]


class Case(NamedTuple):
    """A call, and the operands that it is timed on."""

    row: OperatorCase  # the operator, which knows the domain to draw from
    call: Call  # the function, and how many tensors it takes
    pattern: str  # a key of ``SHAPES``: the operands' shapes and strides
    numel: int  # elements of the largest operand
    dtype: torch.dtype  # of every operand

    def __str__(self):
        return f"{self.call}, {self.pattern}, {self.numel}, {str(self.dtype).removeprefix('torch.')}"

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of the operands."""
        return SHAPES[self.pattern](self.numel)[: self.call.arity]

    @property
    def is_standard(self) -> bool:
        """Return whether the targets are about this case, at the size of its device."""
        return (self.call.name, self.pattern) in STANDARD and self.dtype == torch.float32

    def draw(self, device: str, seed: int) -> list[Tensor]:
        """Draw operands in the domain of the operator."""
        layout = LAYOUTS.get(self.pattern, LAYOUTS["contiguous"])
        return [layout(self._draw(shape, device, 2 * seed + i)) for i, shape in enumerate(self.shapes)]

    def _draw(self, shape: tuple[int, ...], device: str, seed: int) -> Tensor:
        numel = math.prod(shape)
        x = self.row.draw((min(numel, DRAWN),), self.dtype, seed, device)
        return x.repeat(numel // x.numel()).view(shape)


def largest(device: str) -> int:
    """Return the largest power of two of float32 elements of which 48 tensors fit in memory."""
    if device == "cuda":
        free, _ = torch.cuda.mem_get_info()
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGESIZE")
    return 1 << (free // (48 * 4)).bit_length() - 1


def cases(device: str, quick: bool, ops: list[str] | None = None, numel: list[int] | None = None) -> Iterator[Case]:
    """Yield what to time, the most telling first; only the standard cases if ``quick``."""
    main = KINDS[device]
    sizes = numel or [main]
    calls = {call.name: (row, call) for row, call in CALLS if not ops or row.name in ops}
    compared = ((name, pattern) for name, pattern in (*STANDARD, ("pow(x, y)", "[M, N], [N]")) if name in calls)
    named = [(*calls[name], pattern) for name, pattern in compared]
    yield from (Case(*each, size, torch.float32) for size in sizes for each in named)
    if quick:
        return
    halves = (torch.bfloat16, torch.float16)
    if not ops or "layer" in ops:
        yield from (Case(LAYER, LAYER.calls[0], "[M, N], [N]", main, dtype) for dtype in (torch.float32, *halves))
    others = sorted({*SIZES, largest(device)} - {main}) if not numel else []
    yield from (Case(*each, size, torch.float32) for size in others[::-1] for each in named)
    firsts = [calls[name] for name in FIRST if name in calls]
    yield from (Case(*each, "contiguous", main, dtype) for dtype in halves for each in firsts)
    for row, call in firsts:
        patterns = STRIDED if call.arity == 1 else STRIDED + BROADCASTS
        yield from (Case(row, call, p, main, torch.float32) for p in patterns if (row, call, p) not in named)
    timed = {name for name, pattern in STANDARD if pattern == "contiguous"}
    timed.add("pow(x, 0)")  # its gradient reads nothing, so that no bytes can be set against its time
    rest = [each for name, each in calls.items() if name not in timed]
    yield from (Case(*each, "contiguous", main, torch.float32) for each in rest if each[1].rank < 3)
