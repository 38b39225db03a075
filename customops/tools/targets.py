"""The GPUs that a dry run compiles for, and what each has for a launch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..ptx.faults import KernelFault

KIB = 1024
MIB = 1024 * KIB
PARTS = 4  # of a multiprocessor, each with a quarter of its registers and of a block's warps


class Target(NamedTuple):
    """A GPU: what Triton compiles for, what a launch on it may ask for, and how fast it is.

    Sources of the limits: the tables "Technical Specifications per Compute Capability" and "Compute Capabilities" of
    NVIDIA's CUDA C++ Programming Guide, NVIDIA's data sheets for multiprocessors, AMD's table "AMD GPU specifications"
    (ROCm), and for the registers of a wave the LLVM guide to the AMDGPU backend. docs/model.md has those of the speeds.
    """

    model: str  # the GPU that data centres have most of
    backend: str  # Triton's name of it: cuda or hip
    arch: int | str  # Triton's name of the architecture: 90 for sm_90, or gfx942
    warp_size: int  # threads
    multiprocessors: int  # on AMD compute units
    shared_bytes: int  # the most of a block, which opts in to it on CUDA
    clock: float  # cycles a second under load
    dram_nominal: float  # bytes a second, by the data sheet
    dram_bandwidth: float  # bytes a second that a copy reaches
    dram_latency: float  # seconds from asking for a byte to having it, while the memory is busy
    l2_bytes: int  # of all multiprocessors
    l2_bandwidth: float  # bytes a second
    l2_latency: float  # seconds
    l1_bytes: int  # of a multiprocessor, shared memory included
    issued: int  # threads of which a multiprocessor issues an instruction in each cycle
    launch_latency: float = 3e-6  # seconds from the end of one launch to the first instruction of the next
    registers: int = 65536  # of a multiprocessor, each of 32 bits, so the most of a block
    registers_per_thread: int = 255
    register_unit: int = 256  # registers: what a warp has is a multiple
    threads: int = 1024  # the most of a block
    warps: int = 64  # the most that are resident on a multiprocessor
    blocks: int = 32  # likewise
    grid: tuple[int, int, int] = (2**31 - 1, 65535, 65535)  # the most blocks along each axis


H100 = Target(
    "H100 SXM", "cuda", 90, 32,
    multiprocessors=132, shared_bytes=227 * KIB, clock=1.7e9,
    dram_nominal=3.35e12, dram_bandwidth=3.0e12, dram_latency=650e-9,
    l2_bytes=50 * MIB, l2_bandwidth=5.5e12, l2_latency=270e-9, l1_bytes=256 * KIB, issued=128,
)  # fmt: skip
A100 = Target(
    "A100 SXM", "cuda", 80, 32,
    multiprocessors=108, shared_bytes=163 * KIB, clock=1.41e9,
    dram_nominal=2.04e12, dram_bandwidth=1.75e12, dram_latency=600e-9,
    l2_bytes=40 * MIB, l2_bandwidth=4.5e12, l2_latency=250e-9, l1_bytes=192 * KIB, issued=128,
)  # fmt: skip
B200 = Target(
    "B200", "cuda", 100, 32,
    multiprocessors=148, shared_bytes=227 * KIB, clock=1.7e9,
    dram_nominal=8.0e12, dram_bandwidth=7.0e12, dram_latency=800e-9,
    l2_bytes=126 * MIB, l2_bandwidth=10e12, l2_latency=300e-9, l1_bytes=256 * KIB, issued=128,
)  # fmt: skip
RTX5090 = Target(
    "RTX 5090", "cuda", 120, 32,
    multiprocessors=170, shared_bytes=99 * KIB, clock=2.41e9,
    dram_nominal=1.79e12, dram_bandwidth=1.6e12, dram_latency=650e-9,
    l2_bytes=96 * MIB, l2_bandwidth=6e12, l2_latency=250e-9, l1_bytes=128 * KIB, issued=128, warps=48, blocks=24,
)  # fmt: skip
MI300X = Target(
    "MI300X", "hip", "gfx942", 64,
    multiprocessors=304, shared_bytes=64 * KIB, clock=2.1e9,
    dram_nominal=5.3e12, dram_bandwidth=4.3e12, dram_latency=1000e-9,
    l2_bytes=256 * MIB, l2_bandwidth=12e12, l2_latency=500e-9, l1_bytes=32 * KIB, issued=64,
    registers=131072, registers_per_thread=512, register_unit=512, warps=32, blocks=32,
)  # fmt: skip
H200 = H100._replace(model="H200", dram_nominal=4.8e12, dram_bandwidth=4.3e12)

TARGETS = {"cuda:80": A100, "cuda:90": H100, "cuda:100": B200, "cuda:120": RTX5090, "hip:gfx942": MI300X}
NAMES = {gpu.model.partition(" ")[0].lower(): gpu for gpu in (A100, H100, H200, B200, MI300X)} | {"rtx5090": RTX5090}
GPUS = {gpu.model: gpu for gpu in (A100, H100, H200, B200, RTX5090, MI300X)}


def find(name: str) -> tuple[str, Target]:
    """Return the target of a dry run and the GPU that a name stands for: a target's own, or a GPU's, as ``h200``.

    Raises ValueError for any other name.
    """
    if name in TARGETS:
        return name, TARGETS[name]
    gpu = NAMES.get(name.lower())
    if gpu is None:
        raise ValueError(f"target: expected one of {', '.join([*NAMES, *TARGETS])}, got {name!r}")
    return f"{gpu.backend}:{gpu.arch}", gpu


def most_threads(target: Target, registers: int) -> int:
    """Return the most threads of a block in which each thread has so many registers."""
    return min(target.threads, _warps(target, registers) * target.warp_size)


def _warps(target: Target, registers: int) -> int:
    """Return how many warps, whose threads have so many registers each, the registers of a multiprocessor hold."""
    of_warp = max(1, -(-registers * target.warp_size // target.register_unit)) * target.register_unit
    return PARTS * (target.registers // PARTS // of_warp)


def resident_blocks(target: Target, warps: int, registers: int, shared_bytes: int) -> int:
    """Return how many blocks of so many warps a multiprocessor can have at once.

    Args:
        target: the GPU.
        warps: those of a block.
        registers: those of a thread.
        shared_bytes: the shared memory of a block, to which CUDA adds 1 KiB for itself.
    """
    reserved = KIB if target.backend == "cuda" else 0
    by_shared = (target.shared_bytes + reserved) // (shared_bytes + reserved) if shared_bytes else target.blocks
    return max(1, min(target.blocks, min(target.warps, _warps(target, registers)) // warps, by_shared))


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
