"""``python -m customops``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from . import explain, kernels
from .dispatch import BACKENDS
from .trainings import TRAININGS

_INSTALL = {
    "sklearn": ("scikit-learn", "customops[demo]"),
    "tqdm": ("tqdm", "customops[demo]"),
    "triton": ("triton", "triton"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; its exit code, 2 where a package it needs is not installed."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in _INSTALL:
            raise
        package, requirement = _INSTALL[module]
        print(f"{args.command}: {package} is not installed: pip install {requirement}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m customops")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="train with torch's operators and with ours, in lockstep")
    demo.add_argument("training", nargs="?", choices=tuple(TRAININGS), default="digits")
    demo.set_defaults(run=_demo)
    distributed = commands.add_parser(
        "distributed", help="train on several processes, by DDP, FSDP2 and tensor parallelism, in lockstep with one"
    )
    distributed.set_defaults(run=_distributed)
    for command in (demo, distributed):
        command.add_argument(
            "--backend",
            choices=BACKENDS,
            default="auto",
            help="auto: kernels on a GPU, else formulas; triton: kernels, interpreted where there is no GPU",
        )
    kernels.add_arguments(commands.add_parser("kernels", help="what an operator would launch on a GPU"))
    explain.add_arguments(commands.add_parser("explain", help="what a fused function computes, launches and moves"))
    return parser


def _demo(args: argparse.Namespace) -> int:
    from .demo import run  # noqa: PLC0415 - needs packages that the operators do not

    return run(args.backend, args.training)


def _distributed(args: argparse.Namespace) -> int:
    from .distributed import run  # noqa: PLC0415 - needs packages that the operators do not

    return run(args.backend) or 0


if __name__ == "__main__":
    code = main()
    if "TORCHELASTIC_RUN_ID" in os.environ:  # under torchrun: threads of torch 2.13's that outlive the group may abort
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
