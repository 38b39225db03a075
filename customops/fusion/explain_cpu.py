"""What a fused call does on a CPU, beside what it would on a GPU: blocks, passes over memory, bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from ..blocks import plan as blocks
from ..compiler.executable import Executable
from ..tools.report import amount
from .function import Fusion, Recording


def on_cpu(
    fusion: Fusion, recording: Recording, tensors: Sequence[Tensor], cotangents_and_saved: Sequence[Tensor]
) -> Iterator[str]:
    """Yield what forward and backward would do in one thread for tensors like these, which may have no memory.

    ``cotangents_and_saved`` are what backward is called with; there is no backward if there are none.
    """
    statistics = recording.values.statistics if cotangents_and_saved else ()
    yield from _walks("forward", fusion.compile(tensors, statistics, blocks), tensors)
    if cotangents_and_saved:
        executable = recording.gradient.compile(cotangents_and_saved, blocks)
        yield from _walks("backward", executable, cotangents_and_saved)


def _walks(name: str, executable: Executable, tensors: Sequence[Tensor]) -> Iterator[str]:
    numbers = dict(enumerate(executable.numbers, len(executable.operands(tensors))))
    walks = executable.plan.walks(numbers) if executable.plan else []
    for walk in walks:
        shape = "one element" if walk.shape == (1,) else " x ".join(map(str, walk.shape))
        yield (
            f"{'one CPU':10}{name}: {walk.blocks:,} block{'s' if walk.blocks > 1 else ''} of {shape}, "
            f"{walk.calls} call{'s' if walk.calls > 1 else ''} each  moves {amount(walk.bytes_moved)} bytes, "
            f"keeps {amount(walk.temporary_bytes)} in the cache"
        )
