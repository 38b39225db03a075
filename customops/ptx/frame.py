"""What instructions work on: the lanes that run together, their registers, and operands as functions of these."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from .formats import DTYPES
from .memory import GlobalMemory
from .module import WIDTHS, Function
from .regions import Access
from .shared import WARP, SharedMemory

POISON = 0x7FFF7FFF7FFF7FFF  # in registers never written: a nan of every format, and no address

Source = Callable[["Frame"], Any]  # returns an array with a value for each lane, or one without axes for all
Target = Callable[["Frame", Any], None]
Step = Callable[["Frame"], Any]  # executes one instruction; returns a signal to the machine, or None
Values = np.ndarray


@cache
def dtype_of(type: str) -> np.dtype:
    """Return the NumPy dtype that holds values of a PTX type: bits where NumPy has no such numbers."""
    return np.dtype(DTYPES[type])


class Batch:
    """The programs that run together, each thread of which is a lane."""

    def __init__(
        self, programs: range, threads: int, grid: tuple[int, int, int], memory: GlobalMemory, shared_bytes: int
    ):
        self.threads, self.grid, self.memory = threads, grid, memory
        self.lanes = len(programs) * threads
        self.all_lanes = np.arange(self.lanes)
        self.programs = np.repeat(np.arange(programs.start, programs.stop, dtype=np.int32), threads)  # of each lane
        self.shared = SharedMemory(shared_bytes, len(programs), threads)
        self.frames: list[Frame] = []  # of the functions that run: each is called by the one before
        self.stores = 0  # to any memory, so far, but for those known to change nothing
        self.copies: list[Any] = []  # that lanes have started and not waited for
        self.copy_groups = np.zeros(self.lanes, np.int64)  # how many groups of copies each lane has closed
        self.specials = _specials(self.programs.astype(np.uint32), threads, grid)

    def program(self, lane: int) -> tuple[int, int, int]:
        """Return the program's id of a lane, along each axis of the grid."""
        number, (x, y, _) = int(self.programs[lane]), self.grid
        return number % x, number // x % y, number // (x * y)


def _specials(programs: Values, threads: int, grid: tuple[int, int, int]) -> dict[str, Any]:
    """Return the special registers of all lanes, of which ``programs`` has the program."""
    thread = np.tile(np.arange(threads, dtype=np.uint32), len(programs) // threads)
    x, y, _ = (np.uint32(n) for n in grid)
    lane, zero, one = thread % WARP, np.uint32(0), np.uint32(1)
    program = {"x": programs % x, "y": programs // x % y, "z": programs // (x * y)}
    specials: dict[str, Any] = {"%tid.x": thread, "%tid.y": zero, "%tid.z": zero, "%laneid": lane}
    specials |= {"%ntid.x": np.uint32(threads), "%ntid.y": one, "%ntid.z": one}
    specials |= {"%warpid": thread // WARP, "%nwarpid": np.uint32(-(-threads // WARP))}
    for axis, n in zip("xyz", grid, strict=True):
        specials |= {f"%ctaid.{axis}": program[axis], f"%nctaid.{axis}": np.uint32(n)}
        specials |= {f"%clusterid.{axis}": program[axis], f"%nclusterid.{axis}": np.uint32(n)}
        specials |= {f"%cluster_ctaid.{axis}": zero, f"%cluster_nctaid.{axis}": one}
    bit = one << lane
    masks = {"eq": bit, "lt": bit - one, "le": bit | bit - one, "gt": ~(bit | bit - one), "ge": ~(bit - one)}
    return specials | {f"%lanemask_{name}": mask for name, mask in masks.items()}


_SPECIAL_NAMES = frozenset(_specials(np.zeros(WARP, np.uint32), WARP, (1, 1, 1)))


OWN = 1 << 62  # the generic addresses from here on are of lanes' own memory, 4 GiB for each function that runs


class Frame:
    """The registers and parameters of one function, as lanes run it."""

    def __init__(self, function: DecodedNames, batch: Batch, parameters: Mapping[tuple[str, int], Any]):
        self.batch = batch
        self.registers: list[Any] = list(function.initial)
        self.parameters = dict(parameters)  # by name and offset
        self.active: Values | None = None  # which lanes execute the instruction; None is all
        self.carry = np.zeros(batch.lanes, np.bool_)
        self.local = np.zeros(function.local_bytes * batch.lanes, np.uint8)
        self.own = OWN + (len(batch.frames) << 32)  # the generic address of the first byte of ``local``, of each lane

    def chosen(self) -> Values:
        """Return the lanes that execute the instruction."""
        return self.batch.all_lanes if self.active is None else np.flatnonzero(self.active)

    def activate(self, mask: Values | None) -> None:
        """Let the lanes of ``mask`` execute what follows; None is all."""
        self.active = None if mask is None or mask.all() else mask

    def spread(self, value: Any) -> Values:
        """Return a value for each lane."""
        return value if getattr(value, "ndim", 0) else np.broadcast_to(value, (self.batch.lanes,))


class DecodedNames(NamedTuple):
    """The names of a function, and what they stand for."""

    slots: dict[str, int]  # of registers
    kinds: dict[str, str]  # of registers: b32, pred ...
    initial: tuple[Any, ...]  # what is in each register at first
    symbols: dict[str, int]  # addresses of variables
    local_bytes: int  # of each lane's own memory


class Context(NamedTuple):
    """What the meaning of an instruction depends on, apart from its text."""

    names: DecodedNames
    origins: dict[str, frozenset[int]]  # the pointer parameters that a register is computed from, by their position
    swapped: frozenset[str] = frozenset()  # operands that are addresses of a compare-and-swap


def names_of(function: Function, symbols: Mapping[str, int]) -> DecodedNames:
    """Return the names of a function, among ``symbols`` of the module."""
    kinds = function.registers
    initial = [
        np.bool_(False) if kind == "pred" else dtype_of(kind).type(POISON % (1 << WIDTHS[kind]))
        for kind in kinds.values()
    ]
    found, local = dict(symbols), 0
    for variable in function.variables:
        if variable.space == "local":
            local = -(-local // variable.alignment) * variable.alignment
            found[variable.name] = local
            local += variable.size
    return DecodedNames({name: i for i, name in enumerate(kinds)}, kinds, tuple(initial), found, -(-local // 16) * 16)


def source(names: DecodedNames, operand: str, type: str) -> Source:
    """Return a function that gives the value of an operand, seen as ``type``."""
    dtype = dtype_of(type)
    if operand in names.slots:
        return _register_source(names.slots[operand], dtype)
    if operand.startswith("!"):
        slot = names.slots[operand[1:]]
        return lambda frame: ~frame.registers[slot]
    if operand in _SPECIAL_NAMES:
        return lambda frame: _seen_as(frame.batch.specials[operand], dtype)
    value = immediate(names, operand, dtype)
    return lambda frame: value


def is_known(operand: str, names: DecodedNames) -> bool:
    """Return whether an operand that starts with ``%`` is a register, or a special register that has a value."""
    return operand in names.slots or operand in _SPECIAL_NAMES


def _register_source(slot: int, dtype: np.dtype) -> Source:
    def get(frame):
        value = frame.registers[slot]
        return value if value.dtype is dtype else _seen_as(value, dtype)

    return get


def _seen_as(value: Any, dtype: np.dtype) -> Any:
    """Return the low bits of a value as ``dtype``."""
    if value.dtype.itemsize == dtype.itemsize:
        return value.view(dtype)
    return value.view(f"u{value.dtype.itemsize}").astype(f"u{dtype.itemsize}").view(dtype)


def immediate(names: DecodedNames, operand: str, dtype: np.dtype) -> Any:
    """Return a number that stands in the text, or the address of a variable.

    Raises:
        KeyError: it is neither.
    """
    if operand in names.symbols:
        return _bits(names.symbols[operand], dtype)
    if match := re.fullmatch(r"0[fFdD]([0-9a-fA-F]+)", operand):
        return _bits(int(match[1], 16), dtype)
    if dtype == np.bool_:
        return np.bool_(int(operand, 0))
    try:
        return _bits(int(operand.rstrip("U"), 0), dtype)
    except ValueError:
        raise KeyError(operand) from None


def _bits(value: int, dtype: np.dtype) -> Any:
    unsigned = np.dtype(f"u{dtype.itemsize}")
    return unsigned.type(value % (1 << 8 * dtype.itemsize)).view(dtype)


def target(names: DecodedNames, operand: str, type: str) -> Target:
    """Return a function that writes a value of ``type`` to a register, extended where the register is wider."""
    if operand == "_":
        return lambda frame, value: None
    slot, kind = names.slots[operand], names.kinds[operand]
    dtype, register = dtype_of(type), dtype_of(kind)
    if dtype.itemsize == register.itemsize:
        return _writer(slot)
    wide = np.dtype(f"{'i' if dtype.kind == 'i' else 'u'}{register.itemsize}")
    write, narrow = _writer(slot), np.dtype(f"{'i' if dtype.kind == 'i' else 'u'}{dtype.itemsize}")
    return lambda frame, value: write(frame, value.view(narrow).astype(wide))


def _writer(slot: int) -> Target:
    def write(frame, value):
        if frame.active is None:
            frame.registers[slot] = value
        else:
            before = frame.registers[slot]
            frame.registers[slot] = np.where(frame.active, value, before.view(value.dtype))

    return write


def parts_of(operand: str) -> list[str]:
    """Return the parts of ``{a, b}``, or of ``a`` alone."""
    return [part.strip() for part in operand.strip("{}").split(",")]


def address_of(operand: str) -> tuple[str, int]:
    """Return the base and the offset of ``[base+offset]``."""
    base, _, offset = operand.strip("[] ").replace(" ", "").partition("+")
    return base, int(offset or "0", 0)


def access_of(frame: Frame, base: Any, offset: int, itemsize: int, components: int) -> Access:
    """Return the access of the active lanes."""
    lanes = frame.chosen()
    if base.dtype.itemsize == np.dtype(np.uint32).itemsize:
        base = base.view(np.int32)  # below zero, which the offset may make up for
    addresses = base.astype(np.uint64) + np.uint64(offset % (1 << 64))
    if not addresses.ndim:
        addresses = np.broadcast_to(addresses, len(lanes))
    elif frame.active is not None:
        addresses = addresses[lanes]
    return Access(lanes, addresses, itemsize, components)
