"""``python -m benchmarks``: time each call of the tests' rows on the CPU, ours against torch's, in one run.

Rounds of the two alternate and medians are compared, so that what else the machine does hits both. Prints microseconds
of a call and ratios, ours to torch's: below 1 ours is faster.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys

import torch
from tqdm import tqdm

import customops
from tests.cases import CALLS

from . import host
from .host import Phases
from .timing import rounds

NAMES = {"forward": "forward", "both": "forward + backward"}


def compare(functions, repeats: int) -> list[float]:
    """The median time of a call of each function in microseconds, their rounds alternating."""
    return [statistics.median(times) for times in zip(*rounds(functions, repeats, 15), strict=True)]


def main(argv=None) -> int:
    """Print a table; the geometric mean of each column at its foot."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--numel", type=int, nargs="+", default=[8, 1 << 20], help="elements in each input")
    parser.add_argument("--ops", nargs="+", help="operators, by default all")
    parser.add_argument("--host", action="store_true", help=host.__doc__.partition(": ")[2].partition(".")[0])
    options = parser.parse_args(argv)
    if options.host:
        return host.main(options.ops)
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, one thread, float32\n")
    columns = [(n, phase) for n in options.numel for phase in ("forward", "both")]
    print(f"{'us of ours / ratio':<20}" + "".join(f"{f'{NAMES[phase]}, {n}':>30}" for n, phase in columns))
    ratios: dict = {column: [] for column in columns}
    for row, call in tqdm([c for c in CALLS if not options.ops or c[0].name in options.ops], file=sys.stderr):
        cells = []
        for n, phase in columns:
            xs = [row.draw((2, n // 8, 2, 2), torch.float32, seed=i) for i in range(call.arity)]
            pair = [getattr(Phases.of(library, call, xs), phase) for library in (customops, torch)]
            ours, theirs = compare(pair, repeats=max(1, 200 // max(1, n // 1000)))
            ratios[n, phase].append(ours / theirs)
            cells.append(f"{ours:>20.1f}{ours / theirs:>10.2f}")
        tqdm.write(f"{call.name:<20}" + "".join(cells))
    print(f"{'geometric mean':<20}" + "".join(f"{statistics.geometric_mean(ratios[c]):>30.2f}" for c in columns))
    return 0


if __name__ == "__main__":
    sys.exit(main())
