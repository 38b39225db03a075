"""docs/matrix.md says what its rows recorded, of the versions that pyproject.toml and constraints.txt name."""

from __future__ import annotations

import copy
import re
import tomllib

import pytest
import torch

from . import bits, matrix
from .conftest import MODE
from .publish import ROOT, pinned

pytestmark = pytest.mark.skipif(MODE != "formulas", reason="the same whatever computes: seen once")

RESULTS = matrix.load()
REPORT = """\
<testsuites><testsuite time="7.9">
<testcase classname="tests.test_a" name="passes[1]" />
<testcase classname="tests.test_a" name="passes[2]"><properties /></testcase>
<testcase classname="tests.test_a" name="fails"><failure message="assert 1 == 2" /></testcase>
<testcase classname="tests.test_a" name="has no fixture"><error message="none" /></testcase>
<testcase classname="tests.test_a" name="is skipped"><skipped message="no GPU" /></testcase>
</testsuite></testsuites>
"""


def test_the_page_is_what_its_json_gives():
    assert (ROOT / "docs/matrix.md").read_text() == matrix.page(RESULTS), "python -m tests.matrix --rows"


def test_every_row_ran_and_nothing_failed():
    assert [*RESULTS] == [*matrix.ROWS]
    for name, row in RESULTS.items():
        assert row["modes"]
        assert all(record["passed"] >= 20 for record in row["modes"].values())
        assert [*matrix.failures(row)] == [], name


@pytest.mark.parametrize("name", RESULTS)
def test_rows_ran_with_their_versions(name):
    assert {package: RESULTS[name][package].partition("+")[0] for package in matrix.PACKAGES} == matrix.ROWS[name]


def test_the_oldest_versions_are_the_least_that_the_project_takes():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    least = dict(re.match(r"(\w+)>=([\d.]+)", line).groups() for line in project["dependencies"])
    oldest = matrix.ROWS["oldest"]
    assert least.keys() == oldest.keys()
    assert all(f"{oldest[name]}.".startswith(f"{version}.") for name, version in least.items())
    assert [f"{name}=={version}" for name, version in matrix.ROWS["pinned"].items()] == pinned(*matrix.PACKAGES)


def test_a_report_is_counted_and_a_failure_shows(tmp_path):
    (tmp_path / "report.xml").write_text(REPORT)
    counts = matrix.counts(tmp_path / "report.xml")
    assert counts == {
        "seconds": 8,
        "passed": 2,
        "failed": ["tests/test_a.py::fails", "tests/test_a.py::has no fixture"],
        "skipped": {"no GPU": 1},
    }
    results = {name: copy.deepcopy(RESULTS["newest"]) for name in ("pinned", "newest")}
    results["newest"]["modes"]["kernels"] |= counts
    page = matrix.page(results)
    assert "| **✗ 2** |" in page
    assert "- newest: kernels: tests/test_a.py::fails" in page
    assert "- newest, kernels: 1, no GPU" in page
    assert "What failed: nothing" not in page


def test_what_ran_again_is_counted_once():
    before = {"part": 8, "again": 0, "seconds": 60, "passed": 5, "failed": ["a", "b"], "skipped": {"no GPU": 1}}
    again = {"seconds": 2, "passed": 1, "failed": ["b"], "skipped": {}}
    after = matrix.joined(before, again)
    assert after == {**before, "again": 2, "seconds": 62, "passed": 6, "failed": ["b"]}


DIFFERENT = {
    "by a rounding": ([1.0 + 2**-23, 0.0, float("nan")], "1 of 3 elements, up to 1 ulp"),
    "in the sign of zero": ([1.0, -0.0, float("nan")], "1 of 3 elements, up to 0 ulp"),
    "in what is finite": ([1.0, 0.0, 2.0], "1 of 3 elements, 1 of them far apart, or inf or nan in one"),
    "in their number": ([1.0, 0.0], "[3] of float32, then [2] of float32"),
}


@pytest.mark.parametrize("how", DIFFERENT)
def test_results_that_differ_are_told_and_equal_ones_are_not(how):
    x = torch.tensor([1.0, 0.0, float("nan")])
    values, told = DIFFERENT[how]
    assert [*bits.differences({"exp": x}, {"exp": x.clone()})] == []
    assert [*bits.differences({"exp": x}, {"exp": torch.tensor(values)})] == [("exp", told)]
