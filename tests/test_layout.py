"""The integers behind every launch: folded indices reach the same elements, tiles cover all of them, once."""

from __future__ import annotations

from collections import Counter
from itertools import product
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import customops

from .compare import assert_equal
from .conftest import KERNELS
from .test_hypothesis import settings  # noqa: F401 - loads the profile

layout = pytest.importorskip("customops.triton_kernels.layout", reason="needs Triton")


@st.composite
def strided(draw):
    """A shape, operands with any strides, and outputs summed over up to two separate sets of axes."""
    shape = tuple(draw(st.lists(st.integers(1, 4), max_size=4)))
    any_strides = st.tuples(*(st.sampled_from((0, 1, 2, 3, 4, 6, 8, 12, 24)) for _ in shape))
    operands = draw(st.lists(st.none() | any_strides, min_size=1, max_size=3))
    group = [draw(st.integers(0, 2)) for _ in shape]
    outputs = []
    for summed in draw(st.lists(st.integers(0, 2), min_size=1, max_size=2, unique=True)):
        kept = [n if g != summed or not summed else 1 for n, g in zip(shape, group, strict=True)]
        outputs.append(layout.expand(shape, kept, torch.empty(kept).stride()))
    return shape, tuple(operands), tuple(outputs)


@given(strided())
def test_folded_indices_reach_the_same_elements(drawn):
    shape, operands, outputs = drawn
    folded = layout.arrange(shape, operands, outputs)
    tensors = [s for s in (*outputs, *operands) if s is not None]
    want = Counter(
        tuple(sum(i * s for i, s in zip(index, strides, strict=True)) for strides in tensors)
        for index in product(*map(range, shape))
    )
    groups = [*folded.outputs, *filter(None, folded.operands)]
    got = Counter(
        tuple(sum(_offset(i, n, g) for i, n, g in zip(index, folded.sizes, group, strict=True)) for group in groups)
        for index in product(*map(range, folded.extents))
    )
    assert got == want


@given(st.tuples(st.integers(1, 5000), st.integers(2, 5000), st.integers(1, 5000)), st.integers(0, 2))
def test_tiles_cover_the_box_within_their_room(shape, fast):
    order = [a for a in range(3) if a != fast] + [fast]
    strides = [0, 0, 0]
    step = 1
    for axis in reversed(order):
        strides[axis] = step
        step *= shape[axis]
    outputs = (layout.expand(shape, (shape[0], 1, shape[2]), (shape[2], 1, 1)),)
    tiling = layout.cut(layout.arrange(shape, (tuple(strides),), outputs))
    assert all(t & (t - 1) == 0 for t in tiling.tile)
    assert prod(tiling.tile) <= layout.TILE
    assert tiling.parts * tiling.chunk >= shape[1] > (tiling.parts - 1) * tiling.chunk
    assert tiling.chunk % tiling.tile[1] == 0


def test_sums_over_overlapping_axes_are_refused():
    with pytest.raises(ValueError, match="at most two separate sets of axes"):
        layout.arrange((2, 2, 2), ((4, 2, 1),), ((0, 0, 1), (1, 0, 0)))


def test_contiguous_operands_fold_to_one_axis():
    assert layout.arrange((4, 5, 6), ((30, 6, 1),) * 2, ((30, 6, 1),)).sizes == ((120,),)


@pytest.mark.parametrize("span", [2**31 - 1, 2**31])
def test_offsets_are_wide_past_31_bits(span):
    assert layout.arrange((2,), ((span,),), ((1,),)).wide == (span > 2**31 - 1)


kernels_only = pytest.mark.skipif(not KERNELS, reason="no kernel runs without the interpreter")


@kernels_only
def test_kernel_reaches_elements_past_31_bits():
    far = torch.zeros(2**31 + 2**20, dtype=torch.uint8)[:: 2**30]
    far[:] = torch.tensor([1, 2, 3])
    assert customops.add(far, 1).tolist() == [2, 3, 4]
    assert customops.sum(far).item() == 6


@kernels_only
@pytest.mark.parametrize("shape", [(40000,), (3, 20000), (20000, 3), (2, 20000, 2)], ids=str)
@pytest.mark.parametrize("name", ["sum", "mean"])
def test_shared_sums_are_right_and_repeat_bit_for_bit(name, shape):
    x = torch.rand(shape)
    axis = shape.index(max(shape))
    got = getattr(customops, name)(x, axis)
    assert torch.equal(got, getattr(customops, name)(x, axis))
    assert_equal(got, getattr(x.double(), name)(axis).float())


@kernels_only
@pytest.mark.parametrize("shapes", [((300, 1), (1, 300)), ((1, 9000), (2, 9000)), ((2, 1), (1, 9000))], ids=str)
def test_gradients_by_partial_sums_match(shapes):
    xs = [(torch.rand(shape, dtype=torch.float64) + 0.5).requires_grad_() for shape in shapes]
    g = torch.rand(torch.broadcast_shapes(*shapes), dtype=torch.float64)
    got = torch.autograd.grad(customops.pow(*xs), xs, g)
    for mine, theirs in zip(got, torch.autograd.grad(torch.pow(*xs), xs, g), strict=True):
        assert_equal(mine, theirs)


def _offset(index, sizes, strides):
    """What the kernel computes for one group."""
    offset = 0
    for axis in reversed(range(len(sizes))):
        offset += (index % sizes[axis] if axis else index) * strides[axis]
        index //= sizes[axis]
    return offset
