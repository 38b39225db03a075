"""Shared memory of the blocks that run together, and the order that barriers give to what threads do in it."""

from __future__ import annotations

import numpy as np

from .faults import LaneFault
from .regions import Access

WARP = 32  # threads
_LANE = (1 << 21) - 1  # the bits of a stamp that are the lane + 1
_OTHERS = 1 << 20  # set beside a lane: others of its warp too
_WARPS = _LANE  # in place of a lane: several warps
_EXPECTED = -1  # in place of a stamp of a write: an asynchronous copy that has not arrived


class SharedMemory:
    """The shared memory of every block, one after the other.

    Each byte has a stamp of its last write and of its last read: the lane, and how many barriers of the block and of
    its warp had passed. Two accesses of one byte by two threads, of which one writes, need a barrier between them that
    both threads pass.
    """

    def __init__(self, size: int, blocks: int, threads: int):
        """``size`` is in bytes; each of ``blocks`` has ``threads``."""
        self.size = size
        pitch = -(-size // 16) * 16  # from one block's to the next
        self.starts = np.repeat(np.arange(blocks, dtype=np.int64) * pitch, threads)  # of each lane's block
        self.bytes = np.zeros(blocks * pitch, np.uint8)
        self.views = {n: self.bytes.view(f"u{n}") for n in (1, 2, 4, 8)}
        self.writes = np.zeros(blocks * pitch, np.int64)  # stamps, 0 for none
        self.reads = np.zeros(blocks * pitch, np.int64)
        self.updates = np.zeros(blocks * pitch, np.int64)  # by atomic operations
        self.is_updated = False  # whether there are any
        lanes = blocks * threads
        self.lanes = np.arange(lanes, dtype=np.int64)
        self.block_barriers = np.zeros(lanes, np.int64)  # that each lane has passed
        self.warp_barriers = np.zeros(lanes, np.int64)  # with those of the block

    def pass_barrier(self, lanes: np.ndarray | slice, of_block: bool) -> None:
        """Note that these lanes passed a barrier of their block, or of their warp."""
        self.warp_barriers[lanes] += 1
        if of_block:
            self.block_barriers[lanes] += 1

    def load(self, access: Access) -> np.ndarray:
        """Return what lanes load: [lanes, components], unsigned."""
        places = self._places(access)
        writes = self.writes[places]
        unwritten = (writes <= 0).any(axis=1)
        if unwritten.any():
            i = int(np.argmax(unwritten))
            what = "that an asynchronous copy has yet to write" if (writes[i] < 0).any() else "that was never written"
            raise LaneFault(f"a read of shared memory {what}", int(access.lanes[i]))
        self._check(writes, access, "reads what another thread wrote")
        if self.is_updated:
            self._check(self.updates[places], access, "reads what another thread changes")
        self._note(self.reads, places, access.lanes)
        return self.views[access.itemsize][self._components(access)]

    def store(self, access: Access, values: np.ndarray) -> bool:
        """Store the values of lanes, [lanes, components]; return whether that changes any."""
        places, components = self._places(access), self._components(access)
        self._check(self.reads[places], access, "writes what another thread reads")
        if self.is_updated:
            self._check(self.updates[places], access, "writes what another thread changes")
        view = self.views[access.itemsize]
        writes = self.writes[places]
        differs = (writes <= 0).any(axis=1) | (view[components] != values).any(axis=1)
        earlier = np.where(differs[:, None] & (writes > 0), writes, 0)
        self._check(earlier, access, "writes what another thread wrote")
        view[components] = values
        lost = (view[components] != values).any(axis=1)
        if lost.any():
            i = int(access.lanes[np.argmax(lost)])
            raise LaneFault("a race in shared memory: two threads write different values to one address", i)
        self.writes[places] = self._stamps(access.lanes)[:, None]
        return bool(differs.any())

    def expect(self, access: Access) -> None:
        """Note that an asynchronous copy will write what lanes access: until it has, nobody may read it."""
        places = self._places(access)
        self._check(self.reads[places], access, "lets a copy write what another thread reads")
        self.writes[places] = _EXPECTED

    def update(self, access: Access, change) -> np.ndarray:
        """Apply an atomic operation: ``change(i, value)`` returns what lane ``i`` makes of a value; return the old."""
        places, components = self._places(access), self._components(access)[:, 0]
        unwritten = (self.writes[places] <= 0).any(axis=1)
        if unwritten.any():
            lane = int(access.lanes[np.argmax(unwritten)])
            raise LaneFault("an atomic operation on shared memory that was never written", lane)
        self._check(self.writes[places], access, "changes what another thread wrote")
        self._check(self.reads[places], access, "changes what another thread reads")
        self._note(self.updates, places, access.lanes)
        self.is_updated = True
        view = self.views[access.itemsize]
        old = np.zeros(len(access.lanes), view.dtype)
        for i, component in enumerate(components):
            old[i] = view[component]
            view[component] = np.asarray(change(i, old[i])).reshape(1).view(view.dtype)[0]
        return old

    def _places(self, access: Access) -> np.ndarray:
        """Return the bytes of each lane's access: [lanes, bytes]."""
        width = access.itemsize * access.components
        addresses = access.addresses.astype(np.int64)
        outside = (addresses < 0) | (addresses + width > self.size)
        if outside.any():
            i = int(np.argmax(outside))
            reason = f"an access outside shared memory: {width} bytes at {addresses[i]} of {self.size}"
            raise LaneFault(reason, int(access.lanes[i]))
        misaligned = addresses % width != 0
        if misaligned.any():
            i = int(np.argmax(misaligned))
            reason = f"a misaligned access to shared memory: {width} bytes at {addresses[i]}"
            raise LaneFault(reason, int(access.lanes[i]))
        return (self.starts[access.lanes] + addresses)[:, None] + np.arange(width)

    def _components(self, access: Access) -> np.ndarray:
        first = (self.starts[access.lanes] + access.addresses.astype(np.int64)) // access.itemsize
        return first[:, None] + np.arange(access.components)

    def _stamps(self, lanes: np.ndarray) -> np.ndarray:
        return self.block_barriers[lanes] << 42 | self.warp_barriers[lanes] << 21 | (lanes + 1)

    def _check(self, stamps: np.ndarray, access: Access, what: str) -> None:
        """Raise a fault where another thread left one of ``stamps``, and no barrier is between."""
        lanes = access.lanes[:, None]
        foreign = (stamps != 0) & (stamps & _LANE != lanes + 1)
        if not foreign.any():
            return
        same_warp = _is_same_warp(stamps, lanes)
        passed_block = stamps >> 42 < self.block_barriers[lanes]
        passed_warp = same_warp & ((stamps >> 21 & _LANE) < self.warp_barriers[lanes])
        racing = foreign & ~passed_block & ~passed_warp
        if racing.any():
            i = int(np.argmax(racing.any(axis=1)))
            raise LaneFault(
                f"a race in shared memory: a thread {what}, without a barrier between", int(access.lanes[i])
            )

    def _note(self, stamps: np.ndarray, places: np.ndarray, lanes: np.ndarray) -> None:
        """Leave stamps, of reads or updates, which say where several lanes come without a barrier between."""
        lanes = lanes[:, None]
        own = np.broadcast_to(self._stamps(lanes), places.shape)
        stamps[places] = self._joined(stamps[places], own, lanes)
        for several_warps in (False, True):  # of lanes that come at once the last one's is there
            now = stamps[places]
            lost = (now != own) & (_is_same_warp(now, lanes) != several_warps)
            stamps[places[lost]] = now[lost] | (_WARPS if several_warps else _OTHERS)

    def _joined(self, before: np.ndarray, own: np.ndarray, lanes: np.ndarray) -> np.ndarray:
        """Return the stamps of places with the stamps ``before`` to which ``lanes`` come now."""
        same_warp = _is_same_warp(before, lanes)
        same_time = before >> 21 == own >> 21
        own = np.where(same_warp & same_time & (before & _LANE != lanes + 1), own | _OTHERS, own)
        same_block_barriers = (before != 0) & (before >> 42 == own >> 42)
        return np.where(same_block_barriers & ~same_warp, own | _WARPS, own)


def _is_same_warp(stamps: np.ndarray, lanes: np.ndarray) -> np.ndarray:
    """Return whether each stamp is of the warp of a lane alone."""
    others = stamps & _LANE
    return (others != _WARPS) & (((others & ~_OTHERS) - 1) // WARP == lanes // WARP)
