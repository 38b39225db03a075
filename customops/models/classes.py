"""Modules of a model that were taken: their class is one made of their own, which can be undone.

A call that cannot be fused after all, of another dtype for example where the module branches on values, is torch's: the
module then gets its own class back, and says so once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.nn import Module

from ..fusion.decorator import Fused
from ..fusion.errors import FusionError
from ..fusion.modules import fused_class, is_fused_class, why_not_fusable
from .probe import State


def take(module: Module) -> None:
    """Give ``module`` the class of its like whose ``forward`` is fused, until a call of it cannot be."""
    module.__class__ = _class_taken(type(module))


def is_taken(module: Module) -> bool:
    """Return whether :func:`take` changed ``module``."""
    return is_fused_class(type(module)) and type(module)._remake is _remake  # type: ignore[attr-defined]


def give_back(module: Module) -> None:
    """Give a module that was taken its own class."""
    module.__class__ = type(module)._unfused  # type: ignore[attr-defined]


def why_not_takable(module: Module) -> str | None:
    """Return why the class of ``module`` cannot be changed, None if it can."""
    if is_fused_class(type(module)):
        return "it is fused already"
    return why_not_fusable(module)


def _class_taken(cls: type[Module]) -> type[Module]:
    forward: Any = cls.forward
    return fused_class(cls, _or_as_it_was(Fused(forward), forward), _remake)


def _remake(cls: type[Module], *args: Any) -> Module:
    """Return an empty module of class ``cls`` that is taken, for what was copied or pickled to fill."""
    taken = _class_taken(cls)
    return taken.__new__(taken, *args)


def _or_as_it_was(fused: Fused, plain: Callable) -> Callable:
    """Return the ``forward`` of modules that are fused, and give themselves back where they cannot be.

    A module that a call gave back is as it was before that call: its own ``forward`` does then what was done of it, as
    writes to running statistics. For that its state is copied at the first call in a mode and of dtypes.
    """
    called: WeakKeyDictionary[Module, set[tuple]] = WeakKeyDictionary()  # the modes and dtypes

    @wraps(plain)
    def forward(self, *args, **kwargs):
        if is_dynamo_compiling():
            return plain(self, *args, **kwargs)
        kinds = called.setdefault(self, set())
        kind = self.training, *[x.dtype for x in args if isinstance(x, Tensor)]
        before = None if kind in kinds else State(self)
        try:
            z = fused.call((self, *args), kwargs)
        except FusionError as error:
            if before:
                before.restore()
            if is_taken(self):
                give_back(self)
                warnings.warn(f"customops.apply: {type(self).__name__} is torch's again: {error}", stacklevel=2)
            return plain(self, *args, **kwargs)
        kinds.add(kind)
        return z

    forward.fused, forward.program, forward.explain = fused, fused.program, fused.explain  # type: ignore[attr-defined]
    return forward
