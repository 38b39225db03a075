"""What a call of a fused function was found to cost, in tables and in lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from ..compiler.executable import Executable
from ..compiler.graph import Graph
from ..compiler.printing import label as value_label
from ..tools.estimate import total_seconds
from ..tools.record import LaunchRecord
from ..tools.report import (
    COST_HEAD,
    Phases,
    amount,
    cost_row,
    describe,
    duration,
    launch_table,
    megabytes,
    ratio,
    total,
    traffic,
)
from ..tools.table import Table
from ..tools.targets import Target
from .unfused import Cost, filled


class NotFused(Exception):
    """The reason why the operators of a function are applied one by one."""


class Phase(NamedTuple):
    """One direction of a fused function."""

    name: str  # forward or backward
    graph: Graph
    program: list[str]  # the graph in lines
    executable: Executable  # its kernels
    records: list[LaunchRecord]  # their launches
    inputs: Sequence[Tensor]  # the kernels' inputs, without the saved statistics
    outputs: Sequence[Tensor]

    @property
    def bytes_moved(self) -> int | None:
        """Bytes that the launches load and store."""
        return total(record.bytes_moved for record in self.records)

    @property
    def bytes_floor(self) -> int:
        """Bytes of the inputs that are read, and of the outputs, each once."""
        launches = self.executable.plan.launches if self.executable.plan else []
        read = {i for launch in launches for i in launch.operand_positions}
        memory = {x.data_ptr(): filled(x) for i, x in enumerate(self.inputs) if i in read}
        inputs = {x.data_ptr() for x in self.inputs}
        memory |= {x.data_ptr(): filled(x) for x in self.outputs if x.data_ptr() not in inputs}
        return sum(memory.values())

    def scratch(self) -> Iterator[str]:
        """Yield what passes from one of its launches to another, in lines."""
        itemsize = self.executable.plan.accumulate_dtype.itemsize if self.executable.plan else 0
        for value, reason, elements in self.executable.spills:
            size = elements * itemsize
            yield f"{'scratch':10}{value_label(self.graph, value)} passes through memory, {size:,} bytes: {reason}"


class Findings(NamedTuple):
    """The cost of a call, forward and perhaps backward."""

    fused: list[Phase]  # each direction
    saved: dict[str, int]  # what forward saves for backward, by name: the bytes
    unfused: list[Cost]  # of the same directions, operator by operator
    on_cpu: list[str]  # what a CPU does, in lines
    gpu: Target  # the estimates are of it

    @property
    def phases(self) -> Phases:
        """Return the fused launches of each direction."""
        return {phase.name: phase.records for phase in self.fused}

    @property
    def seconds(self) -> float:
        """Return the estimated time of the fused launches."""
        return sum(total_seconds(phase.records, self.gpu) for phase in self.fused)

    def costs(self) -> Table:
        """Return what each direction and both cost, fused and operator by operator."""
        rows = [
            _cost(x.name, x.records, x.bytes_floor, y, self.gpu) for x, y in zip(self.fused, self.unfused, strict=True)
        ]
        if len(rows) > 1:
            both = Cost(sum(x.kernels for x in self.unfused), total(x.bytes_moved for x in self.unfused))
            records = [record for phase in self.fused for record in phase.records]
            rows.append(_cost("total", records, sum(x.bytes_floor for x in self.fused), both, self.gpu))
        return Table((*COST_HEAD, "unfused: kernels", "MB moved", "x fused"), rows)

    def summary(self) -> Iterator[str | Table]:
        """Yield the costs, a line for each launch, and what is saved: one screen."""
        yield self.costs()
        yield ""
        yield launch_table(self.phases, self.gpu)
        yield ""
        yield from self._beside()

    def _beside(self) -> Iterator[str]:
        """Yield what is said of a call beside its launches."""
        for phase in self.fused:
            yield from phase.scratch()
        if len(self.fused) > 1:
            yield f"{'saved':10}{', '.join(self.saved) or 'nothing'}  {sum(self.saved.values()):,} bytes"
        yield from self.on_cpu

    def details(self) -> Iterator[str]:
        """Yield the program of each direction, and all that is known of each launch, in lines."""
        for phase in self.fused:
            yield "program" if phase.name == "forward" else phase.name
            yield from (f"{'':4}{line}" for line in phase.program)
        for phase in self.fused:
            yield from describe(phase.name, phase.records, self.gpu)
        moved = total(phase.bytes_moved for phase in self.fused)
        floor = sum(phase.bytes_floor for phase in self.fused)
        launches, seconds = _count([len(phase.records) for phase in self.fused]), self.seconds
        yield f"{'total':10}{launches}  {traffic(moved, floor)}  {duration(seconds)}"
        unfused_moved = total(cost.bytes_moved for cost in self.unfused)
        times = f"  {unfused_moved / moved:.2f} times those of fused" if moved and unfused_moved else ""
        launches = _count([cost.kernels for cost in self.unfused])
        yield f"{'unfused':10}{launches}  bytes moved {amount(unfused_moved)}{times}"


def _cost(name: str, records: Sequence[LaunchRecord], floor: int, unfused: Cost, gpu: Target) -> tuple[str, ...]:
    """Return a row of the table of costs."""
    times = ratio(unfused.bytes_moved, total(record.bytes_moved for record in records))
    return *cost_row(name, records, floor, gpu), str(unfused.kernels), megabytes(unfused.bytes_moved), times


def _count(kernels: Sequence[int]) -> str:
    return "kernels " + ", ".join(f"{n} {name}" for n, name in zip(kernels, ("forward", "backward"), strict=False))
