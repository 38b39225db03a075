"""The list of faults fits the product, and what is kept of ``make mutants`` is of this list."""

from __future__ import annotations

import json
import sys
from collections import Counter

import pytest

from . import mutants
from .conftest import MODE
from .faults import FAULTS, FORMULAS
from .mutants import RESULTS, ROOT, HarnessError, plant, totals

pytestmark = pytest.mark.skipif(MODE != "formulas", reason="the same whatever computes: seen once")

AREAS = {
    *("formulas", "kernel formulas", "layout", "tiling", "launch", "masks", "offsets", "promotion", "saving"),
    *("in place", "dispatch", "autocast", "shards", "axes", "derivation", "partition", "schedule", "cache keys"),
    *("reductions", "rows", "explain", "dry run", "interpreter", "blocks"),
}


def test_each_fault_replaces_what_stands_once_in_its_file():
    found = {fault.name: (ROOT / fault.path).read_text().count(fault.old) for fault in FAULTS}
    assert {name: n for name, n in found.items() if n != 1} == {}
    assert all(fault.old != fault.new for fault in FAULTS)


def test_faults_are_many_in_every_area_and_have_names_of_their_own():
    areas = Counter(fault.area for fault in FAULTS)
    assert areas.keys() == AREAS
    assert areas.total() >= 60
    assert min(areas.values()) >= 3
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_faults_name_tests_that_there_are():
    assert all(fault.by_formulas or fault.by_kernels for fault in FAULTS)
    named = {test for fault in FAULTS for test in (*fault.by_formulas, *fault.by_kernels)}
    for file, _, function in (test.partition("::") for test in named):
        assert f"def {function}" in (ROOT / "tests" / file).read_text()


def test_what_is_kept_of_runs_is_of_these_faults_and_those_that_survive_have_a_reason():
    kept, reasons = json.loads(RESULTS.read_text()), {fault.name: fault.survives for fault in FAULTS}
    assert kept.keys() <= reasons.keys()
    assert [name for name, by in kept.items() if not by.get("new", True) and not reasons[name]] == []


def test_what_the_suite_caught_before_it_took_samples_it_catches_still():
    """``old`` is the column of the suite that ran all cases, ``new`` that of today's."""
    kept = json.loads(RESULTS.read_text())
    lost = [name for name, by in kept.items() if by.get("old") and not by.get("new", True)]
    assert lost == []


def test_page_has_the_totals():
    assert totals(json.loads(RESULTS.read_text())) in (ROOT / "docs" / "testing.md").read_text().replace("\n", " ")


@pytest.mark.parametrize("change", [{"old": "no such text"}, {"old": "return"}, {"new": "    return g / x\n"}])
def test_a_fault_that_cannot_be_planted_is_an_error(change, tmp_path):
    fault = FAULTS[0]._replace(path=FORMULAS, old="    return g / x\n", new="    return g\n")
    (tmp_path / FORMULAS).parent.mkdir()
    text = (ROOT / FORMULAS).read_text()
    (tmp_path / FORMULAS).write_text(text)
    with pytest.raises(HarnessError, match=fault.name):
        plant(fault._replace(**change), tmp_path)
    plant(fault, tmp_path)
    assert (tmp_path / FORMULAS).read_text() != text


def test_a_command_past_the_limit_is_ended(monkeypatch, tmp_path):
    monkeypatch.setattr(mutants, "LIMIT", 0.2)
    assert mutants._run([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path, {}) == (None, "")
