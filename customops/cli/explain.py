"""``customops explain``: what a fused function computes, launches and moves, from the shell."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from ..fusion.decorator import Fused, fused_behind
from ..fusion.explain import examine, heading
from ..fusion.findings import Findings, NotFused
from ..tools.estimate import total_seconds
from ..tools.report import launches_as_json, total
from ..tools.table import Table
from .arguments import REFUSED, BadArgument, add_operands, add_target, read_operands, reason, target_named
from .functions import HOW, function_named
from .output import FINE, PROBLEM, Result
from .proofs import notation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that :func:`run` reads."""
    parser.add_argument("function", metavar="FUNCTION", help=f"fused or not, as {HOW}")
    add_operands(parser)
    add_target(parser)
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="and the program, its derivatives as mathematics, each launch"
    )


def run(args: argparse.Namespace) -> Result:
    """Return what a call costs; a PROBLEM where it is not fused."""
    function, (_, gpu) = function_named(args.function), target_named(args.target)
    operands = _operands(args)
    fused = fused_behind(function) or Fused(function)
    title = heading(fused, operands.args, operands.kwargs, args.target)
    call = {"call": title, "target": args.target, "gpu": gpu.model}
    shown, note = notation() if args.verbose or args.json else (None, "")
    options = {"gradients": operands.has_gradients} | ({"notation": shown} if shown else {})
    try:
        found = examine(fused, operands.args, operands.kwargs, args.target, **options)
    except NotFused as why:
        text = f"not fused: {why}"
        return Result(PROBLEM, call | {"not_fused": str(why)}, [title, text])
    except Exception as error:  # the user's function may raise anything
        raise BadArgument(reason(error)) from None
    return Result(FINE, call | _as_json(found), [title, "", *_parts(found, args.verbose, note)])


def _operands(args: argparse.Namespace):
    if not any(kind == "input" for kind, _ in args.operands or ()):
        raise BadArgument("no tensor is given: describe each by --input, as --input x:4096x4096:bf16")
    try:
        return read_operands(args, requires_grad=False)
    except REFUSED as error:
        raise BadArgument(reason(error)) from None


def _parts(found: Findings, verbose: bool, note: str) -> Iterator[str | Table]:
    yield from found.summary()
    if verbose:
        yield ""
        yield from found.details()
        yield from [note] if note else ()


def _as_json(found: Findings) -> dict[str, Any]:
    """Return all that was found, in bytes and seconds."""
    phases = [
        {
            "name": phase.name,
            "program": phase.program,
            "kernels": len(phase.records),
            "bytes_moved": phase.bytes_moved,
            "bytes_floor": phase.bytes_floor,
            "seconds": total_seconds(phase.records, found.gpu),
            "scratch": [*phase.scratch()],
            "unfused": unfused._asdict(),
        }
        for phase, unfused in zip(found.fused, found.unfused, strict=True)
    ]
    return {
        "phases": phases,
        "launches": launches_as_json(found.phases, found.gpu),
        "saved": found.saved,
        "on_cpu": found.on_cpu,
        "bytes_moved": total(phase.bytes_moved for phase in found.fused),
        "bytes_floor": sum(phase.bytes_floor for phase in found.fused),
        "seconds": found.seconds,
    }
