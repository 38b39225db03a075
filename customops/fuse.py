"""``fuse``: a composition of operators in as few kernels as axes and registers allow, and its gradients likewise."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial, update_wrapper
from numbers import Number
from types import FunctionType, ModuleType
from typing import Any
from weakref import ref

import numpy as np
import torch
from torch import Tensor, is_grad_enabled
from torch._C import _are_functorch_transforms_active
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

from .autograd import is_recorded
from .compute import MOST_PLANS, recall, remember
from .dispatch import CLASSES, features, has_kernel, is_plain, is_watched
from .fusion import Composition, Fusion, obstacle
from .graphs import Graph, build
from .tracing import Ref, Trace, Traced, Untraceable, trace

__all__ = ["fuse"]


class fuse:
    """Compute a composition of this pack's operators in one kernel, and its gradients in one or two, where that can be.

    ``function`` takes tensors and other Python values, and returns a tensor or a tuple of them, made by the pack's
    operators, Python's arithmetic operators and numbers. It is traced once for each set of dtypes, ranks, devices,
    dimensions of size 1 and other values, so it may branch on those; on shapes too, and is then traced for each.
    Attributes of an argument count as values, but theirs do not; what else the function reads is taken for constant.

    Values between the operators stay in registers, in float32 for half types, unrounded. Reductions along rows are
    done there too, as far as registers hold a row; where they do not, and between reductions over different axes,
    values pass through memory: :meth:`explain` tells. Only inputs are saved, those that the gradients read, and what
    was reduced between two kernels.

    Where the operators themselves would compute by torch's formulas, ``function`` is called as it is: on a CPU, under
    ``torch.compile``, forward mode and ``torch.func``, for complex numbers and subclasses of tensors; and where an
    operator returns integers or an argument is returned. Gradients of gradients are those of the formulas.

    Raises:
        TypeError: ``function`` cannot be traced: it branches on a value, or calls what is not of the pack. The message
            names the line. An argument is no tensor and has no hash, or a tensor is in a container.
        RuntimeError: the backend is ``triton`` and no kernel can run.
        Exception: what torch raises for the operators.

    >>> import customops, torch
    >>> @customops.fuse
    ... def rms_norm(x, weight, eps=1e-6):
    ...     return x * customops.rsqrt(customops.mean(x * x, -1, keepdim=True) + eps) * weight
    >>> rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 10.0]))
    tensor([[ 0.8485, 11.3137]])
    """

    NOT_TRACED = "there is no dense tensor of torch's own, or a mode, a transform or forward mode sees the calls"

    def __init__(self, function: Callable):
        if isinstance(function, (classmethod, staticmethod)) or not callable(function):
            raise TypeError(f"fuse: expected a function, got {function!r}; put @fuse below @classmethod")
        update_wrapper(self, function)
        self.function = function
        self._traces: dict[tuple, Trace] = {}
        self._itself = ref(self)  # for keys, which keep nothing alive

    def __get__(self, instance, owner=None):
        if instance is None:
            return self
        return partial(self.function, instance) if is_dynamo_compiling() else _Bound(self, instance)

    def __reduce__(self):
        """Pickled and copied as functions are: by name."""
        return self.__qualname__  # type: ignore[attr-defined]  # of the function

    def __call__(self, *args, **kwargs):
        """What ``function`` returns."""
        if is_dynamo_compiling():
            return self.function(*args, **kwargs)
        tensors, key = self._read(args, kwargs)
        found = features(tensors, recorded=True) if tensors else None
        if found is None:
            if self.is_traceable(tensors):
                self._trace(tensors, key, args, kwargs)
            return self.function(*args, **kwargs)
        whole = key, found
        fusion = recall(whole)
        if fusion is None:
            fusion = remember(whole, self._fuse(tensors, key, args, kwargs))
        if not fusion:
            return self.function(*args, **kwargs)
        if is_recorded():
            for x in tensors:
                if x.requires_grad:
                    return Composition.of(fusion, tensors)
        return fusion(tensors)

    def program(self, *args, **kwargs) -> Graph:
        """What is computed for these arguments, and what :meth:`explain` prints: formulas of values over named axes.

        Raises TypeError as a call does, ValueError where nothing can be traced: for subclasses, under modes.
        """
        tensors, key = self._read(args, kwargs)
        if not self.is_traceable(tensors):
            raise ValueError(f"fuse: there is no program: {self.NOT_TRACED}")
        return self._graph(self._trace(tensors, key, args, kwargs), tensors, args, kwargs)

    def explain(self, *args, **kwargs) -> None:
        """Print what a call would compute, launch and move on a GPU by kernels, and where values pass through memory.

        Gradients are those of the inputs that require one, or of all if none does. No GPU is needed, and no memory:
        any tensors do. ``target`` names the GPU, as for :func:`dry_run`, unless ``function`` takes that itself.

        Raises:
            RuntimeError: as :func:`dry_run` does. TypeError: as a call does.
        """
        from .explain import explain  # noqa: PLC0415 - it imports this

        chosen = {} if "target" in inspect.signature(self.function).parameters else kwargs
        target = chosen.pop("target", "cuda:90")
        print(*explain(self, args, kwargs, target), sep="\n")

    def _read(self, args: tuple, kwargs: dict[str, Any]) -> tuple[list[Tensor], tuple]:
        """The tensors among the arguments, and all else that a trace depends on; no tensors if one is a subclass's."""
        tensors: list[Tensor] = []
        key: list[Any] = [self._itself, is_grad_enabled()]
        for x in (*args, *kwargs.values()) if kwargs else args:
            kind = type(x)
            if kind in CLASSES:
                tensors.append(x)
            elif isinstance(x, Tensor) or kind is Traced:
                return [], ()
            else:
                key.append(x if kind in _ALIKE else repr(x) if kind is float else self._key_of(x))
            key.append(kind)
        key += kwargs
        return tensors, tuple(key)

    def _key_of(self, x: Any) -> tuple:
        """What stands for an argument in keys: of an object a weak reference, and the attributes that it has now."""
        if isinstance(x, _CONTAINERS):
            return type(x), *map(self._key_of, x.items() if isinstance(x, dict) else x)
        if isinstance(x, Tensor) or type(x).__hash__ is None:
            name = getattr(self, "__name__", "function")
            got = type(x).__name__ + " in a container" * isinstance(x, Tensor)
            raise TypeError(f"fuse: {name}: expected tensors and values that have a hash, got {got}")
        attributes = {} if isinstance(x, _SHARED) else getattr(x, "__dict__", {})
        slots = [name for kind in type(x).__mro__ for name in getattr(kind, "__slots__", ())]
        return *_unlike(x), *map(_unlike, attributes.items()), *(_unlike(getattr(x, name, None)) for name in slots)

    def is_traceable(self, tensors: Sequence[Tensor]) -> bool:
        """Whether nothing but what ``function`` does keeps it from being traced."""
        if not tensors or _are_functorch_transforms_active() or is_watched() or forward_ad._current_level >= 0:
            return False
        return all(map(is_plain, tensors))

    def _trace(self, tensors: Sequence[Tensor], key: tuple, args: tuple, kwargs: dict[str, Any]) -> Trace:
        """The trace for arguments like these; made once for a structure, or a shape where that was asked for."""
        shapes = tuple(x.shape for x in tensors)
        looks = [(x.dtype, x.device, *(n == 1 for n in x.shape)) for x in tensors]
        autocast = torch.is_autocast_enabled(tensors[0].device.type)
        structure = key, torch.get_default_dtype(), autocast, *looks
        made = self._traces.get(structure)
        if made and made.reads_shape:
            made = self._traces.get((structure, shapes))
        if not made:
            refs = map(Ref, range(len(tensors)))
            given = [next(refs) if isinstance(x, Tensor) else x for x in args]
            named = {name: next(refs) if isinstance(x, Tensor) else x for name, x in kwargs.items()}
            made = self._or_as_torch(lambda: trace(self.function, given, named, tensors), args, kwargs)
            if len(self._traces) >= MOST_PLANS:
                self._traces.clear()
            self._traces[structure] = made
            if made.reads_shape:
                self._traces[structure, shapes] = made
        return made

    def _graph(self, made: Trace, tensors: Sequence[Tensor], args: tuple, kwargs: dict[str, Any]) -> Graph:
        """The graph for tensors of these shapes, called as the parameters are."""
        bound = inspect.signature(self.function).bind(*args, **kwargs).arguments
        names = {id(x): name for name, x in bound.items()}
        given = [names.get(id(x), f"x{i}") for i, x in enumerate(tensors)]
        unique = [name if given.count(name) == 1 else f"{name}{i}" for i, name in enumerate(given)]
        return self._or_as_torch(lambda: build(made, unique, [x.shape for x in tensors]), args, kwargs)

    def _or_as_torch(self, make: Callable[[], Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        """What ``make`` returns; an error of an operator is torch's own, about the caller's tensors."""
        try:
            return make()
        except Untraceable:
            raise
        except Exception:
            self.function(*args, **kwargs)
            raise

    def _fuse(self, tensors: Sequence[Tensor], key: tuple, args: tuple, kwargs: dict[str, Any]) -> Fusion | bool:
        """The kernels for arguments like these; False where ``function`` is called as it is."""
        made = self._trace(tensors, key, args, kwargs)
        numbers = [x for _, inputs in made.nodes for x in inputs if isinstance(x, complex)]
        if not has_kernel("fuse", [*tensors, *numbers]) or obstacle(made, tensors):
            return False
        return Fusion(made, self._graph(made, tensors, args, kwargs), tensors)


class _Bound(partial):
    """A method: a fused function of the instance that it was asked of."""

    explain = property(lambda self: partial(self.func.explain, *self.args))
    program = property(lambda self: partial(self.func.program, *self.args))


def _unlike(x: Any) -> tuple:
    """Equal only where no trace can tell: 0.0 equals -0.0, and (1,) equals (True,). It keeps no object alive."""
    kind = type(x)
    if isinstance(x, _NUMBERS):
        return kind, repr(x)
    if isinstance(x, _CONTAINERS):
        return kind, *map(_unlike, x.items() if isinstance(x, dict) else x)
    if kind.__hash__ is None:
        return kind, id(x)
    return kind, ref(x) if kind.__weakrefoffset__ else x


_ALIKE = frozenset({int, bool, str, type(None)})  # what equals one of these and has its type is no other
_NUMBERS = float, complex, np.generic, Number
_CONTAINERS = list, tuple, set, frozenset, dict
_SHARED = type, ModuleType, FunctionType  # whose attributes are taken for constants
