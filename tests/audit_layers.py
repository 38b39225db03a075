"""Audit fused layers: launches, spills and bytes of DRAM, forward and backward, of short and long rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import inf, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

import customops
from customops.tools.targets import TARGETS

from .programs import PROGRAMS, Program

LARGE = 4_000_000  # bytes of an operand from which a launch has to keep the GPU busy
MOST = 1.05  # bytes of DRAM, to those of each input and output once, at most
ELEMENTS = 2**26  # of a matrix whose rows a layer normalizes
ROWS = (1024, 4096, 16384, 65536)  # elements of a row
DTYPES = (torch.bfloat16, torch.float32)
LAUNCHES = {  # of a layer, by its name: backward; forward there is one
    "softmax": 1,
    "rms_norm": 2,  # the gradients of weights are sums over rows, whose parts one more adds up
    "layer_norm": 2,
}


class Layer(NamedTuple):
    """A layer on rows of one length and dtype, in one direction."""

    name: str  # of a program
    row: int  # elements of a row
    dtype: torch.dtype
    direction: str  # forward or backward

    def __str__(self):
        return f"{self.name} {self.row} {str(self.dtype).removeprefix('torch.')} {self.direction}"


class Cost(NamedTuple):
    """What the launches of one direction cost."""

    launches: int
    spills: int  # the bytes of registers that a thread spills
    excess: float  # the bytes of DRAM, as a multiple of those of every input and output once
    in_flight: float  # the fewest bytes in flight on a multiprocessor, of launches on large operands; else inf
    warps: float  # the fewest resident on a multiprocessor, likewise
    instructions: float  # machine instructions for each element of the largest tensor, of all launches
    seconds: float  # the time of all launches, estimated


def has_to_fill(record: Any) -> bool:
    """Return whether a launch has to keep the GPU busy with loads.

    It reads 4 MB or more, partial sums not counted, does not read all at once, and is not busy with instructions for
    half of its time.
    """
    read = [m.unique for m in record.moves.tensors if not m.is_stored and not m.is_scratch]
    found = record.estimate
    at_once = found.bytes_in_flight * TARGETS["cuda:90"].multiprocessors
    is_busy = found.seconds.instructions > 0.5 * max(found.seconds)
    return max(read, default=0) >= LARGE and at_once < 0.99 * sum(read) and not is_busy


def bytes_in_flight(record: Any) -> float:
    """Return the bytes that a launch has in flight on a multiprocessor: loads, or the stores after them if more."""
    loaded, stored = (sum(m.unique for m in record.moves.tensors if m.is_stored == way) for way in (False, True))
    return record.estimate.bytes_in_flight * max(1.0, stored / loaded)


def bytes_of(*tensors: Tensor) -> int:
    """Return the bytes of memory that tensors fill together, however often they are expanded."""
    return sum(prod(n for n, step in zip(x.shape, x.stride(), strict=True) if step) * x.itemsize for x in tensors)


def cost_of(records: Sequence, floor: int) -> Cost:
    """Return what launches cost whose inputs and outputs have ``floor`` bytes."""
    large = [record for record in records if has_to_fill(record)]
    return Cost(
        launches=len(records),
        spills=max((record.estimate.spills for record in records), default=0),
        excess=sum(record.estimate.dram_bytes for record in records) / floor if records else 1.0,
        in_flight=min(map(bytes_in_flight, large), default=inf),
        warps=min((record.estimate.warps for record in large), default=inf),
        instructions=sum(record.estimate.instructions_per_element for record in records),
        seconds=sum(record.estimate.total for record in records),
    )


def audit_layer(name: str, row: int, dtype: torch.dtype) -> dict[Layer, Cost]:
    """Return what a layer costs, forward and backward."""
    program = next(program for program in PROGRAMS if program.name == name)
    xs = _inputs(program, row, dtype)
    with customops.dry_run("cuda:90") as records:
        z = customops.fuse(program.of(customops))(*xs)
        forward = list(records)
        torch.autograd.grad(z, xs, torch.empty_like(z))
    floor = bytes_of(z, *xs)
    return {
        Layer(name, row, dtype, "forward"): cost_of(forward, floor),
        Layer(name, row, dtype, "backward"): cost_of(records[len(forward) :], floor + bytes_of(*xs)),
    }


def audit_layers() -> dict[Layer, Cost]:
    """Return what each layer costs on rows of every length and dtype."""
    cases = product(LAUNCHES, ROWS, DTYPES)
    return {layer: cost for case in cases for layer, cost in audit_layer(*case).items()}


def faults_of_layer(layer: Layer, cost: Cost) -> list[str]:
    """Return all that is wrong, in words."""
    most, wrong = 1 if layer.direction == "forward" else LAUNCHES[layer.name], []
    if cost.launches > most:
        wrong.append(f"{layer}: {cost.launches} launches, expected {most}")
    if cost.spills:
        wrong.append(f"{layer}: spills {cost.spills} bytes of a thread")
    if cost.excess > MOST:
        wrong.append(f"{layer}: moves {cost.excess:.3f} times the bytes of DRAM, expected {MOST} at most")
    return wrong


def table_of_layers(costs: dict[Layer, Cost]) -> str:
    """Return what was found as text: a line for each layer and direction, and then all that is wrong."""
    heads = f"{'launches':>9}{'spills':>7}{'DRAM':>7}{'KiB':>7}{'warps':>7}{'SASS':>7}{'us':>8}"
    lines = [f"{'fused layer':<36}{heads}"]
    for layer, cost in costs.items():
        busy = f"{cost.in_flight / 1024:>7.1f}{cost.warps:>7.1f}{cost.instructions:>7.1f}"
        cells = f"{cost.launches:>9}{cost.spills:>7}{cost.excess:>7.3f}{busy}{1e6 * cost.seconds:>8.1f}"
        lines.append(f"{layer!s:<36}{cells}")
    wrong = [fault for layer, cost in costs.items() for fault in faults_of_layer(layer, cost)]
    return "\n".join([*lines, f"{len(costs)} fused layers and directions, {len(wrong)} faults", *wrong])


def _inputs(program: Program, row: int, dtype: torch.dtype) -> list[Tensor]:
    sizes = ((ELEMENTS // row, row), *[(row,)] * (len(program.large) - 1))
    return [torch.empty(size, dtype=dtype, requires_grad=True) for size in sizes]
