"""What the threads of a warp do together: shuffles, votes and reductions."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from .arithmetic import operation
from .faults import LaneFault
from .frame import WARP, Frame, Step, source, target
from .module import Instruction

_LANES = np.arange(WARP)


def synchronize(frame: Frame, members: Any) -> None:
    """Pass a barrier of the warp, for ``bar.warp.sync members``."""
    require(frame, members)
    frame.batch.shared.pass_barrier(frame.chosen(), of_block=frame.batch.threads == WARP)


def require(frame: Frame, members: Any) -> np.ndarray | None:
    """Return which lanes take part, [warps, 32], None for all; raise a fault if not all ``members`` do.

    ``members`` has a bit for each lane of the warp.
    """
    if frame.active is None and members.ndim == 0 and int(members) & 0xFFFFFFFF == 0xFFFFFFFF:
        return None
    active = np.ones(frame.batch.lanes, np.bool_) if frame.active is None else frame.active
    active, needed = active.reshape(-1, WARP), frame.spread(members).reshape(-1, WARP)
    wrong = active & ((_bits(active)[:, None] & needed) != needed)
    if wrong.any():
        raise LaneFault("threads that take part in an instruction of the warp do not reach it", int(np.argmax(wrong)))
    wrong = active & (needed >> _LANES.astype(np.uint32) & 1 == 0)
    if wrong.any():
        raise LaneFault(
            "a thread executes an instruction of the warp that has it not for a member", int(np.argmax(wrong))
        )
    return active


def _bits(active: np.ndarray) -> np.ndarray:
    """Return the lanes of each warp as the bits of a number: [warps], uint32."""
    return (active.astype(np.uint32) << _LANES.astype(np.uint32)).sum(axis=1, dtype=np.uint32)


def _shuffle(instruction: Instruction, context: Any) -> Step:
    """Read a register of another lane: ``shfl.sync.mode.b32 d|p, a, b, c, members``."""
    names, (to, *operands) = context.names, instruction.operands
    _, _, mode, kind = instruction.opcode.split(".")
    to, _, in_range = to.partition("|")
    put, note = target(names, to, kind), target(names, in_range or "_", "pred")
    get, *gets = [source(names, operand, kind) for operand in operands]

    def step(frame):
        value, lane, clamp, members = (frame.spread(get(frame)), *[each(frame) for each in gets])
        active = require(frame, members)
        chosen, inside = _shuffle_lanes(mode, frame.spread(lane), frame.spread(clamp))
        if active is not None:
            _require_source(active, chosen)
        put(frame, np.take_along_axis(value.reshape(-1, WARP), chosen, axis=1).ravel())
        note(frame, inside.ravel())

    return step


def _shuffle_lanes(mode: str, lane: np.ndarray, clamp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which lane each reads from, and whether that was in range: [warps, 32].

    ``clamp`` has the last lane of a segment in its low bits, and the bits that name the segment in bits 8 to 12.
    """
    b, c = lane.reshape(-1, WARP).astype(np.int64) & 31, clamp.reshape(-1, WARP).astype(np.int64)
    segment = c >> 8 & 31
    last = (_LANES & segment) | (c & 31 & ~segment)
    first = _LANES & segment
    if mode == "up":
        wanted = _LANES - b
        inside = wanted >= last
    elif mode == "down":
        wanted = _LANES + b
        inside = wanted <= last
    elif mode == "bfly":
        wanted = _LANES ^ b
        inside = wanted <= last
    else:
        wanted = first | (b & ~segment)
        inside = wanted <= last
    return np.where(inside, wanted, _LANES), inside


def _require_source(active: np.ndarray, chosen: np.ndarray) -> None:
    absent = active & ~np.take_along_axis(active, chosen, axis=1)
    if absent.any():
        i = int(np.argmax(absent))
        raise LaneFault(f"a shuffle reads lane {chosen.ravel()[i]}, which takes no part", i)


def _vote(instruction: Instruction, context: Any) -> Step:
    """Ask all lanes: ``vote.sync.mode.kind d, p, members``."""
    names, (to, predicate, members) = context.names, instruction.operands
    _, _, mode, kind = instruction.opcode.split(".")
    put, get, those = target(names, to, kind), source(names, predicate, "pred"), source(names, members, "b32")

    def step(frame):
        members = frame.spread(those(frame)).reshape(-1, WARP)
        require(frame, those(frame))
        votes, needed = _bits(frame.spread(get(frame)).reshape(-1, WARP))[:, None], members
        yes, none = votes & needed == needed, votes & needed == 0
        ballot = votes & needed
        put(frame, {"all": yes, "any": ~none, "uni": yes | none, "ballot": ballot}[mode].ravel())

    return step


def _active_mask(instruction: Instruction, context: Any) -> Step:
    put = target(context.names, instruction.operands[0], "b32")

    def step(frame):
        active = np.ones(frame.batch.lanes, np.bool_) if frame.active is None else frame.active
        put(frame, np.repeat(_bits(active.reshape(-1, WARP)), WARP))

    return step


def _match(instruction: Instruction, context: Any) -> Step:
    """Find the lanes that have the same value: ``match.any.sync.kind d, a, members``."""
    names, (to, of, members) = context.names, instruction.operands
    if not re.fullmatch(r"match\.any\.sync\.b(32|64)", instruction.opcode):
        raise KeyError(instruction.opcode)
    kind = instruction.opcode.split(".")[-1]
    put, get, those = target(names, to, "b32"), source(names, of, kind), source(names, members, "b32")

    def step(frame):
        require(frame, those(frame))
        values, members = frame.spread(get(frame)).reshape(-1, WARP), frame.spread(those(frame))
        equal = (values[:, :, None] == values[:, None, :]).astype(np.uint32) << _LANES.astype(np.uint32)
        put(frame, equal.sum(axis=2, dtype=np.uint32).ravel() & members)

    return step


_REDUCTIONS: dict[str, np.ufunc] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def _reduce(instruction: Instruction, context: Any) -> Step:
    """Reduce a register over the members: ``redux.sync.op.kind d, a, members``."""
    names, (to, of, members) = context.names, instruction.operands
    _, _, name, *modifiers, kind = instruction.opcode.split(".")
    if modifiers and kind != "f32":
        raise KeyError(instruction.opcode)
    put, get, those = target(names, to, kind), source(names, of, kind), source(names, members, "b32")
    if kind == "f32":
        reduce = partial(_reduce_floats, operation(".".join([name, *modifiers, kind])).function)
    else:
        reduce = partial(_REDUCTIONS[name].reduce, axis=1)

    def step(frame):
        require(frame, those(frame))
        values, masks = frame.spread(get(frame)).reshape(-1, WARP), frame.spread(those(frame)).reshape(-1, WARP)
        result = np.zeros_like(values)
        for members in np.unique(masks[masks != 0]):
            chosen = members >> _LANES.astype(np.uint32) & 1 != 0
            result = np.where(masks == members, reduce(values[:, chosen])[:, None], result)
        put(frame, result.astype(values.dtype).ravel())

    return step


def _reduce_floats(function: Callable, values: np.ndarray) -> np.ndarray:
    """Reduce the columns of ``values`` by the least or the greatest of two."""
    result = values[:, 0]
    for column in values.T:
        result = function(result, column)
    return result


def _elect(instruction: Instruction, context: Any) -> Step:
    """Choose the first of the members: ``elect.sync d|p, members``."""
    names, (to, members) = context.names, instruction.operands
    to, _, predicate = to.partition("|")
    put, choose, those = target(names, to, "b32"), target(names, predicate, "pred"), source(names, members, "b32")

    def step(frame):
        require(frame, those(frame))
        every = frame.spread(those(frame)).reshape(-1, WARP) >> _LANES.astype(np.uint32) & 1 != 0
        first = np.argmax(every, axis=1)[:, None]
        put(frame, np.repeat(first.ravel().astype(np.uint32), WARP))
        choose(frame, (first == _LANES).ravel())

    return step


INSTRUCTIONS: dict[str, Callable[[Instruction, Any], Step]] = {
    "shfl": _shuffle,
    "vote": _vote,
    "activemask": _active_mask,
    "match": _match,
    "redux": _reduce,
    "elect": _elect,
}
