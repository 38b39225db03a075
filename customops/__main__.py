"""``python -m customops``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .fusion import command as explain
from .tools import kernels


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit code."""
    args = _parser().parse_args(argv)
    return args.run(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m customops")
    commands = parser.add_subparsers(dest="command", required=True)
    kernels.add_arguments(commands.add_parser("kernels", help="what an operator would launch on a GPU"))
    explain.add_arguments(commands.add_parser("explain", help="what a fused function computes, launches and moves"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
