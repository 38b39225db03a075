"""Matrices of a warp: moved between registers and shared memory, and multiplied by ``mma.sync``."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from .fragments import Numbers, accumulators, left, registers_of, right
from .frame import WARP, Frame, Source, Step, Target, address_of, source, target
from .memory import Access
from .module import Instruction
from .warp import require

_ALL = np.uint32(0xFFFFFFFF)
_MATRIX = re.compile(r"(ld|st)matrix\.sync\.aligned\.m8n8\.x(\d)(\.trans)?\.shared(::cta)?\.b16")
_MULTIPLY = re.compile(
    r"mma\.sync\.aligned\.m(8|16)n8k(\d+)\.row\.col(\.satfinite)?"
    r"\.(f16|f32|f64|s32)\.(f16|bf16|tf32|e4m3|e5m2|s8|u8|f64)\.(f16|bf16|tf32|e4m3|e5m2|s8|u8|f64)\.(f16|f32|f64|s32)"
)


def group(operand: str) -> list[str]:
    """Return the registers of ``{a, b}``."""
    return [name.strip() for name in operand.strip("{}").split(",")]


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
    Register ``i`` of lane ``t`` holds elements ``2(t % 4)`` and the next of row ``t / 4`` of matrix ``i``.
    """
    match = _MATRIX.fullmatch(instruction.opcode)
    if match is None:
        raise KeyError(instruction.opcode)
    loads, count, transposed = match[1] == "ld", int(match[2]), bool(match[3])
    registers, where = instruction.operands if loads else instruction.operands[::-1]
    rows = _rows(where, count, context)
    if loads:
        puts = [target(context.names, name, "b32") for name in group(registers)]
        return lambda frame: _load(frame, rows(frame), puts, transposed)
    gets = [source(context.names, name, "b32") for name in group(registers)]
    return lambda frame: _store(frame, rows(frame), gets, transposed)


def _rows(where: str, count: int, context: Any) -> Callable[[Frame], Access]:
    """Return what gives the access of all rows: of matrix ``i`` of each warp, eight lanes in order."""
    base, offset = address_of(where)
    get, shift = source(context.names, base, "b32"), np.uint64(offset)

    def rows(frame: Frame) -> Access:
        require(frame, _ALL)
        lanes = frame.chosen().reshape(-1, WARP)[:, : 8 * count].ravel()
        return Access(lanes, frame.spread(get(frame)).astype(np.uint64)[lanes] + shift, 8, 2)

    return rows


def _load(frame: Frame, access: Access, puts: list[Target], transposed: bool) -> None:
    halves = frame.batch.shared.load(access).view(np.uint16).reshape(-1, len(puts), 8, 8)
    halves = halves.swapaxes(2, 3) if transposed else halves
    words = np.ascontiguousarray(halves).view(np.uint32).reshape(-1, len(puts), WARP)
    give(frame, puts, frame.chosen(), [words[:, i].ravel() for i in range(len(puts))])


def _store(frame: Frame, access: Access, gets: list[Source], transposed: bool) -> None:
    frame.batch.stores += 1
    words = [value.reshape(-1, WARP) for value in take(frame, gets, frame.chosen())]
    halves = np.stack(words, axis=1).view(np.uint16).reshape(-1, len(gets), 8, 8)
    halves = np.ascontiguousarray(halves.swapaxes(2, 3)) if transposed else halves
    frame.batch.shared.store(access, halves.reshape(-1, 8).view(np.uint64))


def _multiply(instruction: Instruction, context: Any) -> Step:
    """Multiply matrices of each warp: ``mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 D, A, B, C``."""
    match = _MULTIPLY.fullmatch(instruction.opcode)
    if match is None:
        raise KeyError(instruction.opcode)
    (rows, k), saturates, kinds = map(int, match.groups()[:2]), match[3], match.groups()[3:]
    d, a, b, c = numbers = [Numbers(kind) for kind in kinds]
    names = [group(operand) for operand in instruction.operands]
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
