"""Find a user's function by name: MODULE.NAME, or FILE.py:NAME."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from .arguments import BadArgument, nearest, with_type

HOW = "MODULE.NAME, or FILE.py:NAME"


def function_named(path: str) -> Callable[..., Any]:
    """Return the function of this name, from the current directory, an installed package or a file.

    Raises BadArgument: it says which part of the name leads nowhere, or what importing raised.
    """
    file, colon, name = path.rpartition(":")
    if colon:
        found = _attribute(_module_of_file(Path(file)), file, name)
    else:
        if path.endswith(".py") or "." not in path:
            raise BadArgument(f"{path}: expected {HOW}")
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        found = _resolve(path)
    if isinstance(found, type) or not callable(found):
        raise BadArgument(f"{path}: expected a function, got {found!r}")
    return found


def _module_of_file(file: Path) -> ModuleType:
    """Import a file, which finds what lies beside it."""
    if not file.is_file():
        raise BadArgument(f"{file}: there is no such file in {Path.cwd()}: expected {HOW}")
    sys.path.insert(0, str(file.resolve().parent))
    name = f"__{file.stem}__" if file.stem in sys.modules else file.stem  # random.py is no other random
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise BadArgument(f"{file}: Python imports files that end in .py: expected {HOW}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    _importing(str(file), lambda: spec.loader.exec_module(module))  # type: ignore[union-attr]
    return module


def _resolve(path: str) -> Any:
    """Return what a dotted path leads to: the longest module that there is, then attributes."""
    parts = path.split(".")
    if not all(part.isidentifier() for part in parts):
        raise BadArgument(f"{path}: expected {HOW}")
    module = _importing(parts[0], lambda: importlib.import_module(parts[0]))
    found: Any = module
    for k, part in enumerate(parts[1:], 1):
        name = ".".join(parts[:k])
        if not hasattr(found, part) and hasattr(found, "__path__"):
            child = ".".join(parts[: k + 1])
            if importlib.util.find_spec(child):
                found = _importing(child, partial(importlib.import_module, child))
                continue
        found = _attribute(found, name, part)
    return found


def _attribute(owner: Any, where: str, name: str) -> Any:
    if hasattr(owner, name):
        return getattr(owner, name)
    names = getattr(owner, "__dict__", {})
    public = [key for key, value in names.items() if callable(value) and not key.startswith("_")]
    raise BadArgument(f"{where} has no {name}: {nearest(name, public)}" if public else f"{where} has no {name}")


def _importing(name: str, load: Callable[[], Any]) -> Any:
    """Return what ``load`` returns; what it raises is said in one line."""
    try:
        return load()
    except SyntaxError as error:
        where = f"{error.filename}, line {error.lineno}"
        raise BadArgument(f"{where}: SyntaxError: {error.msg}: correct the file") from None
    except ModuleNotFoundError as error:
        if error.name == name:
            raise BadArgument(f"No module named {name!r} here or among what is installed: expected {HOW}") from None
        raise BadArgument(f"{name}: importing it failed: {with_type(error)}") from None
    except (Exception, SystemExit) as error:  # a script ends Python as it is imported
        raise BadArgument(f"{name}: importing it failed: {with_type(error)}") from None
