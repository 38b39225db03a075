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

TARGETS = {
    "cuda:80": ("cuda", 80, 32),
    "cuda:90": ("cuda", 90, 32),
    "cuda:100": ("cuda", 100, 32),
    "hip:gfx942": ("hip", "gfx942", 64),
}


class LaunchRecord(NamedTuple):
    """A launch that was not made."""

    name: str  # of the kernel
    program: str  # the formulas that it evaluates, in words
    operands: tuple[str, ...]  # what they read, in the order of the kernel's
    grid: tuple[int, int, int]
    num_warps: int
    compiled: Any  # Triton's CompiledKernel; its ``asm`` holds every stage of the code by name
    bytes_moved: int  # what all its programs load and store together
    bytes_floor: int  # its operands and outputs, once each; partial sums are neither

    @property
    def registers(self) -> int:
        """Registers of a thread."""
        return resources(self.compiled).registers

    @property
    def spills(self) -> int:
        """Bytes of a thread that its registers do not hold."""
        return resources(self.compiled).spills


class RecordingDriver:
    """What Triton asks of a driver to compile; it answers for a GPU that is not there, and loads and launches nothing.

    What a driver loads, the one that is active when it is freed unloads: that may be a GPU's.
    """

    def __init__(self, name: str):
        self.device = -1 - list(TARGETS).index(name)  # no other driver's: kernels are kept by device
        self.target = gpu_target(*TARGETS[name])
        self.records: list[LaunchRecord] = []

    def empty(self, size, dtype, device):
        """Return memory between launches."""
        return empty([size], [1], dtype, device)

    def recorder(self, launch):
        """What runs instead of ``launch``."""
        compiled = launch.compiled
        record = LaunchRecord(
            name=compiled.name,
            program=launch.words,
            operands=launch.names,
            grid=(launch.grid, 1, 1),
            num_warps=compiled.metadata.num_warps,
            compiled=compiled,
            bytes_moved=launch.bytes_moved,
            bytes_floor=launch.bytes_floor,
        )
        return partial(self.keep, record)

    def keep(self, record, *_):
        """Record a launch."""
        self.records.append(record)

    def get_current_target(self):
        """The GPU to compile for."""
        return self.target

    def get_current_device(self):
        """Its index."""
        return self.device

    def get_current_stream(self, _device):
        """Any stream."""
        return 0


@contextmanager
def dry_run(target: str = "cuda:90") -> Iterator[list[LaunchRecord]]:
    """Record what a GPU would launch, instead of computing.

    Inside the block tensors on the CPU take the kernels' path in every thread, unless the backend is ``torch``. Each
    kernel is compiled for ``target``, one of ``cuda:80``, ``cuda:90``, ``cuda:100`` and ``hip:gfx942``; nothing is
    launched, so **tensors made inside hold no values**. Yields the list that the launches are added to, in order: see
    :class:`Record`. Blocks may be nested, in one thread.

    Raises:
        ValueError: ``target`` is none of those. RuntimeError: Triton is not installed, or interprets its kernels; or
            another thread has a dry run open.

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


_driver = cache(RecordingDriver)  # plans keep the one they were made under
