"""Execute a launch of a compiled Triton kernel on the memory of CPU tensors."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from ctypes import c_double, c_float
from math import prod
from operator import index
from typing import Any

import torch
from torch import Tensor

from ..ptx.frame import WARP
from ..ptx.machine import Program, load
from ..ptx.memory import Traffic
from ..ptx.regions import Buffer
from .machine_code import Leaf, flat_arguments, name_of, parameters


def execute(
    compiled: Any, grid: tuple[int, int, int], args: Sequence[Any], is_input: Callable[[Leaf], bool]
) -> Traffic:
    """Run a launch, so that tensors hold what the compiled code writes; return the bytes that it touched.

    Args:
        compiled: Triton's CompiledKernel, for CUDA.
        grid: the number of programs along each axis.
        args: what Triton's launcher gets: tensors on the CPU, numbers and tuples of them, and constants. A tensor may
            be one of ``triton.reinterpret``.
        is_input: whether the kernel may only read the tensor that stands there among its arguments.

    Raises:
        KernelFault: the kernel did what no kernel may do.
        ValueError: a tensor has no memory on the CPU.
    """
    program, metadata = load(compiled.asm["ptx"]), compiled.metadata
    bits, buffers = [], {}
    for i, ((leaf, kind), value) in enumerate(zip(parameters(compiled), flat_arguments(compiled, args), strict=True)):
        if hasattr(value, "data_ptr"):
            _require_memory(compiled.name, leaf, value)
            buffers[i] = _buffer(leaf, value, not is_input(leaf))
        bits.append(value.data_ptr() if i in buffers else _bits(value, kind))
    scratch = _scratch(program, metadata.global_scratch_size * grid[0] * grid[1] * grid[2], len(bits))
    buffers |= {i: _buffer(("scratch",), x, True) for i, x in scratch.items() if x.numel()}
    bits += [x.data_ptr() for x in scratch.values()]
    return program.execute(grid, WARP * metadata.num_warps, bits, buffers, metadata.shared)


def _scratch(program: Program, size: int, first: int) -> dict[int, Tensor]:
    """Return the memory that Triton's launcher adds, by the position of its parameter; the second is a profiler's."""
    sizes = [size, 0][: len(program.kernel.parameters) - first]
    return {first + i: torch.empty(n, dtype=torch.uint8) for i, n in enumerate(sizes)}


def _require_memory(kernel: str, leaf: Leaf, x: Any) -> None:
    """Raise an error for a tensor whose address is none of this process, as on a GPU, or which has none."""
    if x.device.type != "cpu" or (x.data_ptr() == 0 and prod(x.shape)):
        what = f"{kernel}: {name_of(leaf)} is on {x.device} without memory on the CPU"
        raise ValueError(f"{what}: dry_run(execute=True) takes tensors that hold values on the CPU")


def _buffer(leaf: Leaf, x: Any, is_writable: bool) -> Buffer:
    return Buffer(name_of(leaf), x.data_ptr(), x.element_size(), tuple(x.shape), tuple(x.stride()), is_writable)


def _bits(value: Any, kind: str) -> int:
    """Return the bits that Triton's launcher makes of a number, for a parameter of Triton's type ``kind``."""
    if kind == "fp16":
        return int.from_bytes(struct.pack("<e", value), "little")
    if kind in ("fp32", "f32", "bf16"):  # infinite where it is too large
        bits = int.from_bytes(bytes(c_float(value)), "little")
        return bits >> 16 if kind == "bf16" else bits
    if kind == "fp64":
        return int.from_bytes(bytes(c_double(value)), "little")
    return 0 if value is None else index(value)  # of a pointer: an address that nobody gave a tensor for
