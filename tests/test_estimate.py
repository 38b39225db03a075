"""The model of a launch is held to cases computed by hand: bytes, instructions, warps, bytes in flight, seconds."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch

import customops
from customops.tools.assembly import Block, blocks_of
from customops.tools.estimate import LIMITS, estimate, total_seconds
from customops.tools.machine_code import Access, sass
from customops.tools.places import Residence, passed_and_placed, residence, spilled_to_l2
from customops.tools.targets import GPUS, TARGETS
from customops.tools.ways import usual_way

from .conftest import INTERPRETED
from .marks import formulas_only

triton = pytest.importorskip("triton", reason="without Triton there are no kernels")
if INTERPRETED:
    pytest.skip("the interpreter's functions do not compile", allow_module_level=True)
import triton.language as tl  # noqa: E402

pytestmark = formulas_only

MIB, KIB = 1 << 20, 1 << 10
H100 = GPUS["H100 SXM"]
SIDE = 4096


@triton.jit
def sum_products(x, y, z, steps, BLOCK: tl.constexpr):
    """Load two rows of a block in each step, as the gradient of a row's factor does; one store at the end."""
    first = tl.program_id(0) * steps * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for step in range(steps):
        total += tl.load(x + first + step * BLOCK).to(tl.float32) * tl.load(y + first + step * BLOCK).to(tl.float32)
    tl.store(z + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), total)


@triton.jit
def scale_rows(x, weight, z, COLUMNS: tl.constexpr):
    column = tl.arange(0, COLUMNS)
    at = tl.program_id(0) * COLUMNS + column
    tl.store(z + at, tl.load(x + at) * tl.load(weight + column))


@triton.jit
def normalize(x, z, columns, BLOCK: tl.constexpr):
    """Walk a row twice: for its sum, then to divide by it."""
    total = tl.zeros([BLOCK], tl.float32)
    row = tl.program_id(0) * columns + tl.arange(0, BLOCK)
    for start in range(0, columns, BLOCK):
        total += tl.load(x + row + start)
    sum_of_row = tl.sum(total)
    for start in range(0, columns, BLOCK):
        tl.store(z + row + start, tl.load(x + row + start) / sum_of_row)


def empty(*shape: int, dtype=torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype)


def launched(kernel, grid: int, *args, target: str = "cuda:90", execute: bool = False, **options):
    """Return the record of one launch."""
    with customops.dry_run(target, execute) as records:
        kernel[(grid,)](*args, **options)
    (record,) = records
    return record


def straight(text: str) -> list[str]:
    """Return the instructions of SASS from the first to the one that ends it."""
    code = re.findall(r"/\*[0-9a-f]{4}\*/ +([^;]+) ;", text)
    return code[: 1 + code.index("EXIT")]


def test_exp_of_a_matrix():
    """Each of 16.8 M elements is read and written once in 2 bytes. All of its code is issued, if it has no branch.

    Triton 3.9 makes one, past which the last tile goes.
    """
    with customops.dry_run() as records:
        customops.exp(empty(SIDE, SIDE))
    (record,), found = records, records[0].estimate
    threads = record.grid[0] * record.num_warps * 32
    assert found.dram_bytes == found.l2_bytes == 2 * 2 * SIDE * SIDE
    code = straight(sass(record.compiled))
    branches = sum("BRA" in line for line in code)
    assert len(code) - 16 * branches <= found.instructions / threads <= len(code)
    assert found.instructions_per_element == found.instructions / SIDE**2
    assert found.warps == min(64, 65536 // (record.registers + -record.registers % 8) // 32)
    assert found.bytes_in_flight == found.warps * 32 * (2 * SIDE**2 / threads)
    assert found.seconds.dram == 4 * SIDE * SIDE / 3.0e12
    assert found.total == found.seconds.dram + H100.launch_latency
    assert (found.limit, found.gpu, found.spills) == ("DRAM", "H100 SXM", 0)


def test_few_small_programs_are_limited_by_bytes_in_flight():
    """40 programs of one warp, each thread with 2 loads of 16 bytes at once: 40 KiB on 132 multiprocessors.

    DRAM answers in 650 ns, so that they can ask for 63 GB/s, 2 % of 3.0 TB/s: 10 MiB take 166 us.
    """
    steps, block = 256, 256
    x, y, z = empty(40 * steps * block), empty(40 * steps * block), empty(40 * block, dtype=torch.float32)
    found = launched(sum_products, 40, x, y, z, steps, BLOCK=block, num_warps=1).estimate
    asked = 40 * 32 * 2 * 16
    unrolled = found.bytes_in_flight * 132 / asked  # a loop may load for several steps at once
    assert unrolled in (1, 2, 4)
    assert found.warps == 40 / 132
    loaded = 2 * x.numel() * 2
    assert found.seconds.in_flight == pytest.approx(loaded / (unrolled * asked / 650e-9), rel=0.05)
    assert asked / 650e-9 / 3.0e12 == pytest.approx(0.021, rel=0.01)
    assert found.limit == "bytes in flight"
    assert found.total == found.seconds.in_flight + H100.launch_latency


def test_a_row_that_all_programs_read_is_in_the_l2():
    """The weight is read 4096 times, from DRAM once; of what is in flight, x alone is."""
    rows, columns = 4096, 1024
    record = launched(scale_rows, rows, empty(rows, columns), empty(columns), empty(rows, columns), COLUMNS=columns)
    found, matrix, row = record.estimate, 2 * rows * columns, 2 * columns
    assert found.dram_bytes == 2 * matrix + row
    assert found.l2_bytes == 2 * matrix + rows * row
    assert found.bytes_in_flight == found.warps * 32 * columns * 2 / 128


def test_partial_sums_stay_in_the_l2():
    """The gradient of a factor that is a row, of which each program has a partial of 4 bytes for every column."""
    x, y = empty(SIDE, SIDE).requires_grad_(), empty(SIDE).requires_grad_()
    with customops.dry_run() as records:
        z = customops.mul(x, y)
        records.clear()
        torch.autograd.grad(z, (x, y), empty(SIDE, SIDE))
    first, last = records
    partials = next(m for m in first.moves.tensors if m.is_scratch)
    assert partials.unique % (4 * SIDE) == 0
    assert first.estimate.dram_bytes == 3 * 2 * SIDE * SIDE + 2 * SIDE  # g, x and dx; y
    assert first.estimate.l2_bytes >= first.estimate.dram_bytes + partials.unique
    assert last.estimate.dram_bytes == 2 * SIDE  # dy alone
    assert last.estimate.l2_bytes == partials.unique + 2 * SIDE
    assert total_seconds(records) == first.estimate.total + last.estimate.total


@pytest.mark.parametrize(
    ("columns", "again_from"), [(8 << 10, "L1"), (16 << 10, "L2"), (32 << 10, "DRAM")], ids=["8 K", "16 K", "32 K"]
)
def test_a_row_that_is_walked_twice_comes_from_the_nearest_memory_that_holds_it(columns, again_from, monkeypatch):
    """Half of each cache counts here. Two programs of 32 warps are on each of 132 multiprocessors.

    Between the walks lie a row and half of its results. In float32 that is 6 bytes an element: 96 KiB of a
    multiprocessor's 128 for 8 K, 24.75 MiB of 25 for 16 K.
    """
    monkeypatch.setattr("customops.tools.places.L1_SHARE", 0.5)
    rows = 2048
    record = launched(normalize, rows, empty(1), empty(1), columns, BLOCK=1024, num_warps=32)
    tensors = tuple(
        x._replace(numel=rows * columns, itemsize=4) for x in record.tensors
    )  # as if they had been so large
    found, matrix = record._replace(tensors=tensors).estimate, 4 * rows * columns
    assert found.warps == 64
    assert found.dram_bytes == (3 if again_from == "DRAM" else 2) * matrix
    assert found.l2_bytes == (2 if again_from == "L1" else 3) * matrix


def test_passes_are_those_that_the_executed_code_makes():
    """The executor counts the bytes of every load: the model's loops, weighed by their trips, ask for as many."""
    rows, columns = 3, 1 << 14
    x, z = torch.rand(rows, columns), torch.empty(rows, columns)
    record = launched(normalize, rows, x, z, columns, execute=True, BLOCK=256, num_warps=2)
    torch.testing.assert_close(z, x / x.sum(-1, keepdim=True))
    where = residence(record, H100)
    passed, _ = passed_and_placed(record, usual_way(blocks_of(record.compiled)), where)
    for kind, counted in {"load": record.traffic.loaded, "store": record.traffic.stored}.items():
        of_thread = sum(n * access.size for block, n in passed for access in block.accesses if access.kind == kind)
        assert of_thread * where.threads * where.programs == pytest.approx(counted, rel=0.03)
        assert counted == (2 if kind == "load" else 1) * 4 * rows * columns


def test_another_gpu_of_the_same_code_has_other_constants():
    record = launched(scale_rows, 4096, empty(4096, 1024), empty(1024), empty(4096, 1024), COLUMNS=1024)
    ours, other = record.estimate, estimate(record, GPUS["H200"])
    assert (other.gpu, other.dram_bytes, other.instructions) == ("H200", ours.dram_bytes, ours.instructions)
    assert other.seconds.dram * GPUS["H200"].dram_bandwidth == ours.seconds.dram * H100.dram_bandwidth
    assert total_seconds([record, record], GPUS["H200"]) == 2 * other.total < 2 * ours.total


@pytest.mark.parametrize("target", TARGETS)
def test_each_target_has_an_estimate(target):
    rows = empty(4096, 1024), empty(1024), empty(4096, 1024)
    found = launched(scale_rows, 4096, *rows, target=target, COLUMNS=1024).estimate
    assert found.gpu == TARGETS[target].model
    assert 16 * 2**20 < found.dram_bytes < 17 * 2**20
    assert found.limit in LIMITS
    assert found.instructions_per_element > 1
    assert all(0 < seconds < found.total for seconds in found.seconds)


def test_an_estimate_is_computed_once(monkeypatch):
    record = launched(scale_rows, 8, empty(8, 1024), empty(1024), empty(8, 1024), COLUMNS=1024)
    first = record.estimate
    monkeypatch.setattr("customops.tools.estimate.passed_and_placed", None)
    assert record.estimate is first


def test_launches_on_tensors_of_other_sizes_have_estimates_of_their_own():
    with customops.dry_run() as records:
        for rows in (4096, 8192):
            scale_rows[(4096,)](empty(rows, 1024), empty(1024), empty(rows, 1024), COLUMNS=1024)
    assert records[1].estimate.dram_bytes == 2 * records[0].estimate.dram_bytes - 2048


def test_spills_are_traffic_of_the_l2_where_the_l1_does_not_hold_them(monkeypatch):
    """Two blocks of 1024 threads on each of 132: 96 bytes a thread are the 192 KiB that the L1 may hold."""
    passed = [(Block(9, (Access("local", 32, None), Access("load", 128, None)), ()), 10.0)]
    where = Residence(H100, 1000, 1024, 264)
    compiled = SimpleNamespace(metadata=SimpleNamespace(target=SimpleNamespace(backend="cuda")), asm={"cubin": b""})
    for stack, expected in ((96, 0), (97, 10 * 4 * 1024 * 1000)):
        monkeypatch.setattr("customops.tools.places.binary_stack", lambda _, stack=stack: stack)
        assert spilled_to_l2(passed, compiled, where) == expected


def test_a_multiprocessor_without_warps_for_each_part_issues_less():
    """One program of a warp on each of 132 multiprocessors: a quarter of 128 threads in each cycle of 1.7 GHz."""
    x, y, z = empty(132 * 4096), empty(132 * 4096), empty(132 * 256, dtype=torch.float32)
    found = launched(sum_products, 132, x, y, z, 16, BLOCK=256, num_warps=1).estimate
    assert found.seconds.instructions == found.instructions / (1.7e9 * 32 * 132)
