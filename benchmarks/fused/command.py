"""``python -m benchmarks --fused``: fused layers on the CPU, with one thread and with two.

Each layer of the examples is called fused (ours), as the same composition of torch's operators (eager), by torch's own
function where there is one (own), and as the composition under torch.compile (compile). They take turns at random
within each round, on the same tensors; a ratio is the median of those within a round. A run of everything is written to
``benchmarks/results/<machine>/fused.json``. With ``--gallery`` it is of the functions of ``customops.nn.functional``
that are no layer of the examples, and written to ``gallery.json``.
"""

from __future__ import annotations

import argparse
import os
import time

import torch

from .. import machine
from ..measure import one_line
from ..memory import warm_memory
from ..progress import bar, write
from ..report import publish
from ..text import table
from .contestants import CONTESTANTS
from .first import contestants_of, in_processes
from .gallery import GALLERY
from .layers import LAYERS, Case, cases
from .lines import HEADER, costs, line, means
from .measure import measure
from .verdicts import losses, verdicts

FILES = {False: "fused.json", True: "gallery.json"}  # in the folder of a machine, by whether it is of the gallery


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that are this comparison's alone."""
    parser.add_argument("--fused", action="store_true", help="fused layers on the CPU, against torch's and compiled")
    parser.add_argument(
        "--gallery", action="store_true", help="of --fused: functions of customops.nn.functional that no layer has"
    )
    parser.add_argument(
        "--sizes", nargs="+", type=_size, metavar="MxN", help="of --fused: rows and elements of a row, such as 64x256"
    )


def run(options: argparse.Namespace) -> int:
    """Measure, print, and write a complete run; return 1 where a result of ours is wrong or ours failed."""
    if options.device != "cpu":
        raise SystemExit("--fused times layers on the CPU: add --device cpu")
    layers = GALLERY if options.gallery else LAYERS
    unknown = set(options.ops or ()) - set(layers)
    if unknown:
        raise SystemExit(f"--ops: expected some of {', '.join(layers)}, got {', '.join(unknown)}")
    names = options.ops or [*layers]
    threads = [1] if options.quick else [*range(1, min(2, os.cpu_count() or 1) + 1)]
    torch.set_num_threads(1)
    warm_memory()
    facts = machine.where("cpu") | {"threads": " and ".join(map(str, threads))}
    print(*[f"{name}: {fact}" for name, fact in facts.items()], "", sep="\n")
    no_compiler = "" if options.quick else _why_nothing_compiles()
    if no_compiler:
        print(f"torch.compile is left out: {no_compiler}\n")
    chosen = [*cases(options.quick, names, options.sizes)]
    deadline = time.monotonic() + 60 * options.minutes
    first, failed = _first_calls([] if options.sizes else names, not (options.quick or no_compiler))
    rows, more, left_out = _measure(chosen, threads, options.quick, no_compiler, deadline)
    failed += more
    judged, lost = [*verdicts(rows, first)], [*losses(rows)]
    _print_summary(rows, first, judged, lost)
    print(*failed, *[f"no time left for {case}" for case in left_out], sep="\n")
    if not (options.quick or options.ops or options.sizes):
        facts |= machine.this_run()
        document = {"where": facts, "no_compiler": no_compiler, "verdicts": judged, "losses": lost, "failed": failed}
        document |= {"left_out": [str(case) for case in left_out], "first": first, "rows": rows}
        publish(machine.RESULTS, machine.folder(facts) / FILES[options.gallery], document, 4, "layer")
    wrong = [fault for row in rows for fault in row["faults"] if fault.startswith("ours")]
    return int(bool(wrong) or any(failure.startswith("ours") for failure in failed))


def _measure(
    chosen: list[Case], threads: list[int], quick: bool, no_compiler: str, deadline: float
) -> tuple[list[dict], list[str], list[Case]]:
    """Return the rows, what failed, and the cases that no time was left for; print each row as it comes."""
    print(HEADER)
    rows: list[dict] = []
    failed, left_out = [], []
    for case in bar(chosen, "cases"):
        if time.monotonic() > deadline:
            left_out.append(case)
            continue
        compiles = not (quick or no_compiler) and case.dtype == "float32"
        contestants = CONTESTANTS if compiles else [who for who in CONTESTANTS if who != "compile"]
        try:
            for row in measure(case, contestants, threads):
                failed += [f"{case}: {text}" for text in row["failed"]]
                rows.append(row)
                write(line(row, no_compiler))
        except Exception as error:  # such as no memory left: what else was measured must not be lost
            failed.append(f"ours or eager, {case}: {one_line(error)}")
            write(failed[-1])
    return rows, failed, left_out


def _first_calls(names: list[str], compiles: bool) -> tuple[list[dict], list[str]]:
    """Return what first calls cost, and what failed."""
    calls, failed = [], []
    for name, who in bar(contestants_of(names, compiles), "first calls"):
        try:
            calls.append({"layer": name, "who": who, **in_processes(name, who)})
        except RuntimeError as error:
            failed.append(f"{who}, {error}")
    return calls, failed


def _why_nothing_compiles() -> str:
    """Return why torch.compile cannot compile for the CPU, such as that there is no C++ compiler; nothing if it can."""
    try:
        torch.compile(lambda x: x + 1)(torch.ones(8))
    except Exception as error:
        return one_line(error)
    return ""


def _print_summary(rows: list[dict], first: list[dict], judged: list[str], lost: list[str]) -> None:
    """Print the tables, what is met and missed, and in which rows ours is slower."""
    for lines in ([*means(rows)], [*costs(rows, first)]):
        print("", table(lines), sep="\n") if lines else None
    print("", *judged, sep="\n")
    print("", f"slower than another in {len(lost)} of {len(rows)} rows:", *lost, sep="\n")


def _size(text: str) -> tuple[int, int]:
    """Return the rows and their length that ``MxN`` says."""
    rows, _, columns = text.partition("x")
    return int(rows), int(columns)
