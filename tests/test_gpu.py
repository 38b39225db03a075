"""Properties that only a GPU can show: streams, threads, several devices, huge tensors, errors in ulp."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

import customops

from . import accuracy
from .cases import CALLS, REDUCTIONS, ROWS, ids
from .compare import assert_equal, assert_same_outcome, cotangent, outcome
from .conftest import DEVICE
from .inplace import twin

if DEVICE != "cuda":
    pytest.skip("needs a GPU: CUSTOMOPS_TEST_DEVICE=cuda CUSTOMOPS_BACKEND=triton", allow_module_level=True)

every_call = pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
SHAPE = (3, 5, 4, 6)


def draw(row, call, shape=SHAPE, dtype=torch.float32, seed=0, device="cuda"):
    return [row.draw(shape, dtype, seed=seed + i, device=device) for i in range(call.arity)]


def evaluate(call, library, xs, g=None):
    """Return the value and, given ``g``, the gradients."""
    if g is None:
        return [call.function(library, *xs)]
    xs = [x if x.requires_grad else x.detach().requires_grad_() for x in xs]
    z = call.function(library, *xs)
    return [z.detach(), *torch.autograd.grad(z, xs, g)]


def assert_all_equal(got, want):
    for mine, theirs in zip(got, want, strict=True):
        assert_equal(mine, theirs)


@every_call
def test_call_waits_its_turn_on_the_current_stream(row, call):
    """A call behind a long kernel is launched without waiting, and reads what the stream wrote before it."""
    values = draw(row, call)
    g_values = cotangent(call.function(torch, *values))
    want = evaluate(call, torch, values, g_values)
    xs, g = [torch.zeros_like(x).requires_grad_() for x in values], torch.zeros_like(g_values)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        evaluate(call, customops, xs, g)  # compiles and takes memory for this stream: both would wait
        torch.cuda.synchronize()
        torch.cuda._sleep(2 * 10**8)  # cycles, about 0.1 s
        for x, value in zip(xs, values, strict=True):
            x.data.copy_(value)
        z = call.function(customops, *xs)
        torch.cuda._sleep(2 * 10**8)
        g.copy_(g_values)
        grads = torch.autograd.grad(z, xs, g)
    assert not stream.query(), "a call waited for the GPU"
    stream.synchronize()
    assert_all_equal([z.detach(), *grads], want)


def test_threads_on_streams_of_their_own_compute_side_by_side():
    """They have shapes that no other test has, so that they also compile side by side."""
    together = Barrier(8)

    def work(seed):
        stream = torch.cuda.Stream()
        together.wait(timeout=60)
        with torch.cuda.stream(stream):
            for row, call in CALLS[seed:] + CALLS[:seed]:
                xs = draw(row, call, (5, 3, 7, 11), seed=seed)
                g = cotangent(call.function(torch, *xs))
                got, want = (evaluate(call, library, xs, g) for library in (customops, torch))
                stream.synchronize()
                assert_all_equal(got, want)

    with ThreadPoolExecutor(together.parties) as pool:
        list(pool.map(work, range(together.parties)))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@every_call
def test_tensors_on_another_than_the_current_device(row, call):
    xs = draw(row, call, device="cuda:1")
    g = cotangent(call.function(torch, *xs))
    with torch.cuda.device(0):
        got, want = (evaluate(call, library, xs, g) for library in (customops, torch))
        assert torch.cuda.current_device() == 0
    assert_all_equal(got, want)


def _mixed(name, *devices):
    """Return a function to an operator's results and gradients for a vector and a 0-dim tensor, in either order."""

    def function(lib):
        operands = zip(([0.5, 2.0, 3.0], 1.5), devices, strict=True)
        xs = [torch.tensor(values, device=device, requires_grad=True) for values, device in operands]
        results = []
        for order in (xs, xs[::-1]):
            z = getattr(lib, name)(*order)
            results += [z.detach(), *torch.autograd.grad(z, order, torch.ones_like(z))]
        return results

    return function


def _plain(device):
    return torch.tensor(1.5, device=device)


ACROSS = {
    **{f"{row}, 0-dim on the CPU": _mixed(row.name, "cuda", "cpu") for row in ROWS if row.calls[0].arity == 2},
    "vector on the CPU": _mixed("mul", "cpu", "cuda"),
    "both 0-dim": lambda lib: [lib.mul(_plain("cpu"), _plain("cuda")), lib.pow(_plain("cuda"), _plain("cpu"))],
    "both on the CPU, out on the GPU": lambda lib: [lib.add(_plain("cpu"), 1, out=_plain("cuda"))],
    "out on the CPU": lambda lib: [lib.exp(_plain("cuda"), out=_plain("cpu"))],
    "written on the GPU": lambda lib: [twin(lib, "add_")(_plain("cuda"), _plain("cpu"))],
    "written on the CPU": lambda lib: [twin(lib, "add_")(_plain("cpu"), _plain("cuda"))],
}


@pytest.mark.parametrize("case", ACROSS)
def test_tensors_on_two_devices_have_torchs_outcome(case):
    with customops.backend("auto"):  # where no kernel can run, torch says so
        got, want = (outcome(ACROSS[case], library) for library in (customops, torch))
    if not isinstance(want, list):
        assert got is want
    else:
        assert isinstance(got, list), got
        for mine, theirs in zip(got, want, strict=True):
            assert_same_outcome(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=ids)
@every_call
def test_autocast_casts_as_torchs(row, call, dtype):
    xs = draw(row, call, dtype=dtype)
    results = []
    for library in (customops, torch):
        with torch.autocast("cuda", dtype=torch.float16):
            z = call.function(library, *(x.requires_grad_() for x in xs))
        results.append([z.detach(), *torch.autograd.grad(z, xs, cotangent(z))])
    assert_all_equal(*results)


MANY = 2**31 + 2**20


@pytest.fixture
def room():
    """Skip unless so many bytes of GPU memory are free, and free them again."""

    def need(size):
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        if free < size:
            pytest.skip(f"needs {size / 2**30:.0f} GiB of free GPU memory, {free / 2**30:.0f} are free")

    yield need
    torch.cuda.empty_cache()


def pattern(dtype, *shape):
    """Return the numbers 0 to 7, over and over: their sums and means are exact."""
    return torch.arange(8, device="cuda").to(dtype).repeat(MANY // 8).view(shape or MANY)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16], ids=ids)
def test_more_elements_than_31_bits_count(room, dtype):
    room(6 * MANY * dtype.itemsize)
    x = pattern(dtype)
    z = customops.sub(x, 3)  # below 0 uint8 wraps
    assert torch.equal(z, x - 3)
    customops.add_(z, x)
    assert torch.equal(z, x + x - 3)
    assert torch.equal(customops.relu(z), torch.relu(z))
    assert customops.sum(x, dtype=torch.int64).item() == 28 * (MANY // 8)


def test_more_elements_than_31_bits_count_have_gradients(room):
    room(7 * MANY * 2)
    x = pattern(torch.bfloat16).sub_(3).requires_grad_()
    z = customops.relu(x)
    (grad,) = torch.autograd.grad(z, x, torch.full((), 1.5, dtype=x.dtype, device="cuda").expand(MANY))
    assert torch.equal(grad, (x.detach() > 0).to(x.dtype) * 1.5)


@pytest.mark.parametrize("axis", [0, 1])
def test_mean_over_one_axis_of_more_elements_than_31_bits_count(room, axis):
    room(4 * MANY * 2)
    x = pattern(torch.bfloat16, 2, MANY // 2).requires_grad_()
    z = customops.mean(x, axis)
    assert torch.equal(z, x.detach()[0] if axis == 0 else torch.full_like(z, 3.5))
    (grad,) = torch.autograd.grad(z, x, torch.ones_like(z))
    assert grad.shape == x.shape
    assert torch.equal(grad[:, -1], torch.full_like(grad[:, -1], 1 / x.shape[axis]))


def test_gradient_summed_over_more_elements_than_31_bits_count(room):
    room(6 * MANY * 2)
    x = pattern(torch.bfloat16, 2, MANY // 2).requires_grad_()
    y = torch.tensor([[2.0], [4.0]], dtype=torch.bfloat16, device="cuda", requires_grad=True)
    z = customops.mul(x, y)
    dx, dy = torch.autograd.grad(z, (x, y), torch.ones((), dtype=x.dtype, device="cuda").expand_as(z))
    assert torch.equal(dx, y.detach().expand_as(x))
    assert_equal(dy, torch.full_like(dy, 3.5 * (MANY // 2)))


@every_call
def test_views_whose_offsets_pass_31_bits_are_read(row, call, room):
    """The views have few elements, more than 2^31 apart."""
    room(MANY * 4)
    base, shape, strides = torch.empty(MANY, dtype=torch.float32, device="cuda"), (3, 2, 2, 2), (2**30, 4, 2, 1)
    xs = draw(row, call, shape)
    far = [base.as_strided(shape, strides, 8 * i).copy_(x) for i, x in enumerate(xs)]
    g = cotangent(call.function(torch, *xs))
    assert_all_equal(evaluate(call, customops, far, g), evaluate(call, torch, xs, g))


def test_views_whose_offsets_pass_31_bits_are_written(room):
    room(MANY * 4)
    far, x = torch.empty(MANY, dtype=torch.float32, device="cuda")[:: 2**30], torch.rand(3, device="cuda")
    customops.add(x, 1, out=far)
    assert torch.equal(far.clone(), x + 1)
    customops.mul_(far, x)
    assert torch.equal(far.clone(), (x + 1) * x)


MEASURED = [
    pytest.param(row, call, dtype, id=f"{call}-{ids(dtype)}")
    for row, call in CALLS
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    if dtype != torch.float64 or row.name not in REDUCTIONS  # float64 has no vectorised exact sum
]


@pytest.mark.parametrize(("row", "call", "dtype"), MEASURED)
def test_errors_are_no_larger_than_torchs(row, call, dtype, measured, tally):
    """They are larger by half an ulp at most, as largest errors are chance; by 4 for sums, rounded in another order."""
    if dtype == torch.float64:
        pytest.importorskip("mpmath", reason="float64 is held to 200 bits")
    errors = accuracy.measure(row, call, dtype, "cuda", {"ours": customops, "torch": torch})
    for error in errors:
        measured(error)
        tally("accuracies")
    allowed = 4 if row.name in REDUCTIONS else 0.5
    assert not [error for error in errors if accuracy.is_worse(error, allowed)]
