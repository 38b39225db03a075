"""Matrices that a warp holds in registers, multiplied: ``mma.sync``."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from .fragments import Numbers, accumulators, left, registers_of, right
from .frame import WARP, Frame, Source, Step, Target, parts_of, source, target
from .module import Instruction
from .warp import require

_ALL = np.uint32(0xFFFFFFFF)
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


INSTRUCTIONS: dict[str, Callable[[Instruction, Any], Step]] = {"mma": _multiply}
