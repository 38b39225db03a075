"""The integers behind every launch: folded indices reach the same elements, tiles cover all of them, once."""

from __future__ import annotations

from collections import Counter
from itertools import product
from math import prod

import pytest
import torch

pytest.importorskip("hypothesis", reason="it draws the cases")
from hypothesis import given
from hypothesis import strategies as st

from .test_hypothesis import settings  # noqa: F401 - loads the profile

layout = pytest.importorskip("customops.triton_kernels.layout", reason="needs Triton")

NONE = (frozenset[int](),)  # the only output is folded over no axis


@st.composite
def strided(draw):
    """A shape, operands with any strides, and outputs folded over up to two separate sets of axes."""
    shape = tuple(draw(st.lists(st.integers(1, 4), max_size=4)))
    any_strides = st.tuples(*(st.sampled_from((0, 1, 2, 3, 4, 6, 8, 12, 24)) for _ in shape))
    operands = draw(st.lists(st.none() | any_strides, min_size=1, max_size=3))
    group = [draw(st.integers(0, 2)) for _ in shape]
    outputs, folded = [], []
    for summed in draw(st.lists(st.integers(0, 2), min_size=1, max_size=2, unique=True)):
        kept = [n if g != summed or not summed else 1 for n, g in zip(shape, group, strict=True)]
        outputs.append(layout.expand(shape, kept, torch.empty(kept).stride()))
        folded.append(frozenset(a for a, n in enumerate(shape) if n != kept[a]))
    return shape, tuple(operands), tuple(outputs), tuple(folded)


@given(strided())
def test_folded_indices_reach_the_same_elements(drawn):
    shape, operands, outputs, _ = drawn
    folded = layout.arrange(*drawn)
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


ITEMSIZES = st.sampled_from((1, 2, 4, 8))


@given(st.tuples(st.integers(1, 5000), st.integers(2, 5000), st.integers(1, 5000)), st.integers(0, 2), ITEMSIZES)
def test_tiles_cover_the_box_within_their_room(shape, fast, itemsize):
    order = [a for a in range(3) if a != fast] + [fast]
    strides = [0, 0, 0]
    step = 1
    for axis in reversed(order):
        strides[axis] = step
        step *= shape[axis]
    outputs = (layout.expand(shape, (shape[0], 1, shape[2]), (shape[2], 1, 1)),)
    arranged = layout.arrange(shape, (tuple(strides),), outputs, (frozenset({1}),))
    tiling = layout.cut(arranged, itemsize)
    _check(arranged, tiling, itemsize)
    assert tiling.parts * tiling.chunk >= shape[1] > (tiling.parts - 1) * tiling.chunk
    assert tiling.chunk % tiling.tile[1] == 0
    boxes = zip(tiling.blocks, tiling.tile[::2], arranged.extents[::2], strict=True)
    assert all(n * size >= extent for n, size, extent in boxes)


@given(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), st.sampled_from(("row", "column", "across")), ITEMSIZES)
def test_flat_tiles_cover_rows_and_columns_within_their_room(shape, second, itemsize):
    rows, columns = shape
    other = {"row": (0, 1), "column": (1, 0), "across": (1, rows)}[second]
    arranged = layout.arrange(shape, ((columns, 1), other), ((columns, 1),), NONE)
    tiling = layout.cut(arranged, itemsize)
    _check(arranged, tiling, itemsize)
    for n, size, extent in zip(tiling.blocks, tiling.tile, arranged.extents, strict=True):
        assert n * size >= extent > (n - 1) * size


def _check(arranged, tiling, itemsize):
    assert all(t & (t - 1) == 0 for t in tiling.tile)
    word = layout.WORD // itemsize
    assert prod(tiling.tile) <= 2 * layout.LANES * layout.WARPS * max(word, layout.REGISTERS)
    assert prod(tiling.tile) <= 2 * layout.LANES * layout.WARPS * layout.FLIGHT * word
    assert 1 <= tiling.warps <= layout.WARPS
    assert tiling.ragged == (arranged.extents[tiling.side] % (layout.WORD // itemsize) != 0)


@pytest.mark.parametrize("numel", [1 << n for n in range(14, 31)])
def test_grid_fills_a_large_gpu(numel):
    """As soon as there is a word for every thread of one warp on each of 132 multiprocessors."""
    arranged = layout.arrange((numel,), ((1,),), ((1,),), NONE)
    blocks = prod(layout.cut(arranged, 4).blocks)
    assert blocks >= 132 or numel // blocks == layout.LANES * layout.WORD // 4


@pytest.mark.parametrize(
    ("shape", "strides"),
    [((64, 512), (0, 1)), ((64, 512), (1, 0)), ((512, 64), (1, 512)), ((8, 64, 49), (0, 1, 0))],
    ids=("row", "column", "transposed", "channel"),
)
def test_columns_are_one_axis_so_that_no_element_costs_a_division(shape, strides):
    dense = layout.dense(shape, (1,) * len(shape))
    arranged = layout.arrange(shape, (dense, strides), (dense,), NONE)
    assert len(arranged.sizes[layout.COLUMNS]) == 1


def test_folds_over_more_sets_of_axes_than_a_kernel_has_groups_are_refused():
    """Each axis by itself is three sets; a fourth that is kept, or folded by all, is one too many."""
    outputs = ((0, 0, 1), (1, 0, 0))
    assert layout.arrange((2, 2, 2), ((4, 2, 1),), outputs, (frozenset({0, 1}), frozenset({1, 2}))).folded == (6, 5)
    with pytest.raises(ValueError, match="not the groups"):
        layout.arrange((2,) * 4, ((8, 4, 2, 1),), ((0, 0, 1, 1), (1, 0, 0, 1)), (frozenset({0, 1}), frozenset({1, 2})))


def test_contiguous_operands_fold_to_one_axis():
    assert layout.arrange((4, 5, 6), ((30, 6, 1),) * 2, ((30, 6, 1),), NONE).sizes == ((), (120,))


@pytest.mark.parametrize("span", [2**31 - 1, 2**31])
def test_offsets_are_wide_past_31_bits(span):
    assert layout.arrange((2,), ((span,),), ((1,),), NONE).wide == (span > 2**31 - 1)


def _offset(index, sizes, strides):
    """What the kernel computes for one group."""
    offset = 0
    for axis in reversed(range(len(sizes))):
        offset += (index % sizes[axis] if axis else index) * strides[axis]
        index //= sizes[axis]
    return offset
