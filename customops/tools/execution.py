"""Execute a launch of a compiled Triton kernel on the memory of CPU tensors."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..ptx.machine import Program, load
from ..ptx.memory import Traffic
from ..ptx.regions import Buffer
from .machine_code import Leaf, flat_arguments, parameters

WARP = 32
_FORMATS = {"fp16": "<e", "fp32": "<f", "f32": "<f", "fp64": "<d"}  # of numbers that are no integers


def execute(
    compiled: Any, grid: tuple[int, int, int], args: Sequence[Any], is_input: Callable[[Leaf], bool]
) -> Traffic:
    """Run a launch, so that tensors hold what the compiled code writes; return the bytes that it touched.

    Args:
        compiled: Triton's CompiledKernel, for CUDA.
        grid: the number of programs along each axis.
        args: what Triton's launcher gets: tensors on the CPU, numbers and tuples of them, and constants.
        is_input: whether the kernel may only read the tensor that stands there among its arguments.

    Raises:
        KernelFault: the kernel did what no kernel may do.
    """
    program, metadata = load(compiled.asm["ptx"]), compiled.metadata
    bits, buffers = [], {}
    for i, ((leaf, kind), value) in enumerate(zip(parameters(compiled), flat_arguments(compiled, args), strict=True)):
        if kind.startswith("*") and isinstance(value, Tensor):
            buffers[i] = _buffer(leaf, value, not is_input(leaf))
        bits.append(value.data_ptr() if isinstance(value, Tensor) else _bits(value, kind))
    scratch = _scratch(program, metadata.global_scratch_size * grid[0] * grid[1] * grid[2], len(bits))
    buffers |= {i: _buffer(("scratch",), x, True) for i, x in scratch.items() if x.numel()}
    bits += [x.data_ptr() for x in scratch.values()]
    return program.execute(grid, WARP * metadata.num_warps, bits, buffers, metadata.shared)


def _scratch(program: Program, size: int, first: int) -> dict[int, Tensor]:
    """Return the memory that Triton's launcher adds, by the position of its parameter; the second is a profiler's."""
    sizes = [size, 0][: len(program.kernel.parameters) - first]
    return {first + i: torch.empty(n, dtype=torch.uint8) for i, n in enumerate(sizes)}


def _buffer(leaf: Leaf, x: Tensor, is_writable: bool) -> Buffer:
    name, *inside = map(str, leaf)
    name += "".join(f"[{i}]" for i in inside)
    return Buffer(name, x.data_ptr(), x.element_size(), tuple(x.shape), tuple(x.stride()), is_writable)


def _bits(value: Any, kind: str) -> int:
    """Return the bits of a number as the kernel takes it, of Triton's type ``kind``."""
    if kind in _FORMATS:
        return int.from_bytes(struct.pack(_FORMATS[kind], value), "little")
    if kind == "bf16":
        return int(torch.tensor(value, dtype=torch.bfloat16).view(torch.uint16).item())
    if kind.startswith("*"):
        return 0 if value is None else int(value)  # an address that nobody gave a tensor for
    return int(value)
