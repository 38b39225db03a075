"""What every call costs on an H100, read from compiled kernels: ``python -m tests.audit [--full]`` prints a table.

A dry run compiles and records the launches on large tensors; nothing is computed, so no element is ever touched.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from tqdm import tqdm

import customops
from customops import machine_code
from customops.dispatch import KERNEL_DTYPES
from customops.triton_kernels.launch import Launch

from .cases import CALLS, ROWS, Call, ids

WORD = 16  # bytes that one instruction loads at most
WARP = 32 * WORD  # what has fewer bytes has no word for each lane of a warp
REDUCTIONS = ("mean", "sum")
DTYPES = sorted(KERNEL_DTYPES, key=str)

# Launches of backward, by how the operands broadcast. A sum that few rows or columns leave to several programs takes
# one launch more, to add up their parts; a pair of such sums takes two.
NONE = {"whole": 0}
ONE = {"whole": 1}
SUMS = {"row": 2, "column": 1, "channel": 2, "outer": 3}
BACKWARD = {
    "log(x)": ONE,
    "exp(x)": ONE,
    "relu(x)": ONE,
    "sigmoid(x)": ONE,
    "add(x, y)": NONE | SUMS,  # both gradients are g itself
    "add(x, 1.5)": NONE,
    "add(2, x)": NONE,
    "add(x, y, 3)": ONE | SUMS,
    "sub(x, y)": ONE | SUMS,
    "sub(x, 1.5)": NONE,
    "sub(2, x)": ONE,
    "sub(x, y, 3)": ONE | SUMS,
    "mul(x, y)": ONE | SUMS,
    "mul(x, 1.5)": ONE,
    "mul(2, x)": ONE,
    "pow(x, y)": ONE | SUMS,
    "pow(x, 1.5)": ONE,
    "pow(2, x)": ONE,
    "pow(x, -1)": ONE,
    "pow(x, -0.5)": ONE,
    "pow(x, 0)": ONE,
    "pow(x, 0.5)": ONE,
    "pow(x, 2)": ONE,
    "pow(x, 3)": ONE,
    "mean": ONE,  # of the small gradient, before it is viewed as large as x
    "sum": NONE,
}

# Launches of a reduction: two where the sums are too few to fill the GPU, and so are shared.
SHARED = {
    "contiguous": ("", "None", "0", "0, -1"),
    "ragged end": ("", "None", "0", "-1, keepdim"),
    "small": (),
    "transposed": ("", "None", "-1, keepdim", "0, -1"),
    "sliced": ("", "None", "0", "0, -1"),
    "every second": ("", "None", "0", "0, -1"),
    "unaligned": ("", "None", "0", "-1, keepdim"),
    "width 1000": ("", "None", "0", "0, -1"),
    "width 1004": ("", "None", "0", "0, -1"),
    "cube": ("", "None"),
    "images": ("", "None", "0, 2, 3"),
    "long rows": ("", "None", "-1, keepdim", "0, -1"),
    "short rows": ("", "None", "0", "0, -1"),
}
EITHER = {("small", ""), ("small", "None"), ("small", "0, -1"), ("cube", "1")}  # one or two, as the dtype's tiles fall


class Layout(NamedTuple):
    """How the tensors of a call lie: ``make`` gives two operands of a dtype, a call takes as many as it has.

    ``narrow`` are those whole words cannot be asked of, or need not: x, y, z, g, dx, dy. They are asked of any other
    whose rows, ``pitch`` elements apart, all start at a multiple of 16 bytes.
    """

    name: str
    make: Callable[[torch.dtype], list[Tensor]]
    narrow: tuple[str, ...] = ()
    pitch: int = 4096
    kind: str = "whole"  # how the operands broadcast: a column of BACKWARD
    fits: str = "any"  # call: "pair" of operands, "reduction", or "any"
    most: float = 1.05  # bytes moved, to bytes that have to move

    def __str__(self):
        return self.name


class Phase(NamedTuple):
    """What one direction of a call launches."""

    launches: int
    bits: dict[str, int]  # of the widest access to each tensor, in the launch where that is narrowest; "parts" of sums
    wide: frozenset[str]  # the tensors that whole words are asked of
    spills: int  # bytes of a thread
    excess: float  # bytes moved, to those of every input and output once


class Finding(NamedTuple):
    """What an audit saw, and what of it is wrong, in words."""

    phases: dict[str, Phase]
    faults: list[str]


class Case(NamedTuple):
    """A call, and what on."""

    operator: str
    call: Call
    dtype: torch.dtype
    layout: Layout

    def __str__(self):
        return f"{self.call}, {ids(self.dtype)}, {self.layout}"


def _pair(x: tuple[int, ...], y: tuple[int, ...] | None = None, view: Callable[[Tensor], Tensor] = lambda x: x):
    return lambda dtype: [view(torch.empty(shape, dtype=dtype)) for shape in (x, x if y is None else y)]


def _second_transposed(dtype: torch.dtype) -> list[Tensor]:
    x, y = _pair(MATRIX)(dtype)
    return [x, y.t()]


MATRIX = (4096, 4096)
IMAGES = (32, 64, 56, 56)
LAYOUTS = (
    Layout("contiguous", _pair(MATRIX)),
    Layout("ragged end", _pair((4096 * 4096 + 3,))),
    Layout("small", _pair((8, 128)), pitch=128),
    Layout("row", _pair(MATRIX, (4096,)), ("dy",), kind="row", fits="pair"),
    Layout("column", _pair(MATRIX, (4096, 1)), ("y", "dy"), kind="column", fits="pair"),
    Layout("channel", _pair(IMAGES, (64, 1, 1)), ("y", "dy"), 56 * 56, kind="channel", fits="pair"),
    # each tile reads its part of both vectors for every row or column of tiles, and leaves a partial sum of each
    Layout("outer", _pair((4096, 1), (1, 4096)), ("x", "dx", "dy"), kind="outer", fits="pair", most=1.10),
    Layout("second transposed", _second_transposed, ("y",), fits="pair"),
    Layout("transposed", _pair(MATRIX, view=Tensor.t)),
    Layout("sliced", _pair((4096, 4112), view=lambda x: x[:, :4096]), pitch=4112),
    Layout("every second", _pair((4096, 8192), view=lambda x: x[:, ::2]), ("x", "y")),
    Layout("unaligned", _pair((4096 * 4096 + 1,), view=lambda x: x[1:]), ("x", "y")),
    Layout("width 1000", _pair((4096, 1000), (1000,)), ("dy",), 1000, kind="row"),
    Layout("width 1004", _pair((4096, 1004), (1004,)), ("dy",), 1004, kind="row"),
    Layout("cube", _pair((64, 512, 512)), pitch=512, fits="reduction"),
    Layout("images", _pair(IMAGES), pitch=56, fits="reduction"),
    Layout("long rows", _pair((2, 2**24)), fits="reduction"),
    Layout("short rows", _pair((2**20, 7)), pitch=7, fits="reduction"),
)

AXES = ("-1, keepdim", "0")  # of the reductions that are in every run
OFTEN = {f"{name}(x)" for name in ("log", "exp", "relu", "sigmoid")} | {"add(x, y, 3)", "sub(x, y, 3)", "mul(x, y)"}
OFTEN |= {"pow(x, y)", "pow(x, 3)"} | {f"{name}({axes})" for name in REDUCTIONS for axes in AXES}


@cache
def cases() -> tuple[Case, ...]:
    """Every call on every layout that it fits, in every dtype that torch has it for."""
    channels = [
        (name, Call(f"{name}(0, 2, 3)", lambda lib, x, name=name: getattr(lib, name)(x, (0, 2, 3)), rank=4))
        for name in REDUCTIONS
    ]
    return tuple(
        Case(operator, call, dtype, layout)
        for operator, call in (*((row.name, call) for row, call in CALLS), *channels)
        for layout in LAYOUTS
        for dtype in DTYPES
        if _fits(operator, call, layout) and _is_defined(call, dtype, layout)
    )


@cache
def chosen() -> tuple[Case, ...]:
    """The cases of every run: each operator contiguous and on a row in two dtypes, each layout, and so each dtype."""
    always = [
        case
        for case in cases()
        if case.call.name in OFTEN
        and case.dtype in (torch.float32, torch.bfloat16)
        and (case.layout.name == "contiguous" or (case.layout.name == "row" and case.call.arity == 2))
    ]
    for i, layout in enumerate(LAYOUTS):
        fitting = [case for case in cases() if case.layout is layout and case.dtype is DTYPES[i % len(DTYPES)]]
        always.append(fitting[7 * i % len(fitting)])
    return tuple(dict.fromkeys(always))


def audit(case: Case) -> Finding:
    """Run a call, and backward where there is one, in a dry run; compare what it launches with what it should."""
    xs = case.layout.make(case.dtype)[: case.call.arity]
    needs = case.dtype.is_floating_point
    for x in xs:
        x.requires_grad_(needs)
    z, launched = _launches(lambda: case.call.function(customops, *xs))
    tensors = {**dict(zip("xy", xs, strict=False)), "z": z}
    phases = {"forward": _measure(case, tensors, launched)}
    if needs:
        tensors["g"] = torch.empty(z.shape, dtype=z.dtype)
        grads, launched = _launches(lambda: torch.autograd.grad(z, xs, tensors["g"]))
        tensors |= zip(("dx", "dy"), grads, strict=False)
        phases["backward"] = _measure(case, tensors, launched)
    return Finding(phases, [f"{name}: {fault}" for name, phase in phases.items() for fault in _faults(case, name, phase, tensors)])


def _launches(run: Callable):
    """What ``run`` returns; and of each launch its record, and what it is given for every operand and output."""
    made = []
    launch = Launch.__call__

    def listen(self, pointers, stream):
        made.append({
            **{("operands", i): pointers[slot] for i, slot in enumerate(self.reads)},
            **{("outputs", i): pointers[slot] for i, slot in enumerate(self.writes)},
        })
        launch(self, pointers, stream)

    with customops.dry_run("cuda:90") as records, patch.object(Launch, "__call__", listen):
        result = run()
    return result, list(zip(records, made, strict=True))
