"""Estimate how long a launch takes on a GPU, by four limits that are counted from its compiled code: docs/model.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any, NamedTuple

from .. import config
from ..triton_kernels.traffic import TensorMoves
from .assembly import Block, blocks_of
from .machine_code import Leaf, binary_stack, registers, resources
from .targets import PARTS, TARGETS, Target, resident_blocks
from .ways import Way, all_accesses, passes, usual_way, walks_of

L2_SHARE = 0.5  # of the L2 that what is to be read again may fill: it holds other data too, on both of its halves
L1_SHARE = 0.5  # likewise of a multiprocessor's
_MOST = 0.9  # of the bytes that are asked for where each program reads a whole tensor: a guess for others' kernels
LIMITS = ("DRAM", "L2", "bytes in flight", "instructions")


class Seconds(NamedTuple):
    """The time that each limit sets by itself."""

    dram: float  # its bytes by its bandwidth
    l2: float  # likewise
    in_flight: float  # the times that a thread waits for loads, one after the other
    instructions: float  # by the rate at which multiprocessors issue them


class Estimate(NamedTuple):
    """What limits a launch, or several, and an estimate of its time. No GPU was asked."""

    gpu: str  # the model
    dram_bytes: int  # loaded from and stored to DRAM
    l2_bytes: int  # loaded and stored by multiprocessors: all but what the L1 has
    elements: int  # of the largest tensor
    instructions: float  # machine instructions that threads issue, those of all threads added up
    registers: int  # of a thread
    spills: int  # bytes of a thread that registers do not hold
    warps: float  # resident on a multiprocessor, the mean of all multiprocessors
    bytes_in_flight: float  # asked for by loads on a multiprocessor at any time, likewise; see docs/model.md
    seconds: Seconds  # each limit by itself
    launch_seconds: float  # between launches
    limit: str  # the name of the limit that takes longest, one of LIMITS

    @property
    def total(self) -> float:
        """Return the seconds from launch to launch."""
        return max(self.seconds) + self.launch_seconds

    @property
    def instructions_per_element(self) -> float:
        """Return the machine instructions for each element of the largest tensor."""
        return self.instructions / self.elements


class _Tensor(NamedTuple):
    """A tensor of a launch, and where its bytes come from or go to."""

    leaf: Leaf
    moves: TensorMoves
    dram: int = 0  # bytes
    l2: int = 0  # bytes that pass between the L2 and multiprocessors, those from DRAM too

    @property
    def is_stored(self) -> bool:
        """Return whether it is an output."""
        return self.moves.is_stored

    @property
    def is_in_dram(self) -> bool:
        """Return whether it is read from DRAM, but for what is read again: not what many programs share."""
        return self.dram > 0 and self.moves.by_programs < 2 * self.moves.unique


def estimate(record: Any, gpu: Target | None = None) -> Estimate:
    """Return the estimate of a launch, which a dry run recorded, on a GPU of the kind that it was compiled for.

    Args:
        record: a ``LaunchRecord``.
        gpu: one of ``targets.GPUS``; without it that of the dry run's target.
    """
    gpu = gpu or target_of(record.compiled)
    key = record.compiled.hash, gpu.model, record.grid, record.num_warps, record.moves, record.tensors
    if key not in config.launch_estimates:
        config.launch_estimates[key] = _estimate(record, gpu)
    return config.launch_estimates[key]


def target_of(compiled: Any) -> Target:
    """Return the GPU that a kernel was compiled for."""
    target = compiled.metadata.target
    return TARGETS[f"{target.backend}:{target.arch}"]


def total_seconds(records: Iterable[Any], gpu: Target | None = None) -> float:
    """Return the estimated seconds of several launches, one after the other."""
    return sum(estimate(record, gpu).total for record in records)


def _estimate(record: Any, gpu: Target) -> Estimate:
    compiled, launched = record.compiled, _launched(record, gpu)
    way = _way(compiled)
    tensors, passed = (_ours if record.moves else _others)(record, way, launched)
    tensors = _placed(tensors, launched)
    dram, l2 = sum(tensor.dram for tensor in tensors), sum(tensor.l2 for tensor in tensors)
    l2 += _spilled(passed, compiled, launched)
    instructions = sum(times * block.instructions for block, times in passed) * launched.threads * launched.programs
    waits = sum(times * _latency(block, tensors, gpu) for block, times in passed)
    seconds = Seconds(
        dram / gpu.dram_bandwidth,
        l2 / gpu.l2_bandwidth,
        waits * launched.programs / launched.resident,
        instructions / _issued(launched),
    )
    return Estimate(
        gpu=gpu.model,
        dram_bytes=dram,
        l2_bytes=l2,
        elements=max((x.moves.unique // x.moves.itemsize for x in tensors if x.moves.itemsize), default=1),
        instructions=instructions,
        registers=registers(compiled),
        spills=_spills(compiled),
        warps=launched.resident * record.num_warps / gpu.multiprocessors,
        bytes_in_flight=max((_asked(block, tensors) for block, _ in passed), default=0)
        * launched.threads
        * launched.resident
        / gpu.multiprocessors,
        seconds=seconds,
        launch_seconds=gpu.launch_latency,
        limit=LIMITS[seconds.index(max(seconds))],
    )


class _Launched(NamedTuple):
    """How the programs of a launch are on a GPU."""

    gpu: Target
    programs: int
    threads: int  # of a program
    resident: int  # programs at once, on all multiprocessors

    @property
    def busy(self) -> int:
        """Return the multiprocessors that have a program."""
        return min(self.gpu.multiprocessors, self.resident)


def _launched(record: Any, gpu: Target) -> _Launched:
    programs = prod(record.grid)
    on_one = resident_blocks(gpu, record.num_warps, registers(record.compiled), record.compiled.metadata.shared)
    resident = min(programs, on_one * gpu.multiprocessors)
    return _Launched(gpu, programs, record.num_warps * gpu.warp_size, resident)


def _way(compiled: Any) -> Way:
    """Return the usual way through a kernel, read once."""
    if compiled.hash not in config.kernel_ways:
        config.kernel_ways[compiled.hash] = usual_way(blocks_of(compiled))
    return config.kernel_ways[compiled.hash]


def _ours(record: Any, way: Way, launched: _Launched) -> tuple[list[_Tensor], list[tuple[Block, float]]]:
    """Return the tensors of a launch of ours, not placed yet, and how often its blocks are passed."""
    inputs = sum(not m.is_stored for m in record.moves.tensors)
    leaves = [("outputs", k - inputs) if k >= inputs else ("operands", k) for k in range(len(record.moves.tensors))]
    tensors = [_Tensor(leaf, m) for leaf, m in zip(leaves, record.moves.tensors, strict=True) if m.unique]
    known: dict[Leaf | None, float] = {x.leaf: x.moves.by_lanes / launched.threads for x in tensors if not x.is_stored}
    if any(access.leaf is None for access in all_accesses(way)):
        known[None] = sum(known.values())
    return tensors, passes(way, known, record.moves.steps)


def _others(record: Any, way: Way, launched: _Launched) -> tuple[list[_Tensor], list[tuple[Block, float]]]:
    """Return the same of another's launch: each loop that loads from a tensor is taken to go over all of it."""
    threads = launched.threads * launched.programs
    sizes: dict[Leaf | None, int] = {x.leaf: x.numel * x.itemsize for x in record.tensors}
    sizes |= {None: sum(sizes.values())}
    passed = passes(way, {leaf: walks_of(way, leaf) * size / threads for leaf, size in sizes.items()})
    tensors = []
    for leaf, _, itemsize in record.tensors:
        for kind in ("load", "store"):
            moved = sum(n * x.size for block, n in passed for x in block.accesses if (x.kind, x.leaf) == (kind, leaf))
            if moved:
                moves = _guessed(sizes[leaf], round(moved * threads), itemsize, kind == "store", launched.programs)
                tensors.append(_Tensor(leaf, moves))
    if not tensors:  # no pointer is known
        tensors = [_Tensor(leaf, _guessed(sizes[leaf], sizes[leaf], n, False, 1)) for leaf, _, n in record.tensors]
    distance = sum(x.moves.unique for x in tensors) // launched.programs
    return [x._replace(moves=x.moves._replace(distance=distance)) for x in tensors], passed


def _guessed(size: int, asked: int, itemsize: int, is_stored: bool, programs: int) -> TensorMoves:
    """Return what is moved of a tensor, of which all threads ask for ``asked`` bytes, idle lanes included.

    Where that is as much as if each program read all of it, each does. Else programs share it out among them, and each
    goes over its part a number of times.
    """
    is_shared = programs > 1 and asked >= _MOST * size * programs
    by_programs = size * programs if is_shared else size
    requested = by_programs * max(1, round(asked / by_programs))
    return TensorMoves(size, by_programs, requested, asked // programs, int(is_shared), 0, itemsize, is_stored, False)


def _placed(tensors: Sequence[_Tensor], launched: _Launched) -> list[_Tensor]:
    """Return the tensors with the bytes that come from DRAM, and those that come from or by way of the L2."""
    gpu = launched.gpu
    l2, l1 = L2_SHARE * gpu.l2_bytes, L1_SHARE * gpu.l1_bytes
    scratch = sum(x.moves.unique for x in tensors if x.moves.is_scratch)
    of_program = sum(x.moves.by_programs for x in tensors) // launched.programs
    placed = []
    for tensor in tensors:
        m = tensor.moves
        again, shared = m.requested - m.by_programs, m.by_programs - m.unique
        is_in_l1 = m.distance * launched.resident <= l1 * launched.busy
        dram = 0 if m.is_scratch and scratch <= l2 else m.unique
        dram += again if not is_in_l1 and m.distance * launched.resident > l2 else 0
        dram += shared if m.apart >= launched.resident and m.apart * of_program > l2 else 0
        placed.append(tensor._replace(dram=dram, l2=m.by_programs + (0 if is_in_l1 else again)))
    return placed


def _spilled(passed: Sequence[tuple[Block, float]], compiled: Any, launched: _Launched) -> int:
    """Return the bytes of threads' own memory that the L2 has since the L1 cannot hold them."""
    hip = compiled.metadata.target.backend == "hip"
    of_thread = resources(compiled).spills if hip else binary_stack(compiled.asm["cubin"])
    held = of_thread * launched.threads * launched.resident
    if held <= L1_SHARE * launched.gpu.l1_bytes * launched.busy:
        return 0
    moved = sum(n * access.size for block, n in passed for access in block.accesses if access.kind == "local")
    return round(moved * launched.threads * launched.programs)


def _spills(compiled: Any) -> int:
    """Return the bytes that a thread spills; what has no memory of its own spills nothing, so ptxas need not say."""
    is_clean = compiled.metadata.target.backend == "cuda" and not binary_stack(compiled.asm["cubin"])
    return 0 if is_clean else resources(compiled).spills


def _asked(block: Block, tensors: Sequence[_Tensor]) -> int:
    """Return the bytes that a block loads from DRAM; from the L2 where no tensor is in DRAM."""
    loaded = [x for x in tensors if not x.is_stored]
    counted = {x.leaf for x in loaded if x.is_in_dram} or {x.leaf for x in loaded}
    return sum(x.size for x in block.accesses if x.kind == "load" and (x.leaf is None or x.leaf in counted))


def _latency(block: Block, tensors: Sequence[_Tensor], gpu: Target) -> float:
    """Return the seconds until a block has what it loads, 0 if it loads nothing."""
    of_leaf: dict[Leaf | None, float] = {x.leaf: x.dram / max(1, x.moves.requested) for x in tensors if not x.is_stored}
    shares = [of_leaf.get(access.leaf, 1.0) for access in block.accesses if access.kind == "load"]
    return gpu.l2_latency + max(shares) * (gpu.dram_latency - gpu.l2_latency) if shares else 0.0


def _issued(launched: _Launched) -> float:
    """Return the instructions that all multiprocessors issue in a second, for each thread one."""
    gpu = launched.gpu
    warps = launched.resident * launched.threads / gpu.warp_size / launched.busy
    return gpu.clock * gpu.issued * launched.busy * min(1.0, warps / PARTS)
