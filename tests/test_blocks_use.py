"""What a fused call by blocks does beside its values: memory, threads, modes, hooks."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import memory
from customops.blocks import plan
from customops.blocks.lowering import lower
from customops.fusion.function import FusedFunction
from examples import layers

from .cases import ids
from .compare import cotangent
from .conftest import DEVICE, KERNELS
from .layers_by_blocks import BY_NAME, LAYERS
from .test_blocks_fused import several, values_and_gradients
from .test_memory import GuardBands

if KERNELS or DEVICE != "cpu":
    pytest.skip("kernels compute fused calls, and blocks none", allow_module_level=True)
ELEMENTS = (2, 7, plan.BLOCK_BYTES // 8)
LARGE = (1024, 1024)
STATISTICS = 8 * 4 * LARGE[0]  # bytes of several of each row
NAMES = ("softmax", "layer_norm", "gelu", "softmax(0, 1)", "rows_then_columns")


@contextmanager
def default_dtype(dtype: torch.dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


@contextmanager
def no_longer_deterministic():
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(True, warn_only=True)  # as all tests have it


MODES = {
    "no grad": torch.no_grad,
    "inference mode": torch.inference_mode,
    "a default device": lambda: torch.device("cpu"),
    "another default dtype": lambda: default_dtype(torch.float64),
    "not deterministic": no_longer_deterministic,
    "nothing": ExitStack,
}


def leaves_of(layer) -> list[Tensor]:
    return [x.requires_grad_() for x in layer.draw()]


def storages(xs) -> list[int]:
    return [x.untyped_storage().data_ptr() for x in xs]


@pytest.mark.sample(formulas="layer, elements")
@pytest.mark.parametrize("elements", ELEMENTS)
@pytest.mark.parametrize("layer", LAYERS, ids=ids)
def test_a_layer_is_one_node_that_blocks_compute(layer, elements, blocks, walked):
    blocks(elements)
    zs = several(layer.ours(*leaves_of(layer)))
    assert {type(z.grad_fn).__name__ for z in zs} == {FusedFunction.__name__ + "Backward"}
    forward = len(walked)
    assert forward
    torch.autograd.backward(zs, list(map(cotangent, zs)))
    assert len(walked) > forward


@pytest.mark.sample(formulas="layer*elements")
@pytest.mark.parametrize("elements", ELEMENTS)
@pytest.mark.parametrize("layer", LAYERS, ids=ids)
def test_blocks_write_results_and_gradients_and_nothing_else(layer, elements, blocks):
    blocks(elements)
    leaves = leaves_of(layer)
    before = [x.detach().clone() for x in leaves]
    with GuardBands() as bands:
        zs = several(layer.ours(*leaves))
        saved = [x for x in zs[0].grad_fn.saved_tensors if x is not None]
        gs = list(map(cotangent, zs))
        read = [x.clone() for x in (*gs, *saved)]
        grads = torch.autograd.grad(zs, leaves, gs)
    assert bands.check() >= len(zs)
    for x, old in zip([*leaves, *gs, *saved], [*before, *read], strict=True):
        assert torch.equal(x, old), "a tensor was written that is only read"
    made = storages(zs)
    assert len(set(made)) == len(made), "each result has memory of its own"
    assert not {*made, *storages([*leaves, *gs])} & {*storages(grads)}, "and gradients have"
    assert not {*made} & {*storages(leaves)}
    assert not any(torch.isnan(x).any() for x in (*zs, *grads)), "an element is not written"


@pytest.mark.parametrize("layer", LAYERS, ids=ids)
def test_two_threads_of_torch_compute_what_one_does(layer, blocks):
    shapes = [tuple(n * 17 if n > 1 else 1 for n in shape) for shape in layer.shapes]
    results = []
    for threads in (1, 2, 2, 1):
        torch.set_num_threads(threads)
        try:
            blocks(1000)
            results.append(values_and_gradients(layer.ours, layer.draw(shapes=shapes)))
        finally:
            torch.set_num_threads(1)
    one, two, again, _ = results
    for mine, other, same in zip(one, two, again, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5 * float(mine.abs().max()))
        assert torch.equal(other, same)
    for mine, same in zip(one, results[3], strict=True):
        assert torch.equal(mine, same)


@pytest.mark.parametrize("elements", ELEMENTS)
def test_several_threads_of_python_call_at_once(elements, blocks):
    blocks(elements)
    wanted = [(BY_NAME[name], values_and_gradients(BY_NAME[name].ours, BY_NAME[name].draw())) for name in NAMES]

    def call(k: int) -> bool:
        layer, want = wanted[k % len(wanted)]
        got = values_and_gradients(layer.ours, layer.draw())
        return all(map(torch.equal, got, want))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(80)))


@pytest.mark.parametrize("elements", ELEMENTS)
@pytest.mark.parametrize("mode", MODES)
def test_modes_change_no_value(mode, elements, blocks, walked):
    """Each is entered first, so that what is made in it is used outside of it, and then the other way round."""
    for name in NAMES:
        layer = BY_NAME[name]
        blocks(elements)
        xs = layer.draw()
        for x in xs:
            x.requires_grad_(mode != "inference mode")
        inside = lambda: in_mode(MODES[mode], layer.ours, xs)  # noqa: B023 - called in this turn
        outside = lambda: layer.ours(*xs)  # noqa: B023
        first = inside(), outside()
        blocks(elements)
        for z in (*first, outside(), inside()):
            assert torch.equal(z.detach(), first[0].detach())
    assert walked


def in_mode(mode: Callable, function: Callable, xs: list[Tensor]) -> Tensor:
    with mode():
        return function(*xs)


@pytest.mark.parametrize("elements", ELEMENTS)
def test_autocast_casts_results_as_torch_does(elements, blocks):
    blocks(elements)
    for name in NAMES:
        layer = BY_NAME[name]
        xs = layer.draw(torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            got, want = values_and_gradients(layer.ours, xs), values_and_gradients(layer.torchs, xs)
        for mine, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(mine.double(), theirs.double(), rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("elements", ELEMENTS)
def test_a_call_inside_the_backward_of_another_keeps_both_right(elements, blocks):
    """A saved-tensor hook calls another layer by blocks as a gradient is about to read what it unpacks."""
    blocks(elements)
    outer, inner = BY_NAME["layer_norm"], BY_NAME["softmax"]
    want, ready = values_and_gradients(outer.ours, outer.draw()), inner.ours(*inner.draw())
    seen: list[Tensor] = []

    def through(x: Tensor) -> Tensor:
        with torch.no_grad():
            seen.append(inner.ours(*inner.draw()))
        return x

    with torch.autograd.graph.saved_tensors_hooks(through, through):
        got = values_and_gradients(outer.ours, outer.draw())
    assert seen
    assert all(torch.equal(z, ready) for z in seen)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("elements", ELEMENTS)
def test_a_call_in_the_middle_of_another_leaves_its_temporaries(elements, blocks, monkeypatch):
    """A finaliser or a signal's handler may call a layer whenever Python runs: here at each exponential."""
    outer, inner, exp = BY_NAME["softmax"], BY_NAME["layer_norm"], torch.exp
    want = values_and_gradients(outer.ours, outer.draw())
    called = []

    def interrupted(x, **out):
        if out:
            called.append(inner.ours(*inner.draw()))
        return exp(x, **out)

    monkeypatch.setattr(torch, "exp", interrupted)
    lower.cache_clear()  # it finds torch's functions by their names
    blocks(elements)
    got = values_and_gradients(outer.ours, outer.draw())
    lower.cache_clear()
    assert called
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs)


def large(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.rand(shape).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("name", ["rms_norm", "layer_norm", "softmax", "gelu", "swiglu", "cross_entropy"])
def test_forward_and_backward_take_half_the_memory_of_the_composition(name):
    row = next(row for row in layers.COMPARISONS if row.ours.__name__ == name)
    xs = large(*(LARGE if shape == layers.ROWS else LARGE[1:] for shape in row.shapes))
    composition = row.ours.fused.function

    g = torch.ones_like(row.ours(*xs))  # and the memory of a thread's temporaries, which is allocated once

    def step(function):
        z = function(*xs)
        return z, torch.autograd.grad(z, xs, g)

    half = memory.peak(lambda: step(composition), "cpu") / 2
    assert memory.peak(lambda: step(row.ours), "cpu") <= half + STATISTICS


@pytest.mark.parametrize("name", ["gelu", "softmax", "layer_norm", "rms_norm"])
def test_nothing_as_large_as_a_tensor_is_allocated_but_results_and_gradients(name):
    row = next(row for row in layers.COMPARISONS if row.ours.__name__ == name)
    xs = large(*(LARGE if shape == layers.ROWS else LARGE[1:] for shape in row.shapes))
    size = xs[0].nbytes
    with torch.no_grad():
        row.ours(*xs)
        assert memory.peak(lambda: row.ours(*xs), "cpu") < 1.25 * size
    z = row.ours(*xs)
    g = torch.ones_like(z)
    torch.autograd.grad(z, xs, g, retain_graph=True)
    assert memory.peak(lambda: torch.autograd.grad(z, xs, g, retain_graph=True), "cpu") < 1.25 * size


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("rms_norm", lambda x, weight: F.rms_norm(x, weight.shape, weight, 1e-6)),
        ("layer_norm", lambda x, weight, bias: F.layer_norm(x, weight.shape, weight, bias)),
        ("softmax", lambda x: F.softmax(x, -1)),
        ("log_softmax", lambda x: F.log_softmax(x, -1)),
        ("gelu", lambda x: F.gelu(x, approximate="tanh")),
        ("silu", F.silu),
    ],
)
def test_as_many_bytes_are_saved_as_by_torchs_own_layer(name, theirs):
    row = next(row for row in layers.COMPARISONS if row.ours.__name__ == name)
    xs = large(*(LARGE if shape == layers.ROWS else LARGE[1:] for shape in row.shapes))
    ours, torchs = (memory.saved(lambda f=f: f(*xs)) for f in (row.ours, theirs))
    assert ours <= torchs + STATISTICS
    assert ours < 1.1 * xs[0].nbytes
