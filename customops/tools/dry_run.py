"""See what a GPU would run, on a machine without one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NamedTuple

from .. import config
from .._compat import active_driver, gpu_target
from ..runtime.memory import empty
from .machine_code import resources

TARGETS = {  # by name: backend, architecture, threads of a warp
    "cuda:80": ("cuda", 80, 32),
    "cuda:90": ("cuda", 90, 32),
    "cuda:100": ("cuda", 100, 32),
    "hip:gfx942": ("hip", "gfx942", 64),
}


class LaunchRecord(NamedTuple):
    """A launch that a GPU would have made."""

    name: str  # the name of the kernel
    program: str  # the formulas that the kernel evaluates, as ``mul(x, y)``
    operands: tuple[str, ...]  # the names of the tensors that it reads, in the order of its argument ``operands``
    grid: tuple[int, int, int]  # the number of programs along each axis of the grid
    num_warps: int  # the number of warps of each program
    compiled: Any  # Triton's CompiledKernel; its ``asm`` holds every stage of the code by name
    bytes_moved: int  # the bytes that all programs together load and store
    bytes_floor: int  # the bytes of the operands and outputs, once each; partial sums are neither

    @property
    def registers(self) -> int:
        """Return the number of registers of a thread."""
        return resources(self.compiled).registers

    @property
    def spills(self) -> int:
        """Return the bytes of a thread that are spilled from registers to memory."""
        return resources(self.compiled).spills


class RecordingDriver:
    """A driver that lets Triton compile for a GPU that is not there: it loads nothing, and records each launch.

    It loads nothing because what one driver loads is unloaded by the driver that is active when it is freed, which may
    be a real GPU's.
    """

    def __init__(self, name: str):
        self.device = -1 - list(TARGETS).index(name)  # no GPU has it: Triton caches kernels by device
        self.target = gpu_target(*TARGETS[name])
        self.records: list[LaunchRecord] = []

    def empty(self, size, dtype, device):
        """Allocate a scratch buffer of ``size`` elements for use between launches."""
        return empty([size], [1], dtype, device)

    def recorder(self, launch):
        """Return the function that is called in place of ``launch``."""
        compiled = launch.compiled
        record = LaunchRecord(
            name=compiled.name,
            program=launch.summary,
            operands=launch.operand_names,
            grid=(launch.grid, 1, 1),
            num_warps=compiled.metadata.num_warps,
            compiled=compiled,
            bytes_moved=launch.bytes_moved,
            bytes_floor=launch.bytes_floor,
        )
        return partial(self.record, record)

    def record(self, record, *_):
        """Append ``record``, at each call of the launch that it describes."""
        self.records.append(record)

    def get_current_target(self):
        """Return the GPU to compile for."""
        return self.target

    def get_current_device(self):
        """Return the index that stands for that GPU."""
        return self.device

    def get_current_stream(self, _device):
        """Return a stream, though none is used."""
        return 0


@contextmanager
def dry_run(target: str = "cuda:90") -> Iterator[list[LaunchRecord]]:
    """Record what a GPU would launch, instead of computing.

    Inside the block tensors on the CPU take the kernels' path in every thread, unless the backend is ``torch``. Each
    kernel is compiled for ``target``; nothing is launched, so **tensors made inside hold no values**. Blocks may be
    nested, in one thread.

    Args:
        target: the GPU, one of ``cuda:80``, ``cuda:90``, ``cuda:100`` and ``hip:gfx942``.

    Yields:
        A list, to which each launch is added as a :class:`LaunchRecord`, in order.

    Raises:
        ValueError: ``target`` is none of those.
        RuntimeError: Triton is not installed, or interprets its kernels; or another thread has a dry run open.

    >>> import customops, torch
    >>> with customops.dry_run("cuda:90") as records:
    ...     z = customops.sigmoid(torch.empty(1024, 1024))
    >>> [(record.program, record.grid, record.bytes_moved) for record in records]
    [('sigmoid(x)', (512, 1, 1), 8388608)]
    """
    if target not in TARGETS:
        raise ValueError(f"dry_run: target: expected one of {', '.join(TARGETS)}, got {target!r}")
    if config.find_triton() is None:
        raise RuntimeError("dry_run: there are no kernels without Triton: install triton")
    if config.is_interpreted():
        raise RuntimeError("dry_run: TRITON_INTERPRET is set, so kernels cannot be compiled: unset it")
    if not config.dry_run_lock.acquire(blocking=False):
        raise RuntimeError("dry_run: another thread has one open, and all threads see it: leave that first")
    driver = _driver(target)
    outer, driver.records = driver.records, []
    try:
        with active_driver(driver), config.dry_running(target):
            yield driver.records
    finally:
        driver.records = outer
        config.dry_run_lock.release()


_driver = cache(RecordingDriver)  # one for each target: a cached plan holds the driver that it was built with
