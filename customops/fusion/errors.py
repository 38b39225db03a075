"""The error of what cannot be traced: it names the line of the function that did it, and what would work."""

from __future__ import annotations

import linecache
import os
import sys
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import torch

from .. import config

_OURS = tuple(f"{Path(file).parent}{os.sep}" for file in (config.__file__, torch.__file__))


class FusionError(TypeError):
    """The error of a function that does what cannot be traced."""

    what = ""  # what that is, without the line that does it and what would work; "" where no line is named


class Place(NamedTuple):
    """A line of the traced function."""

    function: str  # its name
    file: str
    line: int
    names: dict[str, Any]  # those of its module, by which its source is found

    def __str__(self):
        where = f"{self.function}, {self.file}:{self.line}"
        source = linecache.getline(self.file, self.line, self.names).strip()  # "" where it is not found
        return f"{where}: `{shorten(source, 80)}`" if source else where


def place() -> Place:
    """Return the line of the traced function that is executed."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    return Place(frame.f_code.co_name, frame.f_code.co_filename, frame.f_lineno, frame.f_globals)


def untraceable(what: str, instead: str, at: Place | None = None) -> FusionError:
    """Return an error that names the line at which the function does ``what``, and says what would work.

    That is the line which is executed, if none is given.
    """
    error = FusionError(f"fuse: {at or place()}: {what}; {instead}")
    error.what = what
    return error
