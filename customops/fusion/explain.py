"""``fused.explain(...)``: what a fused function computes, launches and moves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..compiler.executable import Executable
from ..compiler.graph import Graph
from ..compiler.printing import label as value_label
from ..compiler.printing import lines_of, text_of
from ..runtime.memory import unbacked, unbacked_like
from ..runtime.paths import CLASSES, is_intercepted, is_strided
from ..tools.dry_run import dry_run
from ..tools.estimate import total_seconds
from ..tools.record import LaunchRecord
from ..tools.report import amount, describe, duration, label, total, traffic
from ..triton_kernels.layout import VECTOR_BYTES
from .build import Built
from .explain_cpu import on_cpu
from .function import Fusion, Recording, why_not_fused
from .gradient import Gradient
from .trace import Trace
from .unfused import Cost, filled, unfused


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

    def report(self) -> Iterator[str]:
        """Yield its launches, and what passes between them, in lines."""
        yield from describe(self.name, self.records)
        itemsize = self.executable.plan.accumulate_dtype.itemsize if self.executable.plan else 0
        for value, reason in self.executable.spills:
            size = self.graph.count(self.graph.axes[value]) * itemsize
            yield f"{'scratch':10}{value_label(self.graph, value)} passes through memory, {size:,} bytes: {reason}"


class Findings(NamedTuple):
    """The cost of a call, forward and perhaps backward."""

    fused: list[Phase]  # each direction
    saved: dict[str, int]  # what forward saves for backward, by name: the bytes
    unfused: list[Cost]  # of the same directions, operator by operator
    on_cpu: list[str]  # what a CPU does, in lines

    @property
    def seconds(self) -> float:
        """Return the estimated time of the fused launches."""
        return sum(total_seconds(phase.records) for phase in self.fused)

    def report(self) -> Iterator[str]:
        """Yield all of it, in lines."""
        for phase in self.fused:
            yield "program" if phase.name == "forward" else phase.name
            yield from (f"{'':4}{line}" for line in phase.program)
        for phase in self.fused:
            yield from phase.report()
        if len(self.fused) > 1:
            yield f"{'saved':10}{', '.join(self.saved) or 'nothing'}  {sum(self.saved.values()):,} bytes"
        yield from self.on_cpu
        moved = total(phase.bytes_moved for phase in self.fused)
        floor = sum(phase.bytes_floor for phase in self.fused)
        launches, seconds = _count([len(phase.records) for phase in self.fused]), self.seconds
        yield f"{'total':10}{launches}  {traffic(moved, floor)}  {duration(seconds)}"
        unfused_moved = total(cost.bytes_moved for cost in self.unfused)
        times = f"  {unfused_moved / moved:.2f} times those of fused" if moved and unfused_moved else ""
        launches = _count([cost.kernels for cost in self.unfused])
        yield f"{'unfused':10}{launches}  bytes moved {amount(unfused_moved)}{times}"


def explain(fused: Any, args: Sequence, kwargs: dict[str, Any], target: str) -> Iterator[str]:
    """Yield all that is known of a call, in lines; errors are those of the call and of a dry run."""
    labels = [*map(label, args), *(f"{name}={label(x)}" for name, x in kwargs.items())]
    yield f"{getattr(fused, '__name__', 'function')}({', '.join(labels)}) on {target}"
    try:
        yield from examine(fused, args, kwargs, target).report()
    except NotFused as reason:
        yield f"not fused: {reason}"


def examine(fused: Any, args: Sequence, kwargs: dict[str, Any], target: str) -> Findings:
    """Return what a call costs: forward and, for inputs that require a gradient, or all if none does, backward.

    Raises NotFused where it is not fused.
    """
    args, kwargs = fused.all_arguments(args, kwargs)
    given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
    with torch.inference_mode(mode=False), torch.no_grad():
        _needed(given)  # refuses what has no stand-in
        args, kwargs = tuple(map(_stand_in, args)), {name: _stand_in(x) for name, x in kwargs.items()}
        with dry_run(target) as records:
            trace, tensors, built = _traced(fused, args, kwargs)
            needed = _needed([*given, *tensors[len(given) :]])
            tensors = [*tensors[: len(given)], *map(_stand_in, tensors[len(given) :])]
            fusion = _fusion(trace, built, tensors)
            recording = fusion.recording((False, *(i in needed for i in range(len(tensors)))), True)
            needed = needed if recording.gradient.outputs else ()  # no result may depend on them
            executable = fusion.executable(tensors, recording.values.statistics if needed else ())
            outputs = executable(tensors)
            phases = [_forward(fusion, executable, tensors, outputs, records[:])]
            saved = recording.saved((*tensors, *outputs))
            values = _backward_inputs(recording, outputs, saved) if needed else []
            if needed:
                phases.append(_backward(fusion, recording, values, records))
        names = _names_of_saved(fusion, recording.gradient)
        sizes = dict(zip(names, map(filled, saved), strict=True)) if needed else {}
        cpu = [*on_cpu(fusion, recording, tensors, values)]
        return Findings(phases, sizes, unfused(trace, tensors, needed, target), cpu)


def _traced(fused: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[Trace, Sequence[Tensor], Built]:
    """Return the trace of a call, the tensors that it is of, and its graph; of a copy: nothing of it is remembered."""
    fused = fused.anew()
    tensors, key = fused.read(args, kwargs)
    if is_intercepted() or not fused.is_traceable(tensors):
        raise NotFused(fused.NOT_TRACED)
    with torch.enable_grad():  # what the function computes of its parameters requires a gradient as they do
        trace, tensors = fused.trace(tensors, key, args, kwargs)
    return trace, tensors, fused.build(trace, tensors, args, kwargs)


def _fusion(trace: Trace, built: Built, tensors: Sequence[Tensor]) -> Fusion:
    """Return the fusion of a call in a dry run."""
    if reason := why_not_fused(trace, tensors):
        raise NotFused(reason)
    return Fusion(trace, built, tensors)


def _forward(
    fusion: Fusion,
    executable: Executable,
    tensors: Sequence[Tensor],
    outputs: Sequence[Tensor],
    records: list[LaunchRecord],
) -> Phase:
    program = text_of(fusion.graph).splitlines()
    results = outputs[: len(fusion.result_specs)]
    return Phase("forward", fusion.graph, program, executable, records, executable.operands(tensors), results)


def _backward_inputs(recording: Recording, outputs: Sequence[Tensor], saved: Sequence[Tensor]) -> list[Tensor]:
    """Return what backward is called with: a cotangent for each output that has one, and what is saved."""
    return [*(unbacked_like(outputs[i]) for i in recording.gradient.outputs), *saved]


def _backward(fusion: Fusion, recording: Recording, values: Sequence[Tensor], records: list[LaunchRecord]) -> Phase:
    gradient, before = recording.gradient, len(records)
    executable = gradient.compile(values)
    grads = executable(values)
    program = list(_gradient_lines(fusion, gradient, recording.needed))
    inputs = executable.operands(values)
    inputs = inputs[: len(inputs) - len(recording.values.statistics)]
    return Phase("backward", gradient.graph, program, executable, records[before:], inputs, grads)


def _gradient_lines(fusion: Fusion, gradient: Gradient, needed: tuple[int, ...]) -> Iterator[str]:
    """Yield the program of a gradient, with axes named as those of the fusion's inputs."""
    saved = {gradient.offset + i: value_label(fusion.graph, i) for i in gradient.saved_values}
    yield from (f"{value_label(gradient.graph, i)} = {name} of the program, saved" for i, name in saved.items())
    yield from lines_of(gradient.graph, fusion.graph, saved)
    for i, at in zip(needed, gradient.result_index, strict=True):
        results = [None] if at is None else [share.result for share in gradient.shares[at]]
        values = ["0" if k is None else value_label(gradient.graph, gradient.graph.results[k][0]) for k in results]
        yield f"return d{fusion.presentation.names[i]} = {', '.join(values)}"


def _names_of_saved(fusion: Fusion, gradient: Gradient) -> list[str]:
    """Return what explanations call the tensors and values that are saved."""
    names = [fusion.presentation.names[k] for k in gradient.saved_tensors]
    return [*names, *(value_label(fusion.graph, i) for i in gradient.saved_values)]


def _needed(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """Return which tensors need gradients. Raises NotFused where one has no stand-in."""
    for x in tensors:
        if type(x) not in CLASSES or not is_strided(x) or x.is_quantized or x.is_neg():
            raise NotFused(f"{type(x).__name__} of layout {x.layout} is no dense torch.Tensor")
    if len({x.device for x in tensors}) > 1:
        raise NotFused("the tensors are on several devices")
    any_requires_grad = any(x.requires_grad for x in tensors)
    return tuple(i for i, x in enumerate(tensors) if (x.requires_grad if any_requires_grad else x.is_floating_point()))


def _stand_in(x: Any) -> Any:
    """Return for a tensor one on the CPU of the same layout and alignment, without memory; all else as it is."""
    if not isinstance(x, Tensor):
        return x
    shift = x.data_ptr() % VECTOR_BYTES // x.itemsize
    return unbacked(x.shape, x.stride(), x.dtype, shift)


def _count(kernels: Sequence[int]) -> str:
    return "kernels " + ", ".join(f"{n} {name}" for n, name in zip(kernels, ("forward", "backward")))  # noqa: B905
