"""Turn instructions into Python functions: arithmetic, moves, memory, and what only says where to go on."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import asynchronous, matrix, warp, warpgroup
from .arithmetic import operation
from .faults import LaneFault
from .frame import DecodedNames, Frame, Source, Step, access_of, address_of, dtype_of, source, target
from .memory import Access
from .module import Instruction

# Modifiers of loads and stores that change no value: caches, and the order among programs, which is not modelled.
_HINTS = re.compile(
    r"weak|volatile|relaxed|acquire|release|acq_rel|cta|cluster|gpu|sys|nc|ca|cg|cs|cv|lu|wb|wt|noftz|L[12]::\w+(::\w+)?|unified"
)
_SPACES = ("global", "shared", "shared::cta", "local", "param", "const")
_NOTHING = re.compile(r"fence|membar|prefetch|griddepcontrol|nanosleep|discard|applypriority|pmevent")  # for values


class UnknownInstruction(LaneFault):
    """An instruction that the executor does not know."""


class Jump(NamedTuple):
    """Go on at another instruction."""

    label: str
    taken: Any  # which lanes do, None for all that are active


class Return(NamedTuple):
    """Leave the function."""

    taken: Any


class Barrier(NamedTuple):
    """Wait for all threads of the block."""

    number: int
    taken: Any = None


class Call(NamedTuple):
    """Call a function of the module."""

    function: str
    arguments: tuple[str, ...]  # names of parameter variables of the caller
    results: tuple[str, ...]
    taken: Any = None


class Context(NamedTuple):
    """What the meaning of an instruction depends on, apart from its text."""

    names: DecodedNames
    origins: dict[str, frozenset[int]]  # the pointer parameters that a register is computed from, by their position


def decode(instruction: Instruction, context: Context) -> Step:
    """Return what executes an instruction; for one that is not known, what raises :class:`UnknownInstruction`."""
    try:
        step = _decode(instruction, context)
    except (KeyError, ValueError, IndexError):
        return _unknown(instruction)
    if instruction.guard is None:
        return step
    return _guarded(step, source(context.names, instruction.guard, "pred"), instruction.negated)


def _decode(instruction: Instruction, context: Context) -> Step:
    name = instruction.opcode.split(".")[0]
    if _NOTHING.fullmatch(name):
        return lambda frame: None
    special = _SPECIAL.get(name)
    return special(instruction, context) if special else _arithmetic(instruction, context)


def _unknown(instruction: Instruction) -> Step:
    def fail(frame):
        raise UnknownInstruction(f"the instruction {instruction.opcode} is not known")

    return fail


def _guarded(step: Step, guard: Source, negated: bool) -> Step:
    """Return a step that only the lanes execute for which the guard holds."""

    def guarded(frame):
        mask, outer = guard(frame), frame.active
        mask = ~mask if negated else mask
        if outer is not None:
            mask = mask & outer
        if not mask.any():
            return None
        frame.active = None if mask.all() else frame.spread(mask)
        signal = step(frame)
        inner, frame.active = frame.active, outer
        return signal if signal is None or inner is None else signal._replace(taken=inner)

    return guarded


def _arithmetic(instruction: Instruction, context: Context) -> Step:
    names, operands = context.names, instruction.operands
    function, sources, results = operation(instruction.opcode)
    if instruction.opcode.startswith(("min.", "max.")) and len(operands) == len(sources) + 2:
        sources, function = (*sources, sources[-1]), _of_three(function)
    gets = [source(names, operand, kind) for operand, kind in zip(operands[1:], sources, strict=True)]
    puts = [target(names, operand, kind) for operand, kind in zip(operands[0].split("|"), results, strict=False)]
    if len(results) > 1:
        return _several_results(function, gets, puts)
    (put,) = puts
    if len(gets) == 1:
        (get,) = gets
        return lambda frame: put(frame, function(get(frame)))
    if len(gets) == 2:
        first, second = gets
        return lambda frame: put(frame, function(first(frame), second(frame)))
    return lambda frame: put(frame, function(*[get(frame) for get in gets]))


def _of_three(function: Callable) -> Callable:
    """Return the least or the greatest of three, from that of two."""
    return lambda x, y, z: function(function(x, y), z)


def _several_results(function: Callable, gets: Sequence[Source], puts: Sequence) -> Step:
    def step(frame):
        for put, value in zip(puts, function(*[get(frame) for get in gets]), strict=False):
            put(frame, value)

    return step


def _move(instruction: Instruction, context: Context) -> Step:
    names, (to, of) = context.names, instruction.operands
    kind = instruction.opcode.split(".")[-1]
    if to.startswith("{"):
        return _unpack(_group(to), of, kind, names)
    if of.startswith("{"):
        return _pack(to, _group(of), kind, names)
    put, get = target(names, to, kind), source(names, of, kind)
    return lambda frame: put(frame, get(frame))


def _unpack(parts: Sequence[str], of: str, kind: str, names: DecodedNames) -> Step:
    get, bits = source(names, of, kind), 8 * dtype_of(kind).itemsize // len(parts)
    puts = [target(names, part, f"b{bits}") for part in parts]

    def step(frame):
        value = np.ascontiguousarray(get(frame)).reshape(-1, 1).view(f"u{bits // 8}")
        for i, put in enumerate(puts):
            put(frame, frame.spread(np.ascontiguousarray(value[:, i]) if len(value) > 1 else value[0, i]))

    return step


def _pack(to: str, parts: Sequence[str], kind: str, names: DecodedNames) -> Step:
    bits = 8 * dtype_of(kind).itemsize // len(parts)
    gets, put = [source(names, part, f"b{bits}") for part in parts], target(names, to, kind)
    whole = np.dtype(f"u{dtype_of(kind).itemsize}")

    def step(frame):
        values = np.empty((frame.batch.lanes, len(gets)), f"u{bits // 8}")
        for i, get in enumerate(gets):
            values[:, i] = get(frame)
        put(frame, values.view(whole)[:, 0])

    return step


def _group(operand: str) -> list[str]:
    """Return the parts of ``{a, b}``."""
    return [part.strip() for part in operand.strip("{}").split(",")]


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
    puts = [target(names, name, place.kind) for name in (_group(to) if to.startswith("{") else [to])]
    get, itemsize = source(names, base, _address_type(place.space, base, names)), dtype_of(place.kind).itemsize
    origins, dtype = context.origins.get(base, frozenset()), dtype_of(place.kind)

    def step(frame):
        access = access_of(frame, get(frame), offset, itemsize, place.components)
        values = _loaded(frame, place.space, access, origins)
        for i, put in enumerate(puts):
            column = np.ascontiguousarray(values[:, i])
            if frame.active is not None:
                whole = np.zeros(frame.batch.lanes, column.dtype)
                whole[access.lanes] = column
                column = whole
            put(frame, column.view(dtype))

    return step


def _loaded(frame: Frame, space: str, access: Access, origins: frozenset[int]) -> np.ndarray:
    batch = frame.batch
    if space == "global":
        return batch.memory.load(access, batch.programs[access.lanes], origins)
    if space == "shared":
        return batch.shared.load(access)
    view, components = _local(frame, access)
    return view[components]


def _local(frame: Frame, access: Access) -> tuple[np.ndarray, np.ndarray]:
    """Return the lanes' own memory in items, and which items each lane accesses."""
    size = len(frame.local) // frame.batch.lanes
    width = access.itemsize * access.components
    outside = access.addresses + np.uint64(width) > size
    if outside.any():
        raise LaneFault("an access outside the thread's own memory", int(access.lanes[np.argmax(outside)]))
    first = (access.lanes * size + access.addresses.astype(np.int64)) // access.itemsize
    return frame.local.view(f"u{access.itemsize}"), first[:, None] + np.arange(access.components)


def _address_type(space: str, base: str, names: DecodedNames) -> str:
    return names.kinds.get(base, "b32" if space == "shared" else "b64")


def _store(instruction: Instruction, context: Context) -> Step:
    names, place = context.names, _place(instruction.opcode)
    where, of = instruction.operands[:2]
    base, offset = address_of(where)
    gets = [source(names, name, place.kind) for name in (_group(of) if of.startswith("{") else [of])]
    if place.space == "param":
        (only,) = gets
        return lambda frame: frame.parameters.__setitem__((base, offset), only(frame))
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
    batch.stores += 1
    if space == "global":
        batch.memory.store(access, values, batch.programs[access.lanes], origins)
    elif space == "shared":
        batch.shared.store(access, values)
    else:
        view, components = _local(frame, access)
        view[components] = values


def _load_parameter(to: str, base: str, offset: int, kind: str, names: DecodedNames) -> Step:
    puts = [target(names, name, kind) for name in (_group(to) if to.startswith("{") else [to])]
    dtype = dtype_of(kind)

    def step(frame):
        for i, put in enumerate(puts):
            value = frame.parameters[base, offset + i * dtype.itemsize]
            put(
                frame,
                value.view(dtype) if value.dtype.itemsize == dtype.itemsize else value.astype(f"u{dtype.itemsize}"),
            )

    return step


def _atomic(instruction: Instruction, context: Context) -> Step:
    """Apply an atomic operation, one lane after the other."""
    names, operands = context.names, list(instruction.operands)
    _, *modifiers, kind = instruction.opcode.split(".")
    to = "_" if instruction.opcode.startswith("red.") else operands.pop(0)
    (name,) = (m for m in modifiers if m not in _SPACES and not _HINTS.fullmatch(m))
    space = next((m.partition("::")[0] for m in modifiers if m in _SPACES), "global")
    base, offset = address_of(operands[0])
    get, gets = source(names, base, _address_type(space, base, names)), [source(names, x, kind) for x in operands[1:]]
    put, dtype, change = target(names, to, kind), dtype_of(kind), _change(name, kind)
    origins, orders = context.origins.get(base, frozenset()), {"acquire", "release", "acq_rel"} & {*modifiers}

    def step(frame):
        access = access_of(frame, get(frame), offset, dtype.itemsize, 1)
        values = [frame.spread(each(frame))[access.lanes] for each in gets]
        batch = frame.batch
        batch.stores += 1

        def make(i, old):
            return np.asarray(change(old.view(dtype), *[value[i] for value in values]), dtype)

        if space == "global":
            old = batch.memory.update(access, batch.programs[access.lanes], origins, make, bool(orders))
        else:
            old = batch.shared.update(access, make)
        whole = np.zeros(batch.lanes, dtype)
        whole[access.lanes] = old.view(dtype)
        put(frame, whole)

    return step


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


def _branch(instruction: Instruction, context: Context) -> Step:
    jump = Jump(instruction.operands[0], None)
    return lambda frame: jump


def _return(instruction: Instruction, context: Context) -> Step:
    signal = Return(None)
    return lambda frame: signal


def _barrier(instruction: Instruction, context: Context) -> Step:
    opcode, operands = instruction.opcode, instruction.operands
    if opcode == "bar.warp.sync":
        get = source(context.names, operands[0], "b32")
        return lambda frame: warp.synchronize(frame, get(frame))
    if (
        opcode not in ("bar.sync", "barrier.sync", "barrier.sync.aligned", "bar.cta.sync", "barrier.cta.sync.aligned")
        or len(operands) != 1
    ):
        raise KeyError(opcode)
    signal = Barrier(int(operands[0]))
    return lambda frame: signal


def _call(instruction: Instruction, context: Context) -> Step:
    operands = list(instruction.operands)  # (results), function, (arguments); the groups may be missing
    results = _group(operands.pop(0).strip("()")) if operands[0].startswith("(") else []
    arguments = _group(operands[1].strip("()")) if operands[1:] else []
    call = Call(operands[0], tuple(filter(None, arguments)), tuple(results))
    return lambda frame: call


def _convert_address(instruction: Instruction, context: Context) -> Step:
    """Pass on a generic address, which for global memory, and a thread's own, is the address itself."""
    if "shared" in instruction.opcode:
        raise KeyError(instruction.opcode)
    return _move(instruction, context)


def _policy(instruction: Instruction, context: Context) -> Step:
    put = target(context.names, instruction.operands[0], "b64")
    return lambda frame: put(frame, np.uint64(0))


def _trap(instruction: Instruction, context: Context) -> Step:
    def step(frame):
        raise LaneFault("the kernel stops itself", int(frame.chosen()[0]))

    return step


_SPECIAL: dict[str, Callable[[Instruction, Context], Step]] = {
    "mov": _move,
    "ld": _load,
    "ldu": _load,
    "st": _store,
    "atom": _atomic,
    "red": _atomic,
    "bra": _branch,
    "ret": _return,
    "exit": _return,
    "bar": _barrier,
    "barrier": _barrier,
    "call": _call,
    "cvta": _convert_address,
    "createpolicy": _policy,
    "trap": _trap,
    **warp.INSTRUCTIONS,
    **matrix.INSTRUCTIONS,
    **warpgroup.INSTRUCTIONS,
    **asynchronous.INSTRUCTIONS,
}
