"""Quotients by one reciprocal a row have the bits of those rounded to nearest: by compiled code, executed."""

from __future__ import annotations

import re

import pytest
import torch

import customops

from .conftest import INTERPRETED
from .marks import formulas_only

if INTERPRETED:
    pytest.skip("compiles, which the interpreter cannot", allow_module_level=True)
pytest.importorskip("triton", reason="compiles kernels")
import triton
import triton.language as tl
from customops.triton_kernels import division

pytestmark = formulas_only
INF, NAN = float("inf"), float("nan")
EDGES = [
    *(0.0, -0.0, 1.0, -1.0, INF, -INF, NAN, 3.0, 6.0, 768.0, 0.1, 1e30, 1e-30),
    *(2.0**n for n in (-149, -127, -126, -125, -101, -100, -1, 63, 64, 126, 127)),
    *(torch.finfo(torch.float32).max, 1 - 2**-24, 1 + 2**-23, 2 - 2**-23, 1.5 * 2**-130, 1.25 * 2**126),
]


def random_bits(*shape):
    return torch.randint(-(2**31), 2**31, shape).to(torch.int32).view(torch.float32)


def random_rows():
    return random_bits(256, 512), random_bits(256, 1)


def rows_of_one_size():
    y = random_bits(128, 1)
    return y * torch.rand(128, 512), y


CASES = {
    "edges by edges": lambda: (torch.tensor(EDGES).repeat(len(EDGES), 1), torch.tensor(EDGES)[:, None]),
    "random bits": random_rows,
    "rows like their divisor": rows_of_one_size,
    "a row's sum": lambda: (torch.rand(256, 512), 512 * torch.rand(256, 1)),
    "columns": lambda: (random_bits(300, 70), random_bits(70)),
    "a number": lambda: (random_bits(300, 70), 0.3),
}


def distance(got, want):
    """Return how many numbers lie from one to the other; nan is at nan."""
    distance = (got.view(torch.int32).long() - want.view(torch.int32).long()).abs()
    return torch.where(got.isnan() & want.isnan(), 0, distance)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_quotients_by_a_row_have_the_bits_of_the_nearest_number(case, tally):
    x, y = case()
    with customops.dry_run("cuda:90", execute=True):
        got = customops.div(x, y)
    want = x / y
    off = distance(got, want)
    assert int(off.max()) <= 1
    assert not off[(x == 0) | ~(want.abs() < 2**-100)].any()
    tally("quotients", x.numel())


def test_division_is_by_the_row():
    counts = []
    for shape in ((64, 1), (64, 1024)):
        with customops.dry_run("cuda:90") as records:
            customops.div(torch.empty(64, 1024), torch.empty(shape))
        (record,) = records
        counts.append(len(re.findall(r"div\.rn\.f32", record.compiled.asm["ptx"])))
    assert counts[0] <= 2 < counts[1]


@triton.jit
def divide_all(x, y, z, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(z + i, division.divide_by_small(tl.load(x + i), tl.load(y + i)))


def test_short_division_is_within_one_number_of_the_nearest(tally):
    n = 2**15
    y = 1 + torch.rand(n)
    x, z = torch.cat([y[: n // 2] * torch.rand(n // 2), random_bits(n // 2).abs().clamp(max=1)]), torch.empty(n)
    x[:3] = torch.tensor([0.0, NAN, 1.0])
    with customops.dry_run("cuda:90", execute=True):
        divide_all[(1,)](x, y, z, N=n)
    off = distance(z, x / y)
    assert int(off.max()) <= 1
    assert (off > 0).float().mean() < 0.01
    tally("quotients", n)
