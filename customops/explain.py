"""``fused.explain(...)`` and ``python -m customops explain``: what a fused function computes, launches and moves."""

from __future__ import annotations

import argparse
import os
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import dispatch
from .dispatch import is_watched
from .dry_run import TARGETS, Record, dry_run
from .fuse import Fused, fused_behind, why_not
from .fusion import Fusion, Lowered
from .graphs import Graph
from .kernels import describe, dtype_named, integers, reason, traffic, word
from .memory import unbacked, unbacked_like
from .tracing import Trace
from .unfused import Cost, filled, unfused


class Refused(Exception):
    """Why the operators of a function are applied one by one."""


class Phase(NamedTuple):
    """One direction of a fused function: its program, the kernels for that, and their launches."""

    name: str
    graph: Graph
    program: list[str]  # in lines
    lowered: Lowered
    records: list[Record]
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


def explain(fused: Fused, args: Sequence, kwargs: dict[str, Any], target: str) -> Iterator[str]:
    """All that is known of a call, in lines; errors are those of the call and of a dry run."""
    given = [*map(word, args), *(f"{name}={word(x)}" for name, x in kwargs.items())]
    yield f"{getattr(fused, '__name__', 'function')}({', '.join(given)}) on {target}"
    try:
        yield from examine(fused, args, kwargs, target).report()
    except Refused as why:
        yield f"not fused: {why}"


def examine(fused: Fused, args: Sequence, kwargs: dict[str, Any], target: str) -> Findings:
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


def _fusion(fused: Fused, args: Sequence, kwargs: dict[str, Any]) -> tuple[list[Tensor], Trace, Fusion]:
    """The fusion of a call in a dry run, which nobody else gets to see."""
    fused = Fused(fused.function)
    tensors, _ = fused._read(tuple(args), kwargs)
    if is_watched() or not fused.is_traceable(tensors):
        raise Refused(fused.NOT_TRACED)
    made = fused.trace(tensors, tuple(args), kwargs)
    if why := why_not(made, tensors):
        raise Refused(why)
    return tensors, made, fused.fuse(made, tensors, tuple(args), kwargs).lower(tensors)


def _forward(fusion: Fusion, tensors, results, records: list[Record]) -> Phase:
    graph = fusion.graph
    program = [*graph.lines(), f"return {', '.join(graph.word(i) for i, _ in graph.results)}"]
    return Phase("forward", graph, program, fusion.lowered, records, tensors, results[: len(fusion.likes)])


def _backward(fusion: Fusion, wanted: tuple[int, ...], tensors, results, records: list[Record]) -> Phase:
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
        if type(x) not in dispatch.CLASSES or not dispatch.is_strided(x) or x.is_quantized or x.is_neg():
            raise Refused(f"{type(x).__name__} of layout {x.layout} is no dense tensor of torch's own")
    if len({x.device for x in tensors}) > 1:
        raise Refused("the tensors are on several devices")
    some = any(x.requires_grad for x in tensors)
    return tuple(i for i, x in enumerate(tensors) if (x.requires_grad if some else x.is_floating_point()))


def _stand_in(x: Any) -> Any:
    """For a tensor one on the CPU that lies as it does, as far behind a whole word; nothing is ever written there."""
    if not isinstance(x, Tensor):
        return x
    shift = x.data_ptr() % dispatch.ALIGNMENT // x.itemsize
    return unbacked(x.shape, x.stride(), x.dtype, shift)


def _count(kernels: Sequence[int]) -> str:
    return "kernels " + ", ".join(f"{n} {name}" for n, name in zip(kernels, ("forward", "backward")))  # noqa: B905


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What :func:`run` reads."""
    parser.add_argument("function", metavar="MODULE.NAME", help="where to import the function from, fused or not")
    parser.add_argument(
        "--shape", action="append", default=[], help="of a tensor, as 4096,4096; one for each, in order"
    )
    parser.add_argument("--dtype", default="float32", help="of all of them, as bf16 or float32; default: %(default)s")
    parser.add_argument("--target", choices=TARGETS, default="cuda:90", help="the GPU; default: %(default)s")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what :func:`explain` says; the exit code, 2 where there is nothing to say."""
    try:
        function, dtype = _named(args.function), dtype_named(args.dtype)
        tensors = [torch.empty(integers("shape", shape), dtype=dtype) for shape in args.shape]
        text = "\n".join(explain(function, tensors, {}, args.target))
    except (TypeError, RuntimeError, ValueError, IndexError, OverflowError) as error:
        print(f"explain: {reason(error)}", file=sys.stderr)
        return 2
    print(text)
    return 0


def _named(path: str) -> Fused:
    """The function of this name, from the current directory or an installed package."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = pkgutil.resolve_name(path)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from None
    if not callable(function):
        raise ValueError(f"{path}: expected a function, got {function!r}")
    return fused_behind(function) or Fused(function)
