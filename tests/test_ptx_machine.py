"""The executor follows control flow, calls and memory as PTX defines them, each thread as if it were alone."""

from __future__ import annotations

import numpy as np
import pytest

from customops.ptx.faults import KernelFault
from customops.ptx.machine import load
from customops.ptx.memory import Traffic

from .ptx_text import aligned, at, buffer, kernel, outputs, run

pytestmark = pytest.mark.sample(kernels="")  # it asks nothing of the interpreter

T = np.arange(32)
IF_ELSE = """
mov.u32 %r0, 0;
setp.lt.u32 %p0, %t, 11;
@!%p0 bra ELSE;
add.u32 %r0, %r0, 100;
bra END;
ELSE:
add.u32 %r0, %r0, 200;
END:
add.u32 %r0, %r0, %t;
activemask.b32 %r1;
"""
OUT_OF_ORDER = """
mov.u32 %r0, 0;
setp.lt.u32 %p0, %t, 11;
bra START;
END:
add.u32 %r0, %r0, %t;
activemask.b32 %r1;
bra DONE;
ELSE:
add.u32 %r0, %r0, 200;
bra END;
THEN:
add.u32 %r0, %r0, 100;
bra END;
START:
@%p0 bra THEN;
bra ELSE;
DONE:
"""
NESTED = """
mov.u32 %r0, 0;
mov.u32 %r1, 0;
OUTER:
setp.ge.u32 %p0, %r1, %t;
@%p0 bra DONE;
mov.u32 %r2, 0;
INNER:
add.u32 %r0, %r0, %r1;
add.u32 %r2, %r2, 1;
setp.le.u32 %p1, %r2, %r1;
@%p1 bra INNER;
add.u32 %r1, %r1, 1;
bra OUTER;
DONE:
activemask.b32 %r3;
"""


@pytest.mark.parametrize("body", [IF_ELSE, OUT_OF_ORDER])
def test_threads_take_both_ways_and_meet_again(body):
    found, met = outputs(body, ["%r0", "%r1"])
    assert found.tolist() == np.where(T < 11, T + 100, T + 200).tolist()
    assert (met == 0xFFFFFFFF).all()


def test_each_thread_goes_round_nested_loops_as_often_as_it_has_to():
    found, met = outputs(NESTED, ["%r0", "%r3"])
    assert found.tolist() == [sum(i * (i + 1) for i in range(t)) for t in range(32)]
    assert (met == 0xFFFFFFFF).all()


def test_a_loop_that_threads_leave_in_its_middle():
    body = "mov.u32 %r0, 0;\nA:\nadd.u32 %r0, %r0, 1;\nsetp.gt.u32 %p0, %r0, %t;\n@%p0 bra B;\n"
    body += "add.u32 %r0, %r0, 1;\nbra A;\nB:\nactivemask.b32 %r1;"
    found, met = outputs(body, ["%r0", "%r1"])
    assert found.tolist() == [t + 1 + t % 2 for t in range(32)]
    assert (met == 0xFFFFFFFF).all()


@pytest.mark.parametrize("leave", ["ret", "exit", "bra DONE"])
def test_threads_that_return_early_do_nothing_more(leave):
    z = np.zeros(32, np.uint32)
    run(f"setp.ge.u32 %p0, %t, 20;\n@%p0 {leave};\n{at('%d0', '%x0', 4)}\nst.global.b32 [%d0], 7;\nDONE:", z)
    assert z.tolist() == [7] * 20 + [0] * 12


def test_a_guard_says_which_threads_execute_an_instruction():
    body = "setp.lt.u32 %p0, %t, 9;\nmov.u32 %r0, 1;\n@%p0 mov.u32 %r0, 2;\n@!%p0 add.u32 %r0, %r0, %t;\n"
    body += "setp.lt.u32 %p1, %t, 99;\n@%p1 add.u32 %r0, %r0, 1000;\n@!%p1 trap;"
    assert outputs(body, ["%r0"])[0].tolist() == [1002 if t < 9 else 1001 + t for t in range(32)]


CALLED = """
.func (.param .b32 result, .param .b64 other) twice(.param .b32 value, .param .b64 wide)
{
.reg .pred %p<2>;
.reg .b32 %r<4>;
.reg .b64 %d<2>;
ld.param.b32 %r1, [value];
ld.param.b64 %d1, [wide];
setp.lt.s32 %p1, %r1, 20;
@%p1 bra SMALL;
st.param.b32 [result], 7;
st.param.b64 [other], %d1;
ret;
SMALL:
shl.b32 %r2, %r1, 1;
st.param.b32 [result], %r2;
st.param.b64 [other], 9;
ret;
}
"""
CALL = """
mov.u32 %r0, 0;
mov.b64 %d0, -1;
cvt.u64.u32 %d1, %t;
setp.gt.u32 %p0, %t, 4;
@!%p0 bra DONE;
{
.param .b32 first;
.param .b64 second;
st.param.b32 [first], %t;
st.param.b64 [second], %d1;
.param .b32 got;
.param .b64 more;
call.uni (got, more), twice, (first, second);
ld.param.b32 %r0, [got];
ld.param.b64 %d0, [more];
}
DONE:
cvt.u32.u64 %r1, %d0;
"""


def test_a_function_gets_arguments_and_returns_results_by_thread():
    small, other = outputs(CALL, ["%r0", "%r1"], outside=CALLED)
    assert small.tolist() == [0 if t <= 4 else 2 * t if t < 20 else 7 for t in range(32)]
    assert other.tolist() == [0xFFFFFFFF if t <= 4 else 9 if t < 20 else t for t in range(32)]


def test_each_thread_has_memory_of_its_own():
    body = """
    .local .align 8 .b8 own[32];
    mov.b64 %d0, own;
    and.b32 %r0, %t, 3;
    mad.wide.u32 %d1, %r0, 8, %d0;
    mov.b64 %d3, 5;
    st.local.v2.b64 [%d0], {%d3, %d3};
    st.local.v2.b64 [%d0+16], {%d3, %d3};
    cvt.u64.u32 %d2, %t;
    st.local.b64 [%d1], %d2;
    ld.local.b64 %d4, [%d0+8];
    ld.local.b16 %h0, [%d1];
    cvt.u32.u64 %r1, %d4;
    cvt.u32.u16 %r2, %h0;
    """
    second, own = outputs(body, ["%r1", "%r2"])
    assert second.tolist() == [t if t % 4 == 1 else 5 for t in range(32)]
    assert own.tolist() == T.tolist()


@pytest.mark.parametrize("space", ["shared", "local"])
def test_an_offset_makes_up_for_an_address_below_zero(space):
    body = f".local .align 4 .b8 own[128];\nmov.u32 %r0, {'own' if space == 'local' else 'shared'};\n"
    body += f"mad.lo.u32 %r0, %t, 4, %r0;\nst.{space}.b32 [%r0], %t;\nsub.u32 %r0, %r0, 200;\n"
    body += f"ld.{space}.b32 %r1, [%r0+200];"
    assert outputs(body, ["%r1"], shared=128)[0].tolist() == T.tolist()


def test_registers_of_an_inner_block_are_its_own():
    body = "mov.u32 %r0, 1;\n{\n.reg .b32 %r0;\nmov.u32 %r0, 2;\n{\n.reg .b32 %r0;\nmov.u32 %r0, %t;\n"
    body += "add.u32 %r1, %r0, 40;\n}\nadd.u32 %r2, %r0, 0;\n}"
    found = outputs(body, ["%r0", "%r1", "%r2"])
    assert found.tolist() == [[1] * 32, (T + 40).tolist(), [2] * 32]


def test_moves_pack_and_unpack():
    body = """
    mov.b64 %d0, 0x1122334455667788;
    mov.b64 {%r0, %r1}, %d0;
    mov.b64 {%h0, %h1, %h2, %h3}, %d0;
    mov.b32 %r2, {%h3, %h0};
    mov.b32 {_, %h4}, %r2;
    cvt.u32.u16 %r3, %h4;
    mov.b64 %d1, {%t, %r0};
    cvt.u32.u64 %r4, %d1;
    shr.u64 %d1, %d1, 32;
    cvt.u32.u64 %r5, %d1;
    """
    found = outputs(body, [f"%r{i}" for i in range(6)])
    assert [hex(x) for x in found[:, 5]] == ["0x55667788", "0x11223344", "0x77881122", "0x7788", "0x5", "0x55667788"]


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_vectors_of_every_width_are_loaded_and_stored(bits, count):
    register = {8: "h", 16: "h", 32: "r", 64: "d"}[bits]
    names = [f"%{register}{i}" for i in range(4, 4 + count)]
    vector, group = (f".v{count}", "{" + ", ".join(names) + "}") if count > 1 else ("", names[0])
    backwards = "{" + ", ".join(names[::-1]) + "}" if count > 1 else group
    width = bits // 8 * count
    body = f"{at('%d0', '%x0', width)}\n{at('%d1', '%x1', width)}\nmad.lo.u32 %r0, %t, {width}, shared;\n"
    body += f"ld.global{vector}.b{bits} {group}, [%d0];\nst.shared{vector}.b{bits} [%r0], {backwards};\n"
    body += f"ld.shared{vector}.b{bits} {group}, [%r0];\nst.global{vector}.b{bits} [%d1], {group};"
    x = np.random.default_rng(0).integers(0, 256, (32, count, bits // 8), np.uint8).view(f"u{bits // 8}")[:, :, 0]
    x, z = aligned(x), aligned(np.zeros_like(x))
    traffic = run(body, x, z, shared=32 * width, inputs=(0,))
    assert (z == x[:, ::-1]).all()
    assert traffic == Traffic(x.nbytes, x.nbytes, 2 * x.nbytes)


@pytest.mark.parametrize(("kind", "expected"), [("u8", 0x80), ("s8", -128), ("u16", 0x8180), ("s16", 0x8180 - 0x10000)])
@pytest.mark.parametrize("register", ["%r0", "%d0"])
def test_narrow_loads_extend_the_sign_or_zeros(kind, expected, register):
    x = np.array([0x80, 0x81], np.uint8)
    body = f"ld.global.{kind} {register}, [%x6];"
    names = ["%r0"] if register == "%r0" else ["%r0", "%r1"]
    body += "\nmov.b64 {%r0, %r1}, %d0;" if register == "%d0" else ""
    body += "".join(f"\n{at('%d3', f'%x{i}', 4)}\nst.global.b32 [%d3], {name};" for i, name in enumerate(names))
    found = np.zeros((7, 32), np.uint32)
    run(body, *found[:6], x, inputs=(6,))
    assert [int(row[0]) for row in found[: len(names)]] == [expected >> 32 * i & 0xFFFFFFFF for i in range(len(names))]


def test_narrow_stores_write_the_low_bits():
    z = np.zeros(32, np.uint8)
    body = "mov.u32 %r0, 0x1234;\nadd.u32 %r0, %r0, %t;\ncvt.u64.u32 %d0, %t;\n"
    body += "add.u64 %d0, %d0, %x0;\nst.global.b8 [%d0], %r0;"
    run(body, z)
    assert z.tolist() == [0x34 + t for t in range(32)]


def test_special_registers_say_who_a_thread_is():
    names = ["tid.x", "ntid.x", "laneid", "warpid", "nwarpid", "ctaid.x", "ctaid.y", "ctaid.z", "nctaid.x", "nctaid.y"]
    names += ["nctaid.z", "lanemask_eq", "lanemask_lt", "lanemask_le", "lanemask_gt", "lanemask_ge"]
    z = np.zeros((2 * 3 * 4, 64, len(names)), np.uint32)
    body = "mov.u32 %r1, %ctaid.y;\nmov.u32 %r2, %ctaid.z;\nmad.lo.u32 %r3, %r2, 3, %r1;\nmad.lo.u32 %r3, %r3, 2, %c;\n"
    body += f"mad.lo.u32 %r3, %r3, 64, %t;\n{at('%d0', '%x0', 4 * len(names), '%r3')}\n"
    body += "\n".join(f"mov.u32 %r4, %{name};\nst.global.b32 [%d0+{4 * i}], %r4;" for i, name in enumerate(names))
    run(body, z, grid=(2, 3, 4), threads=64)
    for program, of_program in enumerate(z):
        for thread, found in enumerate(of_program.tolist()):
            lane = thread % 32
            expected = [thread, 64, lane, thread // 32, 2, program % 2, program // 2 % 3, program // 6, 2, 3, 4]
            below, above = (1 << lane) - 1, (0xFFFFFFFF << lane + 1) & 0xFFFFFFFF
            assert found == [*expected, 1 << lane, below, below | 1 << lane, above, above | 1 << lane]


@pytest.mark.parametrize("at_once", [1, 100, 4096])
def test_programs_give_the_same_one_by_one_and_many_at_once(at_once, monkeypatch):
    monkeypatch.setattr("customops.ptx.machine.LANES_AT_ONCE", at_once)
    x, z = np.random.default_rng(0).integers(0, 1000, (7, 64), np.uint32), np.zeros((7, 64), np.uint32)
    body = f"mad.lo.u32 %r0, %c, 64, %t;\n{at('%d0', '%x0', 4, '%r0')}\n{at('%d1', '%x1', 4, '%r0')}\n"
    body += "ld.global.b32 %r1, [%d0];\nmad.lo.u32 %r2, %t, 4, shared;\nst.shared.b32 [%r2], %r1;\nbar.sync 0;\n"
    body += "xor.b32 %r2, %r2, 252;\nld.shared.b32 %r3, [%r2];\nmov.u32 %r4, 0;\n"
    body += "A:\nadd.u32 %r4, %r4, %r3;\nsub.u32 %r1, %r1, 10;\nsetp.ge.s32 %p0, %r1, 0;\n"
    body += "@%p0 bra A;\nst.global.b32 [%d1], %r4;"
    traffic = run(body, x, z, grid=7, threads=64, shared=256, inputs=(0,))
    assert (z == x[:, ::-1] * (x // 10 + 1)).all()
    assert traffic == Traffic(x.nbytes, z.nbytes, x.nbytes + z.nbytes)


def test_a_barrier_lets_each_warp_see_what_others_wrote_in_each_turn_of_a_loop():
    body = "mad.lo.u32 %r0, %t, 4, shared;\nmov.u32 %r1, %t;\nmov.u32 %r2, 64;\n"
    body += "A:\nst.shared.b32 [%r0], %r1;\nbar.sync 0;\nxor.b32 %r3, %r0, %r2;\nld.shared.b32 %r4, [%r3];\n"
    body += "add.u32 %r1, %r1, %r4;\n"
    body += "bar.sync 0;\nshr.u32 %r2, %r2, 1;\nsetp.ge.u32 %p0, %r2, 4;\n@%p0 bra A;"
    found = outputs(body, ["%r1"], shared=128)
    assert (found == sum(range(32))).all()


def test_warps_wait_at_a_barrier_inside_of_a_branch():
    """Threads of one warp come to it, then the other's, by another way."""
    body = "mad.lo.u32 %r0, %t, 4, shared;\nsetp.lt.u32 %p0, %t, 32;\nst.shared.b32 [%r0], %t;\n@%p0 bra A;\n"
    body += "bar.sync 0;\nld.shared.b32 %r1, [%r0+-128];\nbra B;\nA:\nbar.sync 0;\nld.shared.b32 %r1, [%r0+128];\nB:"
    assert outputs(body, ["%r1"], threads=64, shared=256)[0].tolist() == [(t + 32) % 64 for t in range(64)]


def test_shared_memory_of_variables_comes_before_what_the_launch_adds():
    outside = ".shared .align 4 .b32 first;\n.shared .align 8 .b8 second[24];"
    body = (
        "mov.u32 %r0, first;\nmov.u32 %r1, second;\nst.shared.b32 [first], 5;\nbar.sync 0;\nld.shared.b32 %r2, [%r0];"
    )
    assert outputs(body, ["%r0", "%r1", "%r2"], outside=outside)[:, 0].tolist() == [0, 8, 5]


def test_constants_of_a_module_are_read():
    outside = ".global .align 4 .b32 table[3] = {5, -6, 0x7};"
    outside += "\n.const .align 16 .b8 bytes[4] = {1, 2, 3, 4};"
    body = "mov.b64 %d0, table;\nld.global.b32 %r0, [%d0+4];\nld.const.b32 %r1, [bytes];"
    assert outputs(body, ["%r0", "%r1"], outside=outside)[:, 0].tolist() == [2**32 - 6, 0x04030201]
    with pytest.raises(KernelFault, match="outside the elements of any tensor; the nearest is table, which has"):
        outputs(body.replace("+4", "+12"), ["%r0"], outside=outside)


def test_asynchronous_copies_bring_what_they_read_and_zeros_for_the_rest():
    body = "mad.lo.u32 %r0, %t, 16, shared;\nmad.wide.u32 %d0, %t, 16, %x1;\nsetp.lt.u32 %p0, %t, 20;\n"
    body += "selp.b32 %r1, 16, 0, %p0;\ncp.async.cg.shared.global [%r0], [%d0], 16, %r1;\ncp.async.commit_group;\n"
    body += "cp.async.ca.shared.global [%r0+512], [%d0], 8;\ncp.async.commit_group;\ncp.async.wait_group 1;\n"
    body += f"ld.shared.b32 %r2, [%r0+12];\ncp.async.wait_all;\nld.shared.b32 %r3, [%r0+516];\n{at('%d1', '%x0', 8)}\n"
    body += "st.global.v2.b32 [%d1], {%r2, %r3};"
    z, x = np.zeros((32, 2), np.uint32), np.arange(128, dtype=np.uint32)
    run(body, z, x, shared=1024, inputs=(1,))
    assert z.tolist() == [[4 * t + 3 if t < 20 else 0, 4 * t + 1] for t in range(32)]


ATOMICS = {
    "add.u32": lambda old, x: (old + x) % 2**32,
    "and.b32": lambda old, x: old & x,
    "or.b32": lambda old, x: old | x,
    "xor.b32": lambda old, x: old ^ x,
    "exch.b32": lambda old, x: x,
    "min.u32": min,
    "max.u32": max,
    "max.s32": lambda old, x: max(old, x, key=lambda v: v - (v >> 31 << 32)),
    "min.s32": lambda old, x: min(old, x, key=lambda v: v - (v >> 31 << 32)),
    "inc.u32": lambda old, x: 0 if old >= x else old + 1,
    "dec.u32": lambda old, x: x if old == 0 or old > x else old - 1,
}


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize("name", ATOMICS)
def test_an_atomic_operation_is_applied_by_one_thread_after_the_other(name, space):
    x = np.random.default_rng(1).integers(0, 2**32, 32, np.uint32)
    first = int(x[3]) ^ 0x80000001
    total, expected = first, []
    for value in x.tolist():
        expected.append(total)
        total = ATOMICS[name](total, value)
    z, cell, end = np.zeros(32, np.uint32), np.array([first], np.uint32), np.zeros(1, np.uint32)
    body = f"{at('%d0', '%x0', 4)}\n{at('%d1', '%x1', 4)}\nld.global.b32 %r0, [%d1];\nld.global.b32 %r9, [%x2];\n"
    if space == "shared":
        body += "st.shared.b32 [shared], %r9;\nbar.sync 0;\n"
    address = "[%x2]" if space == "global" else "[shared]"
    body += f"atom.{space}.{name} %r1, {address}, %r0;\nst.global.b32 [%d0], %r1;\nbar.sync 0;\n"
    body += f"ld.{space}.b32 %r2, {address};\nst.global.b32 [%x3], %r2;"
    run(body, z, x, cell, end, shared=16, inputs=(1,))
    assert z.tolist() == expected
    assert end.tolist() == [total]


def test_atomic_operations_of_other_types():
    x, z = np.array([1.5, 0], np.float32), np.zeros(2, np.uint64)
    body = "red.global.add.f32 [%x0], 0f40000000;\n"
    body += "atom.global.cas.b64 %d0, [%x1], 0, 5;\natom.global.add.u64 %d1, [%x1+8], 7;"
    run(body, x, z)
    assert x.tolist() == [65.5, 0]
    assert z.tolist() == [5, 224]


def test_a_parameter_has_its_own_width():
    text = kernel(
        "mad.wide.u32 %d0, %t, 4, %x0;\nld.param.b16 %h0, [small];\nld.param.s8 %r1, [tiny];\n"
        "cvt.u32.u16 %r0, %h0;\nadd.u32 %r0, %r0, %r1;\nst.global.b32 [%d0], %r0;",
        1,
    )
    text = text.replace("argument_0\n)", "argument_0,\n.param .u16 small,\n.param .u8 tiny\n)")
    z = np.zeros(32, np.uint32)

    load(text).execute((1, 1, 1), 32, [z.__array_interface__["data"][0], 0x123456, -3], {0: buffer("z", z)})
    assert (z == 0x3456 - 3).all()


@pytest.mark.parametrize("bits", [32, 64])
def test_integers_of_several_words_carry_from_one_to_the_next(bits):
    """Add, subtract and multiply, by two words each, and add up to a third word what is carried."""
    register, words = {32: "%r", 64: "%d"}[bits], np.random.default_rng(bits).integers(0, 2**64, (32, 5), np.uint64)
    words[np.random.default_rng(0).random((32, 5)) < 0.4] = 2**64 - 1
    words[np.random.default_rng(1).random((32, 5)) < 0.3] = 0
    words >>= np.uint64(64 - bits)
    a, b, c, d, e, *z = [f"{register}{i}" for i in range(10, 19)]
    lines = [
        at("%d0", "%x1", 40),
        *(f"ld.global.b{bits} {name}, [%d0+{8 * i}];" for i, name in enumerate((a, b, c, d, e))),
    ]
    kind = f"u{bits}"
    lines += [f"add.cc.{kind} {z[0]}, {a}, {c};", f"addc.cc.{kind} {z[1]}, {b}, {d};", f"addc.{kind} {z[2]}, 0, 0;"]
    lines += [at("%d1", "%x0", 72), *(f"st.global.b{bits} [%d1+{8 * i}], {z[i]};" for i in range(3))]
    lines += [f"sub.cc.{kind} {z[0]}, {a}, {c};", f"subc.cc.{kind} {z[1]}, {b}, {d};", f"subc.{kind} {z[2]}, 0, 0;"]
    lines += [f"st.global.b{bits} [%d1+{24 + 8 * i}], {z[i]};" for i in range(3)]
    lines += [f"mad.lo.cc.{kind} {z[0]}, {a}, {e}, {c};", f"madc.hi.{kind} {z[1]}, {a}, {e}, 0;"]
    lines += [f"mad.lo.cc.{kind} {z[1]}, {b}, {e}, {z[1]};", f"madc.hi.{kind} {z[2]}, {b}, {e}, 0;"]
    lines += [f"st.global.b{bits} [%d1+{48 + 8 * i}], {z[i]};" for i in range(3)]
    found = np.zeros((32, 9), np.uint64)
    run("\n".join(lines), found, words, inputs=(1,))
    for (a, b, c, d, e), row in zip(words.tolist(), found.tolist(), strict=True):
        x, y = b << bits | a, d << bits | c
        for result, start in ((x + y, 0), (x - y, 3), (x * e + c, 6)):
            assert row[start : start + 3] == [result >> bits * i & 2**bits - 1 for i in range(3)]
