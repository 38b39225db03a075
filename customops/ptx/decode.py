"""Turn instructions into Python functions: arithmetic, moves, and what only says where to go on."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import asynchronous, carry, matrices, mma, transfer, warp, wgmma
from .arithmetic import operation
from .faults import LaneFault
from .frame import Context, DecodedNames, Source, Step, dtype_of, is_known, parts_of, source, target
from .module import Instruction

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


def decode(instruction: Instruction, context: Context) -> Step:
    """Return what executes an instruction; for one that is not known, what raises :class:`UnknownInstruction`."""
    try:
        step = _decode(instruction, context)
    except (KeyError, ValueError, IndexError):
        return _unknown(instruction, context.names)
    if instruction.guard is None:
        return step
    return _guarded(step, source(context.names, instruction.guard, "pred"), instruction.negated)


def _decode(instruction: Instruction, context: Context) -> Step:
    name = instruction.opcode.split(".")[0]
    if _NOTHING.fullmatch(name):
        return lambda frame: None
    special = _SPECIAL.get(name)
    if special:
        return special(instruction, context)
    return carry.step_of(instruction, context) or _arithmetic(instruction, context)


def _unknown(instruction: Instruction, names: DecodedNames) -> Step:
    special = [x for x in instruction.operands if x.startswith("%") and not is_known(x, names)]
    what = f"special register {special[0]}" if special else f"instruction {instruction.opcode}"

    def fail(frame):
        raise UnknownInstruction(f"the {what} is not known")

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
        return _unpack(parts_of(to), of, kind, names)
    if of.startswith("{"):
        return _pack(to, parts_of(of), kind, names)
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
    results = parts_of(operands.pop(0).strip("()")) if operands[0].startswith("(") else []
    arguments = parts_of(operands[1].strip("()")) if operands[1:] else []
    call = Call(operands[0], tuple(filter(None, arguments)), tuple(results))
    return lambda frame: call


def _convert_address(instruction: Instruction, context: Context) -> Step:
    """Return a generic address, or the one that it stands for: of global memory they are the same."""
    if "shared" in instruction.opcode:
        raise KeyError(instruction.opcode)
    if "local" not in instruction.opcode:
        return _move(instruction, context)
    to, operand = instruction.operands
    get, put = source(context.names, operand, "u64"), target(context.names, to, "u64")
    sign = -1 if ".to." in instruction.opcode else 1
    return lambda frame: put(frame, get(frame) + np.uint64(sign * frame.own % (1 << 64)))


def _policy(instruction: Instruction, context: Context) -> Step:
    put = target(context.names, instruction.operands[0], "b64")
    return lambda frame: put(frame, np.uint64(0))


def _trap(instruction: Instruction, context: Context) -> Step:
    def step(frame):
        raise LaneFault("the kernel stops itself", int(frame.chosen()[0]))

    return step


_SPECIAL: dict[str, Callable[[Instruction, Context], Step]] = {
    "mov": _move,
    "bra": _branch,
    "ret": _return,
    "exit": _return,
    "bar": _barrier,
    "barrier": _barrier,
    "call": _call,
    "cvta": _convert_address,
    "createpolicy": _policy,
    "trap": _trap,
    **transfer.INSTRUCTIONS,
    **matrices.INSTRUCTIONS,
    **warp.INSTRUCTIONS,
    **mma.INSTRUCTIONS,
    **wgmma.INSTRUCTIONS,
    **asynchronous.INSTRUCTIONS,
}
