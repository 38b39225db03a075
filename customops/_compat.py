"""The private API of Triton's interpreter that launches use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from inspect import signature
from threading import RLock, get_ident
from types import SimpleNamespace
from typing import Any


@contextmanager
def interpreting() -> Iterator[None]:
    """Make launches in Triton's interpreter take a seventh of the CPU time inside the block, with the same results.

    Triton replaces its whole language at each launch, and anew at each call of a device function in a kernel; it
    computes a check of every integer operation for overflow, which it then drops unless it debugs; and it works out
    what a type is at each operation. Here the language is replaced once for the block, the check is left out, and what
    is known of a type is kept. A launch of ``mul`` took 19.7 ms, and takes 2.7 (Triton 3.7.1).

    At the end, also of a block that raises, all is as it was before. One thread at a time is inside. Launches that
    another thread makes meanwhile go Triton's own way. Where the interpreter is not as in Triton 3.6 to 3.9, it stays
    as it is.
    """
    with _ONE_THREAD:
        language = _interpreted_language()
        if language is None or language.thread is not None:
            yield
            return
        try:
            language.enter()
            yield
        finally:
            language.leave()


_ONE_THREAD = RLock()  # the interpreter replaces triton.language, which all threads see, while it runs


@cache
def _interpreted_language() -> _InterpretedLanguage | None:
    """Return what replaces the language, None where Triton's interpreter is not as expected."""
    from triton import language  # noqa: PLC0415 - absent on macOS and Windows
    from triton.runtime import interpreter  # noqa: PLC0415

    try:
        found = (
            tuple(signature(interpreter._patch_lang).parameters),
            interpreter._LangPatchScope()._changes,
            {"debug", "sanitize_overflow"} <= vars(interpreter.interpreter_builder.options).keys(),
            vars(language.block_type(language.int32, [1])).keys(),
            vars(language.tensor(None, language.int32)).keys(),
            {"_MISSING", "_get_np_dtype"} <= vars(interpreter).keys(),
        )
    except (AttributeError, TypeError):
        return None
    block, tensor = {"element_ty", "shape", "numel", "name"}, {"handle", "shape", "numel", "type", "dtype"}
    if found != (("fn",), [], True, block, tensor, True):
        return None
    return _InterpretedLanguage(interpreter, language)


class _InterpretedLanguage:
    """The attributes that Triton's interpreter replaces in its language, and those replaced here to save time."""

    def __init__(self, interpreter: Any, language: Any):
        self.interpreter, self.language = interpreter, language
        self.thread: int | None = None  # the one inside, None where none is
        self.changes: list[tuple[Any, str, Any, Any]] = []  # owner, attribute, its value outside and inside

    def enter(self) -> None:
        """Replace the attributes; find them anew where one is not what it was when they were found."""
        absent = self.interpreter._MISSING
        if not self.changes or any(getattr(owner, name, absent) is not out for owner, name, out, _ in self.changes):
            self.changes = []
            self.changes = [*self._changes_by_triton(), *self._changes_to_triton()]
        self.thread = get_ident()
        for owner, name, _, inside in self.changes:
            setattr(owner, name, inside)

    def leave(self) -> None:
        """Give the attributes back their values."""
        for owner, name, outside, _ in reversed(self.changes):
            if outside is not self.interpreter._MISSING:
                setattr(owner, name, outside)
            elif name in vars(owner):
                delattr(owner, name)
        self.thread = None

    def _changes_by_triton(self) -> list[tuple[Any, str, Any, Any]]:
        """Return what Triton changes for a function that sees ``triton.language`` and its ``core``, as its own do."""
        visible = {"language": self.language, "core": self.language.core}
        scope = self.interpreter._patch_lang(SimpleNamespace(__globals__=visible))
        outside: dict[tuple[Any, str], Any] = {}
        for owner, name, value in scope._changes:
            outside.setdefault((owner, name), value)
        changes = [(owner, name, value, getattr(owner, name)) for (owner, name), value in outside.items()]
        scope.restore()
        return changes

    def _changes_to_triton(self) -> list[tuple[Any, str, Any, Any]]:
        interpreter, core, builder = self.interpreter, self.language.core, self.interpreter.interpreter_builder
        options = builder.options
        unchecked = options if options.debug else replace(options, sanitize_overflow=False)
        return [
            (interpreter, "_patch_lang", interpreter._patch_lang, self._patch_once(interpreter._patch_lang)),
            (interpreter, "_get_np_dtype", interpreter._get_np_dtype, _keep_dtypes(interpreter._get_np_dtype)),
            (core.block_type, "__init__", core.block_type.__init__, _keep_blocks(core.block_type)),
            (core.tensor, "__init__", core.tensor.__init__, _keep_shapes(core.tensor)),
            (builder, "options", options, unchecked),
        ]

    def _patch_once(self, patch: Callable) -> Callable:
        """Return ``patch``, which does nothing in the thread inside, unless another thread undid what was replaced."""
        nothing, core, language = self.interpreter._LangPatchScope(), self.language.core, self.language

        def patch_once(function):
            if get_ident() == self.thread and not core.is_builtin(language.load):
                return nothing
            return patch(function)

        return patch_once


def _keep_dtypes(numpy_dtype: Callable) -> Callable:
    """Return ``numpy_dtype``, NumPy's type for one of Triton, with its answers kept by the names of types."""
    kept: dict[str, Any] = {}

    def get(dtype):
        found = kept.get(dtype.name)
        if found is None:
            found = kept[dtype.name] = numpy_dtype(dtype)
        return found

    return get


def _keep_blocks(block_type: Any) -> Callable:
    """Return the initializer of ``block_type``, which checks and prints each shape of each element type only once."""
    initialize = block_type.__init__
    kept: dict[tuple, dict[str, Any]] = {}

    def __init__(self, element_ty, shape):
        sizes = getattr(shape, "values", shape)  # Triton's own tuple has them
        key = (element_ty.name, *[size if isinstance(size, int) else getattr(size, "value", None) for size in sizes])
        found = kept.get(key)
        if found is None:
            initialize(self, element_ty, shape)
            kept[key] = {name: vars(self)[name] for name in ("shape", "numel", "name")}
        else:
            vars(self).update(found, element_ty=element_ty)

    return __init__


def _keep_shapes(tensor: Any) -> Callable:
    """Return the initializer of ``tensor``, which makes the shape of each type only once."""
    initialize = tensor.__init__
    kept: dict[str, dict[str, Any]] = {}

    def __init__(self, handle, type):
        found = kept.get(type.name)
        if found is None:
            initialize(self, handle, type)
            kept[type.name] = {name: vars(self)[name] for name in ("shape", "numel")}
        else:
            vars(self).update(found, handle=handle, type=type, dtype=type.scalar)

    return __init__
