"""``python -m benchmarks.versions OTHER``: what a call costs the host on this Python's torch, against another Python's.

Both import this checkout. Their processes take turns on the CPU at 8 elements, call by call, and count their own
processor's time, so that what else the machine does meets both alike. A ratio is the median of those of two times in
one round, of ours and of torch's own operator: what only autograd's engine costs is in both.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

import customops
from customops.tools.timing import in_turns
from tests.cases import CALLS

from .host import PHASES, REPEATS, phase_of
from .text import judged

LIBRARIES = {"ours": customops, "eager": torch}
MOST = 1.1  # the largest ratio that a call of ours may have
SERVE = "--serve"  # the argument of a process that measures what its standard input names


def main(argv=None) -> int:
    """Print a line for each phase of each call, their means, and the target; return 1 where that is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.versions", description=__doc__)
    parser.add_argument("other", help="a Python with another torch")
    parser.add_argument("--ops", nargs="+", help="operators, by default all")
    options = parser.parse_args(argv)
    with _Process(sys.executable) as mine, _Process(options.other) as other:
        print(f"{'microseconds, ours, torch':<30}{mine.version:>14}{other.version:>14}{'ratio':>7}{'eager':>7}")
        results = list(_measure(mine, other, options.ops))
    for phase in PHASES:
        means = [statistics.geometric_mean(r[name] for r in results if r["phase"] == phase) for name in LIBRARIES]
        print("{}, geometric mean of ratios: {:.2f}, of eager {:.2f}".format(phase, *means))
    worst = max(results, key=lambda result: result["ours"])
    met = worst["ours"] <= MOST
    print(judged(f"none above {MOST}: {worst['ours']:.2f} of {worst['call']}, {worst['phase']}", met))
    return int(not met)


def _measure(mine: _Process, other: _Process, ops: list[str] | None) -> Iterator[dict]:
    """Yield the ratios of ours and of eager, for each phase of each call, and print them as they come."""
    for call, phase in [(call, phase) for row, call in CALLS if not ops or row.name in ops for phase in PHASES]:
        ratios, medians = {}, {}
        for library in LIBRARIES:
            line = f"{library}\t{call.name}\t{phase}"
            times = in_turns({"mine": partial(mine, line), "other": partial(other, line)})
            ratios[library] = statistics.median(a / b for a, b in zip(*times.values(), strict=True))
            medians[library] = [1e3 * statistics.median(samples) for samples in times.values()]
        figures = f"{ratios['ours']:>7.2f}{ratios['eager']:>7.2f}"
        print("{:<30}{:>14.1f}{:>14.1f}".format(f"{call}, {phase}", *medians["ours"]) + figures, flush=True)
        yield {"call": call.name, "phase": phase, **ratios}


class _Process:
    """A Python process that measures: called with library, call and phase in a line, it returns the milliseconds."""

    def __init__(self, python: str):
        """Start the process."""
        command = [python, "-m", __spec__.name, SERVE]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.version = self._answer()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.communicate()

    def __call__(self, line: str) -> float:
        print(line, file=self.process.stdin, flush=True)
        return float(self._answer())

    def _answer(self) -> str:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise RuntimeError(f"{self.process.args[0]} ended with status {self.process.wait()}: see above")
        return line.strip()


def serve() -> int:
    """Answer each line of standard input, until it ends."""
    torch.set_num_threads(1)
    print(torch.__version__, flush=True)
    rows, runs = {call.name: (row, call) for row, call in CALLS}, {}
    for line in sys.stdin:
        if line not in runs:
            library, name, phase = line.rstrip("\n").split("\t")
            row, call = rows[name]
            xs = [row.draw((2, 1, 2, 2), torch.float32, seed=i) for i in range(call.arity)]
            runs[line] = phase_of(LIBRARIES[library], call, xs, phase)
            _milliseconds(runs[line])
        print(_milliseconds(runs[line]), flush=True)
    return 0


def _milliseconds(function: Callable) -> float:
    start = time.process_time()
    for _ in range(REPEATS):
        function()
    return (time.process_time() - start) / REPEATS * 1e3


if __name__ == "__main__":
    sys.exit(serve() if SERVE in sys.argv else main())
