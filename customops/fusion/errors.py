"""The error of what cannot be traced: it names the line of the function that did it, and what would work."""

from __future__ import annotations

import linecache
import os
import sys
from pathlib import Path
from textwrap import shorten

import torch

from .. import config

_OURS = tuple(f"{Path(file).parent}{os.sep}" for file in (config.__file__, torch.__file__))


class FusionError(TypeError):
    """The error of a function that does what cannot be traced."""


def untraceable(what: str, instead: str) -> FusionError:
    """Return an error that names the line of the traced function that did ``what``, and says what would work."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    file, line = frame.f_code.co_filename, frame.f_lineno
    source = linecache.getline(file, line, frame.f_globals).strip()
    return FusionError(f"fuse: {frame.f_code.co_name}, {file}:{line}: `{shorten(source, 80)}`: {what}; {instead}")
