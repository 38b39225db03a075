"""``customops kernels``: what a call of an operator would launch on a GPU, on a machine without one."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..tools import kernels, targets
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
    BadArgument,
    add_operands,
    add_target,
    check_target,
    integers,
    operator_named,
    read_operands,
    reason,
)
from .output import FINE, Result

REFUSED = RuntimeError, ValueError, IndexError, OverflowError, TypeError


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
    name, target = operator_named(args.operator, [*OPERATORS]), check_target(args.target)
    code, gpu = targets.find(target)
    try:
        operands, options, backward = arguments_of(OPERATORS[name], name, args, args.backward)
        if args.backward and not backward:
            raise BadArgument("--backward: no operand is of a floating point dtype that has a gradient")
        phases = kernels.launches(OPERATORS[name], operands, options, code, backward)
    except REFUSED as error:
        raise BadArgument(reason(error)) from None
    labels = [*map(label, operands), *(f"{key}={value}" for key, value in options.items())]
    title = f"{name}({', '.join(labels)}) on {code}, {gpu.model}"
    records = [record for each in phases.values() for record in each]
    document: dict[str, Any] = {
        "call": title,
        "target": target,
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
    """Return the operands of an operator, its named arguments, and whether gradients are asked for.

    A mask that is not given is one of the shape of the first tensor; what else is not given is like the last operand.
    """
    given = read_operands(args, requires_grad)
    if not any(isinstance(x, Tensor) for x in (*given.args, *given.kwargs.values())):
        raise BadArgument("no tensor is given: describe each by --input, as --input 4096x4096:bf16")
    parameters = inspect.signature(function).parameters
    tensors = [p.name for p in parameters.values() if p.kind is not p.KEYWORD_ONLY and "Tensor" in p.annotation]
    operands, options = given.args, given.kwargs
    if "condition" in tensors and operands and getattr(operands[0], "dtype", None) != torch.bool:
        first = next(x for x in operands if isinstance(x, Tensor))
        operands = [torch.empty(first.shape, dtype=torch.bool), *operands]
    missing = [each for each in tensors[len(operands) :] if each not in options]
    operands = operands + [_like(operands[-1]) for _ in missing] if operands else operands
    if len(operands) > len(tensors):
        count = f"{len(tensors)} operand{'s' * (len(tensors) > 1)}"
        raise BadArgument(f"{name}({', '.join(parameters)}) takes {count}, got {len(operands)}")
    if args.dim is not None:
        if "dim" not in parameters:
            raise BadArgument(f"--dim is not for {name}({', '.join(parameters)})")
        options = options | {"dim": integers("--dim", args.dim)}
    has_gradients = any(isinstance(x, Tensor) and x.requires_grad for x in (*operands, *options.values()))
    return operands, options, has_gradients


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
