"""The passes over memory that a stage takes once its axes are cut, and which values each of them computes.

A reduction over an axis that is cut has its value only after all blocks: it is added up in a *total*, and what reads it
waits for the next pass. That computes again what it needs of the pass before. Take the softmax of one row that is cut::

    pass 1   m = amax(x)
    pass 2   s = sum(exp(x - m))
    pass 3   exp(x - m) / s
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import prod
from typing import NamedTuple

import torch

from ..triton_kernels.stage import COMPARED, EXTREMA, KernelOp, Stage
from .space import Axes, Space, joined, variation


class Total(NamedTuple):
    """What a reduction over cut axes adds up to; a leaf of the pass that adds to it, and of later ones that read it."""

    reduction: str  # its name
    elements: int  # how many one reduced element is made of
    varies: Axes
    dtype: torch.dtype  # of what is added, and of the result
    key: tuple[bool, int]  # whether it is an output of the stage, and its number among these, or among the values


class Targets(NamedTuple):
    """The values that one walk over the blocks writes or adds up. They are computed along the same cut axes."""

    number: int  # of the pass
    totals: list[int]  # values that are reduced over cut axes
    outputs: list[int]  # the outputs of the stage, by number


class Passes:
    """The passes of one stage. Values have the numbers that they have in the stage."""

    def __init__(self, stage: Stage, space: Space, is_cut: frozenset[int], dtype: torch.dtype):
        self.stage, self.space = stage, space
        self.is_cut = is_cut  # the axes that are cut
        self.dtype = dtype  # in which values are computed
        self.inputs = [()] * len(stage.operands) + [op.inputs for op in stage.ops]  # of each value
        self.varies = self._variation()  # of each value
        self.totals: dict[int, Total] = {}  # the values that are reduced over axes that are cut
        self.ready = self._ready()  # of each value, the first pass that can read it
        # The values that others are compared with, or computed from: in each pass that computes them they need the same
        # bits. If not, no element would equal the extremum of its row.
        self.compared = frozenset(self._from_inputs(self._compared()))

    def op(self, value: int) -> KernelOp | None:
        """Return the op that computes a value, None if it is an operand."""
        first = len(self.stage.operands)
        return self.stage.ops[value - first] if value >= first else None

    def is_finished(self, value: int, number: int) -> bool:
        """Return whether a value is a total that pass ``number`` reads."""
        return value in self.totals and self.ready[value] <= number

    def targets(self) -> list[Targets]:
        """Return what each walk computes, in order: where a pass computes along several sets of axes, it is several.

        A walk along more axes than a sum has would add it up several times.
        """
        walks: dict[tuple[int, frozenset[int]], Targets] = {}
        for i in self.totals:
            (source,) = self.inputs[i]
            self._walk(walks, self.ready[i] - 1, source, self.space.row_axes).totals.append(i)
        for k, z in enumerate(self.stage.outputs):
            written = {a for a, stride in enumerate(self.space.output_strides[k]) if stride}  # perhaps by one value
            axes = self.space.reduced_axes[k] | written
            self._walk(walks, self.ready[z.value], z.value, axes).outputs.append(k)
        return sorted(walks.values(), key=lambda each: each.number)

    def _walk(self, walks: dict, number: int, value: int, along: frozenset[int]) -> Targets:
        """Return what has been found of the walk that computes a value, and reduces or writes it along these axes."""
        axes = frozenset(a for a in self.is_cut if self.varies[value][a] or a in along)
        return walks.setdefault((number, axes), Targets(number, [], []))

    def needed(self, targets: Iterable[int], number: int) -> list[int]:
        """Return the values that pass ``number`` reads or computes for ``targets``, in order."""
        return sorted(self._from_inputs(targets, lambda i: self.is_finished(i, number)))

    def _from_inputs(self, values: Iterable[int], is_read: Callable[[int], bool] = lambda _: False) -> set[int]:
        """Return values and all that they are computed from, not looking past those that are read."""
        found: set[int] = set()
        pending = list(values)
        while pending:
            i = pending.pop()
            if i not in found:
                found.add(i)
                pending.extend(() if is_read(i) else self.inputs[i])
        return found

    def _compared(self) -> Iterator[int]:
        """Yield the values that ops and outputs compare."""
        for op in self.stage.ops:
            if op.formula in COMPARED:
                yield from op.inputs[COMPARED[op.formula]]
        yield from (z.value for z in self.stage.outputs if z.reduction in EXTREMA)

    def _variation(self) -> list[Axes]:
        varies = [variation(strides, self.space.rank) for strides in self.space.operand_strides]
        for op in self.stage.ops:
            axes = joined([varies[i] for i in op.inputs], self.space.rank)
            varies.append(self.space.without_rows(axes) if op.reduces else axes)
        return varies

    def _ready(self) -> list[int]:
        ready = [0] * len(self.stage.operands)
        for i, op in enumerate(self.stage.ops, len(ready)):
            first = max([ready[j] for j in op.inputs], default=0)
            if op.reduces and self.space.row_axes & self.is_cut:
                elements = prod(self.space.sizes[a] for a in self.space.row_axes)
                self.totals[i] = Total(op.formula, elements, self.varies[i], self.dtype, (False, i))
                first += 1
            ready.append(first)
        return ready
