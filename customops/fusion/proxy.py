"""The stand-in for a tensor while a function is traced."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from types import CodeType
from typing import Any

import torch
from torch import Tensor

from .._compat import FILE_OF_APPLY, transforms_active
from ..ops import binary, unary
from .casts import Casts
from .errors import untraceable
from .operators import Ref
from .reshaping import METHODS, PROPERTIES, NotAView, get_item, iterate

COMPARISONS = "lt", "le", "gt", "ge", "eq", "ne"
LOGICAL = {  # Python's signs, and what they mean for masks
    "and": ("&", "logical_and"),
    "or": ("|", "logical_or"),
    "xor": ("^", "logical_xor"),
    "invert": ("~", "logical_not"),
}
REFUSED_SIGNS = {
    "matmul": "@",
    "floordiv": "//",
    "mod": "%",
    "lshift": "<<",
    "rshift": ">>",
    "divmod": "divmod()",
    "round": "round()",
    "contains": "in",
}
ELSEWHERE = "do that outside the function"


@cache
def calls_isinstance(code: CodeType, at: int) -> bool:
    """Return whether the instruction ``at`` of a function calls ``isinstance``, and not torch.

    Torch's C++ asks for the class of what stands where a number may stand, and reads the memory of what says that it is
    a tensor. The callee is what is loaded first where the call's source begins.
    """
    positions = [(line, column) for line, _, column, _ in getattr(code, "co_positions", list)()]
    if not positions or positions[at // 2] == (None, None):
        return True
    first = positions.index(positions[at // 2]) * 2
    loaded = (x for x in dis.get_instructions(code) if x.offset >= first and x.opname.startswith("LOAD_"))
    return next(loaded).argval == "isinstance"


class Traced(Casts):
    """A stand-in for a tensor while a function is traced."""

    __slots__ = ("_tracing", "ref")
    __array_ufunc__ = None  # NumPy's scalars leave arithmetic to it

    @property  # type: ignore[misc]
    def __class__(self):
        """Be a tensor for isinstance; a transform would go on in C++, where nothing can stand for a tensor."""
        if transforms_active():
            raise untraceable("a transform of torch.func cannot be traced", "transform the fused function instead")
        frame = sys._getframe(1)
        if frame.f_code.co_filename == FILE_OF_APPLY:
            what = "an autograd.Function cannot be traced, as its gradient is its own"
            raise untraceable(what, "call it outside the function, or fuse the formula that it computes")
        return Tensor if calls_isinstance(frame.f_code, frame.f_lasti) else Traced

    def __init__(self, tracing: Any, ref: Ref):
        self._tracing = tracing  # the run of the function that it belongs to
        self.ref = ref  # the value that it stands for

    def __customops__(self) -> Callable:
        """Return what customops' operators call instead of computing, as an argument is no torch.Tensor."""
        return self._tracing.apply

    def compose(
        self, body: Callable, function: Callable, of_one: Callable, args: Sequence, kwargs: dict[str, Any]
    ) -> Any:
        """Return what ``body``, a composition of operators, returns; it computes what ``function`` of torch does."""
        return self._tracing.compose(body, function, of_one, args, kwargs)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        """Apply the operator that torch's ``function`` means, or say what would work."""
        kwargs = kwargs or {}
        return next(_stand_ins((args, kwargs)))._tracing.call(function, args, kwargs)

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

    nelement = numel

    def __len__(self) -> int:
        return self.shape[0]

    def dim(self) -> int:
        """Return the number of dimensions."""
        return self._tracing.value_specs[self.ref.value].ndim

    ndimension = dim
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

    def __bool__(self):
        raise untraceable(
            "branching on a value cannot be traced",
            "branch on shapes, dtypes or Python arguments; or use maximum, relu, abs",
        )

    def __pos__(self):
        return self

    def __repr__(self):
        return "<traced tensor>"

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)  # protocols are asked for
        if name == "_is_param":  # Module.__setattr__ asks, and isinstance
            raise untraceable("storing a value in a module cannot be traced", "return it, and store it after the call")
        return self._tracing.attribute(self, name)


def _stand_ins(x: Any) -> Iterator[Traced]:
    """Yield the stand-ins in nested arguments."""
    if type(x) is Traced:
        yield x
    elif isinstance(x, tuple | list | dict):
        for each in x.values() if isinstance(x, dict) else x:
            yield from _stand_ins(each)


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


def _torchs(name: str):
    def method(self, *others):
        return self._tracing.call(getattr(torch, name), (self, *others), {})

    return method


def _logical(sign: str, name: str):
    def method(*operands):
        for x in operands:
            if getattr(x, "dtype", type(x)) not in (torch.bool, bool):
                raise untraceable(f"{sign} of a traced tensor that is no mask is not supported", ELSEWHERE)
        return next(_stand_ins(operands))._tracing.call(getattr(torch, name), operands, {})

    return method


def reshape(function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Return what one of torch's functions makes of traced tensors, which computes nothing."""
    try:
        return function(*args, **{"x" if name == "input" else name: x for name, x in kwargs.items()})
    except NotAView as error:
        raise untraceable(str(error), ELSEWHERE) from None


def _reshaping(function: Callable):
    def method(self, *args, **kwargs):
        return reshape(function, (self, *args), kwargs)

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
for _name in COMPARISONS:
    setattr(Traced, f"__{_name}__", _torchs(_name))
for _name in ("float", "int", "index", "complex", "array"):
    setattr(
        Traced,
        f"__{_name}__",
        _refused("a number cannot be made of a traced tensor, as values are not known yet", "pass it as an argument"),
    )
for _name, (_sign, _function) in LOGICAL.items():
    setattr(Traced, f"__{_name}__", _logical(_sign, _function))
    setattr(Traced, f"__r{_name}__", _logical(_sign, _function))
for _name, _sign in REFUSED_SIGNS.items():
    for _spelling in (_name, f"r{_name}", f"i{_name}") if _name not in ("round", "contains") else (_name,):
        _reason = ", as it is a matrix product" if _sign == "@" else ""
        setattr(
            Traced, f"__{_spelling}__", _refused(f"{_sign} of a traced tensor is not supported{_reason}", ELSEWHERE)
        )
_what = "writing to elements of a traced tensor is not supported"
setattr(Traced, "__setitem__", _refused(_what, "write before calling the fused function"))  # noqa: B010 - mypy
_INDEXING: dict[str, Callable] = {"__getitem__": get_item, "__iter__": iterate}
for _name, _reshaped in {**METHODS, **_INDEXING}.items():
    _method = _reshaping(_reshaped)
    setattr(Traced, _name, property(_method) if _name in PROPERTIES else _method)
Traced.__hash__ = object.__hash__  # type: ignore[method-assign]  # lost with __eq__
