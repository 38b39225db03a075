"""Races are found at the access at which a plain list of all accesses finds them, in random sequences of accesses."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest

from customops.ptx.faults import LaneFault
from customops.ptx.memory import GlobalMemory, Order
from customops.ptx.regions import Access
from customops.ptx.shared import SharedMemory

from .ptx_text import aligned, buffer

pytestmark = pytest.mark.sample(kernels="")  # it asks nothing of the interpreter

THREADS, SIZE = 96, 8


class SharedList:
    """All accesses to the shared memory of a block, with the barriers that their threads had passed."""

    def __init__(self):
        self.accesses = []  # byte, thread, kind, barriers of the block and of the warp
        self.block, self.warps = 0, [0] * (THREADS // 32)

    def add(self, kind, lanes, addresses, width):
        """Return whether an access by threads, in any order, is a race or reads what nobody wrote."""
        new = [
            (a + i, t, kind, self.block, self.warps[t // 32])
            for t, a in zip(lanes, addresses, strict=True)
            for i in range(width)
        ]
        written = {access[0] for access in self.accesses if access[2] == "store"}
        if kind != "store" and any(access[0] not in written for access in new):
            return True
        for i, access in enumerate(new):
            if any(self.races(before, access) for before in self.accesses + new[:i]):
                return True
        self.accesses += new
        return False

    def races(self, before, after):
        (byte, thread, kind, block, warp), (other_byte, other, other_kind, *_) = before, after
        if byte != other_byte or thread == other or (kind == other_kind != "store"):
            return False
        same_warp = thread // 32 == other // 32
        return block == self.block and not (same_warp and warp < self.warps[other // 32])


def draw_lanes(random):
    if random.random() < 0.2:
        return np.arange(32) + 32 * random.integers(THREADS // 32)
    return np.sort(random.choice([0, 1, 32, 33, 64], random.integers(1, 4), replace=False))  # few, so that they meet


@pytest.mark.sample(formulas="group", kernels="")
@pytest.mark.parametrize(("group", "seed"), [(seed % 3, seed) for seed in range(8)])
def test_races_in_shared_memory_are_those_of_a_list_of_accesses(group, seed):
    random, steps = np.random.default_rng(seed), 0
    for _ in range(60):
        memory, plain, values = (
            SharedMemory(SIZE, 1, THREADS),
            SharedList(),
            count(0x0102030405060708, 0x0101010101010101),
        )
        if random.random() < 0.9:  # all is written at first
            for address in (0, 4):
                assert not is_fault(
                    memory, "store", Access(np.array([0]), np.array([address], np.uint64), 4, 1), values
                )
                plain.add("store", [0], [address], 4)
            memory.pass_barrier(slice(None), of_block=True)
            plain.block, plain.warps = 1, [1] * len(plain.warps)
        for _ in range(14):
            choice, steps = random.random(), steps + 1
            if choice < 0.25:
                memory.pass_barrier(slice(None), of_block=True)
                plain.block, plain.warps = plain.block + 1, [warp + 1 for warp in plain.warps]
                continue
            if choice < 0.4:
                warp = int(random.integers(THREADS // 32))
                memory.pass_barrier(np.arange(32 * warp, 32 * warp + 32), of_block=False)
                plain.warps[warp] += 1
                continue
            kind = str(random.choice(["load", "load", "store", "update"]))
            lanes, width = draw_lanes(random), int(random.choice([1, 2, 4]))
            if kind == "store":
                lanes = lanes[:1] if random.random() < 0.9 else lanes
            addresses = random.integers(0, SIZE // width, len(lanes)) * width
            expected = plain.add(kind, lanes.tolist(), addresses.tolist(), width)
            access = Access(lanes, addresses.astype(np.uint64), width, 1)
            assert is_fault(memory, kind, access, values) == expected
            if expected:
                break
    assert steps > 250  # with those that end at a race


def is_fault(memory, kind, access, values, *more):
    """Return whether an access raises a fault; each store is of values that are nowhere yet."""
    try:
        if kind == "load":
            memory.load(access, *more)
        elif kind == "store":
            new = [next(values) % 2**64 >> 3 & (1 << 8 * access.itemsize) - 1 for _ in access.lanes]
            memory.store(access, np.array(new, f"u{access.itemsize}")[:, None], *more)
        elif more:
            memory.update(access, *more, lambda i, old: old, Order(False, False))
        else:
            memory.update(access, lambda i, old: old)
    except LaneFault:
        return True
    return False


@pytest.mark.sample(formulas="group", kernels="")
@pytest.mark.parametrize(("group", "seed"), [(seed % 3, seed) for seed in range(8)])
def test_races_of_programs_are_those_of_a_list_of_accesses(group, seed):
    """Four programs access few elements of 4 bytes, each alone or two of them at once."""
    random, steps = np.random.default_rng(seed), 0
    for _ in range(80):
        memory = GlobalMemory({0: buffer("x", aligned(np.zeros(16, np.uint32)))})
        accesses, values = [], count(0x0102030405060708, 0x0101010101010101)
        for _ in range(8):
            steps += 1
            kind = str(random.choice(["load", "load", "store", "update"]))
            programs = random.integers(0, 4, 1 if kind == "store" else 2).astype(np.int32)
            elements = random.integers(0, 16, len(programs))
            new = list(zip(programs.tolist(), elements.tolist(), [kind] * len(programs), strict=True))
            expected = any(
                program != p and element == e and not kind == k != "store"
                for program, element, kind in new
                for p, e, k in accesses
            )
            accesses += new
            low = memory.tensors[0].low
            access = Access(np.arange(len(programs)), (low + 4 * elements).astype(np.uint64), 4, 1)
            assert is_fault(memory, kind, access, values, programs, frozenset({0})) == expected
            if expected:
                break
    assert steps > 300
