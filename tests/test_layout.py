"""The integers behind every launch: coalesced axes reach the same elements, tiles cover all of them, once."""

from __future__ import annotations

from collections import Counter
from itertools import product
from math import prod

import pytest
import torch

pytest.importorskip("hypothesis", reason="it draws the cases")
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import customops

from . import test_hypothesis  # noqa: F401 - loads the profile
from .marks import formulas_only

pytestmark = formulas_only
layout = pytest.importorskip("customops.triton_kernels.layout", reason="needs Triton")
tile_rules = pytest.importorskip("customops.triton_kernels.tiling", reason="needs Triton")
row_rules = pytest.importorskip("customops.triton_kernels.row_tiling", reason="needs Triton")
stage = pytest.importorskip("customops.triton_kernels.stage", reason="needs Triton")

NONE = (frozenset[int](),)  # the only output is reduced over no axis


@st.composite
def strided(draw):
    """Draw a shape, operands with any strides, and outputs reduced over up to two separate sets of axes."""
    shape = tuple(draw(st.lists(st.integers(1, 4), max_size=4)))
    any_strides = st.tuples(*(st.sampled_from((0, 1, 2, 3, 4, 6, 8, 12, 24)) for _ in shape))
    operands = draw(st.lists(st.none() | any_strides, min_size=1, max_size=3))
    group = [draw(st.integers(0, 2)) for _ in shape]
    outputs, reduced_axes = [], []
    for summed in draw(st.lists(st.integers(0, 2), min_size=1, max_size=2, unique=True)):
        kept = [n if g != summed or not summed else 1 for n, g in zip(shape, group, strict=True)]
        outputs.append(layout.expand(shape, kept, torch.empty(kept).stride()))
        reduced_axes.append(frozenset(a for a, n in enumerate(shape) if n != kept[a]))
    return shape, tuple(operands), tuple(outputs), tuple(reduced_axes)


@given(strided())
def test_indices_over_coalesced_axes_reach_the_same_elements(drawn):
    shape, operands, outputs, _ = drawn
    arranged = layout.arrange(*drawn)
    tensors = [s for s in (*outputs, *operands) if s is not None]
    want = Counter(
        tuple(sum(i * s for i, s in zip(index, strides, strict=True)) for strides in tensors)
        for index in product(*map(range, shape))
    )
    groups = [*arranged.output_strides, *filter(None, arranged.operand_strides)]
    got = Counter(
        tuple(sum(_offset(i, n, g) for i, n, g in zip(index, arranged.sizes, group, strict=True)) for group in groups)
        for index in product(*map(range, arranged.extents))
    )
    assert got == want


ITEMSIZES = st.sampled_from((1, 2, 4, 8))


def choose_tiling(arranged, itemsize, *options):
    """Return the tiling of a layout all of whose tensors have elements of so many bytes."""
    tensors = len(arranged.operand_strides) + len(arranged.output_strides)
    return tile_rules.choose_tiling(arranged, (itemsize,) * tensors, *options)


@given(st.tuples(st.integers(1, 5000), st.integers(2, 5000), st.integers(1, 5000)), st.integers(0, 2), ITEMSIZES)
def test_tiles_cover_the_iteration_space_within_their_budget(shape, fast, itemsize):
    order = [a for a in range(3) if a != fast] + [fast]
    strides = [0, 0, 0]
    step = 1
    for axis in reversed(order):
        strides[axis] = step
        step *= shape[axis]
    outputs = (layout.expand(shape, (shape[0], 1, shape[2]), (shape[2], 1, 1)),)
    arranged = layout.arrange(shape, (tuple(strides),), outputs, (frozenset({1}),))
    tiling = choose_tiling(arranged, itemsize)
    _check(arranged, tiling, itemsize)
    assert tiling.splits * tiling.chunk >= shape[1] > (tiling.splits - 1) * tiling.chunk
    assert tiling.chunk % tiling.tile[1] == 0
    boxes = zip(tiling.tile_counts, tiling.tile[::2], arranged.extents[::2], strict=True)
    assert all(n * size >= extent for n, size, extent in boxes)


def reduction(shape, axes, itemsize):
    """Return the layout of a contiguous tensor reduced over ``axes``, and its tiling."""
    kept = [1 if a in axes else n for a, n in enumerate(shape)]
    output = layout.expand(shape, kept, layout.dense_strides(kept, (1,) * len(kept)))
    dense = layout.dense_strides(shape, (1,) * len(shape))
    arranged = layout.arrange(shape, (dense,), (output,), (frozenset(axes),))
    return arranged, choose_tiling(arranged, itemsize)


SIZES = st.integers(1, 9).map(lambda n: 2**n) | st.integers(2, 4096)


@given(st.tuples(SIZES, SIZES, SIZES, SIZES), st.sets(st.integers(0, 3), min_size=1), ITEMSIZES)
def test_large_reductions_have_enough_in_flight_and_few_partials(shape, axes, itemsize):
    """One step of all programs loads 32 KiB for each of 132 multiprocessors, 16 of bytes, or a small tensor whole.

    Or there are as many programs as one launch finalizes, or half as many where two are too many.
    """
    assume(4_000_000 <= prod(shape) * itemsize <= 2**36)
    arranged, tiling = reduction(shape, axes, itemsize)
    beside = prod(arranged.extents[::2]) * itemsize
    step = min(tiling.splits * tiling.tile[1], arranged.extents[1]) * beside
    assert tiling.splits <= max(tile_rules.MAX_PARTIALS, 8 * 1024 // prod(arranged.extents[::2]))
    is_full = step >= min(132 * (16 if itemsize == 1 else 32) * 1024, prod(shape) * itemsize)
    assert is_full or tiling.splits > tile_rules.MAX_PARTIALS // 2
    outputs = prod(n for a, n in enumerate(shape) if a not in axes)
    assert tiling.splits == 1 or 4 * outputs * tiling.splits <= 4 << 20  # bytes of partials, of 50 MB that an L2 holds


@pytest.mark.parametrize("itemsize", [2, 4, 8])
@pytest.mark.parametrize(
    ("shape", "axes"), [((512, 512), {0}), ((1000, 64), {1}), ((100, 31, 100), {1}), ((4096,), {0})]
)
def test_small_reductions_take_one_launch(shape, axes, itemsize):
    assert reduction(shape, axes, itemsize)[1].splits == 1


@given(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), st.sampled_from(("row", "column", "across")), ITEMSIZES)
def test_flat_tiles_cover_rows_and_columns_within_their_budget(shape, second, itemsize):
    rows, columns = shape
    other = {"row": (0, 1), "column": (1, 0), "across": (1, rows)}[second]
    arranged = layout.arrange(shape, ((columns, 1), other), ((columns, 1),), NONE)
    tiling = choose_tiling(arranged, itemsize)
    _check(arranged, tiling, itemsize)
    for n, size, extent in zip(tiling.tile_counts, tiling.tile, arranged.extents, strict=True):
        assert n * size >= extent > (n - 1) * size


def _check(arranged, tiling, itemsize):
    assert all(t & (t - 1) == 0 for t in tiling.tile)
    vector = layout.VECTOR_BYTES // itemsize
    elements = (
        max(tile_rules.MAX_THREAD_ELEMENTS, 2 * vector)
        if len(tiling.tile) == 2
        else 2 * tile_rules.MAX_REDUCED_ELEMENTS
    )
    assert prod(tiling.tile) <= 2 * tile_rules.WARP_THREADS * tile_rules.MAX_WARPS * max(vector, elements)
    assert prod(tiling.tile) <= 2 * tile_rules.WARP_THREADS * tile_rules.MAX_WARPS * tile_rules.LOADS_IN_FLIGHT * vector
    assert 1 <= tiling.warps <= 2 * tile_rules.MAX_WARPS
    assert tiling.has_tail == (arranged.extents[tiling.vector_group] % (layout.VECTOR_BYTES // itemsize) != 0)


@pytest.mark.parametrize("numel", [1 << n for n in range(14, 31)])
def test_grid_fills_a_large_gpu(numel):
    """It does as soon as there is a vector for every thread of one warp on each of 132 multiprocessors."""
    arranged = layout.arrange((numel,), ((1,),), ((1,),), NONE)
    blocks = prod(choose_tiling(arranged, 4).tile_counts)
    assert blocks >= 132 or numel // blocks == tile_rules.WARP_THREADS * layout.VECTOR_BYTES // 4


@pytest.mark.parametrize(
    ("shape", "strides"),
    [((64, 512), (0, 1)), ((64, 512), (1, 0)), ((512, 64), (1, 512)), ((8, 64, 49), (0, 1, 0))],
    ids=("row", "column", "transposed", "channel"),
)
def test_columns_are_one_axis_so_that_no_element_costs_a_division(shape, strides):
    dense = layout.dense_strides(shape, (1,) * len(shape))
    arranged = layout.arrange(shape, (dense, strides), (dense,), NONE)
    assert len(arranged.sizes[layout.COLUMNS]) == 1


def test_rows_end_in_the_axis_that_an_operand_walks_by_1():
    """A transposed one: threads side by side read what lies side by side."""
    arranged = layout.arrange((4, 5, 6), ((1, 4, 20),), ((30, 6, 1),), NONE)
    assert (arranged.sizes, arranged.operand_strides) == (((5, 4), (6,)), (((4, 1), (20,)),))


@pytest.mark.parametrize("itemsize", [2, 4])
def test_tiles_have_all_of_a_row_that_ops_reduce_or_walk_over_it(itemsize):
    for n in (*range(2, 600), *range(600, 2**20, 9973), 2**20):
        tiling, walks = row_tiling((3, n), itemsize)
        assert tiling.tile[layout.TILED] * tiling.row_chunks >= n
        assert (walks is None) == (tiling.row_chunks == 1)
        held = 2 * prod(tiling.tile) // (32 * tiling.warps)  # what is loaded, and one value more
        assert held <= 96, "registers of a thread"


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("n", [1, 7, 256, 1000, 4096, 20_000, 70_000])
def test_order_along_a_row_is_the_same_however_many_rows_there_are(n, itemsize):
    """The tile, the warps and the chunks fix it."""
    found = {
        (t.tile, t.warps, t.row_chunks) for rows in (1, 2, 3, 100, 5000) for t, _ in [row_tiling((rows, n), itemsize)]
    }
    assert len(found) == 1


AMAX_AND_SUM = (
    stage.KernelOp("amax", (0,), None, True),
    stage.KernelOp("sub", (0, 1)),
    stage.KernelOp("sum", (2,), None, True),
)


@pytest.mark.parametrize("n", [16_384, 131_072])
def test_long_rows_that_nothing_is_gathered_of_are_bound_by_the_l2_where_they_are_walked_again(n, monkeypatch):
    """Rows of 64 KiB and of 512 KiB, of which 24 MiB are walked at once; of one walk as many as are resident."""
    monkeypatch.setattr(row_rules, "MAX_ROW_VALUES", 0)
    row_rules.choose_row_tiling.cache_clear()
    twice, walks = row_tiling((4096, n), 4)
    assert (walks.count, twice.holds_sums, twice.splits * n * 4 <= 24 << 20) == (2, True, True)
    once, walks = row_tiling((4096, n), 4, AMAX_AND_SUM[:1])
    assert (walks.count, once.holds_sums, once.splits >= 128) == (1, True, True)
    row_rules.choose_row_tiling.cache_clear()


def row_tiling(shape, itemsize, ops=AMAX_AND_SUM):
    """Return the tiling of ``ops`` over rows of one operand, by default an amax and a sum, and the walks."""
    row = frozenset({1})
    operand = stage.Operand(0, (shape[1], 1), "x")
    described = stage.Stage(shape, (operand,), ops, (stage.Output(len(ops), 1, (1, 0)),), row)
    arranged = layout.arrange(shape, (operand.strides,), ((1, 0),), NONE, row)
    return row_rules.choose_row_tiling(described, arranged, (itemsize, itemsize), 1)


def test_reductions_over_more_sets_of_axes_than_a_kernel_has_groups_are_refused():
    """Each axis by itself is three sets; a fourth that no output is reduced over, or all are, is one too many."""
    outputs = ((0, 0, 1), (1, 0, 0))
    arranged = layout.arrange((2, 2, 2), ((4, 2, 1),), outputs, (frozenset({0, 1}), frozenset({1, 2})))
    assert arranged.reduced_over == (6, 5)
    with pytest.raises(ValueError, match="not the groups"):
        layout.arrange((2,) * 4, ((8, 4, 2, 1),), ((0, 0, 1, 1), (1, 0, 0, 1)), (frozenset({0, 1}), frozenset({1, 2})))


def test_an_output_reduced_over_rows_is_reduced_over_the_loop():
    """The rows are axis 2. The first output is reduced over axis 0 alone, which is then no axis of the loop."""
    outputs, reduced = ((0, 5, 1), (0, 1, 0)), (frozenset({0}), frozenset({1, 2}))
    arranged = layout.arrange((3, 4, 5), ((20, 5, 1),), outputs, reduced, frozenset({2}))
    assert arranged.extents == (3, 4, 5)
    assert arranged.reduced_over == (1, 6)
    with pytest.raises(ValueError, match="not the groups"):
        layout.arrange(
            (3, 4, 5), ((20, 5, 1),), ((0, 1, 0), (1, 0, 0)), (frozenset({0, 2}), frozenset({1, 2})), frozenset({2})
        )


@pytest.mark.parametrize("strides", [(60, 5, 1), (1, 3, 12), (4, 12, 1), (0, 1, 9), (7, 0, 2)])
def test_partials_are_walked_as_their_output(strides):
    dense = layout.dense_strides((3, 4, 5), strides)
    assert [bool(n) for n in dense] == [bool(n) for n in strides]
    assert sorted(range(3), key=dense.__getitem__) == sorted(range(3), key=strides.__getitem__)
    assert max((n - 1) * step for n, step in zip((3, 4, 5), dense, strict=True)) < 60


def test_axes_of_contiguous_operands_coalesce_to_one():
    assert layout.arrange((4, 5, 6), ((30, 6, 1),) * 2, ((30, 6, 1),), NONE).sizes == ((), (120,))


@st.composite
def enormous(draw):
    """Draw the arguments of ``arrange`` for up to 2^37 elements with gaps, and the bytes that an element takes."""
    shape = tuple(draw(st.lists(st.integers(1, 8) | st.integers(1, 2**19) | st.just(2**15), min_size=1, max_size=4)))
    steps = st.tuples(*(st.sampled_from((0, 1, 3, 2**10, 2**24, 2**30)) for _ in shape))
    dense = layout.dense_strides(shape, (1,) * len(shape))
    operands = draw(st.lists(steps | st.just(dense), min_size=1, max_size=2))
    over = frozenset(a for a in range(len(shape)) if draw(st.booleans()) and shape[a] > 1)
    kept = [1 if a in over else n for a, n in enumerate(shape)]
    output = layout.expand(shape, kept, layout.dense_strides(kept, (1,) * len(kept)))
    return (shape, tuple(operands), (output,), (over,)), draw(ITEMSIZES)


@given(enormous(), st.booleans())
@settings(max_examples=1000)
def test_no_integer_of_a_narrow_launch_passes_31_bits(drawn, may_split):
    arguments, itemsize = drawn
    arranged = layout.arrange(*arguments)
    tiling = choose_tiling(arranged, itemsize, may_split or len(arranged.extents) == 2)
    computed = max(_integers(arranged, tiling))
    assert tile_rules.needs_int64(arranged, tiling) or computed < 2**31
    assert computed > 2**30 or not tile_rules.needs_int64(arranged, tiling)


@given(enormous(), st.integers(1, 200))
def test_tiles_and_warps_are_powers_of_2_whatever_a_program_holds(drawn, live):
    arguments, itemsize = drawn
    arranged = layout.arrange(*arguments)
    tiling = choose_tiling(arranged, itemsize, True, live)
    assert all(n & (n - 1) == 0 for n in (*tiling.tile, tiling.warps))


@pytest.mark.parametrize("kept", [2**16 - 1, 2**16])
def test_partials_past_31_bits_take_int64(kept):
    """An output of so many elements has as many partials of each as there are programs along the loop."""
    arranged = layout.arrange((2, 2**20), ((0, 0),), ((0, 1),), (frozenset({0}),))
    tiling = choose_tiling(arranged, 4)._replace(splits=2**15 + 1)
    assert not tile_rules.needs_int64(arranged, tiling)
    assert tile_rules.needs_int64(arranged, tiling, [(0, kept, 0)]) == (kept == 2**16)


def test_a_launch_asks_about_its_partials(monkeypatch, replan):
    launch = pytest.importorskip("customops.triton_kernels.launch", reason="needs Triton")
    asked: list[tuple] = []
    replan()
    monkeypatch.setattr(launch, "needs_int64", lambda *args: asked.append(args[2:]) or tile_rules.needs_int64(*args))
    with customops.dry_run("cuda:90"):
        customops.sum(torch.empty(4096, 1024), 0)
    (partials,), (finalized,) = asked
    assert partials == ((0, 1024, 0),)
    assert finalized == ((0, 0, 0),)


def test_offsets_are_wide_past_31_bits():
    """Offsets of lanes that a mask hides count, too: a tile has 128 lanes."""
    step = (2**31 - 1) // 127
    for stride, wide in ((step, False), (step + 1, True)):
        arranged = layout.arrange((3,), ((stride,),), ((1,),), NONE)
        assert tile_rules.needs_int64(arranged, choose_tiling(arranged, 4)) == wide


def _integers(arranged, tiling):
    """Yield the indices and offsets that the first and the last program along each group compute, step by step."""
    if len(tiling.tile) == 2:
        starts = [{i * size for i in (0, n - 1)} for n, size in zip(tiling.tile_counts, tiling.tile, strict=True)]
        yield from (start + size for pair, size in zip(starts, tiling.tile, strict=True) for start in pair)
    else:
        kept, tiled = tiling.tile_counts
        looped = set()
        for split in (0, tiling.splits - 1):
            first = split * tiling.chunk
            yield first + tiling.chunk
            last = min(first + tiling.chunk, arranged.extents[layout.LOOPED])
            walk = range(first, last, tiling.tile[layout.LOOPED])
            yield walk[-1] + walk.step  # what ends the loop
            looped |= {first, walk[-1]}
        ends = [(n - 1) * size for n, size in ((kept, tiling.tile[0]), (tiled, tiling.tile[2]))]
        starts = [{0, ends[0]}, looped, {0, ends[1]}]
    pairs = zip(starts, tiling.tile, strict=True)
    lanes = [{start + lane for start in group for lane in (0, size // 2, size - 1)} for group, size in pairs]
    for index in product(*lanes):
        yield from index
        for groups in (*arranged.operand_strides, *arranged.output_strides):
            if groups:
                yield sum(_offset(i, n, g) for i, n, g in zip(index, arranged.sizes, groups, strict=True))


def _offset(index, sizes, strides):
    """Return the offset that the kernel computes for one group."""
    offset = 0
    for axis in reversed(range(len(sizes))):
        offset += (index % sizes[axis] if axis else index) * strides[axis]
        index //= sizes[axis]
    return offset
