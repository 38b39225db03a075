"""See what a GPU would run, on a machine without one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from .. import config
from .._compat import active_driver
from .driver import RecordingDriver
from .record import LaunchRecord
from .targets import TARGETS


@contextmanager
def dry_run(target: str = "cuda:90", execute: bool = False) -> Iterator[list[LaunchRecord]]:
    """Record what a GPU would launch, and execute it on the CPU if asked to.

    Inside the block tensors on the CPU take the kernels' path in every thread, unless the backend is ``torch``; any
    other Triton kernel may be launched on them too. Each kernel is compiled for ``target``. Without ``execute`` nothing
    is launched, so **tensors made inside hold no values**. With it the compiled code runs on the tensors' own memory,
    slowly, and is checked as it runs; see docs/compiled.md. Blocks may be nested, in one thread.

    Of an autotuned kernel no configuration can be timed: the first that the GPU can run is taken.

    Args:
        target: the GPU, one of ``cuda:80``, ``cuda:90``, ``cuda:100``, ``cuda:120`` and ``hip:gfx942``.
        execute: whether to execute each launch; for CUDA alone.

    Yields:
        A list, to which each launch is added as a :class:`LaunchRecord`, in order.

    Raises:
        ValueError: ``target`` is none of those, or not one that can be executed.
        RuntimeError: Triton is not installed, or interprets its kernels; or another thread has a dry run open.
        KernelFault: a launch asks for more than the GPU has, or a kernel that is executed does what no kernel may do.

    >>> import customops, torch
    >>> with customops.dry_run("cuda:90") as records:
    ...     z = customops.sigmoid(torch.empty(1024, 1024))
    >>> [(record.program, record.grid, record.bytes_moved) for record in records]
    [('sigmoid(x)', (512, 1, 1), 8388608)]
    >>> with customops.dry_run("cuda:90", execute=True):
    ...     z = customops.sigmoid(torch.zeros(3))
    >>> z
    tensor([0.5000, 0.5000, 0.5000])
    """
    if target not in TARGETS:
        raise ValueError(f"dry_run: target: expected one of {', '.join(TARGETS)}, got {target!r}")
    if execute and TARGETS[target].backend != "cuda":
        raise ValueError(f"dry_run: execute: only code for CUDA can be executed, got target {target!r}")
    if config.find_triton() is None:
        raise RuntimeError("dry_run: there are no kernels without Triton: install triton")
    if config.is_interpreted():
        raise RuntimeError("dry_run: TRITON_INTERPRET is set, so kernels cannot be compiled: unset it")
    if not config.dry_run_lock.acquire(blocking=False):
        raise RuntimeError("dry_run: another thread has one open, and all threads see it: leave that first")
    driver = _driver(target)
    outer, driver.records, driver.executes = (driver.records, driver.executes), [], execute
    try:
        with active_driver(driver), config.dry_running(target):
            yield driver.records
    finally:
        driver.records, driver.executes = outer
        config.dry_run_lock.release()


_driver = cache(RecordingDriver)  # one for each target: a cached plan holds the driver that it was built with
