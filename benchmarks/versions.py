"""``python -m benchmarks.versions OTHER``: what a call costs the host on this Python's torch, against another Python's.

Both import this checkout. Their processes take turns on the CPU at 8 elements, call by call, so that what else the
machine does meets both alike. A ratio is the median of those of two times in one round; 1 is returned where one is
above ``MOST``.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import torch

import customops
from tests.cases import CALLS

from .host import BUDGET, REPEATS, phase_of
from .targets import judged
from .timing import in_turns, prepared

MOST = 1.1
SERVE = "--serve"  # what a process is told that is to measure what its standard input names


def main(argv=None) -> int:
    """Print a row for each phase of each call, and whether the target is met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.versions", description=__doc__)
    parser.add_argument("other", help="a Python with another torch")
    parser.add_argument("--ops", nargs="+", help="operators, by default all")
    options = parser.parse_args(argv)
    with _Process(sys.executable) as mine, _Process(options.other) as other:
        print(f"{'microseconds, torch':<30}{mine.version:>14}{other.version:>14}{'ratio':>7}")
        ratios = {}
        for name, phase, times in _measure(mine, other, options.ops):
            own, others = times["mine"], times["other"]
            ratios[name, phase] = statistics.median(a / b for a, b in zip(own, others, strict=True))
            medians = 1e3 * statistics.median(own), 1e3 * statistics.median(others)
            print("{:<30}{:>14.1f}{:>14.1f}{:>7.2f}".format(f"{name}, {phase}", *medians, ratios[name, phase]))
    worst = max(ratios, key=lambda key: ratios[key])
    print(judged(f"none above {MOST}: {ratios[worst]:.2f} of {', '.join(worst)}", ratios[worst] <= MOST))
    return int(ratios[worst] > MOST)


def _measure(mine: _Process, other: _Process, ops: list[str] | None) -> Iterator[tuple[str, str, dict]]:
    for row, call in CALLS:
        for phase in BUDGET:
            if not ops or row.name in ops:
                runs = {"mine": partial(mine, call.name, phase), "other": partial(other, call.name, phase)}
                yield call.name, phase, in_turns(runs)


class _Process:
    """A Python that measures; called with the name of a call and a phase, it returns the milliseconds of one."""

    def __init__(self, python: str):
        """Start it."""
        command = [python, "-m", __spec__.name, SERVE]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.version = self._line()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.communicate()

    def __call__(self, name: str, phase: str) -> float:
        print(name, phase, sep="\t", file=self.process.stdin, flush=True)
        return float(self._line())

    def _line(self) -> str:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise RuntimeError(f"{self.process.args[0]} ended with status {self.process.wait()}: see above")
        return line.strip()


def serve() -> None:
    """Answer each call and phase that standard input names with its milliseconds, until it ends."""
    torch.set_num_threads(1)
    print(torch.__version__, flush=True)
    rows, runs = {call.name: (row, call) for row, call in CALLS}, {}
    for line in sys.stdin:
        if line not in runs:
            name, phase = line.rstrip("\n").split("\t")
            row, call = rows[name]
            xs = [row.draw((2, 1, 2, 2), torch.float32, seed=i) for i in range(call.arity)]
            runs[line] = prepared([phase_of(customops, call, xs, phase)], repeats=REPEATS)
        print(runs[line](), flush=True)


if __name__ == "__main__":
    sys.exit(serve() if SERVE in sys.argv else main())
