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
from torch.overrides import resolve_name

from .. import config
from .._compat import transforms_active
from ..ops import binary, reductions, unary
from ..ops.function import Operator
from .reshaping import FUNCTIONS, METHODS, PROPERTIES, NotAView, get_item, iterate
from .shapes import is_shape_operator

_OURS = tuple(f"{Path(file).parent}{os.sep}" for file in (config.__file__, torch.__file__))
_OPERATORS = {name for module in (unary, binary, reductions) for name in module.__all__ if not name.endswith("_")}
_ELSEWHERE = "do that outside the function"


class Ref(NamedTuple):
    """A value of a trace: a tensor that the function was given, or what an operator returned."""

    value: int  # its number: first the tensors, then what each operator returned, in order


class Detach:
    """The operator of ``x.detach()`` in a trace: x, with a derivative of zero."""

    by_formula = staticmethod(Tensor.detach)


def is_elementwise(operator: Any) -> bool:
    """Return whether an operator of a trace computes each element of its value from one of each input."""
    return operator is Detach or issubclass(operator, Operator)


def is_alias(operator: Any) -> bool:
    """Return whether the value of an operator of a trace may share memory with its input."""
    return operator is Detach or (is_shape_operator(operator) and operator.is_view)


class FusionError(TypeError):
    """The error of a function that does what cannot be traced."""


class Traced:
    """A stand-in for a tensor while a function is traced."""

    __slots__ = ("_tracing", "ref")
    __array_ufunc__ = None  # NumPy's scalars leave arithmetic to it

    @property  # type: ignore[misc]
    def __class__(self):
        """Be a tensor for isinstance; a transform would go on in C++, where nothing can stand for a tensor."""
        if transforms_active():
            raise untraceable("a transform of torch.func cannot be traced", "transform the fused function instead")
        return Tensor

    def __init__(self, tracing: Any, ref: Ref):
        self._tracing = tracing  # the run of the function that it belongs to
        self.ref = ref  # the value that it stands for

    def __customops__(self) -> Callable:
        """Return what customops' operators call instead of computing, as an argument is no torch.Tensor."""
        return self._tracing.apply

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        """Reject torch's functions on a traced tensor, but for ``detach``, and what its dtype and shape answer."""
        if kwargs and kwargs.get("out") is not None:
            raise untraceable("out= cannot be traced, as it writes to a tensor", "leave it out")
        if function in FUNCTIONS:
            return _reshape(FUNCTIONS[function], args, kwargs or {})
        name = getattr(function, "__name__", str(function))
        if name in ("numel", "is_floating_point", "is_complex", "detach"):
            return getattr(cls, name)(*args)
        path = resolve_name(function) or f"torch's {name}"
        if kwargs and kwargs.get("rounding_mode"):
            raise untraceable(f"{path} with a rounding_mode cannot be traced", _ELSEWHERE)
        raise untraceable(f"{path} cannot be traced", f"use customops.{name}" if name in _OPERATORS else _ELSEWHERE)

    @property
    def shape(self) -> torch.Size:
        """The shape for the tensors of this call; other tensors may lead the function elsewhere."""
        return self._tracing.shape(self.ref)

    def size(self, dim: int | None = None):
        """Return the shape, or the size of one dimension."""
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        """Return the number of elements."""
        return self.shape.numel()

    def __len__(self) -> int:
        return self.shape[0]

    def dim(self) -> int:
        """Return the number of dimensions."""
        return self._tracing.value_specs[self.ref.value].ndim

    ndim = property(dim)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype, under the modes around the call."""
        self._tracing.check_modes()
        return self._tracing.value_specs[self.ref.value].dtype

    device = property(lambda self: self._tracing.device)
    is_cuda = property(lambda self: self._tracing.device.type == "cuda")

    def is_floating_point(self) -> bool:
        """Return whether the dtype is a floating one."""
        return self.dtype.is_floating_point

    def is_complex(self) -> bool:
        """Return whether the dtype is a complex one."""
        return self.dtype.is_complex

    def detach(self) -> Traced:
        """Return the value with a derivative of zero."""
        return self._tracing.apply(Detach, (self,))

    def __bool__(self):
        raise untraceable(
            "branching on a value cannot be traced",
            "branch on shapes, dtypes or Python arguments; or use maximum, relu, abs",
        )

    def __pos__(self):
        return self

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)  # protocols are asked for
        path = f"Tensor.{name}()" if callable(getattr(Tensor, name, None)) else f"Tensor.{name}"
        if name in ("item", "tolist", "numpy"):
            raise untraceable(f"{path} cannot be traced, as values are not known yet", "pass a number as an argument")
        call = f"customops.{name}({'x, y' if name in binary.__all__ else 'x'})"
        raise untraceable(f"{path} cannot be traced", f"use {call}" if name in _OPERATORS else _ELSEWHERE)


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


def _reshape(function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Return what one of torch's functions makes of traced tensors, which computes nothing."""
    try:
        return function(*args, **{"x" if name == "input" else name: x for name, x in kwargs.items()})
    except NotAView as error:
        raise untraceable(str(error), _ELSEWHERE) from None


def _reshaping(function: Callable):
    def method(self, *args, **kwargs):
        return _reshape(function, (self, *args), kwargs)

    return method


def _refused(what: str, instead: str):
    def method(self, *_):
        raise untraceable(what, instead)

    return method


for _name, _sign in {"add": "+", "sub": "-", "mul": "*", "div": "/", "pow": "**"}.items():
    _spelling = "truediv" if _name == "div" else _name
    setattr(Traced, f"__{_spelling}__", _binary(_name))
    setattr(Traced, f"__r{_spelling}__", _binary(_name, swap=True))
    setattr(Traced, f"__i{_spelling}__", _refused("writing over a tensor cannot be traced", f"write x = x {_sign} y"))
for _name in ("neg", "abs"):
    setattr(Traced, f"__{_name}__", _unary(_name))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(
        Traced,
        f"__{_name}__",
        _refused("comparing values cannot be traced", "use maximum, minimum, relu, abs; or `is`"),
    )
for _name in ("float", "int", "index", "complex", "array"):
    setattr(
        Traced,
        f"__{_name}__",
        _refused("a number cannot be made of a traced tensor, as values are not known yet", "pass it as an argument"),
    )
_SIGNS = {
    "matmul": "@",
    "floordiv": "//",
    "mod": "%",
    "and": "&",
    "or": "|",
    "xor": "^",
    "lshift": "<<",
    "rshift": ">>",
}
for _name, _sign in {**_SIGNS, "divmod": "divmod()", "invert": "~", "round": "round()", "contains": "in"}.items():
    for _spelling in (_name, f"r{_name}", f"i{_name}") if _name in (*_SIGNS, "divmod") else (_name,):
        setattr(Traced, f"__{_spelling}__", _refused(f"{_sign} of a traced tensor is not supported", _ELSEWHERE))
_what = "writing to elements of a traced tensor is not supported"
setattr(Traced, "__setitem__", _refused(_what, "write before calling the fused function"))  # noqa: B010 - mypy
_INDEXING: dict[str, Callable] = {"__getitem__": get_item, "__iter__": iterate}
for _name, _function in {**METHODS, **_INDEXING}.items():
    _method = _reshaping(_function)
    setattr(Traced, _name, property(_method) if _name in PROPERTIES else _method)
Traced.__hash__ = object.__hash__  # type: ignore[method-assign]  # lost with __eq__


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
