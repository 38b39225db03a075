"""Global memory: what the programs of a launch do to the elements of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .faults import LaneFault
from .regions import Access, Buffer, Region, Tensor, overlapping

MANY = -1  # in place of a program's number: several programs


class Traffic(NamedTuple):
    """The bytes that a launch touched."""

    loaded: int  # by all programs together; what threads of one load by the same instruction is counted once
    stored: int  # likewise
    distinct: int  # bytes that some thread loaded or stored, each counted once


class Order(NamedTuple):
    """What an atomic operation orders among programs."""

    acquires: bool  # whether what programs did that released the address comes before what this program does
    releases: bool


class GlobalMemory:
    """The tensors of a launch, and what its programs did to their elements.

    Two programs may run in any order, or at once: where one writes what another reads, or writes another value, the
    result depends on it.
    """

    def __init__(self, buffers: Mapping[int, Buffer], narrowest: int = 16):
        """``buffers`` are the tensors by the parameter that points to them, ``narrowest`` the bytes of an access."""
        self.regions = [Region(group, narrowest) for group in overlapping(buffers.values())]
        region_of = {id(buffer): region for region in self.regions for buffer in region.buffers}
        self.tensors = {position: Tensor(buffer, region_of[id(buffer)]) for position, buffer in buffers.items()}
        self.loaded = self.stored = 0
        self.running = -1  # the last program with an atomic operation that orders; these run one by one
        self.before = 0  # a bit for each program that a lock or the like puts before it
        self.released: dict[int, int] = {}  # of each address of a lock: such bits of the programs that released it
        self.is_before = np.zeros(0, np.bool_)  # the same as ``before``

    @property
    def traffic(self) -> Traffic:
        """Return the bytes that were touched so far."""
        distinct = sum(int(np.count_nonzero(region.touched)) * region.granule for region in self.regions)
        return Traffic(self.loaded, self.stored, distinct)

    def load(self, access: Access, programs: np.ndarray, origins: frozenset[int], swaps: bool = False) -> np.ndarray:
        """Return what lanes load, [lanes, components].

        ``programs`` has the program of each lane, ``origins`` the parameters that the address is computed from. One
        that ``swaps`` begins an atomic operation, which a compare-and-swap ends: no atomic operation races with it.
        """
        self.loaded += _bytes_of(access, programs)
        result = None
        for tensor, chosen in self._tensors(access, origins):
            part = access if chosen is None else _part(access, chosen)
            self._note_read(tensor, part, programs if chosen is None else programs[chosen], swaps)
            values = tensor.region.load(part)
            if chosen is None:
                return values
            result = np.zeros((len(access.lanes), access.components), values.dtype) if result is None else result
            result[chosen] = values
        assert result is not None
        return result

    def store(self, access: Access, values: np.ndarray, programs: np.ndarray, origins: frozenset[int]) -> None:
        """Store the values of lanes, [lanes, components]."""
        self.stored += _bytes_of(access, programs)
        for tensor, chosen in self._tensors(access, origins):
            if chosen is None:
                self._store(tensor, access, values, programs)
            else:
                self._store(tensor, _part(access, chosen), values[chosen], programs[chosen])

    def update(
        self, access: Access, programs: np.ndarray, origins: frozenset[int], change: Callable, order: Order
    ) -> np.ndarray:
        """Apply an atomic operation: ``change(i, value)`` returns what lane ``i`` makes of a value; return the old.

        What a program did that releases an address comes before what a program does that later acquires it.
        """
        if any(order):
            self._order(int(programs[0]), {*access.addresses.tolist()}, order)
        self.loaded += len(access.lanes) * access.itemsize
        self.stored += len(access.lanes) * access.itemsize
        old = np.zeros(len(access.lanes), f"u{access.itemsize}")
        for tensor, chosen in self._tensors(access, origins):
            all_or_some = np.arange(len(access.lanes)) if chosen is None else np.flatnonzero(chosen)
            self._note_update(tensor, _part(access, all_or_some), programs[all_or_some])
            for i in all_or_some:
                one = _part(access, np.array([i]))
                old[i] = tensor.region.load(one)[0, 0]
                tensor.region.store(one, np.asarray(change(i, old[i])).reshape(1, 1).view(old.dtype))
        return old

    def _tensors(self, access: Access, origins: frozenset[int]) -> Iterator[tuple[Tensor, np.ndarray | None]]:
        """Yield each tensor that lanes access, and which lanes do; None stands for all of them."""
        width = np.uint64(access.itemsize * access.components)
        misaligned = access.addresses % width != 0
        candidates = [self.tensors[i] for i in sorted(origins) if i in self.tensors] or [*self.tensors.values()]
        if misaligned.any():
            i = int(np.argmax(misaligned))
            names = "/".join(tensor.name for tensor in candidates) if origins else None
            past = access.addresses[i] % width
            reason = f"a misaligned access: {width} bytes at an address that is {past} past a multiple of {width}"
            raise LaneFault(reason, int(access.lanes[i]), names)
        left = np.ones(len(access.lanes), np.bool_)
        for tensor in candidates:
            held = tensor.holds(access) & left
            if held.all():
                yield tensor, None
                return
            if held.any():
                yield tensor, held
                left &= ~held
        if left.any():
            self._raise_outside(access, int(np.argmax(left)), candidates, bool(origins))

    def _raise_outside(self, access: Access, i: int, candidates: Sequence[Tensor], known: bool) -> None:
        address = int(access.addresses[i])
        if not candidates:
            raise LaneFault("an access to global memory, though no tensor was given", int(access.lanes[i]))
        tensor = min(candidates, key=lambda t: max(t.low - address, address - t.high, 0))
        places = (address - tensor.buffer.address) // tensor.itemsize
        shape = list(tensor.buffer.shape)
        what = f"{tensor.name}, which has shape {shape} and strides {list(tensor.buffer.strides)}"
        if not known:
            what = f"any tensor; the nearest is {what}"
        width = access.itemsize * access.components
        reason = f"an access outside the elements of {what}: {width} bytes, {places} elements from its first"
        raise LaneFault(reason, int(access.lanes[i]), tensor.name)

    def _note_read(self, tensor: Tensor, access: Access, programs: np.ndarray, swaps: bool) -> None:
        """Note which elements are read; raise a fault if another program wrote one of them."""
        region, indices = tensor.region, tensor.region.indices(access)
        region.touched[indices] = True
        if not region.is_written:
            return
        readers = np.broadcast_to((programs + 1)[:, None], indices.shape)
        self._check(region.writers[indices], readers, access, tensor, "reads what program {} wrote")
        if swaps:
            return
        if region.is_updated:
            self._check(region.updaters[indices], readers, access, tensor, "reads what program {} changes")
        self._note(region.readers, indices, readers)

    def _note(self, noted: np.ndarray, indices: np.ndarray, programs: np.ndarray) -> None:
        """Add programs, [lanes, granules], to those that were ``noted`` for the granules ``indices``."""
        before = self._unordered(noted[indices], programs[:, 0] - 1)
        noted[indices] = np.where((before == 0) | (before == programs), programs, MANY)
        several = noted[indices] != programs  # of lanes of several programs at once the last is noted
        noted[indices[several]] = MANY

    def _note_update(self, tensor: Tensor, access: Access, programs: np.ndarray) -> None:
        """Note which elements atomic operations change; raise a fault if another program reads or writes one."""
        self._forbid_writing(tensor, access)
        region, indices = tensor.region, tensor.region.indices(access)
        region.touched[indices], region.is_updated = True, True
        updaters = np.broadcast_to((programs + 1)[:, None], indices.shape)
        self._check(region.writers[indices], updaters, access, tensor, "changes what program {} wrote")
        self._check(region.readers[indices], updaters, access, tensor, "changes what program {} reads")
        self._note(region.updaters, indices, updaters)

    def _store(self, tensor: Tensor, access: Access, values: np.ndarray, programs: np.ndarray) -> None:
        self._forbid_writing(tensor, access)
        region, indices = tensor.region, tensor.region.indices(access)
        region.touched[indices] = True
        writers = np.broadcast_to((programs + 1)[:, None], indices.shape)
        self._check(region.readers[indices], writers, access, tensor, "writes what program {} reads")
        if region.is_updated:
            self._check(region.updaters[indices], writers, access, tensor, "writes what program {} changes")
        differs = (region.load(access) != values).any(axis=1)
        others = np.where(differs[:, None], region.writers[indices], 0)
        self._check(others, writers, access, tensor, "writes a value where program {} wrote another")
        region.store(access, values)
        region.writers[indices] = writers
        lost = (region.load(access) != values).any(axis=1)
        if lost.any():
            raise LaneFault(
                f"a race in global memory: two threads write different values to one element of {tensor.name}",
                int(access.lanes[np.argmax(lost)]),
                tensor.name,
            )

    def _check(self, others: np.ndarray, own: np.ndarray, access: Access, tensor: Tensor, what: str) -> None:
        """Raise a fault where ``others``, the programs that touched elements before, are not the own program."""
        conflicts = (others != 0) & (others != own)
        if conflicts.any():
            others = self._unordered(others, own[:, 0] - 1)
            conflicts = (others != 0) & (others != own)
        if conflicts.any():
            i, j = np.argwhere(conflicts)[0]
            other = int(others[i, j])
            text = what.replace("program {}", "several programs") if other == MANY else what.format(other - 1)
            raise LaneFault(
                f"a race in global memory: a program {text}, in {tensor.name}", int(access.lanes[i]), tensor.name
            )

    def _unordered(self, others: np.ndarray, programs: np.ndarray) -> np.ndarray:
        """Return ``others`` with 0 in place of programs that an atomic operation puts before the one that runs.

        What comes after the one that runs comes after those too, so it stands for them. Programs with atomic operations
        run one by one: that of the first lane is that of all.
        """
        if not self.before or programs[0] != self.running:
            return others
        known = (others > 0) & (others <= len(self.is_before))
        return np.where(known & self.is_before[np.where(known, others - 1, 0)], 0, others)

    def _order(self, program: int, addresses: set[int], order: Order) -> None:
        """Put the programs that released these addresses before one that acquires them now."""
        if program != self.running:
            self.running, self.before = program, 0
        for address in addresses:
            earlier = self.released.get(address, 0)
            if order.acquires:
                self.before |= earlier
            if order.releases:
                self.released[address] = earlier | self.before | 1 << program
        bits = np.frombuffer(self.before.to_bytes(program // 8 + 1, "little"), np.uint8)
        self.is_before = np.unpackbits(bits, bitorder="little").astype(np.bool_)

    @staticmethod
    def _forbid_writing(tensor: Tensor, access: Access) -> None:
        if not tensor.buffer.is_writable:
            raise LaneFault(f"a write to {tensor.name}, which is an input", int(access.lanes[0]), tensor.name)


def _bytes_of(access: Access, programs: np.ndarray) -> int:
    """Return the bytes that programs access by one instruction; lanes of one program may share them."""
    places = access.addresses + (programs - programs[0]).astype(np.uint64) * np.uint64(1 << 48)  # beyond any address
    if not (places[1:] > places[:-1]).all():
        places = np.unique(places)
    return len(places) * access.itemsize * access.components


def _part(access: Access, chosen: np.ndarray) -> Access:
    return access._replace(lanes=access.lanes[chosen], addresses=access.addresses[chosen])
