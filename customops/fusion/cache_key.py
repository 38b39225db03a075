"""When a call of a fused function is like an earlier one, so that nothing it reads can be other than it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from operator import is_
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import torch

TOLD_BY_VALUE = frozenset({int, bool, str, type(None), torch.dtype, torch.device})
TOLD_BY_REPR = frozenset({float, complex, tuple, torch.Size})
_CONSTANTS = FunctionType, BuiltinFunctionType, ModuleType, type  # whose attributes are taken for constant, too


def is_told_by_value(x: Any) -> bool:
    """Whether what equals ``x``, or has its repr if its type is TOLD_BY_REPR, is no other for a function that reads it.

    0.0 equals -0.0, and (1,) equals (True,): hence the repr. An object may change, and be equal still.
    """
    kind = type(x)
    return kind in TOLD_BY_VALUE or (kind in TOLD_BY_REPR and (kind is not tuple or all(map(is_told_by_value, x))))


def is_fixed(x: Any) -> bool:
    """Whether ``x`` reads the same for as long as it is there: a value, a function, a module, a class."""
    return is_told_by_value(x) or isinstance(x, _CONSTANTS)


class Surroundings:
    """What a function reads besides its arguments: global names in its code, and what it closes over.

    What functions that it calls read is not seen.
    """

    def __init__(self, function: Callable):
        code = getattr(function, "__code__", None)
        self._globals: dict[str, Any] = getattr(function, "__globals__", {})
        self._names = tuple(dict.fromkeys(_names(code))) if code else ()
        self._cells = getattr(function, "__closure__", None) or ()
        self._seen: tuple[tuple, int | None] = (), 0  # of one moment: threads share it
        self._changes = count(1)

    def state(self) -> int | None:
        """Return a number that is another after each change; None where an object among it may change unseen."""
        now = (*map(self._globals.get, self._names), *map(_content, self._cells))
        seen, state = self._seen
        if len(now) != len(seen) or not all(map(is_, now, seen)):
            state = next(self._changes) if all(map(is_fixed, now)) else None
            self._seen = now, state
        return state


def _names(code: CodeType) -> Iterator[str]:
    """The names in a function's code and in that of functions inside, those of attributes among them."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is still empty
        return None
