"""From stages to launches: a plan is made once for a layout, then followed at every call like it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from inspect import signature
from math import prod
from struct import Struct
from typing import NamedTuple

import torch
import triton.language as tl
from triton.runtime import driver

from .._compat import interpreting
from . import formulas
from .approximate import find
from .body import KernelBody, Reducer, reducer_of
from .formulas import INTERPRETED
from .launch import Launch
from .layout import LOOPED, Layout, Strides, arrange, dense_strides
from .map import map_kernel
from .map_reduce import map_reduce_kernel
from .row_tiling import choose_row_tiling
from .stage import ACCUMULATE, Argument, Output, Stage, summarize
from .tiling import MAX_PARTIALS, choose_tiling
from .walk import walk_kernel

SAME_BITS = True  # whether elementwise formulas give the same bits in every kernel
SUMS_SEGMENTS = True  # whether a stage that holds rows adds up segments of them


@cache
def constexpr_parameter(formula: str) -> str | None:
    """Return the last parameter of ``formula`` if kernels are compiled for its value, which is a number; else None."""
    function = getattr(formulas, formula)
    kinds = function.fn.__annotations__
    return next((p for p in function.arg_names[-1:] if kinds.get(p) is tl.constexpr), None)


def is_compiled_in(formula: str, number: float) -> bool:
    """Return whether kernels of a composition are compiled for this last argument of ``formula``.

    That is one they must know, or the formula's own default, as a factor of 1: known, it costs no instruction.
    """
    *_, last = signature(getattr(formulas, formula).fn).parameters.values()
    return constexpr_parameter(formula) is not None or number == last.default


class LaunchArgument(NamedTuple):
    """An argument of a plan as an operand or an output of one launch."""

    position: int  # among the tensors and numbers of a call: operands, outputs, then scratch buffers
    dtype: torch.dtype | None = None  # None for a number
    aligned: bool = True  # whether it starts at a multiple of 16 bytes
    strides: Strides | None = None  # in elements, one for each axis of the domain; None for a number
    partial_strides: tuple[int, int, int] = (0, 0, 0)  # in elements: from a program's partial to the next, by group
    is_scratch: bool = False  # whether it only passes from one launch to another
    is_position: bool = False  # whether each element is its own offset, which a kernel computes
    name: str = ""  # what printed programs call it


class Domain(NamedTuple):
    """The iteration space of a launch, and what is reduced over it."""

    shape: tuple[int, ...]  # elements along each axis
    reduced_axes: tuple[frozenset[int], ...]  # of each output: the axes that it is reduced over
    reduced_counts: tuple[int, ...]  # of each output: the elements that one reduced element is made of
    row_axes: frozenset[int] = frozenset()  # the axes over which ops reduce: a program has whole rows along them
    segments: tuple[int, ...] = ()  # of each output: elements of a row that it adds up to one, 0 where none

    def lay_out(self, operands: Sequence[LaunchArgument], outputs: Sequence[LaunchArgument]) -> Layout:
        """Return the layout of these tensors over the domain."""
        strides = (tuple(x.strides for x in arguments) for arguments in (operands, outputs))
        return arrange(self.shape, *strides, self.reduced_axes, self.row_axes, self.segments)


class Plan:
    """The launches that compute stages; ``plan(operands, outputs)`` makes them.

    It holds compiled kernels and integers, no tensor: any tensors of the same dtypes, strides, alignment and device
    can follow it, from any thread and on any stream. A model may need very many: it keeps little else.
    """

    __slots__ = (
        "_arguments",  # what is known of each operand, output and scratch buffer, while the plan is made
        "_pool",  # what several launches have in common, while the plan is made
        "accumulate_dtype",  # the dtype in which kernels compute and reduce, and of scratch buffers
        "common_dtype",  # the dtype that operands are cast to as they are loaded
        "device",  # of the tensors
        "device_index",  # the number of the device among those of Triton's driver; None in the interpreter
        "first_scratch",  # how many operands and outputs a call has: scratch buffers follow them
        "launches",  # in order
        "number_positions",  # of the operands that are numbers
        "scratch_sizes",  # elements of each scratch buffer
    )

    def __init__(
        self,
        stages: Sequence[Stage],
        arguments: Sequence[Argument | None],
        common_dtype: torch.dtype,
        device: torch.device,
        scratch_sizes: Sequence[int] = (),
    ):
        """Compile the kernels of ``stages``, which run one after the other.

        ``arguments`` are operands and outputs, None for a number; scratch buffers of these sizes, in elements, follow
        them. Values are cast to ``common_dtype`` as they are loaded, but for those of scratch buffers. They are
        computed and reduced in its accumulation dtype, which scratch buffers have, and rounded once, to the output's.
        """
        self.common_dtype, self.accumulate_dtype = common_dtype, ACCUMULATE.get(common_dtype, common_dtype)
        scratch = Argument(self.accumulate_dtype, is_scratch=True)
        self._arguments = [*arguments, *[scratch] * len(scratch_sizes)]
        self.first_scratch = len(arguments)
        self.scratch_sizes: list[int] = list(scratch_sizes)
        self._pool: dict = {}
        self.launches: list[Launch] = []
        self.device = device
        self.number_positions = [i for i, argument in enumerate(arguments) if argument is None]
        with self._on_device():
            self.device_index = None if _IS_INTERPRETED else driver.active.get_current_device()
            for stage in stages:
                self._add_stage(stage)
        del self._arguments, self._pool

    def __call__(
        self, operands: Sequence[torch.Tensor | float], outputs: Sequence[torch.Tensor]
    ) -> Sequence[torch.Tensor]:
        """Launch on these tensors and numbers, on the current stream of their device; return the scratch buffers."""
        active = None if _IS_INTERPRETED else driver.active
        if active and active.get_current_device() != self.device_index:
            with torch.cuda.device(self.device):
                return self(operands, outputs)
        if self.number_positions:
            operands = self._with_integers(operands)
        tensors = *operands, *outputs
        if self.scratch_sizes:
            empty = getattr(active, "empty", torch.empty)  # a dry run's
            scratch = [empty(n, dtype=self.accumulate_dtype, device=self.device) for n in self.scratch_sizes]
            tensors = *tensors, *scratch
        if active:
            stream = active.get_current_stream(self.device_index)
            for launch in self.launches:
                launch.__call__(tensors, stream)
        else:
            with interpreting():
                for launch in self.launches:
                    launch.interpret(tensors)
        return tensors[self.first_scratch :]

    def _with_integers(self, operands: Sequence[torch.Tensor | float]) -> Sequence[torch.Tensor | int]:
        """Return the operands with numbers as kernels expect them."""
        operands = list(operands)
        for i in self.number_positions:
            operands[i] = _as_integer(operands[i], self.common_dtype)
        return operands

    def _on_device(self):
        return torch.cuda.device(self.device) if self.device.type == "cuda" else _NOTHING

    def _add_stage(self, stage: Stage) -> None:
        operands = [self._launch_argument(x.argument, x.strides, x.name) for x in stage.operands]
        outputs = [self._launch_argument(x.argument, x.strides, "") for x in stage.outputs]
        domain = Domain(
            stage.shape,
            tuple(output.reduced_axes for output in stage.outputs),
            tuple(output.reduced_count for output in stage.outputs),
            stage.row_axes,
            tuple(output.segment for output in stage.outputs),
        )
        self._add(self._body(stage), domain, operands, outputs, summarize(stage), stage)

    def _launch_argument(self, position: int, strides: Strides | None, name: str) -> LaunchArgument:
        argument = self._arguments[position]
        if argument is None:
            return LaunchArgument(position, name=name)
        return LaunchArgument(
            position,
            argument.dtype,
            argument.aligned,
            strides,
            (0, 0, 0),
            argument.is_scratch,
            argument.is_position,
            name,
        )

    def _body(self, stage: Stage) -> KernelBody:
        common_dtype = triton_dtype(self.common_dtype)
        return KernelBody(
            formulas=tuple(find(op.formula, common_dtype) for op in stage.ops),
            inputs=tuple(op.inputs for op in stage.ops),
            outputs=tuple(output.value for output in stage.outputs),
            constants=tuple(op.constant for op in stage.ops),
            reducers=tuple(self._reducer(op.formula if op.reduces else None) for op in stage.ops),
            epilogue=tuple(self._epilogue(output) for output in stage.outputs),
            common_dtype=common_dtype,
            compute_dtype=triton_dtype(self.accumulate_dtype),
        )

    def _epilogue(self, output: Output) -> Reducer | None:
        reducer = self._reducer(output.reduction)
        return reducer._replace(finalize=None) if reducer and output.segment else reducer

    def _reducer(self, name: str | None) -> Reducer | None:
        return name and reducer_of(name, triton_dtype(self.accumulate_dtype))

    def _add(
        self, body: KernelBody, domain: Domain, operands, outputs, summary: str, stage: Stage | None = None,
        may_split: bool = True,
    ) -> None:  # fmt: skip
        """Add a launch; if it splits reductions among programs, also the launches that finalize them."""
        layout = domain.lay_out(operands, outputs)
        itemsizes = tuple(x.dtype.itemsize if x.dtype else 0 for x in (*operands, *outputs))
        kernel = map_kernel if len(layout.extents) == 2 else map_reduce_kernel
        if stage and layout.has_rows:
            tiling, walks = choose_row_tiling(stage, layout, itemsizes, self.accumulate_dtype.itemsize // 4)
            if walks:
                kernel, body = walk_kernel, body._replace(walks=walks)
        else:
            tiling = choose_tiling(layout, itemsizes, may_split, stage.live_values if stage else 1)
        if kernel is not walk_kernel:
            operands = [x._replace(is_position=False) for x in operands]  # it is read, as any other tensor
        if kernel is map_kernel:
            self.launches.append(Launch(kernel, body, layout, tiling, operands, outputs, summary, self._pool))
            return
        programs = tiling.tile_counts[0], tiling.splits, tiling.tile_counts[1]
        splits = [tuple(n if groups >> i & 1 else 1 for i, n in enumerate(programs)) for groups in layout.reduced_over]
        targets = [
            output if prod(split) == 1 else self._reserve_partials(domain.shape, output, split)
            for output, split in zip(outputs, splits, strict=True)
        ]
        epilogue = tuple(
            reducer if prod(split) == 1 else reducer._replace(finalize=None)
            for reducer, split in zip(body.epilogue, splits, strict=True)
        )
        layout = domain.lay_out(operands, targets)
        steps = -(-tiling.chunk // tiling.tile[LOOPED])
        reduction = tuple(x.partial_strides for x in targets), steps, domain.reduced_counts
        arguments = operands, targets, summary, self._pool, reduction
        self.launches.append(Launch(kernel, body._replace(epilogue=epilogue), layout, tiling, *arguments))
        self._add_finalize(body, domain, outputs, targets, splits)

    def _reserve_partials(self, shape, output: LaunchArgument, split: Sequence[int]) -> LaunchArgument:
        """Reserve a scratch buffer for the partials of an output, of which ``split`` has the number along each group.

        They are in the accumulation dtype.
        """
        strides, size = [0, 0, 0], prod(n for n, stride in zip(shape, output.strides, strict=True) if stride)
        for group, n in enumerate(split):
            if n > 1:
                strides[group], size = size, size * n
        self.scratch_sizes.append(size)
        self._arguments.append(Argument(self.accumulate_dtype, is_scratch=True))
        return LaunchArgument(
            position=len(self._arguments) - 1,
            dtype=self.accumulate_dtype,
            strides=dense_strides(shape, output.strides),
            partial_strides=tuple(strides),
            is_scratch=True,
            name="partial",
        )

    def _add_finalize(self, body: KernelBody, domain: Domain, outputs, targets, splits) -> None:
        """Add the launches that combine partials: one for all outputs of one shape with as many partials."""
        together: dict[tuple, list[int]] = {}
        for i, (partials, split) in enumerate(zip(targets, splits, strict=True)):
            if prod(split) > 1:
                shape = tuple(n if stride else 1 for n, stride in zip(domain.shape, partials.strides, strict=True))
                together.setdefault((prod(split), *shape), []).append(i)
        for shape, members in together.items():
            self._add_finalize_launch(body, domain, shape, [(targets[i], outputs[i], i) for i in members])

    def _add_finalize_launch(self, body: KernelBody, domain: Domain, shape: tuple[int, ...], members) -> None:
        """Add a launch that reduces the first axis of ``shape``, along which the partials of each output lie."""
        dtype = triton_dtype(self.accumulate_dtype)
        epilogue, n = tuple(body.epilogue[i] for *_, i in members), len(members)
        copy = KernelBody((), (), tuple(range(n)), (), (), epilogue, dtype, dtype)
        operands = [_along_first_axis(partials) for partials, *_ in members]
        outputs = [output._replace(strides=(0, *output.strides)) for _, output, _ in members]
        counts = tuple(domain.reduced_counts[i] for *_, i in members)
        summary = ", ".join(f"{reducer.finalize.__name__}(partial)" for reducer in epilogue)
        over_partials = Domain(shape, (frozenset({0}),) * n, counts)
        self._add(copy, over_partials, operands, outputs, summary, may_split=shape[0] > MAX_PARTIALS)


def _along_first_axis(partials: LaunchArgument) -> LaunchArgument:
    """Return the partials with one more axis in front, along which they lie: they are contiguous."""
    strides = min(filter(None, partials.partial_strides)), *partials.strides
    return partials._replace(strides=strides, partial_strides=(0, 0, 0))


_NOTHING = nullcontext()
_IS_INTERPRETED: bool = INTERPRETED.value  # Python asks a constexpr through a call
_DOUBLE, _LONG = Struct("<d"), Struct("<q")


def _as_integer(value: torch.Tensor | float, common_dtype: torch.dtype) -> int:
    """Return a number, which a 0-dim CPU tensor among GPU tensors counts as, in the form that ``body.load`` expects."""
    number = value.item() if isinstance(value, torch.Tensor) else value
    if common_dtype.is_floating_point:
        return _LONG.unpack(_DOUBLE.pack(number))[0]
    integer = int(bool(number) if common_dtype == torch.bool else number)
    return integer if integer < 2**63 else integer - 2**64  # as torch: beyond int64 it is the bits that count


def triton_dtype(dtype: torch.dtype) -> tl.dtype:
    """Return Triton's dtype for torch's; bool is computed in one bit."""
    return tl.int1 if dtype == torch.bool else getattr(tl, str(dtype).removeprefix("torch."))
