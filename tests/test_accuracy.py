"""Errors in ulp are found and written down as they are, on numbers whose errors are known."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

import customops
from benchmarks import machine

from . import accuracy, compiled_accuracy
from .cases import CALLS, REDUCTIONS, ids
from .compare import cotangent
from .conftest import DEVICE, INTERPRETED
from .marks import formulas_only

pytestmark = formulas_only

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
CALL = {call.name: (row, call) for row, call in CALLS}
INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
def test_spacing_is_the_gap_to_the_next_number(dtype):
    info = torch.finfo(dtype)
    x = torch.tensor([0, info.tiny * info.eps, info.tiny / 2, info.tiny, 1, 1.5, 3, info.max / 4], dtype=dtype)
    gaps = torch.nextafter(x, torch.full_like(x, INF)).double() - x.double()
    assert torch.equal(accuracy.spacing(x.double(), dtype), gaps)
    assert torch.equal(accuracy.spacing(-x.double(), dtype), gaps)


def test_errors_count_in_ulp_and_nonfinite_ones_apart():
    got = torch.tensor([1 + 2**-22, 0.0, INF, NAN, INF, 1.0, -0.0])
    want = torch.tensor([1.0, 2**-149, 1e300, NAN, 1.0, NAN, 0.0], dtype=torch.float64)
    error = accuracy.largest_error(got, want, got.double() - want)
    assert error == accuracy.Error(points=7, ulp=2.0, wrong=2, misrounded=4)
    assert accuracy.largest_error(got[:0], want[:0], want[:0]) == accuracy.Error(0, 0.0, 0, 0)


def test_ordinary_numbers_are_far_from_the_ends_of_the_range():
    x = torch.tensor([0.0, 1.0, -1e30, 1e38, 1e-30, 1e-36, 1e-40, INF, NAN], dtype=torch.float64)
    assert accuracy.is_ordinary(x, torch.float32).tolist() == [True] * 3 + [False, True] + [False] * 4
    half = torch.tensor([65504.0, 1e5, 2.0**-14, 2.0**-15], dtype=torch.float64)
    assert accuracy.is_ordinary(half, torch.float16).tolist() == [True, False, True, False]


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
def test_random_bits_are_finite_and_of_every_magnitude(dtype):
    x = accuracy.random_bits(2**14, dtype, seed=0)
    info = torch.finfo(dtype)
    assert bool(x.isfinite().all())
    assert x.abs().max() > info.max / 4
    assert bool((x < 0).any())
    assert (x.abs() < info.tiny).any() or dtype == torch.float64  # 1 in 2,000 would be subnormal
    assert len(x.unique()) > 2**16 - 2**12 if dtype == torch.float16 else len(x.unique()) > 2**13


def measured(name, library, dtype=torch.float32):
    return accuracy.measure(*CALL[name], dtype, "cpu", {"ours": library, "torch": torch})


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
def test_torch_is_no_worse_than_itself(dtype):
    if dtype == torch.float64:
        pytest.importorskip("mpmath", reason="float64 is held to 200 bits")
    errors = measured("pow(x, y)", torch, dtype)
    assert {(error["of"], error["range"]) for error in errors} >= {(of, "ordinary") for of in ("value", "d/dx", "d/dy")}
    assert all(error["ours"] == error["torch"] for error in errors)
    assert not any(map(accuracy.is_worse, errors))
    assert errors[0]["torch"]["ulp"] < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=ids)
def test_value_off_by_1e_5_or_infinite_once_is_worse(dtype):
    if dtype == torch.float64:
        pytest.importorskip("mpmath", reason="float64 is held to 200 bits")
    off = measured("exp(x)", SimpleNamespace(exp=lambda x: torch.exp(x) * (1 + 1e-5)), dtype)
    assert [error["of"] for error in off if accuracy.is_worse(error, 10)][:1] == ["value"]
    once = measured("relu(x)", SimpleNamespace(relu=lambda x: torch.relu(x).where(x != x.max(), INF)), dtype)
    assert any(error["ours"]["wrong"] == 1 and accuracy.is_worse(error, 10) for error in once)


def test_derivative_is_held_to_its_value_at_what_was_saved():
    """Here z rounds to 1, which makes 1 - z wrong in every digit: a fault of the value, not of the derivative."""
    x = torch.tensor([20.0, -3.0])
    z = torch.sigmoid(x)
    (_, of_value), (want, off) = accuracy.in_float64(CALL["sigmoid(x)"][1].function, [x], x * 0 + 1, [z, z * (1 - z)])
    assert of_value.abs().max() < 1e-8
    assert want[0] == 0
    assert off.abs().max() < 1e-8


@pytest.mark.parametrize(("row", "call"), [c for c in CALLS if c[0].name not in REDUCTIONS], ids=ids)
def test_exact_results_agree_with_float64(row, call):
    pytest.importorskip("mpmath", reason="float64 is held to 200 bits")
    if not accuracy.has_exact(row, call):
        pytest.skip("what is not a term of its own tensors is held to float64")
    xs = [row.draw((20,), seed=i).requires_grad_() for i in range(call.arity)]
    z = call.function(torch, *xs)
    g = cotangent(z)
    got = [z.detach(), *torch.autograd.grad(z, xs, g)]
    xs = [x.detach() for x in xs]
    exactly = accuracy.in_mpmath(row, call, xs, g, got)
    for rough, exact in zip(accuracy.in_float64(call.function, xs, g, got), exactly, strict=True):
        torch.testing.assert_close(rough, exact, rtol=1e-14, atol=1e-14)


@pytest.mark.sample(formulas="once", kernels="operator")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=ids)
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_half_types_are_about_as_near_as_torchs_at_every_number(row, call, dtype, tally):
    """Kernels are; formulas are torch's own. The interpreter's subnormal numbers of bfloat16 have errors of its own."""
    for error in accuracy.measure(row, call, dtype, DEVICE, {"ours": customops, "torch": torch}, 1 << 12):
        if INTERPRETED and (dtype, error["range"]) == (torch.bfloat16, "ends"):
            continue
        error["torch"]["ulp"] = max(error["torch"]["ulp"], 0.5)
        assert not accuracy.is_worse(error, 0.01), error
        tally("accuracies")


def test_slug_keeps_letters_and_digits():
    assert machine.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert machine.slug(" NVIDIA GeForce RTX 4090 (Laptop) ") == "nvidia-geforce-rtx-4090-laptop"


def _error(operator, ours, theirs, wrong=0):
    mine, other = accuracy.Error(10, ours, wrong, 0)._asdict(), accuracy.Error(10, theirs, 0, 0)._asdict()
    return {"operator": operator, "of": "value", "dtype": "float32", "range": "ends", "ours": mine, "torch": other}


def test_table_marks_what_is_worse_and_is_written_whole(monkeypatch, tmp_path):
    where = {"device": "Some GPU", "commit": "abc"}
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    monkeypatch.setattr(machine, "where", lambda _device: where)
    measured = [_error("log(x)", 0.5, 2.25), _error("exp(x)", 1.0, 0.5), _error("pow(x, 2)", 0.5, 0.5, wrong=3)]
    path = accuracy.write(measured)
    assert path == tmp_path / "some-gpu" / "accuracy.md"
    lines = path.read_text().splitlines()
    assert "- device: Some GPU" in lines
    assert lines[-3:] == [
        "| `exp(x)` | value | float32 | ends | 10 | 1 * | 0.5 | 0 | 0 |",
        "| `log(x)` | value | float32 | ends | 10 | 0.5 | 2.25 | 0 | 0 |",
        "| `pow(x, 2)` | value | float32 | ends | 10 | 0.5 * | 0.5 | 3 | 0 |",
    ]
    assert json.loads(path.with_suffix(".json").read_text())["errors"][1]["torch"]["ulp"] == 2.25
    assert "3 largest errors, 2 of ours above torch's, written to" in accuracy.summary(measured, path)
    assert "not written" in accuracy.summary(measured, None)


def test_page_of_compiled_code_is_what_was_measured():
    errors = [*compiled_accuracy.recorded().values()]
    assert compiled_accuracy.not_recorded() == [], f"run: {compiled_accuracy.command()}"
    assert {m["operator"] for m in errors} == {*CALL}, "run: make accuracy"
    assert compiled_accuracy.PAGE.read_text() == compiled_accuracy.page(errors), "run: make accuracy"


def test_half_types_are_rounded_once_by_compiled_code_wherever_float32_is_in_its_range():
    """As measured: nothing that approximate instructions are off by is left in a half type."""
    errors = compiled_accuracy.recorded().values()
    halves = [m for m in errors if m["dtype"] != "float32" and m["range"] == "ordinary"]
    assert len(halves) > 2 * len(CALLS)
    assert max(m["ours"]["ulp"] for m in halves) < 0.501


def test_half_types_differ_from_the_nearest_number_about_as_rarely_as_by_exact_functions():
    """As measured: what approximate instructions add is within 3 results in 10,000."""
    halves = [m for m in compiled_accuracy.recorded().values() if m["dtype"] != "float32"]
    assert any(m["ours"]["misrounded"] != m["exact"]["misrounded"] for m in halves)
    for m in halves:
        usual = max(m[whose]["misrounded"] for whose in ("exact", "2 ulp of float32"))
        assert m["ours"]["misrounded"] <= usual + 3e-4 * m["ours"]["points"] + 1, m
