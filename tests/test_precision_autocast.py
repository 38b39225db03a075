"""Autocast: the dtypes and gradients of torch, also where kernels compute."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

import customops

from .cases import BY_FUNCTIONS, CALLS, ROW, ROWS, ids
from .compare import assert_equal, assert_same_outcomes, cotangent
from .conftest import DEVICE
from .marks import by_path

HALVES = (torch.float16, torch.bfloat16)
PAIRS = [(a, b) for a in HALVES for b in (a, torch.float32, torch.float64)] + [(torch.float32, torch.bfloat16)]


@cache
def lists() -> tuple[torch._ops.OpOverload, ...]:
    """Return the overloads of our operators that CUDA's autocast computes in float32, asked of torch."""
    packets = [getattr(torch.ops.aten, row.name) for row in ROWS]
    dispatched = set(torch._C._dispatch_get_all_op_names())  # the rest is TorchScript's
    overloads = [getattr(packet, name) for packet in packets for name in packet.overloads()]
    known = [op for op in overloads if op.name() in dispatched]
    return tuple(op for op in known if torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "AutocastCUDA"))


def in_float32(op):
    """Return ``op`` as CUDA's autocast calls it, without CUDA: half operands are cast, or a dtype is set."""
    takes_dtype = any(argument.name == "dtype" for argument in op._schema.arguments)

    def cast(x):
        return x.float() if isinstance(x, Tensor) and x.dtype in HALVES else x

    def call(*args, **options):
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)):
            if not takes_dtype:
                return op(*map(cast, args), **options)
            if options.get("dtype") is None and args[0].dtype in HALVES:
                options["dtype"] = torch.float32
            return op(*args, **options)

    return call


@contextmanager
def cuda_state(enabled: bool = True):
    """Switch autocast on or off for CUDA tensors, whether or not there are any; plans depend on it."""
    before = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", enabled)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before)


@contextmanager
def autocast(enabled: bool = True):
    """Switch CUDA's autocast on; without a GPU, CPU tensors are cast as it would, so that kernels run under it."""
    with cuda_state(enabled), torch.library._scoped_library("aten", "IMPL") as library:
        for op in lists() if DEVICE == "cpu" else ():
            library.impl(op.name().removeprefix("aten::"), in_float32(op), "AutocastCPU")
        with torch.autocast(DEVICE, torch.float16, enabled=enabled):
            yield


def draw(row, call, dtypes, shape=(2, 3, 2, 2), scale=1):
    """Draw operands of these dtypes, one each."""
    return [row.draw(shape, dtypes[i], seed=i, device=DEVICE).mul(scale).requires_grad_() for i in range(call.arity)]


def both(call, *xs):
    """Return the results of ours and of torch."""
    return [call.function(library, *xs) for library in (customops, torch)]


def gradients(z, xs, scale=1.0, **options) -> tuple:
    return torch.autograd.grad(z, xs, cotangent(z) * scale, **options)


def test_lists_name_what_the_imitation_knows():
    assert {op.name().removeprefix("aten::").split(".")[0] for op in lists()} == {
        *("log", "log1p", "log2", "exp", "expm1", "reciprocal", "rsqrt", "softplus", "pow", "prod", "sum")
    }


@pytest.mark.sample(formulas="call, operator*dtypes, path*dtypes", kernels="operator, path, dtypes")
@pytest.mark.parametrize("dtypes", PAIRS, ids=ids)
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_values_and_gradients_match_torch(row, call, dtypes, tally):
    """They match with backward inside, outside, and recorded, where formulas compute it."""
    xs = draw(row, call, dtypes)
    with autocast():
        results = both(call, *xs)
        assert_same_outcomes(*(gradients(z, xs, retain_graph=True) for z in results))
    assert_same_outcomes(*results)
    for options in ({"retain_graph": True}, {"create_graph": True}):
        assert_same_outcomes(*(gradients(z, xs, **options) for z in results))
    tally("autocast gradients", 3)


@pytest.mark.sample(kernels="path")
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_gradients_overflow_only_where_torchs_do(row, call):
    """Powers of 600 overflow in float16, in which no power is computed."""
    xs = draw(row, call, HALVES[:1] * 2, (2, 2, 2, 2), scale=200)
    for options in ({"retain_graph": True}, {"create_graph": True}):
        with autocast():
            results = both(call, *xs)
        assert_same_outcomes(*(gradients(z, xs, 1e-6, **options) for z in results))


@pytest.mark.sample(kernels="path")
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_tangents_match_torch(row, call):
    if row.name == "erf":
        pytest.skip("torch takes its tangent by exp, which autocast computes in float32")
    xs = [x.detach() for x in draw(row, call, HALVES[:1] * 2)]
    with autocast():
        got, want = (
            torch.func.jvp(lambda *xs, lib=library: call.function(lib, *xs), tuple(xs), tuple(xs))[1]
            for library in (customops, torch)
        )
    assert_equal(got, want)


@pytest.mark.sample(kernels="path, dtype")
@pytest.mark.parametrize("dtype", HALVES, ids=ids)
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_no_plan_is_kept_from_before(row, call, dtype):
    xs = [x.detach() for x in draw(row, call, (dtype, dtype), (2, 2, 2, 2))]
    for enabled in (False, True, False, True):
        with autocast(enabled):
            got, want = both(call, *xs)
            assert got.dtype == want.dtype


@pytest.mark.skipif(DEVICE != "cpu", reason="a CPU's autocast leaves GPU tensors alone")
@pytest.mark.parametrize("dtype", HALVES, ids=ids)
@pytest.mark.parametrize("call", ROW["prod"].calls, ids=ids)
def test_no_plan_is_kept_from_before_autocast_of_a_cpu(call, dtype):
    """Of our operators, it computes the product alone in float32."""
    (x,) = (x.detach() for x in draw(ROW["prod"], call, (dtype,)))
    for enabled in (False, True, False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            got, want = both(call, x)
            assert got.dtype == want.dtype == (torch.float32 if enabled else dtype)


@pytest.mark.sample(formulas="operator, path, dtypes", kernels="dtypes")
@pytest.mark.parametrize("dtypes", [(torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16)], ids=ids)
@pytest.mark.parametrize(("row", "call"), BY_FUNCTIONS, ids=ids)
def test_fake_cuda_tensors_are_cast_by_torch_itself(row, call, dtypes):
    with cuda_state(), FakeTensorMode():
        got, want = both(call, *(torch.empty(2, 2, 2, 2, dtype=dtypes[i], device="cuda") for i in range(call.arity)))
    assert (got.dtype, got.device, got.shape) == (want.dtype, want.device, want.shape)


@pytest.mark.sample(formulas="operator, path, chosen*dtypes", kernels="path, chosen*dtypes")
@pytest.mark.parametrize("dtypes", [(torch.float16, torch.float32), (torch.float32, torch.float32)], ids=ids)
@pytest.mark.parametrize("chosen", HALVES, ids=ids)
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_cpu_autocast_changes_nothing(row, call, dtypes, chosen):
    if row.name == "prod":
        pytest.skip("on a CPU, too, torch multiplies in float32 under autocast")
    xs = draw(row, call, dtypes)
    want = call.function(torch, *xs)
    wanted = want, gradients(want, xs)
    with torch.autocast("cpu", chosen):
        got = call.function(customops, *xs)
        assert_same_outcomes((got, gradients(got, xs)), wanted)


@pytest.mark.parametrize("name", ["log", "exp"])
def test_out_is_not_cast(name):
    x = draw(ROWS[0], ROWS[0].calls[0], HALVES)[0].detach()
    with autocast():
        got, want = (
            getattr(library, name)(x, out=torch.empty_like(x, dtype=torch.float32)) for library in (customops, torch)
        )
    assert torch.equal(got, want)


@by_path
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_gradients_can_be_unscaled_in_place(row, call):
    """A loss scaler does so; a gradient that is an expanded view has one element, which it would scale many times."""
    results = []
    for library in (customops, torch):
        xs = draw(row, call, (torch.float32,) * 2)
        optimizer, scaler = torch.optim.SGD(xs), torch.amp.GradScaler(DEVICE, init_scale=64.0)
        scaler.scale(call.function(library, *xs).sum()).backward()
        scaler.unscale_(optimizer)
        results.append([x.grad for x in xs])
    assert_same_outcomes(*results)
