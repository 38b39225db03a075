"""From tensors to a launch: a plan made once for a layout, then followed at every call like it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from math import gcd, prod
from operator import mul
from threading import RLock
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton import knobs
from triton._utils import canonicalize_dtype
from triton.compiler import ASTSource
from triton.runtime import driver

from . import formulas
from .formulas import INTERPRETED
from .layout import LOOPED, PROGRAMS, TILED, WORD, Layout, Strides, Tiling, arrange, cut, dense, expand, traffic
from .pointwise import map_kernel
from .program import Geometry, Program, compiled_in, compose, parameters
from .reduce import map_reduce_kernel

ACCUMULATE = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.bool: torch.int64}

ONE_THREAD = RLock()  # it patches triton.language while it runs


class Memory(NamedTuple):
    """What a plan knows of a tensor; ``aligned`` where it starts at a multiple of 16 bytes."""

    shape: Sequence[int]
    strides: Sequence[int]
    dtype: torch.dtype
    aligned: bool = True


class Slot(NamedTuple):
    """An argument of a plan as an operand or output of one launch.

    ``index`` counts operands, outputs, then partial sums; an operand has a ``name``. A number has no ``dtype``;
    ``part`` is the stride between the partial sums that an output holds.
    """

    index: int
    dtype: torch.dtype | None = None
    aligned: bool = True
    strides: Strides | None = None
    part: int = 0
    partial: bool = False
    name: str = ""


class Finish(NamedTuple):
    """What is left to do to a finished sum of so many terms: ``formula(total, terms)``, or nothing."""

    formula: Any = None
    terms: int = 1


class Plan:
    """The launches that evaluate formulas over one shape and layout; ``plan(operands, outputs)`` makes them.

    It holds compiled kernels and integers, no tensor: any tensors of the same dtypes, strides, alignment and device
    can follow it, from any thread and on any stream.
    """

    def __init__(
        self,
        names: Sequence[str],
        operands: dict[str, Memory | float],
        outputs: Sequence[Memory],
        shape: Sequence[int],
        common: torch.dtype,
        device: torch.device,
        finish: tuple[str, int] | None = None,
    ):
        """Plan to evaluate the formulas called ``names`` over ``shape``, each into an output; or to copy the operand.

        ``operands`` are what the formulas read, by name: tensors that broadcast to ``shape``, which has elements, and
        numbers. An output that itself broadcasts to ``shape`` gets the sum along those axes, and then ``finish``, a
        formula and its count. Values are rounded to ``common`` as they are loaded, computed and summed in its
        accumulation dtype, and rounded once, to the dtype of the output.
        """
        shape = tuple(shape)
        self.common, self.accumulate = common, ACCUMULATE.get(common, common)
        self.rooms: list[int] = []
        self.launches: list[Launch] = []
        self.device = device
        fixed = {compiled_in(name) for name in names} - {None}
        constants = {name: operands[name] for name in fixed}
        read = {name for formula in names for name in parameters(formula)} - fixed or set(operands)
        read_by = ((i, name) for i, name in enumerate(operands) if name in read)
        slots = {name: self._slot(i, operands[name], shape)._replace(name=name) for i, name in read_by}
        self.numbers = frozenset(slot.index for slot in slots.values() if slot.dtype is None)
        self.count = len(operands) + len(outputs)
        targets = [self._slot(i, output, shape) for i, output in enumerate(outputs, len(operands))]
        program = compose(names, list(slots), constants, _triton(common), _triton(self.accumulate))
        last = Finish(getattr(formulas, finish[0]), finish[1]) if finish else Finish()
        with self._on_device():
            self.index = None if INTERPRETED else driver.active.get_current_device()
            self._add(program, shape, list(slots.values()), targets, last)

    def __call__(self, operands: Sequence[torch.Tensor | float], outputs: Sequence[torch.Tensor]) -> None:
        """Launch on these tensors and numbers, on the current stream of their device."""
        if INTERPRETED or driver.active.get_current_device() == self.index:
            self._launch(operands, outputs)
        else:
            with torch.cuda.device(self.device):
                self._launch(operands, outputs)

    def _launch(self, operands, outputs) -> None:
        tensors = [*operands, *outputs]
        for size in self.rooms:
            tensors.append(torch.empty(size, dtype=self.accumulate, device=self.device))
        for i in self.numbers:
            tensors[i] = _as_integer(tensors[i], self.common)
        if INTERPRETED:
            with ONE_THREAD:
                for launch in self.launches:
                    launch.interpret(tensors)
            return
        stream = driver.active.get_current_stream(self.index)
        for launch in self.launches:
            launch(tensors, stream)

    def _on_device(self):
        return torch.cuda.device(self.device) if self.device.type == "cuda" else _NOTHING

    def _slot(self, index: int, value: Memory | float, shape: tuple[int, ...]) -> Slot:
        if not isinstance(value, Memory):
            return Slot(index)
        return Slot(index, value.dtype, value.aligned, expand(shape, value.shape, value.strides))

    def _add(self, program: Program, shape, operands, outputs, finish: Finish, share: bool = True) -> None:
        """One launch, and one more for each output whose sums several programs share."""
        layout = _lay_out(shape, operands, outputs)
        tiling = cut(layout, min(slot.dtype.itemsize for slot in (*operands, *outputs) if slot.dtype), share)
        if not any(layout.summed):
            self.launches.append(Launch(map_kernel, program, layout, tiling, operands, outputs))
            return
        shares = [{LOOPED: tiling.parts, TILED: tiling.blocks[1]}.get(group, 1) for group in layout.summed]
        targets = [
            self._set_aside(shape, output, count) if count > 1 else output
            for output, count in zip(outputs, shares, strict=True)
        ]
        first = Finish() if tiling.parts > 1 else finish
        layout = _lay_out(shape, operands, targets)
        self.launches.append(Launch(map_reduce_kernel, program, layout, tiling, operands, targets, first))
        for output, target, count in zip(outputs, targets, shares, strict=True):
            if count > 1:
                kept = [1 if stride == 0 else size for size, stride in zip(shape, output.strides, strict=True)]
                parts = target._replace(strides=(target.part, *target.strides), part=0)
                total = output._replace(strides=(0, *output.strides))
                dtype = _triton(self.accumulate)
                copy = compose((), ("x",), {}, dtype, dtype)
                self._add(copy, (count, *kept), [parts], [total], finish, count > PROGRAMS)

    def _set_aside(self, shape, output: Slot, share: int) -> Slot:
        """Room for ``share`` partial sums of an output, in the accumulation dtype."""
        size = prod(n for n, stride in zip(shape, output.strides, strict=True) if stride)
        self.rooms.append(share * size)
        index = self.count + len(self.rooms) - 1
        return Slot(index, self.accumulate, True, dense(shape, output.strides), size, True, "part")


class Launch:
    """One launch of a kernel: compiled, with every argument but the pointers.

    ``bytes_moved`` is what its programs load and store together, ``bytes_floor`` its operands and outputs once each,
    without partial sums.
    """

    def __init__(self, kernel, program: Program, layout: Layout, tiling: Tiling, operands, outputs, finish=None):
        """Compile ``kernel`` for the current device; ``finish`` is what the map-reduce kernel does to its sums."""
        self.kernel = kernel
        self.reads = tuple(slot.index for slot in operands)
        self.writes = tuple(slot.index for slot in outputs)
        self.names = tuple(slot.name for slot in operands)
        self.words = _words(program, layout, self.names, finish)
        self.grid = prod(tiling.blocks) * tiling.parts
        slots = *operands, *outputs
        moved, floor = traffic(layout, tiling)
        self.bytes_moved = sum(n * slot.dtype.itemsize for n, slot in zip(moved, slots, strict=True) if slot.dtype)
        entire = [slot.dtype.itemsize if slot.dtype and not slot.partial else 0 for slot in slots]
        self.bytes_floor = sum(map(mul, floor, entire))
        index = tl.int64 if layout.wide else tl.int32
        geometry = Geometry(tiling.tile, tiling.side, layout.groups, layout.summed, tiling.ragged, index)
        integers: tuple = (layout.operands, layout.outputs, layout.sizes, layout.extents, tiling.blocks)
        constants: tuple = (program, geometry)
        if finish:
            integers += (tuple(slot.part for slot in outputs), tiling.chunk, finish.terms)
            constants += (finish.formula,)
        self.arguments = (*integers, *constants)
        if INTERPRETED:
            return
        special = _specialize(operands, outputs, integers, constants)
        self.compiled = _compile(kernel, *special, tiling.warps, driver.active.get_current_device())
        recorder = getattr(driver.active, "recorder", None)  # a dry run's
        self.run = recorder(self) if recorder else self.compiled.run
        self.fixed = self.compiled.function, self.compiled.packed_metadata

    def __call__(self, tensors: Sequence[torch.Tensor | int], stream: int) -> None:
        """Launch on tensors and numbers, as Triton itself does."""
        given = [tensors[i] for i in self.reads]
        reads = tuple([x if type(x) is int else x.data_ptr() for x in given])
        writes = tuple([tensors[i].data_ptr() for i in self.writes])
        enter, leave = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
        if getattr(enter, "calls", enter) or getattr(leave, "calls", leave):  # a profiler listens
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


def _lay_out(shape, operands: Sequence[Slot], outputs: Sequence[Slot]) -> Layout:
    return arrange(shape, tuple(slot.strides for slot in operands), tuple(slot.strides for slot in outputs))


def _words(program: Program, layout: Layout, names: tuple[str, ...], finish: Finish | None) -> str:
    """``sigmoid(x)``, ``mul_dx(g, y), Σ mul_dy(g, x)``, ``mean(x)``, ``sum(part)``."""
    if not program.formulas:
        name = (finish.formula.__name__ if finish.formula else "sum") if finish else "copy"
        return f"{name}({names[0]})"
    sums = ("Σ " if summed else "" for summed in layout.summed)
    return ", ".join(sign + word for sign, word in zip(sums, program.words(), strict=True))


def _specialize(operands: Sequence[Slot], outputs: Sequence[Slot], integers: tuple, constants: tuple):
    """What a kernel is compiled for: the type of each argument, and by their paths constants and divisors.

    Of a tensor that is its dtype and alignment; of an integer, whether it is 0 or 1, else the power of 2 up to 16 that
    divides it. So few kernels serve all shapes.
    """
    fixed: dict[tuple[int, ...], Any] = {}
    divisors: dict[tuple[int, ...], int] = {}

    def pointer(path, slot):
        if slot.dtype is None:
            return "i64"
        if slot.aligned:
            divisors[path] = WORD
        return "*" + canonicalize_dtype(slot.dtype)

    def integer(path, value):
        if isinstance(value, tuple):
            return tuple(integer((*path, i), item) for i, item in enumerate(value))
        if value in (0, 1):
            fixed[path] = value
            return "constexpr"
        divisors[path] = gcd(value, WORD)
        return "i32" if value < 2**31 else "i64"

    types: list[Any] = [
        tuple(pointer((i, j), slot) for j, slot in enumerate(slots)) for i, slots in enumerate((operands, outputs))
    ]
    types += [integer((i,), value) for i, value in enumerate(integers, len(types))]
    fixed |= {(i,): value for i, value in enumerate(constants, len(types))}
    types += ["constexpr"] * len(constants)
    return tuple(types), tuple(fixed.items()), tuple(divisors.items())


@cache
def _compile(kernel, types: tuple, fixed: tuple, divisors: tuple, warps: int, _device: int):
    """Compile for the current device, which each have their own copy."""
    attributes = {path: [["tt.divisibility", divisor]] for path, divisor in divisors if divisor > 1}
    source = ASTSource(kernel, dict(zip(kernel.arg_names, types, strict=True)), dict(fixed), attributes)
    return triton.compile(source, driver.active.get_current_target(), {"num_warps": warps})


def _as_integer(value: torch.Tensor | float, common: torch.dtype) -> int:
    """A number, which a 0-dim CPU tensor among GPU tensors counts as, as ``program.load`` expects it."""
    number = value.item() if isinstance(value, torch.Tensor) else value
    if common.is_floating_point:
        return struct.unpack("<q", struct.pack("<d", number))[0]
    return int(bool(number) if common == torch.bool else number)


def _triton(dtype: torch.dtype) -> tl.dtype:
    return tl.int1 if dtype == torch.bool else getattr(tl, str(dtype).removeprefix("torch."))
