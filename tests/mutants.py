"""Plant faults in the product, one at a time, and tell which tests of ``make test`` catch them: ``make mutants``.

Every fault of ``faults.py`` is planted in a fresh copy of the checkout, where pytest runs the tests that touch it until
one fails. In the end all tests that failed have to pass in a copy without a fault.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import NamedTuple

from .faults import FAULTS, Fault

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "mutants.json"
MODES = {"formulas": {}, "kernels": {"TRITON_INTERPRET": "1", "CUSTOMOPS_BACKEND": "triton"}}  # as in the Makefile
LIMIT = 1800  # seconds that the tests of one fault may take in one mode; to take longer is to be caught
PASSED, FAILED = 0, 1  # pytest's exit statuses; any other means that it did not run the tests
NOT_COPIED = (".*", "__pycache__", "build", "dist", "*.egg-info")
WHERE = """\
from importlib.machinery import PathFinder
from importlib.util import find_spec
package = find_spec("customops")
print(package.origin, PathFinder.find_spec("customops.triton_kernels", package.submodule_search_locations).origin)
"""  # without importing them, which takes as long as many a test


class HarnessError(Exception):
    """A fault was not planted, or its tests did not run: nothing is known of it."""


class Outcome(NamedTuple):
    """What became of one fault."""

    fault: Fault
    caught_by: str | None  # the mode and the first test that failed in it, or "timeout"; None where all passed
    error: str  # why nothing is known, of a fault that was not examined
    seconds: float


def plant(fault: Fault, root: Path) -> None:
    """Replace the text of ``fault`` in the files below ``root``."""
    path = root / fault.path
    text = path.read_text()
    if (n := text.count(fault.old)) != 1:
        raise HarnessError(f"{fault.name}: {fault.path} has the text to replace {n} times, not once: {fault.old!r}")
    if fault.old == fault.new:
        raise HarnessError(f"{fault.name}: the fault changes nothing")
    path.write_text(text.replace(fault.old, fault.new))


def run_tests(tests: Iterable[str], mode: str, fault: Fault | None = None) -> str | None:
    """Return the first of ``tests`` that fails in a fresh copy with ``fault``, or "timeout"; None if none does."""
    with TemporaryDirectory(prefix="mutant-") as folder:
        root = Path(folder) / "checkout"
        shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(*NOT_COPIED))
        (root / "customops" / "triton_kernels").symlink_to(root / "triton_kernels")  # as it is installed
        if fault:
            plant(fault, root)
        caches = {name: f"{folder}/{name}" for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")}
        env = {**os.environ, **MODES[mode], **caches, "PYTHONPATH": str(root)}
        imported = subprocess.run(
            [sys.executable, "-c", WHERE], cwd=root, env=env, capture_output=True, text=True, check=False
        )
        files = imported.stdout.split()
        if len(files) != 2 or not all(Path(file).is_relative_to(root) for file in files):
            raise HarnessError(f"the copy cannot be imported: {imported.stdout}{imported.stderr[-2000:]}")
        arguments = [f"tests/{test}" for test in tests]
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider", *arguments]
        status, output = _run(command, root, env)
    if status is None:
        return "timeout"
    if status not in (PASSED, FAILED):
        raise HarnessError(f"pytest exits with {status} for {' '.join(arguments)}:\n{output[-3000:]}")
    failed = re.search(r"^(?:FAILED|ERROR) tests/(.*?)(?: - |$)", output, re.MULTILINE)
    if status == FAILED and not failed:
        raise HarnessError(f"pytest fails and names no test:\n{output[-3000:]}")
    return failed[1] if status == FAILED and failed else None


def _run(command: Sequence[str], root: Path, env: dict[str, str]) -> tuple[int | None, str]:
    """Return the exit status, None past the limit, and the output; end what the command has started."""
    process = subprocess.Popen(
        command, cwd=root, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=LIMIT)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None, ""


def tests_of(fault: Fault) -> dict[str, tuple[str, ...]]:
    """Return the tests of ``fault`` in each mode."""
    return {"formulas": fault.by_formulas, "kernels": fault.by_kernels}


def examine(fault: Fault) -> Outcome:
    """Plant ``fault`` and run its tests until one fails: those of a name, then whole files, which pytest would mix."""
    start, caught_by, error = monotonic(), None, ""
    try:
        for named, (mode, every) in product((True, False), tests_of(fault).items()):
            tests = [test for test in every if ("::" in test) == named]
            if tests and (failed := run_tests(tests, mode, fault)):
                caught_by = f"{mode}: {failed}"
                break
    except HarnessError as why:
        error = str(why)
    return Outcome(fault, caught_by, error, monotonic() - start)


def check_unmutated(caught_by: Iterable[str]) -> None:
    """Run the tests that caught faults on the code as it is; raise HarnessError where one fails there too."""
    for mode in MODES:
        tests = dict.fromkeys(test for where, _, test in (by.partition(": ") for by in caught_by) if where == mode)
        tests.pop("timeout", None)
        if tests and (failed := run_tests(tests, mode)):
            raise HarnessError(f"without a fault, {failed} fails by {mode} too")


def line(outcome: Outcome) -> str:
    """Return a line of the table."""
    fault, caught_by, error, seconds = outcome
    verdict = caught_by or (f"ERROR: {error}" if error else f"SURVIVES {fault.survives}")
    return f"{fault.area:15} {fault.name:58} {seconds:4.0f} s  {verdict}"


def read(path: Path) -> dict[str, dict[str, str | None]]:
    """Return the outcomes at ``path``: by fault and column, what caught it."""
    return json.loads(path.read_text()) if path.exists() else {}


def record(outcome: Outcome, path: Path, column: str) -> None:
    """Write to ``path`` which test caught a fault; other columns, and other faults, stay as they are."""
    known = read(path)
    known.setdefault(outcome.fault.name, {})[column] = outcome.caught_by
    names = [fault.name for fault in FAULTS if fault.name in known]
    path.write_text(json.dumps({name: known[name] for name in names}, indent=1) + "\n")


def totals(known: dict[str, dict[str, str | None]]) -> str:
    """Return in a sentence how many faults there are, and how many of those examined were caught, by column."""
    columns = {name: [by[name] for by in known.values() if name in by] for name in ("old", "new")}
    caught = {name: f"{sum(map(bool, column))} of {len(column)}" for name, column in columns.items()}
    areas = len({fault.area for fault in FAULTS})
    return (
        f"{len(FAULTS)} faults in {areas} areas; of those examined, caught: old {caught['old']}, new {caught['new']}."
    )


def main() -> int:
    """Print the table; return 1 if a fault survives for no known reason or could not be examined."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", action="append", help="faults whose name or area is this; may be repeated")
    parser.add_argument("--list", action="store_true", help="list the faults and run nothing")
    parser.add_argument("--json", type=Path, help=f"where to write the outcome, as {RESULTS.name} has it")
    parser.add_argument("--column", default="new", help="what this run is called there; default: %(default)s")
    parser.add_argument("--missing", action="store_true", help="faults that the JSON has no outcome of in that column")
    parser.add_argument("-j", type=int, default=1, help="how many faults to examine at once; default: %(default)s")
    args = parser.parse_args()
    faults = [fault for fault in FAULTS if not args.only or {fault.name, fault.area} & set(args.only)]
    if args.missing:
        known = read(args.json or RESULTS)
        faults = [fault for fault in faults if args.column not in known.get(fault.name, {})]
    if args.list:
        print(*(f"{f.area:15} {f.name:58} {f.effect}" for f in faults), sep="\n")
        return 0
    outcomes: list[Outcome] = []
    with ThreadPoolExecutor(args.j) as pool:
        for outcome in pool.map(examine, faults):
            print(line(outcome), flush=True)
            outcomes.append(outcome)
            if args.json and not outcome.error:
                record(outcome, args.json, args.column)
    caught = [outcome.caught_by for outcome in outcomes if outcome.caught_by]
    check_unmutated(caught)
    print(f"{len(caught)} of {len(outcomes)} faults are caught")
    print(f"{RESULTS.name}: {totals(read(RESULTS))}")
    return int(any(not o.caught_by and not o.fault.survives for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
