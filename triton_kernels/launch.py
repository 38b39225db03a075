"""One launch of a kernel: compiled once, then started with pointers, or interpreted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from operator import itemgetter
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
from .layout import LOOPED, TILED, VECTOR_BYTES, Layout, loop_invariants
from .map import map_kernel
from .map_reduce import map_reduce_kernel
from .specialize import Specialization, size_units, specialize
from .tiling import (
    BYTES_IN_FLIGHT,
    MAX_REGISTERS,
    MAX_THREAD_REGISTERS,
    MULTIPROCESSORS,
    WARP_THREADS,
    Tiling,
    needs_int64,
    thread_span,
)
from .traffic import Moves, traffic
from .walks import accumulates, walk_counts

FEW_REGISTERS = 64  # which a thread may always have
MAX_BLOCK_THREADS = 1024  # of a program, on any GPU; a warp of AMD's has 64


class Launch:
    """One launch of a kernel: compiled, with every argument but the pointers.

    A call or :meth:`interpret` gets the tensors and numbers of the plan; *positions* count among these.
    """

    __slots__ = (
        "arguments",  # the kernel's arguments after the pointers: integers, then KernelBody and Geometry
        "bytes_floor",  # bytes of its operands and outputs once each, scratch buffers not counted
        "bytes_moved",  # bytes that its programs load and store together
        "compiled",  # Triton's CompiledKernel; like the next three, it is not set where kernels are interpreted
        "function_and_metadata",  # the GPU's handle of the compiled kernel, and what Triton packs for its launcher
        "grid",  # how many programs run
        "is_dry_run",  # whether ``run`` is a dry run's, which takes tensors and not their addresses
        "kernel",  # the JIT function
        "operand_names",  # of each operand, for printing
        "operand_positions",  # of each operand
        "operands_of",  # gets the operands out of a tuple of the plan's tensors and numbers
        "output_positions",  # of each output
        "outputs_of",  # gets the outputs likewise
        "run",  # Triton's launcher of the compiled kernel, or what records instead; not set where it is interpreted
        "summary",  # the formulas that it evaluates, for printing
    )

    def __init__(
        self,
        kernel,
        body: KernelBody,
        layout: Layout,
        tiling: Tiling,
        operands,
        outputs,
        summary: str,
        pool: dict,
        reduction: tuple = (),
    ):
        """Compile ``kernel`` for the current device.

        ``operands`` and ``outputs`` are :class:`plan.LaunchArgument`. ``pool`` has equal objects of other launches of
        the plan. ``reduction`` are the arguments of kernels with a loop: partial strides, steps and counts.
        """
        self.kernel = kernel
        self.operand_positions = _interned(tuple(x.position for x in operands), config.small_tuples)
        self.output_positions = _interned(tuple(x.position for x in outputs), config.small_tuples)
        self.operands_of, self.outputs_of = _getter(self.operand_positions), _getter(self.output_positions)
        self.operand_names = _interned(tuple(x.name for x in operands), config.kernel_constants)
        self.summary = _interned(summary, config.kernel_constants)
        self.grid = prod(tiling.tile_counts) * tiling.splits
        itemsizes = [
            (0 if x.is_position or not x.dtype else x.dtype.itemsize, x.is_scratch) for x in (*operands, *outputs)
        ]
        steps = tiling.chunk // tiling.tile[LOOPED]
        counts = walk_counts(body.walks, layout, steps, tiling.holds_sums)
        moves = traffic(layout, tiling, itemsizes, counts)
        self.bytes_moved = sum(m.requested for m in moves.tensors)
        self.bytes_floor = sum(m.unique for m in moves.tensors if not m.is_scratch)
        index_dtype = tl.int64 if needs_int64(layout, tiling, *reduction[:1]) else tl.int32
        geometry = _geometry(layout, tiling, operands, outputs, index_dtype)
        sizes = tuple((1, *group[1:]) if group else () for group in layout.sizes)  # no kernel reads the outermost
        integers = layout.operand_strides, layout.output_strides, sizes, layout.extents, tiling.tile_counts, *reduction
        integers = _interned(integers, pool)
        constants = config.kernel_constants.setdefault((body, geometry), (body, geometry))
        self.arguments = (*integers, *constants)
        if not INTERPRETED:
            if layout.has_rows:
                operands = _as_many_rows(operands, layout.operand_strides, layout)
                outputs = _as_many_rows(outputs, layout.output_strides, layout)
            specialization = specialize(operands, outputs, layout, integers, constants)
            self._compile(specialization, tiling.warps, _most_registers(kernel, body, layout, tiling, moves), moves)

    def _compile(self, specialization: Specialization, warps: int, registers: int, moves: Moves) -> None:
        self.compiled = _compile(self.kernel, *specialization, warps, registers, driver.active.get_current_device())
        recorder = getattr(driver.active, "recorder", None)  # a dry run's driver has one
        self.is_dry_run = recorder is not None
        self.run = recorder(self, moves) if recorder else self.compiled.run
        self.function_and_metadata = self.compiled.function, self.compiled.packed_metadata

    def __call__(self, tensors: tuple[torch.Tensor | int, ...], stream: int) -> None:
        """Launch on tensors and numbers, as Triton does; in a dry run its launcher gets tensors, not addresses."""
        operands, outputs = self.operands_of(tensors), self.outputs_of(tensors)
        if self.is_dry_run:
            launch = self.function_and_metadata
            self.run.__call__(self.grid, 1, 1, stream, *launch, None, None, None, operands, outputs, *self.arguments)
            return
        inputs = tuple([x if type(x) is int else x.data_ptr() for x in operands])
        outputs = tuple([x.data_ptr() for x in outputs])
        enter, leave = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
        compiled = self.function_and_metadata
        has_hooks = getattr(enter, "calls", enter) or getattr(leave, "calls", leave)
        if has_hooks:  # a profiler's, for whom Triton loads the kernel
            grid = self.grid, 1, 1
            metadata = self.compiled.launch_metadata(grid, stream, inputs, outputs, *self.arguments)
            self.run(*grid, stream, *compiled, metadata, enter, leave, inputs, outputs, *self.arguments)
        else:
            self.run(self.grid, 1, 1, stream, *compiled, None, None, None, inputs, outputs, *self.arguments)

    def interpret(self, tensors: tuple[torch.Tensor | int, ...]) -> None:
        """Launch on tensors and numbers in Triton's interpreter."""
        self.kernel[(self.grid,)](self.operands_of(tensors), self.outputs_of(tensors), *self.arguments)


def _as_many_rows(tensors: Sequence, strides: Sequence, layout: Layout) -> list:
    """Return tensors with the alignment that each of many rows has: a row alone is to be added up in the same order.

    Of what has one value for each row none is needed.
    """
    length = layout.extents[TILED]
    return [
        x._replace(aligned=x.aligned and any(groups[TILED]) and length * x.dtype.itemsize % VECTOR_BYTES == 0)
        if x.dtype
        else x
        for x, groups in zip(tensors, strides, strict=True)
    ]


@cache
def _getter(positions: tuple[int, ...]) -> Callable[[tuple], tuple]:
    """Return what gets these positions of a tuple as a tuple: one for all launches, and no frame as a comprehension."""
    return itemgetter(*positions) if len(positions) > 1 else itemgetter(slice(positions[0], positions[0] + 1))


def _geometry(layout: Layout, tiling: Tiling, operands: Sequence, outputs: Sequence, index_dtype: tl.dtype) -> Geometry:
    output_tiles = tuple(
        tuple(
            1 if constant & ~reduced & 1 << i and not (segment and i == TILED) else n for i, n in enumerate(tiling.tile)
        )
        for constant, reduced, segment in zip(layout.constant_along, layout.reduced_over, layout.segments, strict=True)
    )
    itemsize = min((x.dtype.itemsize for x in operands if x.dtype), default=1)
    span, span_is_vector = thread_span(layout, tiling, VECTOR_BYTES // itemsize, [x.aligned for x in operands])
    return Geometry(
        tile=tiling.tile,
        vector_group=tiling.vector_group,
        operand_groups=layout.operand_groups,
        cast_on_load=tuple(not x.is_scratch for x in operands),
        are_positions=tuple(x.is_position for x in operands),
        constant_along=layout.constant_along,
        reduced_over=layout.reduced_over,
        output_tiles=output_tiles,
        total_tiles=tuple(
            (*tile[:LOOPED], *(n // span for n in tile[LOOPED:TILED]), *tile[TILED:]) for tile in output_tiles
        ),
        thread_span=span,
        span_is_vector=span_is_vector,
        has_tail=tiling.has_tail,
        index_dtype=index_dtype,
        hoisted=() if tiling.reloads else tuple(loop_invariants(layout)),
        full_groups=_full_groups(layout, tiling),
        has_one_block=layout.has_rows and tiling.chunk == tiling.tile[LOOPED],
        row_chunks=tiling.row_chunks if tiling.holds_sums and accumulates(layout) else 1,
        holds_sums=tiling.holds_sums,
        size_units=size_units(operands, outputs, layout),
        segments=layout.segments,
    )


def _full_groups(layout: Layout, tiling: Tiling) -> int:
    """Return the groups along which no tile reaches past the end: of rows it is known of their length, too."""
    is_full = [size == 1 for size in tiling.tile]
    if layout.has_rows:
        is_full[TILED] = layout.extents[TILED] % tiling.tile[TILED] == 0
    return sum(full << group for group, full in enumerate(is_full))


def _interned(value: Any, pool: dict) -> Any:
    """Return ``value`` made of objects that the pool has, where it has equal ones; the pool gets the others."""
    if isinstance(value, tuple):
        value = tuple([_interned(item, pool) for item in value])
        if all(item in config.small_tuples if isinstance(item, tuple) else item in (0, 1) for item in value):
            pool = config.small_tuples
    return pool.setdefault(value, value)


def _most_registers(kernel, body: KernelBody, layout: Layout, tiling: Tiling, moves: Moves) -> int:
    """Return how many registers a thread may have; 0 where ptxas is to choose.

    It may then spill a few bytes of a thread to make room for one program more. Programs that map or walk, that add up
    along two groups, or compute in 64 bits, may take all that there are; others need the room. A formula of integers
    leaves enough of it for the bytes that have to be in flight, though the code of a last tile might take more.
    """
    all_registers = min(MAX_THREAD_REGISTERS, MAX_REGISTERS // (WARP_THREADS * tiling.warps))
    if kernel is map_reduce_kernel:
        is_wide = body.compute_dtype.primitive_bitwidth == 64
        return 0 if layout.has_rows or not (is_wide or tiling.tile[TILED] > 1) else all_registers
    if kernel is map_kernel and len(body.formulas) == 1 and body.compute_dtype.is_int():
        loaded, stored = (sum(m.by_lanes for m in moves.tensors if m.is_stored == way) for way in (False, True))
        of_bytes = max(m.itemsize for m in moves.tensors if not m.is_stored) == 1  # half are enough, as of reductions
        programs = -(-BYTES_IN_FLIGHT // (MULTIPROCESSORS * (1 + of_bytes) * max(loaded, stored)))
        return max(FEW_REGISTERS, min(all_registers, MAX_REGISTERS // (WARP_THREADS * tiling.warps * programs)))
    return all_registers


@cache
def _compile(kernel, types: tuple, constants: tuple, divisors: tuple, warps: int, registers: int, _device: int):
    """Compile for the current device: each device has its own copy.

    x·y + z is rounded twice, as by torch: whether a compiler contracts it depends on what else is in a kernel, and two
    kernels that compute one value have to agree on it. Triton 3.10 has this as default; 3.9 wants it said.
    """
    attributes = {path: [["tt.divisibility", divisor]] for path, divisor in divisors if divisor > 1}
    source = ASTSource(kernel, dict(zip(kernel.arg_names, types, strict=True)), dict(constants), attributes)
    target = driver.active.get_current_target()
    options = {"num_warps": min(warps, MAX_BLOCK_THREADS // target.warp_size), "enable_fp_fusion": False}
    if registers and target.backend == "cuda":
        options["maxnreg"] = registers
    return triton.compile(source, target, options)
