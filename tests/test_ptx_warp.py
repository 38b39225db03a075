"""What the threads of a warp do together gives what the PTX ISA says, worked out one thread at a time.

The semantics: Parallel Thread Execution ISA, https://docs.nvidia.com/cuda/parallel-thread-execution, sections
"shfl.sync", "vote.sync", "match.sync", "redux.sync", "elect.sync", "ldmatrix" and "stmatrix".
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from .ptx_text import aligned, at, outputs, run

pytestmark = pytest.mark.sample(kernels="")  # it asks nothing of the interpreter

ALL = 0xFFFFFFFF
VALUES = np.random.default_rng(0).integers(0, 2**32, 64, np.uint32)


def given(body, *columns, registers, threads=32):
    """Execute ``body`` with ``columns`` in %r0, %r1 ... of each thread; return ``registers``: [registers, threads]."""
    found = np.zeros((len(registers), threads), np.uint32)
    loads = f"{at('%d0', '%x0', 4 * len(columns))}\n"
    loads += "\n".join(f"ld.global.b32 %r{i}, [%d0+{4 * i}];" for i in range(len(columns)))
    stores = f"{at('%d1', '%x1', 4 * len(registers))}\n"
    stores += "\n".join(f"st.global.b32 [%d1+{4 * i}], {name};" for i, name in enumerate(registers))
    table, z = np.stack(columns, 1).astype(np.uint32), np.zeros((threads, len(registers)), np.uint32)
    run(f"{loads}\n{body}\n{stores}", table, z, threads=threads, inputs=(0,))
    found[:] = z.T
    return found.tolist()


def shuffled(mode, lane, b, c):
    """Return the lane that a lane reads from, and whether that was in range."""
    b, clamp, mask = b & 31, c & 31, c >> 8 & 31
    last = (lane & mask) | (clamp & ~mask & 31)
    first = lane & mask
    wanted = {"up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": first | (b & ~mask)}[mode]
    inside = wanted >= last if mode == "up" else wanted <= last
    return (wanted if inside else lane), inside


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("width", [32, 16, 8, 4, 2, 1])
def test_a_shuffle_reads_the_lane_that_the_isa_names(mode, width):
    clamp = (32 - width) << 8 | (0 if mode == "up" else 31)
    random = np.random.default_rng(width)
    body = f"shfl.sync.{mode}.b32 %r3|%p0, %r0, %r1, %r2, -1;\nselp.b32 %r4, 1, 0, %p0;"
    for c in (clamp, clamp ^ 7, int(random.integers(0, 2**13))):
        b = random.integers(0, 40, 64)
        found = given(body, VALUES, b, np.full(64, c), registers=["%r3", "%r4"], threads=64)
        expected = [shuffled(mode, lane % 32, int(b[lane]), c) for lane in range(64)]
        assert found[0] == [int(VALUES[lane // 32 * 32 + source]) for lane, (source, _) in enumerate(expected)]
        assert found[1] == [int(inside) for _, inside in expected]


def test_a_shuffle_of_a_part_of_a_warp():
    body = "setp.lt.u32 %p0, %t, 8;\nmov.u32 %r1, 0;\n@%p0 shfl.sync.bfly.b32 %r1, %r0, 3, 31, 0xff;"
    (found,) = given(body, VALUES[:32], registers=["%r1"])
    assert found == [int(VALUES[t ^ 3]) if t < 8 else 0 for t in range(32)]


@pytest.mark.parametrize("bits", [0, ALL, 0x80000001, 0xFFFF, 0x12345678])
@pytest.mark.parametrize("members", [ALL, 0xFFFF, 0x00FF00F0])
def test_votes_ask_the_members_alone(bits, members):
    p = np.array([bits >> t & 1 for t in range(32)])
    lines = [f"mov.u32 %r1, {members};", "shr.u32 %r2, %r1, %t;", "and.b32 %r2, %r2, 1;", "setp.ne.u32 %p1, %r2, 0;"]
    lines += ["setp.ne.u32 %p0, %r0, 0;", *(f"mov.u32 %r{i}, 99;" for i in range(3, 8)), "@!%p1 bra DONE;"]
    lines += [f"vote.sync.{mode}.pred %p{i}, %p0, %r1;" for i, mode in ((2, "all"), (3, "any"), (4, "uni"))]
    lines += ["vote.sync.ballot.b32 %r6, %p0, %r1;", "vote.sync.ballot.b32 %r7, !%p0, %r1;"]
    lines += [f"selp.b32 %r{i}, 1, 0, %p{i - 1};" for i in (3, 4, 5)] + ["DONE:"]
    found = given("\n".join(lines), p, registers=["%r3", "%r4", "%r5", "%r6", "%r7"])
    yes = bits & members
    expected = [yes == members, yes != 0, yes in (0, members), yes, ~bits & members]
    for t, row in enumerate(zip(*found, strict=True)):
        assert row == (tuple(map(int, expected)) if members >> t & 1 else (99,) * 5)


def test_the_mask_of_active_threads_has_those_of_the_way():
    body = "setp.lt.u32 %p0, %t, 40;\n@%p0 activemask.b32 %r0;\n@!%p0 activemask.b32 %r0;"
    found = outputs(body, ["%r0"], threads=64)[0].tolist()
    assert found == [ALL] * 32 + [0xFF] * 8 + [0xFFFFFF00] * 24


@pytest.mark.parametrize("kind", ["b32", "b64"])
def test_a_match_finds_the_lanes_with_the_same_value(kind):
    x = np.random.default_rng(3).integers(0, 5, 64)
    value = "%r0" if kind == "b32" else "%d2"
    body = f"mov.b64 %d2, {{1, %r0}};\nmatch.any.sync.{kind} %r1, {value}, -1;"
    (found,) = given(body, x, registers=["%r1"], threads=64)
    assert found == [sum(1 << i for i in range(32) if x[t // 32 * 32 + i] == x[t]) for t in range(64)]


def signed(x):
    return x - (x >> 31 << 32)


REDUCTIONS = {
    "add.u32": lambda xs: sum(xs) & ALL,
    "add.s32": lambda xs: sum(xs) & ALL,
    "min.u32": min,
    "max.u32": max,
    "min.s32": lambda xs: min(xs, key=signed),
    "max.s32": lambda xs: max(xs, key=signed),
    "and.b32": lambda xs: int(np.bitwise_and.reduce(xs)),
    "or.b32": lambda xs: int(np.bitwise_or.reduce(xs)),
    "xor.b32": lambda xs: int(np.bitwise_xor.reduce(xs)),
}


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("split", [0, 5, 16])
def test_a_reduction_is_over_the_members_of_each_set(name, split):
    """The lanes below ``split`` are one set, the others another."""
    low = (1 << split) - 1
    masks = np.array([low if t < split else ALL ^ low for t in range(32)])
    (found,) = given(f"redux.sync.{name} %r2, %r0, %r1;", VALUES[:32], masks, registers=["%r2"])
    sets = [[int(v) for t, v in enumerate(VALUES[:32]) if (t < split) == below] for below in (True, False)]
    assert found == [REDUCTIONS[name](sets[0] if t < split else sets[1]) for t in range(32)]


def test_a_reduction_of_floats_leaves_nans_out_or_passes_them_on():
    """The zero without a sign is the greater one; a nan that comes out is the canonical one."""
    x = np.array([-0.0, 0.0, np.nan, -0.0] * 8, np.float32).view(np.uint32)
    body = "\n".join(
        f"redux.sync.{name}.f32 %r{i}, %r0, -1;" for i, name in enumerate(("min", "max", "min.NaN", "max.NaN"), 1)
    )
    found = given(body, x, registers=["%r1", "%r2", "%r3", "%r4"])
    assert [row[0] for row in found] == [0x80000000, 0, 0x7FFFFFFF, 0x7FFFFFFF]
    (found,) = given("redux.sync.max.f32 %r1, %r0, -1;", np.full(32, 0xFFC12345), registers=["%r1"])
    assert found == [0x7FFFFFFF] * 32


def test_the_first_of_the_members_is_elected():
    body = "setp.ge.u32 %p0, %t, 6;\nmov.u32 %r1, 99;\nmov.u32 %r2, 99;\n@!%p0 bra DONE;\n"
    body += "elect.sync %r1|%p1, 0xffffffc0;\nelect.sync _|%p1, 0xffffffc0;\nselp.b32 %r2, 1, 0, %p1;\nDONE:"
    lane, chosen = outputs(body, ["%r1", "%r2"]).tolist()
    assert lane == [99] * 6 + [6] * 26
    assert chosen == [99] * 6 + [1] + [0] * 25


ROWS = "mad.lo.u32 %r0, %t, 16, shared;\n"


def fragments(count, transposed):
    """Yield lane, register and half of each element, with its matrix, row and column as the ISA has them."""
    for t, m, half in product(range(32), range(count), (0, 1)):
        row, column = t // 4, 2 * (t % 4) + half
        yield (t, m, half), (m, column, row) if transposed else (m, row, column)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_matrix_is_loaded_as_its_fragments(count, transposed):
    """Lane t has elements 2 (t mod 4) and the next of row t div 4; lane 8m + r the address of row r of matrix m."""
    x = aligned(np.random.default_rng(count).integers(0, 2**16, (32, 8), np.uint16))
    group = "{" + ", ".join(f"%r{i}" for i in range(1, 1 + count)) + "}"
    trans = ".trans" if transposed else ""
    body = f"{ROWS}{at('%d0', '%x0', 16)}\nld.global.v4.b32 {{%r1, %r2, %r3, %r4}}, [%d0];\n"
    body += "st.shared.v4.b32 [%r0], {%r1, %r2, %r3, %r4};\nbar.sync 0;\n"
    body += f"ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {group}, [%r0];\n{at('%d1', '%x1', 4 * count)}\n"
    body += "\n".join(f"st.global.b32 [%d1+{4 * i}], %r{1 + i};" for i in range(count))
    z = np.zeros((32, count, 2), np.uint16)
    run(body, x, z, shared=512, inputs=(0,))
    for place, (m, row, column) in fragments(count, transposed):
        assert z[place] == x[8 * m + row, column]


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_fragments_are_stored_as_a_matrix(count, transposed):
    x = np.random.default_rng(count).integers(0, 2**16, (32, count, 2), np.uint16)
    group = "{" + ", ".join(f"%r{i}" for i in range(1, 1 + count)) + "}"
    trans = ".trans" if transposed else ""
    body = f"{ROWS}{at('%d0', '%x0', 4 * count)}\n"
    body += "\n".join(f"ld.global.b32 %r{1 + i}, [%d0+{4 * i}];" for i in range(count))
    body += f"\nstmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%r0], {group};\nbar.sync 0;\n"
    body += f"{at('%d1', '%x1', 16)}\n"
    body += f"setp.lt.u32 %p0, %t, {8 * count};\n@%p0 ld.shared.v4.b32 {{%r1, %r2, %r3, %r4}}, [%r0];\n"
    body += "@%p0 st.global.v4.b32 [%d1], {%r1, %r2, %r3, %r4};"
    z = aligned(np.zeros((8 * count, 8), np.uint16))
    run(body, x, z, shared=512, inputs=(0,))
    for place, (m, row, column) in fragments(count, transposed):
        assert z[8 * m + row, column] == x[place]
