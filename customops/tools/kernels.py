"""``python -m customops kernels``: what a call would launch on a GPU, on a machine without one."""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..config import backend
from ..ops import binary, choice, products, reductions, unary
from .dry_run import dry_run
from .estimate import total_seconds
from .record import LaunchRecord
from .report import SHORT, describe, dtype_named, duration, integers, label, reason, total, traffic
from .targets import TARGETS

OPERATORS: dict[str, Callable[..., Tensor]] = {
    name: getattr(module, name)
    for module in (unary, binary, choice, reductions, products)
    for name in module.__all__
    if not name.endswith("_")  # in-place variants
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that :func:`run` reads."""
    parser.add_argument("op", metavar="OP", choices=OPERATORS, help=", ".join(OPERATORS))
    parser.add_argument("--shape", required=True, help="of the input, as 4096,4096; '' has no axis")
    second = parser.add_mutually_exclusive_group()
    second.add_argument("--other", metavar="SHAPE", help="of the other inputs; without it the same as --shape")
    second.add_argument("--number", help="a number in place of the other inputs")
    parser.add_argument("--dim", help="axes to reduce, as 0,1 or --dim=-1,0; without it all")
    parser.add_argument("--dtype", default="float32", help=f"torch's name, or {', '.join(SHORT)}; default: %(default)s")
    parser.add_argument("--target", choices=TARGETS, default="cuda:90", help="the GPU; default: %(default)s")
    parser.add_argument("--backward", action="store_true", help="and the gradients of every input")
    parser.add_argument("--ptx", action="store_true", help="print the PTX or AMD assembly of each kernel too")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what the call would launch; return the exit code, 2 where torch rejects the call or it has no kernel."""
    try:
        operands, options = _arguments(args)
        phases = launches(OPERATORS[args.op], operands, options, args.target, args.backward)
    except (RuntimeError, ValueError, IndexError, OverflowError) as error:
        print(f"kernels: {reason(error)}", file=sys.stderr)
        return 2
    labels = [*map(label, operands), *(f"{name}={value}" for name, value in options.items())]
    print(f"{args.op}({', '.join(labels)}) on {args.target}", *_report(phases), sep="\n")
    if args.ptx:
        print(*_code(record for records in phases.values() for record in records), sep="\n")
    return 0


def launches(
    function: Callable[..., Tensor], operands: Sequence[Any], options: dict[str, Any], target: str, backward: bool
) -> dict[str, list[LaunchRecord]]:
    """Return the launches of ``function(*operands, **options)`` by phase: forward, and ``backward`` if asked for.

    Raises:
        RuntimeError: there is no kernel for the dtype, or no Triton; and whatever torch raises for such a call.
    """
    with dry_run(target) as records, backend("triton"):  # which refuses what only a formula can compute
        z = function(*operands, **options)
        forward = len(records)
        if backward:
            needed = [x for x in operands if isinstance(x, Tensor) and x.requires_grad]
            torch.autograd.grad(z, needed, torch.empty_like(z))
    phases = {"forward": records[:forward]}
    return phases | {"backward": records[forward:]} if backward else phases


def _arguments(args: argparse.Namespace) -> tuple[list[Any], dict[str, Any]]:
    """Return the operands that ``args`` describe, whose memory is never touched, and the named arguments."""
    parameters = inspect.signature(OPERATORS[args.op]).parameters
    tensors = [p.name for p in parameters.values() if p.kind is not p.KEYWORD_ONLY and "Tensor" in p.annotation]
    masks = [name for name in tensors if name == "condition"]
    others = len(tensors) - len(masks) - 1
    for name, applies in {"other": others, "number": others, "dim": "dim" in parameters}.items():
        if not applies and getattr(args, name) is not None:
            raise ValueError(f"--{name} is not for {args.op}({', '.join(parameters)})")
    shape = integers("shape", args.shape)
    shapes = [shape, *[shape if args.other is None else integers("other", args.other)] * others]
    dtype = dtype_named(args.dtype)
    operands: list[Any] = [torch.empty(shape, dtype=torch.bool) for _ in masks]
    operands += [torch.empty(each, dtype=dtype, requires_grad=args.backward) for each in shapes]
    if args.number is not None:
        operands[-others:] = [_number(args.number)] * others
    return operands, {} if args.dim is None else {"dim": integers("dim", args.dim)}


def _number(text: str) -> int | float:
    """Return the number that ``--number`` was given, an int where it is written as one."""
    try:
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    except ValueError:
        raise ValueError(f"--number: expected a number, got {text!r}") from None


def _report(phases: dict[str, list[LaunchRecord]]) -> Iterator[str]:
    """Yield the lines that describe every launch, and their total."""
    for phase, records in phases.items():
        yield from describe(phase, records)
    launched = [record for records in phases.values() for record in records]
    moved, floor = total(record.bytes_moved for record in launched), total(record.bytes_floor for record in launched)
    yield f"{'total':10}launches {len(launched)}  {traffic(moved, floor)}  {duration(total_seconds(launched))}"


def _code(records: Iterable[LaunchRecord]) -> Iterator[str]:
    """Yield the machine code of each kernel, once for all launches of it."""
    for record in {record.compiled.hash: record for record in records}.values():
        stage = "amdgcn" if record.compiled.metadata.target.backend == "hip" else "ptx"
        yield f"\n// {record.name}  {record.program}\n{record.compiled.asm[stage].strip()}"
