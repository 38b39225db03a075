"""What a fused function is traced anew for, what it keeps, and what it is among Python's functions."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import sys
import weakref
from contextlib import nullcontext
from functools import partial, wraps
from typing import NamedTuple

import numpy as np
import pytest
import torch

import customops
from customops import fuse
from customops.fusion import trace
from customops.runtime import plans

from .compare import assert_equal
from .conftest import DEVICE, KERNELS
from .test_fuse import draw


@pytest.fixture
def grown(monkeypatch):
    """Return the list of the operators that a trace meets for the first time."""
    found, real = [], trace.Tracing._grow
    monkeypatch.setattr(trace.Tracing, "_grow", lambda *args: (found.append(args[1]), real(*args))[1])
    return found


def test_what_was_traced_is_known_for_every_shape_and_shapes_may_be_read(device, grown):
    def function(x, scale, by_shape=False):
        return x * scale if not by_shape or x.shape[0] > 3 else x / scale

    fused, calls = fuse(function), [(s, scale) for s in ((3, 4), (5, 4)) for scale in (2.0, 2.0, 0.0, -0.0)]
    for by_shape, times in ((False, 3), (True, 6)):
        for shape, scale in calls:
            (x,) = draw([shape], device)
            want = x / scale if by_shape and shape[0] == 3 else x * scale
            assert_equal(fused(x, scale, by_shape=by_shape), want)
            assert fused(x, scale, by_shape=by_shape).signbit().equal(want.signbit())
        assert len(grown) == times


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
        """Compute e^x by an attribute."""
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
    monkeypatch.setattr(trace, "MAX_PLANS", 8)
    monkeypatch.setattr(plans, "MAX_PLANS", 8)
    fused, x = fuse(lambda x, by: x * by), torch.ones(3, device=device)
    for by in range(20):
        assert_equal(fused(x, by), x * by)
    assert 0 < fused.fused._traces.size <= 10


def test_pickles_and_copies_are_it():
    for same in (pickle.loads(pickle.dumps(triple)), copy.copy(triple), copy.deepcopy(triple)):
        assert same is triple


def by(x, n):
    """Compute n·e^x, in a function that is fused elsewhere."""
    return customops.exp(x) * n


class Scaled:
    """An object that can be called, and has one more method."""

    def __init__(self):
        self.by = 2.0

    def __call__(self, x):
        return customops.exp(x) * self.by

    def method(self, x):
        """Compute e^x by an attribute."""
        return customops.exp(x) * self.by


class Plain(torch.nn.Module):
    """A module that is not fused by itself."""

    def __init__(self):
        super().__init__()
        self.by = 2.0

    def forward(self, x):
        """Compute e^x by an attribute."""
        return customops.exp(x) * self.by


CALLABLES = {
    "function": lambda: partial(by, n=2.0).func,
    "partial": lambda: partial(by, n=2.0),
    "object": Scaled,
    "bound method": lambda: Scaled().method,
    "module": Plain,
    "method bound by partial": lambda: partial(Scaled.method, Scaled()),
}


@pytest.mark.parametrize("name", CALLABLES)
def test_a_model_that_holds_a_fused_callable_is_copied_pickled_and_saved(name, device):
    (x,), args = draw([(3, 4)], device), (2.0,) if name == "function" else ()
    model = torch.nn.Module()
    model.act = fuse(CALLABLES[name]())
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(saved, weights_only=False)):
        assert_equal(other.act(x, *args), x.exp() * 2)
        assert other.act is not model.act


@pytest.mark.parametrize("name", ["object", "bound method", "module", "method bound by partial"])
def test_a_fused_callable_reads_its_object_at_every_call(name, device):
    made = CALLABLES[name]()
    holder = next(iter(getattr(made, "args", ())), getattr(made, "__self__", made))
    fused, (x,) = fuse(made), draw([(3, 4)], device)
    for holder.by in (2.0, 3.0, 0.0, -0.0):
        got = fused(x)
        assert_equal(got, x.exp() * holder.by)
        assert got.signbit().equal((x.exp() * holder.by).signbit())


def test_copies_share_no_object(device):
    (x,), fused = draw([(3, 4)], device), fuse(Plain())
    copied = copy.deepcopy(fused)
    copied.by = 3.0
    assert_equal(fused(x) * 1.5, copied(x))


class Methods:
    """Every kind of method, fused."""

    by = 2

    @classmethod
    @fuse
    def of_class(cls, x):
        """Compute e^x by an attribute of the class."""
        return customops.exp(x) * cls.by

    @staticmethod
    @fuse
    def of_none(x):
        """Compute e^x."""
        return customops.exp(x)

    @fuse
    def method(self, x):
        """Compute e^x by an attribute."""
        return customops.exp(x) * self.by


class Inherits(Methods):
    """A class whose fused method calls the one that it replaces."""

    @fuse
    def method(self, x):
        """Return twice what the method of the parent does."""
        return super().method(x) * 2


@pytest.mark.parametrize(
    "call",
    [
        lambda x: Methods.of_class(x) * 1,
        lambda x: Methods().of_class(x),
        lambda x: Methods.of_none(x) * 2,
        lambda x: Methods().of_none(x) * 2,
        lambda x: Methods().method(x),
        lambda x: Methods.method(Methods(), x),
        lambda x: Inherits().method(x) / 2,
    ],
    ids=["class", "class of instance", "static", "static of instance", "method", "unbound", "super"],
)
def test_methods_of_every_kind_are_fused_and_compile(call, device):
    (x,) = draw([(3,)], device)
    torch.compiler.reset()
    assert_equal(call(x), x.exp() * 2)
    assert_equal(torch.compile(call, backend="eager", fullgraph=True)(x), x.exp() * 2)
    torch.compiler.reset()


@pytest.mark.parametrize(
    "bind",
    [
        lambda w: lambda x, w=w: customops.exp(x) * w,
        lambda w: partial(lambda w, x: customops.exp(x) * w, w),
        lambda w: partial(lambda x, w: customops.exp(x) * w, w=w),
        lambda w: partial(lambda x, *, w=w: customops.exp(x) * w),
    ],
    ids=["default", "bound", "bound by name", "default by name"],
)
def test_a_tensor_bound_or_as_a_default_is_an_argument(bind, device):
    x, w = draw([(3, 4), (4,)], device)
    fused = fuse(bind(w.requires_grad_()))
    for _ in range(2):
        z = fused(x)
        assert_equal(z.detach(), x.exp() * w.detach())
        assert_equal(torch.autograd.grad(z.sum(), w)[0], x.exp().sum(0))
        w.data.mul_(2)
    assert "w" in str(fused.program(x))


def test_a_tensor_made_in_inference_mode_beside_a_weight_that_learns(device):
    (w,) = draw([(4,)], device)
    with torch.inference_mode():
        (x,) = draw([(3, 4)], device)
    for function in (lambda x, w: customops.exp(x) * w, lambda x, w: customops.exp(w) + x):
        z = fuse(function)(x, w.requires_grad_())
        (got,) = torch.autograd.grad(z.sum(), w)
        (want,) = torch.autograd.grad(function(x, w).sum(), w)
        assert_equal(got, want)


def test_what_an_object_does_not_read_costs_nothing(device):
    """A list of a million numbers among its attributes is not looked at."""
    layer, (x,) = Layer(2.0), draw([(3,)], device)
    layer.many = [0.0] * 1_000_000
    layer(x)
    frames: list[str] = []
    sys.setprofile(lambda frame, event, _: frames.append(frame.f_code.co_filename) if event == "call" else None)
    try:
        layer(x)
    finally:
        sys.setprofile(None)
    assert 5 < sum(name.endswith(("decorator.py", "trace.py", "proxy.py")) for name in frames) < 50


def test_a_bound_method_as_argument_is_traced_once(device, grown):
    fused, scaled, (x,) = fuse(lambda x, act: act(x) + 1), Scaled(), draw([(3,)], device)
    for _ in range(3):
        assert_equal(fused(x, scaled.method), x.exp() * 2 + 1)
        assert len(grown) == 3


@fuse
def triple(x):
    """Compute 3 x."""
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
    """A tensor that sees the calls made with it."""


scale = 2.0
held = Slotted()


def reads_a_global(x):
    """Read a global of the module, which may change."""
    return customops.exp(x) * scale


def reads_an_object(x):
    """Read what an object in the module holds, which may change, too."""
    return customops.exp(x) * held.by


@pytest.mark.parametrize("values", [(3.0, 5.0), (0.0, -0.0), (1, 1.5, True)], ids=str)
def test_what_a_function_reads_around_it_may_change(device, values, monkeypatch):
    (x,), config, number = draw([(3,)], device), Slotted(), 1.0

    def reads_closures(x):
        return customops.exp(x) * number * config.by

    def reads_inside(x):
        scaled = lambda y: customops.exp(y) * number
        return scaled(x)

    def reads_default(x, config=config):
        return customops.exp(x) * config.by

    config.by = 1.0
    functions = reads_a_global, reads_an_object, reads_closures, reads_inside, reads_default
    fused = [fuse(function) for function in functions]
    for value in values:
        number, held.by, config.by = value, value, value
        monkeypatch.setitem(globals(), "scale", value)
        for function, mine in zip(functions, fused, strict=True):
            want = function(x)
            assert_equal(mine(x), want)
            assert mine(x).signbit().equal(want.signbit())


class Counter:
    """An object that counts its calls and reads the count."""

    def __init__(self):
        self.calls = 0

    @fuse
    def of_floats(self, x):
        """Compute e^x times the number of calls."""
        self.calls += 1
        return customops.exp(x) * self.calls

    @fuse
    def of_integers(self, x):
        """Compute relu of integers times the number of calls, for which there is no kernel."""
        self.calls += 1
        return customops.relu(x) * self.calls


@pytest.mark.parametrize("hooks", [False, True])
def test_no_call_runs_a_function_twice(device, hooks):
    x, n = torch.ones(2, device=device, requires_grad=True), torch.ones(2, device=device, dtype=torch.int64)
    counts = Counter(), Counter()
    scaled = fuse(lambda x, numbers: [x := x * number for number in numbers][-1])
    context = torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t) if hooks else nullcontext()
    with context:
        for calls in (1, 2, 3):
            assert_equal(counts[0].of_floats(x), x.exp() * calls)
            assert counts[1].of_integers(n).eq(calls).all()
            assert_equal(scaled(x, iter([2.0, 3.0])), x * 6)


def test_a_function_that_wraps_a_fused_one_is_another(device):
    def squared(function):
        @wraps(function)
        def call(x):
            return function(x) * x

        return call

    (x,) = draw([(3,)], device)
    outer = fuse(squared(triple))
    assert_equal(outer(x), x * 3 * x)
    assert len(str(outer.program(x)).splitlines()) == 3


def test_what_stands_around_a_function_and_stays_is_not_looked_at_again(device, grown):
    fused, (x,) = fuse(reads_a_global), draw([(3,)], device)
    runs = []
    made = fused.fused if hasattr(fused, "fused") else fused
    made.function = lambda x: runs.append(x) or reads_a_global(x)
    for _ in range(3):
        fused(x)
    assert len(grown) == 2
    assert not KERNELS or len(runs) == 1  # by formulas it is called, too
