"""Gradients of large CPU tensors, taken by blocks: as when taken at once, and in less memory."""

from __future__ import annotations

from functools import partial
from math import prod

import pytest
import torch

import customops
from benchmarks import memory
from customops.runtime import elementwise

from .cases import BROADCASTS, CALLS, LAYOUTS, ids
from .compare import TOLERANCE, cotangent, gradients, outcome
from .conftest import DEVICE, KERNELS
from .marks import skip_changed_derivative

if KERNELS or DEVICE != "cpu":
    pytest.skip("kernels take gradients in one pass", allow_module_level=True)
ELEMENTS = 4  # of a block in float64
BINARY = [(row, call) for row, call in CALLS if call.arity == 2]
LARGER = (
    ((8, 6), (6,)),
    ((8, 6), (8, 1)),
    ((4, 3, 8, 5), (3, 1, 1)),
    ((1, 40), (7, 1)),
    ((9, 1), (1, 5)),
    ((33,), (1,)),
)


@pytest.fixture
def seen(blocks, walked):
    """Make blocks of a few elements; return the list of their shapes, which grows as they are computed."""
    blocks(ELEMENTS)
    return walked


@pytest.mark.sample(formulas="call*dtype, call*layout, dtype*layout")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex128], ids=ids)
@pytest.mark.parametrize(("row", "call"), BINARY, ids=ids)
def test_gradients_by_blocks_are_torchs(row, call, dtype, layout, seen):
    skip_changed_derivative(call)  # rounded to bfloat16, drawn numbers may be equal
    for shapes in (*BROADCASTS, *LARGER):
        xs = [LAYOUTS[layout](row.draw(shape, dtype, seed=i)) for i, shape in enumerate(shapes)]
        got, want = (outcome(gradients, partial(call.function, lib), xs) for lib in (customops, torch))
        if isinstance(want, type):  # complex numbers have no maximum
            assert got is want
            continue
        tolerance = TOLERANCE[dtype]
        if dtype == torch.bfloat16:  # torch rounds what it sums, up to 40 elements of about 2
            tolerance = {"rtol": 5e-2, "atol": 0.2}
        for mine, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(mine, theirs, **tolerance)
    assert bool(seen) == (not dtype.is_complex), "complex numbers take the whole formula"


@pytest.mark.parametrize("shapes", LARGER, ids=ids)
def test_blocks_are_no_larger_than_asked(shapes, seen):
    xs = [torch.rand(shape, dtype=torch.float64) for shape in shapes]
    gradients(customops.mul, xs)
    sizes = list(map(prod, seen))
    assert max(sizes) <= ELEMENTS
    assert sum(sizes) >= prod(torch.broadcast_shapes(*shapes))


def test_gradients_that_are_g_itself_take_no_block(seen):
    x, y = (torch.rand(8, 6).requires_grad_() for _ in range(2))
    z = customops.add(x, y)
    g = cotangent(z)
    for dx in torch.autograd.grad(z, (x, y), g):
        assert dx.data_ptr() == g.data_ptr()
    assert not seen


@pytest.mark.parametrize("name", ["mul", "div", "add", "sub"])
def test_numbers_of_another_call_are_its_own(name, seen):
    """Blocks are made for the dtypes and layouts of a call, and serve others with other numbers, -0.0 among them."""
    xs = [torch.rand(8, 6) for _ in range(2)]
    arity = 1 if name in ("mul", "div") else 2
    for number in (0.3, 0.7, -0.0, 0.0, 2.5, 2, 3, 1, True, 1.0, float("inf")):
        options = {"other": number} if arity == 1 else {"alpha": float(number)}
        got, want = (gradients(partial(getattr(lib, name), **options), xs[:arity]) for lib in (customops, torch))
        for mine, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(1 / mine, 1 / theirs)  # which tells zeros by their signs
    assert seen


def test_mixed_dtypes_and_double_backward_and_batches(seen):
    x, y = torch.rand(8, 6).requires_grad_(), torch.rand(6, dtype=torch.float64).requires_grad_()
    for create in (False, True):
        results = []
        for library in (customops, torch):
            z = library.pow(x, y)
            results.append(torch.autograd.grad(z, (x, y), cotangent(z), create_graph=create))
            if create:
                results[-1] += torch.autograd.grad(sum(g.sum() for g in results[-1]), (x, y))
            g = torch.stack([cotangent(z), -cotangent(z)])
            results[-1] += torch.autograd.grad(library.pow(x, y), (x, y), g, is_grads_batched=True)
        for mine, theirs in zip(*results, strict=True):
            torch.testing.assert_close(mine, theirs)
            assert mine.dtype == theirs.dtype
    assert seen


@pytest.mark.parametrize("shape", [(512,), (4096, 1)], ids=ids)
def test_what_is_only_summed_never_reaches_memory(shape, monkeypatch):
    x, y = torch.rand(4096, 512), torch.rand(shape).requires_grad_()
    size = x.numel() * 4
    z = customops.mul(x, y)
    g = torch.ones_like(z)

    def gradient():
        return torch.autograd.grad(z, y, g, retain_graph=True)

    gradient()  # the memory of a thread's temporaries is allocated once
    assert memory.peak(gradient, "cpu") < size / 4
    monkeypatch.setattr(elementwise, "LARGE_ELEMENTS", float("inf"))
    assert memory.peak(gradient, "cpu") >= size
