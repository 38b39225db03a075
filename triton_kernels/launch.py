"""One launch of a kernel: compiled once, then started with pointers, or interpreted."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import prod
from operator import mul
from typing import Any

import torch
import triton
import triton.language as tl
from triton import knobs
from triton.compiler import ASTSource
from triton.runtime import driver

from .. import config
from .body import Geometry, KernelBody
from .formulas import INTERPRETED
from .layout import Layout, repeated
from .specialize import specialize
from .stage import Stage
from .tiling import Tiling, needs_int64, traffic


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
        program: KernelBody,
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
        self.reads = _interned(tuple(slot.index for slot in operands), config.small_tuples)
        self.writes = _interned(tuple(slot.index for slot in outputs), config.small_tuples)
        self.names = _interned(tuple(slot.name for slot in operands), config.kernel_constants)
        self.words = _interned(words, config.kernel_constants)
        self.grid = prod(tiling.blocks) * tiling.parts
        slots = *operands, *outputs
        moved, floor = traffic(layout, tiling, reloads)
        self.bytes_moved = sum(n * slot.dtype.itemsize for n, slot in zip(moved, slots, strict=True) if slot.dtype)
        entire = [slot.dtype.itemsize if slot.dtype and not slot.is_scratch else 0 for slot in slots]
        self.bytes_floor = sum(map(mul, floor, entire))
        index = tl.int64 if needs_int64(layout, tiling, *totals[:1]) else tl.int32
        shapes = tuple(
            tuple(1 if lacking & ~folded & 1 << i else n for i, n in enumerate(tiling.tile))
            for lacking, folded in zip(layout.lacking, layout.folded, strict=True)
        )
        rounded = tuple(not slot.is_scratch for slot in operands)
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
        integers = _interned((layout.operands, layout.outputs, sizes, layout.extents, tiling.blocks, *totals), pool)
        constants = config.kernel_constants.setdefault((program, geometry), (program, geometry))
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


def _interned(value: Any, pool: dict) -> Any:
    """Return ``value`` made of objects that the pool has, where it has equal ones; the pool gets the others."""
    if isinstance(value, tuple):
        value = tuple([_interned(item, pool) for item in value])
        if all(item in config.small_tuples if isinstance(item, tuple) else item in (0, 1) for item in value):
            pool = config.small_tuples
    return pool.setdefault(value, value)


def summary(stage: Stage, names: Sequence[str]) -> str:
    """``sigmoid(x)``, ``mul_dx(g, y), Σ mul_dy(g, x)``, ``mean(x)``; values that others read have names, ``a = …``."""
    values, lines = list(names), []
    read = {i for op in stage.ops for i in op.inputs}
    for i, step in enumerate(stage.ops, len(names)):
        arguments = [values[j] for j in step.inputs] + ([] if step.constant is None else [str(step.constant)])
        word = f"{step.formula}({', '.join(arguments)})"
        values.append(f"v{len(lines)}" if i in read else word)
        if i in read:
            lines.append(f"{values[i]} = {word}")
    for result in stage.outputs:
        value = values[result.value]
        if result.reduction:
            lines.append(f"Σ {value}" if result.reduction == "sum" and stage.ops else f"{result.reduction}({value})")
        else:
            lines.append(value if stage.ops else f"copy({value})")
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
