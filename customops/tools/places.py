"""Find where the bytes that a launch loads and stores come from and go to: DRAM, the L2 or a multiprocessor's L1."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

from ..triton_kernels.traffic import TensorMoves, bytes_between
from .assembly import Block
from .machine_code import Leaf, accesses, binary_stack, registers, resources
from .targets import Target, resident_blocks
from .ways import Way, all_accesses, passes, walks_of

L2_SHARE = 0.5  # of the L2 that what is read again may fill: the L2 of these GPUs is two halves that hold the same data
L1_SHARE = 0.75  # of a multiprocessor's, which is shared memory too, of which these kernels use little
_ALL = 0.9  # of a tensor's bytes: a program of another's kernel that asks for more is taken to read all of it


class Residence(NamedTuple):
    """The programs of a launch on a GPU."""

    gpu: Target
    programs: int
    threads: int  # of a program
    resident: int  # programs at once, on all multiprocessors

    @property
    def busy(self) -> int:
        """Return the multiprocessors that have a program."""
        return min(self.gpu.multiprocessors, self.resident)

    def fits_l1(self, of_program: float) -> bool:
        """Return whether a multiprocessor's L1 holds so many bytes of each of its programs."""
        return of_program * self.resident <= L1_SHARE * self.gpu.l1_bytes * self.busy


class Placed(NamedTuple):
    """A tensor that a launch loads or stores, and where its bytes come from or go to."""

    leaf: Leaf  # where it stands among the kernel's arguments
    moves: TensorMoves
    dram: int  # bytes that come from DRAM or go there
    l2: int  # bytes that pass between multiprocessors and the L2, which those of DRAM do too

    @property
    def is_in_dram(self) -> bool:
        """Return whether it is loaded from DRAM, and is not what many programs share."""
        return self.dram > 0 and not self.moves.is_stored and self.moves.by_programs < 2 * self.moves.unique


def residence(record: Any, gpu: Target) -> Residence:
    """Return how many programs of a launch are on the GPU at once."""
    programs = prod(record.grid)
    on_one = resident_blocks(gpu, record.num_warps, registers(record.compiled), record.compiled.metadata.shared)
    resident = min(programs, on_one * gpu.multiprocessors)
    return Residence(gpu, programs, record.num_warps * gpu.warp_size, resident)


def passed_and_placed(record: Any, way: Way, where: Residence) -> tuple[list[tuple[Block, float]], list[Placed]]:
    """Return the blocks that a thread passes, each with how often, and the tensors of the launch."""
    passed, moves = (_of_ours if record.moves else _of_others)(record, way, where)
    scratch = sum(m.unique for _, m in moves if m.is_scratch)
    of_program = sum(m.by_programs for _, m in moves) // where.programs
    return passed, [_placed(leaf, m, where, scratch, of_program) for leaf, m in moves]


def spilled_to_l2(passed: Sequence[tuple[Block, float]], compiled: Any, where: Residence) -> int:
    """Return the bytes of threads' own memory that pass between multiprocessors and the L2: the L1 may hold them."""
    is_hip = compiled.metadata.target.backend == "hip"
    of_thread = resources(compiled).spills if is_hip else binary_stack(compiled.asm["cubin"])
    if where.fits_l1(of_thread * where.threads):
        return 0
    moved = sum(n * access.size for block, n in passed for access in block.accesses if access.kind == "local")
    return round(moved * where.threads * where.programs)


def _placed(leaf: Leaf, m: TensorMoves, where: Residence, scratch: int, of_program: int) -> Placed:
    """Return a tensor with its place.

    Args:
        leaf: where it stands among the arguments.
        m: what is moved of it.
        where: the programs.
        scratch: bytes of all scratch buffers of the launch.
        of_program: bytes of all tensors that one program touches.
    """
    share = L2_SHARE * where.gpu.l2_bytes
    again, shared = m.requested - m.by_programs, m.by_programs - m.unique
    dram = 0 if m.is_scratch and scratch <= share else m.unique
    is_shared_at_once = 0 < m.apart < where.resident  # so that others keep it in the L2
    if m.distance * where.resident > share and not is_shared_at_once:
        dram += again
    if m.apart >= where.resident and m.apart * of_program > share:
        dram += shared
    return Placed(leaf, m, dram, m.by_programs + (0 if where.fits_l1(m.distance) else again))


def _of_ours(record: Any, way: Way, where: Residence) -> tuple[list[tuple[Block, float]], list]:
    """Return the passed blocks and the tensors of a launch of ours, of which the tiling tells what is moved."""
    tensors = record.moves.tensors
    inputs = sum(not m.is_stored for m in tensors)
    leaves = [("outputs", k - inputs) if k >= inputs else ("operands", k) for k in range(len(tensors))]
    moves = [(leaf, m) for leaf, m in zip(leaves, tensors, strict=True) if m.unique]
    loaded: dict[Leaf | None, float] = {leaf: m.by_lanes / where.threads for leaf, m in moves if not m.is_stored}
    if not any(access.leaf for access in all_accesses(way)):  # AMD's assembly does not tell the pointers
        loaded = {None: sum(loaded.values())}
    return passes(way, loaded, record.moves.steps), moves


def _of_others(record: Any, way: Way, where: Residence) -> tuple[list[tuple[Block, float]], list]:
    """Return the same of another's launch: each loop that loads from a tensor is taken to go over all of it."""
    sizes: dict[Leaf | None, int] = {x.leaf: x.numel * x.itemsize for x in record.tensors}
    if not any(access.leaf for access in all_accesses(way)):
        sizes[None] = sum(sizes.values())
    threads = where.threads * where.programs
    passed = passes(way, {leaf: walks_of(way, leaf) * size / threads for leaf, size in sizes.items()})
    used = {(access.leaf, access.kind) for access in accesses(record.compiled)}
    moves = []
    for leaf, _, itemsize in record.tensors:
        for kind in ("load", "store"):
            if (leaf, kind) in used or (kind == "load" and (None, kind) in used):
                moves.append((leaf, _guessed(sizes[leaf], itemsize, kind, _asked(passed, leaf, kind), where)))
    distance = bytes_between(m for _, m in moves) // where.programs
    return passed, [(leaf, m._replace(distance=distance * (m.requested > m.by_programs))) for leaf, m in moves]


def _asked(passed: Sequence[tuple[Block, float]], leaf: Leaf, kind: str) -> list[float]:
    """Return the bytes of a tensor that a thread loads or stores in each block that does."""
    moved = (n * sum(x.size for x in block.accesses if (x.kind, x.leaf) == (kind, leaf)) for block, n in passed)
    return [size for size in moved if size]


def _guessed(size: int, itemsize: int, kind: str, asked: Sequence[float], where: Residence) -> TensorMoves:
    """Return what is moved of a tensor of ``size`` bytes, of which a thread asks for so many in some blocks.

    Where a program asks for as much as the tensor has, each reads all of it. Else the programs share it out, and each
    goes over its part in as many blocks as ask for it, or fewer: threads may ask for the same element at once.
    """
    by_lanes = round(sum(asked) * where.threads)
    is_shared = where.programs > 1 and by_lanes >= _ALL * size
    by_programs = size * (where.programs if is_shared else 1)
    walks = max(1, min(len(asked), round(by_lanes * where.programs / by_programs)))
    is_stored = kind == "store"
    return TensorMoves(size, by_programs, by_programs * walks, by_lanes, int(is_shared), 0, itemsize, is_stored, False)
