"""When a call of a fused function is like an earlier one: all that the function may read is part of a key.

What a value is in a key, beside its type, without which True would be 1:

=========================================  ============================================================
type of the value                          what stands for it
=========================================  ============================================================
int, bool, str, None, dtype, device        itself
float, complex, Size                       its repr: 0.0 equals -0.0, and nan not even itself
tuple of values that are in this table     its repr: (1,) equals (True,)
anything else                              nothing: an object may change, and equal what it was
=========================================  ============================================================
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import count
from operator import is_
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import torch

BY_VALUE = frozenset({int, bool, str, type(None), torch.dtype, torch.device})
BY_REPR = frozenset({float, complex, tuple, torch.Size})
NO_KEY: Any = object()  # what stands for a value that may change
_CONSTANTS = FunctionType, BuiltinFunctionType, ModuleType, type  # whose attributes are taken for constant, too


def static_key(x: Any) -> Any:
    """Return what stands for ``x`` in a key, NO_KEY if nothing can.

    >>> static_key(2), static_key(-0.0), static_key((1, True)), static_key([1]) is NO_KEY
    (2, '-0.0', '(1, True)', True)
    """
    kind = type(x)
    if kind in BY_VALUE:
        return x
    if kind not in BY_REPR or (kind is tuple and any([static_key(each) is NO_KEY for each in x])):
        return NO_KEY
    return repr(x)


def random_state() -> tuple:
    """Return the state of the generators of random numbers, torch's on the CPU and Python's."""
    return bytes(torch.default_generator.get_state().numpy()), random.getstate()


def is_constant(x: Any) -> bool:
    """Return whether ``x`` reads the same for as long as it is there: a value, a function, a module, a class."""
    return static_key(x) is not NO_KEY or isinstance(x, _CONSTANTS)


class Surroundings:
    """The values that one function reads besides its arguments: global names in its code, and what it closes over.

    The values that functions called by it read are not among them.
    """

    def __init__(self, function: Callable):
        code = getattr(function, "__code__", None)
        self._globals: dict[str, Any] = getattr(function, "__globals__", {})
        self._names = tuple(dict.fromkeys(_names(code))) if code else ()
        self._cells = getattr(function, "__closure__", None) or ()
        # The values read last, and the number of that state: one tuple, as threads share it.
        self._last: tuple[tuple, int | None] = (), 0
        self._numbers = count(1)

    def state(self) -> int | None:
        """Return a number that is another one after each change; None if an object may change unseen."""
        now = (*map(self._globals.get, self._names), *map(_content, self._cells))
        before, number = self._last
        if len(now) != len(before) or not all(map(is_, now, before)):
            number = next(self._numbers) if all(map(is_constant, now)) else None
            self._last = now, number
        return number


def _names(code: CodeType) -> Iterator[str]:
    """Yield the names in a function's code and in that of functions inside, those of attributes among them."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is still empty
        return None
