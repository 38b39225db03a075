"""Where the values of a block lie: temporaries that steps use one after another, as a compiler uses registers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from .space import Axes
from .steps import Pass, Ref, Step


class Slot(NamedTuple):
    """A temporary of a block."""

    dtype: torch.dtype
    varies: Axes


class Instruction(NamedTuple):
    """A step as it is executed, on a list of what a block has: leaves, slots, then constants."""

    function: Callable
    inputs: tuple[int, ...]  # positions in that list
    out: int  # the position of what it writes


class Program(NamedTuple):
    """The steps of a pass, and what they use."""

    instructions: list[Instruction]
    slots: list[Slot]
    constants: list[Any]  # numbers and other arguments that are the same for every block


def assign_slots(walk: Pass) -> Program:
    """Return the steps of a pass as instructions.

    A step may write over a temporary that it is the last to read: torch's elementwise operators allow that.
    """
    slots: list[Slot] = []
    free: list[int] = []
    slot_of: dict[int, int] = {}  # by step that writes a temporary
    for k, (step, dead) in enumerate(zip(walk.steps, _last_reads(walk.steps), strict=True)):
        free += [slot_of[i] for i in dead]
        if step.out is None:
            slot = Slot(step.dtype, step.varies)
            match = next((i for i in free if slots[i] == slot), None)
            if match is None:
                match = len(slots)
                slots.append(slot)
            else:
                free.remove(match)
            slot_of[k] = match
    return _placed(walk, slots, slot_of)


def _last_reads(steps: Sequence[Step]) -> Iterator[list[int]]:
    """Yield for each step the temporaries, by the step that computes them, that it is the last to read."""
    last = {}
    for k, step in enumerate(steps):
        last[k] = k
        last |= {x.position: k for x in step.args if isinstance(x, Ref) and not x.is_leaf}
    for k in range(len(steps)):
        yield [i for i, at in last.items() if at == k and i != k and steps[i].out is None]


def _placed(walk: Pass, slots: list[Slot], slot_of: dict[int, int]) -> Program:
    """Return the instructions of steps whose temporaries are in these slots."""
    leaves, constants, instructions = len(walk.leaves), [], []

    def position(x: Any) -> int:
        if not isinstance(x, Ref):
            constants.append(x)
            return leaves + len(slots) + len(constants) - 1
        if x.is_leaf:
            return x.position
        out = walk.steps[x.position].out
        return leaves + slot_of[x.position] if out is None else out.position

    for k, step in enumerate(walk.steps):
        inputs = tuple([position(x) for x in step.args])
        instructions.append(Instruction(step.function, inputs, position(Ref(False, k))))
    return Program(instructions, slots, constants)
