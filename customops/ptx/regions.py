"""The elements of the tensors that a kernel is given, in the memory of this process."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

_WIDEST = 32  # bytes of an access; an address rounded down to a multiple is on the same page of memory


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


class Access(NamedTuple):
    """A load or store by lanes."""

    lanes: np.ndarray  # which lanes, int
    addresses: np.ndarray  # of each, uint64
    itemsize: int  # bytes of each component
    components: int  # of each lane, which follow one another


class Region:
    """The memory of tensors that overlap one another, or of one tensor."""

    def __init__(self, buffers: Sequence[Buffer], narrowest: int):
        """``narrowest`` are the bytes of the narrowest access: what is noted of memory is noted of as many at least."""
        self.buffers = buffers
        extents = [buffer.extent for buffer in buffers]
        self.low, self.high = min(low for low, _ in extents), max(high for _, high in extents)
        self.start = self.low - self.low % _WIDEST
        size = -(-(self.high - self.start) // _WIDEST) * _WIDEST if self.high > self.low else 0
        self.bytes = _bytes_at(self.start, size)
        self.views = {n: self.bytes.view(f"u{n}") for n in (1, 2, 4, 8)}
        self.granule = min(narrowest, *[buffer.itemsize for buffer in buffers])
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


def _bytes_at(address: int, size: int) -> np.ndarray:
    """Return the memory of this process at an address."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)) if size else np.zeros(0, np.uint8)


def overlapping(buffers: Iterable[Buffer]) -> Iterator[list[Buffer]]:
    """Yield groups of buffers that share memory."""
    group: list[Buffer] = []
    end = 0
    for buffer in sorted(buffers, key=lambda buffer: buffer.extent):
        low, high = buffer.extent
        if group and low >= end:
            yield group
            group = []
        group.append(buffer)
        end = max(end, high) if len(group) > 1 else high
    if group:
        yield group
