"""A dry run records any Triton kernel: a user's own, an autotuned one, a library's; and nothing of it stays."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

import customops
from customops.ptx.faults import KernelFault
from customops.tools.driver import RecordingDriver
from customops.tools.machine_code import flat_arguments, parameters
from customops.tools.report import describe, total

from .conftest import INTERPRETED, KERNELS

triton = pytest.importorskip("triton", reason="without Triton nothing compiles")
if KERNELS or INTERPRETED:
    pytest.skip("the interpreter's functions do not compile, and a GPU is not asked", allow_module_level=True)
import triton.language as tl  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.runtime.errors import OutOfResources  # noqa: E402


@triton.jit
def add(x, y, z, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(z + i, tl.load(x + i, i < n) + tl.load(y + i, i < n), i < n)


@triton.jit
def add_all(xs, z, factors, LAST: tl.constexpr):
    """Add tensors in a tuple, times numbers in another; ``LAST`` is a tensor, None or bool, as ``factors`` may hold."""
    i = tl.arange(0, 64)
    total = tl.load(xs[0] + i) * factors[0] + tl.load(xs[1][0] + i) * factors[1]
    if LAST is not None:
        total += LAST
    tl.store(z + i, total)


@triton.jit
def choose(x, y, z, negates, n):
    i = tl.arange(0, 64)
    value = tl.load(x + i) * n
    if y is not None:
        value += tl.load(y + i)
    tl.store(z + i, tl.where(negates, -value, value))


@triton.jit
def reverse(x, z, N: tl.constexpr):
    """Reverse a vector by way of shared memory, which holds all of it."""
    i = tl.arange(0, N)
    tl.store(z + i, tl.gather(tl.load(x + i), N - 1 - i, 0))


KIB = 1024
CONFIGS = [triton.Config({"N": kib * KIB // 4}, num_warps=16) for kib in (256, 128, 64, 32)]
FITTING = {"cuda:80": 128, "cuda:90": 128, "cuda:100": 128, "cuda:120": 64, "hip:gfx942": 64}  # KiB
LIMITS = {"cuda:80": 163, "cuda:90": 227, "cuda:100": 227, "cuda:120": 99, "hip:gfx942": 64}  # KiB


def tune(configs=CONFIGS, **options):
    return triton.autotune(configs, key=[], **options)(reverse)


def vectors():
    return torch.ones(2, 256 * KIB // 4)


def launch_add(grid=(8,), n=1000):
    x, y, z = torch.ones(3, n)
    return add[grid](x, y, z, n, BLOCK=128)


@pytest.mark.parametrize("target", FITTING)
def test_a_launch_is_recorded_with_all_that_is_known_of_it(target):
    with customops.dry_run(target) as records:
        compiled = launch_add()
    (record,) = records
    assert record.compiled is compiled
    assert (record.name, record.program, record.operands) == ("add", "", ())
    assert (record.grid, record.num_warps) == ((8, 1, 1), 4)
    assert str(compiled.metadata.target.arch) == target.split(":")[1]
    assert (record.bytes_moved, record.bytes_floor, record.spills) == (None, None, 0)
    assert 4 <= record.registers <= 32
    pointers = [None] if target.startswith("hip") else [("x",), ("y",), ("z",)]
    assert record.widths == dict.fromkeys(pointers, 32)


@pytest.mark.parametrize(
    ("grid", "expected"),
    [((5,), (5, 1, 1)), ((5, 3), (5, 3, 1)), ([2, 3, 4], (2, 3, 4))]
    + [(lambda meta: (triton.cdiv(meta["n"], meta["BLOCK"]), 2), (8, 2, 1))],
)
def test_a_grid_has_three_axes_whichever_way_it_is_given(grid, expected):
    with customops.dry_run() as records:
        launch_add(grid)
    assert [record.grid for record in records] == [expected]


@pytest.mark.parametrize("grid", [(0,), (4, 0), (4, 4, 0)])
def test_an_empty_grid_launches_nothing(grid):
    with customops.dry_run() as records:
        launch_add(grid)
    assert records == []


def test_two_launches_are_two_records_of_one_compilation(monkeypatch):
    compiled = []
    add.device_caches.clear()
    monkeypatch.setattr(triton.knobs.compilation, "listener", lambda **facts: compiled.append(facts["src"].name))
    with customops.dry_run() as records:
        launch_add((8,))
        launch_add((8,))
        launch_add((16,))
    assert [record.grid[0] for record in records] == [8, 8, 16]
    assert compiled == ["add"]


@pytest.mark.parametrize("target", FITTING)
def test_an_autotuned_kernel_has_the_first_configuration_that_the_gpu_can_run(target):
    tuned = tune()
    with customops.dry_run(target) as records:
        tuned[(1,)](*vectors())
    (record,) = records
    assert record.compiled.metadata.shared == FITTING[target] * KIB
    assert tuned.best_config.kwargs["N"] == FITTING[target] * KIB // 4


def test_autotuning_leaves_no_choice_behind(monkeypatch):
    """A real GPU would follow it, from memory or from disk."""
    monkeypatch.setattr(triton.runtime.Autotuner, "check_disk_cache", None)
    tuned = tune(cache_results=True, do_bench=lambda *_, **__: pytest.fail("timed"))
    before = {name: value for name, value in vars(tuned).items() if name != "nargs"}
    with customops.dry_run():
        tuned[(1,)](*vectors())
    after = {name: value for name, value in vars(tuned).items() if name not in ("nargs", "best_config")}
    assert after == before
    assert tuned.cache == {}


def test_configurations_behind_the_first_that_fits_are_not_compiled(monkeypatch):
    compiled = []
    reverse.device_caches.clear()
    monkeypatch.setattr(triton.knobs.compilation, "listener", lambda **facts: compiled.append(facts["src"].constants))
    with customops.dry_run("cuda:90"):
        tune()[(1,)](*vectors())
    assert [constants[2,] for constants in compiled] == [config.kwargs["N"] for config in CONFIGS[:2]]


def test_an_autotuned_kernel_that_fits_nowhere_says_so():
    tuned = tune(CONFIGS[:1] * 2)
    with customops.dry_run() as records, pytest.raises(OutOfResources, match="shared memory"):
        tuned[(1,)](*vectors())
    assert records == []


def test_heuristics_are_followed():
    chosen = triton.heuristics({"BLOCK": lambda args: triton.next_power_of_2(args["n"])})(add)
    x, y, z = torch.ones(3, 1000)
    with customops.dry_run() as records:
        chosen[lambda meta: (meta["BLOCK"] // 512,)](x, y, z, 1000)
    assert [record.grid for record in records] == [(2, 1, 1)]
    assert records[0].compiled.src.constants[4,] == 1024


@pytest.fixture
def launched(monkeypatch):
    """Return the list of what is launched: the record, and the value of each parameter of the machine code."""
    found = []

    def launch(driver, record, args, inputs):
        found.append((record, flat_arguments(record.compiled, args)))

    monkeypatch.setattr(RecordingDriver, "launch", launch)
    return found


@pytest.mark.parametrize("last", [None, 3, True])
def test_tuples_are_flattened_and_constants_left_out(launched, last):
    a, b, z = torch.ones(3, 64).unbind()
    with customops.dry_run():
        add_all[(1,)]((a, (b, None)), z, (1, 2.5, 7), LAST=last)
    ((record, values),) = launched
    types = (("xs", 0), "*fp32"), (("xs", 1, 0), "*fp32"), (("z",), "*fp32"), (("factors", 1), "fp32")
    assert parameters(record.compiled) == (*types, (("factors", 2), "i32"))
    assert [*map(id, values[:3])] == [id(a), id(b), id(z)]
    assert values[3:] == (2.5, 7)


@pytest.mark.parametrize("has_y", [False, True])
def test_none_and_one_are_constants_and_a_bool_is_none(launched, has_y):
    x, y, z = torch.ones(3, 64).unbind()
    with customops.dry_run():
        choose[(1,)](x, y if has_y else None, z, True, 1)
        choose[(1,)](x, y if has_y else None, z, False, 16)
    tensors = [x, y, z] if has_y else [x, z]
    for (record, values), rest in zip(launched, ([True], [False, 16]), strict=True):
        assert [*map(id, values[: len(tensors)])] == [*map(id, tensors)]
        assert [*values[len(tensors) :]] == rest
        assert len(parameters(record.compiled)) == len(values)


def test_our_own_launches_hand_over_tensors_and_numbers(launched):
    x = torch.ones(8, 64)
    with customops.dry_run():
        z = customops.mul(x, 3)
    ((record, values),) = launched
    leaves = [leaf for leaf, _ in parameters(record.compiled)]
    found = dict(zip(leaves, values, strict=True))
    assert record.program.startswith("mul(")
    assert found["operands", 0].data_ptr() == x.data_ptr()
    assert isinstance(found["operands", 1], int)
    assert found["outputs", 0].data_ptr() == z.data_ptr()
    assert all(isinstance(value, (int, torch.Tensor)) for value in values)


def test_a_kernel_compiled_by_hand_is_recorded():
    signature = {"x": "*fp32", "y": "*fp32", "z": "*fp32", "n": "i32", "BLOCK": "constexpr"}
    x, y, z = torch.ones(3, 100)
    with customops.dry_run() as records:
        compiled = triton.compile(ASTSource(add, signature, {(4,): 128}))
        compiled[1, 2, 3](x, y, z, 100, 128)
    assert [(record.grid, record.compiled is compiled) for record in records] == [((1, 2, 3), True)]


def test_each_of_nested_blocks_has_its_own_launches_and_nothing_stays(monkeypatch):
    real = SimpleNamespace(get_current_device=lambda: pytest.fail("asked"))
    monkeypatch.setattr(triton.runtime.driver, "_active", real)
    kept = triton.compiler.CompiledKernel._init_handles, triton.runtime.Autotuner.run
    with customops.dry_run("cuda:90") as outer:
        launch_add()
        for target in ("cuda:80", "cuda:90"):
            with customops.dry_run(target) as inner:
                compiled = launch_add()
            assert [record.compiled.metadata.target.arch for record in inner] == [int(target[5:])]
        customops.exp(torch.ones(8))
        launch_add()
    assert [record.name for record in outer] == ["add", "map_kernel", "add"]
    assert triton.runtime.driver.active is real
    assert (triton.compiler.CompiledKernel._init_handles, triton.runtime.Autotuner.run) == kept
    x, y, z = torch.ones(3, 100)
    with pytest.raises(RuntimeError, match="add: it was compiled in a dry run that is over"):
        compiled.run(1, 1, 1, 0, None, None, None, None, None, x, y, z, 100, 128)
    assert len(outer) == 3


def test_launches_of_all_threads_are_recorded():
    add.device_caches.clear()
    with customops.dry_run() as records, ThreadPoolExecutor(4) as pool:
        list(pool.map(launch_add, [(i,) for i in range(1, 13)]))
    assert sorted(record.grid[0] for record in records) == [*range(1, 13)]


@pytest.mark.parametrize("target", LIMITS)
def test_too_much_shared_memory_is_an_error_each_time(target):
    with customops.dry_run(target) as records:
        for _ in range(2):
            with pytest.raises(OutOfResources, match=f"Required: 262144, Hardware limit: {LIMITS[target] * KIB}"):
                reverse[(1,)](*vectors(), N=256 * KIB // 4, num_warps=16)
    assert records == []


def test_a_grid_that_no_gpu_takes_is_a_fault():
    with customops.dry_run() as records:
        launch_add((1, 65535))
        with pytest.raises(KernelFault, match=r"^65,536 blocks along axis 1 .* has at most 65,535 \(kernel add\)"):
            launch_add((1, 65536))
    assert len(records) == 1


def test_profilers_do_not_hear_of_what_is_not_loaded():
    heard, hooks = [], ("kernel_load_start_hook", "kernel_load_end_hook", "launch_enter_hook", "launch_exit_hook")
    chains = [getattr(triton.knobs.runtime, name) for name in hooks]
    add.device_caches.clear()
    for chain in chains:
        chain.add(heard.append)
    try:
        with customops.dry_run() as records:
            launch_add()
            launch_add()
    finally:
        for chain in chains:
            chain.remove(heard.append)
    assert (heard, len(records)) == ([], 2)
    assert [getattr(triton.knobs.runtime, name) for name in hooks] == chains


def test_the_driver_answers_what_libraries_ask():
    with customops.dry_run("cuda:90"):
        driver = triton.runtime.driver.active
        properties = driver.utils.get_device_properties(driver.get_current_device())
        assert properties["max_shared_mem"] == 232448
        assert (properties["multiprocessor_count"], properties["max_num_regs"], properties["warpSize"]) == (
            132,
            65536,
            32,
        )
        assert driver.get_active_torch_device() == torch.device("cpu")
        assert driver.map_python_to_cpp_type("i32") == "int32_t"
        assert driver.get_device_interface().current_device() == driver.get_current_device()
        assert driver.get_device_capability() == (9, 0)
        with pytest.raises(RuntimeError, match="nothing can be timed"):
            triton.testing.do_bench(launch_add)


def test_a_report_says_what_is_not_known_of_a_users_kernel():
    with customops.dry_run() as records:
        launch_add()
        customops.exp(torch.ones(64))
    own, _ = ["\n".join(describe("forward", [record])) for record in records]
    assert own.startswith("forward   add\n")
    assert "bytes moved unknown  floor unknown  ratio -\n" in own
    assert "load    x 32  y 32 bits\n" in own
    assert "store   z 32 bits" in own
    assert total(record.bytes_moved for record in records) is None
    assert total(record.bytes_moved for record in records[1:]) == 512


def test_liger_kernels_rms_norm_is_recorded_forward_and_backward():
    """It takes tensors on the CPU as they are, but for one fact: it then counts one multiprocessor."""
    rms_norm = pytest.importorskip("liger_kernel.ops.rms_norm", reason="needs liger-kernel")
    x, weight = torch.ones(8, 256, requires_grad=True), torch.ones(256, requires_grad=True)
    with customops.dry_run() as records:
        y = rms_norm.LigerRMSNormFunction.apply(x, weight, 1e-6, 0.0, "llama", False, None)
        y.backward(torch.ones_like(y))
    forward, backward = records
    assert (forward.name, forward.grid) == ("_rms_norm_forward_kernel", (8, 1, 1))
    assert (backward.name, backward.grid) == ("_rms_norm_backward_kernel", (1, 1, 1))
    assert forward.widths["X_ptr",] == forward.widths["Y_ptr",] == backward.widths["dX_ptr",] == 64
    assert forward.spills == backward.spills == 0


def test_liger_kernels_rms_norm_executed_gives_torchs_values():
    rms_norm = pytest.importorskip("liger_kernel.ops.rms_norm", reason="needs liger-kernel")
    generator = torch.Generator().manual_seed(0)
    x, weight, g = (torch.randn(shape, generator=generator) for shape in ((5, 300), (300,), (5, 300)))
    xs = x.requires_grad_(), weight.requires_grad_()
    with customops.dry_run(execute=True) as records:
        y = rms_norm.LigerRMSNormFunction.apply(*xs, 1e-6, 0.0, "llama", False, None)
        found = y, *torch.autograd.grad(y, xs, g)
    z = torch.nn.functional.rms_norm(x, (300,), weight, 1e-6)
    torch.testing.assert_close(found, (z, *torch.autograd.grad(z, xs, g)))
    forward, backward = records
    row = 300 * 4  # bytes
    assert forward.traffic == (2 * 5 * row, 5 * row + 5 * 4, 11 * row + 5 * 4)  # the weight for each row; a statistic
    assert backward.traffic.distinct == 17 * row + 5 * 4
