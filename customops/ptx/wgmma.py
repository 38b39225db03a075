"""Matrices that a group of four warps multiplies, of which two may be in shared memory: ``wgmma``, of sm_90.

The GPU does the work later, until ``wgmma.wait_group``. Here it is done where it is asked for, so a write to shared
memory that comes too early, before the wait but after a barrier, is not seen; nor is a missing ``fence.proxy.async`` or
``wgmma.fence``. A missing barrier is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from .faults import LaneFault
from .fragments import Numbers, accumulators, left, registers_of
from .frame import Frame, Source, Step, parts_of, source, target
from .mma import give, take
from .module import Instruction
from .regions import Access

_GROUP = 128  # lanes
_CHUNK = 16  # bytes: what stays together in shared memory
_DEPTH = 32  # bytes of a row of A, of a column of B
_OPCODE = re.compile(
    r"mma_async\.sync\.aligned\.m64n(\d+)k(\d+)\.(f16|f32|s32)"
    r"\.(f16|bf16|tf32|e4m3|e5m2|s8|u8)\.(f16|bf16|tf32|e4m3|e5m2|s8|u8)(\.satfinite)?"
)

Matrices = Callable[[Frame, np.ndarray], np.ndarray]  # of lanes [groups, 128]: a matrix of each group


def _instruction(instruction: Instruction, context: Any) -> Step:
    name = instruction.opcode.removeprefix("wgmma.")
    if name in ("fence.sync.aligned", "commit_group.sync.aligned", "wait_group.sync.aligned"):
        return lambda frame: None
    match = _OPCODE.fullmatch(name)
    if match is None:
        raise KeyError(instruction.opcode)
    n, k, *kinds, saturates = match.groups()
    d, a, b = (Numbers(kind) for kind in kinds)
    if int(k) * a.bits != 8 * _DEPTH or a.bits != b.bits:
        raise KeyError(instruction.opcode)
    return _multiply(instruction, int(n), (d, a, b), bool(saturates), context)


def _multiply(
    instruction: Instruction, n: int, numbers: tuple[Numbers, Numbers, Numbers], saturates: bool, context: Any
) -> Step:
    """Multiply: ``D, A, B, whether to add what is in D {, sign of A, sign of B {, transposed A, transposed B}}``.

    ``n`` is the number of columns, ``numbers`` are the types of D, A and B.
    """
    (registers, of_a, of_b, adds, *rest), (d, a, b) = instruction.operands, numbers
    sign, transposed = _signs(rest), [bool(int(x)) for x in rest[2:]]
    puts = [target(context.names, name, "b32") for name in parts_of(registers)]
    gets = [source(context.names, name, "b32") for name in parts_of(registers)]
    add = source(context.names, adds, "pred")
    x = _left(of_a, a, any(transposed[:-1]), context)
    y = _in_shared(source(context.names, of_b, "b64"), b, n, any(transposed[-1:]))

    def step(frame):
        lanes = _groups(frame)
        z = sign * (x(frame, lanes) @ y(frame, lanes).swapaxes(1, 2))
        z = z.reshape(-1, 16, n)  # of each warp
        wanted = frame.spread(add(frame))[lanes.ravel()][::32, None, None]
        z = np.where(wanted, z + accumulators(take(frame, gets, lanes.ravel()), d, 16), z)
        give(frame, puts, lanes.ravel(), registers_of(z, d, saturates))

    return step


def _signs(operands: list[str]) -> float:
    """Return the product of the signs that are given to A and B."""
    signs = [int(operand) for operand in operands[:2]]
    if not {*signs} <= {1, -1}:
        raise ValueError(f"signs are 1 or -1, not {signs}")
    return float(np.prod(signs))


def _groups(frame: Frame) -> np.ndarray:
    """Return the lanes that execute the instruction, [groups, 128]; raise a fault if they are no whole groups."""
    lanes = frame.chosen()
    whole = frame.batch.threads % _GROUP == 0
    if frame.active is not None:
        active = frame.active.reshape(-1, _GROUP) if whole else frame.active[None]
        whole = whole and bool((active.any(axis=1) == active.all(axis=1)).all())
    if not whole:
        raise LaneFault("not all threads of a group of four warps take part in its instruction", int(lanes[0]))
    return lanes.reshape(-1, _GROUP)


def _left(operand: str, numbers: Numbers, transposed: bool, context: Any) -> Matrices:
    """Return what gives A, [groups, 64, k], from registers or shared memory."""
    if not operand.startswith("{"):
        return _in_shared(source(context.names, operand, "b64"), numbers, 64, transposed)
    gets = [source(context.names, name, "b32") for name in parts_of(operand)]

    def matrices(frame, lanes):
        of_warps = left(take(frame, gets, lanes.ravel()), numbers, 16)
        return of_warps.reshape(len(lanes), 64, -1)

    return matrices


def _in_shared(descriptor: Source, numbers: Numbers, rows: int, transposed: bool) -> Matrices:
    """Return what gives A, or B with rows and columns exchanged: [groups, rows, k].

    The 16 bytes of a chunk lie together, elements of a row, or of a column if ``transposed``. Each chunk is read by two
    lanes, of two warps: so a thread of any warp that wrote it, or will, needs a barrier.
    """
    per_chunk = _CHUNK * 8 // numbers.bits
    depth = _DEPTH * 8 // numbers.bits
    lines, length = (depth, rows) if transposed else (rows, depth)
    line, chunk = (axis.ravel() for axis in np.indices((lines, length // per_chunk)))
    reader = np.arange(len(line)) % _GROUP
    readers = np.concatenate([reader, reader ^ _GROUP // 2])

    def matrices(frame, lanes):
        given = frame.spread(descriptor(frame))[lanes]
        if (given != given[:, :1]).any():
            raise LaneFault("the threads of a group of four warps have different descriptors", int(lanes[0, 0]))
        addresses = np.stack([_addresses(int(one), line, chunk, transposed) for one in given[:, 0]])
        twice = np.tile(addresses.astype(np.uint64), 2).ravel()
        chunks = frame.batch.shared.load(Access(lanes[:, readers].ravel(), twice, 8, 2))
        chunks = np.ascontiguousarray(chunks.reshape(len(lanes), 2, -1)[:, 0])
        found = numbers.values(chunks.view(f"u{numbers.bits // 8}")).reshape(len(lanes), lines, length)
        return found.swapaxes(1, 2) if transposed else found

    return matrices


def _addresses(descriptor: int, line: np.ndarray, chunk: np.ndarray, transposed: bool) -> np.ndarray:
    """Return where the chunks of lines are, by the layout that a descriptor says.

    Eight lines that follow one another in steps of the width of the swizzle, which is 16 where there is none, are
    repeated in steps of ``stride``; what is wider than that goes on in steps of ``leading``. The swizzle exchanges the
    chunks of a line by its number among the eight.
    """
    start, leading, stride = ((descriptor >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
    if descriptor >> 49 & 7:
        raise LaneFault("a matrix in shared memory whose swizzle has an offset is not known")
    bits = (0, 3, 2, 1)[descriptor >> 62 & 3]  # of the address that the swizzle changes
    if transposed and not bits:
        leading, stride = stride, leading
    across = 1 << bits  # chunks
    offset = line % 8 * (_CHUNK * across) + line // 8 * stride + chunk % across * _CHUNK + chunk // across * leading
    address = start + offset
    return address ^ (address >> 3 & (across - 1) << 4)


INSTRUCTIONS: dict[str, Callable[[Instruction, Any], Step]] = {"wgmma": _instruction}
