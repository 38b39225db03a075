"""Global memory: the elements of the tensors that a kernel is given, and what its programs did to each."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from .faults import LaneFault

MANY = -1  # in place of a program's number: several programs

_PAGE = 32  # bytes: the widest access; an address rounded down to it is on the same page of memory


class Buffer(NamedTuple):
    """The elements of a tensor."""

    name: str  # the parameter of the kernel
    address: int  # of the first element
    itemsize: int  # bytes of an element
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements
    is_writable: bool = True

    @property
    def dims(self) -> list[tuple[int, int]]:
        """Return stride and size of each axis that has more than one element."""
        return [(stride, n) for stride, n in zip(self.strides, self.shape, strict=True) if n > 1]

    @property
    def extent(self) -> tuple[int, int]:
        """Return the address of the lowest byte and that after the highest."""
        if 0 in self.shape:
            return self.address, self.address
        reach = [(n - 1) * stride * self.itemsize for stride, n in self.dims]
        low, high = sum(r for r in reach if r < 0), sum(r for r in reach if r > 0)
        return self.address + low, self.address + high + self.itemsize

    def elements(self) -> np.ndarray:
        """Return the offset of each element from the lowest byte, in elements: int64, with repetitions."""
        offsets = np.zeros(1, np.int64)
        for stride, n in self.dims:
            steps = np.arange(n if stride else 1, dtype=np.int64) * abs(stride)
            offsets = (offsets[:, None] + steps).ravel()
        return offsets


class Traffic(NamedTuple):
    """The bytes that a launch touched."""

    loaded: int  # by all programs together; what threads of one load by the same instruction is counted once
    stored: int  # likewise
    distinct: int  # bytes that some thread loaded or stored, each counted once


class Access(NamedTuple):
    """A load or store by lanes."""

    lanes: np.ndarray  # which lanes, int
    addresses: np.ndarray  # of each, uint64
    itemsize: int  # bytes of each component
    components: int  # of each lane, which follow one another


class Region:
    """The memory of tensors that overlap one another, or of one tensor."""

    def __init__(self, buffers: Sequence[Buffer]):
        extents = [buffer.extent for buffer in buffers]
        self.low, self.high = min(low for low, _ in extents), max(high for _, high in extents)
        self.start = self.low - self.low % _PAGE
        size = -(-(self.high - self.start) // _PAGE) * _PAGE if self.high > self.low else 0
        self.bytes = _bytes_at(self.start, size)
        self.views = {n: self.bytes.view(f"u{n}") for n in (1, 2, 4, 8)}
        self.granule = min(buffer.itemsize for buffer in buffers)
        if any((buffer.address - self.start) % self.granule for buffer in buffers):
            self.granule = 1
        self.is_written = any(buffer.is_writable for buffer in buffers)
        granules = -(-size // self.granule)
        self.touched = np.zeros(granules, np.bool_)
        self.writers = np.zeros(granules if self.is_written else 0, np.int32)  # the program + 1, 0 for none
        self.readers = np.zeros(granules if self.is_written else 0, np.int32)
        self.updaters = np.zeros(granules if self.is_written else 0, np.int32)  # by atomic operations
        self.is_updated = False  # whether there are any

    def indices(self, access: Access) -> np.ndarray:
        """Return the granules that each component of each lane covers: [lanes, granules]."""
        first = ((access.addresses - np.uint64(self.start)) // np.uint64(self.granule)).astype(np.int64)
        covered = max(1, access.itemsize * access.components // self.granule)
        return first[:, None] + np.arange(covered)

    def load(self, access: Access) -> np.ndarray:
        """Return the components: [lanes, components], unsigned."""
        view = self.views[access.itemsize]
        first = ((access.addresses - np.uint64(self.start)) // np.uint64(access.itemsize)).astype(np.int64)
        if access.components == 1:
            return view[first][:, None]
        return view[first[:, None] + np.arange(access.components)]

    def store(self, access: Access, values: np.ndarray) -> None:
        """Store components: [lanes, components], unsigned."""
        view = self.views[access.itemsize]
        first = ((access.addresses - np.uint64(self.start)) // np.uint64(access.itemsize)).astype(np.int64)
        view[first[:, None] + np.arange(access.components)] = values


class Tensor:
    """A tensor of a launch: where its elements are, which a kernel may touch."""

    def __init__(self, buffer: Buffer, region: Region):
        self.name, self.buffer, self.region = buffer.name, buffer, region
        self.low, self.high = buffer.extent
        self.itemsize = buffer.itemsize
        self.is_element = self._is_element()

    def _is_element(self) -> np.ndarray | None:
        """Return which of the places between the first and the last element has one; None where all have."""
        places, steps = (self.high - self.low) // self.itemsize, 1
        for stride, n in sorted((abs(stride), n) for stride, n in self.buffer.dims if stride):
            if stride > steps:
                break
            steps = max(steps, stride * n)
        else:
            return None
        has_element = np.zeros(places, np.bool_)  # pages of it that have no element take no memory
        has_element[self.buffer.elements()] = True
        return has_element

    def holds(self, access: Access) -> np.ndarray:
        """Return for each lane whether all that it accesses are elements."""
        width = access.itemsize * access.components
        inside = (access.addresses >= self.low) & (access.addresses <= self.high - width)
        if self.is_element is None or not inside.any():
            return inside
        offsets = access.addresses[inside] - np.uint64(self.low)
        first, last = offsets // np.uint64(self.itemsize), (offsets + np.uint64(width - 1)) // np.uint64(self.itemsize)
        held = np.ones(len(offsets), np.bool_)
        for step in range(max(1, -(-width // self.itemsize)) + 1):
            held &= self.is_element[np.minimum(first + np.uint64(step), last).astype(np.int64)]
        result = inside.copy()
        result[inside] = held
        return result


class GlobalMemory:
    """The tensors of a launch, and what its programs did to their elements.

    Two programs may run in any order, or at once: where one writes what another reads, or writes another value, the
    result depends on it.
    """

    def __init__(self, buffers: dict[int, Buffer]):
        """``buffers`` are the tensors by the parameter of the kernel that points to them."""
        regions = {
            id(buffer): region
            for group in _overlapping(buffers.values())
            for region in [Region(group)]
            for buffer in group
        }
        self.tensors = {position: Tensor(buffer, regions[id(buffer)]) for position, buffer in buffers.items()}
        self.regions = list({id(region): region for region in regions.values()}.values())
        self.loaded = self.stored = 0
        self.ordered: dict[int, set[int]] = {}  # of each program: those that a lock or the like puts before it
        self.released: dict[int, set[int]] = {}  # of each address of a lock: the programs that came to it

    @property
    def traffic(self) -> Traffic:
        """Return the bytes that were touched so far."""
        distinct = sum(int(np.count_nonzero(region.touched)) * region.granule for region in self.regions)
        return Traffic(self.loaded, self.stored, distinct)

    def load(self, access: Access, programs: np.ndarray, origins: frozenset[int]) -> np.ndarray:
        """Return what lanes load, [lanes, components].

        ``programs`` has the program of each lane, ``origins`` the parameters that the address is computed from.
        """
        self.loaded += _bytes_of(access, programs)
        result = None
        for tensor, chosen in self._tensors(access, origins):
            part = access if chosen is None else _part(access, chosen)
            self._note_read(tensor, part, programs if chosen is None else programs[chosen])
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
        self, access: Access, programs: np.ndarray, origins: frozenset[int], change: Callable, orders: bool
    ) -> np.ndarray:
        """Apply an atomic operation: ``change(i, value)`` returns what lane ``i`` makes of a value; return the old.

        One that ``orders`` puts what its program did before what a program does that later comes to the same address.
        """
        for program, address in {*zip(programs.tolist(), access.addresses.tolist(), strict=True)} if orders else ():
            self.ordered.setdefault(program, set()).update(self.released.get(address, ()))
            self.released.setdefault(address, set()).update(self.ordered[program] | {program})
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

    def _note_read(self, tensor: Tensor, access: Access, programs: np.ndarray) -> None:
        """Note which elements are read; raise a fault if another program wrote one of them."""
        region, indices = tensor.region, tensor.region.indices(access)
        region.touched[indices] = True
        if not region.is_written:
            return
        readers = np.broadcast_to((programs + 1)[:, None], indices.shape)
        self._check(region.writers[indices], readers, access, tensor, "reads what program {} wrote")
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
        before = self.ordered.get(int(programs[0])) if self.ordered else None
        return np.where(np.isin(others - 1, list(before)), 0, others) if before else others

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


def _bytes_at(address: int, size: int) -> np.ndarray:
    """Return the memory of this process at an address."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)) if size else np.zeros(0, np.uint8)


def _part(access: Access, chosen: np.ndarray) -> Access:
    return access._replace(lanes=access.lanes[chosen], addresses=access.addresses[chosen])


def _overlapping(buffers) -> Iterator[list[Buffer]]:
    """Yield groups of buffers that share memory."""
    group: list[Buffer] = []
    end = 0
    for buffer in sorted((b for b in buffers), key=lambda b: b.extent):
        low, high = buffer.extent
        if group and low >= end:
            yield group
            group = []
        group.append(buffer)
        end = max(end, high) if len(group) > 1 else high
    if group:
        yield group
