"""Arithmetic on integers of several words: instructions that set the carry of a thread, or add it.

``.cc`` sets it; ``addc``, ``subc`` and ``madc`` use it. Of a subtraction it is the borrow.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from .arithmetic import operation
from .frame import Frame, Source, Step, source, target
from .module import Instruction

_OPCODE = re.compile(r"(add|sub|mad)(c?)(\.lo|\.hi)?(\.cc)?\.([us])(32|64)")


def step_of(instruction: Instruction, context: Any) -> Step | None:
    """Return what executes an instruction that has to do with the carry, None for another one."""
    match = _OPCODE.fullmatch(instruction.opcode)
    if match is None or not (match[2] or match[4]) or (match[1] == "mad") != bool(match[3]):
        return None
    name, uses, half, sets, sign, bits = match.groups()
    names, (to, *operands) = context.names, instruction.operands
    put, kind = target(names, to, f"b{bits}"), f"b{bits}"
    *factors, last = [source(names, operand, kind) for operand in operands]
    first = _product(factors, half, sign, bits) if name == "mad" else factors[0]
    add = _subtract if name == "sub" else _add

    def step(frame):
        x, y = first(frame), last(frame)
        result, carry = add(x, y, frame.carry.astype(x.dtype) if uses else x.dtype.type(0))
        put(frame, result)
        if sets:
            frame.carry = carry if frame.active is None else np.where(frame.active, carry, frame.carry)

    return step


def _product(factors: list[Source], half: str, sign: str, bits: str) -> Source:
    function = operation(f"mul{half}.{sign}{bits}").function

    def product(frame: Frame) -> Any:
        typed = [factor(frame).view(f"{'i' if sign == 's' else 'u'}{int(bits) // 8}") for factor in factors]
        return frame.spread(function(*typed)).view(f"u{int(bits) // 8}")

    return product


def _add(x: Any, y: Any, carry: Any) -> tuple[Any, Any]:
    part = x + y
    return part + carry, (part < x) | (part + carry < part)


def _subtract(x: Any, y: Any, borrow: Any) -> tuple[Any, Any]:
    return x - y - borrow, (x < y) | (x - y < borrow)
