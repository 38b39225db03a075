"""The GPUs that a dry run compiles for, and what each has for a launch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..ptx.faults import KernelFault

KIB = 1024
PARTS = 4  # of a multiprocessor, each with a quarter of its registers and of a block's warps


class Target(NamedTuple):
    """A GPU: what Triton compiles for, and what a launch on it may ask for.

    Sources: the tables "Technical Specifications per Compute Capability" and "Compute Capabilities" of NVIDIA's CUDA
    C++ Programming Guide, NVIDIA's data sheets for multiprocessors, AMD's table "AMD GPU specifications" (ROCm), and
    for the registers of a wave the LLVM guide to the AMDGPU backend.
    """

    backend: str  # Triton's name of it: cuda or hip
    arch: int | str  # Triton's name of the architecture: 90 for sm_90, or gfx942
    warp_size: int  # threads
    multiprocessors: int  # of the model that a data centre has most of; on AMD compute units
    shared_bytes: int  # the most of a block, which opts in to it on CUDA
    registers: int = 65536  # of a multiprocessor, each of 32 bits, so the most of a block
    registers_per_thread: int = 255
    register_unit: int = 256  # registers: what a warp has is a multiple
    threads: int = 1024  # the most of a block
    grid: tuple[int, int, int] = (2**31 - 1, 65535, 65535)  # the most blocks along each axis


TARGETS = {
    "cuda:80": Target("cuda", 80, 32, multiprocessors=108, shared_bytes=163 * KIB),  # A100
    "cuda:90": Target("cuda", 90, 32, multiprocessors=132, shared_bytes=227 * KIB),  # H100 SXM
    "cuda:100": Target("cuda", 100, 32, multiprocessors=148, shared_bytes=227 * KIB),  # B200
    "cuda:120": Target("cuda", 120, 32, multiprocessors=170, shared_bytes=99 * KIB),  # RTX 5090
    "hip:gfx942": Target(  # MI300X
        "hip",
        "gfx942",
        64,
        multiprocessors=304,
        shared_bytes=64 * KIB,
        registers=131072,  # vectors of 64 times 4 bytes: 512 KiB
        registers_per_thread=512,
        register_unit=512,
    ),
}


def most_threads(target: Target, registers: int) -> int:
    """Return the most threads of a block in which each thread has so many registers."""
    of_warp = max(1, -(-registers * target.warp_size // target.register_unit)) * target.register_unit
    warps = PARTS * (target.registers // PARTS // of_warp)
    return min(target.threads, warps * target.warp_size)


def check_launch(
    target_name: str, kernel: str, grid: Sequence[int], threads: int, registers: int, shared_bytes: int
) -> None:
    """Raise an error where a launch asks for more than the GPU has.

    Args:
        target_name: one of ``TARGETS``.
        kernel: its name, for the fault.
        grid: the blocks along each axis.
        threads: those of a block.
        registers: those of a thread.
        shared_bytes: the shared memory of a block.

    Raises:
        KernelFault: it names the kernel, what was asked for and the limit.
    """
    target = TARGETS[target_name]
    limits = {
        "threads of a block": (threads, target.threads),
        "registers of a thread": (registers, target.registers_per_thread),
        f"threads of a block with {registers} registers each": (threads, most_threads(target, registers)),
        "bytes of shared memory of a block": (shared_bytes, target.shared_bytes),
    }
    limits |= {
        f"blocks along axis {axis} of the grid": pair for axis, pair in enumerate(zip(grid, target.grid, strict=True))
    }
    for what, (asked, limit) in limits.items():
        if asked > limit:
            raise KernelFault(f"{asked:,} {what}, but {target_name} has at most {limit:,}", kernel)
