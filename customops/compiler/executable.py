"""The kernels of a graph for tensors in one layout, as one object that is called with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..runtime.memory import allocate, like_argument, positions
from ..runtime.paths import has_kernel
from ..runtime.plans import planner, recall, remember
from ..runtime.specs import TensorSpec, contiguous, like_strides, spec_of
from ..triton_kernels.layout import VECTOR_BYTES
from ..triton_kernels.stage import Argument
from .axes import NOTHING, Dims
from .graph import Constant, Graph, Input, Position
from .partition import partition
from .stages import Binding, scratch_binding

COMPUTE = {torch.float16: torch.float32, torch.bfloat16: torch.float32} | {
    dtype: dtype for dtype in (torch.float32, torch.float64)
}


class Result(NamedTuple):
    """A result of an executable: the tensor that it is, or is a view of."""

    is_input: bool  # whether that tensor is one of the inputs; if not, it is one of the buffers that kernels wrote
    position: int  # among these
    shape: torch.Size | None = None  # the shape of the view; None if it is the tensor itself
    own_shape: torch.Size | None = None  # of an input, its shape with dimensions in the order of the view
    permutation: tuple[int, ...] = ()  # of an input, how its dimensions get into that order

    def view(self, inputs: Sequence[Tensor], buffers: Sequence[Tensor]) -> Tensor:
        """Return the result."""
        x = (inputs if self.is_input else buffers)[self.position]
        if self.shape is None:
            return x
        if self.own_shape is not None:
            x = x.permute(self.permutation).view(self.own_shape)
        return x.expand(self.shape)


class Executable:
    """The kernels of a graph for tensors in one layout; called with them, it returns the results.

    With ``distinct=True``, for results of a call, every result gets memory of its own. With ``distinct=False``, for
    gradients, a result that is an input unchanged is returned as that input, one that is constant along an axis is
    returned as an expanded view, and equal ones are one tensor. No other view will do: autograd takes a dense
    gradient's memory for its own, to accumulate in.
    """

    __slots__ = ("_like", "_results", "buffers", "numbers", "plan", "spills", "stage_count")

    def __init__(
        self,
        graph: Graph,
        tensors: dict[int, Tensor],
        specs: Sequence[TensorSpec],
        common: torch.dtype,
        distinct: bool = False,
        statistics: Sequence[int] = (),
        known: Mapping[int, Dims] = NOTHING,
        plans: Any = None,
    ):
        """Make the kernels.

        Args:
            graph: what to compute.
            tensors: by value, what it will be called with, in order: inputs, and values that were computed before.
            specs: what each result is to be.
            common: the dtype that values are rounded to as they are loaded.
            distinct: whether no two results, and no result and input, may share memory.
            statistics: values that it returns after the results, unrounded: dense, their axes in order.
            known: the values among ``tensors`` that were results, with the axis of each dimension; others that are no
                inputs were statistics.
            plans: the module that makes plans; by default that of the tensors' device.
        """
        device = next(iter(tensors.values())).device
        results = [*graph.results, *((i, tuple(sorted(graph.axes[i]))) for i in statistics)]
        specs = [*specs, *(_statistic_spec(graph, i, COMPUTE[common], device) for i in statistics)]
        ancestors = graph.ancestors([value for value, _ in results], tensors)
        constants = [i for i in ancestors if isinstance(graph.values[i], Constant)]
        counted = [i for i in ancestors if isinstance(graph.values[i], Position)]
        ranges = [positions(graph.sizes[graph.values[i].axis], COMPUTE[common], device) for i in counted]
        self.numbers = (*ranges, *(graph.number(i) for i in constants))  # arguments of the plan, after the tensors
        self.buffers: list[TensorSpec] = []  # the tensors that kernels write: the last arguments
        self._results: list[Result] = []
        outputs = self._place_results(graph, tensors, results, specs, distinct)
        self._like = like_argument(self.buffers, list(tensors.values()))
        unrounded = {i for i in tensors if i not in known and not isinstance(graph.values[i], Input)}
        arguments = [Argument(x.dtype, x.data_ptr() % VECTOR_BYTES == 0, i in unrounded) for i, x in tensors.items()]
        arguments += [Argument(x.dtype, is_scratch=True) for x in ranges]  # no half type would hold them
        arguments += [None] * len(constants) + [Argument(spec.dtype) for spec in self.buffers]
        plans = plans or planner(device)
        read = {**tensors, **dict(zip(counted, ranges, strict=True))}
        pieces = partition(
            graph,
            _input_bindings(graph, read, known),
            {i: len(read) + k for k, i in enumerate(constants)},
            outputs,
            COMPUTE[common].itemsize // 4,
            plans.constexpr_parameter,
            plans.SAME_BITS,
        )
        self.stage_count, self.spills = len(pieces.stages), pieces.spills
        self.plan = None
        if outputs:
            self.plan = plans.Plan(pieces.stages, arguments, common, device, pieces.scratch_sizes)

    def _place_results(
        self,
        graph: Graph,
        tensors: dict[int, Tensor],
        results: Sequence[tuple[int, Dims]],
        specs: Sequence[TensorSpec],
        distinct: bool,
    ) -> list[tuple[int, Binding]]:
        """Find ``buffers`` and ``_results``; return the value of each buffer, and its binding."""
        order, first = list(tensors), len(tensors) + len(self.numbers)
        outputs: list[tuple[int, Binding]] = []
        position: dict[Any, int] = {}  # of the buffers
        for k, ((value, dims), spec) in enumerate(zip(results, specs, strict=True)):
            varying = tuple(a if a in graph.axes[value] else None for a in dims)
            if not distinct and _is_view_of_input(graph.values[value], dims, varying, tensors.get(value), spec):
                self._results.append(_view_of_input(graph, order.index(value), graph.values[value].dims, dims))
                continue
            shape = torch.Size(1 if a is None else n for a, n in zip(varying, spec.shape, strict=True))
            key = k if distinct else (value, spec)
            if key not in position:
                position[key] = len(outputs)
                strides = spec.strides if shape == spec.shape else contiguous(shape)
                outputs.append((value, Binding(first + len(outputs), varying, strides)))
                self.buffers.append(spec._replace(shape=shape, strides=strides))
            at = position[key]
            self._results.append(_itself(False, at) if shape == spec.shape else Result(False, at, spec.shape))
        return outputs

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the results for tensors in the same order, and after them the statistics."""
        buffers = allocate(self.buffers, self._like, tensors)
        if self.plan:
            self.plan([*tensors, *self.numbers], buffers)
        results = []
        for result in self._results:
            is_buffer = result.shape is None and not result.is_input  # most are: without a call
            results.append(buffers[result.position] if is_buffer else result.view(tensors, buffers))
        return results


def _input_bindings(graph: Graph, tensors: dict[int, Tensor], known: Mapping[int, Dims]) -> dict[int, Binding]:
    """Return where each tensor's value lies: as the tensor does, or dense, as a statistic."""
    bindings = {}
    for k, (i, x) in enumerate(tensors.items()):
        node = graph.values[i]
        dims = (node.axis,) if isinstance(node, Position) else known.get(i, getattr(node, "dims", None))
        bindings[i] = scratch_binding(graph, i, k) if dims is None else Binding(k, dims, x.stride())
    return bindings


def _statistic_spec(graph: Graph, value: int, dtype: torch.dtype, device: torch.device) -> TensorSpec:
    shape = torch.Size(graph.sizes[a] for a in sorted(graph.axes[value]))
    return TensorSpec(shape, contiguous(shape), dtype, device)


def _is_view_of_input(node: Any, dims: Dims, varying: Dims, tensor: Tensor | None, spec: TensorSpec) -> bool:
    """Return whether a result is an input as it is, or one that is constant along an axis."""
    if not isinstance(node, Input) or not node.dims or tensor is None or tensor.dtype != spec.dtype:
        return False  # without dimensions it is copied
    return node.dims == dims or varying != dims


def _view_of_input(graph: Graph, index: int, own: Dims, dims: Dims) -> Result:
    """Return the result that is input ``index`` of dims ``own``, seen in ``dims``."""
    if own == dims:
        return _itself(True, index)
    permutation = tuple(own.index(a) for a in dims if a is not None and a in own)
    permutation += tuple(d for d, a in enumerate(own) if a is None)
    shape = torch.Size(1 if a is None else graph.sizes[a] for a in dims)
    own_shape = torch.Size(n if a in own else 1 for a, n in zip(dims, shape, strict=True))
    return Result(True, index, shape, own_shape, permutation)


@cache
def _itself(is_input: bool, index: int) -> Result:
    """Return the result that is a tensor itself: one object for all executables."""
    return Result(is_input, index)


def gradient_spec(x: Tensor) -> TensorSpec:
    """Return what the gradient of ``x`` is to be: laid out as ``x`` is, but dense."""
    spec, dense = spec_of(x), contiguous(x.shape)
    return spec if spec.strides == dense else spec._replace(strides=like_strides(x))


def by_kernel(
    name: str,
    key: Any,
    layout: tuple | None,
    tensors: Sequence[Tensor],
    compile_for: Callable[[Sequence[Tensor]], Executable],
) -> list[Tensor] | None:
    """Return the results of the executable that ``compile_for`` makes; it is made once for ``key`` and ``layout``.

    ``layout`` is the tensors' ``plan_key``. Returns None where no kernel runs. Raises RuntimeError, about ``name``,
    where one has to and cannot.
    """
    if not layout:
        return None
    key = key, layout
    executable = recall(key)
    if executable is None:
        executable = remember(key, has_kernel(name, tensors, by_blocks=True) and compile_for(tensors))
    return executable(tensors) if executable else None
