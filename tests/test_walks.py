"""When a kernel that walks rows computes each value: held to cases worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from .marks import formulas_only

pytest.importorskip("triton", reason="without Triton there are no kernels")
from customops.triton_kernels.layout import Layout, arrange
from customops.triton_kernels.stage import KernelOp, Operand, Output, Stage
from customops.triton_kernels.walks import (
    Walks,
    accumulates,
    arrange_walks,
    held_values,
    varying,
    walk_counts,
    walked_values,
)

pytestmark = formulas_only

BATCH, ROWS, COLUMNS = 3, 5, 70
WHOLE, ROW, COLUMN, NUMBER = (ROWS * COLUMNS, COLUMNS, 1), (0, 0, 1), (ROWS, 1, 0), (0, 0, 0)
OF_BATCH = (COLUMNS, 0, 1)  # a row of weights for each of the batch


def stage_of(operands: Sequence, ops: Sequence[tuple], outputs: Sequence[tuple]) -> tuple[Stage, Layout]:
    """Return a stage over a batch of rows, and its layout.

    Each operand has its strides. Each op has its name and inputs, and True if it reduces over the row; each output has
    its value and strides, and the axes that it is reduced over.
    """
    results = [
        Output(value, len(operands) + i, strides, "sum" if axes else None, frozenset(axes))
        for i, (value, strides, *axes) in enumerate(outputs)
    ]
    kernel_ops = [KernelOp(name, inputs, None, bool(reduces)) for name, inputs, *reduces in ops]
    loaded = tuple(Operand(i, strides, "x") for i, strides in enumerate(operands))
    stage = Stage((BATCH, ROWS, COLUMNS), loaded, tuple(kernel_ops), tuple(results), frozenset({2}))
    all_strides = tuple(operands), tuple(x.strides for x in results)
    return stage, arrange(stage.shape, *all_strides, tuple(x.reduced_axes for x in results), stage.row_axes)


def softmax():
    """Return exp(x - amax(x)) / sum(exp(x - amax(x))): values 1 amax, 2 sub, 3 exp, 4 sum, 5 div."""
    ops = [("amax", (0,), True), ("sub", (0, 1)), ("exp", (2,)), ("sum", (3,), True), ("div", (3, 4))]
    return stage_of([WHOLE], ops, [(5, WHOLE)])


def rms_norm():
    """Return x · rsqrt(mean(x²)) · w: values 2 x², 3 mean, 4 rsqrt, 5 and 6 mul."""
    ops = [("mul", (0, 0)), ("mean", (2,), True), ("rsqrt", (3,)), ("mul", (0, 4)), ("mul", (5, 1))]
    return stage_of([WHOLE, ROW], ops, [(6, WHOLE)])


def layer_norm_backward():
    """Return dx, and Σ g·h and Σ g over all rows, of saved means and scales: h = (x - mean) · scale.

    Values: 0 g, 1 x, 2 w, 3 mean, 4 scale; 5 x - mean, 6 h, 7 g·w, 8 its mean, 9 g·w·h, 10 its mean, 11 h · that,
    12 g·w - mean, 13 less 11, 14 dx; 15 g·h.
    """
    ops = [("sub", (1, 3)), ("mul", (5, 4)), ("mul", (0, 2)), ("mean", (7,), True), ("mul", (7, 6))]
    ops += [("mean", (9,), True), ("mul", (6, 10)), ("sub", (7, 8)), ("sub", (12, 11)), ("mul", (13, 4))]
    ops += [("mul", (0, 6))]
    return stage_of([WHOLE, WHOLE, ROW, COLUMN, COLUMN], ops, [(14, WHOLE), (15, ROW, 0, 1), (0, ROW, 0, 1)])


def test_softmax_takes_three_walks():
    assert arrange_walks(*softmax()) == Walks(
        count=3,
        varies=(True, False, True, True, False, True),
        walks=(0b111, 0, 0b110, 0b110, 0, 0b100),
        after=(0, 1, 1, 1, 2, 2),
        stored=(2,),
    )


def test_rms_norm_takes_two_walks_and_reads_its_weight_in_the_second():
    assert arrange_walks(*rms_norm()) == Walks(
        count=2,
        varies=(True, True, True, False, False, True, True),
        walks=(0b11, 0b10, 0b01, 0, 0, 0b10, 0b10),
        after=(0, 0, 0, 1, 1, 1, 1),
        stored=(1,),
    )


def test_both_sums_of_layer_norms_backward_come_of_one_walk_and_the_last_gathers():
    walks = arrange_walks(*layer_norm_backward())
    assert (walks.count, walks.stored) == (2, (1, 1, 1))
    assert walks.walks == (0b11, 0b11, 0b11, 0, 0, 0b11, 0b11, 0b11, 0, 0b01, 0, 0b10, 0b10, 0b10, 0b10, 0b10)
    assert walks.after == (0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 1, 1, 1, 1, 0)
    assert [i for i, varies in enumerate(walks.varies) if not varies] == [3, 4, 8, 10]


def test_what_waits_for_no_sum_is_stored_in_the_first_walk():
    """The sum x + r is a result, and is normalised."""
    ops = [("add", (0, 1)), ("mul", (2, 2)), ("mean", (3,), True), ("rsqrt", (4,)), ("mul", (2, 5))]
    walks = arrange_walks(*stage_of([WHOLE, WHOLE], ops, [(2, WHOLE), (6, WHOLE)]))
    assert (walks.count, walks.stored) == (2, (0, 1))
    assert walks.walks == (0b11, 0b11, 0b11, 0b01, 0, 0, 0b10)


def test_one_value_for_a_row_is_stored_after_its_last_walk_and_takes_no_more():
    """The mean of x, and of (x - mean)²; a bias of each row joins in between walks."""
    ops = [("mean", (0,), True), ("sub", (0, 2)), ("mul", (3, 3)), ("mean", (4,), True), ("add", (5, 1))]
    stage, layout = stage_of([WHOLE, COLUMN], ops, [(2, COLUMN), (6, COLUMN)])
    walks = arrange_walks(stage, layout)
    assert (walks.count, walks.stored) == (2, (-1, -1))
    assert walks.walks == (0b11, 0, 0, 0b10, 0b10, 0, 0)
    assert walks.after == (0, 0, 1, 1, 1, 2, 2)
    assert accumulates(layout) == []


def test_a_value_of_the_row_that_fills_a_row_is_stored_in_a_walk_of_its_own():
    walks = arrange_walks(*stage_of([WHOLE], [("sum", (0,), True)], [(1, WHOLE)]))
    assert (walks.count, walks.stored, walks.walks) == (2, (1,), (0b01, 0))


def test_only_sums_for_each_element_of_a_row_accumulate():
    """Of exp(x - amax(x)): Σ over all rows, Σ over all, amax, Σ of amax over all rows, and the value itself."""
    ops = [("amax", (0,), True), ("sub", (0, 1)), ("exp", (2,))]
    outputs = [(3, ROW, 0, 1), (3, NUMBER, 0, 1, 2), (1, COLUMN), (1, NUMBER, 0, 1), (3, WHOLE)]
    stage, layout = stage_of([WHOLE], ops, outputs)
    assert accumulates(layout) == [0]
    walks = arrange_walks(stage, layout)
    assert (walks.count, walks.stored) == (2, (1, 1, -1, -1, 1))


def test_what_the_last_walk_would_have_to_load_again_is_gathered_before():
    """Of exp(y) · sum(x) the sum of x over all rows is gathered as x is added up: the last walk reads y alone."""
    ops = [("sum", (0,), True), ("exp", (1,)), ("mul", (3, 2))]
    stage, layout = stage_of([WHOLE, WHOLE], ops, [(4, WHOLE), (0, ROW, 0, 1)])
    assert accumulates(layout) == [1]
    walks = arrange_walks(stage, layout)
    assert (walks.stored, walks.walks[:2]) == ((1, 0), (0b01, 0b10))


def test_weights_of_each_in_a_batch_are_gathered_over_its_rows():
    """The axis of the batch is the outer group, which no output is reduced over."""
    ops = [("mul", (0, 1)), ("sum", (2,), True), ("mul", (0, 3))]
    stage, layout = stage_of([WHOLE, OF_BATCH], ops, [(4, OF_BATCH, 1)])
    assert layout.extents == (BATCH, ROWS, COLUMNS)
    assert accumulates(layout) == [0]
    assert varying(stage, layout) == [True, True, True, False, True]


def test_sums_over_the_outer_group_too_accumulate():
    ops = [("sum", (0,), True), ("mul", (0, 1))]
    stage, layout = stage_of([WHOLE], ops, [(2, OF_BATCH, 1), (2, ROW, 0, 1)])
    assert accumulates(layout) == [0, 1]
    assert arrange_walks(stage, layout).stored == (1, 1)


@pytest.mark.parametrize("reloads", [False, True])
def test_a_held_row_counts_what_lives_at_once(reloads):
    """Softmax holds x and its exponential; RMSNorm in the end the weight, and a product before and after it."""
    assert held_values(*softmax(), reloads=reloads) == 2
    assert held_values(*rms_norm(), reloads=reloads) == 3


def test_a_held_row_counts_what_it_gathers_and_the_weight_for_the_next_row():
    """At value 12 it holds that, 0 g, 6 h, 7 g·w and 11, beside two sums, and 2 w unless that is loaded again."""
    assert held_values(*layer_norm_backward(), reloads=True) == 5 + 2
    assert held_values(*layer_norm_backward(), reloads=False) == 6 + 2


def test_a_walked_row_counts_the_values_of_its_fullest_walk_and_its_totals():
    """Softmax: x, x - amax, and the total of exponentials. RMSNorm: x, x² and a total; or w, x and their product."""
    assert walked_values(softmax()[0], arrange_walks(*softmax())) == 3
    assert walked_values(rms_norm()[0], arrange_walks(*rms_norm())) == 3


@pytest.mark.parametrize(("holds_sums", "sums"), [(True, 1), (False, 2 * 4)])
def test_a_program_goes_over_operands_in_each_walk_and_over_sums_in_memory_in_each_step(holds_sums, sums):
    stage, layout = layer_norm_backward()
    counts = walk_counts(arrange_walks(stage, layout), layout, 4, holds_sums)
    assert counts == [2, 2, 2, 1, 1, 1, sums, sums]
    assert walk_counts(None, layout, 4, holds_sums) == []
