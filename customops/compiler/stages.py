"""Describe one stage of a graph for the kernels: where its values lie in memory, and what is computed of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ..triton_kernels.layout import Strides, dense_strides
from ..triton_kernels.stage import KernelOp, Operand, Output, Stage
from .axes import NO_AXES, Axes, Dims, renamed
from .graph import Constant, Graph, Op, SegmentSums


class Binding(NamedTuple):
    """The place of a value in memory."""

    argument: int  # the position of its tensor among the arguments of the plan
    dims: Dims  # the axis of each dimension of that tensor
    strides: Strides  # of each dimension, in elements

    def renamed(self, names: Mapping[int, int]) -> Binding:
        """Return the same place, along axes that have other names."""
        return self._replace(dims=renamed(self.dims, names))


IsCompiledIn = Callable[[str, Any], bool]  # whether kernels are compiled for this last argument of a formula
Bound = tuple[int, Binding]  # a value, and where it is to be written


def axes_of(binding: Binding) -> Axes:
    """Return the axes that a tensor has."""
    return frozenset(a for a in binding.dims if a is not None)


def scratch_binding(graph: Graph, value: int, argument: int) -> Binding:
    """Return where ``value`` lies in a scratch buffer, which is this argument: dense, its axes in order.

    The segments of a row come as they do along it.
    """
    node, own = graph.values[value], graph.axes[value]
    last = [a for a in (*node.row, node.along) if a in own] if isinstance(node, SegmentSums) else []
    axes = (*sorted(own.difference(last)), *last)
    return Binding(argument, axes, dense_strides([graph.sizes[a] for a in axes], (1,) * len(axes)))


def describe_stage(
    graph: Graph,
    bindings: dict[int, Binding],
    numbers: dict[int, int],
    values: Sequence[int],
    epilogues: dict[int, int],
    outputs: Sequence[Bound],
    row_axes: Axes,
    is_compiled_in: IsCompiledIn,
) -> Stage:
    """Return the stage that computes ``values`` and writes ``outputs``.

    Args:
        graph: has the values.
        bindings: where the values lie that the stage loads.
        numbers: for each constant that is read, its position among the arguments of the plan.
        values: all that is loaded or computed, in order.
        epilogues: for each output that is reduced on its way out, the op that reduces it.
        outputs: the values that are written, and where.
        row_axes: the axes over which ops reduce.
        is_compiled_in: whether a number is part of the stage, as the last argument of a formula.
    """
    computed = [i for i in values if isinstance(graph.values[i], Op | SegmentSums) and i not in bindings]
    reduced_axes = (graph.values[i].reduced for i in computed)
    written = (axes_of(binding) for _, binding in outputs)
    own = frozenset(node.along for node in map(graph.values.__getitem__, computed) if isinstance(node, SegmentSums))
    axes = sorted(NO_AXES.union(*(graph.axes[i] for i in values), *reduced_axes, *written) - own)
    reduced = {i: graph.values[i].inputs[0] for i in epilogues.values()}
    ops = [i for i in computed if i not in reduced]
    constants = {i: _constant(graph, i, is_compiled_in) for i in ops}
    inputs = {i: graph.values[i].inputs[: -1 if constants[i] is not None else None] for i in ops}
    used = {j for i in ops for j in inputs[i]} | {*reduced.values(), *(value for value, _ in outputs)}
    loaded = used.difference(computed)
    operands = [i for i in values if i in loaded]
    number = {i: k for k, i in enumerate((*operands, *ops))}  # of each value in the stage
    number |= {i: number[x] for i, x in reduced.items()}
    return Stage(
        tuple(graph.sizes[a] for a in axes),
        tuple(_operand(graph, bindings, numbers, i, axes) for i in operands),
        tuple(_kernel_op(graph.values[i], [number[j] for j in inputs[i]], constants[i]) for i in ops),
        tuple(_output(graph, number[i], binding, axes, epilogues.get(i), row_axes) for i, binding in outputs),
        _positions(row_axes, axes),
    )


def _constant(graph: Graph, i: int, is_compiled_in: IsCompiledIn) -> float | None:
    """Return the number that the kernel is compiled for with op ``i``, None if there is none."""
    op = graph.values[i]
    last = graph.values[op.inputs[-1]] if op.inputs and not op.reduced else None
    if not isinstance(last, Constant) or last.counted or not is_compiled_in(op.formula, last.number):
        return None
    return last.number


def _kernel_op(op: Op, inputs: Sequence[int], constant: float | None) -> KernelOp:
    return KernelOp(op.formula, tuple(inputs), constant, bool(op.reduced))


def _operand(
    graph: Graph, bindings: dict[int, Binding], numbers: dict[int, int], i: int, axes: Sequence[int]
) -> Operand:
    node = graph.values[i]
    if isinstance(node, Constant):
        return Operand(numbers[i], None, "count" if node.counted else str(node.number))
    binding = bindings[i]
    return Operand(binding.argument, _strides_over(binding, axes), getattr(node, "name", f"t{i}"))


def _output(
    graph: Graph, number: int, binding: Binding, axes: Sequence[int], epilogue: int | None, row_axes: Axes
) -> Output:
    strides = _strides_over(binding, axes)
    if epilogue is None:
        return Output(number, binding.argument, strides)
    op = graph.values[epilogue]
    if isinstance(op, SegmentSums):
        of_rows = tuple(0 if a in row_axes else stride for a, stride in zip(axes, strides, strict=True))
        return Output(number, binding.argument, of_rows, "sum", segment=op.length)
    return Output(number, binding.argument, strides, op.formula, _positions(op.reduced, axes), graph.count(op.reduced))


def _positions(axes: Axes, order: Sequence[int]) -> frozenset[int]:
    """Return the positions of ``axes`` in ``order``."""
    return frozenset(k for k, a in enumerate(order) if a in axes)


def _strides_over(binding: Binding, axes: Sequence[int]) -> Strides:
    """Return the strides of a value over an iteration space of these axes: 0 along those it does not have."""
    by_axis = dict(zip(binding.dims, binding.strides, strict=True))
    return tuple(by_axis.get(a, 0) for a in axes)
