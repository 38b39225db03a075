"""Launches in Triton's interpreter: what is replaced to save time changes no result, and is restored."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from threading import Thread

import pytest
import torch

import customops
from customops import _compat

from .conftest import INTERPRETED, KERNELS, NO_KERNEL

if not (KERNELS and INTERPRETED):
    pytest.skip(NO_KERNEL, allow_module_level=True)

import triton
import triton.language as tl
from customops.triton_kernels import formulas
from triton.runtime import interpreter


@triton.jit
def same(x):
    return tl.sum(tl.broadcast_to(x, x.shape)[None, :], 0)


@triton.jit
def double(x):
    two = 2  # a tensor where the interpreter has rewritten the assignment, else a number without a dtype
    return same(same(x) * two.to(x.dtype))


@triton.jit
def refuse(x):
    tl.static_assert(same(x).dtype.is_int(), "refused")


@triton.jit
def double_all(source, target, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(target + i, double(tl.load(source + i)))


@customops.fuse
def rms_norm(x, w):
    scale = customops.rsqrt(customops.add(customops.mean(customops.mul(x, x), -1, keepdim=True), 1e-5))
    return customops.mul(customops.mul(x, scale), w)


def draw(*shape, dtype=torch.float32):
    return (4 * torch.randn(shape)).to(dtype)


CALLS = {  # a function, and what it is differentiated at
    "mul, broadcast": lambda: (customops.mul, draw(3, 1, 20), draw(5, 1)),
    "pow": lambda: (customops.pow, draw(4, 9).abs(), draw(9)),
    "sum by several programs": lambda: (customops.sum, draw(2500, 3)),
    "amax, transposed": lambda: (partial(customops.amax, dim=0), draw(7, 30).T),
    "fused RMSNorm": lambda: (rms_norm, draw(3, 70), draw(70)),
    "bfloat16": lambda: (customops.sigmoid, draw(130, dtype=torch.bfloat16)),
    "float16": lambda: (customops.div, draw(40, dtype=torch.float16), draw(40, dtype=torch.float16)),
    "float64 and a number": lambda: (partial(customops.add, other=0.1), draw(40, dtype=torch.float64)),
    "int32 past its end": lambda: (customops.mul, torch.tensor([2**30, -3], dtype=torch.int32), 6),
    "int64": lambda: (customops.sum, torch.arange(100)),
    "bool": lambda: (customops.mul, torch.tensor([True, False]), torch.tensor([True, True])),
}


def values_and_gradients(function, *xs):
    xs = [x.clone().requires_grad_(x.is_floating_point()) if isinstance(x, torch.Tensor) else x for x in xs]
    z = function(*xs)
    return [z, *(torch.autograd.grad(z, xs, torch.ones_like(z)) if z.requires_grad else ())]


def _bytes(x):
    return x.detach().reshape(-1).clone(memory_format=torch.contiguous_format).view(torch.uint8)


def attributes():
    """Return every attribute of the places of which Triton's interpreter, or we, replace some."""
    builder = interpreter.interpreter_builder
    places = tl, tl.core, tl.math, tl.tensor, tl.dtype, tl.block_type, tl.core.tensor_descriptor_base, interpreter
    found = {(place, name): getattr(place, name, None) for place in places for name in dir(place)}
    return {**found, (builder, "options"): builder.options}


def assert_same(attributes, others):
    assert attributes.keys() == others.keys()
    for key, value in attributes.items():  # some of Python's own are made anew each time, and equal
        assert value is others[key] or value == others[key], key


@pytest.fixture
def restored():
    """Expect that each attribute is in the end what it is now."""
    customops.exp(torch.ones(2))  # it finds what to replace
    before = attributes()
    yield
    assert_same(attributes(), before)


@pytest.fixture
def patches(monkeypatch):
    """Return the list of the functions for which Triton replaces the language from now on."""
    made, patch = [], interpreter._patch_lang
    monkeypatch.setattr(interpreter, "_patch_lang", lambda fn: made.append(fn) or patch(fn))
    return made


def test_triton_is_one_whose_interpreter_is_known():
    assert _compat._interpreted_language() is not None


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_results_are_bit_for_bit_those_of_triton_left_alone(call, monkeypatch):
    function, *xs = call()
    got = values_and_gradients(function, *xs)
    with monkeypatch.context() as patch:
        patch.setattr(_compat, "_interpreted_language", lambda: None)
        want = values_and_gradients(function, *xs)
    for mine, theirs in zip(got, want, strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.shape == theirs.shape
        mine, theirs = (_bytes(x) for x in (mine, theirs))
        assert torch.equal(mine, theirs)


def test_language_is_replaced_once_for_many_device_functions(patches, monkeypatch):
    x = draw(3, 70)
    for _ in range(2):
        rms_norm(x, x)
    assert len(patches) == 1  # and not again by the second call
    monkeypatch.setattr(_compat, "_interpreted_language", lambda: None)
    rms_norm(x, x)
    assert len(patches) > 20


def test_attributes_differ_inside_and_are_found_anew_when_someone_changed_one(monkeypatch, restored):
    language = _compat._interpreted_language()
    with monkeypatch.context() as patch:
        patch.setattr(tl.math, "exp", tl.math.log)
        with _compat.interpreting():
            assert all(getattr(owner, name) is inside for owner, name, _, inside in language.changes)
            inside = attributes()
            customops.exp(torch.ones(2))
            assert_same(attributes(), inside)
        assert tl.math.exp is tl.math.log


def test_language_is_restored_after_a_launch_that_raises(monkeypatch, restored, replan):
    monkeypatch.setattr(formulas, "exp", refuse)
    with pytest.raises(interpreter.InterpreterError, match="refused"):
        customops.exp(torch.ones(2))


def test_device_functions_are_still_interpreted(monkeypatch, restored, replan):
    monkeypatch.setattr(formulas, "exp", double)
    assert customops.exp(torch.tensor([1.0, 3.0])).tolist() == [2, 6]


@pytest.mark.parametrize("missing", ["_MISSING", "_LangPatchScope", "_patch_lang"])
def test_triton_that_is_not_as_expected_is_left_alone(missing, monkeypatch):
    with monkeypatch.context() as patch:
        patch.delattr(interpreter, missing)
        assert _compat._interpreted_language.__wrapped__() is None


def test_other_kernels_are_launched_inside_and_by_another_thread():
    def launch():
        target = torch.empty(4)
        double_all[(1,)](torch.arange(4.0), target, 4)
        results.append(target.tolist())

    results = []
    with _compat.interpreting():
        launch()
        thread = Thread(target=launch)
        thread.start()
        thread.join()
        launch()
    launch()
    assert results == [[0, 2, 4, 6]] * 4


def test_what_another_thread_restored_is_replaced_again(monkeypatch):
    """A launch there, which ends while ours runs, restores the language."""
    outside = tl.load
    with _compat.interpreting(), monkeypatch.context() as patch:
        patch.setattr(tl, "load", outside)
        double_all[(1,)](torch.arange(4.0), target := torch.empty(4), 4)
    assert target.tolist() == [0, 2, 4, 6]


def test_overflow_is_checked_where_triton_debugs(monkeypatch, restored):
    x = torch.tensor([2**30], dtype=torch.int32)
    assert customops.mul(x, 2).item() == -(2**31)
    builder = interpreter.interpreter_builder
    with monkeypatch.context() as patch:
        patch.setattr(builder, "options", replace(builder.options, debug=True))
        with pytest.raises(interpreter.InterpreterError, match="overflow"):
            customops.mul(x, 2)
