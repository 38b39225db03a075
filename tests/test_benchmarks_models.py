"""What is measured of models, and the tables of docs/models.md."""

from __future__ import annotations

import pytest

from benchmarks.documents import RESULTS
from benchmarks.models import page
from benchmarks.models.families import FAMILIES

from .marks import formulas_only

pytestmark = formulas_only
measured = pytest.mark.skipif(not [*RESULTS.glob("*/models.json")], reason="nothing has been measured yet")


@measured
def test_the_page_has_the_tables_that_were_measured():
    text = page.PAGE.read_text()
    assert page.written(text, page.newest()) == text, "run: python -m benchmarks.models --page"


@measured
def test_other_figures_are_another_page():
    text, document = page.PAGE.read_text(), page.newest()
    for part in ("launches", "steps"):
        name = next(iter(document[part]))
        row = document[part][name]
        other = document | {part: document[part] | {name: row | {"difference": 0.5}}}
        changed = page.written(text, other)
        assert changed.count("5e-01") == 1
        assert page.written(changed, document) == text


@measured
def test_every_family_that_needs_no_other_torch_was_measured():
    document, names = page.newest(), [name for name, family in FAMILIES.items() if family.library != "timm"]
    assert [*document["launches"]] == [*document["steps"]] == names


def test_a_step_is_measured_before_and_after():
    pytest.importorskip("transformers", reason="it has the model")
    from benchmarks.models.steps import timed  # noqa: PLC0415 - it needs transformers

    row = timed("GPT-2", seconds=0, rows=1)
    assert row["difference"] < 2e-5
    assert row["rounds"] == 5
    assert row["peak"]["ours"] < row["peak"]["torch"]
    assert min(*row["milliseconds"].values(), row["ratio"]) > 0
