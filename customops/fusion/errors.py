"""The error of what cannot be traced: it names the line of the function that did it, and what would work."""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import shorten
from types import BuiltinFunctionType
from typing import Any, NamedTuple

import torch

from .. import config

_OURS = tuple(f"{Path(file).parent}{os.sep}" for file in (config.__file__, torch.__file__))
_COMMAND_LINE = f"{Path(config.__file__).parent / 'cli'}{os.sep}"


class FusionError(TypeError):
    """The error of a function that does what cannot be traced."""

    what = ""  # what that is, without the line that does it and what would work; "" where no line is named


class Place(NamedTuple):
    """A line of the traced function."""

    function: str  # its name
    file: str = ""  # where the command line calls what no user wrote, there is no file and no line
    line: int = 0
    names: dict[str, Any] | None = None  # those of its module, by which its source is found

    def __str__(self):
        if not self.file:
            return self.function
        where = f"{self.function}, {self.file}:{self.line}"
        source = linecache.getline(self.file, self.line, self.names).strip()  # "" where it is not found
        return f"{where}: `{shorten(source, 80)}`" if source else where


def place() -> Place:
    """Return the line of the traced function that is executed; of what no user wrote that which calls it."""
    frame, function = sys._getframe(1), None
    while frame.f_back and frame.f_code.co_filename.startswith(_OURS):
        if frame.f_code is run.__code__:
            function = frame.f_locals["function"]
        elif function is not None and frame.f_code.co_filename.startswith(_COMMAND_LINE):
            return Place(name_of(function))
        frame = frame.f_back
    return Place(frame.f_code.co_name, frame.f_code.co_filename, frame.f_lineno, frame.f_globals)


def run(function: Callable, args: Sequence, kwargs: dict[str, Any]) -> Any:
    """Return what ``function``, which is traced, returns: by this frame :func:`place` knows where it was called."""
    return function(*args, **kwargs)


def name_of(function: Callable) -> str:
    """Return what errors call ``function``: where it is built in, by the name without a class, which torch hides."""
    name = "__name__" if isinstance(function, BuiltinFunctionType) else "__qualname__"
    return getattr(function, name, type(function).__name__)


def untraceable(what: str, instead: str, at: Place | None = None) -> FusionError:
    """Return an error that names the line at which the function does ``what``, and says what would work.

    That is the line which is executed, if none is given.
    """
    error = FusionError(f"fuse: {at or place()}: {what}; {instead}")
    error.what = what
    return error
