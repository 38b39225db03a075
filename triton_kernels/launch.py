"""Run a program on tensors: choose the kernel, set partial sums aside, launch."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from threading import RLock
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from . import formulas
from .layout import BLOCK, LOOPED, TILED, Layout, Strides, arrange, cut, dense, expand
from .pointwise import map_kernel
from .program import Program, is_read, program_of
from .reduce import map_reduce_kernel

ACCUMULATE = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.bool: torch.int64}

INTERPRETER = RLock()  # it patches triton.language while it runs


class Strided(NamedTuple):
    """A tensor and its strides over the common shape; ``part`` is the stride between the partial sums it holds."""

    tensor: torch.Tensor
    strides: Strides
    part: int = 0


class Finish(NamedTuple):
    """What is left to do to a finished sum of so many terms: ``formula(total, terms)``, or nothing."""

    formula: Any = None
    terms: int = 1


def run(
    names: Sequence[str],
    values: dict[str, torch.Tensor | float],
    outputs: Sequence[torch.Tensor],
    shape: Sequence[int],
    common: torch.dtype,
    finish: tuple[str, int] | None = None,
) -> None:
    """Evaluate the formulas called ``names`` over ``shape``, each into an output; without names, copy the value.

    ``values`` holds what the formulas read by name, tensors that broadcast to ``shape``, which has elements, and
    numbers. An output that itself broadcasts to ``shape`` gets the sum along those axes, and then ``finish``, a
    formula and its count. Values are rounded to ``common`` as they are loaded, computed and summed in its
    accumulation dtype, and rounded once, to the dtype of the output.
    """
    shape = tuple(shape)
    read = {name: value for name, value in values.items() if not names or is_read(name, names)}
    operands = [_operand(value, shape, outputs[0].device) for value in read.values()]
    targets = [Strided(output, expand(shape, output.shape, output.stride())) for output in outputs]
    last = Finish(getattr(formulas, finish[0]), finish[1]) if finish else Finish()
    _run(program_of(tuple(names), tuple(read)), shape, operands, targets, common, last)


def _run(program, shape, operands, outputs, common, finish) -> None:
    layout = _layout(shape, operands, outputs)
    if any(layout.summed):
        _map_reduce(program, shape, layout, operands, outputs, common, finish)
    else:
        grid = triton.cdiv(layout.extents[0], BLOCK)
        _launch(map_kernel, grid, layout, operands, outputs, program, common, (), (BLOCK,))


def _map_reduce(program, shape, layout, operands, outputs, common, finish) -> None:
    """One launch, and one more for each output whose sums several programs share."""
    tile, blocks, chunk, parts = cut(layout)
    shares = [{LOOPED: parts, TILED: blocks[1]}.get(group, 1) for group in layout.summed]
    targets = [
        _set_aside(shape, output, share, common) if share > 1 else output
        for output, share in zip(outputs, shares, strict=True)
    ]
    first = Finish() if parts > 1 else finish
    grid = blocks[0] * blocks[1] * parts
    runtime = (tuple(target.part for target in targets), blocks, chunk, first.terms)
    constant = (layout.summed, first.formula, *tile)
    layout = _layout(shape, operands, targets)
    _launch(map_reduce_kernel, grid, layout, operands, targets, program, common, runtime, constant)
    for output, target, share in zip(outputs, targets, shares, strict=True):
        if share > 1:
            kept = [1 if stride == 0 else size for size, stride in zip(shape, output.strides, strict=True)]
            parts_of = Strided(target.tensor, (target.part, *target.strides))
            total = Strided(output.tensor, (0, *output.strides))
            _run(program_of((), ("x",)), (share, *kept), [parts_of], [total], target.tensor.dtype, finish)


def _set_aside(shape, output: Strided, share: int, common: torch.dtype) -> Strided:
    """Room for ``share`` partial sums of an output, in the accumulation dtype."""
    size = output.tensor.numel()
    room = torch.empty(share * size, dtype=ACCUMULATE.get(common, common), device=output.tensor.device)
    return Strided(room, dense(shape, output.strides), size)


def _layout(shape, operands, outputs) -> Layout:
    return arrange(
        shape,
        tuple(operand.strides if isinstance(operand, Strided) else None for operand in operands),
        tuple(output.strides for output in outputs),
    )


def _launch(kernel, grid: int, layout: Layout, operands, outputs, program: Program, common, runtime, constant) -> None:
    """Launch ``kernel`` on the device of its outputs; both kernels take these arguments in this order."""
    compute = ACCUMULATE.get(common, common)
    tensor = outputs[0].tensor
    with torch.cuda.device_of(tensor) if tensor.is_cuda else INTERPRETER:
        kernel[(grid,)](
            tuple(_argument(operand, common) for operand in operands),
            layout.operands,
            tuple(output.tensor for output in outputs),
            layout.outputs,
            layout.sizes,
            layout.extents,
            *runtime,
            *program,
            *constant,
            layout.groups,
            _triton_dtype(common),
            _triton_dtype(compute),
            tl.int64 if layout.wide else tl.int32,
        )


def _operand(value: torch.Tensor | float, shape, device) -> Strided | float:
    """A tensor with its strides over ``shape``; a number, which a 0-dim CPU tensor among GPU tensors counts as."""
    if not isinstance(value, torch.Tensor):
        return value
    if value.device != device:
        return value.item()
    return Strided(value, expand(shape, value.shape, value.stride()))


def _argument(operand: Strided | float, common: torch.dtype):
    """What the kernel gets for an operand: a pointer, or a number as ``program.load`` expects it."""
    if isinstance(operand, Strided):
        return operand.tensor
    if common.is_floating_point:
        return struct.unpack("<q", struct.pack("<d", operand))[0]
    return int(bool(operand) if common == torch.bool else operand)


def _triton_dtype(dtype: torch.dtype) -> tl.dtype:
    return tl.int1 if dtype == torch.bool else getattr(tl, str(dtype).removeprefix("torch."))
