"""A table of faults planted in a few lines of PTX, and of what is none.

The line that a fault has to name ends in ``// here``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

CELL = "mad.wide.u32 %d0, %t, 4, %x0;"  # the address of the thread's element of x0
PLACE = "mov.u32 %r0, shared;\nmad.lo.u32 %r0, %t, 4, %r0;"  # that of its place in shared memory
NEXT = "xor.b32 %r1, %r0, 4;"  # that of a neighbour's
FILL = f"{PLACE}\n{NEXT}\nst.shared.b32 [%r0], %t;"
FAR = "xor.b32 %r1, %r0, 128;"  # that of a thread of another warp


def floats(*shape):
    return np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)


class Fault(NamedTuple):
    """A kernel that does what none may do."""

    reason: str  # a pattern of what the error says
    body: str
    arrays: tuple = ()
    program: int | None = 0
    thread: int | None = 0
    tensor: str | None = None
    options: dict = {}  # noqa: RUF012 - of `run`; nothing changes it


NEIGHBOURS = floats(2, 32)  # two tensors side by side
GLOBAL = {
    "past the end": Fault(
        "outside the elements of x0, which has shape .30. and strides .1.: 4 bytes, 30 elements from its first",
        f"{CELL}\nld.global.b32 %r0, [%d0]; // here",
        (floats(30),),
        thread=30,
        tensor="x0",
    ),
    "before the start": Fault(
        "outside the elements of x0.*: 4 bytes, -1 elements from its first",
        f"{CELL}\nld.global.b32 %r0, [%d0+-4]; // here",
        (floats(32),),
        tensor="x0",
    ),
    "at an address that wraps": Fault(
        "outside the elements of x0",
        "mov.b64 %d0, -4;\nsub.s64 %d0, %d0, %x0;\nadd.s64 %d0, %d0, %x0;\nld.global.b32 %r0, [%d0]; // here",
        (floats(32),),
        tensor="x0",
    ),
    "in the gap between rows": Fault(
        "outside the elements of x0, which has shape .4, 6. and strides .8, 1.",
        f"{CELL}\nst.global.b32 [%d0], %t; // here",
        (floats(4, 8)[:, :6],),
        thread=6,
        tensor="x0",
    ),
    "in the gap between elements": Fault(
        "outside the elements of x0, which has shape .16. and strides .2.",
        f"{CELL}\nld.global.b32 %r0, [%d0]; // here",
        (floats(32)[::2],),
        thread=1,
        tensor="x0",
    ),
    "a vector half in a gap": Fault(
        "outside the elements of x0.*: 16 bytes",
        "mad.wide.u32 %d0, %t, 16, %x0;\nld.global.v4.b32 {%r0, %r1, %r2, %r3}, [%d0]; // here",
        (floats(32, 8)[:, :6],),
        thread=1,
        tensor="x0",
    ),
    "in a neighbour that was given too": Fault(
        "outside the elements of x0",
        f"{CELL}\nld.global.b32 %r0, [%d0+64]; // here",
        (NEIGHBOURS[0], NEIGHBOURS[1]),
        thread=16,
        tensor="x0",
    ),
    "before a tensor with negative strides' last": Fault(
        "outside the elements of x0, which has shape .8. and strides .-1.",
        f"{CELL}\nld.global.b32 %r0, [%d0+-28]; // here",
        (floats(32)[15:7:-1],),
        thread=8,
        tensor="x0",
    ),
    "an address of no tensor": Fault(
        "outside the elements of any tensor; the nearest is x0",
        "mov.b64 %d0, 4096;\nld.global.b32 %r0, [%d0]; // here",
        (floats(32),),
        tensor="x0",
    ),
    "an empty tensor": Fault(
        "outside the elements of x0, which has shape .0.",
        f"{CELL}\nld.global.b32 %r0, [%d0]; // here",
        (floats(0),),
        tensor="x0",
    ),
    "no tensor at all": Fault(
        "though no tensor was given", "mov.b64 %d0, 64;\nld.global.b32 %r0, [%d0]; // here", (8,)
    ),
    "in some programs": Fault(
        "outside the elements of x0",
        "mad.lo.u32 %r0, %c, 32, %t;\nmad.wide.u32 %d0, %r0, 4, %x0;\nld.global.b32 %r0, [%d0]; // here",
        (floats(100),),
        program=3,
        thread=4,
        tensor="x0",
        options={"grid": 4},
    ),
    "a guard that is one too many": Fault(
        "outside the elements of x0",
        f"{CELL}\nsetp.le.u32 %p0, %t, 20;\n@%p0 ld.global.b32 %r0, [%d0]; // here",
        (floats(20),),
        thread=20,
        tensor="x0",
    ),
    "a write to an input": Fault(
        "a write to x0, which is an input",
        f"{CELL}\nst.global.b32 [%d0], %t; // here",
        (floats(32),),
        tensor="x0",
        options={"inputs": (0,)},
    ),
    "an atomic operation on an input": Fault(
        "a write to x0, which is an input",
        f"{CELL}\nred.global.add.f32 [%d0], 0f3F800000; // here",
        (floats(32),),
        tensor="x0",
        options={"inputs": (0,)},
    ),
    "a misaligned element": Fault(
        "misaligned access: 4 bytes at an address that is 2 past a multiple of 4",
        f"{CELL}\nld.global.b32 %r0, [%d0+2]; // here",
        (floats(40),),
        tensor="x0",
    ),
    "an atomic operation on a misaligned vector": Fault(
        "misaligned access: 8 bytes at an address that is 4 past a multiple of 8",
        f"{CELL}\natom.global.gpu.relaxed.add.v2.f32 {{%r0, %r1}}, [%d0], {{%r0, %r1}}; // here",
        (floats(40),),
        thread=1,
    ),
    "a misaligned vector": Fault(
        "misaligned access: 8 bytes at an address that is 4 past a multiple of 8",
        f"{CELL}\nst.global.v2.b32 [%d0], {{%t, %t}}; // here",
        (floats(40),),
        thread=1,
        tensor="x0",
    ),
    "one instruction with two values": Fault(
        "two threads write different values to one element of x0",
        "st.global.b32 [%x0], %t; // here",
        (floats(1),),
        tensor="x0",
    ),
}
RACES = {
    "two programs write two values": Fault(
        "a program writes a value where program 0 wrote another, in x0",
        "add.u32 %r0, %c, 7;\nst.global.b32 [%x0], %r0; // here",
        (floats(1),),
        program=1,
        tensor="x0",
        options={"grid": 2, "at_once": 1},
    ),
    "two programs at once write two values": Fault(
        "two threads write different values to one element of x0",
        "add.u32 %r0, %c, 7;\nst.global.b32 [%x0], %r0; // here",
        (floats(1),),
        tensor="x0",
        options={"grid": 2},
    ),
    "a program reads what one before wrote": Fault(
        "a program reads what program 0 wrote, in x0",
        "ld.global.b32 %r1, [%x0]; // here\nsetp.eq.u32 %p0, %c, 0;\n@%p0 st.global.b32 [%x0], %t;",
        (floats(1),),
        program=1,
        tensor="x0",
        options={"grid": 2, "threads": 1, "at_once": 1},
    ),
    "a program writes what one before read": Fault(
        "a program writes what program 0 reads, in x0",
        "setp.eq.u32 %p0, %c, 0;\n@%p0 ld.global.b32 %r1, [%x0];\n@!%p0 st.global.b32 [%x0], %t; // here",
        (floats(1),),
        program=1,
        tensor="x0",
        options={"grid": 2, "threads": 1, "at_once": 1},
    ),
    "a program writes what several read": Fault(
        "a program writes what several programs reads, in x0",
        "ld.global.b32 %r1, [%x0];\nst.global.b32 [%x0], 7; // here",
        (floats(1),),
        tensor="x0",
        options={"grid": 3, "threads": 32},
    ),
    "a program reads what others add to": Fault(
        "a program reads what program 0 changes, in x0",
        "setp.eq.u32 %p0, %c, 0;\n@%p0 atom.global.add.u32 %r1, [%x0], 1;\n@!%p0 ld.global.b32 %r0, [%x0]; // here",
        (floats(1),),
        program=1,
        tensor="x0",
        options={"grid": 2, "threads": 1},
    ),
    "a program adds to what another read": Fault(
        "a program changes what program 0 reads, in x0",
        "setp.eq.u32 %p0, %c, 0;\n@%p0 ld.global.b32 %r0, [%x0];\n@!%p0 atom.global.add.u32 %r1, [%x0], 1; // here",
        (floats(1),),
        program=1,
        tensor="x0",
        options={"grid": 2, "threads": 1},
    ),
    "a program writes what another adds to": Fault(
        "a program writes what program 0 changes, in x0",
        "st.global.b32 [%x0], 7; // here\natom.global.add.u32 %r1, [%x0], 1;",
        (floats(1),),
        program=1,
        tensor="x0",
        options={"grid": 2, "threads": 1},
    ),
    "a program adds to what another wrote": Fault(
        "a program changes what program 0 wrote, in x0",
        "setp.eq.u32 %p0, %c, 0;\n@%p0 st.global.b32 [%x0], 7;\n@!%p0 atom.global.add.u32 %r1, [%x0], 1; // here",
        (floats(1),),
        program=1,
        tensor="x0",
        options={"grid": 2, "threads": 1},
    ),
}
for name, order in (("relaxed", "relaxed"), ("without an order", "gpu")):
    RACES[f"a lock that is {name}"] = Fault(
        "a program reads what program 0 wrote, in x0",
        f"atom.global.{order}.add.u32 %r1, [%x1], 1;\nld.global.b32 %r0, [%x0]; // here\n"
        f"add.u32 %r0, %r0, 1;\nst.global.b32 [%x0], %r0;\natom.global.{order}.add.u32 %r1, [%x1], 1;",
        (np.zeros(1, np.uint32), np.zeros(1, np.uint32)),
        program=1,
        tensor="x0",
        options={"grid": 2, "threads": 1},
    )
SHARED = {
    "a read of another's write": Fault(
        "a race in shared memory: a thread reads what another thread wrote",
        f"{FILL}\nld.shared.b32 %r2, [%r1]; // here",
    ),
    "a read of another warp's write": Fault(
        "a race in shared memory: a thread reads what another thread wrote",
        f"{FILL}\n{FAR}\nbar.warp.sync -1;\nld.shared.b32 %r2, [%r1]; // here",
        options={"threads": 64},
    ),
    "a write where another read": Fault(
        "a race in shared memory: a thread writes what another thread reads",
        f"{FILL}\nbar.sync 0;\nld.shared.b32 %r2, [%r1];\nst.shared.b32 [%r0], %r2; // here",
    ),
    "a write where another warp read": Fault(
        "a race in shared memory: a thread writes what another thread reads",
        f"{FILL}\n{FAR}\nbar.sync 0;\nld.shared.b32 %r2, [%r1];\nbar.warp.sync -1;\nst.shared.b32 [%r0], %r2; // here",
        options={"threads": 64},
    ),
    "a write where another wrote": Fault(
        "a race in shared memory: a thread writes what another thread wrote",
        f"{FILL}\nst.shared.b32 [%r1], %r1; // here",
    ),
    "one instruction with two values": Fault(
        "a race in shared memory: two threads write different values to one address",
        "st.shared.b32 [shared], %t; // here",
    ),
    "of one byte in a word": Fault(
        "a race in shared memory: a thread reads what another thread wrote",
        f"{FILL}\nld.shared.b8 %r2, [%r1+3]; // here",
    ),
    "a read of what another adds to": Fault(
        "a race in shared memory: a thread reads what another thread changes",
        f"{FILL}\nbar.sync 0;\natom.shared.add.u32 %r2, [%r0], 1;\nld.shared.b32 %r3, [%r1]; // here",
    ),
    "an addition to what another wrote": Fault(
        "a race in shared memory: a thread changes what another thread wrote",
        f"{FILL}\natom.shared.add.u32 %r2, [%r1], 1; // here",
    ),
    "never written": Fault(
        "a read of shared memory that was never written",
        f"{PLACE}\nsetp.ne.u32 %p0, %t, 9;\n@%p0 st.shared.b32 [%r0], %t;\nld.shared.b32 %r2, [%r0]; // here",
        thread=9,
    ),
    "half of it never written": Fault(
        "a read of shared memory that was never written",
        f"{PLACE}\nst.shared.b16 [%r0], 1;\nld.shared.b32 %r2, [%r0]; // here",
    ),
    "an addition to what was never written": Fault(
        "an atomic operation on shared memory that was never written", f"{PLACE}\nred.shared.add.u32 [%r0], 1; // here"
    ),
    "out of bounds": Fault(
        "outside shared memory: 4 bytes at 256 of 256", f"{PLACE}\nst.shared.b32 [%r0+252], %t; // here", thread=1
    ),
    "before the start": Fault(
        "outside shared memory: 4 bytes at -4 of 256", f"{PLACE}\nst.shared.b32 [%r0+-4], %t; // here"
    ),
    "misaligned": Fault(
        "a misaligned access to shared memory: 8 bytes at 4",
        f"{PLACE}\nst.shared.v2.b32 [%r0], {{%t, %t}}; // here",
        thread=1,
    ),
}
COPY = "mov.u32 %r0, shared;\nmad.lo.u32 %r0, %t, 16, %r0;\nmad.wide.u32 %d0, %t, 16, %x0;\n"
COPY += "cp.async.cg.shared.global [%r0], [%d0], 16;"
COPIES = {
    "read before it is waited for": Fault(
        "a read of shared memory that an asynchronous copy has yet to write",
        f"{COPY}\ncp.async.commit_group;\nld.shared.b32 %r2, [%r0]; // here",
        (floats(128),),
        options={"shared": 512},
    ),
    "read while its group may be pending": Fault(
        "a read of shared memory that an asynchronous copy has yet to write",
        f"{COPY}\ncp.async.commit_group;\ncp.async.wait_group 1;\nld.shared.b32 %r2, [%r0]; // here",
        (floats(128),),
        options={"shared": 512},
    ),
    "another's, read without a barrier": Fault(
        "a race in shared memory: a thread reads what another thread wrote",
        f"{COPY}\ncp.async.wait_all;\nxor.b32 %r1, %r0, 16;\nld.shared.b32 %r2, [%r1]; // here",
        (floats(128),),
        options={"shared": 512},
    ),
    "to where another reads": Fault(
        "lets a copy write what another thread reads",
        f"{FILL}\nbar.sync 0;\nld.shared.b32 %r2, [%r1];\ncp.async.ca.shared.global [%r0], [%x0], 4; // here",
        (floats(128),),
    ),
    "of elements that are not there": Fault(
        "outside the elements of x0",
        f"{COPY} // here\ncp.async.wait_all;",
        (floats(124),),
        thread=31,
        tensor="x0",
        options={"shared": 512},
    ),
    "misaligned in shared memory": Fault(
        "a misaligned access to shared memory: 16 bytes at 8",
        f"{COPY.replace('[%r0], [%d0]', '[%r0+8], [%d0]')} // here",
        (floats(128),),
        options={"shared": 1024},
    ),
}
EARLY = "setp.lt.u32 %p0, %t, 40;\n"
WAYS = "setp.lt.u32 %p0, %t, {};\n@%p0 bra A;\nbar.sync {};{}\nbra B;\nA:\nbar.sync {};{}\nB:"
CONTROL = {
    "a barrier after some have returned": Fault(
        "a barrier that not all threads of the program reach",
        f"{EARLY}@%p0 ret;\nbar.sync 0; // here",
        thread=40,
        options={"threads": 64},
    ),
    "a barrier that some pass by": Fault(
        "a barrier that not all threads of the program reach",
        f"{EARLY}@%p0 bra DONE;\nbar.sync 0; // here\nDONE:",
        thread=40,
        options={"threads": 64},
    ),
    "a warp at two barriers": Fault(
        "the threads of a warp wait at different barriers",
        WAYS.format(40, 0, " // here", 0, ""),
        thread=40,
        options={"threads": 64},
    ),
    "warps at barriers of two numbers": Fault(
        "threads of the program wait at barriers of two numbers",
        WAYS.format(32, 1, " // here", 2, ""),
        thread=32,
        options={"threads": 64},
    ),
    "a barrier of the warp that not all reach": Fault(
        "do not reach it", "setp.lt.u32 %p0, %t, 5;\n@%p0 bar.warp.sync -1; // here"
    ),
    "a vote that not all take part in": Fault(
        "do not reach it", "setp.ge.u32 %p0, %t, 5;\n@%p0 vote.sync.ballot.b32 %r0, %p0, -1; // here", thread=5
    ),
    "a thread that is no member": Fault(
        "has it not for a member", "vote.sync.ballot.b32 %r0, %p0, 0xfffffffe; // here"
    ),
    "a shuffle that not all take part in": Fault(
        "do not reach it", "setp.lt.u32 %p0, %t, 5;\n@%p0 shfl.sync.idx.b32 %r0, %t, 0, 31, -1; // here"
    ),
    "a shuffle from an absent thread": Fault(
        "a shuffle reads lane 5, which takes no part",
        "setp.lt.u32 %p0, %t, 5;\n@%p0 shfl.sync.down.b32 %r0, %t, 1, 31, 31; // here",
        thread=4,
    ),
    "an unknown instruction": Fault("the instruction frob.b32 is not known", "frob.b32 %r0, %r1; // here", thread=None),
    "an unknown modifier": Fault(
        "the instruction ld.global.weird.b32 is not known",
        f"{CELL}\nld.global.weird.b32 %r0, [%d0]; // here",
        (floats(32),),
        thread=None,
    ),
    "an unknown special register": Fault(
        "the special register %globaltimer is not known", "mov.u64 %d0, %globaltimer; // here", thread=None
    ),
    "an unknown function": Fault(
        "the function nothing is not known", "{\ncall.uni nothing, ();\n}".replace("();", "(); // here")
    ),
    "an assertion": Fault(
        "an assertion of the kernel fails",
        "setp.ne.u32 %p0, %t, 7;\n@%p0 bra DONE;\n"
        "{\n.param .b64 a;\nst.param.b64 [a], 0;\ncall.uni __assertfail, (a); // here\n}\nDONE:",
        thread=7,
    ),
    "a trap": Fault("the kernel stops itself", "setp.eq.u32 %p0, %t, 3;\n@%p0 trap; // here", thread=3),
    "a loop that never ends": Fault("a loop that never ends", "A:\nbra A; // here"),
    "a loop that one thread never leaves": Fault(
        "a loop that never ends", "mov.u32 %r0, 1;\nA:\nsetp.eq.u32 %p0, %t, 11;\n@%p0 bra A; // here", thread=11
    ),
    "a lock that nobody frees": Fault(
        "a loop that never ends",
        "A:\natom.global.acq_rel.gpu.cas.b32 %r0, [%x0], 0, 1;\nsetp.ne.u32 %p0, %r0, 0;\n@%p0 bra A; // here",
        (np.ones(1, np.uint32),),
        options={"threads": 1},
    ),
    "its own memory out of bounds": Fault(
        "outside the thread's own memory",
        ".local .align 8 .b8 own[16];\nmov.b64 %d0, own;\nst.local.b64 [%d0+16], %d0; // here",
    ),
    "before its own memory": Fault(
        "outside the thread's own memory",
        ".local .align 8 .b8 own[16];\nmov.b64 %d0, own;\nst.local.b64 [%d0+-8], %d0; // here",
    ),
    "its own memory misaligned": Fault(
        "a misaligned access to the thread's own memory",
        ".local .align 8 .b8 own[16];\nmov.b64 %d0, own;\nst.local.b64 [%d0+4], %d0; // here",
    ),
    "a matrix that not all load": Fault(
        "do not reach it",
        f"{FILL}\nsetp.lt.u32 %p0, %t, 5;\n@%p0 ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r2}}, [%r0]; // here",
    ),
    "a matrix with a misaligned row": Fault(
        "a misaligned access to shared memory: a row of a matrix has 16 bytes",
        f"{FILL}\nbar.sync 0;\nldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r2}}, [%r0]; // here",
        thread=1,
    ),
    "a matrix read before others have written it": Fault(
        "a race in shared memory: a thread reads what another thread wrote",
        f"{FILL}\nand.b32 %r0, %r0, 112;\nldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r2}}, [%r0]; // here",
        thread=4,
    ),
    "a result that no function gave": Fault(
        "the parameter given was never written", "{\n.param .b32 given;\nld.param.b32 %r0, [given]; // here\n}"
    ),
}
FAULTS = {
    f"{group}: {name}": fault
    for group, faults in (
        ("global memory", GLOBAL),
        ("race of programs", RACES),
        ("shared memory", SHARED),
        ("asynchronous copy", COPIES),
        ("control", CONTROL),
    )
    for name, fault in faults.items()
}

LOCK = """
setp.ne.u32 %p0, %t, 0;
@%p0 bra WAITED;
TRY:
atom.global.acquire.gpu.cas.b32 %r0, [%x1], 0, 1;
setp.ne.u32 %p1, %r0, 0;
@%p1 bra TRY;
WAITED:
bar.sync 0;
ld.global.b32 %r1, [%x0];
bar.warp.sync -1;
add.u32 %r1, %r1, 1;
st.global.b32 [%x0], %r1;
bar.sync 0;
@%p0 bra DONE;
atom.global.release.gpu.exch.b32 %r0, [%x1], 0;
DONE:
"""
ALLOWED = {
    "two programs write one value": "st.global.b32 [%x0], 7;",
    "a program reads its own": f"{CELL}\nsetp.eq.u32 %p0, %c, 0;\nsetp.lt.and.u32 %p1, %t, 40, %p0;\n"
    "@%p1 st.global.b32 [%d0], %t;\n@%p1 ld.global.b32 %r0, [%d0];",
    "programs read one element": "ld.global.b32 %r0, [%x0];",
    "programs add to one element": "red.global.add.u32 [%x0], 1;",
    "a lock": LOCK,
    "threads write one value to shared memory": "st.shared.b32 [shared], 7;\nbar.sync 0;\nld.shared.b32 %r0, [shared];",
    "a thread reads its own of shared memory": f"{FILL}\nld.shared.b32 %r2, [%r0];\nst.shared.b32 [%r0], %r1;",
    "a barrier between": f"{FILL}\n{FAR}\nbar.sync 0;\nld.shared.b32 %r2, [%r1];\nbar.sync 0;\nst.shared.b32 [%r0], 1;",
    "a barrier of the warp between": f"{FILL}\nbar.warp.sync -1;\nld.shared.b32 %r2, [%r1];\nbar.warp.sync -1;\n"
    "st.shared.b32 [%r0], 1;",
    "threads add to one address": f"{FILL}\nbar.sync 0;\nred.shared.add.u32 [shared], 1;\n"
    "bar.sync 0;\nld.shared.b32 %r2, [shared];",
    "warps at two barriers of one number": WAYS.format(32, 0, "", 0, ""),
    "a part of a warp that waits for itself": "setp.lt.u32 %p0, %t, 8;\n@%p0 bar.warp.sync 0xff;",
    "a thread that would read outside does not": f"{CELL}\nsetp.lt.u32 %p0, %t, 40;\n@%p0 ld.global.b32 %r0, [%d0];",
    "copies that are waited for": "mov.u32 %r0, shared;\nmad.lo.u32 %r0, %t, 4, %r0;\nxor.b32 %r1, %r0, 128;\n"
    "cp.async.ca.shared.global [%r0], [%x0], 4;\ncp.async.commit_group;\ncp.async.wait_group 0;\nbar.sync 0;\n"
    "ld.shared.b32 %r2, [%r1];",
}
