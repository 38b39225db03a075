"""Add up what the launches of one pass count, and what they are estimated to take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from customops.tools.estimate import Estimate
from customops.tools.places import L2_SHARE
from customops.tools.record import LaunchRecord
from customops.tools.targets import TARGETS, Target

from .liger import TorchLaunch


class Launched(NamedTuple):
    """The figures of one launch."""

    name: str  # the kernel, or torch's operator
    grid: int | None  # programs; of torch's own it is not known, and neither are the other figures that are None
    dram_bytes: int
    l2_bytes: int
    instructions: float  # machine instructions of all threads; 0 for torch's own
    registers: int | None  # of a thread
    spills: int  # bytes of a thread
    warps: float | None  # resident on a multiprocessor
    in_flight: float | None  # bytes that a multiprocessor asks for at a time
    seconds: float  # estimated, from launch to launch
    limit: str  # what it waits for


def counts(launches: Sequence[LaunchRecord | TorchLaunch], elements: int, target: str) -> dict[str, Any]:
    """Return the figures of a pass over ``elements``, as they stand in the JSON. None is measured.

    Registers, warps, bytes in flight and the limit are those of the launch that is estimated to take longest; the other
    figures are sums over all launches. ``sass`` are machine instructions for each element.
    """
    each = [*_launched(launches, TARGETS[target])]
    longest = max((launch for launch in each if launch.grid), key=lambda launch: launch.seconds)
    return {
        "launches": len(each),
        "dram_bytes": sum(launch.dram_bytes for launch in each),
        "l2_bytes": sum(launch.l2_bytes for launch in each),
        "sass": sum(launch.instructions for launch in each) / elements,
        "registers": longest.registers,
        "spills": sum(launch.spills for launch in each),
        "warps": longest.warps,
        "in_flight": longest.in_flight,
        "seconds": sum(launch.seconds for launch in each),
        "limit": longest.limit,
        "kernels": [launch._asdict() for launch in each],
    }


def _launched(launches: Sequence[LaunchRecord | TorchLaunch], gpu: Target) -> Iterable[Launched]:
    """Yield the figures of each launch.

    Partial sums that a kernel leaves for torch to add up stay in the L2 where they fit its share, as the model has it
    for ours: then they are L2 bytes alone, of the launch that writes them and of the one that reads them.
    """
    partials = sum(launch.bytes_read for launch in launches if isinstance(launch, TorchLaunch) and launch.adds_partials)
    cached = partials if partials <= L2_SHARE * gpu.l2_bytes else 0
    for launch in launches:
        if isinstance(launch, TorchLaunch):
            yield _of_torch(launch, launch.bytes_read if cached and launch.adds_partials else 0, gpu)
        else:
            yield _of_triton(launch, cached, gpu)


def _of_triton(record: LaunchRecord, cached: int, gpu: Target) -> Launched:
    """Return the figures of a Triton kernel, which writes ``cached`` bytes that stay in the L2."""
    e: Estimate = record.estimate
    seconds = e.seconds._replace(dram=e.seconds.dram - cached / gpu.dram_bandwidth)
    return Launched(
        name=record.name,
        grid=record.grid[0] * record.grid[1] * record.grid[2],
        dram_bytes=e.dram_bytes - cached,
        l2_bytes=e.l2_bytes,
        instructions=e.instructions,
        registers=e.registers,
        spills=e.spills,
        warps=e.warps,
        in_flight=e.bytes_in_flight,
        seconds=max(seconds) + e.launch_seconds,
        limit=e.limit,
    )


def _of_torch(launch: TorchLaunch, cached: int, gpu: Target) -> Launched:
    """Return the figures of a kernel of torch's, of which only bytes are known: it takes their time and a launch's."""
    moved = launch.bytes_read + launch.bytes_written
    times = {"DRAM": (moved - cached) / gpu.dram_bandwidth, "L2": moved / gpu.l2_bandwidth}
    limit = max(times, key=lambda term: times[term])
    seconds = times[limit] + gpu.launch_latency
    return Launched(launch.name, None, moved - cached, moved, 0, None, 0, None, None, seconds, limit)
