"""The kernels of a graph for tensors in one layout, as one object that is called with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..runtime.memory import allocate, like_argument, positions, write_zeros
from ..runtime.paths import has_kernel
from ..runtime.plans import planner, recall, remember
from ..runtime.specs import TensorSpec, contiguous, like_strides, spec_of
from ..triton_kernels.layout import VECTOR_BYTES
from ..triton_kernels.stage import Argument
from .axes import NOTHING, Dims
from .graph import Constant, Graph, Input, Position
from .partition import partition
from .stages import Binding, scratch_binding
from .views import WHOLE, Seen, Share, View, is_whole

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

    __slots__ = (
        "_like",
        "_results",
        "_seen",
        "_targets",
        "_zeros",
        "buffers",
        "numbers",
        "plan",
        "spills",
        "stage_count",
    )

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
        seen: Seen | None = None,
    ):
        """Make the kernels.

        Args:
            graph: what to compute.
            tensors: by value, what it will be called with, in order: inputs, and values that were computed before;
                where parts are ``seen``, the tensors that these are parts of, in their order.
            specs: what each result is to be.
            common: the dtype that values are rounded to as they are loaded.
            distinct: whether no two results, and no result and input, may share memory.
            statistics: values that it returns after the results, unrounded: dense, their axes in order.
            known: the values among ``tensors`` that were results, with the axis of each dimension; others that are no
                inputs were statistics.
            plans: the module that makes plans; by default that of the tensors' device.
            seen: the parts of tensors that the values are, None if each is a tensor as it is. ``specs`` are those of
                the tensors.
        """
        device = next(iter(tensors.values())).device
        aligned = {i: x.data_ptr() % VECTOR_BYTES == 0 for i, x in tensors.items()}
        if seen:  # a part of a tensor that is not aligned may be, but then not that of every such tensor
            tensors = {i: view.of(tensors[i]) for i, _, view in seen.operands}
            aligned = {i: aligned[i] and x.data_ptr() % VECTOR_BYTES == 0 for i, x in tensors.items()}
        results = [*graph.results, *((i, tuple(sorted(graph.axes[i]))) for i in statistics)]
        specs = [*specs, *(_statistic_spec(graph, i, COMPUTE[common], device) for i in statistics)]
        ancestors = graph.ancestors([value for value, _ in results], tensors)
        constants = [i for i in ancestors if isinstance(graph.values[i], Constant)]
        counted = [i for i in ancestors if isinstance(graph.values[i], Position)]
        shapes = [tuple([graph.sizes[a] for a in graph.values[i].axes]) for i in counted]
        ranges = [positions(shape, COMPUTE[common], device) for shape in shapes]
        self.numbers = (*ranges, *(graph.number(i) for i in constants))  # arguments of the plan, after the tensors
        self.buffers: list[TensorSpec] = []  # the tensors that kernels write: the last arguments
        self._seen = seen and tuple(seen.operands)
        self._results: list[Result] = []
        self._zeros: list[tuple[int, View]] = []  # the parts of buffers that no kernel writes
        self._targets: list[tuple[int, View]] = []  # what kernels write: the buffer, and which part of it
        whole = [(Share(k, WHOLE),) for k in range(len(results))]
        shares = whole if seen is None else [*seen.shares, *whole[len(graph.results) :]]
        outputs = self._place_results(graph, tensors, results, specs, shares, distinct)
        self._like = like_argument(self.buffers, list(tensors.values()))
        unrounded = {i for i in tensors if i not in known and not isinstance(graph.values[i], Input)}
        arguments = [Argument(x.dtype, aligned[i], i in unrounded) for i, x in tensors.items()]
        arguments += [Argument(x.dtype, is_scratch=True, is_position=True) for x in ranges]  # no half type holds them
        arguments += [None] * len(constants) + [self._argument(*target) for target in self._targets]
        plans = plans or planner(device)
        read = {**tensors, **dict(zip(counted, ranges, strict=True))}
        pieces = partition(
            graph,
            _input_bindings(graph, read, known),
            {i: len(read) + k for k, i in enumerate(constants)},
            outputs,
            COMPUTE[common].itemsize // 4,
            plans.is_compiled_in,
            plans.SAME_BITS,
            plans.SUMS_SEGMENTS,
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
        shares: Sequence[Sequence[Share]],
        distinct: bool,
    ) -> list[tuple[int, Binding]]:
        """Find ``buffers``, what is written of them, and ``_results``; return the value of each, and its binding."""
        order, first = list(tensors), len(tensors) + len(self.numbers)
        outputs: list[tuple[int, Binding]] = []
        position: dict[Any, int] = {}  # of the buffers
        for k, (pieces, spec) in enumerate(zip(shares, specs, strict=True)):
            if not is_whole(pieces):
                self._results.append(_itself(False, len(self.buffers)))
                outputs += self._place_parts(results, pieces, spec, first + len(outputs))
                continue
            result = pieces[0].result
            assert result is not None  # what is zero as a whole is no result
            value, dims = results[result]
            own = graph.axes[value]  # along other axes it is the same
            is_written = [a in own or (distinct and stride) for a, stride in zip(dims, spec.strides, strict=True)]
            varying = tuple(a if written else None for a, written in zip(dims, is_written, strict=True))
            if not distinct and _is_view_of_input(graph.values[value], dims, varying, tensors.get(value), spec):
                self._results.append(_view_of_input(graph, order.index(value), graph.values[value].dims, dims))
                continue
            shape = torch.Size(1 if a is None else n for a, n in zip(varying, spec.shape, strict=True))
            key = k if distinct else (value, varying, spec)
            if key not in position:
                position[key] = len(self.buffers)
                strides = spec.strides if shape == spec.shape else contiguous(shape)
                outputs.append((value, Binding(first + len(outputs), varying, strides)))
                self._targets.append((len(self.buffers), WHOLE))
                self.buffers.append(spec._replace(shape=shape, strides=strides))
            at = position[key]
            self._results.append(_itself(False, at) if shape == spec.shape else Result(False, at, spec.shape))
        return outputs

    def _place_parts(
        self, results: Sequence[tuple[int, Dims]], pieces: Sequence[Share], spec: TensorSpec, first: int
    ) -> list[tuple[int, Binding]]:
        """Make a buffer of which results are parts; return the value of each part that kernels write, and its binding.

        ``first`` is the argument that the first of them is.
        """
        outputs: list[tuple[int, Binding]] = []
        for result, view in pieces:
            target = len(self.buffers), view
            if result is None:
                self._zeros.append(target)
                continue
            value, dims = results[result]
            strides = view.of(_without_memory(spec)).stride()
            dims = tuple(a if stride else None for a, stride in zip(dims, strides, strict=True))
            outputs.append((value, Binding(first + len(outputs), dims, strides)))
            self._targets.append(target)
        self.buffers.append(spec)
        return outputs

    def _argument(self, buffer: int, view: View) -> Argument:
        """Return what a plan knows of a part of a buffer."""
        spec = self.buffers[buffer]
        offset = view.of(_without_memory(spec)).storage_offset() if view.steps else 0
        return Argument(spec.dtype, offset * spec.dtype.itemsize % VECTOR_BYTES == 0)

    def operands(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return what kernels load of the tensors that it is called with."""
        return [view.of(tensors[k]) for _, k, view in self._seen] if self._seen else tensors

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the results for tensors in the same order, and after them the statistics."""
        if self._seen:
            tensors = self.operands(tensors)
        buffers = targets = allocate(self.buffers, self._like, tensors)
        if self._seen:
            targets = [view.of(buffers[k]) for k, view in self._targets]
            for k, view in self._zeros:
                write_zeros(view.of(buffers[k]))
        if self.plan:
            self.plan.__call__([*tensors, *self.numbers], targets)
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
        dims = node.axes if isinstance(node, Position) else known.get(i, getattr(node, "dims", None))
        bindings[i] = scratch_binding(graph, i, k) if dims is None else Binding(k, dims, x.stride())
    return bindings


def _without_memory(spec: TensorSpec) -> Tensor:
    return torch.empty_strided(spec.shape, spec.strides, device="meta")


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
    return executable.__call__(tensors) if executable else None
