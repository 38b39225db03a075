"""Rows that are walked have the values and gradients of rows that are held: torch's, in float64.

Rows are short here; constants of the tiling have programs walk them in chunks of an element or a warp for each thread,
with sums in registers or in memory, and several blocks of rows for each program.
"""

from __future__ import annotations

import pytest
import torch

import customops
from customops import config, fuse

from .compare import cotangent
from .conftest import INTERPRETED, KERNELS, NO_KERNEL
from .programs import PROGRAMS, layer_norm, min_max, rms_norm, softmax

pytest.importorskip("triton", reason="without Triton there are no kernels")
from customops.triton_kernels.walk import walk_kernel

from customops.compiler.executable import Executable
from customops.fusion.function import Fusion

pytestmark = pytest.mark.skipif(not KERNELS, reason=NO_KERNEL)

WITHOUT_ROWS = ("gelu", "swiglu", "bias_relu_scale", "mse", "weighted_mean")

SUMS = {
    "in memory": {},
    "in memory, of a block each": {"MAX_L2_BYTES": 1 << 30, "MULTIPROCESSORS": 132},
    "in registers": {"SUM_WARPS": ((1, 1 << 20),), "WARP_THREADS": 8},
}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def mean_of_softmax(lib, x):
    return lib.mean(softmax(lib, x, 0), 1)


def loss(lib, x):
    return lib.mean(lib.exp(x - lib.amax(x, -1, keepdim=True)) * x)


def over_rows_and_all(lib, x, w):
    y = softmax(lib, x) * w
    return lib.sum(y, 0), lib.mean(y), lib.amax(y, 0), lib.amax(x, -1)


def statistics(lib, x):
    mean = lib.mean(x, -1, keepdim=True)
    return mean, lib.mean((x - mean) ** 2, -1)


def normalise(dims):
    def function(lib, x, weight, bias):
        centred = x - lib.mean(x, dims, keepdim=True)
        return centred * lib.rsqrt(lib.mean(centred * centred, dims, keepdim=True) + 1e-5) * weight + bias

    return function


def of_columns(lib, x, weight):
    return x * lib.rsqrt(lib.mean(x * x, 0, keepdim=True) + 1e-6) * weight


def scaled_columns(lib, x, a, b):
    return softmax(lib, x * a + b, 0) * a * b


def scaled(lib, x, a, b):
    return softmax(lib, x * a + b) * a * b


def residual(lib, x, y, weight):
    return x + y, rms_norm(lib, x + y, weight)


def sums_over_two_sets(lib, x):
    y = x * lib.rsqrt(lib.mean(x * x, 2, keepdim=True) + 1e-5)
    return lib.sum(y, 1), lib.sum(y, (0, 2)), lib.sum(y)


def sums_over_rows_and_either(lib, x):
    y = x * lib.rsqrt(lib.mean(x * x, 2, keepdim=True) + 1e-5)
    return lib.sum(y, (0, 2)), lib.sum(y, (1, 2))


def chain(lib, x):
    return softmax(lib, softmax(lib, softmax(lib, x) * 9) * 9)


CASES = {
    "a loss of all rows": (loss, [(5, 37)]),
    "a loss of one row": (loss, [(1, 37)]),
    "a loss of rows and ones": (loss, [(3, 1, 37)]),
    "sums over rows and all": (over_rows_and_all, [(7, 37), (37,)]),
    "statistics": (statistics, [(5, 37)]),
    "mean of columns in one block": (mean_of_softmax, [(37, 5)]),
    "mean of columns in several": (mean_of_softmax, [(37, 19)]),
    "group norm": (normalise((2, 3)), [(3, 2, 3, 11), (2, 3, 1), (2, 3, 1)]),
    "batch norm": (normalise((0, 2)), [(3, 5, 13), (5, 1), (5, 1)]),
    "batch norm of one channel": (normalise((0, 2)), [(3, 1, 13), (1, 1), (1, 1)]),
    "weights of columns": (of_columns, [(37, 21), (37, 1)]),
    "weights of columns in one block": (of_columns, [(37, 5), (37, 1)]),
    "weights of a batch": (rms_norm, [(2, 5, 37), (2, 1, 37)]),
    "weights of columns over two sets": (scaled_columns, [(37, 5, 6), (37, 1, 1), (37, 5, 1)]),
    "weights over two sets": (scaled, [(5, 3, 37), (37,), (3, 37)]),
    "weights of rows": (scaled, [(5, 37), (5, 1), ()]),
    "the middle axis": (lambda lib, x: softmax(lib, x, 1), [(3, 37, 5)]),
    "two axes apart": (lambda lib, x: softmax(lib, x, (0, 2)), [(3, 4, 17)]),
    "an output of the first walk": (residual, [(7, 37), (7, 37), (37,)]),
    "sums over rows or none, and two sets": (sums_over_two_sets, [(5, 3, 37)]),
    "sums over rows and either of two sets": (sums_over_rows_and_either, [(5, 3, 37)]),
    "six walks": (chain, [(2, 37)]),
}


NAN, INF = float("nan"), float("inf")
SPECIAL = {
    "nan": [NAN, 1.0],
    "inf": [INF, 1.0],
    "inf and -inf": [INF, -INF],
    "-inf": [-INF, 1.0],
    "nan in the last chunk": [1.0, NAN],
    "ties": [3.0, 3.0],
    "all -inf": None,
}
LAYOUTS = {
    "transposed": lambda x: x.mT.contiguous().mT,
    "sliced": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "expanded": lambda x: x[..., :1].expand_as(x),
    "rows repeated": lambda x: x[:1].expand_as(x),
    "unaligned": lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape),
}


def several(returned):
    return returned if isinstance(returned, tuple) else (returned,)


def draw(shapes, device, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, dtype=torch.float64, generator=generator).to(device, dtype) for s in shapes]


def assert_torchs(function, xs):
    """Assert torch's values and gradients in float64, to within 32 units of the dtype, of the largest of all."""
    leaves = [x.detach().requires_grad_() for x in xs]
    exact = [x.detach().double().requires_grad_() for x in xs]
    zs, want = several(fuse(lambda *xs: function(customops, *xs))(*leaves)), several(function(torch, *exact))
    gs = [cotangent(z) for z in zs]
    got = *zs, *torch.autograd.grad(zs, leaves, gs)
    want = *want, *torch.autograd.grad(want, exact, [g.double() for g in gs])
    largest = max(float(true.detach().nan_to_num(0, 0, 0).abs().max()) for true in want)
    for mine, true in zip(got, want, strict=True):
        near = 32 * torch.finfo(mine.dtype).eps * largest
        torch.testing.assert_close(mine.double(), true, rtol=0, atol=near, equal_nan=True)


@pytest.mark.sample(kernels="name, sums", compiled="name, sums")
@pytest.mark.parametrize("sums", SUMS)
@pytest.mark.parametrize("name", CASES)
def test_walked_rows_have_torchs_values_and_gradients(name, sums, walking, device):
    walking(**SUMS[sums])
    function, shapes = CASES[name]
    assert_torchs(function, draw(shapes, device))


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize(
    "name", ["mean of columns in one block", "weights of columns over two sets", "weights of a batch"]
)
def test_sums_in_memory_are_right_where_a_tile_or_one_program_has_all_rows(name, walking, device):
    walking()
    function, shapes = CASES[name]
    assert_torchs(function, draw(shapes, device))


@pytest.mark.sample(kernels="dtype, sums", compiled="dtype, sums")
@pytest.mark.parametrize("sums", SUMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_walked_rows_of_any_dtype_are_rounded_once(dtype, sums, walking, device):
    walking(**SUMS[sums])
    assert_torchs(layer_norm, draw([(9, 75), (75,), (75,)], device, dtype))


@pytest.mark.sample(kernels="program", compiled="program")
@pytest.mark.parametrize("program", [p for p in PROGRAMS if p.name not in WITHOUT_ROWS], ids=str)
def test_programs_that_walk_rows_have_torchs_values_and_gradients(program, walking, device):
    walking()
    rows = 37 if program.name == "softmax_first" else 5
    shapes = [(*(min(n, rows) for n in shape[:-1]), 50 if rows == 5 else 5)[: len(shape)] for shape in program.small]
    assert_torchs(program.function, [x.abs() + 0.1 for x in draw(shapes, device)])


@pytest.mark.sample(kernels="layout, name", compiled="layout, name")
@pytest.mark.parametrize("name", ["rows", "columns"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_walked_rows_may_lie_anyhow(layout, name, walking, device):
    walking()
    columns = name == "columns"
    x, weight = draw([(41, 5) if columns else (5, 41), (41, 1) if columns else (41,)], device)
    assert_torchs(of_columns if columns else rms_norm, [LAYOUTS[layout](x), weight])


@pytest.mark.sample(kernels="name", compiled="name")
@pytest.mark.parametrize("name", SPECIAL)
def test_nan_infinities_and_ties_in_a_walked_row_are_torchs_and_stay_in_it(name, walking, device):
    """The first of the special values is in the first chunk of row 1, the second in the last."""
    walking()
    x = draw([(4, 70)], device)[0]
    if SPECIAL[name] is None:
        x[1] = -INF
    else:
        x[1, 3], x[1, 69] = SPECIAL[name]
    for function in (softmax, min_max):
        assert_torchs(function, [x])


@pytest.mark.parametrize("shape", [(7, 75), (3, 75, 5), (75,)])
def test_a_walked_row_of_classes_has_the_one_of_its_index(shape, walking, device):
    """Kernels that walk compute the number of each class; a class is ignored, and none has its weight."""
    walking()
    (x,) = draw([shape], device)
    weight = torch.linspace(0.5, 2, 75, device=device)
    target = torch.arange(x.numel() // 75, device=device).view(shape[:1] * (x.dim() > 1) + shape[2:]) * 31 % 75
    target.view(-1)[-1:] = 74
    x, exact = x.requires_grad_(), x.detach().double().requires_grad_()
    for ours, theirs in ((None, None), (weight, weight.double())):
        z = customops.nn.functional.cross_entropy(x, target, ours, ignore_index=31, label_smoothing=0.1)
        expected = torch.nn.functional.cross_entropy(exact, target, theirs, ignore_index=31, label_smoothing=0.1)
        torch.testing.assert_close(z.double(), expected, rtol=1e-5, atol=1e-6)
        (dx,), (dx_expected,) = torch.autograd.grad(z, x), torch.autograd.grad(expected, exact)
        torch.testing.assert_close(dx.double(), dx_expected, rtol=1e-4, atol=1e-6)
    walks = [launch for launch in launches() if launch.kernel is walk_kernel]
    assert any(any(launch.arguments[-1].are_positions) for launch in walks)


@pytest.mark.sample(compiled="once")
def test_a_walked_row_of_negative_zeros_keeps_its_sign(walking, device):
    walking()
    x = torch.full((3, 70), -0.0, device=device)
    for name in ("amax", "amin"):
        z = fuse(lambda x, name=name: getattr(customops, name)(x, -1, keepdim=True) * (x + 1))(x)
        assert z.signbit().all()


@pytest.mark.skipif(INTERPRETED, reason="a dry run compiles, which the interpreter cannot")
@pytest.mark.sample(compiled="once")
def test_short_rows_are_walked_in_several_chunks_by_programs_of_several_blocks(walking, device):
    """What the tests of this file rest on: walk_kernel, rows of several tiles, sums in memory and in registers."""
    for sums, (chunks, holds) in {"in memory": (1, False), "in registers": (3, True)}.items():
        walking(**SUMS[sums])
        fused = fuse(lambda *xs: layer_norm(customops, *xs))
        xs = [x.requires_grad_() for x in draw([(9, 75), (75,), (75,)], device)]
        torch.autograd.grad(fused(*xs).sum(), xs)
        walks = {launch for launch in launches() if launch.kernel is walk_kernel}
        geometries = sorted((launch.arguments[-1] for launch in walks), key=lambda geometry: any(geometry.reduced_over))
        assert len(geometries) == 2
        assert all(geometry.tile[2] < 75 for geometry in geometries)
        assert (geometries[1].row_chunks, geometries[1].holds_sums) == (chunks, holds)
        assert not geometries[1].has_one_block


def launches():
    """Return the launches of all plans that there are."""
    executables = [x for x in config.plans.values() if isinstance(x, Executable)]
    executables += [e for x in config.plans.values() if isinstance(x, Fusion) for e in x.executables.values()]
    return [launch for executable in executables for launch in executable.plan.launches]
