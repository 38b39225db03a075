"""``customops prove``: the proof of operators, step by step."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from ..proof.cases import ROW
from ..proof.steps import STEPS, Step, steps_of
from ..tools.table import Table
from .arguments import operator_named
from .output import FINE, PROBLEM, Result, progress
from .proofs import require_sympy


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that :func:`run` reads."""
    parser.add_argument("operators", metavar="OPERATOR", nargs="*", help=f"without one all: {', '.join(ROW)}")
    parser.add_argument(
        "--step", action="append", metavar="STEP", help=f"only this one; may be repeated: {', '.join(STEPS)}"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="and what each step read or proved, in full")


def run(args: argparse.Namespace) -> Result:
    """Return the steps of each proof; a PROBLEM where one failed."""
    names = [operator_named(name, [*ROW]) for name in dict.fromkeys(args.operators)] or [*ROW]
    wanted = [operator_named(step, [*STEPS], "step") for step in args.step or STEPS]
    require_sympy()
    todo = [(name, step, make) for name in names for step, make in steps_of(ROW[name]) if step in wanted]
    made: dict[str, list[Step]] = {name: [] for name in names}
    for name, _, make in progress(todo, "proving", len(todo)):
        made[name].append(make())
    failed = any(step.outcome == "failed" for steps in made.values() for step in steps)
    document = {
        "proven": not failed,
        "operators": [{"name": name, "steps": [step._asdict() for step in steps]} for name, steps in made.items()],
    }
    parts = _short(made) if len(names) > 1 and not args.verbose else _long(made, args.verbose or len(names) == 1)
    return Result(PROBLEM if failed else FINE, document, [*parts, "", _verdict(made)])


def _long(made: dict[str, list[Step]], verbose: bool) -> Iterator[str | Table]:
    """Yield each step of each operator, with the derivation in full."""
    for name, steps in made.items():
        yield name
        for step in steps:
            yield f"  {step.name:22}{step.outcome:9}{step.found}"
            if verbose:
                yield from (f"{'':6}{line}".rstrip() for line in step.details)


def _short(made: dict[str, list[Step]]) -> Iterator[str | Table]:
    """Yield a row for each operator, then what failed."""
    marks = {"proven": "yes", "failed": "FAILED", "skipped": "skipped"}
    some = next(iter(made.values()))
    head = "operator", *(step.name.removeprefix("compiled for ") for step in some)
    yield Table(head, [(name, *(marks[step.outcome] for step in steps)) for name, steps in made.items()])
    for name, steps in made.items():
        for step in steps:
            if step.outcome == "failed":
                yield f"{name}, {step.name}: {step.found}"
    reasons = {
        f"{step.name}: skipped: {step.found}" for steps in made.values() for step in steps if step.outcome == "skipped"
    }
    yield from sorted(reasons)


def _verdict(made: dict[str, list[Step]]) -> str:
    counts = {
        kind: sum(step.outcome == kind for steps in made.values() for step in steps)
        for kind in ("proven", "failed", "skipped")
    }
    seconds = sum(step.seconds for steps in made.values() for step in steps)
    words = ", ".join(f"{n} {kind}" for kind, n in counts.items() if n)
    operators, total = "operators" if len(made) > 1 else "operator", "step" if sum(counts.values()) == 1 else "steps"
    return f"{len(made)} {operators}: {words or 'no'} {total} in {seconds:.1f} s"
