"""Modules of a model that were taken: their class is one made of their own, which can be undone.

A call that cannot be fused after all, of another dtype for example where the module branches on values, is torch's: the
module then gets its own class back, and says so once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial, wraps
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.nn import Module

from ..fusion.decorator import Fused
from ..fusion.errors import FusionError
from ..fusion.modules import fused_class, is_fused_class, why_not_fusable
from .functions import with_fused
from .probe import State
from .stretches import Program
from .tracing import call_key, inputs_of

PROGRAMS = "_customops_programs"  # the attribute of a module that has them


def take(module: Module) -> None:
    """Give ``module`` the class of its like whose ``forward`` is fused, until a call of it cannot be."""
    module.__class__ = _class_taken(type(module))


def take_stretches(module: Module, key: tuple, programs: Sequence[Program]) -> None:
    """Give ``module`` the class of its like that follows programs: for calls of ``key`` the first that is for it."""
    module.__class__ = _class_with_stretches(type(module))
    vars(module)[PROGRAMS] = Programs({key: tuple(programs)})


def take_functions(module: Module, names: tuple[str, ...]) -> None:
    """Give ``module`` the class of its like in whose ``forward`` these names are fused functions."""
    module.__class__ = _class_with_functions(type(module), names)


def is_taken(module: Module) -> bool:
    """Return whether one of these changed ``module``."""
    cls: Any = type(module)
    if not is_fused_class(cls):
        return False
    return cls._remake in (_remake, _remake_with_stretches) or getattr(cls._remake, "func", None) is _remake_with_names


def has_lost_stretches(module: Module) -> bool:
    """Return whether ``module`` had stretches when it was pickled."""
    cls: Any = type(module)
    return is_fused_class(cls) and cls._remake is _remake_with_stretches and not vars(module).get(PROGRAMS)


def give_back(module: Module) -> None:
    """Give a module that was taken its own class."""
    module.__class__ = type(module)._unfused  # type: ignore[attr-defined]
    vars(module).pop(PROGRAMS, None)


def why_not_takable(module: Module) -> str | None:
    """Return why the class of ``module`` cannot be changed, None if it can."""
    if is_fused_class(type(module)):
        return "it is fused already"
    return why_not_fusable(module)


class Programs(dict):
    """The programs of a module by the keys of calls. Copies of the module share them; a pickle has none."""

    def __deepcopy__(self, memo: Any) -> Programs:
        return self

    def __reduce__(self) -> Any:
        return Programs, ()


def _class_with_stretches(cls: type[Module]) -> type[Module]:
    return fused_class(cls, _by_program(cls.forward), _remake_with_stretches)


def _remake_with_stretches(cls: type[Module], *args: Any) -> Module:
    """Return an empty module of class ``cls`` that follows programs, for what was copied or pickled to fill."""
    taken = _class_with_stretches(cls)
    return taken.__new__(taken, *args)


def _class_with_functions(cls: type[Module], names: tuple[str, ...]) -> type[Module]:
    plain: Any = cls.forward
    fused = with_fused(plain, names)

    @wraps(plain)
    def forward(self, *args, **kwargs):  # a compiler looks for global names in the module of their file
        return (plain if is_dynamo_compiling() else fused)(self, *args, **kwargs)

    return fused_class(cls, forward, _remaker(names))


@cache
def _remaker(names: tuple[str, ...]) -> Callable[..., Module]:
    return partial(_remake_with_names, names)


def _remake_with_names(names: tuple[str, ...], cls: type[Module], *args: Any) -> Module:
    """Return an empty module of class ``cls`` with fused functions, for what was copied or pickled to fill."""
    taken = _class_with_functions(cls, names)
    return taken.__new__(taken, *args)


def _by_program(plain: Callable) -> Callable:
    """Return the ``forward`` of modules that follow a program where they have one for a call."""

    def compute(module: Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        for program in vars(module)[PROGRAMS].get(call_key(args, kwargs), ()):
            if program.is_for(module):
                return program.run(module, module, *inputs_of(args, kwargs))
        return plain(module, *args, **kwargs)

    return _or_as_it_was(compute, plain)


def _class_taken(cls: type[Module]) -> type[Module]:
    plain: Any = cls.forward
    fused = Fused(plain)
    forward: Any = _or_as_it_was(lambda module, args, kwargs: fused.call((module, *args), kwargs), plain)
    forward.fused, forward.program, forward.explain = fused, fused.program, fused.explain
    return fused_class(cls, forward, _remake)


def _remake(cls: type[Module], *args: Any) -> Module:
    """Return an empty module of class ``cls`` that is taken, for what was copied or pickled to fill."""
    taken = _class_taken(cls)
    return taken.__new__(taken, *args)


def _or_as_it_was(compute: Callable[[Module, tuple, dict[str, Any]], Any], plain: Callable) -> Callable:
    """Return a ``forward`` that computes so; modules give themselves back where it cannot be fused after all.

    A module that a call gave back is as it was before that call: its own ``forward`` does then what was done of it, as
    writes to running statistics. For that its state is copied at the first call in a mode and of dtypes.
    """
    called: WeakKeyDictionary[Module, set[tuple]] = WeakKeyDictionary()  # the modes and dtypes

    @wraps(plain)
    def forward(self, *args, **kwargs):
        if is_dynamo_compiling():
            return plain(self, *args, **kwargs)
        kinds = called.setdefault(self, set())
        kind = self.training, *kwargs, *[x.dtype for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        before = None if kind in kinds else State(self)
        try:
            z = compute(self, args, kwargs)
        except FusionError as error:
            if before:
                before.restore()
            if is_taken(self):
                give_back(self)
                warnings.warn(f"customops.apply: {type(self).__name__} is torch's again: {error}", stacklevel=2)
            return plain(self, *args, **kwargs)
        kinds.add(kind)
        return z

    return forward
