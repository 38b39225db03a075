"""What a fused call saves: those results, statistics and inputs of which backward costs least; no more than torch."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo import compiled_autograd
from torch.autograd import gradgradcheck
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import customops
from customops import fuse
from customops.compiler.printing import label
from customops.compiler.saving import INSTRUCTIONS
from customops.fusion.decorator import fused_behind

from . import instructions
from .compare import STRICT, assert_as_by_formula, assert_equal, cotangent
from .conftest import KERNELS, NO_KERNEL
from .programs import layer_norm, min_max, rms_norm, softmax
from .test_fuse import draw
from .test_fuse_detach import stable_logsumexp, stable_softmax

kernels_only = pytest.mark.skipif(not KERNELS, reason=NO_KERNEL)


def norm_of_sum(lib, x, residual, weight):
    total = x + residual
    return rms_norm(lib, total, weight), total


def softmax_and_sum(lib, x):
    e = lib.exp(x - lib.amax(x, -1, keepdim=True).detach())
    total = lib.sum(e, -1, keepdim=True)
    return e / total, lib.log(total)


def softmax_and_constant(lib, x):
    e = lib.exp(x)
    total = lib.sum(e, -1, keepdim=True)
    return e / total, (total * x).detach()


def centred_maximum(lib, x):
    centred = x - lib.mean(x, -1, keepdim=True)
    return centred * lib.amax(centred, -1, keepdim=True)


ROW = (3, 300) if KERNELS else (4, 5)  # rows for which kernels save statistics; formulas save none
ONE = ROW[1:]
LAYERS = {
    "softmax": (stable_softmax, [ROW]),
    "logsumexp": (stable_logsumexp, [ROW]),
    "rms_norm": (rms_norm, [ROW, ONE]),
    "layer_norm": (layer_norm, [ROW, ONE, ONE]),
    "norm_of_sum": (norm_of_sum, [ROW, ROW, ONE]),
    "softmax_and_sum": (softmax_and_sum, [ROW]),
    "softmax_and_constant": (softmax_and_constant, [ROW]),
}
HAVE_STATISTICS = {"logsumexp", "softmax_and_sum", "rms_norm", "layer_norm", "norm_of_sum"}


def tuple_of(z) -> tuple:
    return z if isinstance(z, tuple) else (z,)


def recording(function, xs, statistics=True):
    """Return the fusion of a call, and what it saves where all inputs need gradients."""
    made = fused_behind(fuse(lambda *xs: function(customops, *xs)))
    fusion = made.fuse(*made.trace(xs, (), xs, {}), xs, {})
    return fusion, fusion.recording((False, *[True] * len(xs)), statistics)


def saved_names(function, shapes, statistics=True, dtype=torch.float32) -> set[str]:
    fusion, found = recording(function, [torch.ones(s, dtype=dtype) for s in shapes], statistics)
    return {label(fusion.graph, i) for i in found.gradient.saved}


def saved_bytes(function, shapes, dtype) -> int:
    fusion, found = recording(function, [torch.ones(s, dtype=dtype) for s in shapes])
    graph, statistics = fusion.graph, found.values.statistics
    sizes = dict(enumerate(fusion.itemsizes.inputs)) | fusion.itemsizes.results
    sizes |= dict.fromkeys(statistics, fusion.itemsizes.statistics)
    return sum(graph.count(graph.axes[i]) * sizes[i] for i in found.gradient.saved)


def hooked_bytes(function, xs) -> int:
    """Return the bytes of what torch saves."""
    found = {}
    with saved_tensors_hooks(lambda t: found.setdefault(t.data_ptr(), t), lambda t: t):
        function(*[x.requires_grad_() for x in xs])
    return sum(t.numel() * t.itemsize for t in found.values())


ROWS, LONG = (64, 256), (256,)
TORCHS = {
    "softmax": (stable_softmax, lambda x: F.softmax(x, -1), [ROWS]),
    "layer_norm": (layer_norm, lambda x, w, b: F.layer_norm(x, LONG, w, b), [ROWS, LONG, LONG]),
}


@pytest.mark.parametrize("name", TORCHS)
def test_no_more_bytes_are_saved_than_torchs_own_layer_saves(name):
    ours, torchs, shapes = TORCHS[name]
    theirs = hooked_bytes(torchs, [torch.ones(s) for s in shapes])
    assert saved_bytes(ours, shapes, torch.float32) <= theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_saved_are_those_of_what_the_gradients_read(dtype):
    """Torch's rms_norm saves x, weight and 1/rms of each row, in float32, on a GPU; on a CPU it is no one operator."""
    n, row, rows = 64 * 256 * dtype.itemsize, 256 * dtype.itemsize, 64 * 4
    assert saved_bytes(stable_softmax, [ROWS], dtype) == n
    assert saved_bytes(rms_norm, [ROWS, LONG], dtype) == n + row + rows
    assert saved_bytes(layer_norm, [ROWS, LONG, LONG], dtype) == n + row + 2 * rows
    assert saved_bytes(norm_of_sum, [ROWS, ROWS, LONG], dtype) == n + row + rows


def test_a_result_is_saved_instead_of_what_it_takes_long_to_compute_it_from():
    assert saved_names(lambda lib, x: lib.exp(x), [ROWS]) == {"t1"}
    assert saved_names(stable_softmax, [ROWS]) == {"t6"}
    assert saved_names(norm_of_sum, [ROWS, ROWS, LONG]) == {"t4", "x2", "t9"}


def test_a_result_that_is_soon_computed_again_is_not_saved():
    assert saved_names(lambda lib, x, y: (lib.exp(x * y), x * y), [ROWS, LONG]) == {"x0", "x1"}
    assert saved_names(lambda lib, x, y: lib.relu(x * y), [ROWS, LONG]) == {"x0", "x1"}


def test_a_result_is_not_saved_with_the_inputs_but_instead_of_them():
    """Without ``detach`` the gradient compares x with its maximum, so x is saved."""
    assert saved_names(softmax, [ROWS], dtype=torch.bfloat16) == {"x0", "t5"}


def test_a_detached_result_is_not_saved_as_gradients_of_gradients_would_end_there():
    squares = lambda lib, x: ((y := stable_softmax(lib, x)).detach(), lib.sum(y * y, -1))
    assert "t6" not in saved_names(squares, [ROWS], dtype=torch.bfloat16)


@pytest.mark.sample(formulas="once", kernels="")
@pytest.mark.parametrize("formula", instructions.FORMULAS)
def test_what_computing_again_costs_is_counted_in_compiled_code(formula):
    """`python -m tests.instructions` prints what saving.py has; without a number there a formula takes about one."""
    pytest.importorskip("triton", reason="compiles a kernel")
    if KERNELS:
        pytest.skip("compiles, as formulas do")
    counted = instructions.instructions_of(formula)
    assert abs(INSTRUCTIONS.get(formula, 1) - counted) <= max(2, counted / 5), formula


def test_hooks_get_no_statistics():
    assert saved_names(rms_norm, [ROWS, LONG], statistics=False) == {"x0", "x1"}
    assert saved_names(stable_softmax, [ROWS], statistics=False) == {"t6"}


def test_nothing_is_saved_that_is_compared_as_another_kernel_may_round_otherwise():
    assert saved_names(min_max, [ROWS]) == {"x0"}
    assert saved_names(centred_maximum, [ROWS]) == {"x0"}


def test_a_statistic_is_not_saved_where_rows_are_so_short_that_it_takes_more_bytes():
    assert saved_names(rms_norm, [(4096, 2), (2,)]) == {"x0", "x1"}


@kernels_only
@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize("name", LAYERS)
def test_what_is_planned_is_what_a_call_saves(name, device):
    function, shapes = LAYERS[name]
    xs = [x.requires_grad_() for x in draw(shapes, device, torch.float32)]
    zs = tuple_of(fuse(lambda *xs: function(customops, *xs))(*xs))
    saved = zs[0].grad_fn.saved_tensors
    assert sum(t.numel() * t.itemsize for t in saved) == saved_bytes(function, shapes, torch.float32)
    assert any(t.shape == ROW[:1] for t in saved) == (name in HAVE_STATISTICS)


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize("hooks", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_derivatives_of_both_orders_are_right_through_what_is_saved(name, hooks, device):
    function, shapes = LAYERS[name]
    xs = [x.requires_grad_() for x in draw(shapes, device)]

    def recorded(z):
        return tuple(part for part in tuple_of(z) if part.requires_grad)

    fused = fuse(lambda *xs: function(customops, *xs))
    with saved_tensors_hooks(lambda t: t, lambda t: t) if hooks else nullcontext():
        if KERNELS:
            assert_as_by_formula(lambda *xs: recorded(fused(*xs)), xs)
        else:
            assert gradgradcheck(lambda *xs: recorded(fused(*xs)), xs, **STRICT)


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize("name", ["norm_of_sum", "softmax_and_sum", "softmax_and_constant"])
def test_any_part_of_the_results_has_gradients_of_what_all_save(name, device):
    function, shapes = LAYERS[name]
    xs = [x.requires_grad_() for x in draw(shapes, device)]
    fused = fuse(lambda *xs: function(customops, *xs))
    for used in product([False, True], repeat=2):
        grads = []
        for f in (lambda *xs: function(torch, *xs), fused):
            zs = [z for z, use in zip(f(*xs), used, strict=True) if use and z.requires_grad]
            grads.append(torch.autograd.grad(zs, xs, list(map(cotangent, zs)), allow_unused=True) if zs else [])
        for mine, theirs in zip(*grads[::-1], strict=True):
            assert (mine is None) == (theirs is None)
            assert mine is None or assert_equal(mine, theirs) is None


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_checkpoints_compute_it_again(name, use_reentrant, device):
    function, shapes = LAYERS[name]
    xs = [x.requires_grad_() for x in draw(shapes, device)]
    fused = fuse(lambda *xs: function(customops, *xs))
    zs = tuple_of(checkpoint(fused, *xs, use_reentrant=use_reentrant))
    sum(z.sum() for z in zs[:1]).backward()
    want = torch.autograd.grad(tuple_of(function(torch, *xs))[0].sum(), xs, allow_unused=True)
    for x, dx in zip(xs, want, strict=True):
        assert_equal(x.grad, dx)


@pytest.mark.sample(compiled="all")
def test_backward_runs_again_where_the_graph_is_retained(device):
    (x,) = (x.requires_grad_() for x in draw([ROW], device))
    z = fuse(lambda x: stable_softmax(customops, x))(x)
    g = cotangent(z)
    first, second = (torch.autograd.grad(z, x, g, retain_graph=True)[0] for _ in range(2))
    assert_equal(first, second)
    assert_equal(first, torch.autograd.grad(torch.softmax(x, -1), x, g)[0])


@kernels_only
@pytest.mark.parametrize("name", ["softmax", "rms_norm", "norm_of_sum"])
def test_compiled_autograd_traces_backward(name, device):
    """It does so from what is saved, statistics too, and where a result has no gradient."""
    function, shapes = LAYERS[name]
    fused, grads = fuse(lambda *xs: function(customops, *xs)), []
    for compiled in (False, True):
        torch.compiler.reset()
        xs = [x.requires_grad_() for x in draw(shapes, device)]
        z = tuple_of(fused(*xs))[0]
        loss = (z * cotangent(z)).sum()
        compiler = torch.compile(backend="eager", fullgraph=True)
        with compiled_autograd._enable(compiler) if compiled else nullcontext():
            loss.backward()
        grads.append([x.grad for x in xs])
    for mine, theirs in zip(*grads, strict=True):
        assert_equal(mine, theirs)


@kernels_only
def test_changing_a_result_that_is_saved_is_torchs_error(device):
    (x,) = (x.requires_grad_() for x in draw([ROW], device))
    for function in (fuse(lambda x: stable_softmax(customops, x)), lambda x: torch.softmax(x, -1)):
        z = function(x)
        z.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            z.sum().backward()


@pytest.mark.sample(compiled="all")
def test_changing_a_result_that_is_not_saved_is_no_error(device):
    x, w = (x.requires_grad_() for x in draw([ROW, ONE], device))
    z = fuse(lambda x, w: rms_norm(customops, x, w))(x, w)
    z.add_(1)
    want = torch.autograd.grad(rms_norm(torch, x, w).sum(), (x, w))
    for mine, theirs in zip(torch.autograd.grad(z.sum(), (x, w)), want, strict=True):
        assert_equal(mine, theirs)


@pytest.mark.parametrize("taken", range(1, 16), ids=lambda n: f"{n:04b}")
def test_any_results_may_have_no_cotangent(taken, device):
    """Some gradients read a statistic alone; differentiated again they read results, which are saved for that."""

    def function(lib, x, v, w):
        y = lib.exp(x)
        s = lib.sum(y, -1, keepdim=True)
        return y, y * v, s * w, y / s

    found = []
    for lib in (customops, torch):
        torch.manual_seed(0)
        x, v, w = (torch.randn(shape, dtype=torch.float64, device=device) for shape in ((3, 500), (3, 500), (3, 1)))
        leaves = [v.requires_grad_(), w.requires_grad_()]
        run = lambda *xs, lib=lib: function(lib, *xs)
        zs = (customops.fuse(run) if lib is customops else run)(x, *leaves)
        chosen = [z for k, z in enumerate(zs) if taken >> k & 1 and z.requires_grad]
        found.append(
            torch.autograd.grad(chosen, leaves, [torch.ones_like(z) for z in chosen], allow_unused=True)
            if chosen
            else ()
        )
    for mine, theirs in zip(*found, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
