"""Half types have formulas of approximate instructions, whose errors the rounding to the half type hides."""

from __future__ import annotations

import re

import pytest
import torch

import customops

from .cases import functions_of, ids
from .conftest import INTERPRETED
from .marks import formulas_only

if INTERPRETED:
    pytest.skip("compiles, which the interpreter cannot", allow_module_level=True)
pytest.importorskip("triton", reason="compiles kernels")
import triton.language as tl
from customops.triton_kernels import approximate, formulas

pytestmark = formulas_only
NAMES = ("exp", "exp2", "expm1", "reciprocal", "sigmoid", "softplus", "tanh", "sqrt", "rsqrt")
MISROUNDED = {torch.bfloat16: 4, torch.float16: 12}  # at most so many of 65,536 results, of each operator


@customops.fuse
def all_of_them(x):
    return tuple(getattr(customops, name)(x) for name in NAMES)


@pytest.mark.parametrize("dtype", MISROUNDED, ids=ids)
def test_all_numbers_are_rounded_to_nearest_but_a_few_and_ends_are_exact(dtype, tally):
    """More is in docs/accuracy.md: gradients, and how many there would be by exact functions."""
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    with customops.dry_run("cuda:90", execute=True):
        results = all_of_them(x)
    for name, got in zip(NAMES, results, strict=True):
        exact = getattr(functions_of(torch, name), name)(x.double()).to(dtype)
        same = (got.view(torch.int16) == exact.view(torch.int16)) | (got.isnan() & exact.isnan())
        ends = ~exact.isfinite() | (exact.abs() < torch.finfo(dtype).tiny)
        assert bool(same[ends].all()), f"{name} of {x[ends & ~same]}"
        assert int((~same).sum()) <= MISROUNDED[dtype], name
        tally("halves", len(x))


def test_only_half_types_on_nvidia_have_formulas_of_their_own():
    with customops.dry_run("cuda:90"):
        assert approximate.find("exp", tl.bfloat16) is approximate.find("exp", tl.float16) is approximate.exp
        assert approximate.find("exp", tl.float32) is approximate.find("exp", tl.float64) is formulas.exp
        assert approximate.find("mul", tl.bfloat16) is formulas.mul
    with customops.dry_run("hip:gfx942"):
        assert approximate.find("exp", tl.bfloat16) is formulas.exp
        customops.sigmoid(torch.empty(64, dtype=torch.bfloat16))


def test_half_types_issue_fewer_instructions():
    """Of exp one multiplication, the approximation and one more are left, of a quotient by a row two products."""
    with customops.dry_run("cuda:90") as records:
        customops.exp(torch.empty(4096, dtype=torch.bfloat16))
        customops.div(torch.empty(64, 256, dtype=torch.bfloat16), torch.empty(64, 1, dtype=torch.bfloat16))
    exp, div = (record.compiled.asm["ptx"] for record in records)
    assert exp.count("mul.f32") + exp.count("mul.rn.f32") == 2 * exp.count("ex2.approx.ftz.f32") > 0
    assert "fma" not in exp
    assert not re.search(r"div\.\w+\.f32", div)
