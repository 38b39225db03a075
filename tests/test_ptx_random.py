"""Random programs in PTX give, bit by bit, what a scalar evaluation of one thread after the other gives."""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

import numpy as np
import pytest

from .ptx_scalar import evaluate
from .ptx_text import at, run

pytestmark = pytest.mark.sample(kernels="")  # it asks nothing of the interpreter

COUNTS = {"p": 4, "h": 6, "r": 8, "d": 6}  # registers that programs compute with, by kind: 1, 16, 32 and 64 bits
WIDTHS = {"p": 1, "h": 16, "r": 32, "d": 64}
NAMES = [f"{kind}{i}" for kind, count in COUNTS.items() for i in range(count)]
FLOATS = (0, 0x80000000, 1, 0x007FFFFF, 0x00800000, 0x3F800000, 0xBF800001, 0x7F7FFFFF, 0x7F800000, 0x7FC00000)
TABLE = """
r rr add.s32 sub.s32 mul.lo.s32 mul.hi.u32 mul.hi.s32 and.b32 or.b32 xor.b32 shl.b32 shr.u32 shr.s32 min.s32 max.u32
r rr add.rn.f32 sub.rn.f32 mul.rn.f32 min.f32 max.f32 add.rn.ftz.f32 mul.rz.f32 max.NaN.f32
r r not.b32 neg.s32 abs.s32 popc.b32 clz.b32 brev.b32 neg.f32 abs.f32 cvt.rn.f32.s32 cvt.rn.f32.u32 cvt.rzi.s32.f32
r r cvt.rni.f32.f32 cvt.rmi.ftz.f32.f32
r rrr mad.lo.s32 fma.rn.f32 fma.rn.ftz.f32 prmt.b32 bfe.u32 bfe.s32
r rrp selp.b32 selp.f32
r d cvt.u32.u64 cvt.rn.f32.s64
r h cvt.u32.u16 cvt.s32.s16 cvt.f32.f16
h r cvt.u16.u32 cvt.rn.f16.f32
h hh add.s16 sub.s16 mul.lo.s16 and.b16 xor.b16 min.s16 max.u16
h hhp selp.b16
d dd add.s64 sub.s64 mul.lo.s64 and.b64 or.b64 xor.b64 min.s64 max.u64
d dr shl.b64 shr.u64 shr.s64
d rr mul.wide.u32 mul.wide.s32
d rrd mad.wide.u32 mad.wide.s32
d r cvt.u64.u32 cvt.s64.s32
d ddp selp.b64
p rr setp.lt.s32 setp.ge.u32 setp.eq.b32 setp.lt.f32 setp.neu.f32 setp.gtu.f32
p rrp setp.lt.and.s32 setp.gt.or.f32 setp.ne.xor.b32
p dd setp.lt.s64 setp.ne.b64
p pp and.pred or.pred xor.pred
p p not.pred
"""
ROWS = [(to, of, opcode) for line in TABLE.strip().splitlines() for to, of, *rest in [line.split()] for opcode in rest]


class Op(NamedTuple):
    """An instruction on registers."""

    opcode: str
    to: str
    operands: tuple[str | int, ...]  # registers, or the bits of a number
    guard: str | None
    negated: bool

    def text(self):
        guard = f"@{'!' if self.negated else ''}%{self.guard} " if self.guard else ""
        operands = [f"%{x}" if isinstance(x, str) else self.number(x) for x in self.operands]
        return f"{guard}{self.opcode} {', '.join([f'%{self.to}', *operands])};"

    def number(self, bits):
        return f"0f{bits:08X}" if self.opcode.endswith("f32") else str(bits)

    def execute(self, registers):
        if self.guard is None or bool(registers[self.guard]) != self.negated:
            values = [registers[x] if isinstance(x, str) else x for x in self.operands]
            registers[self.to] = int(evaluate(self.opcode, *values)[0])


def draw_op(random):
    to, of, opcode = ROWS[random.integers(len(ROWS))]
    operands = [f"{kind}{random.integers(COUNTS[kind])}" for kind in of]
    if of in ("rr", "rrr") and random.random() < 0.25:  # a float's bits, or a small number
        operands[-1] = int(random.choice(FLOATS)) if "f32" in opcode else int(random.integers(40))
    guard = f"p{random.integers(COUNTS['p'])}" if random.random() < 0.25 else None
    return Op(opcode, f"{to}{random.integers(COUNTS[to])}", tuple(operands), guard, bool(random.integers(2)))


def draw_registers(random, threads):
    """Return what is in the registers of each thread at first: random bits, small numbers, and floats' edges."""
    found = []
    for _ in range(threads):
        drawn = random.integers(0, 2**64, len(NAMES), np.uint64).tolist()
        registers = {name: bits % (1 << WIDTHS[name[0]]) for name, bits in zip(NAMES, drawn, strict=True)}
        for i in range(COUNTS["r"]):
            if random.random() < 0.6:
                registers[f"r{i}"] = int(random.choice([*FLOATS, 2, 7, 31, 2**32 - 1, 0x41234567, 0xC1A00000]))
        found.append(registers)
    return found


def executed(body, registers):
    """Execute ``body``, then return the registers of each thread, and which threads were at its end together."""
    cells = np.array([[registers_of[name] for name in NAMES] for registers_of in registers], np.uint64)
    found, width = np.zeros((len(registers), len(NAMES) + 1), np.uint64), 8 * len(NAMES)
    loads, stores = [at("%d30", "%x0", width)], ["activemask.b32 %r61;", at("%d31", "%x1", width + 8)]
    for i, name in enumerate(NAMES):
        kind = name[0]
        if kind == "p":
            loads += [f"ld.global.b32 %r62, [%d30+{8 * i}];", f"setp.ne.u32 %{name}, %r62, 0;"]
            stores += [f"selp.b32 %r62, 1, 0, %{name};", f"st.global.b32 [%d31+{8 * i}], %r62;"]
        else:
            loads.append(f"ld.global.b{WIDTHS[kind]} %{name}, [%d30+{8 * i}];")
            stores.append(f"st.global.b{WIDTHS[kind]} [%d31+{8 * i}], %{name};")
    stores.append(f"st.global.b32 [%d31+{width}], %r61;")
    run("\n".join([*loads, *body, *stores]), cells, found, threads=len(registers), inputs=(0,))
    return [dict(zip(NAMES, row[:-1], strict=True)) for row in found.tolist()], found[:, -1].tolist()


@pytest.mark.sample(formulas="group", kernels="")
@pytest.mark.parametrize(("group", "seed"), [(seed % 6, seed) for seed in range(24)])
def test_random_instructions_give_the_bits_of_a_scalar_evaluation(group, seed):
    random = np.random.default_rng(seed)
    ops = [draw_op(random) for _ in range(60)]
    registers = draw_registers(random, 32)
    found, _ = executed([op.text() for op in ops], registers)
    for thread, own in enumerate(registers):
        for op in ops:
            op.execute(own)
        assert found[thread] == own, f"thread {thread}"


class If(NamedTuple):
    """Two ways, of which a thread takes one."""

    predicate: str
    yes: tuple
    no: tuple


class Loop(NamedTuple):
    """A loop that a thread goes round as often as a register says, at most three times, if it does not leave it."""

    depth: int  # registers %r{20 + depth} and %r{30 + depth} count
    times: str
    body: tuple


class Leave(NamedTuple):
    """Go on elsewhere, if a predicate holds."""

    where: str  # "break", "continue" or "return"
    predicate: str


def draw_body(random, depth, loops=0):
    statements = []
    for _ in range(random.integers(1, 5)):
        predicate, choice = f"p{random.integers(COUNTS['p'])}", random.random()
        if depth and choice < 0.35:
            no = draw_body(random, depth - 1, loops) if random.random() < 0.6 else ()
            statements.append(If(predicate, draw_body(random, depth - 1, loops), no))
        elif depth and choice < 0.6:
            body = draw_body(random, depth - 1, loops + 1)
            statements.append(Loop(loops, f"r{random.integers(COUNTS['r'])}", body))
        elif choice < 0.72 and (loops or choice < 0.63):
            statements.append(Leave(str(random.choice(["break", "continue"] if loops else ["return"])), predicate))
        else:
            statements += [draw_op(random) for _ in range(random.integers(1, 4))]
    return tuple(statements)


class Left(Exception):
    """A thread leaves a loop, or what it does."""


def execute(body, registers):
    """Execute statements for one thread."""
    for statement in body:
        match statement:
            case Op():
                statement.execute(registers)
            case If(predicate, yes, no):
                execute(yes if registers[predicate] else no, registers)
            case Leave(where, predicate):
                if registers[predicate]:
                    raise Left(where)
            case Loop(_, times, inner):
                go_round(registers[times] & 3, inner, registers)


def go_round(times, body, registers):
    for _ in range(times):
        try:
            execute(body, registers)
        except Left as left:
            if left.args[0] == "return":
                raise
            if left.args[0] == "break":
                return


class Writer:
    """What writes statements as basic blocks, each of which ends with a jump, so that their order does not matter."""

    def __init__(self):
        self.blocks = [[]]

    def label(self):
        self.blocks.append([])
        return len(self.blocks) - 1

    def write(self, body, block, exits):
        """Write statements from a block on; return the block where they end. ``exits`` are where `Leave` leads to."""
        for statement in body:
            match statement:
                case Op():
                    self.blocks[block].append(statement.text())
                case Leave(where, predicate):
                    block = self.branch(block, predicate, exits[where])
                case If(predicate, yes, no):
                    block = self.write_if(block, predicate, yes, no, exits)
                case Loop():
                    block = self.write_loop(block, statement, exits)
        return block

    def branch(self, block, predicate, to):
        rest = self.label()
        self.blocks[block] += [f"@%{predicate} bra B{to};", f"bra B{rest};"]
        return rest

    def write_if(self, block, predicate, yes, no, exits):
        first, end = self.label(), self.label()
        other = self.branch(block, predicate, first)
        for way, start in ((yes, first), (no, other)):
            self.blocks[self.write(way, start, exits)].append(f"bra B{end};")
        return end

    def write_loop(self, block, loop, exits):
        head, step, end = self.label(), self.label(), self.label()
        i, n, test = f"%r{20 + loop.depth}", f"%r{30 + loop.depth}", f"p{8 + loop.depth}"
        self.blocks[block] += [f"mov.u32 {i}, 0;", f"and.b32 {n}, %{loop.times}, 3;", f"bra B{head};"]
        self.blocks[head].append(f"setp.ge.u32 %{test}, {i}, {n};")
        start = self.branch(head, test, end)
        last = self.write(loop.body, start, {**exits, "break": end, "continue": step})
        self.blocks[last].append(f"bra B{step};")
        self.blocks[step] += [f"add.u32 {i}, {i}, 1;", f"bra B{head};"]
        return end

    def text(self, body, random):
        """Return the lines of ``body``, its blocks in any order."""
        end = self.label()
        self.blocks[self.write(body, 0, {"return": end})].append(f"bra B{end};")
        self.blocks[end].append("bra END;")
        lines = ["bra B0;"]
        for i in random.permutation(len(self.blocks)):
            lines += [f"B{i}:", *self.blocks[i]]
        return [*lines, "END:"]


@pytest.mark.sample(formulas="group", kernels="")
@pytest.mark.parametrize(("group", "seed"), [(seed % 12, seed) for seed in range(60)])
def test_random_control_flow_gives_the_bits_of_one_thread_after_the_other(group, seed):
    random = np.random.default_rng(seed)
    body = draw_body(random, depth=3)
    registers = draw_registers(random, 32)
    found, together = executed(Writer().text(body, random), registers)
    for thread, own in enumerate(registers):
        with suppress(Left):  # a return
            execute(body, own)
        assert found[thread] == own, f"thread {thread}"
    assert together == [0xFFFFFFFF] * 32
