"""``python -m benchmarks --compiled``: layers against Liger-Kernel's, from compiled code alone.

Both libraries are called in ``customops.dry_run``, which compiles each kernel for a GPU and launches none. What is
counted are launches, bytes, machine instructions, registers and spills; times follow from these by the model of
``customops.tools`` and are estimates. A run of everything is written to ``benchmarks/results/compiled/``.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.util import find_spec

import torch

from .. import machine
from ..progress import bar, write
from ..report import publish
from ..text import table
from . import liger, ours
from .counts import counts
from .layers import LAYERS, LENGTHS, ROWS, Case, cases
from .lines import HEADER, line, means
from .verdicts import short, verdicts

FOLDER = "compiled"  # among the results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that are this comparison's alone."""
    parser.add_argument(
        "--compiled", action="store_true", help="against Liger-Kernel, from compiled code; no time is taken"
    )
    parser.add_argument(
        "--target", choices=liger.TARGETS, default="cuda:90", help="of --compiled: the GPU, by default %(default)s"
    )
    parser.add_argument(
        "--rows", nargs="+", type=int, metavar="N", help=f"of --compiled: elements of a row, by default {LENGTHS}"
    )
    parser.add_argument(
        "--jobs", type=int, default=2, help="of --compiled: processes that compile, by default %(default)s"
    )


def run(options: argparse.Namespace) -> int:
    """Compare, print, and write a complete run; return 1 where a layer of ours failed."""
    if not find_spec("liger_kernel"):
        raise SystemExit('Liger-Kernel is what ours is compared with: pip install "customops[peers]"')
    unknown = set(options.ops or ()) - set(LAYERS)
    if unknown:
        raise SystemExit(f"--ops: expected some of {', '.join(LAYERS)}, got {', '.join(unknown)}")
    print(HEADER)
    chosen = [*cases(options.quick, options.ops, options.rows)]
    rows, failed = _compare(chosen, options.target, options.jobs)
    judged, missed = ([*verdicts(rows)], [*short(rows)]) if rows else ([], [])
    if rows:
        print("", table(means(rows)), "", *judged, "", f"{len(missed)} short of a target:", *missed, sep="\n")
    print(*failed, sep="\n")
    if not (options.quick or options.ops or options.rows):
        facts = {
            "target": options.target,
            **machine.versions("torch", "triton", "liger-kernel", "customops"),
            **machine.this_run(),
        }
        document = {"where": facts, "verdicts": judged, "short": missed, "failed": failed, "rows": rows}
        path = machine.RESULTS / FOLDER / f"{machine.slug(options.target)}.json"
        publish(machine.RESULTS, path, document, 6, "layer")
    return int(any(failure.startswith("ours") for failure in failed))


def _compare(chosen: list[Case], target: str, jobs: int) -> tuple[list[dict], list[str]]:
    """Return a row for each pass of each case, in order, and what failed; print each as it comes."""
    found: dict[Case, tuple[list[dict], list[str]]] = {}
    for case, result in bar(_results(chosen, target, jobs), "layers", len(chosen)):
        found[case] = result
        rows, failed = result
        for text in [*map(line, rows), *failed]:
            write(text)
    results = [found[case] for case in chosen]
    return [row for rows, _ in results for row in rows], [text for _, failed in results for text in failed]


def _results(chosen: list[Case], target: str, jobs: int) -> Iterator[tuple[Case, tuple[list[dict], list[str]]]]:
    """Yield each case and what :func:`compare` returns for it, as they end."""
    if jobs == 1 or len(chosen) == 1:
        yield from ((case, compare(case, target)) for case in chosen)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(compare, case, target): case for case in chosen}
        yield from ((futures[future], future.result()) for future in as_completed(futures))


def compare(case: Case, target: str) -> tuple[list[dict], list[str]]:
    """Return a row for each pass, with the figures of both libraries, and what failed; then there is no row."""
    layer, dtype = LAYERS[case.layer], getattr(torch, case.dtype)
    figures: dict[str, dict[str, dict]] = {}
    failed = []
    for who, library in (("ours", ours), ("liger", liger)):
        try:
            passes = layer.passes(library.launches(layer, dtype, case.length, target))
            figures[who] = {name: counts(launched, ROWS * case.length, target) for name, launched in passes.items()}
        except Exception as error:  # such as more registers than there are: the other rows must not be lost
            failed.append(f"{who}, {case}: {type(error).__name__}: {' '.join(str(error).split())}")
    if failed:
        return [], failed
    names = figures["ours"]
    return [{**case._asdict(), "pass": name} | {who: figures[who][name] for who in figures} for name in names], []
