"""From stages to launches: a plan is made once for a layout, then followed at every call like it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from math import prod
from typing import NamedTuple

import torch
import triton.language as tl
from triton.runtime import driver

from .._compat import interpreting
from . import formulas
from .body import KernelBody, Reducer, reducer_of
from .formulas import INTERPRETED
from .launch import Launch, summary
from .layout import LOOPED, Layout, Strides, arrange, dense
from .map import map_kernel
from .map_reduce import map_reduce_kernel
from .stage import ACCUMULATE, Argument, Stage
from .tiling import FULL_GRID, choose_tiling


@cache
def constexpr_parameter(formula: str) -> str | None:
    """The last parameter of the formula of this name, where that is a number that kernels are compiled for."""
    function = getattr(formulas, formula)
    kinds = function.fn.__annotations__
    return next((p for p in function.arg_names[-1:] if kinds.get(p) is tl.constexpr), None)


class Slot(NamedTuple):
    """An argument of a plan as an operand or output of one launch.

    ``index`` counts operands, outputs, then room. A number has no ``dtype``; ``parts`` are the strides between the
    parts of totals that an output holds; ``is_scratch`` is what only passes from one launch to another.
    """

    index: int
    dtype: torch.dtype | None = None
    aligned: bool = True
    strides: Strides | None = None
    parts: tuple[int, int, int] = (0, 0, 0)
    is_scratch: bool = False
    name: str = ""


class Domain(NamedTuple):
    """The axes of a launch, those that each output is folded over, of how many elements, and those of the row.

    Then what its programs hold, as in :class:`Stage`.
    """

    shape: tuple[int, ...]
    over: tuple[frozenset[int], ...]
    counts: tuple[int, ...]
    row: frozenset[int] = frozenset()
    live: int = 1
    reloads: bool = False

    def lay_out(self, operands: Sequence[Slot], outputs: Sequence[Slot]) -> Layout:
        """The layout of these tensors over it."""
        strides = (tuple(slot.strides for slot in slots) for slots in (operands, outputs))
        return arrange(self.shape, *strides, self.over, self.row)


class Plan:
    """The launches that compute stages; ``plan(operands, outputs)`` makes them.

    It holds compiled kernels and integers, no tensor: any tensors of the same dtypes, strides, alignment and device
    can follow it, from any thread and on any stream. A model may need very many: it keeps little else.
    """

    __slots__ = (
        *("_pool", "accumulate", "arguments", "common", "device"),
        *("given", "index", "launches", "numbers", "rooms"),
    )

    def __init__(
        self,
        stages: Sequence[Stage],
        arguments: Sequence[Argument | None],
        common: torch.dtype,
        device: torch.device,
        rooms: Sequence[int] = (),
    ):
        """Plan to compute ``stages``, one after the other.

        ``arguments`` are operands and outputs, None for a number; they are followed by room that one stage writes and
        another reads: ``rooms`` says how many elements. Values are rounded to ``common`` as they are loaded, but for
        partial ones, computed and folded in its accumulation dtype, in which room is too, and rounded once, to the
        dtype of the output.
        """
        self.common, self.accumulate = common, ACCUMULATE.get(common, common)
        self.arguments = [*arguments, *[Argument(self.accumulate, is_scratch=True)] * len(rooms)]
        self.given = len(arguments)
        self.rooms: list[int] = list(rooms)
        self._pool: dict = {}
        self.launches: list[Launch] = []
        self.device = device
        self.numbers = [i for i, memory in enumerate(arguments) if memory is None]
        with self._on_device():
            self.index = None if INTERPRETED else driver.active.get_current_device()
            for stage in stages:
                self._add_stage(stage)
        del self.arguments, self._pool

    def __call__(
        self, operands: Sequence[torch.Tensor | float], outputs: Sequence[torch.Tensor]
    ) -> Sequence[torch.Tensor]:
        """Launch on these tensors and numbers, on the current stream of their device; return the rooms."""
        if INTERPRETED or driver.active.get_current_device() == self.index:
            return self._launch(operands, outputs)
        with torch.cuda.device(self.device):
            return self._launch(operands, outputs)

    def _launch(self, operands, outputs) -> Sequence[torch.Tensor]:
        tensors = [*operands, *outputs]
        if self.rooms:
            empty = torch.empty if INTERPRETED else getattr(driver.active, "empty", torch.empty)  # a dry run's
            tensors += [empty(size, dtype=self.accumulate, device=self.device) for size in self.rooms]
        for i in self.numbers:
            tensors[i] = _as_integer(tensors[i], self.common)
        if INTERPRETED:
            with interpreting():
                for launch in self.launches:
                    launch.interpret(tensors)
            return tensors[self.given :]
        stream = driver.active.get_current_stream(self.index)
        for launch in self.launches:
            launch(tensors, stream)
        return tensors[self.given :]

    def _on_device(self):
        return torch.cuda.device(self.device) if self.device.type == "cuda" else _NOTHING

    def _add_stage(self, stage: Stage) -> None:
        operands, outputs = (
            [self._slot(x.argument, x.strides, getattr(x, "name", "")) for x in xs]
            for xs in (stage.operands, stage.outputs)
        )
        names = [x.name for x in stage.operands]
        ends = tuple(self._reducer(output.reduction) for output in stage.outputs)
        program = KernelBody(
            tuple(getattr(formulas, op.formula) for op in stage.ops),
            tuple(op.inputs for op in stage.ops),
            tuple(output.value for output in stage.outputs),
            tuple(op.constant for op in stage.ops),
            tuple(self._reducer(op.formula if op.reduces else None) for op in stage.ops),
            ends,
            triton_dtype(self.common),
            triton_dtype(self.accumulate),
        )
        reduced = tuple(output.reduced_axes for output in stage.outputs)
        counts = tuple(output.reduced_count for output in stage.outputs)
        box = Domain(stage.shape, reduced, counts, stage.row_axes, stage.live_values, stage.reloads)
        self._add(program, box, operands, outputs, summary(stage, names))

    def _slot(self, index: int, strides: Strides | None, name: str) -> Slot:
        memory = self.arguments[index]
        if memory is None:
            return Slot(index, name=name)
        return Slot(index, memory.dtype, memory.aligned, strides, is_scratch=memory.is_scratch, name=name)

    def _reducer(self, name: str | None) -> Reducer | None:
        return name and reducer_of(name, triton_dtype(self.accumulate))

    def _add(self, program: KernelBody, box: Domain, operands, outputs, words: str, share: bool = True) -> None:
        """One launch, and more for the outputs whose totals several programs share: one for all of a shape."""
        layout = box.lay_out(operands, outputs)
        tiling = choose_tiling(
            layout, min(slot.dtype.itemsize for slot in (*operands, *outputs) if slot.dtype), share, box.live
        )
        if len(layout.extents) == 2:
            self.launches.append(Launch(map_kernel, program, layout, tiling, operands, outputs, words, self._pool))
            return
        programs = (tiling.blocks[0], tiling.parts, tiling.blocks[1])
        targets, ends, rest = [], [], {}
        for i, (output, folded, end) in enumerate(zip(outputs, layout.folded, program.ends, strict=True)):
            shared = [n if folded >> group & 1 else 1 for group, n in enumerate(programs)]
            if prod(shared) > 1:
                output, end = self._set_aside(box.shape, output, shared), end._replace(finish=None)
                kept = tuple(n if stride else 1 for n, stride in zip(box.shape, output.strides, strict=True))
                rest.setdefault((prod(shared), kept), []).append(i)
            targets.append(output)
            ends.append(end)
        layout = box.lay_out(operands, targets)
        steps = -(-tiling.chunk // tiling.tile[LOOPED])
        totals = tuple(slot.parts for slot in targets), steps, box.counts
        first = program._replace(ends=tuple(ends))
        arguments = operands, targets, words, self._pool, totals, box.reloads
        self.launches.append(Launch(map_reduce_kernel, first, layout, tiling, *arguments))
        for (count, kept), members in rest.items():
            self._add_totals(program, count, kept, box.counts, [(targets[i], outputs[i], i) for i in members])

    def _add_totals(self, program: KernelBody, count: int, kept, counts, pairs) -> None:
        """One launch that folds ``count`` parts of each of these totals."""
        dtype = triton_dtype(self.accumulate)
        ends, n = tuple(program.ends[i] for *_, i in pairs), len(pairs)
        copy = KernelBody((), (), tuple(range(n)), (), (), ends, dtype, dtype)
        parts = [t._replace(strides=(min(filter(None, t.parts)), *t.strides), parts=(0, 0, 0)) for t, *_ in pairs]
        totals = [output._replace(strides=(0, *output.strides)) for _, output, _ in pairs]
        box = Domain((count, *kept), (frozenset({0}),) * n, tuple(counts[i] for *_, i in pairs))
        words = ", ".join(f"{end.finish.__name__}(part)" for end in ends)
        self._add(copy, box, parts, totals, words, count > FULL_GRID)

    def _set_aside(self, shape, output: Slot, shared: Sequence[int]) -> Slot:
        """Room for the parts of an output's total, so many in each group, in the accumulation dtype."""
        size = prod(n for n, stride in zip(shape, output.strides, strict=True) if stride)
        strides, step = [0, 0, 0], size
        for group, n in enumerate(shared):
            if n > 1:
                strides[group], step = step, step * n
        self.rooms.append(step)
        self.arguments.append(Argument(self.accumulate, is_scratch=True))
        dense_strides = dense(shape, output.strides)
        return Slot(len(self.arguments) - 1, self.accumulate, True, dense_strides, tuple(strides), True, "part")


_NOTHING = nullcontext()


def _as_integer(value: torch.Tensor | float, common: torch.dtype) -> int:
    """A number, which a 0-dim CPU tensor among GPU tensors counts as, as ``program.load`` expects it."""
    number = value.item() if isinstance(value, torch.Tensor) else value
    if common.is_floating_point:
        return struct.unpack("<q", struct.pack("<d", number))[0]
    return int(bool(number) if common == torch.bool else number)


def triton_dtype(dtype: torch.dtype) -> tl.dtype:
    """Return Triton's dtype for torch's; bool is computed in one bit."""
    return tl.int1 if dtype == torch.bool else getattr(tl, str(dtype).removeprefix("torch."))
