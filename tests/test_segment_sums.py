"""Sums over a segment of each row and over other axes: the kernel that holds the rows leaves sums of their segments.

GroupNorm's gradients of weights are such sums: a row is all channels of a group, a weight is of one channel, and of all
samples. So x and the cotangent are read once for all three gradients.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as torchs

import customops
from customops.nn import functional as f

from .conftest import KERNELS, MODE, NO_KERNEL
from .test_walk_values import assert_torchs, draw

pytest.importorskip("triton", reason="without Triton there are no kernels")
from customops.triton_kernels.layout import arrange
from customops.triton_kernels.tiling import Tiling
from customops.triton_kernels.traffic import traffic

by_kernels = pytest.mark.skipif(not KERNELS, reason=NO_KERNEL)
formulas_only = pytest.mark.skipif(MODE != "formulas", reason="a dry run compiles, and counts are the same")

GROUPS = 2


def group_norm(lib, x, weight, bias):
    return (f if lib is customops else torchs).group_norm(x, GROUPS, weight, bias)


def scaled_by_segments(lib, x, a, b):
    """Return what has two sums of gradients over segments of rows, and one over rows alone."""
    return lib.exp(x - lib.amax(x, (2, 3), keepdim=True)) * a + b


def sums_of_segments(lib, x):
    """Return a row's norm, and beside it the sums of segments that a user asks for."""
    y = x * lib.rsqrt(lib.mean(x * x, (2, 3), keepdim=True))
    return y, lib.sum(y, (0, 3))


def sum_over_samples(lib, x, weight, bias):
    """Return what sends the same cotangent to all samples: the bias's gradient counts them, and has no x."""
    return lib.sum(group_norm(lib, x, weight, bias), 0)


def two_sums_of_the_same_segments(lib, x):
    """Return a row's norm, and sums over the same segments and other axes: each, and all of a sample's."""
    y = x * lib.rsqrt(lib.mean(x * x, (2, 3), keepdim=True))
    return y, lib.sum(y, (0, 3)), lib.sum(y, (1, 3))


def scaled_by_elements(lib, a, x, b):
    """Return rows that are planes, with a weight of each of their elements and one of each column."""
    return x * lib.rsqrt(lib.mean(x * x, (1, 2), keepdim=True)) * a * b


CHANNELS = [(4,), (4,)]
CASES = {
    "a channel is one segment": (group_norm, [(3, 4, 16), *CHANNELS]),
    "a channel is several segments": (group_norm, [(3, 4, 96), *CHANNELS]),
    "the last tile is not full": (group_norm, [(3, 10, 32), (10,), (10,)]),
    "channels are planes": (group_norm, [(2, 4, 4, 8), *CHANNELS]),
    "one sample": (group_norm, [(1, 4, 32), *CHANNELS]),
    "one channel is a group": (group_norm, [(3, 2, 64), (2,), (2,)]),
    "segments too short to be worth it": (group_norm, [(3, 4, 7, 5), *CHANNELS]),
    "a row of weights, too": (scaled_by_segments, [(2, 3, 5, 32), (3, 5, 1), (32,)]),
    "sums that a user asks for": (sums_of_segments, [(2, 3, 5, 32)]),
    "a cotangent of all samples": (sum_over_samples, [(3, 4, 32), *CHANNELS]),
    "two sums of the same segments": (two_sums_of_the_same_segments, [(2, 3, 5, 32)]),
}
LAYOUTS = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "planes transposed": lambda x: x.mT.contiguous().mT,
    "sliced": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
    "unaligned": lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape),
}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@by_kernels
@pytest.mark.sample(kernels="name, walked", compiled="name, walked")
@pytest.mark.parametrize("walked", [False, True], ids=["held", "walked"])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_torchs(name, walked, walking, device):
    if walked:
        walking()
    function, shapes = CASES[name]
    assert_torchs(function, draw(shapes, device))


@by_kernels
@pytest.mark.sample(kernels="layout, walked", compiled="layout, walked")
@pytest.mark.parametrize("walked", [False, True], ids=["held", "walked"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_segments_are_of_elements_side_by_side_however_the_rows_lie(layout, walked, walking, device):
    if walked:
        walking()
    x, *weights = draw([(3, 4, 8, 16), *CHANNELS], device)
    assert_torchs(group_norm, [LAYOUTS[layout](x), *weights])


@by_kernels
@pytest.mark.sample(kernels="walked", compiled="walked")
@pytest.mark.parametrize("walked", [False, True], ids=["held", "walked"])
def test_segments_lie_side_by_side_where_partials_are_of_a_transposed_weight(walked, walking, device):
    """Rows have the order of the first weight, column after column, and its partials have it too."""
    if walked:
        walking()
    a, *others = draw([(32, 8), (40, 32, 8), (8,)], device)
    assert_torchs(scaled_by_elements, [LAYOUTS["planes transposed"](a), *others])


@by_kernels
@pytest.mark.sample(kernels="dtype", compiled="dtype")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_of_segments_are_rounded_once(dtype, device):
    assert_torchs(group_norm, draw([(5, 4, 48), *CHANNELS], device, dtype))


def backward_of(function, shapes, layout=lambda x: x) -> list:
    """Return the launches of the gradients of a fused function."""
    x, *weights = (torch.empty(shape) for shape in shapes)
    xs = [x.requires_grad_() for x in (layout(x), *weights)]
    with customops.dry_run("cuda:90") as records:
        z = customops.fuse(lambda *xs: function(customops, *xs))(*xs)
        forward = len(records)
        torch.autograd.grad(z, xs, torch.empty_like(z))
    return records[forward:]


@formulas_only
@pytest.mark.parametrize("length", [64 * 64, 256 * 256], ids=["held", "walked"])
def test_x_and_the_cotangent_are_read_from_dram_once_for_all_gradients(length):
    """3 tensors and the sums of segments: 2 sums of 4 bytes for each 1024 elements."""
    rows, *others = backward_of(group_norm, [(64, 8, length), (8,), (8,)])
    assert len(others) == 1
    assert "Σ of each 1024" in rows.program
    tensor, segments = 4 * 64 * 8 * length, 4 * 64 * 8 * length // 1024
    own = [m.unique for m in rows.moves.tensors if m.unique >= segments]
    assert sorted(own) == [segments, segments, tensor, tensor, tensor]
    assert rows.estimate.spills == 0


@formulas_only
@pytest.mark.parametrize(
    ("shape", "layout"),
    [((64, 8, 7, 7), lambda x: x), ((64, 8, 16, 16), LAYOUTS["channels last"])],
    ids=["short segments", "channels last"],
)
def test_rows_whose_segments_are_short_or_apart_are_read_again(shape, layout):
    records = backward_of(group_norm, [shape, (8,), (8,)], layout)
    assert len(records) >= 2
    assert not any("Σ of each" in record.program for record in records)


@formulas_only
def test_sums_over_outer_axes_of_a_row_do_not_keep_others_from_it():
    rows, *others = backward_of(scaled_by_segments, [(2, 3, 50, 320), (3, 50, 1), (320,)])
    assert "Σ of each 64" in rows.program
    assert len(others) == 2  # the sum of segments; and over outer axes that of the cotangent, which is read again


@formulas_only
def test_two_sums_of_the_same_segments_leave_them_in_memory_once():
    with customops.dry_run("cuda:90") as records:
        customops.fuse(lambda x: two_sums_of_the_same_segments(customops, x))(torch.empty(2, 3, 50, 320))
    rows, *others = records
    assert rows.program.count("Σ of each 64") == 1
    assert len(others) == 2


@formulas_only
def test_sums_of_segments_are_moved_once():
    """64 rows of 4096 elements in chunks of 1024 have 4 segments of 1024 or 32 of 128 each, in float32."""
    shape, strides = (64, 4096), (4096, 1)
    for segment in (1024, 128):
        per_row = 4096 // segment
        layout = arrange(shape, (strides,), (strides, (per_row, 0)), (frozenset(),) * 2, frozenset({1}), (0, segment))
        tiling = Tiling((1, 1, 1024), (1, 1), 4, 16, 4, 2, False, reloads=True)
        *_, sums = traffic(layout, tiling, [(4, False), (4, False), (4, True)], [2, 1, 1]).tensors
        assert (sums.unique, sums.by_programs, sums.requested) == (64 * per_row * 4,) * 3
        assert sums.by_lanes == 4 * per_row * 4  # of a program's 4 rows
        assert sums.is_stored


@formulas_only
def test_a_graph_is_left_as_it_was():
    """The axes of segments are the partition's own: another call of the same graph finds none of them."""
    fused = customops.fuse(lambda *xs: group_norm(customops, *xs))
    for length in (64, 1024, 64):
        xs = [torch.empty(shape, requires_grad=True) for shape in ((4, 8, length), (8,), (8,))]
        with customops.dry_run("cuda:90") as records:
            z = fused(*xs)
            torch.autograd.grad(z, xs, torch.empty_like(z))
        assert len(records) == 3
