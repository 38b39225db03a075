"""Triton's C launcher, called as on a GPU, hands the driver what was planned; the driver is ``stub_libcuda.c``."""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import pytest
import torch

import customops

from .cases import CALLS, ids
from .compare import assert_equal
from .conftest import DEVICE, INTERPRETED

triton = pytest.importorskip("triton", reason="without Triton there are no kernels")
if INTERPRETED:
    pytest.skip("the interpreter has no launcher", allow_module_level=True)
if DEVICE == "cuda" or torch.cuda.is_available():
    pytest.skip("a driver is there, and one process has one", allow_module_level=True)

from triton import language as tl  # noqa: E402 - Triton may be missing

from customops.runtime.memory import unbacked  # noqa: E402

from . import launcher  # noqa: E402
from .driver_launch import DriverLaunch, execute  # noqa: E402

if launcher.blocker():
    pytest.skip(f"{launcher.blocker()}, so no stub can be built", allow_module_level=True)

pytestmark = pytest.mark.xdist_group("launcher")  # it is built once


@pytest.fixture(scope="session")
def stub(tmp_path_factory):
    """Yield the stub, built and loaded."""
    stub = launcher.Stub(tmp_path_factory.mktemp("stub"))
    yield stub
    stub.close()


def numbers(*shape, dtype=torch.float32):
    return torch.arange(1, 1 + torch.Size(shape).numel()).reshape(shape).to(dtype)


def gradients(function, *xs):
    """Return the value, and the gradients of all of ``xs``."""
    xs = [x.detach().requires_grad_() for x in xs]
    z = function(*xs)
    return z.detach(), *torch.autograd.grad(z, xs, torch.ones_like(z))


fused = customops.fuse(lambda x, y: (customops.exp(x) * y, customops.sum(x + y, -1)))
row_programs = customops.fuse(lambda x: x - customops.mean(x, -1, keepdim=True))
far = 2**31  # elements between rows: an offset of several takes 64 bits

# Calls of every kind of kernel and argument, as functions of the library.
KINDS = {
    "map": lambda lib: lib.exp(numbers(1000) / 1000),
    "map of rows apart": lambda lib: lib.mul(numbers(6, 10)[:, ::3], numbers(6, 1)),
    "map of transposed and shifted": lambda lib: lib.add(numbers(7, 5).T, numbers(36)[1:].view(5, 7)),
    "a float": lambda lib: lib.mul(numbers(64), -0.3),
    "an infinity": lambda lib: lib.sub(numbers(64), -float("inf")),
    "a float of a half": lambda lib: lib.add(numbers(64, dtype=torch.float16), 0.1),
    "a negative integer": lambda lib: lib.mul(numbers(6, dtype=torch.int64), -5),
    "an integer past 31 bits": lambda lib: lib.add(numbers(6, dtype=torch.int64), 2**31),
    "the lowest integer": lambda lib: lib.add(numbers(6, dtype=torch.int64), -(2**63)),
    "an integer past 63 bits": lambda lib: lib.add(numbers(6, dtype=torch.int64), 2**63 + 1),
    "True": lambda lib: lib.mul(numbers(6, dtype=torch.bool), True),
    "float64": lambda lib: lib.pow(numbers(6, dtype=torch.float64), 2.5),
    "reduced over rows": lambda lib: lib.sum(numbers(70, 33), 0),
    "reduced over columns": lambda lib: lib.mean(numbers(70, 33), 1),
    "partial sums": lambda lib: lib.sum(numbers(512, 4096) % 7, 0),
    "a sum of all": lambda lib: lib.sum(numbers(300_000) % 7),
    "gradients, one reduced": lambda lib: gradients(lib.mul, numbers(40, 30), numbers(30)),
    "gradients, both reduced": lambda lib: gradients(lib.mul, numbers(40, 1), numbers(1, 30)),
    "in place": lambda lib: getattr(lib, "mul_", torch.Tensor.mul_)(numbers(64), 3),
}
FUSED = {
    "fused, two outputs": lambda: fused(numbers(8, 24) / 100, numbers(8, 24)),
    "fused rows": lambda: row_programs(numbers(8, 24)),
    "fused gradients": lambda: gradients(row_programs, numbers(8, 24)),
}
FAR = {
    "rows far apart": lambda: customops.exp(unbacked((3, 5), (far, 1), torch.float32)),
    "rows farther apart": lambda: customops.sum(unbacked((2, 3, 5), (4 * far, far + 4, 1), torch.float32), 0),
    "3 billion elements": lambda: customops.add(unbacked((3 * 10**9,), (1,), torch.float32), 1),
}


def expected(planned, arguments) -> tuple[list[str], list[bytes]]:
    """Return the names and bytes of the parameters: what the plan has, in order, without what is compiled in.

    An address and a number have 64 bits, any other integer as many as it needs, 32 or 64.
    """
    operands, outputs = ([arguments[i] for i in at] for at in (planned.operand_positions, planned.output_positions))
    names, values = [], []

    def add(path: tuple[int, ...], value: Any) -> None:
        if path in compiled_in:
            assert compiled_in[path] == value
        elif isinstance(value, tuple):
            for i, item in enumerate(value):
                add((*path, i), item)
        else:
            is_wide = path[0] in (0, 1) or value >= 2**31
            names.append(planned.kernel.arg_names[path[0]])
            values.append(struct.pack("<q" if is_wide else "<i", value))

    compiled_in = planned.compiled.src.constants
    addresses = [tuple(x if type(x) is int else x.data_ptr() for x in tensors) for tensors in (operands, outputs)]
    for i, value in enumerate((*addresses, *planned.arguments)):
        add((i,), value)
    return names, values


def assert_as_planned(launch: DriverLaunch, stream: int) -> None:
    planned, kernel = launch.origin.planned, launch.kernel
    names, values = expected(planned, launch.origin.arguments)
    assert kernel.names == tuple(names)
    assert launch.block_of_parameters == (*values, bytes(8), bytes(8))  # Triton's own two: it has no scratch memory
    assert launch.grid == (planned.grid, 1, 1)
    assert launch.block == (32 * kernel.metadata["num_warps"], 1, 1) == (kernel.threads, 1, 1)
    assert launch.shared_bytes == kernel.metadata["shared"]
    assert all(value % divisor == 0 for value, divisor in zip(launch.parameters, kernel.divisors, strict=False))
    assert (launch.stream, launch.attributes) == (stream, ())


def check(stub, run, tally) -> list[DriverLaunch]:
    stub.driver.stream += 0x10
    with stub.active() as launches:
        run()
    assert launches
    for launch in launches:
        assert_as_planned(launch, stub.driver.stream)
    tally("launches by Triton's launcher", len(launches))
    return launches


@pytest.mark.sample(formulas="path")
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_every_call_is_launched_as_planned(row, call, stub, tally):
    xs = [row.draw((4, 8, 2, 2), torch.float32, i) for i in range(call.arity)]
    check(stub, lambda: gradients(lambda *xs: call.function(customops, *xs), *xs), tally)


@pytest.mark.parametrize("name", [*KINDS, *FUSED, *FAR])
def test_every_kind_of_argument_is_launched_as_planned(name, stub, tally):
    check(stub, (FUSED | FAR).get(name, lambda: KINDS[name](customops)), tally)


# What the parameters of some launches are, worked out by hand: strides of 0 and 1 are compiled in, and of the sizes the
# outermost, which is not read, is 1. x, y, z are addresses.
BY_HAND = {
    "one axis": (
        lambda: (numbers(1000),),
        customops.exp,
        {"operands": ["x"], "outputs": ["z"], "sizes": [1], "extents": [1000]},
    ),
    "rows and columns apart": (
        lambda: (numbers(6, 10)[:, ::3], numbers(6, 1)),
        customops.mul,
        {"operands": ["x", "y"], "operand_strides": [10, 3], "output_strides": [4], "sizes": [1, 1], "extents": [6, 4]},
    ),
    "three axes, the last one first": (
        lambda: (numbers(3, 50, 7).permute(1, 2, 0)[:, ::2], numbers(4, 3)),
        customops.mul,
        {
            "operands": ["x", "y"],
            "outputs": ["z"],
            "operand_strides": [7, 350, 2, 3],  # of x along 50, 3 and 4 elements, of y along 4
            "output_strides": [4, 200],
            "sizes": [1, 3, 1],
            "extents": [150, 4],
        },
    ),
    "a number": (
        lambda: (numbers(64), -0.3),
        customops.mul,
        {"operands": ["x", struct.unpack("<q", struct.pack("<d", -0.3))[0]], "outputs": ["z"], "extents": [64]},
    ),
    "rows of a mean": (
        lambda: (numbers(70, 33), 1),
        customops.mean,
        {"operands": ["x"], "operand_strides": [33], "sizes": [1, 1], "extents": [70, 33], "counts": [33]},
    ),
    "rows far apart": (
        lambda: (unbacked((3, 5), (far, 1), torch.float32),),
        customops.exp,
        {"operand_strides": [far], "output_strides": [5], "extents": [3, 5]},
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_parameters_are_those_worked_out_by_hand(name, stub):
    make, function, parameters = BY_HAND[name]
    arguments = make()
    with stub.active() as launches:
        z = function(*arguments)
    (launch,) = launches
    groups: dict[str, list[int]] = {}
    for argument, value in zip(launch.kernel.names, launch.signed(), strict=False):
        groups.setdefault(argument, []).append(value)
    addresses = {"z": z.data_ptr()}
    addresses |= {x: t.data_ptr() for x, t in zip("xy", arguments, strict=False) if isinstance(t, torch.Tensor)}
    for argument, values in parameters.items():
        assert groups[argument] == [addresses.get(value, value) for value in values]


def test_divisors_that_a_kernel_counts_on_are_read(stub):
    with stub.active() as launches:
        KINDS["map of transposed and shifted"](customops)
    of = dict(zip(launches[0].parameters, launches[0].kernel.divisors, strict=False))
    tensors = [x for x, _ in launches[0].origin.memory()]
    assert [of[x.data_ptr()] for x in tensors] == [16, 1, 16]


@pytest.mark.parametrize("name", KINDS)
def test_each_pointer_leads_to_its_tensor(name, stub):
    with stub.active() as launches:
        KINDS[name](customops)
    for launch in launches:
        arguments, planned = launch.origin.arguments, launch.origin.planned
        operands, outputs = ([arguments[i] for i in at] for at in (planned.operand_positions, planned.output_positions))
        pointers = {i: x for i, x in enumerate((*operands, *outputs)) if isinstance(x, torch.Tensor)}
        buffers = launch.buffers()
        assert buffers.keys() == pointers.keys()
        assert all(buffers[i][0] is x for i, x in pointers.items())
        written = [i for i, (_, writable) in buffers.items() if writable]
        assert written == ([0, 2] if name == "in place" else [*range(len(operands), len(operands) + len(outputs))])


def test_grids_and_threads_are_those_of_a_dry_run(stub):
    with stub.active() as launches:
        for call in KINDS.values():
            call(customops)
    with customops.dry_run("cuda:90") as records:
        for call in KINDS.values():
            call(customops)
    recorded = [(record.name, record.grid, 32 * record.num_warps) for record in records]
    assert [(launch.kernel.name, launch.grid, launch.block[0]) for launch in launches] == recorded


def test_launches_of_a_thread_have_a_context_and_the_stream_of_their_moment(stub):
    """CUDA's current context is a thread's own."""
    x, streams = numbers(64), [0, 1, 2**47 + 8, 2**64 - 1]
    with stub.active() as launches:
        for stream in streams:
            stub.driver.stream = stream
            with ThreadPoolExecutor(1) as pool:
                pool.submit(customops.exp, x).result()
    assert [launch.stream for launch in launches] == streams


@pytest.mark.parametrize("how", ["added", "set"])
def test_hooks_hear_of_a_launch_before_and_after_it(how, stub, monkeypatch):
    runtime, x, heard = triton.knobs.runtime, numbers(64), []

    def enter(metadata):
        heard.append(("enter", metadata.get()["name"], metadata.get()["stream"]))

    def leave(metadata):
        heard.append(("leave", metadata.get()["name"], metadata.get()["stream"]))

    for name, hook in {"launch_enter_hook": enter, "launch_exit_hook": leave}.items():
        chain = type(getattr(runtime, name))()
        chain.add(hook)
        monkeypatch.setattr(runtime, name, chain if how == "added" else hook)
    stub.driver.stream = 0x70
    with stub.active(lambda launch: heard.append(("launch", launch.kernel.name, launch.stream))) as launches:
        customops.exp(x)
    assert heard == [(when, "map_kernel", 0x70) for when in ("enter", "launch", "leave")]
    assert_as_planned(launches[0], 0x70)


def _changed(call: tuple, **changes) -> tuple:
    """Return the arguments of Triton's launcher, of which some are changed."""
    names = ("x", "y", "z", "stream", "function", "metadata", "_", "enter", "leave", "inputs", "outputs")
    known = dict(zip(names, call, strict=False)) | changes
    return (*known.values(), *call[len(names) :])


# What a launch may do wrongly: the arguments of Triton's launcher from the right ones.
WRONG = {
    "nothing": lambda *call: call,
    "grid": lambda *call: _changed(call, x=call[0] + 1),
    "another axis of the grid": lambda *call: _changed(call, y=2),
    "stream": lambda *call: _changed(call, stream=0),
    "warps": lambda *call: _changed(call, metadata=(2 * call[5][0], *call[5][1:])),
    "shared memory": lambda *call: _changed(call, metadata=(*call[5][:2], call[5][2] + 16)),
    "order of operands": lambda *call: _changed(call, inputs=call[9][::-1]),
    "outputs before operands": lambda *call: _changed(call, inputs=(*call[10], call[9][1]), outputs=call[9][:1]),
    "order of strides": lambda *call: (*call[:11], (call[11][0][::-1], *call[11][1:]), *call[12:]),
    "an address": lambda *call: _changed(call, inputs=(call[9][0] + 4, call[9][1])),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_launch_is_noticed(what, stub, monkeypatch, replan):
    stub.driver.stream = 0x80
    with stub.active() as launches:
        KINDS["map of rows apart"](customops)
        planned = launches[0].origin.planned
        run = planned.run
        monkeypatch.setattr(planned, "run", lambda *call: run(*WRONG[what](*call)))
        KINDS["map of rows apart"](customops)
    with nullcontext() if what == "nothing" else pytest.raises(AssertionError):
        assert_as_planned(launches[1], 0x80)


@pytest.mark.parametrize("metadata", [(64, 1, 0), (1, 1, 48 * 1024 + 1)], ids=["2048 threads", "shared memory"])
def test_the_stub_refuses_what_a_driver_does(metadata, stub, monkeypatch, replan):
    with stub.active() as launches:
        customops.exp(numbers(64))
        planned = launches[0].origin.planned
        run = planned.run
        monkeypatch.setattr(planned, "run", lambda *call: run(*_changed(call, metadata=metadata)))
        with pytest.raises(RuntimeError, match="invalid argument"):
            customops.exp(numbers(64))
    assert len(launches) == 1


def test_a_fault_during_a_launch_reaches_the_caller(stub):
    def fail(_launch):
        raise ZeroDivisionError

    def run():
        with stub.active(fail):
            customops.exp(numbers(64))

    with pytest.raises(ZeroDivisionError):
        run()
    with stub.active() as launches:
        customops.exp(numbers(64))
    assert len(launches) == 1


@triton.jit
def of_a_user(integers, floats, small, large, unsigned, number, tenth, flag, low, one, pair, none, N: tl.constexpr):
    tl.store(integers + 0, small)
    tl.store(integers + 1, large)
    tl.store(integers + 2, unsigned.to(tl.int64))
    tl.store(integers + 3, flag.to(tl.int64))
    tl.store(integers + 4, low)
    tl.store(integers + 5, one)
    tl.store(integers + 6, pair[1])
    tl.store(floats + 0, number)
    tl.store(floats + 1, tenth)
    tl.store(floats + 2, tl.load(pair[0] + N))


def launch_of_a_user(integers, floats, y):
    y = y[1:], -7
    of_a_user[(3, 4)](integers, floats, -5, 2**31, 2**63, 1.5, 0.1, True, -(2**40), 1, y, None, N=3, num_warps=8)


@triton.jit
def multiply(x, y, z, N: tl.constexpr):
    i, j = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    tl.store(z + i * N + j, tl.dot(tl.load(x + i * N + j), tl.load(y + i * N + j)))


def test_parameters_of_a_users_kernel_are_its_arguments(stub):
    integers, floats, y = numbers(7, dtype=torch.int64), numbers(3), numbers(64)
    stub.driver.stream = 0x90
    with stub.active() as launches:
        launch_of_a_user(integers, floats, y)
    (launch,) = launches
    assert (launch.grid, launch.block, launch.stream, launch.attributes) == ((3, 4, 1), (256, 1, 1), 0x90, ())
    wanted = ("Q", integers.data_ptr()), ("Q", floats.data_ptr()), ("i", -5), ("q", 2**31), ("Q", 2**63), ("f", 1.5)
    wanted += ("f", 0.1), ("B", True), ("q", -(2**40)), ("Q", y[1:].data_ptr()), ("i", -7), ("Q", 0), ("Q", 0)
    assert launch.block_of_parameters == tuple(struct.pack(f"<{kind}", value) for kind, value in wanted)
    addresses = {i: x.data_ptr() for i, (x, _) in launch.buffers().items()}
    assert addresses == {0: integers.data_ptr(), 1: floats.data_ptr(), 9: y[1:].data_ptr()}


@pytest.mark.parametrize(
    ("option", "attributes"), [({"num_ctas": 2}, (4, 5)), ({"launch_cooperative_grid": True}, (2,))], ids=str
)
def test_options_of_a_users_kernel_are_attributes_of_its_launch(option, attributes, stub):
    """They are CUDA's cluster dimension and scheduling policy, and its cooperative launch."""
    x = torch.ones(256, dtype=torch.float16)
    with stub.active() as launches:
        multiply[(3,)](x, x, x, 16, **option)
    assert launches[0].attributes == attributes
    assert launches[0].grid == (3 * option.get("num_ctas", 1), 1, 1)


def test_a_kernel_gets_more_shared_memory_than_48_kib(stub):
    x = torch.ones(128, 128, dtype=torch.float16)
    with stub.active() as launches:
        multiply[(1,)](x, x, x, 128)
    assert launches[0].shared_bytes == launches[0].kernel.metadata["shared"] > 48 * 1024


@pytest.fixture
def executing(stub):
    """Return a context in which each launch executes its compiled code with the parameters that the stub got."""
    return lambda: stub.active(execute)


@pytest.mark.parametrize("name", [*KINDS, *FUSED])
def test_what_is_launched_computes_torchs_values(name, executing):
    want = KINDS[name](torch) if name in KINDS else FUSED[name]()
    with executing():
        got = KINDS[name](customops) if name in KINDS else FUSED[name]()
    for mine, theirs in zip(*([x] if isinstance(x, torch.Tensor) else x for x in (got, want)), strict=True):
        assert_equal(mine, theirs)


def test_a_users_kernel_computes_with_its_arguments(executing):
    integers, floats, y = numbers(7, dtype=torch.int64), numbers(3), numbers(64)
    with executing():
        launch_of_a_user(integers, floats, y)
    assert integers.tolist() == [-5, 2**31, -(2**63), 1, -(2**40), 1, -7]
    assert_equal(floats, torch.tensor([1.5, 0.1, y[4]]))
