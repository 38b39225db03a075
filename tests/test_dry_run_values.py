"""Kernels that a user may write, executed as Triton compiled them: their values are torch's."""

from __future__ import annotations

from contextvars import copy_context
from threading import Thread

import pytest
import torch

import customops
from customops.ptx.faults import KernelFault

from .conftest import INTERPRETED, KERNELS

triton = pytest.importorskip("triton", reason="without Triton nothing compiles")
if KERNELS or INTERPRETED:
    pytest.skip("the interpreter's functions do not compile, and a GPU is not asked", allow_module_level=True)
import triton.language as tl  # noqa: E402

TARGETS = ("cuda:80", "cuda:90")
N = 256


@pytest.fixture(params=TARGETS, autouse=True)
def executed(request):
    """Run the test in a dry run that executes, for each target."""
    torch.manual_seed(0)
    with customops.dry_run(request.param, execute=True):
        yield


@triton.jit
def softmax(out, x, rows, columns, BLOCK: tl.constexpr, STAGES: tl.constexpr):
    for row in tl.range(tl.program_id(0), rows, tl.num_programs(0), num_stages=STAGES):
        i = tl.arange(0, BLOCK)
        v = tl.load(x + row * columns + i, i < columns, -float("inf"))
        e = tl.exp(v - tl.max(v, 0))
        tl.store(out + row * columns + i, e / tl.sum(e, 0), i < columns)


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_softmax_whose_loads_are_pipelined(stages):
    x = torch.randn(13, 150)
    out = torch.empty_like(x)
    softmax[(3,)](out, x, 13, 150, 256, stages)
    torch.testing.assert_close(out, x.softmax(1))


@triton.jit
def dropout(out, x, n, p, seed, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.where(tl.rand(seed, i) > p, tl.load(x + i, i < n) / (1 - p), 0.0), i < n)


def philox(seed, counters):
    """Return the first 32 bits of Philox-4x32-10 for each counter: Salmon et al., Parallel random numbers, 2011."""
    low = (1 << 32) - 1
    for counter in counters:
        c, key = [counter, 0, 0, 0], [seed & low, seed >> 32]
        for _ in range(10):
            a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
            c = [b >> 32 ^ c[1] ^ key[0], b & low, a >> 32 ^ c[3] ^ key[1], a & low]
            key = [key[0] + 0x9E3779B9 & low, key[1] + 0xBB67AE85 & low]
        yield c[0]


def test_dropout_by_random_numbers():
    x = torch.rand(500) + 1
    out = torch.empty_like(x)
    dropout[(2,)](out, x, 500, 0.25, 123, N)
    signed = [bits if bits < 1 << 31 else bits - (1 << 32) for bits in philox(123, range(500))]
    uniform = torch.tensor([bits if bits >= 0 else -bits - 1 for bits in signed], dtype=torch.float64) / 2**31
    torch.testing.assert_close(out, torch.where(uniform > 0.25, x / 0.75, 0.0))


@triton.jit
def scan(sums, at, x, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    v = tl.load(x + i, i < n, 0.0)
    tl.store(sums + i, tl.cumsum(v, 0), i < n)
    tl.store(at, tl.argmax(v, 0))


def test_sums_up_to_each_element_and_where_the_greatest_is():
    x, sums, at = torch.rand(1000), torch.empty(1000), torch.zeros(1, dtype=torch.int32)
    scan[(1,)](sums, at, x, 1000, 1024)
    torch.testing.assert_close(sums, x.cumsum(0))
    assert at.item() == x.argmax().item()


@triton.jit
def compose(a, b, c, d):
    return a * c, b * c + d


@triton.jit
def recurrence(out, a, b, BLOCK: tl.constexpr, REVERSE: tl.constexpr):
    i = tl.arange(0, BLOCK)
    _, result = tl.associative_scan((tl.load(a + i), tl.load(b + i)), 0, compose, reverse=REVERSE)
    tl.store(out + i, result)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_linear_recurrence_by_an_associative_scan(reverse):
    a, b, out = torch.rand(N), torch.randn(N), torch.empty(N)
    recurrence[(1,)](out, a, b, N, reverse)
    state, order = torch.zeros(()), range(N - 1, -1, -1) if reverse else range(N)
    for i in order:
        state = a[i] * state + b[i]
        torch.testing.assert_close(out[i], state)


@triton.jit
def arrange(ordered, most, turned, x, y, N: tl.constexpr, K: tl.constexpr):
    i = tl.arange(0, N)
    v = tl.load(x + i)
    tl.store(ordered + i, tl.sort(v))
    tl.store(most + tl.arange(0, K), tl.topk(v, K))
    left, right = tl.split(tl.join(v, tl.load(y + i)))
    tl.store(turned + tl.arange(0, 2 * N), tl.interleave(right, left))


def test_sort_topk_join_and_interleave():
    x, y, ordered, most, turned = torch.randn(N), torch.randn(N), torch.empty(N), torch.empty(8), torch.empty(2 * N)
    arrange[(1,)](ordered, most, turned, x, y, N, 8)
    assert torch.equal(ordered, x.sort().values)
    assert torch.equal(most, x.topk(8).values)
    assert torch.equal(turned, torch.stack([y, x], 1).ravel())


@triton.jit
def take_along(out, x, index, counts, ROWS: tl.constexpr, COLUMNS: tl.constexpr, AXIS: tl.constexpr):
    i = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    at = tl.load(index + i)
    tl.store(out + i, tl.gather(tl.load(x + i), at, AXIS))
    tl.store(counts + tl.arange(0, 16), tl.histogram(tl.ravel(at), 16))


@pytest.mark.parametrize("axis", [0, 1])
def test_gather_and_histogram(axis):
    x, index = torch.randn(32, 16), torch.randint(0, 16, (32, 16), dtype=torch.int32)
    out, counts = torch.empty_like(x), torch.empty(16, dtype=torch.int32)
    take_along[(1,)](out, x, index, counts, 32, 16, axis)
    assert torch.equal(out, x.gather(axis, index.long()))
    assert torch.equal(counts.long(), index.ravel().bincount(minlength=16))


@triton.jit
def count(counts, x, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(counts + tl.load(x + i, i < n, 0), 1, i < n)


def test_counts_by_atomic_additions():
    x, counts = torch.randint(0, 10, (500,), dtype=torch.int32), torch.zeros(10, dtype=torch.int32)
    count[(2,)](counts, x, 500, N)
    assert torch.equal(counts.long(), x.bincount(minlength=10))


@triton.jit
def add_blocks(total, x, STRIDE, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    v = tl.load(x + (tl.program_id(0) * ROWS + row) * COLUMNS + column)
    tl.atomic_add(total + row * STRIDE + column, v, sem="relaxed")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_sums_by_atomic_additions_of_vectors(dtype):
    x, total = torch.randint(-9, 9, (3, 16, 32)).to(dtype), torch.zeros(16, 32, dtype=dtype)
    add_blocks[(3,)](total, x, 32, 16, 32, num_warps=1)
    assert torch.equal(total, x.sum(0))


@triton.jit
def add_under_lock(out, x, lock, uses, BLOCK: tl.constexpr, GROUPS: tl.constexpr):
    group, i = tl.program_id(0) % GROUPS, tl.arange(0, BLOCK)
    v = tl.load(x + tl.program_id(0) * BLOCK + i)
    while tl.atomic_cas(lock + group, 0, 1) == 1:
        pass
    if tl.load(uses + group) == 0:
        tl.atomic_xchg(uses + group, 1)
    else:
        v += tl.load(out + group * BLOCK + i)
    tl.store(out + group * BLOCK + i, v)
    tl.debug_barrier()
    tl.atomic_xchg(lock + group, 0)


def test_sums_of_many_programs_under_a_lock():
    x, out = torch.randn(12, 64), torch.full((3, 64), torch.nan)
    add_under_lock[(12,)](out, x, *torch.zeros(2, 3, dtype=torch.int32), 64, 3)
    torch.testing.assert_close(out, x.view(4, 3, 64).sum(0))


@triton.jit
def through_float8(out, x, N: tl.constexpr, KIND: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, tl.load(x + i).to(KIND).to(tl.float32))


@pytest.mark.parametrize(("kind", "dtype"), [(tl.float8e5, torch.float8_e5m2), (tl.float8e4nv, torch.float8_e4m3fn)])
def test_conversions_to_float8(kind, dtype, request):
    if kind == tl.float8e4nv and "cuda:80" in request.node.callspec.id:
        pytest.skip("sm_80 has no float8_e4m3fn")
    x, out = torch.randn(N) * 10, torch.empty(N)
    through_float8[(1,)](out, x, N, kind)
    assert torch.equal(out, x.to(dtype).float())


@triton.jit
def integers(out, x, y, N: tl.constexpr):
    i = tl.arange(0, N)
    a, b = tl.load(x + i), tl.load(y + i)
    tl.store(out + i, (a * b + a // b - a % b) ^ (a << 2) | (b >> 1) & ~a)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int64, torch.uint32], ids=str)
def test_integers_of_every_width(dtype):
    x = torch.randint(-100 if dtype.is_signed else 0, 100, (N,)).to(dtype)
    y, out = torch.randint(1, 100, (N,)).to(dtype), torch.empty(N, dtype=dtype)
    integers[(1,)](out, x, y, N)
    a, b = x.long(), y.long()
    quotient = a.div(b, rounding_mode="trunc")
    assert torch.equal(out, ((a * b + quotient - (a - quotient * b)) ^ (a << 2) | (b >> 1) & ~a).to(dtype))


@triton.jit
def steps_to_one(out, x):
    n, steps = tl.load(x + tl.program_id(0)), 0
    while n != 1:
        n = n // 2 if n % 2 == 0 else 3 * n + 1
        steps += 1
    tl.store(out + tl.program_id(0), steps)


def test_programs_whose_loops_end_at_different_times():
    x, out = torch.tensor([1, 2, 3, 6, 7, 27], dtype=torch.int32), torch.empty(6, dtype=torch.int32)
    steps_to_one[(6,)](out, x)
    assert out.tolist() == [0, 1, 7, 8, 16, 111]


@triton.jit
def assembly(out, x, N: tl.constexpr):
    i = tl.arange(0, N)
    text: tl.constexpr = "{ .reg .b32 t; shl.b32 t, $1, 3; add.s32 $0, t, $1; }"
    tl.store(out + i, tl.inline_asm_elementwise(text, "=r,r", [tl.load(x + i)], tl.int32, is_pure=True, pack=1))


def test_inline_assembly_with_a_register_of_its_own():
    x, out = torch.randint(0, 100, (N,), dtype=torch.int32), torch.empty(N, dtype=torch.int32)
    assembly[(1,)](out, x, N)
    assert torch.equal(out, 9 * x)


@triton.jit
def checked(out, x, N: tl.constexpr):
    i = tl.arange(0, N)
    v = tl.load(x + i)
    tl.device_assert(v < 5, "too large")
    tl.store(out + i, v)


def test_an_assertion_that_fails_is_a_fault_with_its_message():
    x, out = torch.arange(N, dtype=torch.int32) % 5, torch.empty(N, dtype=torch.int32)
    checked[(1,)](out, x, N, debug=True)
    assert torch.equal(out, x)
    with pytest.raises(KernelFault, match=r"an assertion of the kernel fails: too large .*test_dry_run_values\.py"):
        checked[(1,)](out, x + 1, N, debug=True)


@triton.jit
def printed(x, y):
    i = tl.arange(0, 64)
    tl.device_print("both", tl.load(x + i), tl.load(y + i))


def test_device_print_prints_each_element(capsys):
    x, y = torch.arange(64) / 4, torch.arange(64, dtype=torch.int64) - 2**40
    printed[(2,)](x, y, num_warps=1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * 64 * 2
    assert any("pid (1, 0, 0)" in line and line.endswith("15.750000") for line in lines)
    assert any(line.endswith(str(5 - 2**40)) for line in lines)


@triton.jit
def double(out, x, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(out + i, tl.load(x + i) * 2)


def test_a_cluster_of_blocks_is_not_known_and_says_so(request):
    if "cuda:80" in request.node.callspec.id:
        pytest.skip("sm_80 has no clusters")
    with pytest.raises(KernelFault, match="special register %cluster_ctarank is not known"):
        double[(2,)](torch.empty(N), torch.rand(N), 128, num_ctas=2)


@triton.jit
def copy_by_descriptors(out, x, N: tl.constexpr):
    of_x, of_out = (
        tl.make_tensor_descriptor(x, [N, N], [N, 1], [N, N]),
        tl.make_tensor_descriptor(out, [N, N], [N, 1], [N, N]),
    )
    of_out.store([0, 0], of_x.load([0, 0]))


def test_tensor_descriptors_are_copied_by_loads_or_are_not_known(request):
    x, out = torch.randn(32, 32), torch.empty(32, 32)

    def launch():
        triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8))
        copy_by_descriptors[(1,)](out, x, 32)

    if "cuda:80" in request.node.callspec.id:
        copy_context().run(launch)  # which forgets the allocator
        assert torch.equal(out, x)
    else:
        with pytest.raises(KernelFault, match=r"tensormap\.replace\S+ is not known"):
            copy_context().run(launch)


@triton.jit
def waves(out, x, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    v = tl.load(x + i, i < n)
    tl.store(out + i, tl.sin(v), i < n)
    tl.store(out + n + i, tl.cos(v), i < n)


def test_sines_of_large_numbers():
    """Those that libdevice reduces by a table of the bits of 2/pi, words that carry, and memory of the thread's own."""
    x = torch.tensor([0.5, -1e5, 1.1e5, 3e7, -1e10, 3e38, float("inf")])
    out = torch.empty(2, len(x))
    waves[(1,)](out, x, len(x), 8)
    expected = torch.stack([x.double().sin(), x.double().cos()]).float()
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=3e-7, equal_nan=True)


@triton.jit
def fill(out, single, half: tl.bfloat16):
    tl.store(out, single)
    tl.store(out + 1, half.to(tl.float32))


def test_numbers_are_rounded_as_the_launcher_does():
    """A number too large for float32 is infinite; of bfloat16 the launcher cuts off the bits that it has not."""
    out = torch.zeros(2)
    fill[(1,)](out, 1e300, 1 + 2**-8 + 2**-9)
    assert out.tolist() == [float("inf"), 1.0]


@triton.jit
def copy(out, x, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, i < n), i < n)


def test_bytes_seen_as_float8_are_read():
    x, out = torch.arange(100, dtype=torch.uint8), torch.zeros(100)
    copy[(1,)](out, triton.reinterpret(x, tl.float8e5), 100, 128)
    assert torch.equal(out, x.view(torch.float8_e5m2).float())


def test_a_tensor_without_memory_is_an_error_that_names_it():
    x, out = torch.empty(8, device="meta"), torch.zeros(8)
    for args in ((out, x), (x, out)):
        with pytest.raises(ValueError, match=r"copy: (out|x) is on meta"):
            copy[(1,)](*args, 8, 8)
    copy[(1,)](torch.empty(0), torch.empty(0), 0, 8)


@triton.jit
def wait_for_all(arrived, out, N: tl.constexpr):
    tl.atomic_add(arrived, 1)
    while tl.atomic_add(arrived, 0) < N:
        pass
    tl.store(out + tl.program_id(0), 1)


def test_a_program_that_waits_for_a_later_one_is_a_fault():
    """Programs with atomic operations run one after the other."""
    with pytest.raises(KernelFault, match="a loop that never ends"):
        wait_for_all[(2,)](torch.zeros(1, dtype=torch.int32), torch.zeros(2, dtype=torch.int32), 2)


def test_launches_of_threads_at_once_have_each_their_traffic():
    x, counts = torch.rand(2**14), [2**14 - 100 * i for i in range(4)]
    outs = [torch.zeros(n) for n in counts]
    with customops.dry_run("cuda:90", execute=True) as records:
        threads = [
            Thread(target=copy[(triton.cdiv(n, 128),)], args=(out, x, n, 128))
            for n, out in zip(counts, outs, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(record.traffic.stored for record in records) == sorted(4 * n for n in counts)
    assert all(torch.equal(out, x[:n]) for out, n in zip(outs, counts, strict=True))


@triton.jit
def write_bytes(z):
    place = tl.program_id(0) * 37 % 256  # so the programs of one element do not run together
    tl.store(z.to(tl.pointer_type(tl.uint8)) + place, place.to(tl.uint8))


def test_programs_that_write_bytes_of_one_element_do_not_race():
    z = torch.zeros(64, dtype=torch.int32)
    with customops.dry_run(execute=True):
        write_bytes[(256,)](z)
    assert z.view(torch.uint8).tolist() == list(range(256))
