"""Copies from global to shared memory that a thread starts, and waits for later: ``cp.async``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .faults import LaneFault
from .frame import Frame, Step, access_of, address_of, source
from .module import Instruction
from .regions import Access

_WORD = 4  # bytes: copies have 4, 8 or 16


class Copy(NamedTuple):
    """What lanes have started to copy."""

    access: Access  # to shared memory
    values: np.ndarray  # [lanes, words]
    groups: np.ndarray  # of each lane: the number of the group that the copy belongs to


def _start(instruction: Instruction, context: Any) -> Step:
    """Start a copy: ``cp.async.cg.shared.global [to], [from], size {, read}``; what is not read is zero."""
    names, (to, of, size, *read) = context.names, instruction.operands[:4]
    words = int(size, 0) // _WORD
    (to_base, to_offset), (of_base, of_offset) = address_of(to), address_of(of)
    where, get = source(names, to_base, "b32"), source(names, of_base, "b64")
    count = source(names, read[0], "u32") if read else None
    origins = context.origins.get(of_base, frozenset())

    def step(frame):
        batch = frame.batch
        access = access_of(frame, where(frame), to_offset, _WORD, words)
        values = np.zeros((len(access.lanes), words), np.uint32)
        sizes = np.full(batch.lanes, _WORD * words) if count is None else frame.spread(count(frame))
        if not np.isin(sizes[access.lanes], (0, _WORD * words)).all():
            raise LaneFault("an asynchronous copy that reads a part is not known", int(access.lanes[0]))
        reads = sizes[access.lanes] > 0
        if reads.any():
            full = access_of(frame, get(frame), of_offset, _WORD, words)
            part = full._replace(lanes=full.lanes[reads], addresses=full.addresses[reads])
            values[reads] = batch.memory.load(part, batch.programs[part.lanes], origins)
        batch.shared.expect(access)
        batch.copies.append(Copy(access, values, batch.copy_groups[access.lanes]))

    return step


def _commit(frame: Frame) -> None:
    """Close the group of the copies that the lanes have started."""
    frame.batch.copy_groups[frame.chosen()] += 1


def _wait(frame: Frame, pending: int) -> None:
    """Finish the copies of the lanes, but for those of the last ``pending`` groups."""
    batch = frame.batch
    active = np.ones(batch.lanes, np.bool_) if frame.active is None else frame.active
    left = []
    for copy in batch.copies:
        lanes = copy.access.lanes
        ready = active[lanes] & (copy.groups < batch.copy_groups[lanes] - pending)
        if ready.any():
            batch.shared.store(_lanes(copy.access, ready), copy.values[ready])
        if not ready.all():
            left.append(Copy(_lanes(copy.access, ~ready), copy.values[~ready], copy.groups[~ready]))
    batch.copies = left
    batch.stores += 1


def _lanes(access: Access, chosen: np.ndarray) -> Access:
    return access._replace(lanes=access.lanes[chosen], addresses=access.addresses[chosen])


def _copy(instruction: Instruction, context: Any) -> Step:
    name = instruction.opcode.removeprefix("cp.async.")
    if name == "commit_group":
        return _commit
    if name in ("wait_group", "wait_all"):
        pending = int(instruction.operands[0]) if name == "wait_group" else 0
        return lambda frame: _wait_all(frame) if name == "wait_all" else _wait(frame, pending)
    if not name.startswith(("ca.shared", "cg.shared")) or "mbarrier" in name:
        raise KeyError(instruction.opcode)
    return _start(instruction, context)


def _wait_all(frame: Frame) -> None:
    _commit(frame)
    _wait(frame, 0)


INSTRUCTIONS: dict[str, Callable[[Instruction, Any], Step]] = {"cp": _copy}
