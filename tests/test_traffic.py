"""What a launch moves of each tensor, counted from its tiling: held to cases computed by hand."""

from __future__ import annotations

import pytest

from .marks import formulas_only

pytest.importorskip("triton", reason="without Triton there are no kernels")
from customops.triton_kernels.layout import arrange
from customops.triton_kernels.tiling import Tiling
from customops.triton_kernels.traffic import Moves, TensorMoves, traffic

pytestmark = formulas_only

KEPT, SCRATCH, NUMBER = (2, False), (4, True), (0, False)  # bfloat16 tensors, float32 scratch buffers
ROWS, COLUMNS = 4096, 1024
MATRIX = ROWS * COLUMNS * 2  # bytes


def of_map(operands, tile=(8, 128), outputs=((COLUMNS, 1),), **options) -> tuple[TensorMoves, ...]:
    """Return what a map kernel of 4096 x 1024 elements moves: 512 x 8 tiles of 8 rows and 128 columns, 4 warps."""
    layout = arrange((ROWS, COLUMNS), tuple(operands), tuple(outputs), (frozenset(),) * len(outputs))
    counts = tuple(-(-n // size) for n, size in zip(layout.extents, tile, strict=True))
    arguments = [NUMBER if x is None else KEPT for x in (*operands, *outputs)]
    return traffic(layout, Tiling(tile, counts, 0, 1, 4, 1, False), arguments, **options).tensors


def of_rows(
    chunk: int, splits: int, tile=(1, 2, COLUMNS), arguments=(KEPT, KEPT, KEPT, SCRATCH), walks=(), **of_tiling
) -> Moves:
    """Return what a kernel moves that goes from row to row of x, reads a weight, stores z and a partial of a sum."""
    strides, row = (COLUMNS, 1), (0, 1)
    layout = arrange((ROWS, COLUMNS), (strides, row), (strides, row), (frozenset(), frozenset({0})), frozenset({1}))
    tiling = Tiling(tile, (1, 1), chunk, splits, 4, 2, False, **of_tiling)
    return traffic(layout, tiling, list(arguments), walks)


def test_contiguous_tensors_move_once():
    x, z = of_map([(COLUMNS, 1)], tile=(1, 4096))
    assert x == TensorMoves(MATRIX, MATRIX, MATRIX, 4096 * 2, 0, 0, 2, False, False)
    assert z == x._replace(is_stored=True)


def test_a_row_is_shared_by_all_programs_of_its_columns():
    """512 tiles down the rows read the same 2 bytes; 8 tiles lie along a row, so the next reader is 8 ids later."""
    x, weight, _ = of_map([(COLUMNS, 1), (0, 1)])
    assert (x.unique, x.by_programs, x.apart) == (MATRIX, MATRIX, 0)
    assert (weight.unique, weight.by_programs, weight.requested) == (2048, 512 * 2048, 512 * 2048)
    assert (weight.apart, weight.distance) == (8, 0)
    assert weight.by_lanes == 8 * 128 * 2  # each thread loads the elements that it works on


def test_a_column_is_shared_by_the_next_program():
    _, column, _ = of_map([(COLUMNS, 1), (1, 0)])
    assert (column.unique, column.requested, column.apart) == (8192, 8 * 8192, 1)
    assert column.by_lanes == 8 * 2  # a value of each row


def test_lanes_past_the_end_are_asked_for_and_move_nothing():
    """Tiles of 4096 columns, of which 1024 are there: 8 rows of each tile are whole."""
    (x, _) = of_map([(2 * COLUMNS, 1)], tile=(1, 4096), outputs=[(2 * COLUMNS, 1)])
    assert (x.requested, x.by_lanes) == (MATRIX, 8192)


def test_a_number_moves_nothing():
    _, number, _ = of_map([(COLUMNS, 1), None])
    assert number == TensorMoves(0, 0, 0, 0, 0, 0, 0, False, False)


def test_a_channel_is_read_again_by_programs_a_batch_later():
    """32 images of 64 channels of 1024 elements: each of 64 values is read 32 times by tiles of one channel's image."""
    shape, strides = (32, 64, 1024), (65536, 1024, 1)
    layout = arrange(shape, (strides, (0, 1, 0)), (strides,), (frozenset(),))
    tiling = Tiling((1, 1024), (2048, 1), 0, 1, 4, 1, False)
    _, channel, _ = traffic(layout, tiling, [KEPT] * 3).tensors
    assert (channel.unique, channel.by_programs) == (128, 2048 * 2)
    assert channel.apart == 2048 * 64 // 2048


def test_an_element_that_lanes_side_by_side_share_moves_once_for_each_program():
    """32 images of 64 channels of 1024 elements, added up over all images: each image has a scale.

    A program has a quarter of the images of a channel, in 32 steps of 256 elements: 8 images, of which it reads 8
    scales. Where a tile is a quarter of an image, so is what a program has of one.
    """
    shape, strides = (32, 64, 1024), (65536, 1024, 1)
    layout = arrange(shape, (strides, (1, 0, 0)), ((0, 1, 0),), (frozenset({0, 2}),))
    assert layout.sizes == ((64,), (32, 1024), ())
    tiling = Tiling((1, 256, 1), (64, 1), 32 * 256, 4, 4, 1, False)
    _, scale, _ = traffic(layout, tiling, [KEPT] * 3).tensors
    assert (scale.unique, scale.by_programs, scale.requested) == (64, 64 * 4 * 8 * 2, 64 * 4 * 8 * 2)
    of_quarters = tiling._replace(chunk=256, splits=128)
    assert traffic(layout, of_quarters, [KEPT] * 3).tensors[1].by_programs == 64 * 128 * 2


def test_partials_are_their_programs_own():
    """16 programs of 256 rows, in 128 steps of 2, write a partial of each column: 16 x 1024 x 4 bytes of scratch."""
    moves = of_rows(chunk=256, splits=16)
    x, weight, z, partial = moves.tensors
    assert moves.steps == 128
    assert (x.requested, z.requested, x.by_lanes) == (MATRIX, MATRIX, 256 * COLUMNS * 2)
    assert partial == TensorMoves(65536, 65536, 65536, 4096, 0, 0, 4, True, True)
    assert (weight.unique, weight.by_programs, weight.requested) == (2048, 16 * 2048, 16 * 2048)
    assert (weight.apart, weight.distance) == (1, 0)


def test_what_is_loaded_again_in_each_step_is_one_step_apart():
    """In 2 rows lie 2 x 2048 bytes of x and of z; of weight and partial each step has 1/128."""
    weight = of_rows(chunk=256, splits=16, reloads=True).tensors[1]
    assert (weight.by_programs, weight.requested) == (16 * 2048, 2048 * 2048)
    assert weight.distance == (2 * MATRIX + 16 * 2048 + 65536) / (16 * 128) == 4 * 2048 + 48


def test_a_row_that_is_walked_twice_is_asked_for_twice():
    """Tiles of 256 columns: 4 along a row, which a program walks twice. It cannot hold the weight for the next row.

    Until x is read again, a program has read 2 rows of it and stored, on average, half of those of z.
    """
    moves = of_rows(chunk=256, splits=16, tile=(1, 2, 256), walks=(2, 1, 1, 1), row_chunks=4, reloads=True)
    x, weight, z, partial = moves.tensors
    assert (x.unique, x.by_programs, x.requested) == (MATRIX, MATRIX, 2 * MATRIX)
    assert x.by_lanes == 2 * 256 * COLUMNS * 2
    assert weight.requested == 2048 * 2048
    assert x.distance == (1.5 * MATRIX + 65536 / 2) / (16 * 128)
    assert weight.distance == (2 * MATRIX + 16 * 2048 + 65536) / (16 * 128)
    assert z.distance == partial.distance == 0


def test_a_sum_in_memory_is_read_and_written_in_each_step():
    """128 steps, so that 256 times the partial of a program passes; a step lies between two uses of an element."""
    partial = of_rows(chunk=256, splits=16, tile=(1, 2, 256), walks=(1, 1, 1, 256), holds_sums=False).tensors[3]
    assert (partial.unique, partial.by_programs, partial.requested) == (65536, 65536, 256 * 65536)
    assert partial.distance == (2 * MATRIX + 16 * 2048 + 65536) / (16 * 128)
