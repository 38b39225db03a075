"""Functions that a module's ``forward`` calls by name, such as a rotary embedding: they are fused as modules are.

The class of the module then has a ``forward`` of the same code, in which these names are the fused functions. The file
where they stand is not changed, and neither are other modules that call them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import unwrap
from types import CellType, CodeType, FunctionType
from typing import Any

from torch.compiler import is_dynamo_compiling
from torch.nn import Module

from ..fusion.decorator import Fused
from ..fusion.errors import FusionError
from .probe import Probe, copied


def called_by(cls: type[Module]) -> dict[str, FunctionType]:
    """Return the functions of the class's file that ``forward`` names."""
    forward = unwrap(cls.forward)
    found = {name: forward.__globals__.get(name) for name in getattr(forward, "__code__", None).co_names}  # type: ignore[union-attr]
    return {name: x for name, x in found.items() if isinstance(x, FunctionType) and x.__module__ == forward.__module__}


@contextmanager
def recording(functions: set[FunctionType]) -> Iterator[dict[FunctionType, Probe]]:
    """Keep the arguments of the first call of each function in the block, without changing any."""
    probes: dict[FunctionType, Probe] = {}
    by_code: dict[CodeType, FunctionType] = {unwrap(x).__code__: x for x in functions}

    def see(frame: Any, event: str, argument: Any) -> None:
        function = by_code.get(frame.f_code) if event == "call" else None
        if function is not None and function not in probes:
            code = frame.f_code
            if code.co_kwonlyargcount or code.co_flags & 0xC:  # *args or **kwargs
                return
            probes[function] = copied(Probe(tuple(frame.f_locals[x] for x in code.co_varnames[: code.co_argcount]), {}))

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        yield probes
    finally:
        sys.setprofile(before)


def as_method(function: Callable) -> Fused:
    """Return a function, fused, which is called with a module first."""
    return Fused(lambda module, *args: function(*args))


def with_fused(forward: FunctionType, names: tuple[str, ...]) -> FunctionType:
    """Return a ``forward`` in which these names are fused functions, with the same decorators around it."""
    inner = getattr(forward, "__wrapped__", None)
    if inner is None:
        fused = {name: _fused(forward.__globals__[name]) for name in names}
        return _again(forward, {**forward.__globals__, **fused}, {})
    return _again(forward, forward.__globals__, {inner: with_fused(inner, names)})


def _again(function: FunctionType, names: dict[str, Any], replaced: dict[Any, FunctionType]) -> FunctionType:
    """Return a function of the same code, that reads other global names, and other functions around it."""
    cells = tuple(_cell(cell, replaced) for cell in function.__closure__ or ())
    again = FunctionType(function.__code__, names, function.__name__, function.__defaults__, cells)
    again.__kwdefaults__ = function.__kwdefaults__
    again.__dict__.update(function.__dict__)
    for name in ("__module__", "__qualname__", "__doc__", "__annotations__"):
        setattr(again, name, getattr(function, name))
    for cell in again.__closure__ or ():
        if _content(cell) is function:
            cell.cell_contents = again
    if replaced:
        (again.__wrapped__,) = replaced.values()  # type: ignore[attr-defined]
    return again


def _cell(cell: CellType, replaced: dict[Any, FunctionType]) -> CellType:
    content = _content(cell)
    return CellType(replaced.get(content, content) if isinstance(content, FunctionType) else content)


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return None


def _fused(function: FunctionType) -> Callable:
    """Return a function that is fused where it can be."""
    fused = Fused(function)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not is_dynamo_compiling():
            try:
                return fused.call(args, kwargs)
            except FusionError:
                pass
        return function(*args, **kwargs)

    return call
