"""Estimate how long a launch takes on a GPU, by four limits that are counted from its compiled code: docs/model.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from .. import config
from .assembly import Block, blocks_of
from .machine_code import Leaf, binary_stack, registers, resources
from .places import Placed, Residence, passed_and_placed, residence, spilled_to_l2
from .targets import PARTS, TARGETS, Target
from .ways import Way, usual_way


class Seconds(NamedTuple):
    """The time that each limit sets by itself."""

    dram: float  # bytes loaded from DRAM and stored there, by its bandwidth
    l2: float  # bytes that multiprocessors load and store, by the bandwidth of the L2
    in_flight: float  # a thread's waits for what it loads, one after the other
    instructions: float  # those of all threads, by the rate at which multiprocessors issue them


LIMITS = Seconds("DRAM", "L2", "bytes in flight", "instructions")  # type: ignore[arg-type]


class Estimate(NamedTuple):
    """What limits a launch, and an estimate of its time: counted and computed, not measured."""

    gpu: str  # the model
    dram_bytes: int  # loaded from DRAM and stored there
    l2_bytes: int  # loaded and stored by multiprocessors, by way of the L2: those of DRAM and what is read again
    elements: int  # of the largest tensor of the launch
    instructions: float  # that all threads issue
    registers: int  # of a thread
    spills: int  # bytes of a thread that registers do not hold
    warps: float  # resident on a multiprocessor, the mean of all multiprocessors
    bytes_in_flight: float  # asked for on a multiprocessor at any time, likewise; from DRAM, where any are
    seconds: Seconds  # each limit by itself
    launch_seconds: float  # from one launch to the next

    @property
    def limit(self) -> str:
        """Return the name of the limit that takes longest, one of LIMITS."""
        return LIMITS[self.seconds.index(max(self.seconds))]  # type: ignore[return-value]

    @property
    def total(self) -> float:
        """Return the seconds that the launch takes."""
        return max(self.seconds) + self.launch_seconds

    @property
    def instructions_per_element(self) -> float:
        """Return the machine instructions for each element of the largest tensor."""
        return self.instructions / self.elements


def estimate(record: Any, gpu: Target | None = None) -> Estimate:
    """Return the estimate of a launch that a dry run recorded.

    Args:
        record: a ``LaunchRecord``.
        gpu: one of ``targets.GPUS`` that runs code for the dry run's target; without it the one that stands for it.
    """
    gpu = gpu or target_of(record.compiled)
    key = record.compiled.hash, gpu.model, record.grid, record.num_warps, record.moves, record.tensors
    if key not in config.launch_estimates:
        config.launch_estimates[key] = _estimate(record, gpu)
    return config.launch_estimates[key]


def total_seconds(records: Iterable[Any], gpu: Target | None = None) -> float:
    """Return the estimated seconds of several launches, one after the other."""
    return sum(estimate(record, gpu).total for record in records)


def target_of(compiled: Any) -> Target:
    """Return the GPU that stands for those that a kernel was compiled for."""
    target = compiled.metadata.target
    return TARGETS[f"{target.backend}:{target.arch}"]


def _estimate(record: Any, gpu: Target) -> Estimate:
    compiled, where = record.compiled, residence(record, gpu)
    passed, tensors = passed_and_placed(record, _way(compiled), where)
    dram = sum(tensor.dram for tensor in tensors)
    l2 = sum(tensor.l2 for tensor in tensors) + spilled_to_l2(passed, compiled, where)
    instructions = sum(n * block.instructions for block, n in passed) * where.threads * where.programs
    waits = sum(n * _wait(block, tensors, gpu) for block, n in passed)
    seconds = Seconds(
        dram=dram / gpu.dram_bandwidth,
        l2=l2 / gpu.l2_bandwidth,
        in_flight=waits * where.programs / where.resident,
        instructions=instructions / _rate(where),
    )
    of_thread = max((_asked(block, tensors) for block, _ in passed), default=0)
    return Estimate(
        gpu=gpu.model,
        dram_bytes=dram,
        l2_bytes=l2,
        elements=max((x.moves.unique // x.moves.itemsize for x in tensors), default=1),
        instructions=instructions,
        registers=registers(compiled),
        spills=_spills(compiled),
        warps=where.resident * record.num_warps / gpu.multiprocessors,
        bytes_in_flight=of_thread * where.threads * where.resident / gpu.multiprocessors,
        seconds=seconds,
        launch_seconds=gpu.launch_latency,
    )


def _way(compiled: Any) -> Way:
    """Return the usual way through a kernel, which is read once."""
    if compiled.hash not in config.kernel_ways:
        config.kernel_ways[compiled.hash] = usual_way(blocks_of(compiled))
    return config.kernel_ways[compiled.hash]


def _spills(compiled: Any) -> int:
    """Return the bytes that a thread spills. Without memory of its own it spills none, and ptxas need not be asked."""
    is_clean = compiled.metadata.target.backend == "cuda" and not binary_stack(compiled.asm["cubin"])
    return 0 if is_clean else resources(compiled).spills


def _asked(block: Block, tensors: Sequence[Placed]) -> int:
    """Return the bytes that a thread asks DRAM for in a block; of a launch that loads nothing from there, the L2."""
    loaded = {x.leaf for x in tensors if x.is_in_dram} or {x.leaf for x in tensors if not x.moves.is_stored}
    return sum(x.size for x in block.accesses if x.kind == "load" and (x.leaf is None or x.leaf in loaded))


def _wait(block: Block, tensors: Sequence[Placed], gpu: Target) -> float:
    """Return the seconds until a thread has what a block loads, all at once; 0 where it loads nothing."""
    from_dram: dict[Leaf | None, float] = {
        x.leaf: min(1.0, x.dram / x.moves.requested) for x in tensors if not x.moves.is_stored
    }
    shares = [from_dram.get(access.leaf, 1.0) for access in block.accesses if access.kind == "load"]
    return gpu.l2_latency + max(shares) * (gpu.dram_latency - gpu.l2_latency) if shares else 0.0


def _rate(where: Residence) -> float:
    """Return the instructions of a thread that the multiprocessors issue in a second, all together.

    A part of a multiprocessor that has no warp issues none.
    """
    warps = where.resident * where.threads / where.gpu.warp_size / where.busy
    return where.gpu.clock * where.gpu.issued * where.busy * min(1.0, warps / PARTS)
