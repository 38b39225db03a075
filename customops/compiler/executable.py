"""The kernels of a graph for tensors in one layout, as one object that is called with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..runtime.memory import empty
from ..runtime.paths import has_kernel, plan_key
from ..runtime.plans import kernels, recall, remember
from ..runtime.specs import TensorSpec, contiguous, on_meta, spec_of
from ..triton_kernels.layout import VECTOR_BYTES
from ..triton_kernels.stage import Argument
from .axes import Dims, align, restore
from .graph import Constant, Graph, Input
from .partition import Binding, Partition, scratch_binding

COMPUTE = {torch.float16: torch.float32, torch.bfloat16: torch.float32} | {
    dtype: dtype for dtype in (torch.float32, torch.float64)
}


class Executable:
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
        likes: Sequence[TensorSpec],
        common: torch.dtype,
        apart: bool = False,
    ):
        needed = graph.needed([value for value, _ in graph.results], tensors)
        numbers = [i for i in needed if isinstance(graph.values[i], Constant)]
        self.numbers = tuple(graph.number(i) for i in numbers)
        self.device = next(iter(tensors.values())).device
        targets = self._place(graph, tensors, likes, apart, len(tensors) + len(numbers))
        memories = [
            Argument(x.dtype, x.data_ptr() % VECTOR_BYTES == 0, not isinstance(graph.values[i], Input))
            for i, x in tensors.items()
        ]
        memories += [None] * len(numbers) + [Argument(like.dtype) for like in self.written]
        cut = Partition(
            graph,
            _input_bindings(graph, tensors),
            {i: len(tensors) + k for k, i in enumerate(numbers)},
            targets,
            min(memory.dtype.itemsize for memory in memories if memory),
            COMPUTE[common].itemsize // 4,
        )
        self.stages, self.cuts = len(cut.stages), tuple(cut.cuts)
        self.plan = kernels().Plan(cut.stages, memories, common, self.device, cut.rooms) if targets else None

    def _place(
        self, graph: Graph, tensors: dict[int, Tensor], likes: Sequence[TensorSpec], apart: bool, first: int
    ) -> list:
        """The values to be ``written``, each with its place among the arguments from ``first``; and all results."""
        order = list(tensors)
        targets: dict[Any, tuple[int, Binding]] = {}
        self.written: list[TensorSpec] = []
        self._results: list[Callable[[Sequence[Tensor], list[Tensor]], Tensor]] = []
        for k, ((value, dims), like) in enumerate(zip(graph.results, likes, strict=True)):
            own = tuple(a if a in graph.axes[value] else None for a in dims)
            given = getattr(graph.values[value], "dims", None)
            if not apart and given and tensors[value].dtype == like.dtype and (given == dims or own != dims):
                self._results.append(_viewed_input(graph, order.index(value), given, dims))
                continue
            key = k if apart else (value, like)
            if key not in targets:
                shape = torch.Size(1 if a is None else n for a, n in zip(own, like.shape, strict=True))
                strides = like.strides if shape == like.shape else contiguous(shape)
                targets[key] = value, Binding(first + len(targets), own, strides)
                self.written.append(like._replace(shape=shape, strides=strides))
            at = list(targets).index(key)
            self._results.append(_expanded_buffer(at, like.shape, self.written[at].shape))
        return list(targets.values())

    def __call__(self, tensors: Sequence[Tensor], keep: Sequence[int] = ()) -> list[Tensor]:
        """The results, for tensors in the order in which they were given; and after them rooms to ``keep``."""
        written = [empty(*spec) for spec in self.written]
        rooms = self.plan([*tensors, *self.numbers], written) if self.plan else []
        return [result(tensors, written) for result in self._results] + [rooms[i] for i in keep]


def _input_bindings(graph: Graph, tensors: dict[int, Tensor]) -> dict[int, Any]:
    """The place of each tensor: as it lies, or in a room."""
    return {
        i: Binding(k, value.dims, x.stride())
        if isinstance(value := graph.values[i], Input)
        else scratch_binding(graph, i, k)
        for k, (i, x) in enumerate(tensors.items())
    }


def _expanded_buffer(index: int, shape: torch.Size, own: torch.Size) -> Callable:
    """Which of the tensors written a result is, seen in its shape."""
    if own == shape:
        return _buffer(index)
    return lambda _, written: written[index].expand(shape)


@cache
def _buffer(index: int) -> Callable:
    return lambda _, written: written[index]


def _viewed_input(graph: Graph, index: int, given: Dims, dims: Dims) -> Callable:
    """Which of the tensors given a result is, or a view of."""
    order = sorted(graph.sizes)
    if given == dims:
        return _input(index)
    return lambda tensors, _: restore(align(tensors[index], given, order), dims, order, graph.sizes)


@cache
def _input(index: int) -> Callable:
    return lambda tensors, _: tensors[index]


def gradient_spec(x: Tensor) -> TensorSpec:
    """What the gradient of ``x`` is to be: laid out as it is, but dense."""
    spec, dense = spec_of(x), contiguous(x.shape)
    return spec if spec.strides == dense else spec._replace(strides=torch.empty_like(on_meta(spec)).stride())


def by_kernel(
    name: str, key: Any, values: Sequence[Tensor], lower: Callable[[Sequence[Tensor]], Executable]
) -> list[Tensor] | None:
    """What the kernels that ``lower`` makes give for ``values``; made once for ``key`` and tensors like these.

    None where no kernel runs. Raises RuntimeError, about ``name``, where one has to and cannot.
    """
    found = plan_key(values)
    if not found:
        return None
    whole = key, found
    lowered = recall(whole)
    if lowered is None:
        lowered = remember(whole, has_kernel(name, values) and lower(values))
    return lowered(values) if lowered else None
