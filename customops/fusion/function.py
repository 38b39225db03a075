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

from .._compat import apply_without_binding, saved_tensor_hooks
from ..compiler.evaluate import evaluate
from ..compiler.executable import COMPUTE, Executable, by_kernel, gradient_spec
from ..compiler.gradient import dependent_results, differentiate
from ..compiler.graph import Graph, Op
from ..runtime.paths import kernel_blocker, plan_key, refuse_if_required
from ..runtime.rules import tuple_getter
from ..runtime.specs import TensorSpec, contiguous, on_meta, spec_of
from .proxy import is_elementwise
from .trace import Trace

InputIndex = int  # of a tensor that the fused function is called with; in the graph it is the same value
ValueIndex = int  # of a value of the fusion's graph: inputs first
ResultIndex = int  # of a result, each counted once, and of its cotangent
OutputIndex = int  # of an output of the autograd.Function: results first, then saved intermediates


def why_not_fused(trace: Trace, tensors: Sequence[Tensor], strict: bool = False) -> str | None:
    """Return why the operators of ``trace`` are applied one by one to these tensors, None where kernels fuse them.

    Raises RuntimeError if it is ``strict``, the backend is ``triton`` and a dtype or device is in the way.
    """
    if any(x.numel() == 0 for x in tensors):
        return "a tensor has no elements"
    numbers = {complex for node in trace.nodes for x in node.inputs if isinstance(x, complex)}
    if blocker := kernel_blocker(list(tensors), None, numbers):
        if strict:
            refuse_if_required("fuse", blocker)
        return f"no kernel for {blocker}"
    if aliases := _aliases(trace):
        return aliases
    if len({x.device for x in tensors}) > 1:
        return "the tensors are on several devices"
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


class Fusion:
    """A trace compiled for tensors in one layout, and the gradients of its results.

    Values that forward reduced and spilled, ``saved_intermediates``, are small: they are saved for the gradients.
    """

    __slots__ = (
        "_gradients",
        "_recordings",
        "common",
        "executable",
        "gradient_specs",
        "graph",
        "result_specs",
        "saved_intermediates",
        "saved_scratch",
        "trace",
    )

    def __init__(self, trace: Trace, graph: Graph, tensors: Sequence[Tensor]):
        self.trace = trace
        self.graph = graph  # of the trace, for tensors of these shapes
        self.common = reduce(torch.promote_types, trace.computed_dtypes())  # the dtype that kernels round to
        self.result_specs = _result_specs(trace, graph, tensors)  # of each result
        self.gradient_specs = [gradient_spec(x) for x in tensors]  # of each input
        self.executable: Any = None  # the kernels of forward; none before ``compile``
        self.saved_intermediates: list[ValueIndex] = []
        self.saved_scratch: list[int] = []  # for each of these, the position of its scratch buffer
        self._gradients: dict[tuple, Gradient] = {}
        self._recordings: dict[tuple, Recording] = {}

    def compile(self, tensors: Sequence[Tensor]) -> Fusion:
        """Make the kernels for tensors in this layout; return itself."""
        tensors_by_value = dict(enumerate(tensors))
        self.executable = Executable(self.graph, tensors_by_value, self.result_specs, self.common, distinct=True)
        scratch = {spill.value: k for k, spill in enumerate(self.executable.spills)}
        reduced = [i for i in scratch if isinstance(op := self.graph.values[i], Op) and op.reduced]
        self.saved_intermediates, self.saved_scratch = reduced, [scratch[i] for i in reduced]
        return self

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        """Return what the function returns."""
        return self.trace.pack(self.executable(tensors))

    def gradient(
        self, needed: tuple[InputIndex, ...], outputs: tuple[ResultIndex, ...], saves_intermediates: bool = True
    ) -> Gradient:
        """Return the gradient of the inputs ``needed``, for cotangents of ``outputs``.

        Unless the call ``saves_intermediates``, it is computed from inputs alone.
        """
        key = needed, outputs, saves_intermediates
        if key not in self._gradients:
            saved = self.saved_intermediates if saves_intermediates else ()
            self._gradients[key] = Gradient(self, needed, outputs, saved)
        return self._gradients[key]

    def recording(self, needs_grad: tuple[bool, ...], saves_intermediates: bool) -> Recording:
        """Return what a call saves.

        Args:
            needs_grad: the call's ``ctx.needs_input_grad``: of the FusedCall, then of each tensor.
            saves_intermediates: whether it saves more than inputs.
        """
        key = needs_grad, saves_intermediates
        if key not in self._recordings:
            needed = tuple(i for i, needs in enumerate(needs_grad[1:]) if needs)
            self._recordings[key] = self._record(needed, saves_intermediates)
        return self._recordings[key]

    def _record(self, needed: tuple[InputIndex, ...], saves_intermediates: bool) -> Recording:
        results = range(len(self.result_specs))
        differentiable = dependent_results(self.graph, needed)
        gradient = self.gradient(needed, tuple(differentiable), saves_intermediates)
        saved = self.saved_intermediates if saves_intermediates else ()
        outputs: dict[ValueIndex, OutputIndex] = {value: len(results) + k for k, value in enumerate(saved)}
        non_differentiable = [*(i for i in results if i not in differentiable), *outputs.values()]
        inputs = len(self.gradient_specs)
        saved_positions = [*gradient.saved_inputs, *(inputs + outputs[i] for i in gradient.saved_intermediates)]
        return Recording(
            needed,
            gradient,
            tuple_getter(non_differentiable) if non_differentiable else None,
            tuple_getter(saved_positions),
        )


class Recording(NamedTuple):
    """The facts about a call that autograd needs, for one set of inputs that need gradients."""

    needed: tuple[InputIndex, ...]  # the inputs that need gradients
    gradient: Gradient  # of these inputs, for cotangents of the results that depend on them
    non_differentiable: Callable[[Sequence], Sequence] | None  # pick all else out of the outputs, None where all depend
    saved: Callable[[Sequence], Sequence[Tensor]]  # pick the tensors that the gradient reads out of (*inputs, *outputs)


def _result_specs(trace: Trace, graph: Graph, tensors: Sequence[Tensor]) -> list[TensorSpec]:
    """Return what torch's results are.

    Where they are contiguous for contiguous tensors, they are for others that have size 1 in the same places.
    """
    shapes = [torch.Size(1 if a is None else graph.sizes[a] for a in dims) for _, dims in graph.results]
    dense = [contiguous(shape) for shape in shapes]
    inputs_are_dense = all(x.stride() == contiguous(x.shape) for x in tensors)
    strides = dense
    if not (inputs_are_dense and trace.is_dense_if_inputs_are):
        meta = trace.replay([on_meta(spec_of(x)) for x in tensors])
        strides = [_strides(trace, ref.value, meta) for ref in trace.outputs]
        trace.is_dense_if_inputs_are = inputs_are_dense and strides == dense
    return [
        TensorSpec(shape, each, trace.dtypes[ref.value], trace.device)
        for shape, each, ref in zip(shapes, strides, trace.outputs, strict=True)
    ]


def _strides(trace: Trace, value: int, meta: Sequence[Tensor]) -> tuple[int, ...]:
    """Return the strides of torch's result: of a reduction contiguous, which a meta tensor may not be."""
    z, operator = meta[value], trace.nodes[trace.source(value) - trace.arity].operator
    return z.stride() if is_elementwise(operator) else contiguous(z.shape)


class Gradient:
    """The gradients of a fusion for one set of inputs that need them, and of results that cotangents arrive from.

    It is called with the cotangents, then the inputs ``saved_inputs``, then the values ``saved_intermediates``.
    """

    __slots__ = ("common", "graph", "offset", "outputs", "result_index", "saved_inputs", "saved_intermediates", "specs")

    def __init__(
        self,
        fusion: Fusion,
        needed: tuple[InputIndex, ...],
        outputs: tuple[ResultIndex, ...],
        saved: Iterable[ValueIndex],
    ):
        """Differentiate; the values ``saved`` need not be computed again."""
        self.graph, self.result_index = differentiate(fusion.graph, needed, outputs)  # the latter for each needed input
        self.outputs = outputs  # the results that cotangents are given of
        self.offset = len(outputs)  # from the fusion's graph to this one
        self.common = fusion.common
        self.saved_inputs: list[InputIndex] = [i - self.offset for i in self.graph.inputs() if i >= self.offset]
        shifted = {self.offset + i: i for i in saved}
        ancestors = self.graph.ancestors([value for value, _ in self.graph.results], shifted)
        self.saved_intermediates: list[ValueIndex] = [shifted[i] for i in ancestors if i in shifted]
        self.specs = [  # of each result of this graph
            fusion.gradient_specs[i] for i, at in zip(needed, self.result_index, strict=True) if at is not None
        ]

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the gradient of each input that needs one, None if it is zero."""
        grads = by_kernel("fuse", self, plan_key(tensors), tensors, self.compile)
        if grads is None:
            grads = evaluate(self.graph, self._by_value(tensors), COMPUTE[self.common])
            grads = [grad.to(spec.dtype, copy=True) for grad, spec in zip(grads, self.specs, strict=True)]
        return [None if at is None else grads[at] for at in self.result_index]

    def compile(self, tensors: Sequence[Tensor]) -> Executable:
        """Return the kernels for tensors in this layout."""
        return Executable(self.graph, self._by_value(tensors), self.specs, self.common)

    def _by_value(self, tensors: Sequence[Tensor]) -> dict[int, Tensor]:
        saved = [self.offset + i for i in (*self.saved_inputs, *self.saved_intermediates)]
        return dict(zip([*range(self.offset), *saved], tensors, strict=True))


class FusedCall(NamedTuple):
    """One call of a fusion that is recorded."""

    fusion: Fusion
    saves_intermediates: bool  # not if what is saved must be the same where no kernels run
    trace: Trace | None = None  # its operators are applied one by one, instead of the kernels, if it is given

    def __call__(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the results, each once; and after them the saved intermediates."""
        fusion = self.fusion
        if self.trace is None:
            return tuple(fusion.executable(tensors, fusion.saved_scratch if self.saves_intermediates else ()))
        values = self.trace.replay(tensors)
        return tuple([values[ref.value] for ref in self.trace.outputs])


class FusedFunction(Function):
    """A fused call: ``forward`` is one graph, ``backward`` the one derived from it by the operators' rules.

    Saves the inputs that the gradients read, and what was reduced between two kernels. Differentiated twice, gradients
    are computed from the inputs alone, so second derivatives are right. Under hooks only inputs are saved: a checkpoint
    computes the call again, perhaps where no kernel runs, and pairs by position what both saved.
    """

    @staticmethod
    def of(fusion: Fusion, tensors: Sequence[Tensor], trace: Trace | None = None) -> Any:
        """Return what the function returns, recorded; by the operators of its ``trace``, if that is given."""
        results = _record(FusedCall(fusion, not saved_tensor_hooks(), trace), *tensors)
        return fusion.trace.pack(results) if fusion.trace.output_type else results[0]

    @staticmethod
    def forward(ctx, call, *tensors):
        """Return the results and the saved intermediates; save what the gradients read."""
        recording = call.fusion.recording(ctx.needs_input_grad, call.saves_intermediates)
        ctx.saved_meta = call, recording
        ctx.set_materialize_grads(False)
        outputs = call(tensors)
        if recording.non_differentiable:
            ctx.mark_non_differentiable(*recording.non_differentiable(outputs))
        ctx.save_for_backward(*recording.saved((*tensors, *outputs)))
        return outputs

    @staticmethod
    def backward(ctx, *gs):
        """Return the gradients that are needed, None for all else; results without a cotangent are left out."""
        call, (needed, gradient, *_) = ctx.saved_meta
        saved = ctx.saved_tensors if gradient.saved_inputs or gradient.saved_intermediates else ()
        gs = tuple([gs[i] for i in gradient.outputs])
        if any([g is None for g in gs]):
            gradient, gs, saved = _without_absent_cotangents(call, needed, gradient, gs, saved)
        grads: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        for i, grad in zip(needed, gradient((*gs, *saved)), strict=True):
            grads[i + 1] = grad
        return tuple(grads)


_record = apply_without_binding(FusedFunction)  # no transform is ever open around it


def _without_absent_cotangents(
    call: FusedCall, needed: tuple[InputIndex, ...], gradient: Gradient, gs: Sequence, saved: Sequence[Tensor]
) -> tuple[Gradient, tuple, tuple]:
    """Return the gradient for the cotangents among ``gs`` that are there, these, and what it reads of ``saved``."""
    by_value = dict(zip((*gradient.saved_inputs, *gradient.saved_intermediates), saved, strict=True))
    arrived = tuple(i for i, g in zip(gradient.outputs, gs, strict=True) if g is not None)
    gradient = call.fusion.gradient(needed, arrived, call.saves_intermediates)
    read = (*gradient.saved_inputs, *gradient.saved_intermediates)
    return gradient, tuple(g for g in gs if g is not None), tuple(by_value[i] for i in read)
