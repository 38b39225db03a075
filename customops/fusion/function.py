"""The ``autograd.Function`` of a fused call: what it computes, and what it saves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.compiler import is_dynamo_compiling

from .. import config
from .._compat import apply_without_binding, give_nodes_to, saved_tensor_hooks
from ..blocks import plan as blocks
from ..compiler.executable import COMPUTE, Executable, gradient_spec
from ..compiler.gradient import dependent_results, differentiate
from ..compiler.graph import Graph, Op
from ..compiler.saving import NOTHING_SAVED, ItemSizes, Saved, choose_saved
from ..compiler.views import Operand, Pieces, Seen, Share, is_whole
from ..runtime.paths import kernel_blocker, refuse_if_required
from ..runtime.rules import tuple_getter
from ..runtime.specs import TensorSpec, contiguous
from .build import Built
from .gradient import Gradient, InputIndex, ResultIndex, ValueIndex
from .indices import check_indices, indices_of
from .miniature import strides_of_results
from .trace import Trace

OutputIndex = int  # of an output of the autograd.Function: results first, then statistics


def why_not_fused(trace: Trace, tensors: Sequence[Tensor], strict: bool = False) -> str | None:
    """Return why the operators of ``trace`` are applied one by one to these tensors, None where kernels fuse them.

    Raises RuntimeError if it is ``strict``, the backend is ``triton`` and a dtype or device is in the way.
    """
    if any(x.numel() == 0 for x in tensors) or trace.has_empty_views:
        return "a tensor has no elements"
    numbers = {complex for node in trace.nodes for x in node.inputs if isinstance(x, complex)}
    if blocker := kernel_blocker(list(tensors), None, numbers, by_blocks=True):
        if strict:
            refuse_if_required("fuse", blocker)
        return f"no kernel for {blocker}"
    if len({x.device for x in tensors}) > 1:
        return "the tensors are on several devices"
    if unsuitable := _aliases(trace) or _masks(trace):
        return unsuitable
    dtypes = set(trace.computed_dtypes())
    if not dtypes <= set(COMPUTE):
        return f"an operator computes in {(dtypes - set(COMPUTE)).pop()}, and kernels of several compute in floats"
    return None


def _aliases(trace: Trace) -> str | None:
    """Return which results share memory with an argument or with one another, in words; None if none do."""
    sources = [trace.source(ref.value) for ref in trace.outputs]
    if any(value < trace.arity for value in sources):
        return "an argument is returned as it is"
    return "a value is returned twice, detached once" if len(set(sources)) < len(sources) else None


def _masks(trace: Trace) -> str | None:
    """Return that a mask is returned, in words, if one is: kernels of several operators have them as floats."""
    is_any = any(trace.dtypes[ref.value] == torch.bool for ref in trace.outputs)
    return "a mask is returned, which kernels of several operators have as a float" if is_any else None


class Fusion:
    """A trace compiled for tensors in one layout, and the gradients of its results."""

    __slots__ = (
        "_gradients",
        "_recordings",
        "common",
        "executables",
        "gradient_specs",
        "graph",
        "indices",
        "is_plain",
        "itemsizes",
        "pays",
        "presentation",
        "recorded_by_torch",
        "result_specs",
        "savable_results",
        "trace",
    )

    def __init__(self, trace: Trace, built: Built, tensors: Sequence[Tensor]):
        self.trace = trace
        self.graph = graph = built.graph  # of the trace, for tensors of these shapes
        self.presentation = built.presentation  # how the graph sees tensors
        self.is_plain = built.presentation.is_plain  # whether each of its inputs and results is a tensor as it is
        self.indices = indices_of(trace)  # the inputs that are checked
        self.common = reduce(torch.promote_types, trace.computed_dtypes())  # the dtype that kernels round to
        self.result_specs = _result_specs(trace, built, tensors)  # of each result
        self.gradient_specs = [gradient_spec(x) for x in tensors]  # of each input
        self.executables: dict[tuple[ValueIndex, ...], Executable] = {}  # the kernels of forward, by statistics
        self.savable_results = _savable_results(built)
        itemsizes = {value: self.result_specs[k].dtype.itemsize for value, k in self.savable_results.items()}
        input_sizes = [x.itemsize for x, pieces in self._inputs_of(tensors) for _ in pieces]
        self.itemsizes = ItemSizes(input_sizes, itemsizes, COMPUTE[self.common].itemsize)
        sizes = [x.shape.numel() for x in tensors] + [x.shape.numel() for x in self.result_specs]
        largest = max([*map(graph.count, graph.axes), *sizes])
        self.pays = _pays(largest, trace.device)  # whether a call gains by it: one that is not recorded, one that is
        # Whether torch's autograd may record a call that gains nothing: in half types it counts ties no further than
        # they hold.
        self.recorded_by_torch = all(COMPUTE[dtype] == dtype for dtype in trace.computed_dtypes())
        self._gradients: dict[tuple, Gradient] = {}
        self._recordings: dict[tuple, Recording] = {}

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        """Return what the function returns."""
        if self.indices:
            check_indices(self.indices, tensors)
        return self.trace.pack(self.executable(tensors).__call__(tensors))

    def executable(self, tensors: Sequence[Tensor], statistics: tuple[ValueIndex, ...] = ()) -> Executable:
        """Return the kernels of forward for tensors in this layout, which return these statistics, too."""
        executable = self.executables.get(statistics)
        if executable is None:
            executable = self.executables[statistics] = self.compile(tensors, statistics)
        return executable

    def compile(
        self, tensors: Sequence[Tensor], statistics: tuple[ValueIndex, ...] = (), plans: Any = None
    ) -> Executable:
        """Return the same, made anew, by ``plans``, as :class:`Executable` has it."""
        by_value = {piece.at: x for x, pieces in self._inputs_of(tensors) for piece in pieces}
        seen = None if self.is_plain else self._seen()
        specs, distinct = self.result_specs, True
        return Executable(self.graph, by_value, specs, self.common, distinct, statistics, plans=plans, seen=seen)

    def _inputs_of(self, tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, Pieces]]:
        """Yield each tensor with the inputs of the graph that are parts of it."""
        return zip(tensors, self.presentation.inputs, strict=True)

    def _seen(self) -> Seen:
        """Return how the kernels of forward see tensors."""
        inputs = enumerate(self.presentation.inputs)
        operands = [Operand(piece.at, k, piece.view) for k, pieces in inputs for piece in pieces]
        return Seen(operands, [[Share(*piece) for piece in pieces] for pieces in self.presentation.results])

    def gradient(
        self, needed: tuple[InputIndex, ...], outputs: tuple[ResultIndex, ...], saved: Saved = NOTHING_SAVED
    ) -> Gradient:
        """Return the gradient of the inputs ``needed``, for cotangents of ``outputs``, computed from what is saved."""
        key = needed, outputs, saved
        if key not in self._gradients:
            self._gradients[key] = Gradient(self, needed, outputs, saved)
        return self._gradients[key]

    def inputs_needed(self, needed: Iterable[InputIndex]) -> tuple[ValueIndex, ...]:
        """Return the inputs of the graph that are parts of the tensors ``needed``."""
        return tuple(piece.at for i in needed for piece in self.presentation.inputs[i])

    def recording(self, needs_grad: tuple[bool, ...], saves_statistics: bool) -> Recording:
        """Return what a call saves.

        Args:
            needs_grad: the call's ``ctx.needs_input_grad``: of the FusedCall, then of each tensor.
            saves_statistics: whether it saves more than inputs and results.
        """
        key = needs_grad, saves_statistics
        if key not in self._recordings:
            needed = tuple(i for i, needs in enumerate(needs_grad[1:]) if needs)
            self._recordings[key] = self._record(needed, saves_statistics)
        return self._recordings[key]

    def _record(self, needed: tuple[InputIndex, ...], saves_statistics: bool) -> Recording:
        inputs = self.inputs_needed(needed)
        dependent = dependent_results(self.graph, inputs)
        results = enumerate(self.presentation.results)
        differentiable = tuple(k for k, pieces in results if any(piece.at in dependent for piece in pieces))
        graph, _ = differentiate(self.graph, inputs, tuple(dependent))
        saved = choose_saved(self.graph, graph, self.itemsizes, saves_statistics)
        gradient = self.gradient(needed, differentiable, saved)
        count = len(self.result_specs)
        outputs: dict[ValueIndex, OutputIndex] = dict(self.savable_results)
        outputs |= {value: count + k for k, value in enumerate(saved.statistics)}
        constant = set(range(count + len(saved.statistics))).difference(differentiable)
        positions = [
            *gradient.saved_tensors,
            *(len(self.gradient_specs) + outputs[i] for i in gradient.saved_values),
        ]
        return Recording(
            needed,
            gradient,
            saved,
            tuple_getter(sorted(constant)) if constant else None,
            tuple_getter(positions),
        )


def _pays(elements: int, device: torch.device) -> tuple[bool, bool]:
    """Return whether a fused call whose largest value has so many elements is faster than operators one by one.

    The first is of a call that is not recorded, the second of one that is.

    It always is by kernels, wherever they may run, whatever the backend is now: a checkpoint, which may compute the
    call again by another, has to save the same both times. On a CPU it takes large tensors.
    """
    if device.type != "cpu" or config.is_interpreted() or config.dry_run_target is not None:
        return True, True
    return elements >= blocks.LEAST_ELEMENTS[False], elements >= blocks.LEAST_ELEMENTS[True]


class Recording(NamedTuple):
    """The facts about a call that autograd needs, for one set of inputs that need gradients."""

    needed: tuple[InputIndex, ...]  # the inputs that need gradients
    gradient: Gradient  # of these inputs, for cotangents of the results that depend on them
    values: Saved  # what is saved beside inputs
    non_differentiable: Callable[[Sequence], Sequence] | None  # pick all else out of the outputs, None where all depend
    saved: Callable[[Sequence], Sequence[Tensor]]  # pick the tensors that are saved out of (*inputs, *outputs)


def _result_specs(trace: Trace, built: Built, tensors: Sequence[Tensor]) -> list[TensorSpec]:
    """Return what torch's results are.

    Where they are contiguous for contiguous tensors, they are for others that have size 1 in the same places.
    """
    if built.small:
        shapes = list(map(torch.Size, built.shapes))
        strides = strides_of_results(built.small, tensors, shapes)
    else:
        shapes, strides = _shapes_and_strides(trace, built.graph, tensors)
    return [
        TensorSpec(shape, each, trace.dtypes[ref.value], trace.device)
        for shape, each, ref in zip(shapes, strides, trace.outputs, strict=True)
    ]


def _shapes_and_strides(
    trace: Trace, graph: Graph, tensors: Sequence[Tensor]
) -> tuple[list[torch.Size], list[tuple[int, ...]]]:
    """Return those of the results of a trace without views."""
    shapes = [torch.Size(1 if a is None else graph.sizes[a] for a in dims) for _, dims in graph.results]
    dense = [contiguous(shape) for shape in shapes]
    inputs_are_dense = all(x.stride() == contiguous(x.shape) for x in tensors)
    if inputs_are_dense and trace.is_dense_if_inputs_are:
        return shapes, dense
    values = trace.infer(tensors)
    strides = [values[ref.value].strides for ref in trace.outputs]
    trace.is_dense_if_inputs_are = inputs_are_dense and strides == dense
    return shapes, strides


def _savable_results(built: Built) -> dict[ValueIndex, ResultIndex]:
    """Return the results that may be saved, as the values that they are; gradients of gradients pass them.

    None is detached, none is an input or of an axis along which the value is the same, and none is made of parts.
    """
    results, graph = {}, built.graph
    for k, pieces in reversed(list(enumerate(built.presentation.results))):
        value, dims = graph.results[pieces[0].at]
        is_same = graph.axes[value] == {a for a in dims if a is not None} and is_whole(pieces)
        if is_same and pieces[0].at not in graph.detached_results and isinstance(graph.values[value], Op):
            results[value] = k
    return results


class FusedCall(NamedTuple):
    """One call of a fusion that is recorded."""

    fusion: Fusion
    saves_statistics: bool  # not if what is saved must be the same where no kernels run
    trace: Trace | None = None  # its operators are applied one by one, instead of the kernels, if it is given

    def compute(self, tensors: Sequence[Tensor], statistics: tuple[ValueIndex, ...]) -> tuple[Tensor, ...]:
        """Return the results, each once; and after them the statistics."""
        if self.trace is None:
            if self.fusion.indices:
                check_indices(self.fusion.indices, tensors)
            executables = self.fusion.executables  # asked without a call: it is there but the first time
            executable = executables.get(statistics) or self.fusion.executable(tensors, statistics)
            return tuple(executable.__call__(tensors))
        return tuple(self.trace.replay(tensors))


class FusedFunction(Function):
    """A fused call: ``forward`` is one graph, ``backward`` the one derived from it by the operators' rules.

    Saves the inputs, results and statistics of which backward costs least. Differentiated twice, gradients are computed
    from inputs and results alone, so second derivatives are right. Under hooks no statistics are saved: a checkpoint
    computes the call again, perhaps where no kernel runs, and pairs by position what both saved.
    """

    @staticmethod
    def of(fusion: Fusion, tensors: Sequence[Tensor], trace: Trace | None = None) -> Any:
        """Return what the function returns, recorded; by the operators of its ``trace``, if that is given."""
        results = _record(FusedCall(fusion, not saved_tensor_hooks(), trace), *tensors)
        return fusion.trace.pack(results) if fusion.trace.output_type else results[0]

    @staticmethod
    def forward(ctx, call, *tensors):
        """Return the results and the statistics; save what the gradients read."""
        recording = call.fusion.recording(ctx.needs_input_grad, call.saves_statistics)
        ctx.saved_meta = call, recording
        ctx.set_materialize_grads(False)
        outputs = call.compute(tensors, recording.values.statistics)
        if recording.non_differentiable:
            ctx.mark_non_differentiable(*recording.non_differentiable(outputs))
        ctx.save_for_backward(*recording.saved((*tensors, *outputs)))
        return outputs

    @staticmethod
    def backward(ctx, *gs):
        """Return the gradients that are needed, None for all else; results without a cotangent are left out."""
        call, recording = ctx.saved_meta
        gradient, needed = recording.gradient, recording.needed
        saved = ctx.saved_tensors if gradient.saved_tensors or gradient.saved_values else ()
        gs = tuple([gs[i] for i in gradient.outputs])
        if any([g is None for g in gs]):
            if is_dynamo_compiling():  # it traces no derivation
                gs = _with_zeros(call.fusion, gradient, gs)
            else:
                gradient, gs, saved = _without_absent_cotangents(call, recording, gs, saved)
        grads: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        for i, grad in zip(needed, gradient.__call__((*gs, *saved)), strict=True):
            grads[i + 1] = grad
        return tuple(grads)


give_nodes_to(FusedFunction, FusedFunction)
_record = apply_without_binding(FusedFunction)  # no transform is ever open around it


def _with_zeros(fusion: Fusion, gradient: Gradient, gs: Sequence) -> tuple[Tensor, ...]:
    """Return the cotangents, zeros for those that did not arrive."""
    specs = [fusion.result_specs[i] for i in gradient.outputs]
    zeros = [torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in specs]
    return tuple([zero if g is None else g for g, zero in zip(gs, zeros, strict=True)])


def _without_absent_cotangents(
    call: FusedCall, recording: Recording, gs: Sequence, saved: Sequence[Tensor]
) -> tuple[Gradient, tuple, tuple]:
    """Return the gradient for the cotangents among ``gs`` that are there, these, and what it reads of ``saved``."""
    gradient = recording.gradient
    by_value = dict(zip(gradient.saved, saved, strict=True))
    arrived = tuple(i for i, g in zip(gradient.outputs, gs, strict=True) if g is not None)
    gradient = call.fusion.gradient(recording.needed, arrived, recording.values)
    return gradient, tuple(g for g in gs if g is not None), tuple(by_value[i] for i in gradient.saved)
