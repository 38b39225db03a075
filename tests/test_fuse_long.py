"""Fused programs that no kernel holds, cut: what is compared stays equal, nothing spills, compiling stays linear."""

from __future__ import annotations

from importlib.metadata import version

import pytest
import torch

import customops
from customops import fuse

from .conftest import INTERPRETED, KERNELS

pytest.importorskip("triton", reason="without Triton there are no kernels")
from customops.compiler import partition
from customops.fusion.decorator import Fused
from customops.fusion.explain import examine

compiles = pytest.mark.skipif(INTERPRETED, reason="the interpreter's functions do not compile")

EXTREMA = {
    "of another axis": lambda lib, x: lib.amax(x - lib.mean(x, -1, keepdim=True), 0, keepdim=True) * x,
    "of a sum twice": lambda lib, x: _times_itself(lib, 0.3 * lib.sum(x, -1, keepdim=True) + x, x),
    "of a row": lambda lib, x: lib.amin(x - lib.sum(x * x, -1, keepdim=True), -1, keepdim=True) * lib.exp(x),
    "of an extremum": lambda lib, x: lib.amax(lib.amax(x - lib.mean(x, -1, keepdim=True), -1) * lib.sum(x, -1)) * x,
}


def _times_itself(lib, h, x):
    return lib.amax(h + x, 0, keepdim=True) * h


def multiply_add(x, a, b, times):
    for _ in range(times):
        x = x * a + b
    return x


def products(*xs):
    total = xs[0] * xs[1]
    for i in range(2, len(xs), 2):
        total = total + xs[i] * xs[i + 1]
    return total


def layer_norm(x, weight, bias):
    centred = x - customops.mean(x, -1, keepdim=True)
    scale = customops.rsqrt(customops.mean(centred * centred, -1, keepdim=True) + 1e-5)
    return centred * scale * weight + bias


def phases(function, shapes, dtype=torch.float32):
    return examine(Fused(function), [torch.empty(shape, dtype=dtype) for shape in shapes], {}, "cuda:90").fused


def spills(function, shapes, dtype=torch.float32) -> list[int]:
    return [sum(record.spills for record in phase.records) for phase in phases(function, shapes, dtype)]


@pytest.mark.sample(compiled="all")
@pytest.mark.skipif(not KERNELS, reason="by formulas nothing is cut")
@pytest.mark.parametrize("longest", [1 << 20, 200], ids=["walked", "cut"])
@pytest.mark.parametrize("name", EXTREMA)
def test_gradients_of_walked_and_cut_extrema_reach_the_elements_that_they_are(
    name, longest, monkeypatch, walking, device
):
    monkeypatch.setattr(partition, "MAX_ROW_LENGTH", longest)
    walking()
    x = torch.randn(3, 300, device=device)
    grads = []
    for lib, dtype in ((customops, torch.float32), (torch, torch.float64)):
        y = x.to(dtype).requires_grad_()
        run = lambda y, lib=lib: EXTREMA[name](lib, y)
        z = (fuse(run) if lib is customops else run)(y)
        grads += torch.autograd.grad(z.double().sum(), y)
    torch.testing.assert_close(grads[0].double(), grads[1], rtol=0, atol=2e-6 * float(grads[1].abs().max()))


@compiles
@pytest.mark.parametrize("longest", [1 << 20, 1 << 13], ids=["walked", "cut"])
def test_what_is_compared_is_not_contracted(longest, monkeypatch):
    """Forward has x·w + r from a product, backward from a sum of two values."""
    monkeypatch.setattr(partition, "MAX_ROW_LENGTH", longest)

    def largest(x, w, r):
        p = x * w
        return customops.amax(p + r, -1, keepdim=True) * p

    found = [record.compiled for phase in phases(largest, [(64, 12288)] * 3) for record in phase.records]
    assert len(found) == 2 if longest > 12288 else len(found) > 2
    assert not any("fma." in compiled.asm["ptx"] for compiled in found)


@compiles
@pytest.mark.sample(formulas="")  # to compile one takes a minute
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_long_elementwise_programs_do_not_spill(dtype):
    assert spills(lambda x, a, b: multiply_add(x, a, b, 150), [(512, 512)] * 3, dtype) == [0, 0]


@compiles
def test_programs_of_many_tensors_do_not_spill():
    assert spills(products, [(512, 512)] * 120) == [0, 0]


@compiles
@pytest.mark.sample(formulas="columns")
@pytest.mark.parametrize("columns", [4097, 8192, 50000])  # the longest are walked, and some of the others
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_layer_norm_of_long_rows_does_not_spill(columns, dtype):
    """The budget was measured with Triton 3.7, whose ptxas allocates registers otherwise than that of 3.9."""
    most = 0 if version("triton").startswith("3.7.") else 16
    assert max(spills(layer_norm, [(4096, columns), (columns,), (columns,)], dtype)) <= most


@compiles
@pytest.mark.sample(formulas="")
def test_kernels_of_a_program_grow_in_number_and_not_in_length():
    steps, kernels = [], []
    for times in (100, 200, 400):
        found = phases(lambda x, a, b, times=times: multiply_add(x, a, b, times), [(512, 512)] * 3)
        programs = [launch.arguments[-2] for phase in found for launch in phase.executable.plan.launches]
        steps += [len(program.formulas) for program in programs]
        kernels.append(len(found[1].records))
    assert 100 < max(steps) <= partition.MAX_OPS
    assert kernels[0] < kernels[2] <= 3 * kernels[1]


@pytest.mark.sample(compiled="all")
@pytest.mark.skipif(not KERNELS, reason="by formulas nothing is cut")
@pytest.mark.parametrize(
    "function",
    [lambda *xs: multiply_add(*xs, 9), lambda *xs: products(*xs, *xs[:1])],
    ids=["chain", "products"],
)
def test_programs_cut_for_their_length_have_torchs_gradients(function, monkeypatch, replan, device):
    monkeypatch.setattr(partition, "MAX_LIVE", 6)
    monkeypatch.setattr(partition, "MAX_OPS", 12)
    xs = [torch.randn(4, 5, dtype=torch.float64, device=device, requires_grad=True) for _ in range(3)]
    got, want = (torch.autograd.grad(f(*xs).sum(), xs) for f in (fuse(function), function))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
