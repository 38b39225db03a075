"""What a run keeps of its tests, for docs/compatibility.md, is what became of each, and the same each time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import MODE
from .marks import formulas_only
from .recorder import Check, differences, operator_of

pytestmark = formulas_only

pytest_plugins = "pytester"
TESTS = Path(__file__).parent
once = pytest.mark.skipif(MODE != "formulas", reason="the same whatever computes: seen once")
WHERE = {"mode": "formulas", "torch": "2", "Triton": "3", "Python": "3.11", "device": "a CPU"}


def document(results, **changes):
    """Return what a run would have written."""
    return {"where": WHERE, "ran": {"cases": 4, "passed": 3}, "skipped": {}, "results": results} | changes


@pytest.mark.parametrize(
    ("case", "operator"),
    [("log-log(x)-vmap", "log"), ("pow(x, -1)-((3,),)-1", "pow"), ("add_", "add"), ("exp-float32", "exp")]
    + [("sum(x), float32, row", "sum"), ("sum written to", None), ("grad-vjp", None), ("", None)],
)
def test_operator_is_the_one_an_id_names(case, operator):
    assert operator_of(case) == operator


def test_part_of_an_id_is_whole_or_before_a_comma():
    check = Check("test_a.py", "test_b", "vmap")
    assert all(map(check.has, ("log-vmap", "vmap-log", "log-vmap, any axis-1")))
    assert not any(map(check.has, ("log-vmap by chunks", "log-no vmap", "log")))


CASES = """
import pytest
from tests.compare import outcome

def works(): pass
def fails(): raise ValueError

@pytest.mark.parametrize("way", ["plain", "odd"])
@pytest.mark.parametrize("name, calls", [("log", [works]), ("exp", [works, fails]), ("mul_", [fails, fails])])
def test_outcome(name, calls, way):
    for call in calls:
        outcome(call)

@pytest.mark.parametrize("name", ["log"])
def test_failure(name):
    assert False

@pytest.fixture
def broken():
    raise ValueError

def test_together(broken): pass

@pytest.mark.skip(reason="no compiler")
def test_skipped(): pass

@pytest.mark.xfail
def test_expected(): assert False

@pytest.mark.parametrize("name", ["log"])
def test_unnamed(name): pass
"""


CONFTEST = """
from tests.recorder import Check, Recorder

def pytest_configure(config):
    file, both = "test_it.py", ("add", "sub")
    checks = [Check(file, "test_outcome"), Check(file, "test_outcome", "odd"), Check(file, "test_failure")]
    checks += [Check(file, name, together=both) for name in ("test_together", "test_skipped", "test_expected")]
    checks.append(Check(file, "test_outcome", "even"))
    config.pluginmanager.register(Recorder({str(c): c for c in checks}, {"mode": "formulas"}, "it.json", True))
"""


@pytest.mark.parametrize("processes", [0, 2])
def test_recorder_counts_what_became_of_each_case(processes, pytester, monkeypatch):
    pytest.importorskip("xdist", reason="it makes the processes")
    monkeypatch.setenv("PYTHONPATH", str(TESTS.parent))
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_it=CASES)
    result = pytester.runpytest_inprocess("-n", str(processes))
    result.stdout.fnmatch_lines(["*test_it.py::test_outcome?even? has no case: tests/features.py"])
    found = json.loads(Path("it.json").read_text())
    became = {"exp": "partly", "log": "passed", "mul": "refused"}
    assert found["results"] == {
        "test_it.py::test_expected": {"together": {"cases": 1, "xfailed": 1}},
        "test_it.py::test_failure": {"log": {"cases": 1, "failed": 1}},
        "test_it.py::test_outcome": {name: {"cases": 2, what: 2} for name, what in became.items()},
        "test_it.py::test_outcome[odd]": {name: {"cases": 1, what: 1} for name, what in became.items()},
        "test_it.py::test_skipped": {"together": {"cases": 1, "skipped": 1}},
        "test_it.py::test_together": {"together": {"cases": 1, "failed": 1}},
    }
    assert found["ran"] == {"cases": 10, **dict.fromkeys(("passed", "partly", "refused", "failed"), 2)} | {
        "skipped": 1,
        "xfailed": 1,
    }
    assert found["skipped"] == {"test_it.py::test_skipped: no compiler": 1}
    assert [*found["results"]] == sorted(found["results"])
    assert all([*counts] == sorted(counts) for counts in found["results"].values())


@once
def test_torch_stands_for_ours_in_every_process():
    code = (
        "import tests.conftest, customops as ops, torch; assert (ops.exp, ops.pow_) == (torch.exp, torch.Tensor.pow_)"
    )
    environment = os.environ | {"CUSTOMOPS_TEST_LIBRARY": "torch"}
    subprocess.run([sys.executable, "-c", code], cwd=TESTS.parent, env=environment, check=True)


def test_results_of_the_same_versions_must_be_those_written():
    written = document({"a": {"log": {"cases": 2, "passed": 2}}, "b": {"log": {"cases": 1, "skipped": 1}}})
    found = document({"a": {"log": {"cases": 2, "passed": 1, "refused": 1}}, "b": {"log": {"cases": 1, "passed": 1}}})
    assert differences(written, written) == []
    assert [line.split(":")[0] for line in differences(written, found)] == ["a, log"], "what is skipped may differ"
    assert differences(document({}), written)
    assert differences(written, found | {"where": WHERE | {"torch": "3"}}) == []
