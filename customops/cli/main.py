"""The parser of the command line, and what it does about errors.

Exit codes: 0, all is fine; 1, a problem was found, which is shown; 2, bad arguments, or a call that torch refuses, of
which one line on stderr says what is wrong and what would do; 130, interrupted, as shells have it.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import torch

import customops

from . import bench, doctor, explain, kernels, prove
from .arguments import BadArgument, Parser
from .output import BAD_ARGUMENTS, show

COMMANDS = {
    "doctor": (doctor, "what operators run on here, whether they work, and what to do about each problem"),
    "prove": (prove, "prove operators: derivation, SymPy, finite differences, edges, compiled code"),
    "kernels": (kernels, "what an operator would launch on a GPU"),
    "explain": (explain, "what a fused function computes, launches and moves"),
    "bench": (bench, "time an operator or a function against torch's"),
}
INTERRUPTED = 130
EXIT_CODES = "exit codes: 0 all is fine, 1 a problem was found, 2 bad arguments"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit code."""
    try:
        args = _parser().parse_args(argv)
    except BadArgument as error:
        print(error, file=sys.stderr)
        return BAD_ARGUMENTS
    try:
        result = args.run(args)
    except BadArgument as error:
        print(f"customops {args.command}: {error}", file=sys.stderr)
        return BAD_ARGUMENTS
    except KeyboardInterrupt:
        print(f"customops {args.command}: interrupted", file=sys.stderr)
        return INTERRUPTED
    try:
        show(result, args.json)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads the pipe has read enough; Python flushes once more as it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return result.code


def _parser() -> Parser:
    parser = Parser(prog="customops", description="PyTorch operators with proven gradients.", epilog=EXIT_CODES)
    parser.add_argument("--version", action="version", version=_versions())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for name, (module, text) in COMMANDS.items():
        each = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=EXIT_CODES)
        each.add_argument("--json", action="store_true", help="print all of it as JSON")
        module.add_arguments(each)
        each.set_defaults(run=module.run)
    return parser


def _versions() -> str:
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "not installed"
    numbers = {"customops": customops.__version__, "torch": torch.__version__, "triton": triton}
    numbers["python"] = platform.python_version()
    return ", ".join(f"{name} {number}" for name, number in numbers.items())
