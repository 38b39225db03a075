"""From tensors to a launch: a plan made once for a layout, then followed at every call like it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from math import prod
from operator import mul
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton import knobs
from triton.compiler import ASTSource
from triton.runtime import driver

from .._compat import interpreting
from . import formulas
from .formulas import INTERPRETED
from .layout import LOOPED, PROGRAMS, Layout, Strides, Tiling, arrange, cut, dense, is_wide, repeated, traffic
from .pointwise import map_kernel
from .program import Fold, Geometry, Program, fold_of
from .reduce import map_reduce_kernel
from .specialize import specialize

ACCUMULATE = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.bool: torch.int64}


class Memory(NamedTuple):
    """What a plan knows of a tensor's memory.

    ``aligned`` where it starts at a multiple of 16 bytes; ``partial`` where it holds what one stage left to another.
    """

    dtype: torch.dtype
    aligned: bool = True
    partial: bool = False


class Operand(NamedTuple):
    """What a stage reads: number ``index`` among a plan's arguments, with a stride for each axis; None for a number."""

    index: int
    strides: Strides | None
    name: str


class Step(NamedTuple):
    """A formula, the values that it reads, and the number that kernels are compiled for, if it takes one.

    One that ``folds`` is a reduction of its only value over the stage's row.
    """

    formula: str
    reads: tuple[int, ...]
    constant: float | None = None
    folds: bool = False


class Result(NamedTuple):
    """A value, where it goes, and how it is folded on its way: by reduction ``fold``, of ``count`` elements each."""

    value: int
    index: int
    strides: Strides
    fold: str | None = None
    over: frozenset[int] = frozenset()
    count: int = 1


class Stage(NamedTuple):
    """What one kernel computes over a box of ``shape``, which has elements.

    Values are numbered: operands, then one for each step. Where steps fold, they do over the axes ``row``. A program
    holds ``live`` values of 4 bytes for each element; what every row reads it holds too, but where it ``reloads`` it.
    """

    shape: tuple[int, ...]
    operands: tuple[Operand, ...]
    steps: tuple[Step, ...]
    results: tuple[Result, ...]
    row: frozenset[int] = frozenset()
    live: int = 1
    reloads: bool = False


@cache
def compiled_in(formula: str) -> str | None:
    """The last parameter of the formula of this name, where that is a number that kernels are compiled for."""
    function = getattr(formulas, formula)
    kinds = function.fn.__annotations__
    return next((p for p in function.arg_names[-1:] if kinds.get(p) is tl.constexpr), None)


class Slot(NamedTuple):
    """An argument of a plan as an operand or output of one launch.

    ``index`` counts operands, outputs, then room. A number has no ``dtype``; ``parts`` are the strides between the
    parts of totals that an output holds; ``partial`` is what only passes from one launch to another.
    """

    index: int
    dtype: torch.dtype | None = None
    aligned: bool = True
    strides: Strides | None = None
    parts: tuple[int, int, int] = (0, 0, 0)
    partial: bool = False
    name: str = ""


class Box(NamedTuple):
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
        arguments: Sequence[Memory | None],
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
        self.arguments = [*arguments, *[Memory(self.accumulate, partial=True)] * len(rooms)]
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
            [self._slot(x.index, x.strides, getattr(x, "name", "")) for x in xs]
            for xs in (stage.operands, stage.results)
        )
        names = [x.name for x in stage.operands]
        ends = tuple(self._fold(result.fold) for result in stage.results)
        program = Program(
            tuple(getattr(formulas, step.formula) for step in stage.steps),
            tuple(step.reads for step in stage.steps),
            tuple(result.value for result in stage.results),
            tuple(step.constant for step in stage.steps),
            tuple(self._fold(step.formula if step.folds else None) for step in stage.steps),
            ends,
            _triton(self.common),
            _triton(self.accumulate),
        )
        over, counts = (tuple(getattr(result, name) for result in stage.results) for name in ("over", "count"))
        box = Box(stage.shape, over, counts, stage.row, stage.live, stage.reloads)
        self._add(program, box, operands, outputs, _words(stage, names))

    def _slot(self, index: int, strides: Strides | None, name: str) -> Slot:
        memory = self.arguments[index]
        if memory is None:
            return Slot(index, name=name)
        return Slot(index, memory.dtype, memory.aligned, strides, partial=memory.partial, name=name)

    def _fold(self, name: str | None) -> Fold | None:
        return name and fold_of(name, _triton(self.accumulate))

    def _add(self, program: Program, box: Box, operands, outputs, words: str, share: bool = True) -> None:
        """One launch, and more for the outputs whose totals several programs share: one for all of a shape."""
        layout = box.lay_out(operands, outputs)
        tiling = cut(layout, min(slot.dtype.itemsize for slot in (*operands, *outputs) if slot.dtype), share, box.live)
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

    def _add_totals(self, program: Program, count: int, kept, counts, pairs) -> None:
        """One launch that folds ``count`` parts of each of these totals."""
        dtype = _triton(self.accumulate)
        ends, n = tuple(program.ends[i] for *_, i in pairs), len(pairs)
        copy = Program((), (), tuple(range(n)), (), (), ends, dtype, dtype)
        parts = [t._replace(strides=(min(filter(None, t.parts)), *t.strides), parts=(0, 0, 0)) for t, *_ in pairs]
        totals = [output._replace(strides=(0, *output.strides)) for _, output, _ in pairs]
        box = Box((count, *kept), (frozenset({0}),) * n, tuple(counts[i] for *_, i in pairs))
        words = ", ".join(f"{end.finish.__name__}(part)" for end in ends)
        self._add(copy, box, parts, totals, words, count > PROGRAMS)

    def _set_aside(self, shape, output: Slot, shared: Sequence[int]) -> Slot:
        """Room for the parts of an output's total, so many in each group, in the accumulation dtype."""
        size = prod(n for n, stride in zip(shape, output.strides, strict=True) if stride)
        strides, step = [0, 0, 0], size
        for group, n in enumerate(shared):
            if n > 1:
                strides[group], step = step, step * n
        self.rooms.append(step)
        self.arguments.append(Memory(self.accumulate, partial=True))
        dense_strides = dense(shape, output.strides)
        return Slot(len(self.arguments) - 1, self.accumulate, True, dense_strides, tuple(strides), True, "part")


class Launch:
    """One launch of a kernel: compiled, with every argument but the pointers.

    ``bytes_moved`` is what its programs load and store together, ``bytes_floor`` its operands and outputs once each,
    without partial sums.
    """

    __slots__ = (
        *("arguments", "bytes_floor", "bytes_moved", "compiled", "fixed", "grid", "kernel", "launches"),
        *("names", "reads", "run", "words", "writes"),
    )

    def __init__(
        self,
        kernel,
        program: Program,
        layout: Layout,
        tiling: Tiling,
        operands,
        outputs,
        words: str,
        pool: dict,
        totals: tuple = (),
        reloads: bool = False,
    ):
        """Compile ``kernel`` for the current device; ``totals`` is what the map-reduce kernel is told of its totals.

        ``pool`` has what other launches of the plan have too.
        """
        self.kernel = kernel
        self.reads = _shared(tuple(slot.index for slot in operands), _SMALL)
        self.writes = _shared(tuple(slot.index for slot in outputs), _SMALL)
        self.names = _shared(tuple(slot.name for slot in operands), _KERNELS)
        self.words = _shared(words, _KERNELS)
        self.grid = prod(tiling.blocks) * tiling.parts
        slots = *operands, *outputs
        moved, floor = traffic(layout, tiling, reloads)
        self.bytes_moved = sum(n * slot.dtype.itemsize for n, slot in zip(moved, slots, strict=True) if slot.dtype)
        entire = [slot.dtype.itemsize if slot.dtype and not slot.partial else 0 for slot in slots]
        self.bytes_floor = sum(map(mul, floor, entire))
        index = tl.int64 if is_wide(layout, tiling, *totals[:1]) else tl.int32
        shapes = tuple(
            tuple(1 if lacking & ~folded & 1 << i else n for i, n in enumerate(tiling.tile))
            for lacking, folded in zip(layout.lacking, layout.folded, strict=True)
        )
        rounded = tuple(not slot.partial for slot in operands)
        geometry = Geometry(
            tiling.tile,
            tiling.side,
            layout.groups,
            rounded,
            layout.lacking,
            layout.folded,
            shapes,
            tiling.ragged,
            index,
            tuple(repeated(layout)) if not reloads else (),
        )
        sizes = tuple((1, *group[1:]) if group else () for group in layout.sizes)  # no kernel reads the outermost
        integers = _shared((layout.operands, layout.outputs, sizes, layout.extents, tiling.blocks, *totals), pool)
        constants = _KERNELS.setdefault((program, geometry), (program, geometry))
        self.arguments = (*integers, *constants)
        if INTERPRETED:
            return
        special = specialize(operands, outputs, layout, integers, constants)
        self.compiled = _compile(kernel, *special, tiling.warps, driver.active.get_current_device())
        recorder = getattr(driver.active, "recorder", None)  # a dry run's
        self.launches = not recorder
        self.run = recorder(self) if recorder else self.compiled.run
        self.fixed = self.compiled.function, self.compiled.packed_metadata

    def __call__(self, tensors: Sequence[torch.Tensor | int], stream: int) -> None:
        """Launch on tensors and numbers, as Triton itself does."""
        given = [tensors[i] for i in self.reads]
        reads = tuple([x if type(x) is int else x.data_ptr() for x in given])
        writes = tuple([tensors[i].data_ptr() for i in self.writes])
        enter, leave = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
        listens = getattr(enter, "calls", enter) or getattr(leave, "calls", leave)
        if listens and self.launches:  # a profiler, for whom Triton loads the kernel
            grid = self.grid, 1, 1
            metadata = self.compiled.launch_metadata(grid, stream, reads, writes, *self.arguments)
            self.run(*grid, stream, *self.fixed, metadata, enter, leave, reads, writes, *self.arguments)
        else:
            grid = self.grid
            self.run(grid, 1, 1, stream, *self.fixed, None, None, None, reads, writes, *self.arguments)

    def interpret(self, tensors: Sequence[torch.Tensor | int]) -> None:
        """Launch on tensors and numbers in Triton's interpreter."""
        reads, writes = (tuple(tensors[i] for i in slots) for slots in (self.reads, self.writes))
        self.kernel[(self.grid,)](reads, writes, *self.arguments)


_NOTHING = nullcontext()
_KERNELS: dict = {}  # what kernels are compiled for, and the names and texts of launches: the same for all lengths
_SMALL: dict = {}  # tuples of small integers, of which there are few


def _shared(value: Any, pool: dict) -> Any:
    """Return ``value`` made of objects that the pool has, where it has equal ones; the pool gets the others."""
    if isinstance(value, tuple):
        value = tuple([_shared(item, pool) for item in value])
        if all(item in _SMALL if isinstance(item, tuple) else item in (0, 1) for item in value):
            pool = _SMALL
    return pool.setdefault(value, value)


def _words(stage: Stage, names: Sequence[str]) -> str:
    """``sigmoid(x)``, ``mul_dx(g, y), Σ mul_dy(g, x)``, ``mean(x)``; values that others read have names, ``a = …``."""
    values, lines = list(names), []
    read = {i for step in stage.steps for i in step.reads}
    for i, step in enumerate(stage.steps, len(names)):
        arguments = [values[j] for j in step.reads] + ([] if step.constant is None else [str(step.constant)])
        word = f"{step.formula}({', '.join(arguments)})"
        values.append(f"v{len(lines)}" if i in read else word)
        if i in read:
            lines.append(f"{values[i]} = {word}")
    for result in stage.results:
        value = values[result.value]
        if result.fold:
            lines.append(f"Σ {value}" if result.fold == "sum" and stage.steps else f"{result.fold}({value})")
        else:
            lines.append(value if stage.steps else f"copy({value})")
    return ", ".join(lines)


@cache
def _compile(kernel, types: tuple, fixed: tuple, divisors: tuple, warps: int, _device: int):
    """Compile for the current device, which each have their own copy.

    x·y + z is rounded twice, as by torch: whether a compiler contracts it depends on what else is in a kernel, and two
    kernels that compute one value have to agree on it. Triton 3.10 has this as default; 3.9 wants it said.
    """
    attributes = {path: [["tt.divisibility", divisor]] for path, divisor in divisors if divisor > 1}
    source = ASTSource(kernel, dict(zip(kernel.arg_names, types, strict=True)), dict(fixed), attributes)
    options = {"num_warps": warps, "enable_fp_fusion": False}
    return triton.compile(source, driver.active.get_current_target(), options)


def _as_integer(value: torch.Tensor | float, common: torch.dtype) -> int:
    """A number, which a 0-dim CPU tensor among GPU tensors counts as, as ``program.load`` expects it."""
    number = value.item() if isinstance(value, torch.Tensor) else value
    if common.is_floating_point:
        return struct.unpack("<q", struct.pack("<d", number))[0]
    return int(bool(number) if common == torch.bool else number)


def _triton(dtype: torch.dtype) -> tl.dtype:
    return tl.int1 if dtype == torch.bool else getattr(tl, str(dtype).removeprefix("torch."))
