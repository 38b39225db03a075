"""Describe launches: in tables, in lines that say all, and as records of JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

from torch import Tensor

from .estimate import Estimate, estimate
from .machine_code import Leaf, accesses, name_of
from .record import LaunchRecord
from .table import Table
from .targets import KIB, Target

WIDTH = 118  # of a line
Phases = Mapping[str, Sequence[LaunchRecord]]  # the launches of forward, and perhaps of backward


def launch_table(phases: Phases, gpu: Target | None = None) -> Table:
    """Return a line for each launch: what a program computes, what its threads hold and move, what limits it.

    Estimates are those of ``gpu``, or of the one that stands for the dry run's target.
    """
    head = "", "block", "programs x warps", "registers", "spills", "load bits", "store bits", "KiB in flight"
    rows = []
    for phase, records in phases.items():
        for number, record in enumerate(records, 1):
            found = estimate(record, gpu)
            widths = _widest(record)
            rows.append(
                (
                    f"{phase} {number}" if len(records) > 1 else phase,
                    _block(record),
                    f"{' x '.join(map(str, _programs(record)))} x {record.num_warps}",
                    str(found.registers),
                    str(found.spills),
                    _bits(widths["load"]),
                    _bits(widths["store"]),
                    f"{found.bytes_in_flight / KIB:.1f}",
                    megabytes(record.bytes_moved),
                    microseconds(found.total),
                    found.limit,
                )
            )
    return Table((*head, "MB", "us", "limited by"), rows)


def cost_row(name: str, records: Sequence[LaunchRecord], floor: int | None, gpu: Target | None) -> tuple[str, ...]:
    """Return the cells of COST_HEAD for launches one after the other, of inputs and outputs of ``floor`` bytes."""
    moved = total(record.bytes_moved for record in records)
    found = [estimate(record, gpu) for record in records]
    seconds = sum(each.total for each in found)
    limit = max(found, key=lambda each: each.total).limit if found else "-"
    return name, str(len(records)), megabytes(moved), ratio(moved, floor), microseconds(seconds), limit


COST_HEAD = ("", "kernels", "MB moved", "x floor", "us", "limited by")


def launches_as_json(phases: Phases, gpu: Target | None = None) -> list[dict[str, Any]]:
    """Return a record of each launch, in bytes and seconds."""
    return [_as_json(phase, record, estimate(record, gpu)) for phase, each in phases.items() for record in each]


def _as_json(phase: str, record: LaunchRecord, found: Estimate) -> dict[str, Any]:
    widths = _widest(record)
    return {
        "phase": phase,
        "kernel": record.name,
        "program": record.program,
        "grid": list(record.grid),
        "warps": record.num_warps,
        "block": list(record.moves.block) if record.moves else None,
        "registers": found.registers,
        "spills": found.spills,
        "bits_loaded": widths["load"],
        "bits_stored": widths["store"],
        "bytes_moved": record.bytes_moved,
        "bytes_floor": record.bytes_floor,
        "dram_bytes": found.dram_bytes,
        "l2_bytes": found.l2_bytes,
        "bytes_in_flight": found.bytes_in_flight,
        "seconds": found.total,
        "limited_by": found.limit,
    }


def _block(record: LaunchRecord) -> str:
    """Return what a program computes: rows x the elements of each, or elements in one."""
    if record.moves is None:
        return "?"
    *rows, columns = record.moves.block
    if record.name == "map_kernel" and rows == [1]:
        return str(columns)
    return f"{prod(rows)} x {columns}"


def _programs(record: LaunchRecord) -> tuple[int, ...]:
    """Return the programs along each axis of the grid, without those at its end that have one."""
    return record.grid[: max([axis for axis, n in enumerate(record.grid, 1) if n > 1], default=1)]


def _bits(widths: Mapping[str, int]) -> str:
    """Return how wide tensors are accessed: the widest of all, and by name those that are accessed in less."""
    most = max(widths.values(), default=0)
    return ", ".join([str(most or "-"), *(f"{name} {n}" for name, n in sorted(widths.items()) if n < most)])


def megabytes(count: int | None) -> str:
    """Return a number of bytes in millions, of which small ones have three digits; ``?`` where it is not known."""
    if count is None:
        return "?"
    return f"{count / 1e6:,.1f}" if count >= 10_000_000 else f"{count / 1e6:.3g}"


def microseconds(seconds: float) -> str:
    """Return a time in microseconds."""
    return f"{seconds * 1e6:,.1f}"


def ratio(moved: int | None, floor: int | None) -> str:
    """Return what is moved as a multiple of a floor; a launch that only adds up partial sums has none."""
    return f"{moved / floor:.3f}" if moved is not None and floor else "-"


def describe(phase: str, records: Sequence[LaunchRecord], gpu: Target | None = None) -> Iterator[str]:
    """Yield the lines that say all of the launches of a phase; estimates are those of ``gpu``, as in a table."""
    yield from (line for record in records for line in _lines(phase, record, estimate(record, gpu)))
    if not records:
        yield f"{phase:10}launches nothing"


def _lines(phase: str, record: LaunchRecord, found: Estimate) -> Iterator[str]:
    """Yield the lines that describe one launch."""
    text = f"{phase:10}{record.name}  {record.program}".rstrip()
    yield from textwrap.wrap(text, WIDTH, subsequent_indent=f"{'':12}", break_long_words=False, break_on_hyphens=False)
    yield f"{'':10}grid {record.grid}  warps {record.num_warps}  registers {record.registers}  spills {record.spills}"
    yield f"{'':10}{traffic(record.bytes_moved, record.bytes_floor)}"
    yield from (f"{'':10}{line}" for line in _limits(found))
    for kind, widths in _widest(record).items():
        yield f"{'':10}{kind:6}" + "".join(f"  {leaf} {bits}" for leaf, bits in sorted(widths.items())) + " bits"


def traffic(moved: int | None, floor: int | None) -> str:
    """Return the bytes moved beside their floor; a launch that only adds up partial sums has none."""
    return f"bytes moved {amount(moved)}  floor {amount(floor)}  ratio {ratio(moved, floor)}"


def _limits(found: Estimate) -> Iterator[str]:
    """Yield the lines that tell what limits a launch, and how long it is estimated to take."""
    instructions = f"instructions {found.instructions_per_element:.1f} an element"
    yield f"DRAM {found.dram_bytes:,}  L2 {found.l2_bytes:,}  {instructions}"
    in_flight = f"warps {found.warps:.1f}  in flight {found.bytes_in_flight / KIB:.1f} KiB on a multiprocessor"
    yield f"{in_flight}  {duration(found.total)}, limited by {found.limit}"


def duration(seconds: float) -> str:
    """Return an estimate of a time."""
    return f"estimate {seconds * 1e6:.1f} us"


def amount(count: int | None) -> str:
    """Return a number of bytes, which is not known of a kernel that is not ours and was not executed."""
    return "unknown" if count is None else f"{count:,}"


def total(counts: Iterable[int | None]) -> int | None:
    """Return the sum of numbers of bytes, None where one of them is not known."""
    counts = [*counts]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _widest(record: LaunchRecord) -> dict[str, dict[str, int]]:
    """Return the bits of the widest load and store of each operand and output; on AMD all count as ``any``."""
    widths: dict[str, dict[str, int]] = {"load": {}, "store": {}}
    for kind, bits, leaf in accesses(record.compiled):
        name = _name(leaf, record)
        widths[kind][name] = max(bits, widths[kind].get(name, 0))
    return widths


def _name(leaf: Leaf | None, record: LaunchRecord) -> str:
    """Return the name of the operand or output that an access goes to, or of the argument of another's kernel."""
    if leaf is None:
        return "any"
    if not record.program:
        return name_of(leaf)
    return record.operands[int(leaf[1])] if leaf[0] == "operands" else f"out{leaf[1]}"


def label(operand: Any) -> str:
    """Return an operand as ``bfloat16[4096, 4096]``, or a number as it is written."""
    if not isinstance(operand, Tensor):
        return str(operand)
    return f"{str(operand.dtype).removeprefix('torch.')}{list(operand.shape)}"
