"""Matrices of a warp: moved between registers and shared memory, and multiplied by ``mma.sync``."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from .faults import LaneFault
from .fragments import Numbers, accumulators, left, registers_of, right
from .frame import WARP, Frame, Source, Step, Target, address_of, parts_of, source, target
from .memory import Access
from .module import Instruction
from .warp import require

_ALL = np.uint32(0xFFFFFFFF)
_MATRIX = re.compile(r"(ld|st)matrix\.sync\.aligned\.m8n8\.x([124])(\.trans)?\.shared(::cta)?\.b16")
_MULTIPLY = re.compile(
    r"mma\.sync\.aligned\.m(8|16)n8k(\d+)\.row\.col(\.satfinite)?"
    r"\.(f16|f32|f64|s32)\.(f16|bf16|tf32|e4m3|e5m2|s8|u8|f64)\.(f16|bf16|tf32|e4m3|e5m2|s8|u8|f64)\.(f16|f32|f64|s32)"
)


def take(frame: Frame, gets: list[Source], lanes: np.ndarray) -> list[np.ndarray]:
    """Return registers of these lanes, which are whole warps."""
    return [frame.spread(get(frame))[lanes] for get in gets]


def give(frame: Frame, puts: list[Target], lanes: np.ndarray, values: list[np.ndarray]) -> None:
    """Write registers of these lanes, which are those that execute the instruction."""
    for put, value in zip(puts, values, strict=True):
        if frame.active is not None:
            whole = np.zeros(frame.batch.lanes, value.dtype)
            whole[lanes] = value
            value = whole
        put(frame, value)


def _move(instruction: Instruction, context: Any) -> Step:
    """Move 8 x 8 matrices of 16 bits between registers and shared memory: ``ldmatrix``, ``stmatrix``.

    A matrix is eight rows of 16 bytes, at the addresses of eight lanes: those of matrix ``i`` are lanes ``8i`` on.
    Register ``i`` of lane ``t`` holds elements ``2(t % 4)`` and the next of row ``t / 4`` of matrix ``i``; transposed,
    of column ``t / 4``. It is the lane with the register that reads or writes these elements.
    """
    match = _MATRIX.fullmatch(instruction.opcode)
    if match is None:
        raise KeyError(instruction.opcode)
    loads, count, transposed = match[1] == "ld", int(match[2]), bool(match[3])
    registers, where = instruction.operands if loads else instruction.operands[::-1]
    accesses = _accesses(where, count, transposed, context)
    if loads:
        puts = [target(context.names, name, "b32") for name in parts_of(registers)]
        return lambda frame: _load(frame, accesses(frame), puts)
    gets = [source(context.names, name, "b32") for name in parts_of(registers)]
    return lambda frame: _store(frame, accesses(frame), gets)


def _accesses(where: str, count: int, transposed: bool, context: Any) -> Callable[[Frame], list[list[Access]]]:
    """Return what gives the accesses of each register: of both its halves at once, or of one by one, transposed."""
    base, offset = address_of(where)
    get, shift = source(context.names, base, "b32"), np.uint64(offset % (1 << 64))
    outer, inner = np.divmod(np.arange(WARP), 4)

    def accesses(frame: Frame) -> list[list[Access]]:
        require(frame, _ALL)
        lanes = frame.chosen()
        rows = frame.spread(get(frame))[lanes].astype(np.uint64).reshape(-1, WARP)[:, : 8 * count] + shift
        misaligned = rows % np.uint64(16) != 0
        if misaligned.any():
            lane = int(lanes.reshape(-1, WARP)[:, : 8 * count][misaligned][0])
            raise LaneFault("a misaligned access to shared memory: a row of a matrix has 16 bytes", lane)
        found = []
        for matrix in np.split(rows, count, axis=1):
            if transposed:
                parts = [matrix[:, 2 * inner + half] + 2 * outer.astype(np.uint64) for half in (0, 1)]
            else:
                parts = [matrix[:, outer] + 4 * inner.astype(np.uint64)]
            found.append([Access(lanes, part.ravel(), 4 // len(parts), 1) for part in parts])
        return found

    return accesses


def _load(frame: Frame, accesses: list[list[Access]], puts: list[Target]) -> None:
    shared = frame.batch.shared
    parts = [np.hstack([shared.load(part) for part in register]) for register in accesses]
    give(frame, puts, frame.chosen(), [part.view(np.uint32)[:, 0] for part in parts])


def _store(frame: Frame, accesses: list[list[Access]], gets: list[Source]) -> None:
    frame.batch.stores += 1
    for words, register in zip(take(frame, gets, frame.chosen()), accesses, strict=True):
        parts = words[:, None].view(f"u{register[0].itemsize}")
        for i, part in enumerate(register):
            frame.batch.shared.store(part, parts[:, i : i + 1])


def _multiply(instruction: Instruction, context: Any) -> Step:
    """Multiply matrices of each warp: ``mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 D, A, B, C``."""
    match = _MULTIPLY.fullmatch(instruction.opcode)
    if match is None:
        raise KeyError(instruction.opcode)
    (rows, k), saturates, kinds = map(int, match.groups()[:2]), match[3], match.groups()[3:]
    d, a, b, c = numbers = [Numbers(kind) for kind in kinds]
    names = [parts_of(operand) for operand in instruction.operands]
    sizes = (8 * rows, rows * k, 8 * k, 8 * rows)
    if any(len(held) * WARP * x.per_register != n for held, x, n in zip(names, numbers, sizes, strict=True)):
        raise ValueError(f"{instruction.opcode} with other numbers of registers")
    puts = [target(context.names, name, d.register) for name in names[0]]
    of_a, of_b, of_c = (
        [source(context.names, name, x.register) for name in held]
        for held, x in zip(names[1:], numbers[1:], strict=True)
    )

    def step(frame):
        require(frame, _ALL)
        lanes = frame.chosen()
        x, y = left(take(frame, of_a, lanes), a, rows), right(take(frame, of_b, lanes), b)
        z = x @ y + accumulators(take(frame, of_c, lanes), c, rows)
        give(frame, puts, lanes, registers_of(z, d, bool(saturates)))

    return step


INSTRUCTIONS: dict[str, Callable[[Instruction, Any], Step]] = {
    "ldmatrix": _move,
    "stmatrix": _move,
    "mma": _multiply,
}
