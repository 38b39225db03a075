"""The parts of the engine of blocks: its space, the passes over it, the memory of temporaries."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise, product
from math import ceil, prod
from threading import Thread
from typing import Any

import pytest
import torch
from customops.triton_kernels.stage import Argument, KernelOp, Operand, Output, Stage

from customops.blocks import pages, plan, space, workspace
from customops.blocks.slots import Program, Slot

from .conftest import MODE

pytest.importorskip("hypothesis", reason="it draws the shapes")
from hypothesis import given, settings
from hypothesis import strategies as st

from . import test_hypothesis  # noqa: F401 - it registers the profile

settings.load_profile("customops")  # again, as torch's own tests load another when they are imported

pytestmark = pytest.mark.skipif(MODE != "formulas", reason="the same whatever computes: seen once")

CPU = torch.device("cpu")
SHAPE = (4, 9)
FULL, COLUMN, ROW = (True, True), (True, False), (False, True)


# Space


@st.composite
def stages(draw) -> Stage:
    """Draw a stage whose tensors are permuted, sliced or broadcast along axes, and reduced over some."""
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=4)))
    axes = range(len(shape))
    some = st.sets(st.sampled_from(axes)).map(frozenset)

    def strides(absent) -> tuple[int, ...]:
        order, step = draw(st.permutations(axes)), draw(st.sampled_from((1, 1, 1, 2)))
        found = [0] * len(shape)
        for a in order if draw(st.booleans()) else reversed(axes):
            if a not in absent:
                found[a], step = step, step * shape[a]
        return tuple(found)

    operands = tuple(Operand(i, strides(draw(some)), f"x{i}") for i in range(draw(st.integers(1, 3))))
    reduced = draw(some)
    output = Output(0, len(operands), strides(reduced), "sum" if reduced else None, reduced)
    return Stage(shape, operands, (), (output,), draw(some))


def addresses(sizes, tensors, rows, ranges) -> Counter:
    """Count where each tensor is read at the elements of these ranges, and in which row they are."""
    outer = [0 if a in rows else 1 for a in range(len(sizes))]
    found: Counter = Counter()
    for index in product(*ranges):
        places = [sum(i * s for i, s in zip(index, strides, strict=True)) for strides in tensors]
        found[(*places, sum(i * s * k for i, s, k in zip(index, tensors[0], outer, strict=True)))] += 1
    return found


@settings(max_examples=150)
@given(stages(), st.integers(1, 90), st.sampled_from((1, 3, space.LINE_ELEMENTS)), st.integers(1, 3))
def test_each_element_of_a_stage_is_in_one_block(stage, elements, line, threads):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(space, "LINE_ELEMENTS", line)
        whole = space.lay_out(stage, elements)
        found = space.share(whole, threads) if threads > 1 else whole
        steps = space.cut(found, elements, uncut_axes=found.rank - whole.rank)
    tensors = [*found.operand_strides, *found.output_strides]
    blocks: Counter = Counter()
    starts = [range(0, n, step) for n, step in zip(found.sizes, steps, strict=True)]
    shapes = list(space.lengths(found.sizes, steps))
    for start, shape in zip(product(*starts), shapes, strict=True):
        ranges = [range(i, i + n) for i, n in zip(start, shape, strict=True)]
        blocks += addresses(found.sizes, tensors, found.row_axes, ranges)
    given = [*(x.strides for x in stage.operands), stage.outputs[0].strides]
    assert blocks == addresses(stage.shape, given, stage.row_axes, map(range, stage.shape))
    assert max(map(prod, shapes)) <= max(elements, threads)
    assert prod(found.sizes[a] for a in found.reduced_axes[0]) == prod(
        stage.shape[a] for a in stage.outputs[0].reduced_axes
    )


def stage_of(shape, *operands, rows=(), output=None) -> Stage:
    """Return a stage of operands in these strides, which rows are reduced in."""
    tensors = tuple(Operand(i, strides, f"x{i}") for i, strides in enumerate(operands))
    return Stage(shape, tensors, (), (Output(0, len(operands), output or operands[0]),), frozenset(rows))


def test_axes_that_every_tensor_walks_as_one_are_one_in_a_space_of_several_blocks():
    dense = stage_of((4, 6, 8), (48, 8, 1))
    assert space.lay_out(dense, 100).sizes == (192,)
    assert space.lay_out(dense, 192).sizes == (4, 6, 8), "one block sees tensors as they are"
    assert space.lay_out(stage_of((4, 6, 8), (48, 8, 1), (0, 8, 1)), 100).sizes == (4, 48)
    assert space.lay_out(stage_of((4, 6, 8), (48, 8, 1), rows=(2,)), 100).sizes == (24, 8)
    assert space.lay_out(stage_of((4, 1, 8), (8, 7, 1), (8, 0, 1)), 10).sizes == (32,)


def test_threads_share_the_outermost_axis_where_it_divides_and_is_not_reduced_over():
    rows = space.lay_out(stage_of((64, 32), (32, 1), rows=(1,)), 100)
    shared = space.share(rows, 2)
    assert (shared.sizes, shared.operand_strides, shared.row_axes) == ((2, 32, 32), ((1024, 32, 1),), {2})
    assert space.cut(shared, 200, uncut_axes=1) == (2, 3, 32), "each block has a part of each half"
    over = space.lay_out(stage_of((64, 32), (32, 1), rows=(0,)), 100)
    for kept, threads in ((rows, 3), (rows, 64), (over, 2)):
        assert space.share(kept, threads) is kept


def test_axes_go_as_the_largest_tensor_lies():
    transposed = space.lay_out(stage_of((4, 6), (1, 4), (1, 0), rows=(0,)), 10)
    assert (transposed.sizes, transposed.operand_strides) == ((6, 4), ((4, 1), (0, 1)))
    assert transposed.row_axes == {1}


@pytest.mark.parametrize(
    ("stage", "elements", "steps"),
    [
        (stage_of((64, 32), (32, 1), rows=(1,)), 100, (3, 32)),
        (stage_of((64, 32), (32, 1), rows=(1,)), 20, (1, 16)),
        (stage_of((64, 32), (32, 1), rows=(0,)), 1024, (64, 16)),
        (stage_of((64, 32), (32, 1), rows=(0,)), 256, (16, 16)),  # columns a cache line wide, then rows
        (stage_of((64, 32), (32, 1), rows=(0,)), 8, (1, 8)),
        (stage_of((10,), (1,)), 4, (4,)),
        (stage_of((10,), (1,)), 9, (5,)),  # two blocks of one length
        (stage_of((), ()), 1, (1,)),
    ],
    ids=lambda x: str(x.shape) + "over" * bool(x.row_axes) if isinstance(x, Stage) else str(x),
)
def test_rows_are_cut_last_and_lines_before(stage, elements, steps):
    assert space.cut(space.lay_out(stage, elements), elements) == steps


@given(st.integers(1, 1000), st.integers(1, 1000))
def test_blocks_along_an_axis_are_of_about_one_length(size, elements):
    (step,) = space.cut(space.lay_out(stage_of((max(size, 2),), (1,)), elements), elements)
    sizes = [shape[0] for shape in space.lengths((max(size, 2),), (step,))]
    assert len(sizes) == ceil(max(size, 2) / elements)
    assert sum(sizes) == max(size, 2)


# Passes


def plan_of(stage: Stage, dtype: torch.dtype = torch.float32) -> plan.Plan:
    arguments = [Argument(dtype)] * (len(stage.operands) + len(stage.outputs))
    return plan.Plan([stage], arguments, dtype, CPU)


SOFTMAX = (
    KernelOp("amax", (0,), reduces=True),
    KernelOp("sub", (0, 2, 1)),
    KernelOp("exp", (3,)),
    KernelOp("sum", (4,), reduces=True),
    KernelOp("div", (4, 5)),
)


@pytest.mark.parametrize(("rows", "elements", "walks"), [(1, 16, 3), (4, 16, 3), (4, 64, 1), (4, 1000, 1)])
def test_a_row_that_is_cut_takes_a_walk_for_each_reduction_of_another(rows, elements, walks, blocks):
    blocks(elements // 2)  # which are of 8 bytes
    operands = Operand(0, (50, 1), "x"), Operand(1, None, "alpha")
    stage = Stage((rows, 50), operands, SOFTMAX, (Output(6, 2, (50, 1)),), frozenset({1}))
    made = plan.Plan([stage], [Argument(torch.float32), None, Argument(torch.float32)], torch.float32, CPU)
    assert len(made.walks({1: 1})) == walks
    x = torch.randn(rows, 50)
    z = torch.empty_like(x)
    made([x, 1], [z])
    torch.testing.assert_close(z, torch.softmax(x, 1))


@pytest.mark.parametrize("name", ["sum", "mean", "amax", "amin"])
@pytest.mark.parametrize("elements", [1, 2, 3, 7, 100])
def test_a_value_that_lacks_an_axis_counts_once_for_each_element_along_it(name, elements, blocks):
    blocks(elements)
    x = torch.rand(5, dtype=torch.float64) + 1
    whole = x.expand(6, 5)
    for reduced, strides in ((frozenset({0, 1}), (0, 0)), (frozenset({0}), (0, 1)), (frozenset({1}), (1, 0))):
        count = prod(whole.shape[a] for a in reduced)
        stage = Stage((6, 5), (Operand(0, (0, 1), "x"),), (), (Output(0, 1, strides, name, reduced, count),))
        want = getattr(torch, name)(whole, tuple(reduced), keepdim=True)
        z = torch.empty_like(want)
        plan_of(stage, torch.float64)([x], [z])
        torch.testing.assert_close(z, want)


def test_what_has_fewer_axes_is_computed_in_a_walk_of_its_own(blocks):
    blocks(2)
    operands = Operand(0, (5, 1), "x"), Operand(1, (0, 1), "y")
    ops = KernelOp("mul", (0, 1)), KernelOp("exp", (1,))
    outputs = Output(2, 2, (5, 1)), Output(3, 3, (0, 1)), Output(3, 4, (0, 0), "sum", frozenset({1}), 5)
    made = plan_of(Stage((6, 5), operands, ops, outputs), torch.float64)
    x, y = torch.rand(6, 5, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    got = [torch.empty(s, dtype=torch.float64) for s in ((6, 5), (5,), ())]
    made([x, y], got)
    for mine, true in zip(got, (x * y, y.exp(), y.exp().sum()), strict=True):
        torch.testing.assert_close(mine, true)
    assert [walk.blocks for walk in made.walks({})] == [6 * 3, 3]


def test_a_result_along_more_axes_than_its_value_does_not_add_up_totals_again(blocks):
    """A sum has a walk of its own where another value of that pass is written along an axis that it lacks."""
    blocks(2)
    operands = (Operand(0, (1, 0), "x"),)
    ops = KernelOp("exp", (0,)), KernelOp("sum", (1,), reduces=True)
    outputs = Output(1, 1, (7, 1)), Output(2, 2, (0, 1))
    x = torch.rand(6, dtype=torch.float64)
    got = [torch.empty(s, dtype=torch.float64) for s in ((6, 7), (7,))]
    plan_of(Stage((6, 7), operands, ops, outputs, frozenset({0})), torch.float64)([x], got)
    torch.testing.assert_close(got[0], x.exp()[:, None].expand(6, 7))
    torch.testing.assert_close(got[1], x.exp().sum().expand(7))


# Memory


SLOTS = Program([], [Slot(torch.float32, (True, False)), Slot(torch.bool, FULL), Slot(torch.float64, ROW)], [1.5])


def in_thread(function) -> Any:
    """Return what a function returns in another thread."""
    found: list = []
    thread = Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def addresses_of(table: list) -> list[int]:
    return [x.data_ptr() for x in table[:3]]


def test_temporaries_of_all_programs_are_one_memory_in_a_thread_and_another_in_another():
    first, second = workspace.Workspace(SHAPE, SLOTS), workspace.Workspace(SHAPE, SLOTS)
    mine = first.add(SHAPE)
    assert mine is first.tables[SHAPE]
    assert addresses_of(second.add(SHAPE)) == addresses_of(mine)
    smaller = first.add((2, 3))
    assert addresses_of(smaller) == addresses_of(mine)
    assert [tuple(x.shape) for x in smaller[:3]] == [(2, 1), (2, 3), (1, 3)]
    assert smaller[3] == mine[3] == 1.5
    theirs = in_thread(lambda: workspace.Workspace(SHAPE, SLOTS).add(SHAPE))
    assert not {*addresses_of(theirs)} & {*addresses_of(mine)}


def test_temporaries_begin_at_cache_lines_and_do_not_overlap():
    table = workspace.Workspace(SHAPE, SLOTS).add(SHAPE)[:3]
    for x, following in pairwise(table):
        assert x.is_contiguous()
        assert x.data_ptr() % workspace.ALIGNMENT == 0
        assert x.data_ptr() + x.nbytes <= following.data_ptr()


def test_temporaries_made_in_inference_mode_are_written_outside_of_it():
    def use():
        with torch.inference_mode():
            made = workspace.Workspace(SHAPE, SLOTS)
            made.add(SHAPE)
        torch.exp(torch.zeros(4, 1), out=made.tables[SHAPE][0])
        return made.tables[SHAPE][0].sum().item()

    assert in_thread(use) == 4


def test_what_takes_more_than_a_thread_has_or_is_nested_has_memory_of_its_own(monkeypatch):
    usual = workspace.Workspace(SHAPE, SLOTS)
    assert usual.is_shared
    monkeypatch.setattr(workspace.THREAD, "is_busy", True)
    nested = workspace.Workspace(SHAPE, SLOTS)
    monkeypatch.undo()
    large = workspace.Workspace((1 << 13, 1 << 13), SLOTS)
    for other in (nested, large):
        assert not other.is_shared
        assert not {*addresses_of(other.add(SHAPE))} & {*addresses_of(usual.add(SHAPE))}


@pytest.mark.parametrize("numel", [0, 1, 1023, 5000, (1 << 20) + 3])
def test_advice_about_pages_changes_no_value(numel, monkeypatch):
    x = torch.arange(numel + 1, dtype=torch.float32)
    for tensor in (x, x[1:], x[::2]):
        before = tensor.clone()
        pages.advise(tensor)
        with monkeypatch.context() as patch:
            patch.setattr(pages, "_madvise", None)  # as on another system than Linux
            pages.advise(tensor)
        assert torch.equal(tensor, before)
