"""The examples in docstrings and in the README run, and print what they say; imports go where CONTRIBUTING says."""

from __future__ import annotations

import ast
import doctest
import re
from importlib import import_module
from pathlib import Path

import pytest

from .conftest import DEVICE, INTERPRETED
from .marks import formulas_only

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="the examples compute on the CPU")


@pytest.mark.parametrize("module", ["unary", "binary", "reductions", "dispatch", "fuse", "dry_run"])
def test_docstring_examples_print_what_they_say(module):
    if module == "dry_run" and INTERPRETED:
        pytest.skip("the interpreter's functions do not compile")
    failed, tried = doctest.testmod(import_module(f"customops.{module}"))
    assert tried > 0
    assert failed == 0


def test_readme_examples_run(capsys):
    codes = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(codes) == 2
    names: dict = {}
    for code in codes[:1] if INTERPRETED else codes:  # the second compiles
        exec(code, names)
    assert names["x"].grad.shape == names["x"].shape
    assert INTERPRETED or capsys.readouterr().out.startswith("mul(x, y) (")


@formulas_only
def test_imports_point_down_the_table():
    rows = re.findall(r"^\| (`customops/.*?) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    place = {name: row for row, cell in enumerate(rows) for name in re.findall(r"(\w+)\.py", cell)}
    files = {file.stem: file for file in (ROOT / "customops").glob("[a-z]*.py")}
    assert place.keys() >= files.keys()
    for name, file in files.items():
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                below = [node.module] if node.module else [alias.name for alias in node.names]
                assert all(place[other] >= place[name] for other in below if other in place), (name, below)
