"""``customops kernels``: what a call of an operator would launch on a GPU, on a machine without one."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..tools import kernels
from ..tools.estimate import total_seconds
from ..tools.kernels import OPERATORS
from ..tools.record import LaunchRecord
from ..tools.report import (
    COST_HEAD,
    cost_row,
    describe,
    duration,
    label,
    launch_table,
    launches_as_json,
    total,
    traffic,
)
from ..tools.table import Table
from ..tools.targets import Target
from .arguments import (
    REFUSED,
    BadArgument,
    add_operands,
    add_target,
    integers,
    nearest,
    operator_named,
    read_operands,
    reason,
    target_named,
)
from .output import FINE, Result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that :func:`run` reads."""
    parser.add_argument("operator", metavar="OPERATOR", help=", ".join(OPERATORS))
    add_operands(parser)
    parser.add_argument("--dim", help="axes to reduce, as 0,1 or --dim=-1,0; without it all")
    add_target(parser)
    parser.add_argument("--backward", action="store_true", help="and the gradients of every input")
    parser.add_argument("-v", "--verbose", action="store_true", help="and all that is known of each launch")
    parser.add_argument("--ptx", action="store_true", help="print the PTX or AMD assembly of each kernel too")


def run(args: argparse.Namespace) -> Result:
    """Return what the call would launch."""
    name, (code, gpu) = operator_named(args.operator, [*OPERATORS]), target_named(args.target)
    try:
        operands, options, backward = arguments_of(OPERATORS[name], name, args, args.backward)
        if args.backward and not backward:
            raise BadArgument("--backward: no operand is of a floating point dtype that has a gradient")
        phases = kernels.launches(OPERATORS[name], operands, options, code, backward)
    except REFUSED as error:
        raise BadArgument(reason(error)) from None
    labels = [*map(label, operands), *(f"{key}={label(value)}" for key, value in options.items())]
    title = f"{name}({', '.join(labels)}) on {code}, {gpu.model}"
    records = [record for each in phases.values() for record in each]
    document: dict[str, Any] = {
        "call": title,
        "target": args.target,
        "gpu": gpu.model,
        "launches": launches_as_json(phases, gpu),
    }
    document |= {
        "bytes_moved": total(record.bytes_moved for record in records),
        "bytes_floor": total(record.bytes_floor for record in records),
        "seconds": total_seconds(records, gpu),
    }
    if args.ptx:
        document["code"] = [record.compiled.asm[_stage(record)] for record in _once(records)]
    return Result(FINE, document, [title, "", *_parts(phases, gpu, args)])


def arguments_of(
    function: Callable[..., Tensor], name: str, args: argparse.Namespace, requires_grad: bool
) -> tuple[list[Any], dict[str, Any], bool]:
    """Return the operands of an operator in its order, its other arguments by name, and whether one needs a gradient.

    A mask that is not given is one of the shape of the first tensor; what else is not given is like the last operand.
    """
    operands, options, _ = read_operands(args, requires_grad)
    first = next((x for x in (*operands, *options.values()) if isinstance(x, Tensor)), None)
    if first is None:
        raise BadArgument("no tensor is given: describe each by --input, as --input 4096x4096:bf16")
    parameters = inspect.signature(function).parameters
    call = f"{name}({', '.join(parameters)})"
    if args.dim is not None:
        if "dim" not in parameters:
            raise BadArgument(f"--dim is not for {call}")
        options = options | {"dim": integers("--dim", args.dim)}
    for each in options:
        if each not in parameters:
            raise BadArgument(f"{call} has no {each}: {nearest(each, parameters)}")
    tensors = [p.name for p in parameters.values() if p.kind is not p.KEYWORD_ONLY and "Tensor" in p.annotation]
    has_mask = "condition" in options or [x.dtype for x in operands[:1] if isinstance(x, Tensor)] == [torch.bool]
    if "condition" in tensors and not has_mask:
        operands = [torch.empty(first.shape, dtype=torch.bool), *operands]
    if len(operands) > len(tensors):
        count = f"{len(tensors)} operand{'s' * (len(tensors) > 1)}"
        raise BadArgument(f"{call} takes {count}, got {len(operands)}")
    for each in tensors[len(operands) :]:
        operands.append(options.pop(each) if each in options else _like(operands[-1] if operands else first))
    return operands, options, any(isinstance(x, Tensor) and x.requires_grad for x in operands)


def _like(x: Any) -> Any:
    return torch.empty_like(x, requires_grad=x.requires_grad) if isinstance(x, Tensor) else x


def _parts(phases: dict[str, list[LaunchRecord]], gpu: Target, args: argparse.Namespace) -> Iterator[str | Table]:
    """Yield the tables of costs and launches, and what else is asked for."""
    records = [record for each in phases.values() for record in each]
    named = phases | ({"total": records} if len(phases) > 1 else {})
    floors = {name: total(record.bytes_floor for record in each) for name, each in named.items()}
    yield Table(COST_HEAD, [cost_row(name, each, floors[name], gpu) for name, each in named.items()])
    if records:
        yield ""
        yield launch_table(phases, gpu)
    if args.verbose:
        yield ""
        yield from _details(phases, gpu)
    if args.ptx:
        yield from _code(records)


def _details(phases: dict[str, list[LaunchRecord]], gpu: Target) -> Iterator[str]:
    """Yield the lines that describe every launch, and their total."""
    for phase, each in phases.items():
        yield from describe(phase, each, gpu)
    launched = [record for records in phases.values() for record in records]
    moved, floor = total(record.bytes_moved for record in launched), total(record.bytes_floor for record in launched)
    yield f"{'total':10}launches {len(launched)}  {traffic(moved, floor)}  {duration(total_seconds(launched, gpu))}"


def _code(records: list[LaunchRecord]) -> Iterator[str]:
    """Yield the machine code of each kernel, once for all launches of it."""
    for record in _once(records):
        yield f"\n// {record.name}  {record.program}\n{record.compiled.asm[_stage(record)].strip()}"


def _once(records: list[LaunchRecord]) -> list[LaunchRecord]:
    return [*{record.compiled.hash: record for record in records}.values()]


def _stage(record: LaunchRecord) -> str:
    return "amdgcn" if record.compiled.metadata.target.backend == "hip" else "ptx"
