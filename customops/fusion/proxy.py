"""The stand-in for a tensor while a function is traced, and the errors of what cannot be traced."""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import config
from .._compat import transforms_active
from ..ops import binary, reductions, unary

_OURS = tuple(f"{Path(file).parent}{os.sep}" for file in (config.__file__, torch.__file__))


class Ref(NamedTuple):
    """A value of a trace: a tensor that the function was given, or what a node returned."""

    value: int


class FusionError(TypeError):
    """A function does what cannot be traced."""


class Traced:
    """Stands for a tensor while a function is traced."""

    __slots__ = ("_tracing", "ref")
    __array_ufunc__ = None  # NumPy's scalars leave arithmetic to it

    @property  # type: ignore[misc]
    def __class__(self):
        """Be a tensor for isinstance; a transform would go on in C++, where nothing can stand for a tensor."""
        if transforms_active():
            raise untraceable("a transform of torch.func", "transform the fused function instead")
        return Tensor

    def __init__(self, tracing: Any, ref: Ref):
        self._tracing = tracing
        self.ref = ref

    def __customops__(self) -> Callable:
        """What operators of the pack call for arguments that are no tensors of torch's own."""
        return self._tracing.apply

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        """Whatever of torch is called with it is no operator of the pack."""
        if kwargs and kwargs.get("out") is not None:
            raise untraceable("out=, which writes to a tensor", "leave it away")
        name = getattr(function, "__name__", str(function))
        if name in ("numel", "is_floating_point", "is_complex"):
            return getattr(cls, name)(*args)
        rounded = " with a rounding_mode" if kwargs and kwargs.get("rounding_mode") else ""
        raise _outside(name + rounded)

    @property
    def shape(self) -> torch.Size:
        """That of the tensors given; another may lead elsewhere."""
        return self._tracing.shape(self.ref)

    def size(self, dim: int | None = None):
        """As of a tensor."""
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        """As of a tensor."""
        return self.shape.numel()

    def __len__(self) -> int:
        return self.shape[0]

    def dim(self) -> int:
        """As of a tensor."""
        return self._tracing.looks[self.ref.value].dim

    ndim = property(dim)

    @property
    def dtype(self) -> torch.dtype:
        """As of a tensor."""
        self._tracing.check_modes()
        return self._tracing.looks[self.ref.value].dtype

    device = property(lambda self: self._tracing.device)
    is_cuda = property(lambda self: self._tracing.device.type == "cuda")

    def is_floating_point(self) -> bool:
        """As of a tensor."""
        return self.dtype.is_floating_point

    def is_complex(self) -> bool:
        """As of a tensor."""
        return self.dtype.is_complex

    def __bool__(self):
        raise untraceable(
            "branching on a value", "branch on shapes, dtypes or Python arguments; or use maximum, relu, abs"
        )

    def __pos__(self):
        return self

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)  # protocols are asked for
        if name in ("item", "tolist", "numpy"):
            raise untraceable(f".{name} of a value, which is not known yet", "pass a number as an argument")
        raise _outside(name)


def _binary(name: str, swap: bool = False):
    operator = getattr(binary, name)

    def method(self, other):
        return operator(other, self) if swap else operator(self, other)

    return method


def _unary(name: str):
    operator = getattr(unary, name)

    def method(self):
        return operator(self)

    return method


def _refused(what: str, instead: str):
    def method(self, *_):
        raise untraceable(what, instead)

    return method


for _name, _sign in {"add": "+", "sub": "-", "mul": "*", "div": "/", "pow": "**"}.items():
    _spelling = "truediv" if _name == "div" else _name
    setattr(Traced, f"__{_spelling}__", _binary(_name))
    setattr(Traced, f"__r{_spelling}__", _binary(_name, swap=True))
    setattr(Traced, f"__i{_spelling}__", _refused("writing over a value", f"write x = x {_sign} y"))
for _name in ("neg", "abs"):
    setattr(Traced, f"__{_name}__", _unary(_name))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Traced, f"__{_name}__", _refused("comparing values", "use maximum, minimum, relu, abs; or `is`"))
for _name in ("float", "int", "index", "complex", "array"):
    setattr(Traced, f"__{_name}__", _refused("the number of a value, which is not known yet", "pass it as an argument"))
_ELSEWHERE = "do that outside the function"
for _name in ("matmul", "floordiv", "mod", "divmod", "and", "or", "xor", "lshift", "rshift"):
    for _spelling in (_name, f"r{_name}", f"i{_name}"):
        setattr(
            Traced, f"__{_spelling}__", _refused(f"{_name}, no operator of the pack", "do that outside the function")
        )
for _name in ("getitem", "setitem", "iter", "contains", "invert", "round"):
    setattr(Traced, f"__{_name}__", _refused(f"{_name}, no operator of the pack", _ELSEWHERE))
Traced.__hash__ = object.__hash__  # type: ignore[method-assign]  # lost with __eq__


def _outside(name: str) -> FusionError:
    known = {*unary.__all__, *binary.__all__, *reductions.__all__}
    there = f"use customops.{name}" if name in known and not name.endswith("_") else _ELSEWHERE
    return untraceable(f"{name}, no operator of the pack", there)


def untraceable(what: str, instead: str) -> FusionError:
    """The error at the line of the traced function that did it."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    file, line = frame.f_code.co_filename, frame.f_lineno
    source = linecache.getline(file, line, frame.f_globals).strip()
    return FusionError(f"fuse: {frame.f_code.co_name}, {file}:{line}: `{shorten(source, 80)}`: {what}; {instead}")
