"""One pass, executed: the loop over its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import prod
from threading import get_ident
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..triton_kernels.layout import Strides
from ..triton_kernels.stage import Argument
from .simplify import simplify
from .slots import assign_slots
from .space import Space, lengths, shape_of
from .steps import ADDED, Memory, Ones, Pass
from .workspace import THREAD, Workspace

TOTAL_DTYPES = {torch.float32: torch.float64}  # in which a total is added up, where it is not the dtype of its parts
START = {"sum": 0.0, "prod": 1.0, "amax": -torch.inf, "amin": torch.inf}  # of a total


class Walk(NamedTuple):
    """One walk over the blocks of a stage, in figures."""

    blocks: int  # how many
    shape: tuple[int, ...]  # of the largest, axes outermost first
    calls: int  # of torch's operators for each block
    bytes_moved: int  # bytes of the tensors that it reads and writes
    temporary_bytes: int  # bytes of the values that a block keeps in the cache


class _View(NamedTuple):
    """How a tensor of the call is seen over the axes of a stage."""

    argument: int  # its position among the arguments
    shape: tuple[int, ...] | None  # with one element along axes along which it does not vary; None of all as it is
    strides: Strides  # in elements


class BlockLoop:
    """One pass, ready to be executed."""

    def __init__(self, walk: Pass, space: Space, steps: Sequence[int]):
        self.walk = walk = simplify(walk)
        self.sizes = space.sizes
        self.program = assign_slots(walk)
        self.steps = tuple(  # the length of a block along each axis, which is all of it where the pass does not walk
            step if a in walk.active else n for a, (n, step) in enumerate(zip(space.sizes, steps, strict=True))
        )
        self.made = [k for k, leaf in enumerate(walk.leaves) if not isinstance(leaf, Memory)]  # the other leaves
        self.views: list[_View] = []  # of the leaves, from the first call on
        self.workspace: dict[int, Workspace] = {}  # of each thread

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of each block, listed at the first call: what is only described may have any size."""
        return list(lengths(self.sizes, self.steps))

    def __call__(self, memory: Sequence, finished: dict[Any, Tensor]) -> None:
        """Compute every block; add the totals that are then complete to ``finished``, by their keys."""
        if self.made:
            memory = [*memory, *[self._make_leaf(k, finished) for k in self.made]]
        if not self.views:
            self.views = self._find_views(memory)
        leaves = [
            memory[i] if shape is None else memory[i].as_strided(shape, strides) for i, shape, strides in self.views
        ]
        is_nested = THREAD.is_busy
        workspace = (not is_nested and self.workspace.get(get_ident())) or self._add_workspace()
        THREAD.is_busy = True
        try:
            self._compute(leaves, workspace)
        finally:
            THREAD.is_busy = is_nested
        if self.walk.totals:
            self._finish(leaves, memory, finished)

    def _compute(self, leaves: list[Tensor], workspace: Workspace) -> None:
        """Compute every block."""
        blocks = (leaves,) if len(self.shapes) == 1 else map(list, zip(*map(self._blocks, leaves), strict=True))
        for shape, block in zip(self.shapes, blocks, strict=True):
            values = block + (workspace.tables.get(shape) or workspace.add(shape))
            for function, inputs, out in self.program.instructions:
                function(*map(values.__getitem__, inputs), out=values[out])

    def _add_workspace(self) -> Workspace:
        """Return a workspace for this thread; it is kept if it takes no memory of its own."""
        workspace = Workspace(self.steps, self.program)
        if workspace.is_shared:
            self.workspace[get_ident()] = workspace
        return workspace

    def describe(self, arguments: Sequence[Argument | None]) -> Walk:
        """Return the walk in figures."""
        views = {(leaf.argument, self._shape(leaf)) for leaf in self.walk.leaves if isinstance(leaf, Memory)}
        moved = sum(prod(shape) * arguments[i].dtype.itemsize for i, shape in views)  # type: ignore[union-attr]
        slots = sum(prod(shape_of(self.steps, slot.varies)) * slot.dtype.itemsize for slot in self.program.slots)
        blocks = prod(-(-n // step) for n, step in zip(self.sizes, self.steps, strict=True))
        return Walk(blocks, self.steps, len(self.program.instructions), moved, slots)

    def _finish(self, leaves: Sequence[Tensor], memory: Sequence, finished: dict[Any, Tensor]) -> None:
        """Take what totals have come to; write those that are outputs."""
        for k in self.walk.totals:
            total = self.walk.leaves[k]
            value = leaves[k] / total.elements if total.reduction == "mean" else leaves[k]
            finished[total.key] = value.to(total.dtype)
        for k, place in self.walk.finished:
            z = memory[place.argument].as_strided(self._shape(place), place.strides)
            z.copy_(finished[self.walk.leaves[k].key])

    def _find_views(self, memory: Sequence) -> list[_View]:
        """Return the views of leaves, in order, of tensors laid out as these: those that are made come last."""
        made = iter(range(-len(self.made), 0))
        return [
            self._view(leaf, memory[leaf.argument]) if isinstance(leaf, Memory) else _View(next(made), None, ())
            for leaf in self.walk.leaves
        ]

    def _view(self, leaf: Memory, x: Tensor) -> _View:
        """Return how a tensor of the call is seen over the axes."""
        shape = self._shape(leaf)
        as_it_is = x.shape == shape and x.stride() == leaf.strides
        return _View(leaf.argument, None if as_it_is else shape, leaf.strides)

    def _shape(self, leaf: Memory) -> tuple[int, ...]:
        return tuple(n if stride else 1 for n, stride in zip(self.sizes, leaf.strides, strict=True))

    def _make_leaf(self, k: int, finished: dict[Any, Tensor]) -> Tensor:
        """Return a leaf that is no tensor of the call, over all blocks."""
        leaf = self.walk.leaves[k]
        if isinstance(leaf, Ones):
            return torch.ones((), device="cpu").expand(shape_of(self.sizes, leaf.varies))
        if k not in self.walk.totals:
            return finished[leaf.key]
        start, dtype = START[ADDED.get(leaf.reduction, leaf.reduction)], TOTAL_DTYPES.get(leaf.dtype, leaf.dtype)
        return torch.full(shape_of(self.sizes, leaf.varies), start, dtype=dtype, device="cpu")

    def _blocks(self, x: Tensor) -> list[Tensor]:
        """Return the part of a leaf that goes with each block."""
        parts = [x]
        for a, (n, step) in enumerate(zip(self.sizes, self.steps, strict=True)):
            if step < n and x.shape[a] > 1:
                parts = [p for part in parts for p in part.split(step, a)]
            elif step < n:
                parts = [part for part in parts for _ in range(-(-n // step))]
        return parts
