"""``python -m customops explain``: what a fused function computes, launches and moves, from the shell."""

from __future__ import annotations

import argparse
import os
import pkgutil
import sys

import torch

from ..tools.report import dtype_named, integers, reason
from ..tools.targets import TARGETS
from .decorator import Fused, fused_behind
from .explain import explain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that :func:`run` reads."""
    parser.add_argument("function", metavar="MODULE.NAME", help="where to import the function from, fused or not")
    parser.add_argument(
        "--shape", action="append", default=[], help="of a tensor, as 4096,4096; one for each, in order"
    )
    parser.add_argument("--dtype", default="float32", help="of all of them, as bf16 or float32; default: %(default)s")
    parser.add_argument("--target", choices=TARGETS, default="cuda:90", help="the GPU; default: %(default)s")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what :func:`explain` says, and return the exit code: 2 if it raises."""
    try:
        function, dtype = _named(args.function), dtype_named(args.dtype)
        tensors = [torch.empty(integers("shape", shape), dtype=dtype) for shape in args.shape]
        text = "\n".join(explain(function, tensors, {}, args.target))
    except (TypeError, RuntimeError, ValueError, IndexError, OverflowError) as error:
        print(f"explain: {reason(error)}", file=sys.stderr)
        return 2
    print(text)
    return 0


def _named(path: str) -> Fused:
    """Return the function of this name, from the current directory or an installed package."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = pkgutil.resolve_name(path)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from None
    if not callable(function):
        raise ValueError(f"{path}: expected a function, got {function!r}")
    return fused_behind(function) or Fused(function)
