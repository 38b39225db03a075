"""What the ``forward`` of a module does between its children, as a graph of torch.fx; and when it does the same again.

The graph is of one kind of call: tensors are its inputs; what else is given is a constant, as are the attributes and
global names that ``forward`` reads, all of which later calls are compared with. What that does not cover is not traced.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from inspect import unwrap
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.proxy import GraphAppendingTracer
from torch.nn import Module
from torch.random import fork_rng

from ..fusion.cache_key import NO_KEY, is_constant, random_state, static_key


class Untraced(Exception):
    """The reason why a ``forward`` is not traced."""


class Traced(NamedTuple):
    """The graph of a call."""

    graph: fx.Graph  # its placeholders are the arguments that are no constants, in order
    attributes: dict[str, Any]  # of the module, which were read: plain values
    names: dict[str, Any]  # the global names of ``forward`` that are plain values


def call_key(args: Sequence, kwargs: dict[str, Any]) -> tuple:
    """Return what calls have in common that one graph computes: names, constants, and the types of all else."""
    return (*map(_key, args), *kwargs, *map(_key, kwargs.values()))


def _key(x: Any) -> Any:
    if isinstance(x, Tensor):
        return Tensor
    key = static_key(x)
    return type(x) if key is NO_KEY else (type(x), key)


def inputs_of(args: Sequence, kwargs: dict[str, Any]) -> list[Any]:
    """Return the arguments that are no constants, in order."""
    return [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) or static_key(x) is NO_KEY]


def trace(module: Module, args: Sequence, kwargs: dict[str, Any]) -> Traced:
    """Return what ``forward`` does with arguments like these. Raises Untraced where that cannot be told."""
    traced = _traced(module, args, kwargs)
    with torch.set_grad_enabled(not torch.is_grad_enabled()):
        other = _traced(module, args, kwargs)
    if str(other.graph) != str(traced.graph):
        raise Untraced("it asks whether gradients are recorded")
    return traced


def _traced(module: Module, args: Sequence, kwargs: dict[str, Any]) -> Traced:
    tracer = _Tracer(fx.Graph())
    watched = _stand_in(module, tracer)
    try:
        with fork_rng([]):
            before = random_state()
            result = type(module).forward(watched, *map(tracer.argument, args), **_mapped(tracer.argument, kwargs))
            if random_state() != before:
                raise Untraced("it draws random numbers, and other ones at each call")
        tracer.create_node("output", "output", (tracer.create_arg(result),), {})
    except Untraced:
        raise
    except Exception as error:
        raise Untraced(" ".join(str(error).split()).split(". ")[0]) from None
    names = _globals(module)
    changing = next((name for name, x in names.items() if isinstance(x, list | dict | set)), None)
    if changing:
        raise Untraced(f"it reads the global {changing}, which may change unseen")
    constants = {name: x for name, x in names.items() if static_key(x) is not NO_KEY}
    return Traced(tracer.graph, watched.read, constants)


def _globals(module: Module) -> dict[str, Any]:
    forward = unwrap(type(module).forward)
    known, code = getattr(forward, "__globals__", {}), getattr(forward, "__code__", None)
    return {name: known[name] for name in code.co_names if name in known} if code else {}


def reads_global(module: Module, name: str) -> Callable[[Module], Any]:
    """Return a function that reads a global name of ``forward``, as those do that read an attribute."""
    known = unwrap(type(module).forward).__globals__
    return lambda _module: known.get(name)


def _mapped(function: Any, x: dict[str, Any]) -> dict[str, Any]:
    return {name: function(each) for name, each in x.items()}


class _Value(fx.Proxy):
    """What stands for a value while a ``forward`` is traced; it is of the class of that value, where that is known."""

    @property  # type: ignore[misc]
    def __class__(self):
        if sys._getframe(1).f_globals.get("__name__", "").startswith(("torch.fx", "torch.utils._pytree")):
            return _Value
        kind = self.node.meta.get("kind")
        if kind is None:
            raise Untraced("it asks for the class of what it computed")
        return kind

    def _written(self, _other: Any) -> Any:
        raise Untraced("it writes to a tensor in place")

    __iadd__ = __isub__ = __imul__ = __itruediv__ = __ipow__ = __ifloordiv__ = __imod__ = __imatmul__ = _written
    __iand__ = __ior__ = __ixor__ = __ilshift__ = __irshift__ = _written


class _Tracer(GraphAppendingTracer):
    """It appends to a graph what is done to its values."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def argument(self, x: Any) -> Any:
        """Return what stands for an argument."""
        if not isinstance(x, Tensor) and static_key(x) is not NO_KEY:
            return x
        value = self.create_proxy("placeholder", f"x{len(self.graph.nodes)}", (), {})
        value.node.meta["kind"] = Tensor if isinstance(x, Tensor) else type(x)
        return value


class _Owned:
    """What stands for a module that is traced, or one that it contains."""

    def __init__(self, module: Module, path: str, tracer: _Tracer, read: dict[str, Any]):
        vars(self).update(_module=module, _path=path, _tracer=tracer, read=read)

    def __getattr__(self, name: str) -> Any:
        value, path = getattr(self._module, name), f"{self._path}{name}"
        if isinstance(value, Module):
            return _Child(value, f"{path}.", self._tracer, self.read)
        if isinstance(value, Tensor):
            found = self._tracer.create_proxy("get_attr", path, (), {})
            found.node.meta["kind"] = Tensor
            return found
        if not is_constant(value):
            raise Untraced(f"it reads self.{path}, which may change unseen")
        self.read[path] = value
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        raise Untraced(f"it writes self.{self._path}{name}")

    def __len__(self) -> int:
        return len(self._module)

    def __bool__(self) -> bool:
        return bool(self._module)

    def __getitem__(self, index: int) -> Any:
        return getattr(self, str(range(len(self))[index]))


class _Child(_Owned):
    """What stands for a module that the traced one contains."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._tracer.create_proxy("call_module", self._path[:-1], args, kwargs)


def _stand_in(module: Module, tracer: _Tracer) -> _Owned:
    """Return what stands for ``module``: of a class with its ``forward``, for which wrappers look."""
    return type("Watched", (_Owned,), {"forward": type(module).forward})(module, "", tracer, {})
