"""The ``autograd.Function`` of a fused call: what it computes, what it saves, and its gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from .._compat import apply_without_binding, saved_tensor_hooks
from ..compiler.evaluate import evaluate
from ..compiler.executable import COMPUTE, Executable, by_kernel, gradient_spec
from ..compiler.gradient import differentiate
from ..compiler.graph import Graph, Op
from ..ops.function import Operator
from ..runtime.paths import kernel_blocker, refuse_if_required
from ..runtime.specs import TensorSpec, contiguous, on_meta, spec_of
from .trace import Trace


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
    if any(ref.value < trace.arity for ref in trace.outputs):
        return "an argument is returned as it is"
    if len({x.device for x in tensors}) > 1:
        return "the tensors are on several devices"
    dtypes = set(trace.dtypes[trace.arity :])
    if not dtypes <= set(COMPUTE):
        return f"an operator returns {(dtypes - set(COMPUTE)).pop()}, and kernels of several compute in floats"
    return None


class Fusion:
    """A trace on tensors in one layout, and the gradients of its results.

    What had to be reduced in a kernel before, ``kept``, is small and saved for the gradients, in its room.
    """

    __slots__ = (
        "_gradients",
        "_recorded",
        "common",
        "graph",
        "inputs",
        "kept",
        "likes",
        "lowered",
        "rooms",
        "trace",
    )

    def __init__(self, trace: Trace, graph: Graph, tensors: Sequence[Tensor]):
        self.trace, self.graph = trace, graph
        dtypes = trace.dtypes
        self.common = reduce(torch.promote_types, dtypes[trace.arity :])
        self.likes = _results(trace, graph, tensors)
        self.inputs = [gradient_spec(x) for x in tensors]
        self.kept: dict[int, int] = {}
        self.rooms: list[int] = []
        self._gradients: dict[tuple, Gradient] = {}
        self._recorded: dict[tuple, Recording] = {}

    def lower(self, tensors: Sequence[Tensor]) -> Fusion:
        """Make the kernels for tensors in this layout; return itself."""
        self.lowered = Executable(self.graph, dict(enumerate(tensors)), self.likes, self.common, apart=True)
        cut = {cut.value: room for room, cut in enumerate(self.lowered.cuts)}
        steps = {i: step for i in cut if isinstance(step := self.graph.values[i], Op)}
        self.kept = {i: cut[i] for i, step in steps.items() if step.over}
        self.rooms = list(self.kept.values())
        return self

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        """What the function returns."""
        return self.returned(self.lowered(tensors))

    def returned(self, results: Any) -> Any:
        """``results``, perhaps with rooms after them, as the function returns them."""
        return self.trace.returned(results)

    def gradient(self, wanted: tuple[int, ...], outputs: tuple[int, ...], keeps: bool = True) -> Gradient:
        """Of the tensors ``wanted``, for cotangents of ``outputs``; from inputs alone where nothing is kept."""
        key = wanted, outputs, keeps
        if key not in self._gradients:
            self._gradients[key] = Gradient(self, wanted, outputs, self.kept if keeps else {})
        return self._gradients[key]

    def recorded(self, needs: tuple[bool, ...], keeps: bool) -> Recording:
        """Return what a call saves; ``needs`` is its ``ctx.needs_input_grad``, of the Run, then of each tensor.

        Unless it ``keeps`` what was reduced between kernels, it saves inputs alone.
        """
        key = needs, keeps
        if key not in self._recorded:
            wanted = tuple(i for i, need in enumerate(needs[1:]) if need)
            outputs = tuple(range(len(self.likes)))
            moved = [i for i in outputs if set(wanted) & set(self.graph.needed([self.graph.results[i][0]]))]
            gradient = self.gradient(wanted, tuple(moved), keeps)
            kept = self.kept if keeps else {}
            rooms = dict(zip(kept, range(len(outputs), len(outputs) + len(kept)), strict=True))
            fixed = [*(i for i in outputs if i not in moved), *rooms.values()]
            self._recorded[key] = Recording(wanted, moved, gradient, fixed, [rooms[i] for i in gradient.kept])
        return self._recorded[key]


class Recording(NamedTuple):
    """What autograd has to know of a call for one set of tensors that want gradients."""

    wanted: tuple[int, ...]  # the tensors
    outputs: list[int]  # the results that depend on them
    gradient: Gradient  # of the tensors, for cotangents of those results
    fixed: list[int]  # outputs of the Function that do not depend on them: other results, and rooms
    rooms: list[int]  # outputs of the Function that the gradient reads


def _results(trace: Trace, graph: Graph, tensors: Sequence[Tensor]) -> list[TensorSpec]:
    """What torch's results are.

    Where they are contiguous for contiguous tensors, they are for others that have size 1 in the same places.
    """
    shapes = [torch.Size(1 if a is None else graph.sizes[a] for a in dims) for _, dims in graph.results]
    dense = [contiguous(shape) for shape in shapes]
    usual = all(x.stride() == contiguous(x.shape) for x in tensors)
    strides = dense
    if not (usual and trace.keeps_dense):
        meta = trace.replay([on_meta(spec_of(x)) for x in tensors])
        strides = [_strides(trace, ref.value, meta) for ref in trace.outputs]
        trace.keeps_dense = usual and strides == dense
    dtypes = trace.dtypes
    return [
        TensorSpec(shape, steps, dtypes[ref.value], trace.device)
        for shape, steps, ref in zip(shapes, strides, trace.outputs, strict=True)
    ]


def _strides(trace: Trace, index: int, meta: Sequence[Tensor]) -> tuple[int, ...]:
    """Those of torch's result; a reduction's is contiguous, which a meta tensor may not be."""
    z = meta[index]
    node = trace.nodes[index - trace.arity]
    return z.stride() if issubclass(node.operator, Operator) else contiguous(z.shape)


class Gradient:
    """The gradients of a fusion: what they read of its inputs, ``reads``, and of its values ``kept``, and how."""

    __slots__ = ("common", "first", "graph", "kept", "likes", "reads", "which")

    def __init__(self, fusion: Fusion, wanted: tuple[int, ...], outputs: tuple[int, ...], kept: Iterable[int]):
        self.graph, self.which = differentiate(fusion.graph, wanted, outputs)
        self.first, self.common = len(outputs), fusion.common
        self.reads = [i - self.first for i in self.graph.given() if i >= self.first]
        kept = {self.first + i: i for i in kept}
        needed = self.graph.needed([value for value, _ in self.graph.results], kept)
        self.kept = [kept[i] for i in needed if i in kept]
        self.likes = [fusion.inputs[i] for i, at in zip(wanted, self.which, strict=True) if at is not None]

    def __call__(self, values: Sequence[Tensor]) -> list[Tensor | None]:
        """The gradient of each input wanted, for cotangents, then inputs, then what was kept."""
        grads = by_kernel("fuse", self, values, self.lower)
        if grads is None:
            grads = evaluate(self.graph, self._numbered(values), COMPUTE[self.common])
            grads = [grad.to(like.dtype, copy=True) for grad, like in zip(grads, self.likes, strict=True)]
        return [None if at is None else grads[at] for at in self.which]

    def lower(self, values: Sequence[Tensor]) -> Executable:
        """The kernels for tensors in this layout."""
        return Executable(self.graph, self._numbered(values), self.likes, self.common)

    def _numbered(self, values: Sequence[Tensor]) -> dict[int, Tensor]:
        return dict(
            zip([*range(self.first), *(self.first + i for i in (*self.reads, *self.kept))], values, strict=True)
        )


class FusedCall(NamedTuple):
    """One call of a fusion that is recorded."""

    fusion: Fusion
    keeps: bool  # whether it saves what was reduced between two kernels: not if that must be the same without kernels
    trace: Trace | None = None  # whose operators are applied one by one, instead of the kernels

    def __call__(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The results, each once; and after them what is kept."""
        fusion = self.fusion
        if self.trace is None:
            return tuple(fusion.lowered(tensors, fusion.rooms if self.keeps else ()))
        values = self.trace.replay(tensors)
        return tuple([values[ref.value] for ref in self.trace.outputs])


class FusedFunction(Function):
    """A fused call: ``forward`` is one graph, ``backward`` the one derived from it by the operators' rules.

    Saves the inputs that the gradients read, and what was reduced between two kernels. Differentiated twice, gradients
    are computed from the inputs alone: so that stays right. Under hooks only inputs are saved: a checkpoint computes
    the call again, perhaps where no kernel runs, and pairs by position what both saved.
    """

    @classmethod
    def of(cls, fusion: Fusion, tensors: Sequence[Tensor], trace: Trace | None = None) -> Any:
        """Return what the function returns, recorded; by the operators of its ``trace``, if that is given."""
        run = FusedCall(fusion, not saved_tensor_hooks(), trace)
        return fusion.returned(_record(run, *tensors))

    @staticmethod
    def forward(ctx, run, *tensors):
        """Return the results, and after them what is saved besides inputs; save what all gradients needed read."""
        recording = run.fusion.recorded(ctx.needs_input_grad, run.keeps)
        ctx.kept = run, recording
        ctx.set_materialize_grads(False)
        output = run(tensors)
        if recording.fixed:
            ctx.mark_non_differentiable(*[output[i] for i in recording.fixed])
        reads = recording.gradient.reads
        ctx.save_for_backward(*[tensors[i] for i in reads], *[output[i] for i in recording.rooms])
        return output

    @staticmethod
    def backward(ctx, *gs):
        """The gradients that are wanted; of what nothing arrived from, none."""
        (fusion, keeps, _), (wanted, outputs, gradient, *_) = ctx.kept
        saved = ctx.saved_tensors if gradient.reads or gradient.kept else ()
        gs = tuple([gs[i] for i in outputs])
        if any([g is None for g in gs]):
            by_value = dict(zip((*gradient.reads, *gradient.kept), saved, strict=True))
            arrived = tuple(i for i, g in zip(outputs, gs, strict=True) if g is not None)
            gradient, gs = fusion.gradient(wanted, arrived, keeps), tuple([g for g in gs if g is not None])
            saved = tuple(by_value[i] for i in (*gradient.reads, *gradient.kept))
        every: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        for i, grad in zip(wanted, gradient((*gs, *saved)), strict=True):
            every[i + 1] = grad
        return tuple(every)


_record = apply_without_binding(FusedFunction)  # no transform is ever open around it
