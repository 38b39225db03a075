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
def dry_run(target: str = "cuda:90") -> Iterator[list[LaunchRecord]]:
    """Record what a GPU would launch, instead of computing.

    Inside the block tensors on the CPU take the kernels' path in every thread, unless the backend is ``torch``. Each
    kernel is compiled for ``target``; nothing is launched, so **tensors made inside hold no values**. Blocks may be
    nested, in one thread.

    Any other kernel of Triton is recorded too: one of your own, started as ``kernel[grid](...)`` on tensors on the
    CPU, or a library's. Of an autotuned kernel no configuration can be timed: the first that the GPU can run is taken.

    Args:
        target: the GPU, one of ``cuda:80``, ``cuda:90``, ``cuda:100``, ``cuda:120`` and ``hip:gfx942``.

    Yields:
        A list, to which each launch is added as a :class:`LaunchRecord`, in order.

    Raises:
        ValueError: ``target`` is none of those.
        RuntimeError: Triton is not installed, or interprets its kernels; or another thread has a dry run open. Inside
            the block, as ``customops.ptx.faults.KernelFault``: a launch asks for more than the GPU has.

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
