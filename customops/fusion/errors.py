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


class Place(NamedTuple):
    """A line of the traced function."""

    function: str  # its name
    file: str
    line: int
    names: dict[str, Any]  # those of its module, by which its source is found

    def __str__(self):
        source = linecache.getline(self.file, self.line, self.names).strip()
        return f"{self.function}, {self.file}:{self.line}: `{shorten(source, 80)}`"


def place() -> Place:
    """Return the line of the traced function that is executed."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    return Place(frame.f_code.co_name, frame.f_code.co_filename, frame.f_lineno, frame.f_globals)


def untraceable(what: str, instead: str) -> FusionError:
    """Return an error that names the line of the traced function that did ``what``, and says what would work."""
    return FusionError(f"fuse: {place()}: {what}; {instead}")
