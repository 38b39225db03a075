"""The memory of temporaries: one piece for each thread, which all plans use in turn, so that it stays in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import prod
from threading import local

import torch
from torch import Tensor

from .slots import Program, Slot
from .space import shape_of

THREAD_BYTES = 1 << 26  # of a thread, of which only what is used is there; a block that takes more gets its own
ALIGNMENT = 64  # bytes of a cache line


class _Thread(local):
    """What one thread has."""

    is_busy = False  # whether a loop uses the memory: a finaliser, say, or a signal's handler may call in its middle

    @cached_property
    def memory(self) -> Tensor:
        """The memory, made at the first call that uses it: at an import it would be a fake tensor under some modes."""
        return _memory_of(THREAD_BYTES)


THREAD = _Thread()


class Workspace:
    """The temporaries of a program in one thread, in memory that other programs use before and after.

    So it is kept for a thread for as long as the program is: another thread that is then called the same has it alone.
    """

    __slots__ = ("_memory", "_offsets", "_program", "is_shared", "tables")

    def __init__(self, full: Sequence[int], program: Program):
        """Make it for blocks of the shape ``full`` and smaller ones, in the thread that it is made in."""
        self._program = program
        self._offsets = _offsets(full, program.slots)
        size, shared = self._offsets[-1], THREAD.memory
        self.is_shared = size <= len(shared) and not THREAD.is_busy
        self._memory = shared if self.is_shared else _memory_of(size)
        self.tables: dict[tuple[int, ...], list] = {}  # by the shape of a block: temporaries, and then constants

    def add(self, shape: tuple[int, ...]) -> list:
        """Return the table for a block of another shape."""
        places = zip(self._offsets, self._program.slots, strict=False)
        with torch.inference_mode(False):  # as the memory is made
            views = [self._view(offset, slot, shape_of(shape, slot.varies)) for offset, slot in places]
        self.tables[shape] = [*views, *self._program.constants]
        return self.tables[shape]

    def _view(self, offset: int, slot: Slot, shape: list[int]) -> Tensor:
        flat = self._memory[offset : offset + prod(shape) * slot.dtype.itemsize]
        return flat.view(slot.dtype).view(shape)


def _memory_of(size: int) -> Tensor:
    """Return so many bytes; what were made in inference mode could not be written outside of it."""
    with torch.inference_mode(False):
        return torch.empty(size, dtype=torch.uint8, device="cpu")


def _offsets(full: Sequence[int], slots: Sequence[Slot]) -> list[int]:
    """Return where each temporary starts, in bytes, and where the last one ends."""
    offsets = [0]
    for slot in slots:
        size = prod(shape_of(full, slot.varies)) * slot.dtype.itemsize
        offsets.append(offsets[-1] + -(-size // ALIGNMENT) * ALIGNMENT)
    return offsets
