"""The four rules that decide whether a call runs by kernel or by formula, in the order of docs/backends.md.

1. :func:`is_intercepted`: something sees or replaces the calls.
2. :func:`is_differentiated`: autograd records what is done, or tangents move along.
3. :func:`tensors_key`: a tensor is not torch's own, dense, with elements in memory.
4. :func:`has_kernel`: no kernel has the dtypes or runs on the devices.

:func:`plan_key` asks the first three at every call, and whoever makes a plan the fourth, once for each key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, get_default_dtype, is_grad_enabled, is_inference_mode_enabled
from torch.compiler import is_dynamo_compiling
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode

from .. import config
from .._compat import (
    dispatch_mode_count,
    forward_level,
    function_mode_count,
    function_modes,
    is_any_autocast_enabled,
    is_default_device,
    is_deterministic,
    is_forward_grad_enabled,
    is_tracing,
    saved_tensor_hooks,
    transforms_active,
)
from ..triton_kernels.layout import VECTOR_BYTES

KERNEL_DTYPES = frozenset(
    {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
    | {torch.float16, torch.bfloat16, torch.float32, torch.float64}
)
CLASSES = frozenset({Tensor, Parameter})
NUMBERS = frozenset({bool, int, float, complex})
EXPONENTS = frozenset({-2, -1, -0.5, 0.5, 1.5, 2, 3})  # kernels are compiled for each of these
BUILT_FOR_GPUS: bool = torch.backends.cuda.is_built()  # where torch is not, no tensor of its own is on a GPU
_STRIDED = torch.strided
_SPECIAL = EXPONENTS | {1}
_LARGEST_HALF, _LARGEST_BYTE = 65504, 127


def plan_key(args: Sequence, recorded: bool = False, by_blocks: bool = False) -> tuple | None:
    """Return all that a kernel's plan depends on of ``args``; None where the formula computes, by rules 1 to 3.

    ``recorded`` says that one of our Functions records the call, so gradients do not prevent a kernel; ``by_blocks``
    that a CPU has a plan for it, too.
    Rule 4 is asked once for each key: :func:`has_kernel`.
    """
    if config.cpu_by_formula and not by_blocks and not (BUILT_FOR_GPUS and are_any_on_gpu(args)):
        return None
    if config.current_backend == "torch" or is_intercepted():
        return None
    may_differentiate = forward_level() >= 0 or (is_grad_enabled() and not recorded)
    if may_differentiate and is_differentiated(args, recorded):
        return None
    return tensors_key(args)


def is_intercepted() -> bool:
    """Return whether something sees or replaces the calls to torch, ``torch.compile``, a tracer, a mode: rule 1.

    A default device does not: it only cares where tensors are made. Neither does a :class:`TransparentMode`.
    """
    if is_dynamo_compiling() or dispatch_mode_count() > 0 or is_tracing():
        return True
    return function_mode_count() > 0 and not all(map(_is_transparent, function_modes()))


class TransparentMode(TorchFunctionMode):
    """A function mode that replaces torch's functions by those of the package, and sees nothing else."""


def _is_transparent(mode: Any) -> bool:
    return is_default_device(mode) or isinstance(mode, TransparentMode)


def in_transparent_mode() -> bool:
    """Return whether the innermost function mode is a :class:`TransparentMode`."""
    return function_mode_count() > 0 and isinstance(function_modes()[-1], TransparentMode)


def is_recorded() -> bool:
    """Return whether autograd records what is done to tensors that require a gradient, by our rule."""
    return is_grad_enabled() and not is_intercepted() and not is_inference_mode_enabled()


def is_by_formula(x: Tensor) -> bool:
    """Return whether no kernel runs on ``x``, whatever the call."""
    return config.cpu_by_formula and not (BUILT_FOR_GPUS and x.is_cuda)


def are_any_on_gpu(args: Sequence) -> bool:
    """Return whether a tensor of torch's own class is on a GPU; a subclass would see what is asked of it."""
    return any([type(x) in CLASSES and x.is_cuda for x in args])


def is_dense_tensor(x: Tensor) -> bool:
    """Return whether ``x`` is a dense tensor of torch's own class, neither subclass, fake, meta nor sparse."""
    return type(x) in CLASSES and is_strided(x) and not (x.is_meta or x.is_quantized)


def is_strided(x: Tensor) -> bool:
    """Return whether ``x``, of torch's own class, is one array in strides."""
    return x.layout is _STRIDED and not x.is_nested


def is_private_cpu(args: Sequence) -> bool:
    """Return whether ``args`` are dense CPU tensors and numbers, and nothing sees what is done to them."""
    if is_grad_enabled() or is_intercepted() or transforms_active() or moves_tangents():
        return False
    return all([type(x) in NUMBERS or (is_dense_tensor(x) and x.is_cpu) for x in args])


def is_differentiated(args: Sequence, recorded: bool) -> bool:
    """Return whether a gradient graph is recorded of what is done to ``args``, or tangents move along: rule 2.

    Where one of our Functions records the call, ``recorded``, gradients do not prevent a kernel.
    """
    if moves_tangents():
        return True
    if recorded or not is_grad_enabled():
        return False
    return any([type(x) in CLASSES and x.requires_grad for x in args])


def moves_tangents() -> bool:
    """Return whether forward mode sees what is done to tensors; it does not inside the forward of a Function."""
    return forward_level() >= 0 and is_forward_grad_enabled()


def tensors_key(args: Sequence) -> tuple | None:
    """Return what a plan depends on of ``args``; None where one is a tensor that kernels do not take: rule 3.

    They take tensors of torch's own, dense, with elements in memory, under no transform. Any other has no strides or no
    address: torch raises, or the address is 0, as it is of a meta or zero tensor, most empty ones, and what a transform
    left behind.
    """
    if transforms_active():
        return None
    key = [config.setting, get_default_dtype(), is_any_autocast_enabled() and _autocast()]
    try:
        for x in args:
            if type(x) in CLASSES:
                pointer = x.data_ptr()
                if not pointer or x.is_neg():
                    return None
                key += x.shape, x.stride(), x.dtype, x.get_device(), pointer % VECTOR_BYTES == 0
            elif type(x) in NUMBERS:
                key.append(_number_key(x))
            else:
                return None
    except RuntimeError:
        return None
    return tuple(key)


def _number_key(number: Any) -> tuple:
    """Return what a plan depends on of a number: its value only where that matters.

    It matters where kernels are compiled for it, where a gradient is g itself, and where torch may refuse it: beyond
    the range of the narrowest dtypes, or below 0.
    """
    kind = type(number)
    if kind is float and number not in _SPECIAL:
        return (float,) if abs(number) <= _LARGEST_HALF else (float, str(number))
    if kind is int and number not in _SPECIAL and abs(number) <= _LARGEST_BYTE:
        return int, number < 0
    return kind, number


def has_kernel(
    name: str,
    args: Sequence,
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
    by_blocks: bool = False,
) -> bool:
    """Return whether a kernel of operator ``name`` has the dtypes and devices of ``args``, which have elements: rule 4.

    Blocks on a CPU count as one if ``by_blocks`` says so. Raises RuntimeError where the backend is ``triton`` and a
    dtype or device is in the way.
    """
    inputs = [x for x in args if isinstance(x, Tensor)]
    if not inputs or any(x.numel() == 0 for x in inputs):
        return False
    dtypes = {dtype} - {None} | {complex for x in args if isinstance(x, complex)}
    blocker = kernel_blocker(inputs, out, dtypes, by_blocks)
    if blocker:
        refuse_if_required(name, blocker)
    return blocker is None


def refuse_if_required(name: str, blocker: str) -> None:
    """Raise RuntimeError where the backend is ``triton``, and a kernel is therefore required."""
    if config.current_backend == "triton":
        raise RuntimeError(f"{name}: backend 'triton' has no kernel for {blocker}, or use backend 'auto'")


def kernel_blocker(inputs: list[Tensor], out: Tensor | None, dtypes: set, by_blocks: bool) -> str | None:
    """Return why no kernel can run, ending in what would help; None where one can, or a CPU ``by_blocks``."""
    outs = [] if out is None else [out]
    unknown = ({x.dtype for x in (*inputs, *outs)} | dtypes) - KERNEL_DTYPES
    if unknown:
        return f"{unknown.pop()}: cast it to a real float, integer or bool dtype"
    devices = {x.device for x in inputs if x.dim() or x.device.type != "cpu"} or {inputs[0].device}
    devices |= {x.device for x in outs}
    if len(devices) > 1:
        return f"tensors on {sorted(map(str, devices))}: move them to one device"
    (device,) = devices
    has_blocks = by_blocks and config.cpu_by_formula and device.type == "cpu"
    return None if has_blocks else _device_blocker(device)


def _device_blocker(device: torch.device) -> str | None:
    """Return why no kernel can run on a device, None where one can."""
    if config.find_triton() is None:
        return "any tensor without Triton: install triton"
    if device.type == "cpu" and not config.is_interpreted() and config.dry_run_target is None:
        return "CPU tensors: set TRITON_INTERPRET=1 before the first import, or move them to a GPU"
    if device.type not in ("cpu", "cuda"):
        return f"tensors on {device}: move them to a GPU that Triton drives"
    return None


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
        is_deterministic(),
        is_any_autocast_enabled() and _autocast(),
        function_mode_count() and _describe_function_modes(),
        dispatch_mode_count(),
        saved_tensor_hooks() is not None,
        forward_level(),
        config.current_backend,
    )


def _autocast() -> tuple:
    return tuple((kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda"))


def _describe_function_modes() -> tuple[str, ...]:
    return tuple(str(mode.device) if is_default_device(mode) else type(mode).__name__ for mode in function_modes())
