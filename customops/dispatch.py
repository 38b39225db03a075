"""Which backend computes: Triton kernels or torch formulas."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, get_default_dtype, is_grad_enabled, is_inference_mode_enabled, overrides
from torch._C import (
    _are_functorch_transforms_active,
    _get_deterministic_algorithms,
    _get_function_stack_at,
    _is_any_autocast_enabled,
    _is_fwd_grad_enabled,
    _is_tracing,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch._C._autograd import _top_saved_tensors_default_hooks
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling
from torch.nn import Parameter
from torch.utils import _python_dispatch
from torch.utils._device import DeviceContext

BACKENDS = ("auto", "torch", "triton")

KERNEL_DTYPES = frozenset(
    {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
    | {torch.float16, torch.bfloat16, torch.float32, torch.float64}
)

EXPONENTS = frozenset({-2, -1, -0.5, 0.5, 1.5, 2, 3})  # for which kernels are compiled
ALIGNMENT = 16  # bytes: the kernels' word, which importing customops does not import
_SPECIAL = EXPONENTS | {1}
_LARGEST_HALF, _LARGEST_BYTE = 65504, 127
CLASSES = frozenset({Tensor, Parameter})
_STRIDED = torch.strided
NUMBERS = frozenset({bool, int, float, complex})

# The hooks that get what is saved for backward, if there are any: those of a checkpoint, which may compute it again,
# among others. Called at every recorded power, without a Python frame.
saves_are_hooked = partial(_top_saved_tensors_default_hooks, True)


def _known(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source}: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


_backend = _known(os.environ.get("CUSTOMOPS_BACKEND", "auto"), "CUSTOMOPS_BACKEND")

target: str | None = None  # the GPU that a dry run imagines
dormant = True  # whether no kernel runs on CPU tensors, which is all there is to decide in most calls


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
    _decide()
    try:
        yield
    finally:
        _backend = before
        _decide()


@contextmanager
def imagined(name: str) -> Iterator[None]:
    """Let CPU tensors take the kernels' path inside the block, for GPU ``name``."""
    global target  # noqa: PLW0603 - one driver is active at a time
    before, target = target, name
    _decide()
    try:
        yield
    finally:
        target = before
        _decide()


def is_idle(x: Tensor) -> bool:
    """Whether no kernel runs on ``x``, whatever the call."""
    return dormant and not x.is_cuda


def is_plain(x: Tensor) -> bool:
    """Whether ``x`` is a dense tensor of torch's own class, neither subclass, fake, meta nor sparse."""
    return type(x) in CLASSES and is_strided(x) and not (x.is_meta or x.is_quantized)


def is_strided(x: Tensor) -> bool:
    """Whether ``x``, of torch's own class, is one array in strides."""
    return x.layout is _STRIDED and not x.is_nested


def is_watched() -> bool:
    """Whether something sees the calls to torch, or replaces them: ``torch.compile``, a tracer, a mode."""
    if is_dynamo_compiling() or _len_torch_dispatch_stack() > 0 or _is_tracing():
        return True
    return _len_torch_function_stack() > 0 and _is_overridden()


def _is_overridden() -> bool:
    """Whether a function mode wants to see calls; that of a default device only cares where tensors are made."""
    modes = map(_get_function_stack_at, range(_len_torch_function_stack()))
    return any(type(mode) is not DeviceContext for mode in modes)


@contextmanager
def unwatched() -> Iterator[None]:
    """Put function modes and dispatch modes aside inside the block: what is done there is not the caller's."""
    with ExitStack() as stack:
        for _ in range(_len_torch_function_stack()):
            stack.enter_context(overrides._pop_mode_temporarily())
        stack.enter_context(_python_dispatch._disable_current_modes())
        yield


MODES = (
    "inference mode",
    "grad mode",
    "default dtype",
    "deterministic mode",
    "autocast",
    "default device or function mode",
    "dispatch mode",
    "saved-tensor hooks",
    "forward mode",
    "backend",
)


def modes() -> tuple:
    """Return the state of every mode that a function can switch for the operators it calls, in the order of MODES."""
    return (
        is_inference_mode_enabled(),
        is_grad_enabled(),
        get_default_dtype(),
        _get_deterministic_algorithms(),
        _is_any_autocast_enabled() and _autocast(),
        _len_torch_function_stack() and _function_modes(),
        _len_torch_dispatch_stack(),
        saves_are_hooked() is not None,
        forward_ad._current_level,
        _backend,
    )


def _autocast() -> tuple:
    return tuple((kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda"))


def _function_modes() -> tuple[str, ...]:
    modes = map(_get_function_stack_at, range(_len_torch_function_stack()))
    return tuple(str(mode.device) if type(mode) is DeviceContext else type(mode).__name__ for mode in modes)


def is_unseen(args: Sequence) -> bool:
    """Whether ``args`` are plain tensors in the CPU's memory, and nothing sees what is done to them."""
    if is_grad_enabled() or is_watched() or _are_functorch_transforms_active():
        return False
    return all(type(x) in NUMBERS or (is_plain(x) and x.is_cpu) for x in args)


def features(args: Sequence, recorded: bool = False) -> tuple | None:
    """All that a kernel's plan depends on of ``args``; None where the torch formula answers.

    That is wherever torch has to see through the operator: under ``torch.compile``, tracers and modes, where a gradient
    graph is recorded, but for one of a Function's that is ``recorded`` as such, or tangents move along, and on tensors
    that stand for others. :func:`has_kernel` is the rest.
    """
    for x in args:
        if not dormant or (type(x) in CLASSES and x.is_cuda):  # a subclass would see what is asked of it
            break
    else:
        return None
    if defers():
        return None
    graph = not recorded and is_grad_enabled()
    found: list[Any] = [_backend, target, torch.get_default_dtype(), torch.is_autocast_enabled()]
    for x in args:
        if type(x) in NUMBERS:
            found.append(_kind(x))
        elif type(x) in CLASSES and is_strided(x) and not x.is_neg():
            pointer = _address(x)
            if not pointer or (graph and x.requires_grad):
                return None
            found += x.shape, x.stride(), x.dtype, x.get_device(), pointer % ALIGNMENT == 0
        else:
            return None
    return tuple(found)


def defers() -> bool:
    """Whether the torch formula answers, whatever the tensors."""
    return _backend == "torch" or is_watched() or _are_functorch_transforms_active() or _moves_tangents()


def _moves_tangents() -> bool:
    """Whether forward mode sees what is done to tensors; it does not inside a ``forward``."""
    return forward_ad._current_level >= 0 and _is_fwd_grad_enabled()


def _address(x: Tensor) -> int:
    """Where the elements are; 0 for meta and zero tensors, most empty ones, and what a transform left behind."""
    try:
        return x.data_ptr()
    except RuntimeError:
        return 0


def _kind(number: Any) -> tuple:
    """What a plan depends on of a number: its value only where that matters.

    It matters where kernels are compiled for it, where a gradient is g itself, and where torch may refuse it: beyond
    the range of the narrowest dtypes, or below 0.
    """
    kind = type(number)
    if kind is float and number not in _SPECIAL:
        return (float,) if abs(number) <= _LARGEST_HALF else (float, str(number))
    if kind is int and number not in _SPECIAL and abs(number) <= _LARGEST_BYTE:
        return int, number < 0
    return kind, number


def has_kernel(name: str, args: Sequence, out: Tensor | None = None, dtype: torch.dtype | None = None) -> bool:
    """Whether operator ``name`` has a kernel for the dtypes and devices of ``args``, and there is anything to compute.

    Raises RuntimeError where the backend is ``triton`` and a dtype or device is in the way.
    """
    inputs = [x for x in args if isinstance(x, Tensor)]
    if not inputs or any(x.numel() == 0 for x in inputs):
        return False
    dtypes = {dtype} - {None} | {complex for x in args if isinstance(x, complex)}
    obstacle = _obstacle(inputs, out, dtypes)
    if obstacle and _backend == "triton":
        raise RuntimeError(f"{name}: backend 'triton' has no kernel for {obstacle}, or use backend 'auto'")
    return obstacle is None


def _obstacle(inputs: list[Tensor], out: Tensor | None, dtypes: set) -> str | None:
    """Why no kernel can run, ending in what would help."""
    outs = [] if out is None else [out]
    unknown = ({x.dtype for x in (*inputs, *outs)} | dtypes) - KERNEL_DTYPES
    if unknown:
        return f"{unknown.pop()}: cast it to a real float, integer or bool dtype"
    devices = {x.device for x in inputs if x.dim() or x.device.type != "cpu"} or {inputs[0].device}
    devices |= {x.device for x in outs}
    if len(devices) > 1:
        return f"tensors on {sorted(map(str, devices))}: move them to one device"
    device = devices.pop()
    if find_triton() is None:
        return "any tensor without Triton: install triton"
    if device.type == "cpu" and not is_interpreted() and target is None:
        return "CPU tensors: set TRITON_INTERPRET=1 before the first import, or move them to a GPU"
    if device.type not in ("cpu", "cuda"):
        return f"tensors on {device}: move them to a GPU that Triton drives"
    return None


@cache
def find_triton():
    """Where Triton is, without importing it; None where it is not installed."""
    return find_spec("triton")


def is_interpreted() -> bool:
    """Whether kernels run in Triton's interpreter: Triton decides once, as it reads a kernel."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def _decide() -> None:
    global dormant  # noqa: PLW0603 - follows from the settings
    dormant = _backend == "torch" or (_backend == "auto" and target is None and not is_interpreted())


_decide()
