"""``fuse``: a composition of operators in as few kernels as axes and registers allow, and its gradients likewise."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import cached_property, partial, reduce, update_wrapper, wraps
from types import FunctionType, MethodType
from typing import Any, Generic, TypeVar, overload
from weakref import ref

from torch import Tensor, is_grad_enabled, is_inference_mode_enabled
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling
from torch.nn import Module

from .._compat import (
    forward_level,
    function_mode_count,
    saved_tensor_hooks,
    transforms_active,
    without_function_mode,
    without_modes,
)
from ..compiler.graph import Graph
from ..runtime.paths import CLASSES, in_transparent_mode, is_dense_tensor, is_intercepted, modes, plan_key, tensors_key
from ..runtime.plans import recall, remember
from ..runtime.specs import spec_of
from .build import Built, build
from .cache_key import NO_KEY, Surroundings, is_constant, random_state, static_key
from .errors import FusionError
from .explain import explain
from .function import FusedFunction, Fusion, why_not_fused
from .modules import fused_class, is_fused_class, why_not_fusable
from .proxy import Traced
from .signature import FusedCallable, P, R
from .trace import Trace, Traces

__all__ = ["fuse"]

M = TypeVar("M", bound=Module)


@overload
def fuse(function: M) -> M: ...  # type: ignore[overload-overlap]  # a module can be called, too
@overload
def fuse(function: Callable[P, R]) -> FusedCallable[P, R]: ...
def fuse(function: Any) -> Any:
    """Compute a composition of customops' operators in one kernel, and its gradients in one or two, where possible.

    ``function`` takes tensors and other Python values, and returns a tensor or a tuple of them, made by the operators
    of customops, in their spelling or as torch's functions and tensors' methods, by Python's arithmetic operators,
    numbers, casts, which round as torch's, views, slices, ``cat`` and ``stack``. It is traced once for each set of
    dtypes, ranks, devices, dimensions of size 1 and other values, so it may branch on those, and on shapes. Where it is
    given anything but tensors, numbers, strings, dtypes and tuples of these, an object whose method it is for example,
    or reads such a thing in its module or where it was defined, it runs at every call, on stand-ins: so all it reads
    may change at any time. What functions and modules that it uses read themselves is taken for constant otherwise. A
    tensor that an operator meets and that is no argument, a parameter, a buffer or one around the function, is an input
    like those that are: it is found at each call, and gets its gradient.

    Values between the operators stay in registers, in float32 for half types, unrounded. Reductions along rows are
    done there too, longer ones in several walks along the row; between reductions over different axes values pass
    through memory: ``explain`` tells. On a CPU large tensors are computed by blocks that stay in the cache. Of results,
    inputs and statistics, as a mean of each row, those are saved of which backward costs least; no statistics where a
    checkpoint or other hooks get what is saved.

    The operators are applied one by one for small tensors on a CPU; under ``torch.compile``, forward mode and
    ``torch.func``; for complex numbers and subclasses of tensors; and where an operator returns integers, or a view of
    an argument is returned. Gradients of gradients are those of the formulas. Of small tensors on a CPU torch's
    autograd records torch's operators, but for half types and under hooks: nodes in Python would take half as long
    again.

    The result is a function, with two more as attributes: ``fused.program(...)`` returns what is computed for these
    arguments, a graph of formulas over named axes; ``fused.explain(...)`` prints it, what a call would launch and move
    by kernels on a GPU, which its argument ``target`` names, as for :func:`dry_run`, and what by blocks on a CPU. Of a
    method they are attributes of the class's function, and take the instance first. A module is changed and returned:
    its class becomes one whose ``forward`` is fused, and all else stays. A ``partial``, a bound method or another
    object that can be called is fused, too; the result is then an object, copied and pickled as what it was made of.

    Raises:
        FusionError: a TypeError; ``function`` cannot be traced: it branches on a value, calls what the operators of
            customops do not compute, divides a dimension in ways that do not nest, writes to a tensor that it has read,
            or switches grad mode, autocast or another mode. The message names the line.
        RuntimeError: the backend is ``triton`` and no kernel can run.
        Exception: what torch raises for the operators.

    >>> import customops, torch
    >>> @customops.fuse
    ... def rms_norm(x, weight, eps=1e-6):
    ...     return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight
    >>> rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 10.0]))
    tensor([[ 0.8485, 11.3137]])
    """
    if isinstance(function, classmethod | staticmethod) or not callable(function):
        raise TypeError(f"fuse: expected a function, got {function!r}; put @fuse below @classmethod")
    if fused_behind(function):
        return function
    if isinstance(function, Module):
        return _fuse_forward(function)
    fused = Fused(function)
    as_function = isinstance(function, FunctionType) and not _is_importable(function)
    return fused.as_function() if as_function else fused


class Fused(Generic[P, R]):
    """A function that ``fuse`` was given, and what is known of its calls so far."""

    NOT_TRACED = "no argument is a dense torch.Tensor, or a mode, a transform or forward mode observes the calls"

    def __init__(self, function: Callable[P, R]):
        update_wrapper(self, function, updated=())
        self.called = function  # as it was given
        self.function, self._bound_args, self._bound_kwargs = _without_arguments(function)  # the function behind it
        self.one_by_one: Callable[..., Any] = self.function  # what computes it where no kernels do
        self._signature = _signature_of(self.function)
        defaults = [p.default for p in self._signature.parameters.values()]
        self._applies_defaults = not all(map(is_constant, defaults))  # tensors are arguments; objects may change
        self._surroundings = Surroundings(self.function)
        self._traces = Traces()
        self._ref = ref(self)  # for keys, which keep nothing alive

    def __get__(self, instance, owner=None):
        if instance is None or not isinstance(self.called, FunctionType):  # no other callable becomes a method
            return self
        return partial(self.called, instance) if is_dynamo_compiling() else MethodType(self._method, instance)

    @cached_property
    def _method(self) -> Callable:
        """Return the function to bind, as torch.compile knows no other methods."""
        return self.as_function()

    def __reduce__(self):
        """Copy and pickle it by what it was made of."""
        return fuse, (self.called,)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return what the function returns."""
        return self.called(*args, **kwargs) if is_dynamo_compiling() else self.call(args, kwargs)

    def as_function(self) -> Callable[P, R]:
        """Return it as a function: what Python and compilers bind, look up and see through as such."""
        one_by_one = self.one_by_one

        @wraps(self.called)
        def fused(*args, **kwargs):
            return one_by_one(*args, **kwargs) if is_dynamo_compiling() else fused.fused.call(args, kwargs)  # type: ignore[attr-defined]

        fused.fused, fused.program, fused.explain = self, self.program, self.explain  # type: ignore[attr-defined]
        return fused

    def call(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Compute the function: by its kernels or blocks, or as it is."""
        if function_mode_count() and in_transparent_mode():  # it need not see what kernels or blocks do
            with without_function_mode():
                return self.call(args, kwargs)
        if self._bound_args or self._bound_kwargs or self._applies_defaults:
            args, kwargs = self.all_arguments(args, kwargs)
        tensors, key = self.read(args, kwargs)
        layout = plan_key(tensors, recorded=True, by_blocks=True) if tensors else None
        if layout is None:
            return self._call_by_formula(tensors, key, args, kwargs)
        fusion, trace = recall((key, layout)) if key else None, None
        if fusion is None:
            fusion, trace, tensors = self._find_fusion(tensors, key, layout, args, kwargs)
        if fusion:
            is_recorded = False
            for x in tensors:
                if x.requires_grad:
                    is_recorded = is_grad_enabled() and not is_inference_mode_enabled()  # as is_recorded() says
                    break
            if fusion.pays[is_recorded]:
                if not is_recorded:
                    return fusion.__call__(tensors)
                if not any(map(Tensor.is_inference, tensors)):  # torch saves none of these
                    return FusedFunction.of(fusion, tensors)
            elif not is_recorded or (fusion.recorded_by_torch and not saved_tensor_hooks()):
                return fusion.trace.pack(fusion.trace.replay(tensors))
        return self._one_by_one(trace, tensors, args, kwargs)

    def program(self, *args: P.args, **kwargs: P.kwargs) -> Graph:
        """Return what is computed for these arguments: formulas of values over named axes.

        Raises FusionError as a call does, ValueError where nothing can be traced: for subclasses, under modes.
        """
        arguments, named = self.all_arguments(args, kwargs)
        tensors, key = self.read(arguments, named)
        if is_intercepted() or not self.is_traceable(tensors):
            raise ValueError(f"fuse: there is no program: {self.NOT_TRACED}")
        return self.build(*self.trace(tensors, key, arguments, named), arguments, named).graph

    def explain(self, *args: Any, **kwargs: Any) -> None:
        """Print what a call would compute, launch and move on a GPU by kernels, and on a CPU by blocks.

        Gradients are those of the inputs that require one, or of all if none does. No GPU is needed, and no memory:
        any tensors do. ``target`` names the GPU, as for :func:`dry_run` or by its own name, as ``h100``; ``verbose``
        adds the programs and all that is known of each launch. A parameter of such a name is the function's own.

        Raises:
            RuntimeError: as :func:`dry_run` does. FusionError: as a call does.
        """
        own = self._signature.parameters
        options: dict[str, Any] = {"target": "cuda:90", "verbose": False}
        options |= {name: kwargs.pop(name) for name in options if name in kwargs and name not in own}
        print(*explain(self, args, kwargs, *options.values()), sep="\n")

    def anew(self) -> Fused[P, R]:
        """Return a copy of which no call is known."""
        return Fused(self.function)

    def all_arguments(self, args: Sequence, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Return the arguments that ``function`` gets: those bound before, these, and defaults if they matter."""
        args, kwargs = (*self._bound_args, *args), {**self._bound_kwargs, **kwargs}
        if self._applies_defaults:
            bound = self._signature.bind(*args, **kwargs)
            bound.apply_defaults()
            args, kwargs = bound.args, bound.kwargs
        return args, kwargs

    def read(self, args: tuple, kwargs: dict[str, Any]) -> tuple[list[Tensor], tuple | None]:
        """Return the tensors among the arguments, none if one is a subclass's; and a key of all else they are.

        The key is None where there is an argument, or something else the function reads, that may change unseen.
        """
        tensors: list[Tensor] = []
        state = self._surroundings.state()
        key: list[Any] | None = None if state is None else [self._ref, state, *modes()]
        for x in (*args, *kwargs.values()) if kwargs else args:
            kind = type(x)
            if kind in CLASSES:
                tensors.append(x)
            elif kind is Traced or isinstance(x, Tensor):
                return [], None
            elif key is not None:
                static = static_key(x)
                if static is NO_KEY:
                    key = None
                    continue
                key.append(static)
            if key is not None:
                key.append(kind)
        return tensors, None if key is None else (*key, *kwargs)

    def is_traceable(self, tensors: Sequence[Tensor]) -> bool:
        """Return whether nothing but modes, and what the function does, keeps it from being traced."""
        if not tensors or transforms_active() or not all(map(is_dense_tensor, tensors)):
            return False
        return forward_level() < 0 or all(forward_ad.unpack_dual(x).tangent is None for x in tensors)

    def trace(
        self, tensors: Sequence[Tensor], key: tuple | None, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[Trace, Sequence[Tensor]]:
        """Return what the function does with these arguments, and the tensors it is of: these, and those lifted."""
        return self._or_raise_as_torch(
            lambda: self._traces.trace(self.function, args, kwargs, tensors, key is not None), args, kwargs
        )

    def fuse(self, trace: Trace, tensors: Sequence[Tensor], args: tuple, kwargs: dict[str, Any]) -> Fusion:
        """Return the fusion of a trace for tensors in this layout."""
        built = self.build(trace, tensors, args, kwargs)
        return self._or_raise_as_torch(lambda: Fusion(trace, built, tensors), args, kwargs)

    def build(self, trace: Trace, tensors: Sequence[Tensor], args: tuple, kwargs: dict[str, Any]) -> Built:
        """Return the graph for tensors of these shapes, its inputs named as parameters of the function or a module."""
        bound = self._signature.bind(*args, **kwargs).arguments
        known = {id(x): name for name, x in bound.items()}
        if trace.lifted:
            known = _names_in_modules(bound.values()) | known
        names = [known.get(id(x), f"x{i}") for i, x in enumerate(tensors)]
        unique = [name if names.count(name) == 1 else f"{name}{i}" for i, name in enumerate(names)]
        return self._or_raise_as_torch(lambda: build(trace, unique, [x.shape for x in tensors]), args, kwargs)

    def _or_raise_as_torch(self, make: Callable[[], Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        """Return what ``make`` returns; an error of an operator is torch's own, about the caller's tensors."""
        try:
            return make()
        except FusionError:
            raise
        except Exception:
            self.one_by_one(*args, **kwargs)
            raise

    def _find_fusion(self, tensors: Sequence[Tensor], key: tuple | None, layout: tuple, args, kwargs):
        """Return the fusion of a call that was not known by its key, the trace that was made for that, all its tensors.

        The fusion is False where operators are applied one by one. Calls with other keys share it, if the function does
        the same. It is remembered for ``key``, so that the next call like this one makes no trace; but where tensors
        were lifted, or random numbers drawn, the function has to run each time, as only it knows which.
        """
        before = key and random_state()
        trace, tensors = self.trace(tensors, key, args, kwargs)
        if trace.lifted:
            of_lifted = tensors_key(tensors[-trace.lifted :])
            if of_lifted is None:
                return False, trace, tensors
            key, layout = None, (layout, of_lifted)
        fusion = recall((trace, layout))
        if fusion is None:
            is_fused = why_not_fused(trace, tensors, strict=True) is None
            fusion = is_fused and self.fuse(trace, tensors, args, kwargs)
            remember((trace, layout), fusion)
        if key and random_state() == before:
            remember((key, layout), fusion)
        return fusion, trace, tensors

    def _one_by_one(self, trace: Trace | None, tensors: Sequence[Tensor], args: tuple, kwargs: dict[str, Any]) -> Any:
        """Apply the operators one by one: of the trace, if this call made one, as no call runs a function twice."""
        return self.one_by_one(*args, **kwargs) if trace is None else trace.apply(tensors)

    def _call_by_formula(self, tensors: Sequence[Tensor], key: tuple | None, args: tuple, kwargs: dict[str, Any]):
        """Apply the operators one by one where no kernel runs.

        The first call of its kind is traced all the same: what a GPU would refuse is refused everywhere. Under hooks
        that get what autograd saves, the call is recorded as one with kernels is: what a checkpoint computes once by
        kernels, and once here under a mode, say, has to save the same both times.
        """
        intercepted = is_intercepted()
        seen = key and (key, *[(x.shape, x.dtype, x.device) for x in tensors])
        is_known = bool(seen and recall(seen))  # and so no tensor is lifted
        hooked = bool(saved_tensor_hooks()) and is_grad_enabled()
        hooked = hooked and (not is_known or any([x.requires_grad for x in tensors]))
        if ((intercepted or is_known) and not hooked) or not self.is_traceable(tensors):
            return self.one_by_one(*args, **kwargs)
        trace, tensors = self.trace(tensors, key, args, kwargs)
        if trace.has_views and not why_not_fused(trace, tensors):
            self.build(trace, tensors, args, kwargs)  # raises where views do not nest
        fusion = None
        if hooked and any([x.requires_grad for x in tensors]):
            with without_modes() if intercepted else nullcontext():
                fusion = self._fusion_without_kernels(trace, tensors, args, kwargs)
        if fusion:
            return FusedFunction.of(fusion, tensors, trace)
        if seen and not trace.lifted:
            remember(seen, True)
        return self._one_by_one(trace, tensors, args, kwargs)

    def _fusion_without_kernels(self, trace: Trace, tensors: Sequence[Tensor], args, kwargs) -> Fusion | None:
        """Return the fusion of a call that kernels would compute elsewhere; None of one that they never would."""
        if any([x.is_inference() for x in tensors]) or why_not_fused(trace, tensors):
            return None
        if trace.lifted and not (self.is_traceable(tensors) and tensors_key(tensors[-trace.lifted :])):
            return None
        key = trace, *map(spec_of, tensors)
        fusion = recall(key) or remember(key, self.fuse(trace, tensors, args, kwargs))
        return fusion if fusion.pays[True] else None


def fused_behind(function: Any) -> Fused | None:
    """Return what ``fuse`` made of this function, if it is one that it returned."""
    if isinstance(function, Fused):
        return function
    fused = getattr(function, "fused", None)  # copied by functools.wraps, too
    return fused if isinstance(fused, Fused) and fused.called is getattr(function, "__wrapped__", None) else None


def _fuse_forward(module: Module) -> Module:
    """Give ``module`` the class of its like whose ``forward`` is fused."""
    if reason := why_not_fusable(module):
        raise TypeError(f"fuse: {type(module).__name__}: {reason}")
    if not is_fused_class(type(module)):
        module.__class__ = _class_fused(type(module))
    return module


def _class_fused(cls: type[Module]) -> type[Module]:
    """Return the class of modules that are those of ``cls`` with a fused ``forward``."""
    forward: Any = getattr(cls, "forward", None)
    if not fused_behind(forward):
        if not isinstance(forward, FunctionType):
            raise TypeError(f"fuse: {cls.__name__}.forward is no Python function, got {forward!r}")
        forward = Fused(forward).as_function()
    return fused_class(cls, forward, _remake)


def _remake(cls: type[Module], *args: Any) -> Module:
    """Return an empty module of class ``cls`` with a fused ``forward``, for what was copied or pickled to fill."""
    fused = _class_fused(cls)
    return fused.__new__(fused, *args)


def _names_in_modules(arguments: Iterable) -> dict[int, str]:
    """Return the name of each parameter and buffer of the modules among ``arguments``, by its identity."""
    modules = [x for x in arguments if isinstance(x, Module)]
    return {id(x): name for m in modules for name, x in (*m.named_buffers(), *m.named_parameters())}


def _is_importable(function: Callable) -> bool:
    """Return whether ``function`` is found by its name, and so pickled by it; what is decorated is not."""
    path = [sys.modules.get(function.__module__), *function.__qualname__.split(".")]
    return reduce(lambda x, name: getattr(x, name, None), path) is function  # type: ignore[arg-type]


def _without_arguments(function: Callable) -> tuple[Callable, tuple, dict[str, Any]]:
    """Return the function behind a callable object, and the arguments that it already has: an instance, for example."""
    if isinstance(function, partial):
        inner, args, kwargs = _without_arguments(function.func)
        return inner, (*args, *function.args), {**kwargs, **function.keywords}
    if isinstance(function, MethodType) and isinstance(function.__func__, FunctionType):
        return function.__func__, (function.__self__,), {}
    method = getattr(type(function), "__call__", None)  # noqa: B004 - not whether there is one, but which
    if not isinstance(function, FunctionType) and isinstance(method, FunctionType):
        return method, (function,), {}
    return function, (), {}


def _signature_of(function: Callable) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except ValueError:  # some that are not written in Python have none
        return inspect.signature(lambda *args, **kwargs: None)
