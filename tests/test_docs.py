"""The examples in docstrings and in the README run, and print what they say."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

from customops import binary, dispatch, reductions, unary

from .conftest import DEVICE

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="the examples compute on the CPU")


@pytest.mark.parametrize("module", [unary, binary, reductions, dispatch], ids=lambda m: m.__name__)
def test_docstring_examples_print_what_they_say(module):
    failed, tried = doctest.testmod(module)
    assert tried > 0
    assert failed == 0


def test_readme_example_runs():
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(code[1], names)
    assert names["x"].grad.shape == names["x"].shape
