"""All process-wide state: the choice of backend, the dry run that is open, and caches."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from threading import RLock
from typing import Any, Literal, get_args

Backend = Literal["auto", "torch", "triton"]
BACKENDS = get_args(Backend)


def _known(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source}: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


# The name of the backend in use.
current_backend = _known(os.environ.get("CUSTOMOPS_BACKEND", "auto"), "CUSTOMOPS_BACKEND")

# The GPU that a dry run compiles for, None outside of one.
dry_run_target: str | None = None

# This says whether no kernel runs on CPU tensors. It follows from the settings, and decides most calls by itself.
cpu_by_formula = True

# What of the settings every plan depends on: they follow from one another, and change rarely.
setting: tuple[str, str | None] = current_backend, dry_run_target

# The outcome of earlier calls, by all that it depends on: a plan, or False where torch's formula computes.
plans: dict[tuple, Any] = {}

# The facts that kernels are compiled for, and names and texts of launches: all lengths of a tensor have the same.
kernel_constants: dict[Any, Any] = {}

# Tuples of small integers, of which plans have many and there are few.
small_tuples: dict[Any, Any] = {}

# Registers and spills of compiled kernels, by Triton's hash of each.
kernel_resources: dict[str, Any] = {}

# The usual way through the code of compiled kernels, likewise; and estimates of launches, by all that they depend on.
kernel_ways: dict[str, Any] = {}
launch_estimates: dict[tuple, Any] = {}

# Held while Triton's interpreter runs a kernel: it patches ``triton.language`` for all threads.
interpreter_lock = RLock()

# Held while a dry run loads a kernel, which hooks that all threads see must not hear of.
load_lock = RLock()

# Held by the thread that has a dry run open: all threads see its driver.
dry_run_lock = RLock()


@contextmanager
def backend(name: Backend) -> Iterator[None]:
    """Choose the backend of every operator inside the block, in all threads of the process.

    ``auto``: a kernel wherever one can run, else the torch formula. ``torch``: always the formula. ``triton``: a
    kernel, and a RuntimeError where none can run. Autograd runs the backward pass of CUDA tensors in threads of its
    own, hence the reach.

    >>> import customops, torch
    >>> with customops.backend("torch"):
    ...     customops.exp(torch.zeros(2))
    tensor([1., 1.])
    """
    global current_backend  # noqa: PLW0603 - the one setting there is
    before, current_backend = current_backend, _known(name, "backend()")
    _decide()
    try:
        yield
    finally:
        current_backend = before
        _decide()


@contextmanager
def dry_running(name: str) -> Iterator[None]:
    """Let CPU tensors take the kernels' path inside the block, for GPU ``name``."""
    global dry_run_target  # noqa: PLW0603 - one driver is active at a time
    before, dry_run_target = dry_run_target, name
    _decide()
    try:
        yield
    finally:
        dry_run_target = before
        _decide()


@cache
def find_triton():
    """Return where Triton is, without importing it; None where it is not installed."""
    return find_spec("triton")


def is_interpreted() -> bool:
    """Return whether kernels run in Triton's interpreter: Triton decides once, as it reads a kernel."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def _decide() -> None:
    global cpu_by_formula, setting  # noqa: PLW0603 - follow from the settings
    setting = current_backend, dry_run_target
    cpu_by_formula = current_backend == "torch" or (
        current_backend == "auto" and dry_run_target is None and not is_interpreted()
    )


_decide()
