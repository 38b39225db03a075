"""The ``autograd.Function`` of a fused call: what it computes, what it saves, and its gradients.

Four kinds of indices occur here, all of them counted from 0. In a gradient's graph the value i of the fusion's graph is
value ``offset + i``, as cotangents come first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.compiler import is_dynamo_compiling

from .. import config
from .._compat import apply_without_binding, give_nodes_to, saved_tensor_hooks
from ..blocks import plan as blocks
from ..compiler.evaluate import evaluate
from ..compiler.executable import COMPUTE, Executable, by_kernel, gradient_spec
from ..compiler.gradient import dependent_results, differentiate
from ..compiler.graph import Graph, Op
from ..compiler.saving import NOTHING_SAVED, ItemSizes, Saved, choose_saved
from ..runtime.paths import kernel_blocker, plan_key, refuse_if_required
from ..runtime.rules import tuple_getter
from ..runtime.specs import TensorSpec, contiguous
from .indices import check_indices, indices_of
from .trace import Trace

InputIndex = int  # of a tensor that the fused function is called with; in the graph it is the same value
ValueIndex = int  # of a value of the fusion's graph: inputs first
ResultIndex = int  # of a result, each counted once, and of its cotangent
OutputIndex = int  # of an output of the autograd.Function: results first, then statistics


def why_not_fused(trace: Trace, tensors: Sequence[Tensor], strict: bool = False) -> str | None:
    """Return why the operators of ``trace`` are applied one by one to these tensors, None where kernels fuse them.

    Raises RuntimeError if it is ``strict``, the backend is ``triton`` and a dtype or device is in the way.
    """
    if any(x.numel() == 0 for x in tensors):
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
        return f"an operator returns {(dtypes - set(COMPUTE)).pop()}, and kernels of several compute in floats"
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
        "itemsizes",
        "pays",
        "recorded_by_torch",
        "result_specs",
        "savable_results",
        "trace",
    )

    def __init__(self, trace: Trace, graph: Graph, tensors: Sequence[Tensor]):
        self.trace = trace
        self.graph = graph  # of the trace, for tensors of these shapes
        self.indices = indices_of(trace)  # the inputs that are checked
        self.common = reduce(torch.promote_types, trace.computed_dtypes())  # the dtype that kernels round to
        self.result_specs = _result_specs(trace, graph, tensors)  # of each result
        self.gradient_specs = [gradient_spec(x) for x in tensors]  # of each input
        self.executables: dict[tuple[ValueIndex, ...], Executable] = {}  # the kernels of forward, by statistics
        self.savable_results = _savable_results(graph)
        itemsizes = {value: self.result_specs[k].dtype.itemsize for value, k in self.savable_results.items()}
        self.itemsizes = ItemSizes([x.itemsize for x in tensors], itemsizes, COMPUTE[self.common].itemsize)
        self.pays = _pays(graph, trace.device)  # whether a call gains by it: one that is not recorded, one that is
        # Whether torch's autograd may record a call that gains nothing: in half types it counts ties no further than
        # they hold.
        self.recorded_by_torch = all(COMPUTE[dtype] == dtype for dtype in trace.computed_dtypes())
        self._gradients: dict[tuple, Gradient] = {}
        self._recordings: dict[tuple, Recording] = {}

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        """Return what the function returns."""
        if self.indices:
            check_indices(self.indices, tensors)
        return self.trace.pack(self.executable(tensors)(tensors))

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
        specs, distinct = self.result_specs, True
        return Executable(self.graph, dict(enumerate(tensors)), specs, self.common, distinct, statistics, plans=plans)

    def gradient(
        self, needed: tuple[InputIndex, ...], outputs: tuple[ResultIndex, ...], saved: Saved = NOTHING_SAVED
    ) -> Gradient:
        """Return the gradient of the inputs ``needed``, for cotangents of ``outputs``, computed from what is saved."""
        key = needed, outputs, saved
        if key not in self._gradients:
            self._gradients[key] = Gradient(self, needed, outputs, saved)
        return self._gradients[key]

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
        differentiable = tuple(dependent_results(self.graph, needed))
        graph, _ = differentiate(self.graph, needed, differentiable)
        saved = choose_saved(self.graph, graph, self.itemsizes, saves_statistics)
        gradient = self.gradient(needed, differentiable, saved)
        results, inputs = len(self.result_specs), len(self.gradient_specs)
        outputs: dict[ValueIndex, OutputIndex] = dict(self.savable_results)
        outputs |= {value: results + k for k, value in enumerate(saved.statistics)}
        constant = set(range(results + len(saved.statistics))).difference(differentiable)
        positions = [*gradient.saved_inputs, *(inputs + outputs[i] for i in gradient.saved_values)]
        return Recording(
            needed,
            gradient,
            saved,
            tuple_getter(sorted(constant)) if constant else None,
            tuple_getter(positions),
        )


def _pays(graph: Graph, device: torch.device) -> tuple[bool, bool]:
    """Return whether a fused call is faster than operators one by one: not recorded, and recorded.

    It always is by kernels, wherever they may run, whatever the backend is now: a checkpoint, which may compute the
    call again by another, has to save the same both times. On a CPU it takes large tensors.
    """
    if device.type != "cpu" or config.is_interpreted() or config.dry_run_target is not None:
        return True, True
    elements = max(map(graph.count, graph.axes))
    return elements >= blocks.LEAST_ELEMENTS[False], elements >= blocks.LEAST_ELEMENTS[True]


class Recording(NamedTuple):
    """The facts about a call that autograd needs, for one set of inputs that need gradients."""

    needed: tuple[InputIndex, ...]  # the inputs that need gradients
    gradient: Gradient  # of these inputs, for cotangents of the results that depend on them
    values: Saved  # what is saved beside inputs
    non_differentiable: Callable[[Sequence], Sequence] | None  # pick all else out of the outputs, None where all depend
    saved: Callable[[Sequence], Sequence[Tensor]]  # pick the tensors that are saved out of (*inputs, *outputs)


def _result_specs(trace: Trace, graph: Graph, tensors: Sequence[Tensor]) -> list[TensorSpec]:
    """Return what torch's results are.

    Where they are contiguous for contiguous tensors, they are for others that have size 1 in the same places.
    """
    shapes = [torch.Size(1 if a is None else graph.sizes[a] for a in dims) for _, dims in graph.results]
    dense = [contiguous(shape) for shape in shapes]
    inputs_are_dense = all(x.stride() == contiguous(x.shape) for x in tensors)
    strides = dense
    if not (inputs_are_dense and trace.is_dense_if_inputs_are):
        values = trace.infer(tensors)
        strides = [values[ref.value].strides for ref in trace.outputs]
        trace.is_dense_if_inputs_are = inputs_are_dense and strides == dense
    return [
        TensorSpec(shape, each, trace.dtypes[ref.value], trace.device)
        for shape, each, ref in zip(shapes, strides, trace.outputs, strict=True)
    ]


def _savable_results(graph: Graph) -> dict[ValueIndex, ResultIndex]:
    """Return the results that may be saved, as the values that they are; gradients of gradients pass them.

    None is detached, and none is an input or of an axis along which the value is the same.
    """
    results = {}
    for k, (value, dims) in reversed(list(enumerate(graph.results))):
        is_whole = graph.axes[value] == {a for a in dims if a is not None}
        if k not in graph.detached_results and is_whole and isinstance(graph.values[value], Op):
            results[value] = k
    return results


class Gradient:
    """The gradients of a fusion for one set of inputs that need them, and of results that cotangents arrive from.

    It is called with the cotangents, then the inputs ``saved_inputs``, then the values ``saved_values``.
    """

    __slots__ = (
        "common",
        "graph",
        "known",
        "offset",
        "outputs",
        "result_index",
        "saved_inputs",
        "saved_values",
        "specs",
    )

    def __init__(self, fusion: Fusion, needed: tuple[InputIndex, ...], outputs: tuple[ResultIndex, ...], saved: Saved):
        """Differentiate; the values ``saved`` need not be computed again."""
        self.graph, self.result_index = differentiate(fusion.graph, needed, outputs)  # the latter for each needed input
        self.outputs = outputs  # the results that cotangents are given of
        self.offset = len(outputs)  # from the fusion's graph to this one
        self.common = fusion.common
        values = (*saved.results, *saved.statistics)
        # Without the statistics, when they are differentiated again, gradients may read results that else they do not.
        read = {*self._read(values, values), *self._read(saved.results, saved.results)}
        self.saved_values = [i for i in values if i in read]
        results = {i: k for i, k in fusion.savable_results.items() if i in saved.results and i in self.saved_values}
        # The axis of each dimension of the results among these, by value of this graph.
        self.known = {self.offset + i: fusion.graph.results[k][1] for i, k in results.items()}
        self.saved_inputs = self._read(range(len(fusion.gradient_specs)), results)
        self.specs = [  # of each result of this graph
            fusion.gradient_specs[i] for i, at in zip(needed, self.result_index, strict=True) if at is not None
        ]

    @property
    def saved(self) -> tuple[ValueIndex, ...]:
        """All values that it is called with after the cotangents, in order."""
        return *self.saved_inputs, *self.saved_values

    def _read(self, values: Iterable[ValueIndex], saved: Iterable[ValueIndex]) -> list[ValueIndex]:
        """Return those of ``values`` that the gradients are computed from, where these are ``saved``."""
        stop = [self.offset + i for i in saved]
        ancestors = set(self.graph.ancestors([value for value, _ in self.graph.results], stop))
        return [i for i in values if self.offset + i in ancestors]

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the gradient of each input that needs one, None if it is zero."""
        grads = by_kernel("fuse", self, plan_key(tensors, by_blocks=True), tensors, self.compile)
        if grads is None:
            grads = evaluate(self.graph, self._by_value(tensors), COMPUTE[self.common], self.known)
            grads = [grad.to(spec.dtype, copy=True) for grad, spec in zip(grads, self.specs, strict=True)]
        return [None if at is None else grads[at] for at in self.result_index]

    def compile(self, tensors: Sequence[Tensor], plans: Any = None) -> Executable:
        """Return the kernels for tensors in this layout, made by ``plans``, as :class:`Executable` has it."""
        return Executable(self.graph, self._by_value(tensors), self.specs, self.common, known=self.known, plans=plans)

    def _by_value(self, tensors: Sequence[Tensor]) -> dict[int, Tensor]:
        saved = [self.offset + i for i in self.saved]
        return dict(zip([*range(self.offset), *saved], tensors, strict=True))


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
            return tuple((executables.get(statistics) or self.fusion.executable(tensors, statistics))(tensors))
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
        saved = ctx.saved_tensors if gradient.saved_inputs or gradient.saved_values else ()
        gs = tuple([gs[i] for i in gradient.outputs])
        if any([g is None for g in gs]):
            if is_dynamo_compiling():  # it traces no derivation
                gs = _with_zeros(call.fusion, gradient, gs)
            else:
                gradient, gs, saved = _without_absent_cotangents(call, recording, gs, saved)
        grads: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        for i, grad in zip(needed, gradient((*gs, *saved)), strict=True):
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
