"""Every private or unstable API of torch and Triton that is used here, one documented name each.

When a release of either breaks something, the break is in this file. A name that is asked at every call is bound to
torch's own function, without a Python frame around it; the comment above it is its documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import _C, Tensor, compiler, overrides
from torch._C import _autograd, _functorch
from torch.autograd import Function, forward_ad
from torch.utils import _device, _python_dispatch

# Return whether any transform of torch.func is active.
transforms_active: Callable[[], bool] = _C._are_functorch_transforms_active

# Return whether torch.jit.trace records what is called.
is_tracing: Callable[[], bool] = _C._is_tracing

# Return how many dispatch modes are active.
dispatch_mode_count: Callable[[], int] = _C._len_torch_dispatch_stack

# Return how many function modes are active, that of a default device among them.
function_mode_count: Callable[[], int] = _C._len_torch_function_stack

# Return whether deterministic algorithms are asked for.
is_deterministic: Callable[[], bool] = _C._get_deterministic_algorithms

# Return whether autocast is enabled for any device.
is_any_autocast_enabled: Callable[[], bool] = _C._is_any_autocast_enabled

# Return whether forward mode sees what is done to tensors; it does not inside the forward of a Function.
is_forward_grad_enabled: Callable[[], bool] = _C._is_fwd_grad_enabled

# Return the hooks that get what is saved for backward, None where there are none. A checkpoint sets some, which may
# compute the call again.
saved_tensor_hooks: Callable[[], Any] = partial(_autograd._top_saved_tensors_default_hooks, True)


def forward_level() -> int:
    """Return how deep the open ``forward_ad.dual_level`` is nested, -1 where there is none."""
    return forward_ad._current_level


def function_modes() -> list[Any]:
    """Return the active function modes, outermost first."""
    return [_C._get_function_stack_at(i) for i in range(function_mode_count())]


def is_default_device(mode: Any) -> bool:
    """Return whether ``mode`` is the function mode of ``torch.device(...)`` as a context, which only makes tensors."""
    return type(mode) is _device.DeviceContext


@contextmanager
def without_modes() -> Iterator[None]:
    """Disable function modes and dispatch modes inside the block: what is done there is not the caller's."""
    with ExitStack() as stack:
        for _ in range(function_mode_count()):
            stack.enter_context(overrides._pop_mode_temporarily())
        stack.enter_context(_python_dispatch._disable_current_modes())
        yield


def transform_count() -> int:
    """Return how many transforms of torch.func are open, also where they are excluded for the moment."""
    return _functorch.get_dynamic_layer_stack_depth()


def has_no_function_rule() -> bool:
    """Return whether the transforms around a call have no right rule for a custom ``autograd.Function``.

    Of two transforms over one another torch drops the tangent of a tangent, and ``functionalize`` has no rule at all.
    """
    layers = _functorch.get_interpreter_stack() or ()
    return len(layers) > 1 or bool(layers and layers[0].key() == _functorch.TransformType.Functionalize)


def is_inside_batching_rule() -> bool:
    """Return whether a transform runs the batching rule of a custom operator, where torch takes no custom Function."""
    key = _C.DispatchKey.FuncTorchDynamicLayerFrontMode
    return bool(_functorch.get_interpreter_stack()) and _C._dispatch_tls_is_dispatch_key_excluded(key)


def overlaps_itself(x: Tensor) -> bool:
    """Return whether elements of ``x`` surely share memory with one another, as those of an expanded tensor do."""
    return torch._debug_has_internal_overlap(x) == 1


def view_base(x: Tensor) -> Tensor | None:
    """Return the tensor that ``x`` is a view of, None where it is no view."""
    return x._base


def is_writable_view(x: Tensor) -> bool:
    """Return whether autograd lets ``x`` be written: a view made under no_grad, for one, it does not."""
    return _autograd._get_creation_meta(x) == _autograd.CreationMeta.DEFAULT


def apply_without_binding(function: type[Function]) -> Callable:
    """Return the C ``apply`` of ``function``, past the binding of arguments that only transforms need."""
    return super(Function, function).apply  # type: ignore[misc]


def name_nodes_after(function: type[Function], other: type[Function]) -> None:
    """Let the graph nodes that ``function`` makes say that ``other`` made them."""
    function._backward_cls._forward_cls = other  # type: ignore[attr-defined]


def is_exporting() -> bool:
    """Return whether torch.export runs; ``compiler.is_exporting()`` torch 2.11 compiles to True everywhere."""
    return compiler._is_exporting_flag


def triton() -> Any:
    """Import Triton, which has no build for macOS and Windows, and takes a second: only when a kernel is asked for."""
    import triton  # noqa: PLC0415
    import triton.compiler  # noqa: PLC0415

    return triton


def gpu_target(*description: Any) -> Any:
    """Return Triton's description of a GPU: backend, architecture and threads in a warp."""
    from triton.backends.compiler import GPUTarget  # noqa: PLC0415

    return GPUTarget(*description)


@contextmanager
def active_driver(driver: Any) -> Iterator[None]:
    """Let Triton take ``driver`` for the one that loads and launches kernels inside the block."""
    active = triton().runtime.driver
    before = active._active
    active.set_active(driver)
    try:
        yield
    finally:
        active.set_active(before)


def pointer_type(dtype: torch.dtype) -> str:
    """Return Triton's name for a pointer to elements of ``dtype``, as ``"*fp32"``."""
    from triton._utils import canonicalize_dtype  # noqa: PLC0415

    return "*" + canonicalize_dtype(dtype)
