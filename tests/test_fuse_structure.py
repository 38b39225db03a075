"""What a fused function is traced anew for, what it keeps, and what it is among Python's functions."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import NamedTuple

import numpy as np
import pytest
import torch

import customops
from customops import compute, fuse, tracing

from .compare import assert_equal
from .conftest import DEVICE, KERNELS
from .test_fuse import draw


def test_traced_once_for_a_structure_and_for_each_shape_that_is_read(device):
    traced = []

    def function(x, scale, by_shape=False):
        traced.append(by_shape)
        return x * scale if not by_shape or x.shape[0] > 3 else x / scale

    fused, calls = fuse(function), [(s, scale) for s in ((3, 4), (5, 4)) for scale in (2.0, 2.0, 0.0, -0.0)]
    for by_shape, times in ((False, 3), (True, 6)):
        traced.clear()
        for shape, scale in calls:
            (x,) = draw([shape], device)
            want = x / scale if by_shape and shape[0] == 3 else x * scale
            assert_equal(fused(x, scale, by_shape=by_shape), want)
            assert fused(x, scale, by_shape=by_shape).signbit().equal(want.signbit())
        assert not KERNELS or len(traced) == times  # by formulas it is called, too


def test_numbers_of_other_kinds_are_other_structures(device):
    (x,) = draw([(3,)], device)
    fused = fuse(lambda x, n: x * n)
    for n in (1, True, 1.0, 2, 0.5):
        assert_equal(fused(x, n), x * n)


class Named(NamedTuple):
    number: float


@pytest.mark.parametrize("wrap", [tuple, list, dict.fromkeys, frozenset, Named._make, lambda ns: np.float32(ns[0])])
def test_arguments_that_equal_but_differ_are_other_structures(device, wrap):
    x = torch.ones(3, device=device)
    fused = fuse(lambda x, n: x / (n if isinstance(n, np.generic) else next(iter(n))))
    for zero in (0.0, -0.0, 0.0):
        assert fused(x, wrap([zero])).signbit().equal((x / zero).signbit())


def test_methods_and_functions_in_functions_are_fused(device):
    class Layer:
        scale = 3

        @fuse
        def forward(self, x, by=2):
            return inner(x) * self.scale / by

    inner = fuse(lambda x: customops.exp(x) + 1)
    (x,) = draw([(3, 4)], device)
    assert_equal(Layer().forward(x), (x.exp() + 1) * 3 / 2)
    assert_equal(Layer().forward(x=x, by=4), (x.exp() + 1) * 3 / 4)


class Layer(torch.nn.Module):
    """A module whose ``forward`` is fused, and reads an attribute."""

    def __init__(self, by):
        super().__init__()
        self.by = by

    @fuse
    def forward(self, x):
        """e^x by an attribute."""
        return customops.exp(x) * self.by


class Slotted:
    """An object without a dictionary."""

    __slots__ = ("by",)


@pytest.mark.parametrize("make", [lambda: Layer(0), Slotted, lambda: Constants({})], ids=["module", "slots", "mapping"])
@pytest.mark.parametrize("values", [(3.0, 5.0), (0.0, -0.0), (1, 1.5, True)], ids=str)
def test_attributes_of_an_argument_may_change(device, make, values):
    (x,) = draw([(3,)], device)
    held, fused = make(), fuse(lambda x, held: customops.exp(x) * held.by)
    for held.by in values:
        got, want = fused(x, held), x.exp() * held.by
        assert_equal(got, want)
        assert got.signbit().equal(want.signbit())


class Constants:
    """An object whose attribute is that of a dictionary it holds."""

    def __init__(self, of):
        self.of = of

    by = property(lambda self: self.of["by"][0], lambda self, by: self.of.update(by=[by]))


@pytest.mark.parametrize("first", [True, False])
def test_branching_on_grad_mode(device, first):
    fused, x = fuse(lambda x: x * (2 if torch.is_grad_enabled() else 3)), torch.ones(3, device=device)
    for enabled in (first, not first, first):
        with torch.set_grad_enabled(enabled):
            assert_equal(fused(x), x * (2 if enabled else 3))


def test_branching_on_what_is_a_tensor(device):
    fused = fuse(lambda x, y: x * y if isinstance(y, torch.Tensor) and torch.is_tensor(y) else x * y * torch.numel(x))
    (x, y) = draw([(3,), (3,)], device)
    assert_equal(fused(x, y), x * y)
    assert_equal(fused(x, 2), x * 6)


def test_a_method_is_explained_and_compiled(device):
    layer, (x,) = Layer(2), draw([(3,)], device)
    assert "mul(t1, 2)" in str(Layer.forward.program(layer, x))
    assert Layer.forward.program(layer, x=x).results
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert_equal(compiled(x), x.exp() * 2)
    torch.compiler.reset()


def test_arguments_and_functions_are_not_kept_alive(device):
    layer, fused = Layer(2), fuse(lambda x: customops.exp(x) + 1)
    (x,) = draw([(3,)], device)
    alive = [weakref.ref(layer), weakref.ref(fused)]
    layer(x), fused(x)
    del layer, fused
    gc.collect()
    assert [ref() for ref in alive] == [None, None]


def test_traces_of_numbers_that_never_come_again_do_not_fill_the_memory(device, monkeypatch):
    monkeypatch.setattr(tracing, "MOST_PLANS", 8)
    monkeypatch.setattr(compute, "MOST_PLANS", 8)
    fused, x = fuse(lambda x, by: x * by), torch.ones(3, device=device)
    for by in range(20):
        assert_equal(fused(x, by), x * by)
    assert 0 < fused.fused._traces.size <= 10


def test_pickles_and_copies_are_it():
    for same in (pickle.loads(pickle.dumps(triple)), copy.copy(triple), copy.deepcopy(triple)):
        assert same is triple


@fuse
def triple(x):
    """3 x."""
    return x * 3


def test_what_a_trace_depends_on_besides_its_arguments(device):
    def function(x):
        half = x / 2
        return half * (2 if half.dtype == torch.float64 else 3)

    fused, x = fuse(function), torch.arange(3, device=device)
    try:
        for dtype in (torch.float32, torch.float64, torch.float32):
            torch.set_default_dtype(dtype)
            assert_equal(fused(x), function(x))
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.skipif(DEVICE == "cpu", reason="autocast to float32 is for GPUs: on CPUs it leaves our operators alone")
def test_the_dtype_of_a_value_under_autocast(device):
    def function(x):
        z = customops.exp(x)
        return z * 2 if z.dtype == torch.float32 else z * 3

    fused, x = fuse(function), torch.rand(3, device=device, dtype=torch.bfloat16)
    for enabled in (False, True, False):
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=enabled):
            assert_equal(fused(x), function(x))


def test_a_default_device_is_where_numbers_are_not_made(device):
    fused, (x,) = fuse(lambda x: -customops.mean(x)), draw([(3, 4)], device)
    with torch.device("meta"):
        assert_equal(fused(x), -x.mean())


def test_numpys_numbers_may_stand_left(device):
    (x,) = draw([(3,)], device)
    for number in (np.float64(2), np.int64(2)):
        assert_equal(fuse(lambda x, n: n / x - (+x))(x, number), 2 / x - x)


def test_there_is_no_program_of_what_is_not_traced(device):
    for given in (torch.ones(3, device=device).as_subclass(Subclass), 3):
        with pytest.raises(ValueError, match="there is no program"):
            triple.program(given)


class Subclass(torch.Tensor):
    """What sees the calls made with it."""
