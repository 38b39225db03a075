"""The plan of stages on a CPU, which walks over their blocks."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..triton_kernels.stage import ACCUMULATE, Argument, Output, Stage
from .loop import BlockLoop, Walk
from .pages import LARGE_BYTES, advise
from .passes import Passes
from .space import cut, lay_out, share
from .steps import Dtypes, build_pass

# Bytes of one value of a block, for each thread of torch, and for all. A call takes a microsecond or two, so larger
# blocks are faster as long as some five values stay in the last cache (see the table in docs/performance.md).
BLOCK_BYTES, MOST_BYTES = 1 << 20, 1 << 23
# Elements of the largest value from where on blocks are faster than operators one by one, which else take their turn:
# of a call that is not recorded, and of one that is (measured, see docs/performance.md).
LEAST_ELEMENTS = (1 << 18, 1 << 17)
# Whether elementwise formulas give the same bits in every stage: torch's last elements of a block, which fill no vector
# register, may differ from its others by their rounding.
SAME_BITS = False
SUMS_SEGMENTS = False  # whether a stage that holds rows adds up segments of them


class Plan:
    """The blocks of a sequence of stages, for arguments in one layout."""

    def __init__(
        self,
        stages: Sequence[Stage],
        arguments: Sequence[Argument | None],
        common: torch.dtype,
        device: torch.device,
        scratch_sizes: Sequence[int] = (),
    ):
        """Make the plan; the parameters are those of the kernels' Plan."""
        self.dtypes = Dtypes(common, ACCUMULATE.get(common, common))
        self.device, self.scratch_sizes = device, tuple(scratch_sizes)
        arguments = [*arguments, *(Argument(self.dtypes.compute, is_scratch=True) for _ in scratch_sizes)]
        self.stages = [_StageBlocks(stage, arguments, self.dtypes) for stage in stages]

    def __call__(self, args: Sequence, outputs: Sequence[Tensor]) -> None:
        """Compute the outputs, whose memory is still to be written."""
        memory = [*args, *outputs]
        for n in self.scratch_sizes:
            memory.append(torch.empty(n, dtype=self.dtypes.compute, device=self.device))
        for stage in self.stages:
            stage(memory)

    def walks(self, numbers: dict[int, Any]) -> list[Walk]:
        """Return the walks over blocks of a call in one thread, with these numbers among its arguments, by position."""
        return [walk for stage in self.stages for walk in stage.walks(numbers)]


def constexpr_parameter(_formula: str) -> None:
    """Return which parameter of a formula a plan is compiled for: none, as it takes all numbers at a call."""
    return


def is_compiled_in(_formula: str, _number: float) -> bool:
    """Return whether a plan is compiled for a number: for none, likewise."""
    return False


class _StageBlocks:
    """The passes of one stage. They are made for the numbers and the threads of a call, and made anew for others."""

    def __init__(self, stage: Stage, arguments: Sequence[Argument | None], dtypes: Dtypes):
        self.stage, self.arguments, self.dtypes = stage, arguments, dtypes
        self.numbers = [x.argument for x in stage.operands if x.strides is None]  # the arguments that are numbers
        self.large = [z.argument for z in stage.outputs if _bytes(stage.shape, z, arguments) >= LARGE_BYTES]
        # The passes made last, and before them for what: the number of threads, and the numbers.
        self._made: tuple[int, list, list[BlockLoop]] = 0, [], []

    def __call__(self, memory: Sequence) -> None:
        """Compute the outputs of the stage, which are among the tensors in ``memory``."""
        for i in self.large:
            advise(memory[i])
        threads, numbers = torch.get_num_threads(), [memory[i] for i in self.numbers]
        made_for, before, passes = self._made
        if threads != made_for or not all(map(_is_same_number, numbers, before)):
            passes = self._make(dict(zip(self.numbers, numbers, strict=True)), threads)
            self._made = threads, numbers, passes
        finished: dict[Any, Tensor] = {}
        for each in passes:
            each(memory, finished)

    def walks(self, numbers: dict[int, Any]) -> list[Walk]:
        """Return the walks of a call in one thread with these numbers."""
        return [each.describe(self.arguments) for each in self._make(numbers, threads=1)]

    def _make(self, numbers: dict[int, Any], threads: int) -> list[BlockLoop]:
        elements = max(1, min(BLOCK_BYTES * threads, MOST_BYTES) // self.dtypes.compute.itemsize)
        space = whole = lay_out(self.stage, elements)
        if threads > 1 and prod(space.sizes) > elements:
            space = share(space, threads)
        steps = cut(space, elements, uncut_axes=space.rank - whole.rank)
        is_cut = frozenset(a for a, n in enumerate(space.sizes) if steps[a] < n)
        passes = Passes(self.stage, space, is_cut, self.dtypes.compute)
        walks = [build_pass(passes, each, numbers, self.arguments, self.dtypes) for each in passes.targets()]
        return [BlockLoop(walk, space, steps) for walk in walks]


def _is_same_number(x: Any, y: Any) -> bool:
    """Return whether two numbers are one: 1 is not True, and 0.0 is not -0.0."""
    return x is y or (type(x) is type(y) and repr(x) == repr(y))


def _bytes(shape: Sequence[int], z: Output, arguments: Sequence[Argument | None]) -> int:
    """Return the bytes of an output of a stage."""
    numel = prod(n for n, stride in zip(shape, z.strides, strict=True) if stride)
    return numel * arguments[z.argument].dtype.itemsize  # type: ignore[union-attr]
