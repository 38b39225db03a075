"""A graph of operators on tensors: planned once for a layout, then one launch or few; its gradients likewise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .autograd import Operator, Recorded
from .axes import Dims, align, restore
from .compute import Spec, contiguous, on_meta, recall, remember, spec_of
from .derivation import derive
from .dispatch import ALIGNMENT, features, has_kernel, saves_are_hooked
from .graphs import Given, Graph, Number, Step, evaluate
from .memory import empty
from .tracing import Trace

COMPUTE = {torch.float16: torch.float32, torch.bfloat16: torch.float32} | {
    dtype: dtype for dtype in (torch.float32, torch.float64)
}


def obstacle(trace: Trace, tensors: Sequence[Tensor]) -> str | None:
    """Why the operators of ``trace`` are applied one by one, None where they are not."""
    if any(ref.value < trace.arity for ref in trace.outputs):
        return "an argument is returned as it is"
    if len({x.device for x in tensors}) > 1:
        return "the tensors are on several devices"
    dtypes = set(trace.dtypes[trace.arity :])
    if not dtypes <= set(COMPUTE):
        return f"an operator returns {(dtypes - set(COMPUTE)).pop()}, and kernels of several compute in floats"
    return None


class Lowered:
    """The kernels of a graph for tensors in one layout; called with them, it returns the results.

    ``stages``, how many, and ``cuts`` say how it is done. A step's value may be among the tensors, in a room. Unless
    results are to share no memory, ``apart``, one that is a tensor given is that, and one whose value lacks axes is a
    view that repeats it. No other view will do: autograd takes a dense gradient's memory for its own, to accumulate in.
    """

    __slots__ = ("_results", "cuts", "device", "numbers", "plan", "stages", "written")

    def __init__(
        self,
        graph: Graph,
        tensors: dict[int, Tensor],
        likes: Sequence[Spec],
        common: torch.dtype,
        apart: bool = False,
    ):
        from .stages import Stages  # noqa: PLC0415 - it imports Triton
        from .triton_kernels import launch  # noqa: PLC0415

        needed = graph.needed([value for value, _ in graph.results], tensors)
        numbers = [i for i in needed if isinstance(graph.values[i], Number)]
        self.numbers = tuple(graph.number(i) for i in numbers)
        self.device = next(iter(tensors.values())).device
        targets = self._place(graph, tensors, likes, apart, len(tensors) + len(numbers))
        memories = [
            launch.Memory(x.dtype, x.data_ptr() % ALIGNMENT == 0, not isinstance(graph.values[i], Given))
            for i, x in tensors.items()
        ]
        memories += [None] * len(numbers) + [launch.Memory(like.dtype) for like in self.written]
        cut = Stages(
            graph,
            _sources(graph, tensors),
            {i: len(tensors) + k for k, i in enumerate(numbers)},
            targets,
            min(memory.dtype.itemsize for memory in memories if memory),
            COMPUTE[common].itemsize // 4,
        )
        self.stages, self.cuts = len(cut.stages), tuple(cut.cuts)
        self.plan = launch.Plan(cut.stages, memories, common, self.device, cut.rooms) if targets else None

    def _place(self, graph: Graph, tensors: dict[int, Tensor], likes: Sequence[Spec], apart: bool, first: int) -> list:
        """The values to be ``written``, each with its place among the arguments from ``first``; and all results."""
        from .stages import Place  # noqa: PLC0415 - it imports Triton

        order = list(tensors)
        targets: dict[Any, tuple[int, Place]] = {}
        self.written: list[Spec] = []
        self._results: list[Callable[[Sequence[Tensor], list[Tensor]], Tensor]] = []
        for k, ((value, dims), like) in enumerate(zip(graph.results, likes, strict=True)):
            own = tuple(a if a in graph.axes[value] else None for a in dims)
            given = getattr(graph.values[value], "dims", None)
            if not apart and given and tensors[value].dtype == like.dtype and (given == dims or own != dims):
                self._results.append(_viewed(graph, order.index(value), given, dims))
                continue
            key = k if apart else (value, like)
            if key not in targets:
                shape = torch.Size(1 if a is None else n for a, n in zip(own, like.shape, strict=True))
                strides = like.strides if shape == like.shape else contiguous(shape)
                targets[key] = value, Place(first + len(targets), own, strides)
                self.written.append(like._replace(shape=shape, strides=strides))
            at = list(targets).index(key)
            self._results.append(_repeated(at, like.shape, self.written[at].shape))
        return list(targets.values())

    def __call__(self, tensors: Sequence[Tensor], keep: Sequence[int] = ()) -> list[Tensor]:
        """The results, for tensors in the order in which they were given; and after them rooms to ``keep``."""
        written = [empty(*spec) for spec in self.written]
        rooms = self.plan([*tensors, *self.numbers], written) if self.plan else []
        return [result(tensors, written) for result in self._results] + [rooms[i] for i in keep]


def _sources(graph: Graph, tensors: dict[int, Tensor]) -> dict[int, Any]:
    """The place of each tensor: as it lies, or in a room."""
    from .stages import Place, in_room  # noqa: PLC0415 - it imports Triton

    return {
        i: Place(k, value.dims, x.stride()) if isinstance(value := graph.values[i], Given) else in_room(graph, i, k)
        for k, (i, x) in enumerate(tensors.items())
    }


def _repeated(index: int, shape: torch.Size, own: torch.Size) -> Callable:
    """Which of the tensors written a result is, seen in its shape."""
    if own == shape:
        return _written(index)
    return lambda _, written: written[index].expand(shape)


@cache
def _written(index: int) -> Callable:
    return lambda _, written: written[index]


def _viewed(graph: Graph, index: int, given: Dims, dims: Dims) -> Callable:
    """Which of the tensors given a result is, or a view of."""
    order = sorted(graph.sizes)
    if given == dims:
        return _given(index)
    return lambda tensors, _: restore(align(tensors[index], given, order), dims, order, graph.sizes)


@cache
def _given(index: int) -> Callable:
    return lambda tensors, _: tensors[index]


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
        self.lowered = Lowered(self.graph, dict(enumerate(tensors)), self.likes, self.common, apart=True)
        cut = {cut.value: room for room, cut in enumerate(self.lowered.cuts)}
        steps = {i: step for i in cut if isinstance(step := self.graph.values[i], Step)}
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


def _results(trace: Trace, graph: Graph, tensors: Sequence[Tensor]) -> list[Spec]:
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
        Spec(shape, steps, dtypes[ref.value], trace.device)
        for shape, steps, ref in zip(shapes, strides, trace.outputs, strict=True)
    ]


def _strides(trace: Trace, index: int, meta: Sequence[Tensor]) -> tuple[int, ...]:
    """Those of torch's result; a reduction's is contiguous, which a meta tensor may not be."""
    z = meta[index]
    node = trace.nodes[index - trace.arity]
    return z.stride() if issubclass(node.operator, Operator) else contiguous(z.shape)


def gradient_spec(x: Tensor) -> Spec:
    """What the gradient of ``x`` is to be: laid out as it is, but dense."""
    spec, dense = spec_of(x), contiguous(x.shape)
    return spec if spec.strides == dense else spec._replace(strides=torch.empty_like(on_meta(spec)).stride())


class Gradient:
    """The gradients of a fusion: what they read of its inputs, ``reads``, and of its values ``kept``, and how."""

    __slots__ = ("common", "first", "graph", "kept", "likes", "reads", "which")

    def __init__(self, fusion: Fusion, wanted: tuple[int, ...], outputs: tuple[int, ...], kept: Iterable[int]):
        self.graph, self.which = derive(fusion.graph, wanted, outputs)
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

    def lower(self, values: Sequence[Tensor]) -> Lowered:
        """The kernels for tensors in this layout."""
        return Lowered(self.graph, self._numbered(values), self.likes, self.common)

    def _numbered(self, values: Sequence[Tensor]) -> dict[int, Tensor]:
        return dict(
            zip([*range(self.first), *(self.first + i for i in (*self.reads, *self.kept))], values, strict=True)
        )


def by_kernel(
    name: str, key: Any, values: Sequence[Tensor], lower: Callable[[Sequence[Tensor]], Lowered]
) -> list[Tensor] | None:
    """What the kernels that ``lower`` makes give for ``values``; made once for ``key`` and tensors like these.

    None where no kernel runs. Raises RuntimeError, about ``name``, where one has to and cannot.
    """
    found = features(values)
    if not found:
        return None
    whole = key, found
    lowered = recall(whole)
    if lowered is None:
        lowered = remember(whole, has_kernel(name, values) and lower(values))
    return lowered(values) if lowered else None


class Run(NamedTuple):
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


class Composition(Recorded):
    """A fused composition: ``forward`` is one graph, ``backward`` the one derived from it by the operators' rules.

    Saves the inputs that the gradients read, and what was reduced between two kernels. Differentiated twice, gradients
    are computed from the inputs alone: so that stays right. Under hooks only inputs are saved: a checkpoint computes
    the call again, perhaps where no kernel runs, and pairs by position what both saved.
    """

    @classmethod
    def of(cls, fusion: Fusion, tensors: Sequence[Tensor], trace: Trace | None = None) -> Any:
        """What the function returns, recorded; by the operators of its ``trace``, if that is given."""
        run = Run(fusion, not saves_are_hooked(), trace)
        return fusion.returned(cls.record(run, *tensors))

    @staticmethod
    def forward(run, *tensors):
        """The results; and what is kept."""
        return run(tensors)

    @staticmethod
    def setup_context(ctx, inputs, output):
        """Keep what all gradients wanted read."""
        run, *tensors = inputs
        recording = run.fusion.recorded(ctx.needs_input_grad, run.keeps)
        if recording.fixed:
            ctx.mark_non_differentiable(*[output[i] for i in recording.fixed])
        ctx.kept = run, recording
        reads = recording.gradient.reads
        ctx.save_for_backward(*[tensors[i] for i in reads], *[output[i] for i in recording.rooms])
        ctx.set_materialize_grads(False)

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
