"""Move small matrices between the registers of a warp and shared memory: ``ldmatrix`` and ``stmatrix``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from .faults import LaneFault
from .frame import WARP, Frame, Source, Step, Target, address_of, parts_of, source, target
from .module import Instruction
from .regions import Access
from .warp import require

_LANES = np.arange(WARP)
_OPCODE = re.compile(r"(ld|st)matrix\.sync\.aligned\.(m8n8|m16n16)\.x([124])(\.trans)?\.shared(?:::cta)?\.(b16|b8)")


class _Rows(NamedTuple):
    """The rows of the matrices that an instruction moves, in shared memory."""

    get: Source  # the address that each lane gives
    shift: np.uint64  # bytes that are added to it
    matrices: int
    lines: int  # rows of a matrix
    transposed: bool

    def accesses(self, frame: Frame) -> Iterator[list[Access]]:
        """Yield for each register the accesses of its parts, or of all at once where they are side by side."""
        if frame.active is not None:
            require(frame, np.uint32(0xFFFFFFFF))
        addresses = frame.spread(self.get(frame)).astype(np.uint64) + self.shift
        lanes, given = frame.chosen(), self.lines * self.matrices
        givers = lanes.reshape(-1, WARP)[:, :given].ravel()
        misaligned = addresses[givers] % 16 != 0
        if misaligned.any():
            lane = int(givers[np.argmax(misaligned)])
            raise LaneFault("a misaligned access to shared memory: a row of a matrix has 16 bytes", lane)
        rows = addresses.reshape(-1, WARP)[:, :given].reshape(-1, self.matrices, self.lines)
        for parts in _parts_of_matrices(rows, self.transposed):
            yield [Access(lanes, part.ravel()[lanes], 4 // len(parts), 1) for part in parts]


def _matrix(instruction: Instruction, context: Any) -> Step:
    """Move 8 x 8 matrices of 16 bits, or load 16 x 16 matrices of bytes, transposed.

    A matrix is eight rows of 16 bytes, at the addresses of eight lanes: those of matrix ``i`` are lanes ``8i`` on.
    Register ``i`` of lane ``t`` holds elements ``2(t % 4)`` and the next of row ``t / 4`` of matrix ``i``; transposed,
    of column ``t / 4``. Of a matrix of bytes, rows are at the addresses of 16 lanes, and two registers hold elements
    ``4(t % 4)`` and the next three of columns ``t / 4`` and ``t / 4 + 8``. It is the lane with the register that reads
    or writes these elements.
    """
    names, opcode = context.names, instruction.opcode
    match = _OPCODE.fullmatch(opcode)
    if match is None:
        raise KeyError(opcode)
    loads, count, transposed = match[1] == "ld", int(match[3]), bool(match[4])
    lines = 16 if match[2] == "m16n16" else 8
    if (lines == 16 and not (loads and transposed and count < 4)) or (lines == 16) != (match[5] == "b8"):
        raise KeyError(opcode)
    group, where = instruction.operands if loads else instruction.operands[::-1]
    base, offset = address_of(where)
    rows = _Rows(source(names, base, "b32"), np.uint64(offset % (1 << 64)), count, lines, transposed)
    if loads:
        return _load(rows, [target(names, name, "b32") for name in parts_of(group)])
    return _store(rows, [source(names, name, "b32") for name in parts_of(group)])


def _load(rows: _Rows, puts: Sequence[Target]) -> Step:
    def load(frame):
        shared, lanes = frame.batch.shared, frame.chosen()
        for put, parts in zip(puts, rows.accesses(frame), strict=True):
            value = np.zeros(frame.batch.lanes, np.uint32)
            for i, part in enumerate(parts):
                value[lanes] |= shared.load(part)[:, 0].astype(np.uint32) << np.uint32(32 // len(parts) * i)
            put(frame, value)

    return load


def _store(rows: _Rows, gets: Sequence[Source]) -> Step:
    def store(frame):
        frame.batch.stores += 1
        shared, lanes = frame.batch.shared, frame.chosen()
        for each, parts in zip(gets, rows.accesses(frame), strict=True):
            words = np.ascontiguousarray(frame.spread(each(frame)).view(np.uint32)[lanes])
            for i, part in enumerate(parts):
                shared.store(part, words.view(f"u{part.itemsize}").reshape(len(lanes), -1)[:, i : i + 1])

    return store


def _parts_of_matrices(rows: np.ndarray, transposed: bool) -> Iterator[list[np.ndarray]]:
    """Yield for each matrix the addresses of what its register holds in each lane, [warps, 32]; ``rows`` are of it."""
    outer, inner = _LANES // 4, _LANES % 4
    for i in range(rows.shape[1]):
        if rows.shape[2] == 16:
            for column in (outer, outer + 8):
                yield [rows[:, i, 4 * inner + byte] + column.astype(np.uint64) for byte in range(4)]
        elif transposed:
            yield [rows[:, i, 2 * inner + half] + (2 * outer).astype(np.uint64) for half in (0, 1)]
        else:
            yield [rows[:, i, outer] + (4 * inner).astype(np.uint64)]


INSTRUCTIONS: dict[str, Callable[[Instruction, Any], Step]] = {"ldmatrix": _matrix, "stmatrix": _matrix}
