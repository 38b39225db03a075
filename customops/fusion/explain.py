"""``fused.explain(...)``: what a fused function computes, launches and moves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..compiler.executable import Executable
from ..compiler.printing import Notation, lines_of, named, text_of
from ..compiler.printing import label as value_label
from ..runtime.memory import unbacked, unbacked_like
from ..runtime.paths import CLASSES, is_intercepted, is_strided
from ..tools import targets
from ..tools.dry_run import dry_run
from ..tools.record import LaunchRecord
from ..tools.report import label
from ..tools.table import Table
from ..triton_kernels.layout import VECTOR_BYTES
from .build import Built
from .explain_cpu import on_cpu
from .findings import Findings, NotFused, Phase
from .function import Fusion, Recording, why_not_fused
from .gradient import Gradient
from .trace import Trace
from .unfused import filled, unfused


def explain(
    fused: Any, args: Sequence, kwargs: dict[str, Any], target: str, verbose: bool = False
) -> Iterator[str | Table]:
    """Yield what is known of a call, in one screen, or if ``verbose`` all of it; errors are those of a dry run."""
    yield heading(fused, args, kwargs, target)
    try:
        found = examine(fused, args, kwargs, target)
    except NotFused as reason:
        yield f"not fused: {reason}"
    else:
        yield ""
        yield from found.summary()
        yield from found.details() if verbose else ()


def heading(fused: Any, args: Sequence, kwargs: dict[str, Any], target: str) -> str:
    """Return a line that names a call and the GPU."""
    labels = [*map(label, args), *(f"{name}={label(x)}" for name, x in kwargs.items())]
    code, gpu = targets.find(target)
    return f"{getattr(fused, '__name__', 'function')}({', '.join(labels)}) on {code}, {gpu.model}"


def examine(
    fused: Any,
    args: Sequence,
    kwargs: dict[str, Any],
    target: str,
    gradients: bool = True,
    notation: Notation = named,
) -> Findings:
    """Return what a call costs: forward and, for inputs that require a gradient, or all if none does, backward.

    Args:
        fused: the function.
        args: its arguments, whose tensors are neither read nor written.
        kwargs: those by name.
        target: the GPU, by a name that :func:`targets.find` knows.
        gradients: whether there is a backward at all.
        notation: how the programs show a formula.

    Raises NotFused where it is not fused.
    """
    target, gpu = targets.find(target)
    args, kwargs = fused.all_arguments(args, kwargs)
    given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
    with torch.inference_mode(mode=False), torch.no_grad():
        _needed(given)  # refuses what has no stand-in
        args, kwargs = tuple(map(_stand_in, args)), {name: _stand_in(x) for name, x in kwargs.items()}
        with dry_run(target) as records:
            trace, tensors, built = _traced(fused, args, kwargs)
            needed = _needed([*given, *tensors[len(given) :]]) if gradients else ()
            tensors = [*tensors[: len(given)], *map(_stand_in, tensors[len(given) :])]
            fusion = _fusion(trace, built, tensors)
            recording = fusion.recording((False, *(i in needed for i in range(len(tensors)))), True)
            needed = needed if recording.gradient.outputs else ()  # no result may depend on them
            executable = fusion.executable(tensors, recording.values.statistics if needed else ())
            outputs = executable(tensors)
            phases = [_forward(fusion, executable, tensors, outputs, records[:], notation)]
            saved = recording.saved((*tensors, *outputs))
            values = _backward_inputs(recording, outputs, saved) if needed else []
            if needed:
                phases.append(_backward(fusion, recording, values, records, notation))
        names = _names_of_saved(fusion, recording.gradient)
        sizes = dict(zip(names, map(filled, saved), strict=True)) if needed else {}
        cpu = [*on_cpu(fusion, recording, tensors, values)]
        return Findings(phases, sizes, unfused(trace, tensors, needed, target), cpu, gpu)


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
    notation: Notation,
) -> Phase:
    program = text_of(fusion.graph, notation).splitlines()
    results = outputs[: len(fusion.result_specs)]
    return Phase("forward", fusion.graph, program, executable, records, executable.operands(tensors), results)


def _backward_inputs(recording: Recording, outputs: Sequence[Tensor], saved: Sequence[Tensor]) -> list[Tensor]:
    """Return what backward is called with: a cotangent for each output that has one, and what is saved."""
    return [*(unbacked_like(outputs[i]) for i in recording.gradient.outputs), *saved]


def _backward(
    fusion: Fusion, recording: Recording, values: Sequence[Tensor], records: list[LaunchRecord], notation: Notation
) -> Phase:
    gradient, before = recording.gradient, len(records)
    executable = gradient.compile(values)
    grads = executable(values)
    program = list(_gradient_lines(fusion, gradient, recording.needed, notation))
    inputs = executable.operands(values)
    inputs = inputs[: len(inputs) - len(recording.values.statistics)]
    return Phase("backward", gradient.graph, program, executable, records[before:], inputs, grads)


def _gradient_lines(fusion: Fusion, gradient: Gradient, needed: tuple[int, ...], notation: Notation) -> Iterator[str]:
    """Yield the program of a gradient, with axes named as those of the fusion's inputs."""
    saved = {gradient.offset + i: value_label(fusion.graph, i) for i in gradient.saved_values}
    yield from (f"{value_label(gradient.graph, i)} = {name} of the program, saved" for i, name in saved.items())
    yield from lines_of(gradient.graph, fusion.graph, saved, notation)
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
