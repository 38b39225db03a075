"""Gradients of large CPU tensors, taken by blocks: as when taken at once, and in less memory."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import customops
from benchmarks import memory
from customops.runtime import cpu_blocks

from .cases import BROADCASTS, CALLS, LAYOUTS, ids
from .compare import TOLERANCE, cotangent, gradients, outcome
from .conftest import DEVICE, KERNELS

if KERNELS or DEVICE != "cpu":
    pytest.skip("kernels take gradients in one pass", allow_module_level=True)
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
def blocks(monkeypatch):
    """Make blocks of a few elements; return the list of the sizes that derivatives saw."""
    seen: list[int] = []
    monkeypatch.setattr(cpu_blocks, "BLOCK_ELEMENTS", 4)
    monkeypatch.setattr(cpu_blocks, "LARGE_ELEMENTS", 8)
    split = cpu_blocks._split
    monkeypatch.setattr(cpu_blocks, "_split", lambda x, *args: (counted(block) for block in split(x, *args)))

    def counted(block):
        seen.append(block.numel() if isinstance(block, torch.Tensor) else 0)
        return block

    return seen


@pytest.mark.sample(formulas="call*dtype, call*layout, dtype*layout")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex128], ids=ids)
@pytest.mark.parametrize(("row", "call"), BINARY, ids=ids)
def test_gradients_by_blocks_are_torchs(row, call, dtype, layout, blocks):
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
    summed_or_of_three = row.name not in ("add", "sub") and not isinstance(want, type)
    assert bool(blocks) == summed_or_of_three, "add and sub read g alone"


@pytest.mark.parametrize("shapes", [s for s in LARGER if len(s[0]) < 3], ids=ids)
def test_blocks_are_small_wherever_an_axis_allows(shapes, blocks):
    xs = [torch.rand(shape) for shape in shapes]
    gradients(customops.mul, xs)
    longest = max(torch.broadcast_shapes(*shapes))
    numel = torch.broadcast_tensors(*xs)[0].numel()
    assert blocks
    assert max(blocks) <= max(16, 2 * numel // longest)


def test_mixed_dtypes_and_double_backward_and_batches(blocks):
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
    assert blocks


@pytest.mark.parametrize("shape", [(512,), (4096, 1)], ids=ids)
def test_what_is_only_summed_never_reaches_memory(shape, monkeypatch):
    x, y = torch.rand(4096, 512), torch.rand(shape).requires_grad_()
    size = x.numel() * 4
    z = customops.mul(x, y)
    g = torch.ones_like(z)

    def peak():
        return memory.peak(lambda: torch.autograd.grad(z, y, g, retain_graph=True), "cpu")

    assert peak() < size / 4
    monkeypatch.setattr(cpu_blocks, "LARGE_ELEMENTS", float("inf"))
    assert peak() >= size
