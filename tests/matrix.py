"""``make matrix``: the tests on the oldest supported torch and Triton, on the pinned and on the newest, and its page.

Each row is an environment in build/matrix, in which pip installs the row's versions and all else as pinned. A part of
the sample of the tests, with its part of every test, runs there by formulas, by kernels in the interpreter and by
compiled code. docs/matrix.json keeps the counts, docs/matrix.md is made of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from . import bits
from .compatibility import bullets, table
from .publish import ROOT, install, new_environment, pinned

RESULTS = ROOT / "docs" / "matrix.json"
FOLDER = ROOT / "build" / "matrix"
PACKAGES = "torch", "triton", "numpy"
ROWS = {  # the oldest is what pyproject.toml begins with, the newest what the index of packages had on 2026-11-30
    "oldest": {"torch": "2.11.0", "triton": "3.6.0", "numpy": "1.26.4"},
    "pinned": dict(line.split("==") for line in pinned(*PACKAGES)),
    "newest": {"torch": "2.15.0", "triton": "3.9.0", "numpy": "2.4.6"},
}


class Mode(NamedTuple):
    """A way to compute, with which a row runs the tests."""

    about: str  # what computes
    environment: dict[str, str]  # the variables that choose it
    parts: int = 1  # into how many times more parts its tests are cut


MODES = {
    "formulas": Mode("torch formulas", {}),
    "kernels": Mode("kernels, interpreted", {"TRITON_INTERPRET": "1", "CUSTOMOPS_BACKEND": "triton"}),
    "compiled": Mode(
        "kernels, compiled for sm_90", {"CUSTOMOPS_TEST_COMPILED": "cuda:90", "CUSTOMOPS_BACKEND": "triton"}, 4
    ),
}
PAGE = """\
# Versions that the tests ran with

`make matrix` makes an environment for each row, runs a part of the tests there and writes this page. It calls
`python -m tests.matrix`, which takes `--parts 1` for the whole sample of `make test`, and `--rows oldest` for one row.
*Oldest* are the versions that `pyproject.toml` begins with, *pinned* those of `constraints.txt`, with which `make test`
runs, and *newest* those that the index of packages had when this was recorded. What differs for users from version to
version is in [Versions](versions.md). *Run again*, with `--failed`, is what failed at first and was then mended."""
BITS = """\
{count} of {compared} results differ. A result is the value or a gradient of one call of `tests/cases.py` in one dtype,
by torch's operator or by ours on a CPU, at drawn points or at special numbers (0, -0, 1, -1, ±inf, nan, ±1e30). By
whose operator and which call; [the record](matrix.json) says how far."""
SKIPPED = "Skipped in one of these rows and not with the pinned versions:"


def main(argv: list[str] | None = None) -> int:
    """Run the rows and write the page; return 1 where a test failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=[*ROWS], help="none: write the page alone")
    parser.add_argument("--modes", nargs="*", choices=MODES, default=[*MODES], help="the others stay as recorded")
    parser.add_argument("--parts", type=int, default=8, help="into how many parts the tests are cut, of which one runs")
    parser.add_argument("--failed", action="store_true", help="run again what failed, after a mend, and nothing else")
    parser.add_argument("--workers", default="2", help="processes that tests run in")
    parser.add_argument("--keep", action="store_true", help="take an environment that is there as it is")
    options = parser.parse_args(argv)
    for name in options.rows:
        record = run(name, options, load().get(name, {}).get("modes", {}))
        modes = load().get(name, {}).get("modes", {}) | record["modes"]  # another process may have run others
        write({**load(), name: {**record, "modes": {mode: modes[mode] for mode in MODES if mode in modes}}})
    results = load()
    RESULTS.with_suffix(".md").write_text(page(results))
    failed = [f"{name}: {test}" for name in options.rows for test in failures(results[name])]
    print("\n".join(failed) or "no test failed")
    return bool(failed)


def write(results: dict[str, dict]) -> None:
    """Record ``results``, compared with one another."""
    compare(results)
    RESULTS.write_text(json.dumps({row: results[row] for row in ROWS if row in results}, indent=1) + "\n")


def load() -> dict[str, dict]:
    """Return what is recorded of each row."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def run(name: str, options: argparse.Namespace, before: dict[str, dict]) -> dict:
    """Return the record of a row: its versions, and the counts of tests by mode; ``before`` is what was recorded."""
    folder = FOLDER / name
    python = folder / "bin" / "python"
    if not (options.keep and python.exists()):
        prepare(folder, ROWS[name])
    if not options.failed:
        subprocess.run([python, "-m", "tests.bits", folder / "bits.pt"], cwd=ROOT, check=True)
    modes = {}
    for mode in options.modes:
        if not options.failed:
            part = options.parts * MODES[mode].parts
            tests = ["tests", "--part", f"0/{part}"] if part > 1 else ["tests"]
            modes[mode] = {"part": part, "again": 0, **run_mode(python, folder, mode, tests, options.workers)}
        elif failed := before.get(mode, {}).get("failed"):
            modes[mode] = joined(before[mode], run_mode(python, folder, mode, failed, options.workers))
    return {"Python": _python_of(python), **_versions_of(python), "modes": modes}


def compare(results: dict[str, dict]) -> None:
    """Add to the record of each row which bits differ from those of the pinned one, where both have saved theirs."""
    files = {name: FOLDER / name / "bits.pt" for name in results}
    for name in results.keys() - {"pinned"}:
        if files[name].exists() and files.get("pinned", FOLDER).is_file():
            before, after = bits.load(files["pinned"]), bits.load(files[name])
            results[name]["bits"] = {
                "compared": len(before.keys() & after.keys()),
                "different": dict(sorted(bits.differences(before, after))),
            }


def prepare(folder: Path, versions: dict[str, str]) -> None:
    """Install ``versions`` and all that tests need in a new environment."""
    python = new_environment(folder)
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    others = [line for line in lines if line.partition("==")[0] not in versions]
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join([*others, *(f"{name}=={version}" for name, version in versions.items())]) + "\n")
    install(python, "-c", constraints, *versions)
    install(python, "-c", constraints, "-e", f"{ROOT}[dev]")


def run_mode(python: Path, folder: Path, mode: str, tests: list[str], workers: str) -> dict:
    """Run ``tests`` in an environment, with their output in a file beside it, and return what became of them."""
    report, log = folder / f"{mode}.xml", folder / f"{mode}.log"
    report.unlink(missing_ok=True)
    command = [python, "-m", "pytest", "-q", "-n", workers, "--dist", "loadgroup", f"--junit-xml={report}", *tests]
    command += ["--ignore", "tests/test_matrix.py"]  # it reads what is not yet written
    print(f"{folder.name}, {mode}: {log.relative_to(ROOT)}", flush=True)
    with log.open("w") as output:
        chosen = os.environ | MODES[mode].environment
        status = subprocess.run(command, cwd=ROOT, env=chosen, stdout=output, stderr=output, check=False).returncode
    if not report.exists():
        raise RuntimeError(f"the tests ended with status {status} before they wrote their report: see {log}")
    return counts(report)


def counts(report: Path) -> dict:
    """Return what a report of pytest counts: seconds, what passed, was skipped, by reasons, and failed, by names."""
    passed, failed = 0, set()
    skipped: Counter[str] = Counter()
    suites = ElementTree.parse(report).iter("testsuite")
    for case in ElementTree.parse(report).iter("testcase"):
        outcome = {element.tag: element for element in case}
        if {"failure", "error"} & outcome.keys():
            failed.add(f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}")
        elif "skipped" in outcome:
            skipped[outcome["skipped"].get("message") or ""] += 1
        else:
            passed += 1
    return {
        "seconds": round(sum(float(suite.get("time", 0)) for suite in suites)),
        "passed": passed,
        "failed": sorted(failed),
        "skipped": dict(sorted(skipped.items())),
    }


def joined(before: dict, again: dict) -> dict:
    """Return the record of a mode of which all that failed ran again."""
    added = {name: before[name] + again[name] for name in ("seconds", "passed")}
    skipped = dict(sorted((Counter(before["skipped"]) + Counter(again["skipped"])).items()))
    count = before["again"] + len(before["failed"])
    return {**before, **added, "again": count, "failed": again["failed"], "skipped": skipped}


def failures(row: dict) -> Iterator[str]:
    """Yield mode and name of each test that failed in a row."""
    for mode, record in row["modes"].items():
        yield from (f"{mode}: {name}" for name in record["failed"])


def page(results: dict[str, dict]) -> str:
    """Return the text of docs/matrix.md."""
    rows = {name: results[name] for name in ROWS if name in results}
    lines = [line for name, row in rows.items() for line in lines_of(name, row)]
    failed = [f"{name}: {test}" for name, row in rows.items() for test in failures(row)]
    extra = [line for name, row in rows.items() for line in other_skips(row, rows.get("pinned", row), name)]
    blocks = [PAGE, table(lines), "What failed: nothing." if not failed else "What failed:", bullets(failed)]
    blocks += [SKIPPED, bullets(extra)] if extra else []
    blocks += [text for name, row in rows.items() if "bits" in row for text in bits_of(name, row)]
    return "\n\n".join(filter(None, blocks)) + "\n"


def lines_of(name: str, row: dict) -> Iterator[dict[str, str]]:
    """Yield the lines of a row's table, one for each mode."""
    for mode, record in row["modes"].items():
        failed = len(record["failed"])
        yield {
            "row": name,
            **{package: row[package] for package in (*PACKAGES, "Python")},
            "what computes": MODES[mode].about,
            "tests": f"1 in {record['part']} of the sample" if record["part"] > 1 else "the sample",
            "passed": f"{record['passed']:,}",
            "failed": f"**✗ {failed}**" if failed else "0",
            "run again": str(record["again"]),
            "skipped": f"{sum(record['skipped'].values()):,}",
            "minutes": f"{record['seconds'] / 60:.1f}",
        }


def other_skips(row: dict, pinned_row: dict, name: str) -> Iterator[str]:
    """Yield how often a row skipped for a reason that the pinned one does not have."""
    for mode, record in row["modes"].items():
        for reason, n in record["skipped"].items():
            if reason not in pinned_row["modes"].get(mode, {}).get("skipped", {}):
                yield f"{name}, {mode}: {n}, {' '.join(reason.split())}"


def bits_of(name: str, row: dict) -> Iterator[str]:
    """Yield the paragraph and the list of a row's results that have other bits than with the pinned versions."""
    different = row["bits"]["different"]
    yield f"## Other bits in {name} than in pinned\n\n" + BITS.format(count=len(different), **row["bits"])
    calls = Counter(result.rsplit(", ", 3)[0] for result in different)
    yield bullets(f"{call}: {n} results" for call, n in calls.items())


def _versions_of(python: Path) -> dict[str, str]:
    ask = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    return dict(zip(PACKAGES, _output(python, "-c", ask, *PACKAGES).split(), strict=True))


def _python_of(python: Path) -> str:
    return _output(python, "-V").removeprefix("Python ")


def _output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
