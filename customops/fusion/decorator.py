"""``fuse``: a composition of operators in as few kernels as axes and registers allow, and its gradients likewise."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial, reduce, update_wrapper, wraps
from types import FunctionType, MethodType
from typing import Any
from weakref import ref

from torch import Tensor, is_grad_enabled
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

from .._compat import forward_level, saved_tensor_hooks, transforms_active, without_modes
from ..compiler.graph import Graph
from ..runtime.modes import modes
from ..runtime.paths import CLASSES, is_dense_tensor, is_intercepted, is_recorded, plan_key
from ..runtime.plans import recall, remember
from ..runtime.specs import spec_of
from .build import build
from .cache_key import TOLD_BY_REPR, Surroundings, is_fixed, is_told_by_value
from .explain import explain
from .function import FusedFunction, Fusion, why_not_fused
from .proxy import FusionError, Traced
from .trace import Trace, Traces

__all__ = ["fuse"]


def fuse(function: Callable) -> Any:
    """Compute a composition of this pack's operators in one kernel, and its gradients in one or two, where that can be.

    ``function`` takes tensors and other Python values, and returns a tensor or a tuple of them, made by the pack's
    operators, Python's arithmetic operators and numbers. It is traced once for each set of dtypes, ranks, devices,
    dimensions of size 1 and other values, so it may branch on those, and on shapes. Where it is given anything but
    tensors, numbers, strings, dtypes and tuples of these, an object whose method it is for example, or reads such a
    thing in its module or where it was defined, it runs at every call, on stand-ins: so all it reads may change at any
    time. What functions and modules that it uses read themselves is taken for constant otherwise.

    Values between the operators stay in registers, in float32 for half types, unrounded. Reductions along rows are
    done there too, as far as registers hold a row; where they do not, and between reductions over different axes,
    values pass through memory: ``explain`` tells. Only inputs are saved, those that the gradients read, and what
    was reduced between two kernels; only inputs where a checkpoint or other hooks get what is saved.

    Where the operators themselves would compute by torch's formulas, ``function`` is called as it is: on a CPU, under
    ``torch.compile``, forward mode and ``torch.func``, for complex numbers and subclasses of tensors; and where an
    operator returns integers or an argument is returned. Gradients of gradients are those of the formulas.

    The result is a function, with two more as attributes: ``fused.program(...)`` returns what is computed for these
    arguments, a graph of formulas over named axes; ``fused.explain(...)`` prints it, and what a call would launch and
    move by kernels on a GPU, which its argument ``target`` names, as for :func:`dry_run`. Of a method they are
    attributes of the class's function, and take the instance first. A module, a ``partial``, a bound method or another
    object that can be called is fused, too; the result is then an object, copied and pickled as what it was made of.

    Raises:
        TypeError: ``function`` cannot be traced: it branches on a value, calls what is not of the pack, or switches
            grad mode, autocast or another mode. The message names the line.
        RuntimeError: the backend is ``triton`` and no kernel can run.
        Exception: what torch raises for the operators.

    >>> import customops, torch
    >>> @customops.fuse
    ... def rms_norm(x, weight, eps=1e-6):
    ...     return x * customops.rsqrt(customops.mean(x * x, -1, keepdim=True) + eps) * weight
    >>> rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 10.0]))
    tensor([[ 0.8485, 11.3137]])
    """
    if isinstance(function, classmethod | staticmethod) or not callable(function):
        raise TypeError(f"fuse: expected a function, got {function!r}; put @fuse below @classmethod")
    if fused_behind(function):
        return function
    made = Fused(function)
    return made if not isinstance(function, FunctionType) or _is_importable(function) else made.as_function()


class Fused:
    """A fused function: what can be called, and what is known of its calls so far."""

    NOT_TRACED = "there is no dense tensor of torch's own, or a mode, a transform or forward mode sees the calls"

    def __init__(self, function: Callable):
        update_wrapper(self, function, updated=())
        self.called = function
        self.function, self._first, self._named = _without_arguments(function)
        self._signature = _signature_of(self.function)
        defaults = [p.default for p in self._signature.parameters.values()]
        self._fills_in = not all(map(is_fixed, defaults))  # tensors, or objects that may change
        self._surroundings = Surroundings(self.function)
        self._traces = Traces()
        self._itself = ref(self)  # for keys, which keep nothing alive

    def __get__(self, instance, owner=None):
        if instance is None or not isinstance(self.called, FunctionType):  # no other callable becomes a method
            return self
        return partial(self.called, instance) if is_dynamo_compiling() else MethodType(self, instance)

    def __reduce__(self):
        """Copied and pickled by what it was made of."""
        return fuse, (self.called,)

    def __call__(self, *args, **kwargs):
        """What the function returns."""
        return self.called(*args, **kwargs) if is_dynamo_compiling() else self.call(args, kwargs)

    def as_function(self) -> Callable:
        """Return it as a function: what Python and compilers bind, look up and see through as such."""
        called = self.called

        @wraps(called)
        def fused(*args, **kwargs):
            return called(*args, **kwargs) if is_dynamo_compiling() else fused.fused.call(args, kwargs)  # type: ignore[attr-defined]

        fused.fused, fused.program, fused.explain = self, self.program, self.explain  # type: ignore[attr-defined]
        return fused

    def call(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Compute the function: by its kernels, or as it is."""
        if self._first or self._named or self._fills_in:
            args, kwargs = self.all_arguments(args, kwargs)
        tensors, key = self.read(args, kwargs)
        found = plan_key(tensors, recorded=True) if tensors else None
        if found is None:
            return self._call_by_formula(tensors, key, args, kwargs)
        fusion, made = recall((key, found)) if key else None, None
        if fusion is None:
            fusion, made = self._fusion(tensors, key, found, args, kwargs)
        if fusion and is_recorded():
            for x in tensors:
                if x.requires_grad:
                    if any([x.is_inference() for x in tensors]):  # torch saves none of these
                        return self._apply(made, tensors, args, kwargs)
                    return FusedFunction.of(fusion, tensors)
        return fusion(tensors) if fusion else self._apply(made, tensors, args, kwargs)

    def program(self, *args, **kwargs) -> Graph:
        """What is computed for these arguments: formulas of values over named axes.

        Raises TypeError as a call does, ValueError where nothing can be traced: for subclasses, under modes.
        """
        args, kwargs = self.all_arguments(args, kwargs)
        tensors, _ = self.read(args, kwargs)
        if is_intercepted() or not self.is_traceable(tensors):
            raise ValueError(f"fuse: there is no program: {self.NOT_TRACED}")
        return self.graph(self.trace(tensors, args, kwargs), tensors, args, kwargs)

    def explain(self, *args, **kwargs) -> None:
        """Print what a call would compute, launch and move on a GPU by kernels, and where values pass through memory.

        Gradients are those of the inputs that require one, or of all if none does. No GPU is needed, and no memory:
        any tensors do. ``target`` names the GPU, as for :func:`dry_run`, unless the function takes that itself.

        Raises:
            RuntimeError: as :func:`dry_run` does. TypeError: as a call does.
        """
        chosen = {} if "target" in self._signature.parameters else kwargs
        target = chosen.pop("target", "cuda:90")
        print(*explain(self, args, kwargs, target), sep="\n")

    def all_arguments(self, args: Sequence, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Return the arguments that ``function`` gets: those bound before, these, and defaults if they matter."""
        args, kwargs = (*self._first, *args), {**self._named, **kwargs}
        if self._fills_in:
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
        key: list[Any] | None = None if state is None else [self._itself, state, *modes()]
        for x in (*args, *kwargs.values()) if kwargs else args:
            kind = type(x)
            if kind in CLASSES:
                tensors.append(x)
            elif kind is Traced or isinstance(x, Tensor):
                return [], None
            elif key is not None:
                if not is_told_by_value(x):
                    key = None
                    continue
                key.append(repr(x) if kind in TOLD_BY_REPR else x)
            if key is not None:
                key.append(kind)
        return tensors, None if key is None else (*key, *kwargs)

    def is_traceable(self, tensors: Sequence[Tensor]) -> bool:
        """Whether nothing but modes, and what the function does, keeps it from being traced."""
        if not tensors or transforms_active() or not all(map(is_dense_tensor, tensors)):
            return False
        return forward_level() < 0 or all(forward_ad.unpack_dual(x).tangent is None for x in tensors)

    def trace(self, tensors: Sequence[Tensor], args: tuple, kwargs: dict[str, Any]) -> Trace:
        """Return what the function does with these arguments."""
        return self._or_as_torch(lambda: self._traces.trace(self.function, args, kwargs, tensors), args, kwargs)

    def fuse(self, made: Trace, tensors: Sequence[Tensor], args: tuple, kwargs: dict[str, Any]) -> Fusion:
        """Return the fusion of a trace for tensors in this layout, without kernels."""
        return Fusion(made, self.graph(made, tensors, args, kwargs), tensors)

    def graph(self, made: Trace, tensors: Sequence[Tensor], args: tuple, kwargs: dict[str, Any]) -> Graph:
        """Return the graph for tensors of these shapes, called as the parameters are."""
        bound = self._signature.bind(*args, **kwargs).arguments
        names = {id(x): name for name, x in bound.items()}
        given = [names.get(id(x), f"x{i}") for i, x in enumerate(tensors)]
        unique = [name if given.count(name) == 1 else f"{name}{i}" for i, name in enumerate(given)]
        return self._or_as_torch(lambda: build(made, unique, [x.shape for x in tensors]), args, kwargs)

    def _or_as_torch(self, make: Callable[[], Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        """Return what ``make`` returns; an error of an operator is torch's own, about the caller's tensors."""
        try:
            return make()
        except FusionError:
            raise
        except Exception:
            self.function(*args, **kwargs)
            raise

    def _fusion(self, tensors: Sequence[Tensor], key: tuple | None, found: tuple, args, kwargs) -> tuple[Any, Trace]:
        """Return the kernels for arguments like these, False where operators are applied one by one; and the trace."""
        made = self.trace(tensors, args, kwargs)
        whole = made, found
        fusion = recall(whole)
        if fusion is None:
            runs = why_not_fused(made, tensors, strict=True) is None
            fusion = remember(whole, runs and self.fuse(made, tensors, args, kwargs).lower(tensors))
        return remember((key, found), fusion) if key else fusion, made

    def _apply(self, made: Trace | None, tensors: Sequence[Tensor], args: tuple, kwargs: dict[str, Any]) -> Any:
        """Apply the operators one by one: those of the trace that this call made, as none runs the function twice."""
        if made is None:
            return self.function(*args, **kwargs)
        return made.apply(tensors)

    def _call_by_formula(self, tensors: Sequence[Tensor], key: tuple | None, args: tuple, kwargs: dict[str, Any]):
        """Apply the operators one by one, traced all the same: what a GPU would refuse is refused everywhere.

        What a checkpoint computes once by kernels, and once here under a mode, say, has to save the same both times:
        its derivative then is that of the kernels.
        """
        watched = is_intercepted()
        wanted = bool(saved_tensor_hooks()) and is_grad_enabled() and any([x.requires_grad for x in tensors])
        seen = key and (key, *[(x.shape, x.dtype, x.device) for x in tensors])
        known = watched or (seen and recall(seen))
        if (known and not wanted) or not self.is_traceable(tensors):
            return self.function(*args, **kwargs)
        with without_modes() if watched else nullcontext():
            made = self.trace(tensors, args, kwargs)
            fusion = self._fusion_by_formula(made, tensors, args, kwargs) if wanted else None
        if fusion:
            return FusedFunction.of(fusion, tensors, made)
        if seen:
            remember(seen, True)
        return self._apply(made, tensors, args, kwargs)

    def _fusion_by_formula(self, made: Trace, tensors: Sequence[Tensor], args, kwargs) -> Fusion | None:
        """Return the fusion of a call that kernels would compute elsewhere; None of one that they never would."""
        if any([x.is_inference() for x in tensors]) or why_not_fused(made, tensors):
            return None
        whole = made, *map(spec_of, tensors)
        return recall(whole) or remember(whole, self.fuse(made, tensors, args, kwargs))


def fused_behind(function: Any) -> Fused | None:
    """Return what ``fuse`` made of this function, if it is one that it returned."""
    if isinstance(function, Fused):
        return function
    found = getattr(function, "fused", None)  # copied by functools.wraps, too
    return found if isinstance(found, Fused) and found.called is getattr(function, "__wrapped__", None) else None


def _is_importable(function: Callable) -> bool:
    """Whether ``function`` is found by its name, as what is decorated is not: then it is pickled by that name."""
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
