"""Which backend computes: Triton kernels or torch formulas."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

BACKENDS = ("auto", "torch", "triton")

KERNEL_DTYPES = frozenset(
    {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
    | {torch.float16, torch.bfloat16, torch.float32, torch.float64}
)


def _known(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source}: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


_backend = _known(os.environ.get("CUSTOMOPS_BACKEND", "auto"), "CUSTOMOPS_BACKEND")


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Choose the backend of every operator inside the block, in all threads of the process.

    ``auto``: a kernel wherever one can run, else the torch formula. ``torch``: always the formula. ``triton``: a
    kernel, and a RuntimeError where none can run. Autograd runs the backward pass of CUDA tensors in threads of its
    own, hence the reach.

    >>> import customops, torch
    >>> with customops.backend("torch"):
    ...     customops.exp(torch.zeros(2))
    tensor([1., 1.])
    """
    global _backend  # noqa: PLW0603 - the one setting there is
    before, _backend = _backend, _known(name, "backend()")
    try:
        yield
    finally:
        _backend = before


def is_plain(x: Tensor) -> bool:
    """Whether ``x`` is a dense tensor of torch's own class, neither subclass, fake, meta nor sparse."""
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and x.layout == torch.strided
        and not (x.is_meta or x.is_quantized or x.is_nested)
    )


def is_watched() -> bool:
    """Whether something records the calls to torch: ``torch.compile``, a tracer, a dispatch mode."""
    if torch.compiler.is_compiling():
        return True
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._get_tracing_state() is not None


def runs_kernel(name: str, args: Sequence, out: Tensor | None = None) -> bool:
    """Whether a kernel computes operator ``name`` on ``args``, into ``out`` if given: the dispatch rule, whole.

    The formula answers wherever torch has to see through the operator: under ``torch.compile`` and tracers, where
    a gradient graph is recorded, and on tensors that stand for others; and where there is nothing to compute.
    Elsewhere a kernel runs on the dtypes and devices it can.

    Raises RuntimeError where the backend is ``triton`` and neither holds.
    """
    if _backend == "torch" or is_watched():
        return False
    inputs = [a for a in args if isinstance(a, Tensor)]
    tensors = inputs if out is None else [*inputs, out]
    if not inputs or not all(is_plain(x) and not _stands_for_another(x) for x in tensors):
        return False
    if any(hasattr(a, "__torch_function__") and not isinstance(a, Tensor) for a in args):
        return False
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return False
    if any(x.numel() == 0 for x in inputs):
        return False
    obstacle = _obstacle(tensors, args)
    if obstacle and _backend == "triton":
        raise RuntimeError(f"{name}: backend 'triton' has no kernel for {obstacle}, or use backend 'auto'")
    return obstacle is None


def _stands_for_another(x: Tensor) -> bool:
    return not torch._C._has_storage(x) or x._is_zerotensor() or torch._is_functional_tensor(x)


def _obstacle(tensors: list[Tensor], args: Sequence) -> str | None:
    """Why no kernel can run, ending in what would help."""
    dtypes = {x.dtype for x in tensors} | {a for a in args if isinstance(a, torch.dtype)}
    unknown = dtypes - KERNEL_DTYPES
    if unknown or any(isinstance(a, complex) for a in args):
        return f"{unknown.pop() if unknown else 'a complex number'}: cast it to a real float, integer or bool dtype"
    devices = {x.device for x in tensors if x.dim() or x.device.type != "cpu"} or {tensors[0].device}
    if len(devices) > 1:
        return f"tensors on {sorted(map(str, devices))}: move them to one device"
    device = devices.pop()
    if find_triton() is None:
        return "any tensor without Triton: install triton"
    if device.type == "cpu" and not is_interpreted():
        return "CPU tensors: set TRITON_INTERPRET=1 before the first kernel, or move them to a GPU"
    if device.type not in ("cpu", "cuda"):
        return f"tensors on {device}: move them to a GPU that Triton drives"
    return None


@cache
def find_triton():
    """Where Triton is, without importing it; None where it is not installed."""
    return find_spec("triton")


@cache
def is_interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, decided once: Triton decides as it reads a kernel."""
    import triton  # noqa: PLC0415 - absent on macOS and Windows

    return triton.knobs.runtime.interpret
