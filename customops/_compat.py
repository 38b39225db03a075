"""Every private or unstable API of torch and Triton that is used here, one documented name each.

When a release of either breaks something, the break is in this file. A name that is asked at every call is bound to
torch's own function, without a Python frame around it; the comment above it is its documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import replace
from functools import cache, partial, partialmethod
from importlib import import_module
from inspect import signature
from threading import get_ident
from types import SimpleNamespace
from typing import Any

import torch
from torch import _C, Tensor, compiler, overrides
from torch._C import _autograd, _functorch
from torch._functorch import utils as functorch_utils
from torch.autograd import Function, forward_ad
from torch.nn.modules import module
from torch.utils import _device, _python_dispatch

from . import config

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


# The file whose functions look at the arguments of ``autograd.Function.apply``, and at nothing else.
FILE_OF_APPLY: str = functorch_utils.__file__

# Return whether hooks see the calls of all modules.
has_global_hooks: Callable[[], bool] = module._has_any_global_hook


# Return how deep the open ``forward_ad.dual_level`` is nested, -1 where there is none.
forward_level: Callable[[], int] = partial(getattr, forward_ad, "_current_level")


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


# Disable the innermost function mode inside the block.
without_function_mode: Callable[[], Any] = overrides._pop_mode_temporarily


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


def version_of(x: Tensor) -> int | None:
    """Return how often ``x`` was written; None if torch does not count, as of what is made in inference mode."""
    return None if x.is_inference() else x._version


def is_writable_view(x: Tensor) -> bool:
    """Return whether autograd lets ``x`` be written: a view made under no_grad, for one, it does not."""
    return _autograd._get_creation_meta(x) == _autograd.CreationMeta.DEFAULT


def apply_without_binding(function: type[Function]) -> Callable:
    """Return the C ``apply`` of ``function``, past the binding of arguments that only transforms need."""
    return super(Function, function).apply  # type: ignore[misc]


def give_nodes_to(other: type[Function], function: type[Function]) -> None:
    """Let the graph nodes that ``function`` makes say that ``other`` made them, and call its ``backward``.

    The engine calls a node's ``apply``. Torch's own finds out at each call what there is to call, in two frames.
    """
    nodes: Any = function._backward_cls  # type: ignore[attr-defined]
    nodes._forward_cls, nodes.apply = other, other.backward


def is_exporting() -> bool:
    """Return whether torch.export runs; ``compiler.is_exporting()`` torch 2.11 compiles to True everywhere."""
    return compiler._is_exporting_flag


def triton() -> Any:
    """Import Triton, which has no build for macOS and Windows, and takes a second: only when a kernel is asked for."""
    import triton  # noqa: PLC0415
    import triton.compiler  # noqa: PLC0415

    return triton


def kernel_files(compiled: Any) -> Any:
    """Return what keeps files about a kernel on disk, beside the kernel: ``get_file(name)`` and ``put(data, name)``."""
    return triton().runtime.cache.get_cache_manager(compiled.hash)


def gpu_target(*description: Any) -> Any:
    """Return Triton's description of a GPU: backend, architecture and threads in a warp."""
    from triton.backends.compiler import GPUTarget  # noqa: PLC0415

    return GPUTarget(*description)


@contextmanager
def active_driver(driver: Any) -> Iterator[None]:
    """Let Triton take ``driver`` for the one that loads and launches kernels inside the block.

    ``driver`` stands for a GPU that is not there. Triton asks it for a launcher by the source of a kernel, not by what
    was compiled; that is its ``loading`` for the moment. Autotuning inside asks ``driver`` alone, and leaves no choice
    behind that a real GPU would then follow.
    """
    from triton.runtime.autotuner import Autotuner  # noqa: PLC0415

    active, kernel = triton().runtime.driver, triton().compiler.CompiledKernel
    before = active._active
    loads, tunes = kernel._init_handles, Autotuner.run
    kernel._init_handles, Autotuner.run = partialmethod(_load, loads), partialmethod(_tune, tunes)
    active.set_active(driver)
    try:
        yield
    finally:
        active.set_active(before)
        kernel._init_handles, Autotuner.run = loads, tunes


def _load(kernel: Any, load: Callable[[Any], None]) -> None:
    """Give ``kernel`` its launcher, once. Hooks do not hear that it was loaded, since it was not."""
    if hasattr(kernel._run, "compiled"):
        return
    runtime, active = triton().knobs.runtime, triton().runtime.driver.active
    with config.load_lock, runtime.scope():
        runtime.kernel_load_start_hook = runtime.kernel_load_end_hook = None
        active.loading = kernel
        try:
            load(kernel)
        finally:
            active.loading = None


def _tune(autotuner: Any, tune: Callable, *args: Any, **kwargs: Any) -> Any:
    """Run an autotuned kernel with a configuration that the active driver chooses."""
    stand_in = copy(autotuner)
    stand_in.cache, stand_in.cache_results = {}, False
    stand_in.do_bench = triton().runtime.driver.active.get_benchmarker()
    compiled = tune(stand_in, *args, **kwargs)
    autotuner.best_config = stand_in.best_config
    return compiled


def cpp_type(backend: str, name: str) -> str:
    """Return the C++ type of an argument, which Triton calls ``name``, on ``backend``: cuda or hip."""
    from triton.backends import backends  # noqa: PLC0415

    driver = backends["amd" if backend == "hip" else "nvidia"].driver
    return driver.map_python_to_cpp_type(None, name)


def pointer_type(dtype: torch.dtype) -> str:
    """Return Triton's name for a pointer to elements of ``dtype``, as ``"*fp32"``."""
    from triton._utils import canonicalize_dtype  # noqa: PLC0415

    return "*" + canonicalize_dtype(dtype)


@contextmanager
def interpreting() -> Iterator[None]:
    """Speed up launches in Triton's interpreter inside the block, about 7 times, with the same results.

    Triton replaces its whole language at each launch, and anew at each call of a device function in a kernel; it
    computes a check of every integer operation for overflow, which it then drops unless it debugs; and it works out
    what a type is at each operation. Here the language is replaced once for the block, the check is left out, and what
    is known of a type is cached. A launch of ``mul`` took 19.7 ms, and takes 2.7 (Triton 3.7.1).

    At the end, also of a block that raises, all is as it was before. One thread at a time is inside. Launches that
    another thread makes meanwhile go Triton's own way. Where the interpreter is not as in Triton 3.6 to 3.9, it stays
    as it is.
    """
    with config.interpreter_lock:
        language = _interpreted_language()
        if language is None or language.thread is not None:
            yield
            return
        try:
            language.enter()
            yield
        finally:
            language.leave()


@cache
def _interpreted_language() -> _InterpretedLanguage | None:
    """Return what replaces the language, None where Triton's interpreter is not as expected."""
    from triton import language  # noqa: PLC0415 - absent on macOS and Windows
    from triton.runtime import interpreter  # noqa: PLC0415

    try:
        interface = (
            tuple(signature(interpreter._patch_lang).parameters),
            interpreter._LangPatchScope()._changes,
            {"debug", "sanitize_overflow"} <= vars(interpreter.interpreter_builder.options).keys(),
            vars(language.block_type(language.int32, [1])).keys(),
            vars(language.tensor(None, language.int32)).keys(),
            {"_MISSING", "_get_np_dtype"} <= vars(interpreter).keys(),
        )
    except (AttributeError, TypeError):
        return None
    block, tensor = {"element_ty", "shape", "numel", "name"}, {"handle", "shape", "numel", "type", "dtype"}
    if interface != (("fn",), [], True, block, tensor, True):
        return None
    return _InterpretedLanguage(interpreter, language)


class _InterpretedLanguage:
    """The attributes that Triton's interpreter replaces in its language, and those replaced here to save time."""

    def __init__(self, interpreter: Any, language: Any):
        self.interpreter, self.language = interpreter, language
        self.thread: int | None = None  # the one inside, None where none is
        self.changes: list[tuple[Any, str, Any, Any]] = []  # owner, attribute, its value outside and inside

    def enter(self) -> None:
        """Replace the attributes; find them anew where one is not what it was when they were found."""
        absent = self.interpreter._MISSING
        if not self.changes or any(getattr(owner, name, absent) is not out for owner, name, out, _ in self.changes):
            self.changes = []
            self.changes = [*self._changes_by_triton(), *self._changes_to_triton()]
        self.thread = get_ident()
        for owner, name, _, inside in self.changes:
            setattr(owner, name, inside)

    def leave(self) -> None:
        """Give the attributes back their values."""
        for owner, name, outside, _ in reversed(self.changes):
            if outside is not self.interpreter._MISSING:
                setattr(owner, name, outside)
            elif name in vars(owner):
                delattr(owner, name)
        self.thread = None

    def _changes_by_triton(self) -> list[tuple[Any, str, Any, Any]]:
        """Return what Triton changes for a function that sees ``triton.language`` and its ``core``, as its own do."""
        visible = {"language": self.language, "core": self.language.core}
        scope = self.interpreter._patch_lang(SimpleNamespace(__globals__=visible))
        outside: dict[tuple[Any, str], Any] = {}
        for owner, name, value in scope._changes:
            outside.setdefault((owner, name), value)
        changes = [(owner, name, value, getattr(owner, name)) for (owner, name), value in outside.items()]
        scope.restore()
        return changes

    def _changes_to_triton(self) -> list[tuple[Any, str, Any, Any]]:
        """Return what is changed here, so that Triton does not do again what it has done."""
        interpreter, core, builder = self.interpreter, self.language.core, self.interpreter.interpreter_builder
        options = builder.options
        unchecked = options if options.debug else replace(options, sanitize_overflow=False)
        return [
            (interpreter, "_patch_lang", interpreter._patch_lang, self._patch_once(interpreter._patch_lang)),
            (interpreter, "_get_np_dtype", interpreter._get_np_dtype, _cache_dtypes(interpreter._get_np_dtype)),
            (core.block_type, "__init__", core.block_type.__init__, _cache_blocks(core.block_type)),
            (core.tensor, "__init__", core.tensor.__init__, _cache_shapes(core.tensor)),
            (builder, "options", options, unchecked),
        ]

    def _patch_once(self, patch: Callable) -> Callable:
        """Return ``patch``, which does nothing in the thread inside, unless another thread undid what was replaced."""
        nothing, core, language = self.interpreter._LangPatchScope(), self.language.core, self.language

        def patch_once(function):
            if get_ident() == self.thread and not core.is_builtin(language.load):
                return nothing
            return patch(function)

        return patch_once


def _cache_dtypes(numpy_dtype: Callable) -> Callable:
    """Return ``numpy_dtype``, NumPy's type for one of Triton, with its answers cached by the names of types."""
    cache: dict[str, Any] = {}

    def get(dtype):
        known = cache.get(dtype.name)
        if known is None:
            known = cache[dtype.name] = numpy_dtype(dtype)
        return known

    return get


def _cache_blocks(block_type: Any) -> Callable:
    """Return the initializer of ``block_type``, which checks and prints each shape of each element type only once."""
    initialize = block_type.__init__
    cache: dict[tuple, dict[str, Any]] = {}

    def __init__(self, element_ty, shape):
        sizes = getattr(shape, "values", shape)  # Triton's own tuple has them
        key = (element_ty.name, *[size if isinstance(size, int) else getattr(size, "value", None) for size in sizes])
        known = cache.get(key)
        if known is None:
            initialize(self, element_ty, shape)
            cache[key] = {name: vars(self)[name] for name in ("shape", "numel", "name")}
        else:
            vars(self).update(known, element_ty=element_ty)

    return __init__


def _cache_shapes(tensor: Any) -> Callable:
    """Return the initializer of ``tensor``, which makes the shape of each type only once."""
    initialize = tensor.__init__
    cache: dict[str, dict[str, Any]] = {}

    def __init__(self, handle, type):
        known = cache.get(type.name)
        if known is None:
            initialize(self, handle, type)
            cache[type.name] = {name: vars(self)[name] for name in ("shape", "numel")}
        else:
            vars(self).update(known, handle=handle, type=type, dtype=type.scalar)

    return __init__


class LightDispatchMode(_python_dispatch.TorchDispatchMode):
    """A dispatch mode for code that is never compiled: any other imports torch._dynamo at its first call, seconds."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


def has_cpu_kernel(overload: Any) -> bool:
    """Return whether an overload of an ATen operator has a kernel for CPUs of its own, and is no composition."""
    return _C._dispatch_has_kernel_for_dispatch_key(overload.name(), "CPU")


def in_place_variant(overload: Any) -> Any:
    """Return the overload of an ATen operator that writes over its first argument, None if there is none for CPUs."""
    packet = getattr(torch.ops.aten, f"{overload.overloadpacket.__name__}_", None)
    variant = packet and getattr(packet, overload._overloadname, None)
    return variant if variant and has_cpu_kernel(variant) else None


@cache
def out_variant(overload: Any) -> tuple[Any, str] | None:
    """Return the overload that writes to memory it is given, with a kernel of its own, and the name of that parameter.

    Returns None if an operator has none.
    """
    inputs = [(x.name, str(x.type)) for x in overload._schema.arguments]
    packet = overload.overloadpacket
    for name in packet.overloads():
        arguments = getattr(packet, name)._schema.arguments
        written = [x.name for x in arguments if x.is_out]
        if len(written) == 1 and [(x.name, str(x.type)) for x in arguments if not x.is_out] == inputs:
            variant = getattr(packet, name)
            return (variant, written[0]) if has_cpu_kernel(variant) else None
    return None


@cache
def operator_database() -> Sequence[Any]:
    """Return torch's own database of operators, whose module needs the package expecttest."""
    return import_module("torch.testing._internal.common_methods_invocations").op_db


def sleep_on_gpu(cycles: int) -> None:
    """Have the current stream wait for so many cycles of the GPU's clock."""
    torch.cuda._sleep(cycles)
