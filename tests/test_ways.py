"""Machine code is read right, and what a thread passes of it: on texts that are written for these tests."""

from __future__ import annotations

import pytest

from customops.ptx.control import loops_of
from customops.tools.assembly import Access, amd_blocks, sass_blocks
from customops.tools.ways import Way, passes, usual_way, walks_of

from .marks import formulas_only

pytestmark = formulas_only

X, W, Z = ("operands", 0), ("operands", 1), ("outputs", 0)
LEAVES = {0x210: X, 0x218: W, 0x220: Z}
BASES = ("LDC.64 R2, c[0x0][0x210]", "LDC.64 R4, c[0x0][0x218]", "LDC.64 R6, c[0x0][0x220]")  # x, w and z
LOAD_X, LOAD_W, STORE_Z = "LDG.E.128 R8, desc[UR4][R2.64]", "LDG.E.64 R8, desc[UR4][R4.64]", "STG.E [R6.64], R8"


def sass(*lines: str) -> str:
    """Return a function k as ``cuobjdump -sass`` prints it; ``name:`` begins what a branch to ``name`` leads to."""
    code = [line for line in lines if not line.endswith(":")]
    labels = {line: sum(not before.endswith(":") for before in lines[:i]) for i, line in enumerate(lines)}
    text = "\tFunction : other\n        /*0000*/     EXIT ;   /* 0x0 */\n\tFunction : k\n\t.headerflags @\n"
    for i, line in enumerate(code):
        for name, at in labels.items():
            line = line.replace(f"to {name.removesuffix(':')}", hex(16 * at)) if name.endswith(":") else line
        text += f"        /*{16 * i:04x}*/     {line} ;   /* 0x000 */\n                 /* 0x000 */\n"
    return text


def way_of(*lines: str) -> Way:
    return usual_way(sass_blocks(sass(*lines), "k", LEAVES))


def accesses_of(*lines: str) -> list[Access]:
    return [access for block in sass_blocks(sass(*lines), "k", LEAVES) for access in block.accesses]


def instructions(way: Way, *args, **kwargs) -> float:
    return sum(n * block.instructions for block, n in passes(way, *args, **kwargs))


@pytest.mark.parametrize(
    ("opcode", "kind", "size"),
    [("LDG.E", "load", 4), ("LDG.E.U8", "load", 1), ("LDG.E.S16.CONSTANT", "load", 2), ("LDG.E.128", "load", 16)]
    + [("LDG.E.ENL2.256", "load", 32), ("LDG.E.LTC128B.64", "load", 8), ("LDL.64", "local", 8)],
)
def test_an_access_has_its_kind_and_bytes(opcode, kind, size):
    (access,) = accesses_of(f"{opcode} R8, [R2.64]", "EXIT")
    assert (access.kind, access.size) == (kind, size)


def test_stores_and_copies_to_shared_memory_are_accesses_and_shared_memory_is_none():
    found = accesses_of(*BASES, STORE_Z, "STL [R1], R8", "LDGSTS.E.128 [R9], desc[UR4][R2.64]", "LDS R8, [R9]", "EXIT")
    assert found == [Access("store", 32, Z), Access("local", 32, None), Access("load", 128, X)]


@pytest.mark.parametrize(
    ("moves", "leaf"),
    [
        (["MOV R10, R2"], X),
        (["IADD3 R10, P0, R2, R9, RZ"], X),
        (["IMAD.WIDE R10, R9, 0x2, R4"], W),
        (["IMAD.WIDE R10, R9, 0x2, c[0x0][0x220]"], Z),
        (["LDC.128 R8, c[0x0][0x210]"], W),
        (["ULDC.64 UR6, c[0x0][0x218]", "LEA R10, P1, R9, UR6, 0x1"], W),
        (["MOV R10, R2", "IADD3 R10, R9, 0x1, RZ"], None),
        (["MOV R10, R2", "ISETP.GE.AND P0, PT, R10, R9, PT", "LOP3.LUT P0, RZ, R10, 0x1, RZ, 0xc0, !PT"], X),
        (["MOV R10, R2", "@P0 MOV R10, R4"], None),  # it may be either
        (["LDG.E.64 R10, desc[UR4][R2.64]"], None),
        (["MOV R13, R2", "CS2R R12, SRZ", "IADD3 R10, P0, R4, R13, RZ"], W),  # zero in both
        (["MOV R13, R2", "LDS.128 R12, [R9]", "IADD3 R10, P0, R4, R13, RZ"], W),
        (["MOV R13, R2", "IMAD.WIDE R12, R9, 0x2, R4", "MOV R10, R13"], W),
    ],
)
def test_the_pointer_of_an_address_is_found(moves, leaf):
    *_, access = accesses_of(*BASES, *moves, "LDG.E R11, desc[UR4][R10.64+0x10]", "EXIT")
    assert access.leaf == leaf


def test_what_a_guard_writes_is_what_the_same_guard_reads():
    load = "@!P2 LDG.E R11, desc[UR4][R10.64]"
    assert accesses_of(*BASES, "MOV R10, R2", "@!P2 MOV R10, R4", load, "EXIT")[0].leaf == W
    changed = "ISETP.GE.AND P2, PT, R9, R8, PT"
    assert accesses_of(*BASES, "MOV R10, R2", "@!P2 MOV R10, R4", changed, load, "EXIT")[0].leaf is None


def test_a_pointer_is_followed_round_a_loop():
    step = "IADD3 R2, P0, R2, 0x10, RZ"
    assert accesses_of(*BASES, "loop:", LOAD_X, step, "@P1 BRA to loop", "EXIT") == [Access("load", 128, X)]
    swapped = accesses_of(*BASES, "loop:", LOAD_X, "MOV R2, R4", "@P1 BRA to loop", "EXIT")
    assert swapped == [Access("load", 128, None)]


def test_the_usual_way_moves_most_and_leaves_out_what_is_rare():
    """The first branch leaves early, the second goes round a slow path of three instructions."""
    slow = "MUFU.RCP R8, R8", "FMUL R8, R8, R8", "FADD R8, R8, R8"
    way = way_of(*BASES, "@P0 EXIT", LOAD_X, "@P1 BRA to fast", *slow, "fast:", STORE_Z, "EXIT", "end:", "BRA to end")
    assert sum(block.instructions for block in way.blocks) == len(BASES) + 1 + 2 + 2
    assert [access.leaf for access in way.accesses] == [X, Z]
    assert not way.loops


def test_a_branch_on_a_predicate_among_its_operands_may_go_on():
    way = way_of(*BASES, "BRA.U !UP0, to end", LOAD_X, "end:", "EXIT")
    assert sum(block.instructions for block in way.blocks) == len(BASES) + 3


def test_a_loop_is_passed_as_often_as_its_bytes_say():
    """128 bytes of x, 16 in each pass of 3 instructions; before and after it there are 4."""
    way = way_of(*BASES, "loop:", LOAD_X, "IADD3 R2, P0, R2, 0x10, RZ", "@P1 BRA to loop", "EXIT")
    assert instructions(way, {X: 128.0}) == 4 + 8 * 3
    assert instructions(way, {X: 16.0}) == 4 + 3
    assert instructions(way, {X: 0.0}) == 4 + 3


def test_what_lanes_share_does_not_tell_how_often_a_loop_is_passed():
    """Each lane asks for an element of w, but a thread loads one for all of its eight, and 16 bytes of x."""
    way = way_of(*BASES, "loop:", LOAD_X, "LDG.E.U16 R8, desc[UR4][R4.64]", "@P1 BRA to loop", "EXIT")
    assert instructions(way, {X: 128.0, W: 128.0}) == 4 + 8 * 3


def test_what_continues_an_unrolled_loop_is_passed_once():
    unrolled = "loop:", LOAD_X, LOAD_X, LOAD_X, LOAD_X, "@P1 BRA to loop"
    way = way_of(*BASES, *unrolled, "rest:", LOAD_X, "@P2 BRA to rest", "EXIT")
    assert walks_of(way, X) == 1
    assert instructions(way, {X: 640.0}) == 4 + 10 * 5 + 2


def test_a_masked_loop_beside_one_of_whole_vectors_is_passed_once():
    """It is there for the end of a row, and loads as many bytes, one element at a time."""
    narrow = ["LDG.E.U16 R8, desc[UR4][R2.64]"] * 8
    way = way_of(*BASES, "loop:", LOAD_X, "@P1 BRA to loop", "tail:", *narrow, "@P2 BRA to tail", "EXIT")
    assert instructions(way, {X: 160.0}) == 4 + 10 * 2 + 9


def test_loops_one_after_the_other_share_what_is_loaded():
    """Two walks of 256 bytes: the first unrolled twice, so 8 passes of 3; the second 16 of 4."""
    second = "second:", LOAD_X, LOAD_W, STORE_Z, "@P2 BRA to second"
    way = way_of(*BASES, "first:", LOAD_X, LOAD_X, "@P1 BRA to first", *second, "EXIT")
    assert walks_of(way, X) == 2
    assert instructions(way, {X: 512.0, W: 128.0}) == 4 + 8 * 3 + 16 * 4


ROWS = (
    *(*BASES, "row:", "first:", LOAD_X, "@P1 BRA to first", "FADD R8, R8, R8"),
    *("second:", LOAD_X, STORE_Z, "@P2 BRA to second", "@P3 BRA to row", "EXIT"),
)


def test_nested_loops_are_passed_for_every_row():
    """5 rows of 64 bytes, each walked twice in steps of 16: 20 passes of each inner loop, 5 of the two between them."""
    assert instructions(way_of(*ROWS), {X: 640.0}, steps=5) == 4 + 20 * 2 + 20 * 3 + 5 * 2


def test_of_nested_loops_without_steps_the_outer_one_is_a_guess_between_once_and_always():
    assert instructions(way_of(*ROWS), {X: 800.0}) == 4 + 25 * 2 + 25 * 3 + 5 * 2


def test_a_loop_that_loads_nothing_is_passed_once():
    way = way_of(*BASES, LOAD_X, "loop:", "FMUL R8, R8, R8", "@P1 BRA to loop", "EXIT")
    assert instructions(way, {X: 1600.0}) == 5 + 2


def test_amds_assembly_is_read_the_same_way():
    text = """
\ts_load_dwordx2 s[0:1], s[4:5], 0x0
.LBB0_1:                                ; %loop
\tglobal_load_dwordx4 v[0:3], v4, s[0:1]
\ts_waitcnt vmcnt(0)
\tglobal_store_short v4, v0, s[0:1]
\ts_cbranch_scc1 .LBB0_1
; %bb.2:
\tscratch_load_dword v1, off, s32
\ts_endpgm
.LBB0_3:
\ts_branch .LBB0_3
"""
    way = usual_way(amd_blocks(text))
    assert way.accesses == [Access("local", 32, None)]
    assert way.loops[0].accesses == [Access("load", 128, None), Access("store", 16, None)]
    assert instructions(way, {None: 160.0}) == 1 + 10 * 4 + 2


def test_blocks_come_in_loops_after_those_that_lead_to_them():
    successors = [{1, 4}, {2}, {1, 3}, {4}, set()]  # 1 and 2 are a loop
    assert loops_of(range(5), successors) == [[0], [1, 2], [3], [4]]
    assert loops_of([0, 1, 2], [{1}, {0}, {1}]) == [[2], [1, 0]]
