"""``customops bench``: time an operator or a function against torch's, on this machine."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..fusion.decorator import Fused, fused_behind
from ..proof.cases import functions_of
from ..tools.kernels import OPERATORS
from ..tools.report import label
from ..tools.table import Table
from ..tools.timing import in_turns, prepared
from .arguments import BadArgument, add_operands, nearest, read_operands, reason
from .functions import HOW, function_named
from .kernels import arguments_of
from .output import FINE, PROBLEM, Result

# How far results may be apart, relative to the largest element: further than in models/check.py, where cotangents are
# random. Of ones the gradients of a normalization cancel, and what is left is what operators rounded, one by one: in a
# layer norm of 1,024 rows of 4,096 elements 8.6e-3 in float16, 6.8e-2 in bfloat16, whose tolerance has as many ulp.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1.6e-1}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that :func:`run` reads."""
    parser.add_argument("function", nargs="?", metavar="FUNCTION", help=f"an operator, or a function as {HOW}")
    add_operands(parser)
    parser.add_argument("--dim", help="axes to reduce, of an operator that does")
    parser.add_argument("--against", metavar="FUNCTION", help="another function of the same arguments, to time as well")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of a CPU; default: %(default)s")
    parser.add_argument(
        "--all",
        nargs=argparse.REMAINDER,
        metavar="...",
        help="in a clone: all benchmarks; their options follow",
    )


def run(args: argparse.Namespace) -> Result:
    """Return the times of forward, and of forward and backward; a PROBLEM where results differ from torch's."""
    if args.all is not None:
        return _all(args.all)
    if args.function is None:
        raise BadArgument(
            "name what to time, as customops bench sigmoid --input 4096x4096, or in a clone customops bench --all"
        )
    try:
        contestants, call, title = _contestants(args)
        torch.set_num_threads(args.threads)
        threads = f"{args.threads} thread{'' if args.threads == 1 else 's'}"
        return _compared(contestants, call, f"{title} on {args.device}, {threads}")
    except BadArgument:
        raise
    except Exception as error:  # the user's function may raise anything
        raise BadArgument(reason(error)) from None


def _all(options: Sequence[str]) -> Result:
    """Run the benchmarks of the repository, which print what they find."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if find_spec("benchmarks") is None or find_spec("benchmarks.measure") is None:
        raise BadArgument("--all: no wheel has the benchmarks: run it in a clone of the repository, or name a function")
    benchmarks = importlib.import_module("benchmarks.__main__")
    try:
        code = benchmarks.main([*options])
    except SystemExit as end:  # its parser's
        if not end.code:  # it has shown its help
            return Result(FINE, {"code": FINE}, [])
        raise BadArgument("--all: python -m benchmarks takes no such options; its --help says which it does") from end
    return Result(code, {"code": code}, [])


class Arguments(NamedTuple):
    """The arguments of all contestants."""

    args: list[Any]
    kwargs: dict[str, Any]

    def tensors(self) -> list[Tensor]:
        """Return those that are tensors."""
        return [x for x in (*self.args, *self.kwargs.values()) if isinstance(x, Tensor)]


def _contestants(args: argparse.Namespace) -> tuple[dict[str, Callable], Arguments, str]:
    """Return ours and torch's function of the same arguments, these, and words about the call."""
    if args.function in OPERATORS:
        function = OPERATORS[args.function]
        operands, options, _ = arguments_of(function, args.function, args, requires_grad=True)
        calls = {"ours": function, "torch": getattr(functions_of(torch, args.function), args.function)}
    elif "." not in args.function:
        raise BadArgument(
            f"unknown operator {args.function!r}: {nearest(args.function, OPERATORS)}; a function is {HOW}"
        )
    else:
        found = function_named(args.function)
        fused = fused_behind(found) or Fused(found)
        operands, options, _ = read_operands(args, requires_grad=True)
        bound = fused.called if fused.one_by_one is fused.function else fused.one_by_one  # a partial has arguments
        calls = {"ours": fused, "one by one": bound}
    if args.against:
        calls[args.against] = function_named(args.against)
    call = Arguments(
        [_filled(x, args.device) for x in operands], {name: _filled(x, args.device) for name, x in options.items()}
    )
    if not call.tensors():
        raise BadArgument("no tensor is given: describe each by --input, as --input 4096x4096")
    labels = [*map(label, call.args), *(f"{name}={label(x)}" for name, x in call.kwargs.items())]
    return calls, call, f"{args.function}({', '.join(labels)})"


def _filled(x: Any, device: str) -> Any:
    """Return a tensor like one without values, with numbers of the same kind in it, on a device."""
    if not isinstance(x, Tensor):
        return x
    if x.dtype == torch.bool:
        values = torch.rand(x.shape) < 0.5
    elif x.is_floating_point():
        values = torch.rand(x.shape) + 0.5  # where every operator is smooth
    else:
        values = torch.randint(1, 4, x.shape)
    made = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device)
    return made.copy_(values).requires_grad_(x.requires_grad)


def _compared(contestants: dict[str, Callable], call: Arguments, title: str) -> Result:
    """Time each contestant, forward without gradients and forward and backward with them, in turns."""
    phases = {"forward": _forward}
    if any(x.requires_grad for x in call.tensors()):
        phases["forward and backward"] = _both
    rows, document, faults = [], [], []
    for phase, of in phases.items():
        calls = {name: of(function, call) for name, function in contestants.items()}
        values = {name: each() for name, each in calls.items()}
        first, *others = contestants
        faults += [
            f"ours differs from {name}, {phase}" for name in others if not _are_alike(values[first], values[name])
        ]
        times = {name: median(each) for name, each in in_turns(_runs(calls, call)).items()}
        ratios = {name: times[first] / times[name] for name in times}
        rows += [(phase, name, f"{1e3 * times[name]:,.1f}", f"{ratios[name]:.2f}") for name in times]
        document += [
            {"phase": phase, "who": name, "seconds": times[name] / 1e3, "ours_to_it": ratios[name]} for name in times
        ]
    table = Table(("", "", "us", "ours to it"), rows)
    below = faults or ["medians of rounds in which they took turns; below 1 ours is faster; all results agree"]
    return Result(
        PROBLEM if faults else FINE, {"call": title, "times": document, "faults": faults}, [title, table, *below]
    )


def _runs(calls: dict[str, Callable], call: Arguments) -> dict[str, Callable[[], float]]:
    device = call.tensors()[0].device.type
    return {name: prepared([each], device) for name, each in calls.items()}


def _forward(function: Callable, call: Arguments) -> Callable[[], Any]:
    def compute():
        with torch.no_grad():
            return function(*call.args, **call.kwargs)

    return compute


def _both(function: Callable, call: Arguments) -> Callable[[], Any]:
    leaves = [x for x in call.tensors() if x.requires_grad]

    def compute():
        zs = function(*call.args, **call.kwargs)
        zs = [z for z in (zs if isinstance(zs, tuple | list) else [zs]) if z.requires_grad]
        return torch.autograd.grad(zs, leaves, [torch.ones_like(z) for z in zs], materialize_grads=True)

    return compute


def _are_alike(got: Any, want: Any) -> bool:
    """Return whether results are the same but for what their dtype rounds, relative to the largest finite element."""
    if isinstance(got, tuple | list) and isinstance(want, tuple | list):
        return len(got) == len(want) and all(map(_are_alike, got, want))
    if not (isinstance(got, Tensor) and isinstance(want, Tensor)) or (got.shape, got.dtype) != (want.shape, want.dtype):
        return False
    got, want, tolerance = got.double(), want.double(), TOLERANCE.get(want.dtype, 0)
    largest = max(1.0, float(want.abs().nan_to_num(0, 0, 0).max())) if want.numel() else 1.0
    return torch.allclose(got, want, rtol=0, atol=tolerance * largest, equal_nan=True)
