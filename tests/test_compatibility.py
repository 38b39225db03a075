"""docs/compatibility.md says what the results say, of tests that are there; the results are those of a run."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from . import compatibility, recorder
from .cases import ROWS
from .compatibility import OPERATORS
from .features import CHECKS, FEATURES, INAPPLICABLE, LIMITED
from .marks import formulas_only
from .recorder import RESULTS
from .test_recorder import document

pytestmark = formulas_only

TESTS = Path(__file__).parent
DOCUMENTS = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}
NAMES = [name for features in FEATURES.values() for name in features]


@pytest.fixture
def results(tmp_path):
    """Write results; return the folder that they are in."""

    def write(**documents):
        for name, written in documents.items():
            (tmp_path / f"{name}.json").write_text(recorder.as_json(written))
        return tmp_path

    return write


def page(results=RESULTS):
    """Return all pages, one after the other."""
    return "\n".join(compatibility.pages(results).values())


def line_of(pages, feature):
    """Return the cells of a feature, by operator."""
    (line,) = (line for line in pages.splitlines() if line.startswith(f"| {feature} |"))
    return dict(zip(OPERATORS, (cell.split("]")[0].lstrip("[") for cell in line[:-2].split(" | ")[2:]), strict=True))


def test_committed_pages_are_what_their_json_gives():
    committed = {path: path.read_text(encoding="utf-8") for path in (*RESULTS.glob("*.md"), RESULTS.with_suffix(".md"))}
    assert committed == compatibility.pages(), "python -m tests.compatibility writes them"


def test_the_summary_is_one_screen():
    assert len(compatibility.pages()[RESULTS.with_suffix(".md")].splitlines()) <= 40


def test_names_are_unique_and_known():
    assert len({*NAMES}) == len({*map(compatibility.slug, NAMES)}) == len(NAMES)
    assert {*INAPPLICABLE, *LIMITED} <= {*NAMES}
    assert {"formulas", "kernels", "torch"} <= {*DOCUMENTS}


def test_tests_that_are_named_exist():
    defined = {}
    for check in CHECKS.values():
        if check.file not in defined:
            nodes = ast.parse((TESTS / check.file).read_text()).body
            defined[check.file] = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
        assert check.test in defined[check.file], check


def test_results_are_of_tests_that_are_named():
    for name, written in DOCUMENTS.items():
        assert {*written["results"]} <= {*CHECKS}, f"{name}.json: make compatibility"


VMAP = "test_func.py::test_transform_matches_torch[vmap]"


def test_cells_say_what_became_of_the_cases(results):
    counts = {"log": {"passed": 1, "partly": 2, "refused": 3}, "exp": {"passed": 4, "failed": 2}, "add": {"skipped": 1}}
    counts = {operator: {"cases": 9} | became for operator, became in counts.items()} | {"sub": {"cases": 9}}
    pages = page(results(formulas=document({VMAP: counts}), kernels=document({})))
    cells = line_of(pages, "vmap")
    assert cells["log"] == "✓ 1 ◐ 2 ⊘ 3<br>not run<br>not run"
    assert [cells[operator].split("<br>")[0] for operator in ("exp", "add", "sub", "mul")] == [
        "**✗ 2 of 6**",
        "skipped",
        "not drawn",
        "no test",
    ]


def test_every_failure_is_in_its_cell_and_in_the_list(results):
    """Each check fails once, on one operator or on all in it."""
    failed = {str(c): {"together" if c.together else "mul": {"cases": 3, "failed": 3}} for c in CHECKS.values()}
    pages = page(results(gpu=document(failed)))
    for name, checks in ((name, checks) for section in FEATURES.values() for name, checks in section.items()):
        cells = line_of(pages, name + (" [†](../limits.md)" if name in LIMITED else ""))
        of_check = {operator: [c for c in checks if operator in (c.together or ("mul",))] for operator in OPERATORS}
        for operator, shown in of_check.items():
            n = 3 * len(shown)
            assert (f"**✗ {n} of {n}**" in cells[operator]) == bool(n), name
    for check in CHECKS.values():
        on = "all operators in it" if check.together else "mul"
        assert f"- gpu: `{check}`, {on}: **✗ 3 of 3**" in pages


def test_what_has_no_test_or_needs_a_gpu_says_so(results):
    pages = page(results(formulas=document({})))
    assert {*line_of(pages, "float8 [†](../limits.md)").values()} == {"no test"}
    assert {*line_of(pages, "CUDA graphs").values()} == {"not run: needs a GPU"}
    binary = [row.name for row in ROWS if row.calls[0].arity == 2]
    asked = {operator: "not run: needs a GPU" if operator in binary else "n/a" for operator in OPERATORS}
    assert line_of(pages, "operands on two devices") == asked
    assert line_of(pages, "`out=`")["relu"] == "n/a"
    assert line_of(pages, "uint16 [†](../limits.md)")["log"] == "no test"
    assert line_of(pages, "large, by blocks")["add"] == "not run<br>not run<br>n/a"
    assert "| gpu | ours, by Triton kernels on a GPU |" in pages
    gpu = page(results(gpu=document({"test_gpu_graphs.py::test_graph_replays_with_new_values": {"log": {}}})))
    assert line_of(gpu, "CUDA graphs")["log"] == "no test"


def test_links_lead_to_files_that_are_there():
    pages = page()
    links = [line.split(": ", 1) for line in pages.splitlines() if line.startswith("[") and "]: " in line]
    assert len(links) == len([name for features in FEATURES.values() for name, checks in features.items() if checks])
    for label, target in links:
        assert (RESULTS / target.split()[0]).exists(), target
        assert f"]{label}" in pages, f"no cell links to {label}"
