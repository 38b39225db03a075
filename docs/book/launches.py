"""What a GPU would launch for a function of large tensors, forward and backward: counted, estimated, not measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

import customops

from .samples import Sample

TARGET = "cuda:90"


class Launch(NamedTuple):
    """One launch, as the page shows it."""

    phase: str  # forward or backward
    program: str
    grid: int  # programs
    warps: int
    registers: int
    spills: int
    moved: str  # megabytes
    ratio: str  # of these, to each tensor once
    instructions: str  # for each element
    time: str  # in microseconds, estimated
    limit: str  # what it is estimated to be limited by


class Cost(NamedTuple):
    """What a call costs in both directions."""

    shapes: str  # of the tensors
    gpu: str
    launches: list[Launch]
    saved: list[str]  # what forward saves for backward, in words
    total: str  # the time of all, estimated


def cost(each: Sample) -> Cost:
    """Return what a call of large tensors costs."""
    large = each.sized(1 << 24, 4096)
    xs = [x.requires_grad_() for x in large.tensors]
    with customops.backend("triton"), customops.dry_run(TARGET) as records:
        zs = [z for z in large.results(large.function, *xs) if z.requires_grad]
        forward = list(records)
        saved = list(_saved(zs, dict(zip(large.names, xs, strict=True))))
        torch.autograd.grad(zs, xs, [torch.empty_like(z) for z in zs], allow_unused=True)
    phases = {"forward": forward, "backward": list(records)[len(forward) :]}
    launches = [_launch(phase, record) for phase, found in phases.items() for record in found]
    seconds = sum(record.estimate.total for record in records)
    shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in zip(large.names, xs, strict=True))
    gpu = records[0].estimate.gpu if records else TARGET
    return Cost(shapes, gpu, launches, saved, f"{seconds * 1e6:.1f}")


def _launch(phase: str, record: Any) -> Launch:
    found = record.estimate
    ratio = f"{record.bytes_moved / record.bytes_floor:.2f}" if record.bytes_floor else "-"
    grid = record.grid[0] * record.grid[1] * record.grid[2]
    moved = f"{record.bytes_moved / 1e6:,.1f}"
    instructions, time = f"{found.instructions_per_element:.1f}", f"{found.total * 1e6:.1f}"
    code = record.num_warps, record.registers, record.spills
    return Launch(phase, record.program, grid, *code, moved, ratio, instructions, time, found.limit)


def _saved(zs: list[Tensor], named: dict[str, Tensor]) -> Iterator[str]:
    """Yield what the nodes that made the results have saved: inputs, results, or others by their shape."""
    known = {x.data_ptr(): name for name, x in named.items()}
    known |= {z.data_ptr(): "z" if len(zs) == 1 else f"z{i}" for i, z in enumerate(zs)}
    nodes = dict.fromkeys(z.grad_fn for z in zs)
    for tensor in (x for node in nodes for x in getattr(node, "saved_tensors", ())):
        if tensor is not None:
            label = known.get(tensor.data_ptr(), f"a tensor of shape {list(tensor.shape)}")
            count = tensor.numel() * tensor.element_size()
            yield f"{label}, {count / 1e6:,.1f} MB" if count > 1e5 else f"{label}, {count / 1e3:,.1f} kB"
