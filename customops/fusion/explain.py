"""``fused.explain(...)``: what a fused function computes, launches and moves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..compiler.executable import Executable
from ..compiler.graph import Graph
from ..runtime.memory import unbacked, unbacked_like
from ..runtime.paths import CLASSES, is_intercepted, is_strided
from ..tools.dry_run import LaunchRecord, dry_run
from ..tools.report import describe, label, traffic
from ..triton_kernels.layout import VECTOR_BYTES
from .function import Fusion, why_not_fused
from .trace import Trace
from .unfused import Cost, filled, unfused


class Refused(Exception):
    """Why the operators of a function are applied one by one."""


class Phase(NamedTuple):
    """One direction of a fused function: its program, the kernels for that, and their launches."""

    name: str
    graph: Graph
    program: list[str]  # in lines
    lowered: Executable
    records: list[LaunchRecord]
    given: Sequence[Tensor]  # to the kernels, but for what they keep from the other direction
    made: Sequence[Tensor]

    @property
    def moved(self) -> int:
        """Bytes that the launches load and store."""
        return sum(record.bytes_moved for record in self.records)

    @property
    def floor(self) -> int:
        """Bytes of the tensors given that are read, and of those made, each once."""
        launched = self.lowered.plan.launches if self.lowered.plan else []
        read = {i for launch in launched for i in launch.reads}
        memory = {x.data_ptr(): filled(x) for i, x in enumerate(self.given) if i in read}
        given = {x.data_ptr() for x in self.given}
        memory |= {x.data_ptr(): filled(x) for x in self.made if x.data_ptr() not in given}
        return sum(memory.values())

    def report(self) -> Iterator[str]:
        """Its launches, and what passes between them, in lines."""
        yield from describe(self.name, self.records)
        itemsize = self.lowered.plan.accumulate.itemsize if self.lowered.plan else 0
        for value, why in self.lowered.cuts:
            size = self.graph.count(self.graph.axes[value]) * itemsize
            yield f"{'cut':10}{self.graph.word(value)} passes through memory, {size:,} bytes: {why}"


class Findings(NamedTuple):
    """A call, fused and not, forward and perhaps backward."""

    fused: list[Phase]
    unfused: list[Cost]

    def report(self) -> Iterator[str]:
        """All of it, in lines."""
        for phase in self.fused:
            yield "program" if phase.name == "forward" else phase.name
            yield from (f"{'':4}{line}" for line in phase.program)
        for phase in self.fused:
            yield from phase.report()
        moved, floor = (sum(getattr(phase, name) for phase in self.fused) for name in ("moved", "floor"))
        yield f"{'total':10}{_count([len(phase.records) for phase in self.fused])}  {traffic(moved, floor)}"
        apart = sum(cost.moved for cost in self.unfused)
        times = f"  {apart / moved:.2f} times those of fused" if moved else ""
        yield f"{'unfused':10}{_count([cost.kernels for cost in self.unfused])}  bytes moved {apart:,}{times}"


def explain(fused: Any, args: Sequence, kwargs: dict[str, Any], target: str) -> Iterator[str]:
    """All that is known of a call, in lines; errors are those of the call and of a dry run."""
    given = [*map(label, args), *(f"{name}={label(x)}" for name, x in kwargs.items())]
    yield f"{getattr(fused, '__name__', 'function')}({', '.join(given)}) on {target}"
    try:
        yield from examine(fused, args, kwargs, target).report()
    except Refused as why:
        yield f"not fused: {why}"


def examine(fused: Any, args: Sequence, kwargs: dict[str, Any], target: str) -> Findings:
    """A call forward and, for inputs that require a gradient, or all if none does, backward.

    Raises Refused where it is not fused.
    """
    args, kwargs = fused.all_arguments(args, kwargs)
    with torch.inference_mode(mode=False), torch.no_grad():
        wanted = _wanted([x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)])
        args, kwargs = [*map(_stand_in, args)], {name: _stand_in(x) for name, x in kwargs.items()}
        with dry_run(target) as records:
            tensors, trace, fusion = _fusion(fused, args, kwargs)
            results = fusion.lowered(tensors, fusion.rooms)
            phases = [_forward(fusion, tensors, results, records[:])]
            if wanted:
                phases.append(_backward(fusion, wanted, tensors, results, records))
        return Findings(phases, unfused(trace, tensors, wanted, target))


def _fusion(fused: Any, args: Sequence, kwargs: dict[str, Any]) -> tuple[list[Tensor], Trace, Fusion]:
    """The fusion of a call in a dry run, which nobody else gets to see."""
    fused = type(fused)(fused.function)
    tensors, _ = fused.read(tuple(args), kwargs)
    if is_intercepted() or not fused.is_traceable(tensors):
        raise Refused(fused.NOT_TRACED)
    made = fused.trace(tensors, tuple(args), kwargs)
    if why := why_not_fused(made, tensors):
        raise Refused(why)
    return tensors, made, fused.fuse(made, tensors, tuple(args), kwargs).lower(tensors)


def _forward(fusion: Fusion, tensors, results, records: list[LaunchRecord]) -> Phase:
    graph = fusion.graph
    program = [*graph.lines(), f"return {', '.join(graph.word(i) for i, _ in graph.results)}"]
    return Phase("forward", graph, program, fusion.lowered, records, tensors, results[: len(fusion.likes)])


def _backward(fusion: Fusion, wanted: tuple[int, ...], tensors, results, records: list[LaunchRecord]) -> Phase:
    n, before = len(fusion.likes), len(records)
    gradient, graph = fusion.gradient(wanted, tuple(range(n))), fusion.graph
    given = [*map(unbacked_like, results[:n]), *(tensors[i] for i in gradient.reads)]
    rooms = dict(zip(fusion.kept, results[n:], strict=True))
    values = [*given, *(rooms[i] for i in gradient.kept)]
    lowered = gradient.lower(values)
    made = lowered(values)
    kept = {gradient.first + i: graph.word(i) for i in gradient.kept}
    program = [f"{gradient.graph.word(i)} = {name} of the program, kept" for i, name in kept.items()]
    program += gradient.graph.lines(graph, kept)
    for i, at in zip(wanted, gradient.which, strict=True):
        value = "0" if at is None else gradient.graph.word(gradient.graph.results[at][0])
        program.append(f"return d{graph.word(i)} = {value}")
    return Phase("backward", gradient.graph, program, lowered, records[before:], given, made)


def _wanted(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """Which tensors' gradients are wanted. Raises Refused where one has no stand-in."""
    for x in tensors:
        if type(x) not in CLASSES or not is_strided(x) or x.is_quantized or x.is_neg():
            raise Refused(f"{type(x).__name__} of layout {x.layout} is no dense tensor of torch's own")
    if len({x.device for x in tensors}) > 1:
        raise Refused("the tensors are on several devices")
    some = any(x.requires_grad for x in tensors)
    return tuple(i for i, x in enumerate(tensors) if (x.requires_grad if some else x.is_floating_point()))


def _stand_in(x: Any) -> Any:
    """For a tensor one on the CPU that lies as it does, as far behind a whole word; nothing is ever written there."""
    if not isinstance(x, Tensor):
        return x
    shift = x.data_ptr() % VECTOR_BYTES // x.itemsize
    return unbacked(x.shape, x.stride(), x.dtype, shift)


def _count(kernels: Sequence[int]) -> str:
    return "kernels " + ", ".join(f"{n} {name}" for n, name in zip(kernels, ("forward", "backward")))  # noqa: B905
