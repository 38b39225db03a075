"""Keep what became of the tests behind each feature, for docs/compatibility.md: `pytest --record FILE`, `--check`."""

from __future__ import annotations

import json
import platform
import re
from collections import Counter
from importlib import metadata, util
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from . import compare
from .cases import ROWS

OPERATORS = tuple(row.name for row in ROWS)
RESULTS = Path(__file__).parent.parent / "docs" / "compatibility"


class Check(NamedTuple):
    """The cases of a test, or those with ``part`` in their id, alone or before a comma.

    A case is about the operator that its id names first, and about those in ``together`` where it runs them all.
    """

    file: str  # the name of the file, as test_gpu.py
    test: str  # the name of the function
    part: str = ""
    together: tuple[str, ...] = ()
    ours: bool = False  # whether it is about what torch's own operators have otherwise or not at all

    def __str__(self):
        return f"{self.file}::{self.test}" + (f"[{self.part}]" if self.part else "")

    def has(self, case: str) -> bool:
        """Return whether the case of this id is one of them."""
        return not self.part or re.search(rf"(^|-){re.escape(self.part)}(, [^-]*)?($|-)", case) is not None


def operator_of(case: str) -> str | None:
    """Return the operator that an id names first, by itself, as a call or as an in-place variant."""
    found = re.search(rf"(?:^|-)({'|'.join(OPERATORS)})_?(?=$|-|\(|,)", case)
    return found[1] if found else None


class Recorder:
    """A pytest plugin that counts, by check and operator, what became of the cases; under xdist too.

    It counts ``passed``, ``partly`` where torch refused some of what was tried and ours refused the same, ``refused``
    where both refused all of it, ``failed``, ``xfailed``, ``skipped``; ``cases`` is how many there are, of which a run
    may take a sample.
    """

    def __init__(self, checks: dict[str, Check], where: dict, record: str | None, check: bool):
        self.checks: dict[tuple[str, str], list[Check]] = {}
        for c in checks.values():
            if not (c.ours and where["mode"] == "torch"):
                self.checks.setdefault((c.file, c.test), []).append(c)
        self.where, self.record, self.check = where, record, check
        self.counts: dict[str, dict[str, Counter]] = {}
        self.skipped: Counter[str] = Counter()
        self.ran: Counter[str] = Counter()
        self.files: set[str] = set()  # of tests that were collected
        self.stale: list[str] = []

    def places(self, item) -> list[tuple[str, str]]:
        """Return where the results of a case are counted: the checks, each with an operator."""
        case = item.callspec.id if hasattr(item, "callspec") else ""
        found = [c for c in self.checks.get((item.path.name, item.originalname), ()) if c.has(case)]
        named = [(str(c), "together" if c.together else operator_of(case)) for c in found]
        return [(check, operator) for check, operator in named if operator]

    def add(self, places, what: str, n: int = 1) -> None:
        """Count ``n`` more in these places."""
        for check, operator in places:
            self.counts.setdefault(check, {}).setdefault(operator, Counter())[what] += n

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config, items):
        """Count the cases before a sample is taken; where results are recorded, run only these cases."""
        self.files = {item.path.name for item in items}
        placed = [item for item in items if self.places(item)]
        for item in placed:
            self.add(self.places(item), "cases")
        self.ran["cases"] = len(placed)
        if self.record:
            config.hook.pytest_deselected(items=[item for item in items if not self.places(item)])
            items[:] = placed

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self):
        """Count anew what compared calls do."""
        compare.outcomes.clear()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item):
        """Give the report, which xdist sends on, what is needed to count it."""
        report = yield
        raised = compare.outcomes["raised"] + sum(n for name, n in item.user_properties if name.startswith("refused "))
        report.places = self.places(item)
        report.verdict = "passed" if not raised else "partly" if compare.outcomes["returned"] else "refused"
        return report

    def pytest_runtest_logreport(self, report):
        """Count a case once: when called, or where it failed or was skipped before or after."""
        places = getattr(report, "places", ())  # none in the report of a worker that died
        if not places or (report.when != "call" and report.passed):
            return
        what = report.outcome
        if report.skipped:
            what = "xfailed" if hasattr(report, "wasxfail") else "skipped"
        elif report.passed:
            what = report.verdict
        if what == "skipped":
            self.skipped[
                f"{re.split(r'[@[]', report.nodeid.split('/')[-1])[0]}: {report.longrepr[2].removeprefix('Skipped: ')}"
            ] += 1
        self.ran[what] += 1
        self.add(places, what)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        """Take the numbers of cases from an xdist worker, which alone collects."""
        collected = getattr(node, "workeroutput", {}).get("collected")
        if collected and not self.ran["cases"]:
            self.ran["cases"], places, files = collected
            self.files = set(files)
            for check, operator, n in places:
                self.add([(check, operator)], "cases", n)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session):
        """Write what was counted, or compare it with what is written."""
        if hasattr(session.config, "workerinput"):
            cases = [(c, op, n["cases"]) for c, counts in self.counts.items() for op, n in counts.items()]
            session.config.workeroutput["collected"] = (self.ran["cases"], cases, sorted(self.files))
            return
        if self.record:
            Path(self.record).write_text(as_json(self.document()))
        if self.check:
            written = RESULTS / f"{self.where['mode']}.json"
            self.stale = differences(json.loads(written.read_text()), self.document()) if written.exists() else []
            self.stale += self.without_cases()
            session.exitstatus = pytest.ExitCode.TESTS_FAILED if self.stale else session.exitstatus

    def pytest_terminal_summary(self, terminalreporter):
        """Say what is not as it is written."""
        for line in self.stale:
            terminalreporter.write_line(f"FAILED: docs/compatibility: {line}", red=True)

    def without_cases(self) -> list[str]:
        """Return the checks that name no case: a test, or a part of its ids, has another name by now.

        By kernels some have none for another reason: there are no kernels of complex numbers.
        """
        if self.where["mode"] == "kernels":
            return []
        named = [str(check) for checks in self.checks.values() for check in checks if check.file in self.files]
        return [f"{check} has no case: tests/features.py" for check in named if check not in self.counts]

    def document(self) -> dict:
        """Return all that was counted; the same run gives the same document."""
        results = {
            check: {operator: dict(sorted(n.items())) for operator, n in sorted(counts.items())}
            for check, counts in sorted(self.counts.items())
        }
        return {"where": self.where, "ran": dict(self.ran), "skipped": dict(self.skipped), "results": results}


def where(mode: str, library: str) -> dict[str, str]:
    """Return what computes, in which versions, on what device."""
    gpu = mode == "gpu"
    return {
        "mode": "torch" if library == "torch" else mode,
        "torch": torch.__version__.split("+")[0],
        "Triton": metadata.version("triton") if util.find_spec("triton") else "none",
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "device": torch.cuda.get_device_name() if gpu else f"{platform.machine()} CPU",
    }


def as_json(document: dict) -> str:
    """Return a document as JSON with a line for each check."""
    lines = [f"  {json.dumps(check)}: {json.dumps(counts)}" for check, counts in document["results"].items()]
    head = [f' "{key}": {json.dumps(dict(sorted(document[key].items())))},' for key in ("where", "ran", "skipped")]
    return "\n".join(["{", *head, ' "results": {', ",\n".join(lines), " }", "}", ""])


def differences(written: dict, found: dict) -> list[str]:
    """Return where results differ from those written by the same versions on the same device; skips may differ."""
    if written["where"] != found["where"]:
        return []
    lines = []
    for check in written["results"] | found["results"]:
        before, after = (document["results"].get(check, {}) for document in (written, found))
        for operator in before | after:
            then, now = before.get(operator, {}), after.get(operator, {})
            if now != then and not ({"skipped", "failed"} & {*now, *then}):
                lines.append(f"{check}, {operator}: {now}, written {then}: make compatibility")
    return lines
