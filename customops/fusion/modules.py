"""Modules whose ``forward`` is fused: their class is one made of their own, which only replaces ``forward``.

Copies, replicas of ``DataParallel`` and parametrizations go by a module's class. A ``forward`` bound to one module,
among its attributes, would go along to a copy of these and read the parameters of the original.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from typing import Any

from torch.fx import GraphModule
from torch.jit import ScriptModule
from torch.nn import Module
from torch.nn.modules.lazy import LazyModuleMixin

from ..compiler.graph import Graph


class FusedModule:
    """What a class with a fused ``forward`` has, where the module's own class has nothing of that name."""

    __slots__ = ()
    _unfused: type[Module]  # the module's own class
    _remake: Callable[..., Module]  # makes an empty module of the class ``_unfused``, with a fused forward

    def program(self, *args: Any, **kwargs: Any) -> Graph:
        """Return what ``forward`` computes for these arguments: formulas of values over named axes."""
        return type(self).forward.program(self, *args, **kwargs)  # type: ignore[attr-defined]

    def explain(self, *args: Any, **kwargs: Any) -> None:
        """Print what ``forward`` would compute, launch and move for these arguments; ``target`` names the GPU."""
        type(self).forward.explain(self, *args, **kwargs)  # type: ignore[attr-defined]

    def __prepare_scriptable__(self) -> Module:
        """Say what would work instead of ``torch.jit.script``, which calls this: it compiles no fused forward."""
        raise RuntimeError(
            "torch.jit.script: expected modules that compute by the forward of their own class, got "
            f"{self._unfused.__name__}, whose forward is fused; script the model before it is, after customops.restore "
            "where customops.apply did it, or use torch.jit.trace"
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copy and pickle it by the module's own class, which can be imported.

        A class that has a ``__reduce__`` of its own, which calls the class, makes copies that are not fused.
        """
        reduced: Any = super().__reduce_ex__(max(2, protocol))
        if not is_fused_class(type(self)):
            return reduced
        if reduced[0] is type(self):
            return self._unfused, *reduced[1:]
        if reduced[0] is not copyreg.__newobj__:  # type: ignore[attr-defined]
            return reduced
        _, (_, *args), *state = reduced
        return self._remake, (self._unfused, *args), *state


def is_fused_class(cls: type) -> bool:
    """Return whether ``cls`` is a class that :func:`fused_class` made."""
    return "_unfused" in vars(cls)


def fused_class(cls: type[Module], forward: Callable, remake: Callable[..., Module]) -> type[Module]:
    """Return a class of modules that are like those of ``cls``, but for ``forward``; one for each ``remake``."""
    for known in cls.__subclasses__():
        if is_fused_class(known) and known._remake is remake:  # type: ignore[attr-defined]
            return known
    names = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    names |= {"forward": forward, "_unfused": cls, "_remake": staticmethod(remake)}
    return type(cls.__name__, (cls, FusedModule), names)


def why_not_fusable(module: Module) -> str | None:
    """Return why the class of ``module`` cannot stand for how it is computed, and what would help; None if it can."""
    if "forward" in vars(module):
        return "its attribute `forward` replaces that of its class; fuse it before that, or fuse what is put there"
    if isinstance(module, GraphModule | ScriptModule):
        return "its `forward` is generated; fuse what it was made of, before that"
    if isinstance(module, LazyModuleMixin) and module.cls_to_become is not None:  # type: ignore[attr-defined]
        return "it becomes one of another class at its first call; call it first"
    return None
