"""Products of matrices by ``mma.sync`` and ``wgmma``: registers, layouts in shared memory, and Triton's ``tl.dot``.

What a lane holds, and where an element lies in shared memory, is written here element by element, as the figures and
examples of the PTX ISA have it.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import customops
from customops.ptx.faults import KernelFault
from customops.ptx.machine import load
from customops.ptx.regions import Buffer

from .conftest import INTERPRETED, KERNELS

triton = pytest.importorskip("triton", reason="without Triton nothing compiles")
if KERNELS or INTERPRETED:
    pytest.skip("the interpreter's functions do not compile, and a GPU is not asked", allow_module_level=True)
import triton.language as tl  # noqa: E402

pytestmark = pytest.mark.sample(kernels="")  # it asks nothing of the interpreter

BITS = {"f16": 16, "bf16": 16, "tf32": 32, "f32": 32, "e4m3": 8, "e5m2": 8, "s8": 8, "u8": 8, "s32": 32, "f64": 64}
TYPES = {
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "tf32": torch.float32,
    "f32": torch.float32,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
    "s8": torch.int8,
    "u8": torch.uint8,
    "s32": torch.int32,
    "f64": torch.float64,
}


def draw(kind, *shape):
    """Return a matrix of integers: all different where the type has as many."""
    n = shape[0] * shape[1]
    generator = torch.Generator().manual_seed(n + BITS[kind])
    if BITS[kind] > 8:
        return (torch.randperm(n, generator=generator) % 256 - 100).reshape(shape).to(TYPES[kind])
    low, high = {"s8": (-128, 128), "u8": (0, 256), "e4m3": (-16, 17), "e5m2": (-8, 9)}[kind]
    return torch.randint(low, high, shape, generator=generator).float().to(TYPES[kind])


def held(matrix, places):
    """Return bytes of lanes that hold the elements at ``places``, [lanes, elements] of (row, column)."""
    rows, columns = torch.tensor(places).unbind(-1)
    return matrix[rows, columns].view(torch.uint8).numpy().reshape(len(places), -1)


def places_of_a(rows, k, bits):
    e = max(1, 32 // bits)
    halves = rows // 8
    return [
        [
            (lane // 4 + 8 * (r % halves), 4 * e * (r // halves) + lane % 4 * e + i)
            for r in range(rows * k // 32 // e)
            for i in range(e)
        ]
        for lane in range(32)
    ]


def places_of_b(k, bits):
    e = max(1, 32 // bits)
    return [
        [(4 * e * r + lane % 4 * e + i, lane // 4) for r in range(8 * k // 32 // e) for i in range(e)]
        for lane in range(32)
    ]


def places_of_d(rows, columns=8):
    halves = rows // 8
    return [
        [
            (lane // 4 + 8 * (i // 2 % halves), 8 * (i // 2 // halves) + lane % 4 * 2 + i % 2)
            for i in range(rows * columns // 32)
        ]
        for lane in range(32)
    ]


def execute(text, arrays, threads):
    """Run a kernel on arrays of bytes, of which the last is the output."""
    buffers = {
        i: Buffer(f"p{i}", array.ctypes.data, array.itemsize, array.shape, (array.shape[1], 1), array is arrays[-1])
        for i, array in enumerate(arrays)
    }
    load(text).execute((1, 1, 1), threads, [array.ctypes.data for array in arrays], buffers, 4096)


HEADER = """
.version 8.7
.target sm_90a
.address_size 64
.extern .shared .align 1024 .b8 memory[];
.visible .entry k({parameters}) .reqntid {threads} {{
.reg .pred %p<2>; .reg .b32 %r<200>; .reg .b64 %rd<200>;
mov.u32 %r0, %tid.x;
"""


def kernel(threads, loads, body, store):
    """Return a kernel: ``loads`` and ``store`` say which registers each thread has of which array, and of what type."""
    names = ", ".join(f".param .u64 .ptr .global .align 16 p{i}" for i in range(len(loads) + 1))
    lines = [HEADER.format(parameters=names, threads=threads)]
    for i, (kind, registers) in enumerate([*loads, store]):
        lines += body if i == len(loads) else []
        size = int(kind[1:]) // 8
        lines += [f"ld.param.b64 %rd100, [p{i}];", f"mad.wide.u32 %rd101, %r0, {size * len(registers)}, %rd100;"]
        for j, register in enumerate(registers):
            place = f"[%rd101+{size * j}]"
            stores = i == len(loads)
            lines.append(
                f"st.global.{kind} {place}, {register};" if stores else f"ld.global.{kind} {register}, {place};"
            )
    return "\n".join([*lines, "ret;", "}"])


def names(prefix, first, count):
    return [f"%{prefix}{first + i}" for i in range(count)]


def group(registers):
    return "{" + ", ".join(registers) + "}"


def multiply(shape, kinds, opcode=None, guard="", offset=0, factor=1):
    """Return A, B, C, and D as ``mma.sync`` has it, of D = factor · A B + C, where C has ``offset`` added.

    ``kinds`` are the types of D, A, B and C.
    """
    rows, k = (int(n) for n in shape[1:].split("n8k"))
    a, b, c = (draw(kind, *size) for kind, size in zip(kinds[1:], ((rows, k), (k, 8), (rows, 8)), strict=True))
    c += offset
    parts = [
        held((a.double() * factor).to(a.dtype), places_of_a(rows, k, BITS[kinds[1]])),
        held(b, places_of_b(k, BITS[kinds[2]])),
    ]
    parts.append(held(c, places_of_d(rows)))
    d = torch.zeros(rows, 8, dtype=TYPES[kinds[0]])
    out = held(d, places_of_d(rows))
    wide = kinds[0] == "f64"
    prefix, kind, size = ("rd", "b64", 8) if wide else ("r", "b32", 4)
    operands, first = [], 10
    for part in (out, *parts):
        operands.append(names(prefix, first, part.shape[1] // size))
        first += len(operands[-1])
    opcode = opcode or f"mma.sync.aligned.{shape}.row.col.{'.'.join(kinds)}"
    body = ["setp.lt.u32 %p1, %r0, 16;", f"{guard}{opcode} {', '.join(group(x) for x in operands)};"]
    text = kernel(32, [(kind, x) for x in operands[1:]], body, (kind, operands[0]))
    execute(text, [*(np.ascontiguousarray(part) for part in parts), out], 32)
    found, lanes = d.clone(), torch.from_numpy(out).view(d.dtype)
    for lane, of_lane in enumerate(places_of_d(rows)):
        for i, place in enumerate(of_lane):
            found[place] = lanes[lane, i]
    return a, b, c, found


SHAPES = [
    ("m16n8k16", ("f32", "f16", "f16", "f32")),
    ("m16n8k8", ("f32", "f16", "f16", "f32")),
    ("m16n8k16", ("f32", "bf16", "bf16", "f32")),
    ("m16n8k8", ("f32", "bf16", "bf16", "f32")),
    ("m16n8k8", ("f32", "tf32", "tf32", "f32")),
    ("m16n8k4", ("f32", "tf32", "tf32", "f32")),
    ("m16n8k32", ("s32", "s8", "s8", "s32")),
    ("m16n8k32", ("s32", "u8", "s8", "s32")),
    ("m16n8k16", ("s32", "u8", "u8", "s32")),
    ("m8n8k16", ("s32", "s8", "u8", "s32")),
    ("m16n8k32", ("f32", "e4m3", "e4m3", "f32")),
    ("m16n8k32", ("f32", "e5m2", "e4m3", "f32")),
    ("m8n8k4", ("f64", "f64", "f64", "f64")),
    ("m16n8k16", ("f64", "f64", "f64", "f64")),
]


@pytest.mark.parametrize(("shape", "kinds"), SHAPES, ids=str)
def test_mma_is_the_product_of_the_matrices_that_the_lanes_hold(shape, kinds):
    a, b, c, d = multiply(shape, kinds)
    assert torch.equal(d.double(), a.double() @ b.double() + c.double())


def test_mma_with_half_accumulators_rounds_once():
    a, b, c, d = multiply("m16n8k16", ("f16", "f16", "f16", "f16"))
    assert torch.equal(d, (a.double() @ b.double() + c.double()).half())


def test_the_last_bits_of_a_float32_are_no_part_of_a_tf32():
    a, b, c, d = multiply("m16n8k8", ("f32", "tf32", "tf32", "f32"), factor=1 + 2.0**-12)
    assert torch.equal(d.double(), a.double() @ b.double() + c.double())


@pytest.mark.parametrize("saturates", [False, True])
def test_integers_of_mma_wrap_around_or_saturate(saturates):
    kinds, how = ("s32", "s8", "s8", "s32"), ".satfinite" if saturates else ""
    opcode = f"mma.sync.aligned.m16n8k32.row.col{how}.s32.s8.s8.s32"
    a, b, c, d = multiply("m16n8k32", kinds, opcode, offset=2**31 - 200)
    exact = a.double() @ b.double() + c.double()
    assert (exact > 2**31).any()
    assert torch.equal(d, exact.clamp(max=2**31 - 1).int() if saturates else exact.long().int())


def test_mma_that_half_of_a_warp_executes_is_a_fault():
    with pytest.raises(KernelFault, match="take part in an instruction of the warp do not reach it"):
        multiply("m16n8k16", ("f32", "f16", "f16", "f32"), guard="@%p1 ")


@pytest.mark.parametrize(
    "opcode", ["mma.sync.aligned.m16n8k16.row.row.f32.f16.f16.f32", "mma.sp.sync.aligned.m16n8k16"]
)
def test_an_mma_that_is_not_known_is_named(opcode):
    with pytest.raises(KernelFault, match=f"the instruction {opcode} is not known"):
        multiply("m16n8k16", ("f32", "f16", "f16", "f32"), opcode)


def swizzled(address, bits):
    """Return an address after the ISA's Swizzle<bits, 4, 3>."""
    return address ^ ((address >> 7 & ((1 << bits) - 1)) << 4)


# kind, whether the elements of a column lie together, columns of B, bits that the swizzle changes, where row k and
# column n of B are, in elements, and the leading and the stride offset, in elements: the examples of the PTX ISA
LAYOUTS = {
    "k none tf32": ("tf32", 0, 16, 0, lambda n, k: n % 8 * 4 + n // 8 * 32 + k % 4 + k // 4 * 64, 64, 32),
    "k 32B tf32": ("tf32", 0, 16, 1, lambda n, k: n % 8 * 8 + n // 8 * 64 + k, 0, 64),
    "n none bf16": ("bf16", 1, 16, 0, lambda n, k: n % 8 + n // 8 * 64 + k % 8 * 8 + k // 8 * 128, 128, 64),
    "n none f16": ("f16", 1, 8, 0, lambda n, k: n + k * 8, 64, 0),
    "n 32B bf16": ("bf16", 1, 32, 1, lambda n, k: n % 16 + n // 16 * 128 + k % 8 * 16 + k // 8 * 256, 128, 256),
    "n 64B bf16": ("bf16", 1, 64, 2, lambda n, k: n % 32 + n // 32 * 256 + k % 8 * 32 + k // 8 * 512, 256, 512),
    "k 128B f16": ("f16", 0, 16, 3, lambda n, k: n % 8 * 64 + n // 8 * 512 + k, 0, 512),
}
MODES = (0, 3, 2, 1)  # in a descriptor, by the bits that the swizzle changes


def multiply_in_shared(layout, signs=(1, 1), adds=1, without="", start=0):
    """Return A, B, C and D as ``wgmma`` has it, with A in registers and B in shared memory."""
    kind, transposed, n, bits, place, leading, stride = layout
    k, size = 256 // BITS[kind], BITS[kind] // 8
    a, b, c = draw(kind, 64, k), draw(kind, k, n), draw("f32", 64, n)
    image = np.zeros(2048, np.uint8)
    content = b.view(torch.uint8).numpy().reshape(k, n, size)
    for row in range(k):
        for column in range(n):
            at = swizzled(place(column, row) * size, bits)
            image[at : at + size] = content[row, column]
    of_a = [[(16 * warp + r, i) for r, i in lane] for warp in range(4) for lane in places_of_a(16, k, BITS[kind])]
    of_d = [[(16 * warp + r, i) for r, i in lane] for warp in range(4) for lane in places_of_d(16, n)]
    descriptor = start >> 4 | leading * size >> 4 << 16 | stride * size >> 4 << 32 | MODES[bits] << 62
    registers, chunk = (names("r", 10, 4), names("r", 50, n // 2)), names("r", 20, 4)
    flags = f", {int(transposed)}" if BITS[kind] == 16 else ""
    body = [
        f"shl.b32 %r1, %r0, 4; mov.u32 %r2, memory; add.u32 %r1, %r1, %r2; st.shared.v4.b32 [%r1], {group(chunk)};",
        "bar.sync 0;",
        f"mov.b64 %rd1, {descriptor}; setp.ne.u32 %p1, {adds}, 0;",
        "wgmma.fence.sync.aligned;",
        f"wgmma.mma_async.sync.aligned.m64n{n}k{k}.f32.{kind}.{kind} {group(registers[1])}, {group(registers[0])}, "
        f"%rd1, %p1, {signs[0]}, {signs[1]}{flags};",
        "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;",
    ]
    body = [line for line in body if line != without]
    loads = [("b32", registers[0]), ("b32", registers[1]), ("b32", chunk)]
    out = np.zeros((128, 2 * n), np.uint8)
    text = kernel(128, loads, body, ("b32", registers[1]))
    execute(text, [held(a, of_a), held(c, of_d), image.reshape(128, 16), out], 128)
    d, lanes = torch.zeros(64, n), torch.from_numpy(out).view(torch.float32)
    rows, columns = torch.tensor(of_d).unbind(-1)
    d[rows, columns] = lanes
    return a, b, c, d


@pytest.mark.parametrize("layout", LAYOUTS)
def test_wgmma_reads_shared_memory_in_the_layout_of_the_descriptor(layout):
    a, b, c, d = multiply_in_shared(LAYOUTS[layout])
    assert torch.equal(d.double(), a.double() @ b.double() + c.double())


@pytest.mark.parametrize(("signs", "adds"), [((-1, 1), 1), ((-1, -1), 0), ((1, -1), 0)])
def test_wgmma_negates_and_adds_as_it_is_told(signs, adds):
    a, b, c, d = multiply_in_shared(LAYOUTS["n 32B bf16"], signs, adds)
    assert torch.equal(d.double(), signs[0] * signs[1] * (a.double() @ b.double()) + adds * c.double())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_wgmma_without_a_barrier_is_a_race(layout):
    with pytest.raises(KernelFault, match="a race in shared memory"):
        multiply_in_shared(LAYOUTS[layout], without="bar.sync 0;")


def test_wgmma_on_memory_that_was_never_written_is_a_fault():
    with pytest.raises(KernelFault, match="a read of shared memory that was never written"):
        multiply_in_shared(LAYOUTS["n 32B bf16"], start=1536)


@triton.jit
def matmul(
    a, b, c, M, N, K, am, ak, bk, bn,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
    DOUBLE: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """Multiply: with ``DOUBLE`` twice A, which then is in registers; with ``PROGRAMS`` each does several blocks."""
    across, total = tl.cdiv(N, BN), tl.cdiv(M, BM) * tl.cdiv(N, BN)
    kind: tl.constexpr = c.dtype.element_ty
    for block in tl.range(tl.program_id(0), total, PROGRAMS if PROGRAMS else total):
        m = block // across * BM + tl.arange(0, BM)
        n = block % across * BN + tl.arange(0, BN)
        k = tl.arange(0, BK)
        of_a, of_b = a + m[:, None] * am + k[None, :] * ak, b + k[:, None] * bk + n[None, :] * bn
        total_of_block = tl.zeros((BM, BN), kind)
        for start in tl.range(0, K, BK, num_stages=STAGES):
            x = tl.load(of_a, (m[:, None] < M) & (k[None, :] < K - start), 0.0)
            y = tl.load(of_b, (n[None, :] < N) & (k[:, None] < K - start), 0.0)
            x = (x * 2).to(x.dtype) if DOUBLE else x
            total_of_block = tl.dot(x, y, total_of_block, input_precision=PRECISION, out_dtype=kind)
            of_a += BK * ak
            of_b += BK * bk
        tl.store(c + m[:, None] * N + n[None, :], total_of_block, (m[:, None] < M) & (n[None, :] < N))


def multiplied(target, kind, transposed, shape, blocks, warps=4, stages=2, precision="tf32", double=False, programs=0):
    """Return whether C is the product; ``shape`` is M, N, K, ``transposed`` has a letter for A and for B: N or T."""
    m, n, k = shape
    a, b = (
        draw(kind, *(size if letter == "N" else size[::-1]))
        for letter, size in zip(transposed, ((m, k), (k, n)), strict=True)
    )
    a, b = (x if letter == "N" else x.T for letter, x in zip(transposed, (a, b), strict=True))
    a, b = (x if BITS[kind] == 8 else (x // 2 if kind != "f64" else x) for x in (a, b))
    out = {"s8": torch.int32, "f64": torch.float64}.get(kind, torch.float32)
    c = torch.empty(m, n, dtype=out)
    grid = programs or triton.cdiv(m, blocks[0]) * triton.cdiv(n, blocks[1])
    with customops.dry_run(target, execute=True):
        matmul[(grid,)](
            a, b, c, m, n, k, *a.stride(), *b.stride(), *blocks, stages, precision, double, programs, num_warps=warps
        )
    return torch.equal(c.double(), a.double() @ b.double() * (2 if double else 1))


MATMULS = [
    ("cuda:80", "f16", "NN", (70, 40, 96), (64, 32, 32)),
    ("cuda:80", "bf16", "TN", (32, 64, 64), (32, 64, 32), 8, 3),
    ("cuda:80", "tf32", "NT", (40, 32, 64), (32, 32, 32)),
    ("cuda:80", "tf32", "NN", (32, 32, 32), (32, 32, 32), 4, 1, "tf32x3"),
    ("cuda:80", "s8", "NN", (32, 40, 64), (32, 32, 32), 4, 2),
    ("cuda:80", "f64", "NN", (32, 24, 32), (16, 16, 16), 4, 1),
    ("cuda:120", "e4m3", "NT", (32, 32, 64), (32, 32, 32)),
    ("cuda:120", "s8", "NN", (64, 16, 128), (64, 8, 64), 4, 2),
    ("cuda:120", "f16", "TT", (32, 32, 64), (32, 32, 32), 4, 4),
    ("cuda:90", "f16", "NN", (70, 40, 128), (64, 64, 64), 4, 1),
    ("cuda:90", "f16", "TN", (128, 64, 128), (128, 64, 32), 8, 3),
    ("cuda:90", "f16", "NT", (64, 16, 64), (64, 16, 32), 4, 4),
    ("cuda:90", "f16", "NN", (64, 32, 64), (64, 32, 32), 4, 2, "tf32", True),
    ("cuda:90", "bf16", "TT", (64, 128, 64), (64, 128, 64), 4, 2),
    ("cuda:90", "tf32", "NN", (64, 40, 64), (64, 32, 32), 4, 2),
    ("cuda:90", "tf32", "TT", (64, 32, 32), (64, 32, 16), 4, 3, "tf32", True),
    ("cuda:90", "e5m2", "NN", (64, 32, 64), (64, 32, 32), 4, 2),
    ("cuda:90", "e4m3", "TT", (128, 32, 128), (128, 32, 64), 8, 1),
    ("cuda:90", "s8", "NT", (64, 32, 64), (64, 32, 64), 4, 2),
    ("cuda:90", "f64", "TN", (16, 16, 32), (16, 16, 32), 4, 1),
    ("cuda:90", "bf16", "NN", (150, 70, 64), (64, 32, 32), 4, 3, "tf32", False, 3),
    ("cuda:80", "f16", "NN", (90, 70, 64), (32, 32, 32), 4, 3, "tf32", False, 2),
]


@pytest.mark.sample(formulas="target, kind", kernels="")
@pytest.mark.parametrize(
    ("target", "kind", "rest"),
    [(target, kind, rest) for target, kind, *rest in MATMULS],
    ids=["-".join(map(str, case)).replace(" ", "") for case in MATMULS],
)
def test_a_matmul_kernel_gives_the_product(target, kind, rest):
    assert multiplied(target, kind, *rest)


@triton.jit
def attention(q, k, v, o, N, scale, BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr):
    """Store softmax(q kᵀ · scale) v, where a row attends to the rows before it; the sum of exponentials goes along."""
    m, d = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, D)
    x = tl.load(q + m[:, None] * D + d[None, :], m[:, None] < N, 0.0)
    greatest, total = tl.full((BM,), -float("inf"), tl.float32), tl.zeros((BM,), tl.float32)
    result = tl.zeros((BM, D), tl.float32)
    for start in tl.range(0, (tl.program_id(0) + 1) * BM, BN, num_stages=2):
        n = start + tl.arange(0, BN)
        y = tl.load(k + n[None, :] * D + d[:, None], n[None, :] < N, 0.0)
        s = tl.where((m[:, None] >= n[None, :]) & (n[None, :] < N), tl.dot(x, y) * scale, -float("inf"))
        now = tl.maximum(greatest, tl.max(s, 1))
        p, shrink = tl.exp(s - now[:, None]), tl.exp(greatest - now)
        total = total * shrink + tl.sum(p, 1)
        z = tl.load(v + n[:, None] * D + d[None, :], n[:, None] < N, 0.0)
        result = tl.dot(p.to(z.dtype), z, result * shrink[:, None])
        greatest = now
    tl.store(o + m[:, None] * D + d[None, :], (result / total[:, None]).to(x.dtype), m[:, None] < N)


@pytest.mark.parametrize("target", ["cuda:80", "cuda:90"])
def test_attention_with_two_products_agrees_with_torch(target):
    q, k, v = torch.randn(3, 150, 32, generator=torch.Generator().manual_seed(0)).half()
    o = torch.empty_like(q)
    with customops.dry_run(target, execute=True):
        attention[(3,)](q, k, v, o, 150, 32**-0.5, 64, 32, 32)
    want = torch.nn.functional.scaled_dot_product_attention(*(x.double()[None] for x in (q, k, v)), is_causal=True)[0]
    torch.testing.assert_close(o.double(), want, atol=2e-3, rtol=2e-3)


def test_tensor_memory_of_sm_100_is_not_known_and_says_so():
    with pytest.raises(KernelFault, match=r"the instruction tcgen05\.\S+ is not known"):
        multiplied("cuda:100", "f16", "NN", (128, 64, 64), (128, 64, 64))
