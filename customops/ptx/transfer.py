"""Turn loads, stores and atomic operations into Python functions."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .arithmetic import operation
from .faults import LaneFault
from .frame import (
    OWN,
    Context,
    DecodedNames,
    Frame,
    Source,
    Step,
    access_of,
    address_of,
    dtype_of,
    parts_of,
    source,
    target,
)
from .memory import Order
from .module import Instruction
from .regions import Access

# Modifiers of loads and stores that change no value: caches, and the order among programs, which is not modelled.
_HINTS = re.compile(
    r"weak|volatile|relaxed|acquire|release|acq_rel|cta|cluster|gpu|sys|nc|ca|cg|cs|cv|lu|wb|wt|noftz|L[12]::\w+(::\w+)?|unified"
)
_VECTOR = re.compile(r"v[248]")
_SPACES = ("global", "shared", "shared::cta", "local", "param", "const")


class _Place(NamedTuple):
    """A load or store: what its text says."""

    space: str
    kind: str  # PTX type of a component
    components: int


def _place(opcode: str) -> _Place:
    _, *modifiers, kind = opcode.split(".")
    spaces = [m for m in modifiers if m in _SPACES]
    counts = [int(m[1:]) for m in modifiers if re.fullmatch(r"v\d", m)]
    if any(m not in _SPACES and not re.fullmatch(r"v\d", m) and not _HINTS.fullmatch(m) for m in modifiers):
        raise KeyError(opcode)
    return _Place(spaces[0].partition("::")[0] if spaces else "global", kind, counts[0] if counts else 1)


def _load(instruction: Instruction, context: Context) -> Step:
    names, place = context.names, _place(instruction.opcode)
    to, where = instruction.operands[:2]
    base, offset = address_of(where)
    if place.space == "param":
        return _load_parameter(to, base, offset, place.kind, names)
    puts = [target(names, name, place.kind) for name in (parts_of(to) if to.startswith("{") else [to])]
    get, itemsize = source(names, base, _address_type(place.space, base, names)), dtype_of(place.kind).itemsize
    origins, dtype = context.origins.get(base, frozenset()), dtype_of(place.kind)
    swaps = where in context.swapped  # LLVM makes an atomic operation that a GPU lacks of a load and a loop around cas

    def step(frame):
        access = access_of(frame, get(frame), offset, itemsize, place.components)
        values = _loaded(frame, place.space, access, origins, swaps)
        for i, put in enumerate(puts):
            column = np.ascontiguousarray(values[:, i])
            if frame.active is not None:
                whole = np.zeros(frame.batch.lanes, column.dtype)
                whole[access.lanes] = column
                column = whole
            put(frame, column.view(dtype))

    return step


def _loaded(frame: Frame, space: str, access: Access, origins: frozenset[int], swaps: bool) -> np.ndarray:
    batch = frame.batch
    frame, space, access = _of_space(frame, space, access)
    if space in ("global", "const"):
        return batch.memory.load(access, batch.programs[access.lanes], origins, swaps)
    if space == "shared":
        return batch.shared.load(access)
    view, components = _local(frame, access)
    return view[components]


def _of_space(frame: Frame, space: str, access: Access) -> tuple[Frame, str, Access]:
    """Return whose memory is accessed, and where in it: a generic address may be in that of a calling function."""
    frames = frame.batch.frames
    number = int(access.addresses[0]) - OWN >> 32 if space == "global" and len(access.addresses) else -1
    if not 0 <= number < len(frames):
        return frame, space, access
    owner = frames[number]
    return owner, "local", access._replace(addresses=access.addresses - np.uint64(owner.own))


def _local(frame: Frame, access: Access) -> tuple[np.ndarray, np.ndarray]:
    """Return the lanes' own memory in items, and which items each lane accesses."""
    size = len(frame.local) // frame.batch.lanes
    width, addresses = access.itemsize * access.components, access.addresses.astype(np.int64)
    for wrong, reason in (
        ((addresses < 0) | (addresses + width > size), "an access outside the thread's own memory"),
        (addresses % width != 0, "a misaligned access to the thread's own memory"),
    ):
        if wrong.any():
            raise LaneFault(reason, int(access.lanes[np.argmax(wrong)]))
    first = (access.lanes * size + addresses) // access.itemsize
    return frame.local.view(f"u{access.itemsize}"), first[:, None] + np.arange(access.components)


def _address_type(space: str, base: str, names: DecodedNames) -> str:
    return names.kinds.get(base, "b32" if space == "shared" else "b64")


def _store(instruction: Instruction, context: Context) -> Step:
    names, place = context.names, _place(instruction.opcode)
    where, of = instruction.operands[:2]
    base, offset = address_of(where)
    gets = [source(names, name, place.kind) for name in (parts_of(of) if of.startswith("{") else [of])]
    if place.space == "param":
        return _store_parameter(gets, base, offset, dtype_of(place.kind).itemsize)
    get, itemsize = source(names, base, _address_type(place.space, base, names)), dtype_of(place.kind).itemsize
    origins, dtype = context.origins.get(base, frozenset()), np.dtype(f"u{itemsize}")

    def step(frame):
        access = access_of(frame, get(frame), offset, itemsize, place.components)
        values = np.empty((len(access.lanes), place.components), dtype)
        for i, part in enumerate(gets):
            value = part(frame).view(dtype)
            values[:, i] = value[access.lanes] if value.ndim and frame.active is not None else value
        _write(frame, place.space, access, values, origins)

    return step


def _write(frame: Frame, space: str, access: Access, values: np.ndarray, origins: frozenset[int]) -> None:
    batch = frame.batch
    if space == "shared":  # where Triton leaves what a lock holds, for all threads, each time that one looks
        batch.stores += batch.shared.store(access, values)
        return
    batch.stores += 1
    frame, space, access = _of_space(frame, space, access)
    if space == "global":
        batch.memory.store(access, values, batch.programs[access.lanes], origins)
    else:
        view, components = _local(frame, access)
        view[components] = values


def _store_parameter(gets: list[Source], base: str, offset: int, itemsize: int) -> Step:
    """Set a parameter of a function that is called, or a result of this one, for the lanes that do so."""

    def step(frame):
        for i, get in enumerate(gets):
            place, value = (base, offset + i * itemsize), get(frame)
            before = frame.parameters.get(place)
            if frame.active is not None and before is not None and before.dtype.itemsize == value.dtype.itemsize:
                value = np.where(frame.active, value, before.view(value.dtype))
            frame.parameters[place] = value

    return step


def _load_parameter(to: str, base: str, offset: int, kind: str, names: DecodedNames) -> Step:
    puts = [target(names, name, kind) for name in (parts_of(to) if to.startswith("{") else [to])]
    dtype = dtype_of(kind)

    def step(frame):
        for i, put in enumerate(puts):
            value = frame.parameters.get((base, offset + i * dtype.itemsize))
            if value is None:
                raise LaneFault(f"the parameter {base.partition('.')[0]} was never written", int(frame.chosen()[0]))
            put(
                frame,
                value.view(dtype) if value.dtype.itemsize == dtype.itemsize else value.astype(f"u{dtype.itemsize}"),
            )

    return step


def _atomic(instruction: Instruction, context: Context) -> Step:
    """Apply an atomic operation, one lane after the other, to one component after the other."""
    names, operands = context.names, list(instruction.operands)
    _, *modifiers, kind = instruction.opcode.split(".")
    to = "_" if instruction.opcode.startswith("red.") else operands.pop(0)
    (name,) = (m for m in modifiers if m not in _SPACES and not _HINTS.fullmatch(m) and not _VECTOR.fullmatch(m))
    space = next((m.partition("::")[0] for m in modifiers if m in _SPACES), "global")
    base, offset = address_of(operands[0])
    get, dtype, change = source(names, base, _address_type(space, base, names)), dtype_of(kind), _change(name, kind)
    gets = [[source(names, x, kind) for x in xs] for xs in zip(*map(parts_of, operands[1:]), strict=True)]
    puts = [target(names, x, kind) for x in (parts_of(to) if to != "_" else ["_"] * len(gets))]
    origins, orders = context.origins.get(base, frozenset()), {"acquire", "release", "acq_rel"} & {*modifiers}
    order = Order(bool(orders & {"acquire", "acq_rel"}), bool(orders & {"release", "acq_rel"}))

    def step(frame):
        access = access_of(frame, get(frame), offset, dtype.itemsize, 1)
        if len(gets) > 1:
            _require_alignment(access, dtype.itemsize * len(gets))
        for i, (put, each) in enumerate(zip(puts, gets, strict=True)):
            one = access._replace(addresses=access.addresses + np.uint64(i * dtype.itemsize))
            values = [frame.spread(value(frame))[access.lanes] for value in each]
            old = _update(frame, space, one, origins, values, change, dtype, order)
            whole = np.zeros(frame.batch.lanes, dtype)
            whole[access.lanes] = old.view(dtype)
            put(frame, whole)

    return step


def _require_alignment(access: Access, width: int) -> None:
    past = access.addresses % np.uint64(width)
    if past.any():
        i = int(np.argmax(past != 0))
        reason = f"a misaligned access: {width} bytes at an address that is {past[i]} past a multiple of {width}"
        raise LaneFault(reason, int(access.lanes[i]))


def _update(
    frame: Frame,
    space: str,
    access: Access,
    origins: frozenset[int],
    values: list[np.ndarray],
    change: Callable,
    dtype: np.dtype,
    order: Order,
) -> np.ndarray:
    """Replace what lanes access by what ``change`` makes of it and of the lane's ``values``; return what was there."""
    batch = frame.batch

    def make(i, old):
        new = np.asarray(change(old.view(dtype), *[value[i] for value in values]), dtype)
        batch.stores += new.tobytes() != old.tobytes()  # a lock that stays taken can be waited for, for ever
        return new

    if space == "global":
        return batch.memory.update(access, batch.programs[access.lanes], origins, make, order)
    return batch.shared.update(access, make)


def _change(name: str, kind: str) -> Callable:
    if name == "exch":
        return lambda old, new: new
    if name == "cas":
        return lambda old, expected, new: new if old == expected else old
    if name == "inc":
        return lambda old, limit: old.dtype.type(0) if old >= limit else old + old.dtype.type(1)
    if name == "dec":
        return lambda old, limit: limit if old == 0 or old > limit else old - old.dtype.type(1)
    rounding = ".rn" if "f" in kind and name == "add" else ""
    return operation(
        f"{name}{rounding}.{kind.replace('u', 's') if name == 'add' and kind[0] == 'u' else kind}"
    ).function


INSTRUCTIONS: dict[str, Callable[[Instruction, Context], Step]] = {
    "ld": _load,
    "ldu": _load,
    "st": _store,
    "atom": _atomic,
    "red": _atomic,
}
