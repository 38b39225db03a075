"""A model that never repeats a shape: few kernels serve all lengths, and a shape costs little time and memory."""

from __future__ import annotations

import pytest
import torch

import customops
from benchmarks import growth
from customops.compiler import graph
from customops.compiler.gradient import differentiate
from customops.fusion import build

from .conftest import INTERPRETED, KERNELS

why = "the interpreter's functions do not compile" if INTERPRETED else "what a GPU compiles, a dry run compiles too"
if KERNELS:
    pytest.skip(why, allow_module_level=True)
pytest.importorskip("triton", reason="without Triton there are no kernels")


@pytest.fixture(autouse=True)
def _fresh_memory_is_nan():
    """Leave memory as it is, where other tests fill it: nothing is computed here."""


@pytest.mark.sample(formulas="rows")
@pytest.mark.parametrize("name", growth.OPERATORS)
@pytest.mark.parametrize("rows", [64, 512, 1000])
def test_few_kernels_serve_all_lengths(name, rows, full, replan):
    for dtype in (torch.float32, torch.bfloat16) if full else (torch.bfloat16,):
        found = growth.growth(name, dtype, rows, growth.lengths(1000 if full else 150))
        assert 0 < found.forward <= growth.KERNELS
        assert found.backward <= growth.KERNELS
        longer = growth.growth(name, dtype, rows, growth.lengths(1000 if full else 150, 8192))
        assert longer.forward <= growth.KERNELS + 2
        assert longer.backward <= 20  # other kernels walk what registers do not hold


@pytest.mark.parametrize("name", ["mul by a row", "RMSNorm", "softmax"])
def test_few_kernels_serve_all_numbers_of_rows(name, replan):
    function, vectors = growth.OPERATORS[name]
    with growth._counting() as compiled, customops.dry_run(), torch.no_grad():
        for rows in growth.lengths(150):
            function(*(torch.empty(shape) for shape in ((rows, 512), *[(512,)] * vectors)))
    assert 0 < len(set(compiled)) <= growth.KERNELS


@pytest.mark.sample(formulas="once")
@pytest.mark.parametrize("name", growth.OPERATORS)
def test_a_new_shape_keeps_little_memory(name, replan):
    """It keeps three launches at most, with their arguments, and what looks them up: it was 15 to 60 kB."""
    assert growth.growth(name, torch.bfloat16, 64, growth.lengths(100), traced=True).bytes < 16 << 10


def test_another_shape_derives_nothing(monkeypatch, replan):
    """A graph and its derivative are those of an earlier shape, but counts of elements are those of this shape."""

    @customops.fuse
    def center(x, y):
        return x - customops.mean(x, 0, keepdim=True) - customops.mean(x * y, 1, keepdim=True)

    def counts(rows, columns):
        back, _ = differentiate(center.program(torch.ones(rows, columns), torch.ones(columns)), (0, 1), (0,))
        numbers = [i for i, value in enumerate(back.values) if isinstance(value, graph.Constant) and value.counted]
        return {back.number(i) for i in numbers}

    assert counts(5, 5) == {5}
    monkeypatch.setattr(build, "_Builder", None)
    assert counts(3, 7) == {3, 7}
    with pytest.raises(RuntimeError, match="size"):
        center.program(torch.ones(3, 7), torch.ones(6))
