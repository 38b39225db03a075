"""Run a function on stand-ins for tensors, and write down the operators of the pack that it applies."""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .autograd import Recorded

_OURS = tuple(f"{Path(file).parent}{os.sep}" for file in (__file__, torch.__file__))


class Ref(NamedTuple):
    """A value of a trace: a tensor that the function was given, or what a node returned."""

    value: int


class Node(NamedTuple):
    """An operator of the pack applied: each input is a value of the trace, or what the function wrote there."""

    operator: Any
    inputs: tuple


class Untraceable(TypeError):
    """A function does what cannot be traced."""


class Trace:
    """What a function does to ``arity`` tensors: nodes in order, and which values it returns.

    Values are numbered: tensors, then one for each node. ``picks`` says which of ``outputs`` it returned, in order.
    ``reads_shape`` is whether it asked for a size, so that another shape may lead elsewhere.
    """

    def __init__(self, arity: int):
        self.arity = arity
        self.nodes: list[Node] = []
        self.outputs: tuple[Ref, ...] = ()
        self.picks: tuple[int, ...] = ()
        self.packs: type | None = None  # what the function returned them in, if in anything
        self.reads_shape = False
        self.values: list[Tensor] = []
        self.graphs: dict[tuple, Any] = {}  # what ``build`` made of it
        self.keeps_dense = False  # whether results are known to be contiguous where tensors are
        self._dtypes: list[torch.dtype] = []
        self.device = torch.device("cpu")
        self.modes = _modes()

    def apply(self, operator: Any, inputs: Sequence) -> Traced:
        """Apply ``operator`` to stand-ins; torch answers for shape and dtype, and refuses what it would."""
        if _modes() != self.modes:
            raise untraceable("a change of grad mode", "split the function there, or change it around the call")
        for k, x in enumerate(inputs):
            if not isinstance(x, Tensor):
                continue
            if not isinstance(x, Traced):
                raise untraceable("a tensor that is no argument of the function", "make it an argument")
            if x._trace is not self:
                raise untraceable("a value of another call", "compute it again, or make it an argument")
            if k > 1:
                raise untraceable("a value where torch wants a number", "pass that as a number, or multiply by it")
        if not issubclass(operator, Recorded):
            raise untraceable("writing over a value", f"use customops.{operator.__name__.lower()}")
        given = [self.values[x.ref.value] if isinstance(x, Traced) else x for x in inputs]
        refs = tuple(x.ref if isinstance(x, Traced) else x for x in inputs)
        with torch.no_grad():
            value = operator.by_formula(*given)
        self.nodes.append(Node(operator, refs))
        return self.add(value)

    def dtypes(self) -> list[torch.dtype]:
        """Of every value, as torch gives them on the device and under the autocast that there are."""
        if len(self._dtypes) < len(self.values):
            ones = [torch.ones([1] * x.dim(), dtype=x.dtype, device=self.device) for x in self.values[: self.arity]]
            self._dtypes = [z.dtype for z in self.replay(ones)]
        return self._dtypes

    def replay(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Every value, by torch's formulas, for other tensors."""
        values = list(tensors)
        with torch.no_grad():
            for operator, inputs in self.nodes:
                values.append(operator.by_formula(*[values[x.value] if isinstance(x, Ref) else x for x in inputs]))
        return values

    def add(self, value: Tensor) -> Traced:
        """The stand-in of one more value, which is on the meta device."""
        self.values.append(value)
        return Traced(self, Ref(len(self.values) - 1))


def trace(function: Callable, args: Sequence, kwargs: dict[str, Any], tensors: Sequence[Tensor]) -> Trace:
    """What ``function`` does with ``tensors``, which stand in ``args`` and ``kwargs`` as :class:`Ref`.

    Raises TypeError, naming the line, where it does what cannot be traced.
    """
    made = Trace(len(tensors))
    made.device = tensors[0].device
    stand_ins = [made.add(torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")) for x in tensors]

    def give(x):
        return stand_ins[x.value] if type(x) is Ref else x

    returned = function(*map(give, args), **{name: give(x) for name, x in kwargs.items()})
    made.packs = type(returned) if type(returned) in (tuple, list) else None
    results = tuple(returned) if made.packs else (returned,)
    for z in results or [returned]:
        if not isinstance(z, Traced) or z._trace is not made:
            name = getattr(function, "__qualname__", function)
            got = "a value of another call" if isinstance(z, Traced) else repr(z)
            raise Untraceable(f"fuse: {name}: expected a tensor or a tuple of them to be returned, got {got}")
    made.outputs = tuple(dict.fromkeys(z.ref for z in results))
    made.picks = tuple(made.outputs.index(z.ref) for z in results)
    return made


class Traced:
    """Stands for a tensor while a function is traced."""

    __array_ufunc__ = None  # NumPy's scalars leave arithmetic to it
    __class__ = property(lambda _: Tensor)  # type: ignore[assignment]  # for isinstance

    def __init__(self, trace: Trace, ref: Ref):
        self._trace = trace
        self.ref = ref

    @classmethod
    def __customops__(cls, operator: Any, inputs: Sequence) -> Traced:
        """What operators of the pack call for arguments that are no tensors of torch's own."""
        return next(x for x in inputs if isinstance(x, cls))._trace.apply(operator, inputs)

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
    def _value(self) -> Tensor:
        return self._trace.values[self.ref.value]

    @property
    def shape(self) -> torch.Size:
        """That of the tensors given; another may lead elsewhere."""
        self._trace.reads_shape = True
        return self._value.shape

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
        return self._value.dim()

    ndim = property(dim)
    dtype = property(lambda self: self._trace.dtypes()[self.ref.value])
    device = property(lambda self: self._trace.device)
    is_cuda = property(lambda self: self._trace.device.type == "cuda")

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


def _operator(name: str, swap: bool = False):
    def method(self, other):
        from . import binary  # noqa: PLC0415 - it is made of what records here

        return getattr(binary, name)(*((other, self) if swap else (self, other)))

    return method


def _unary(name: str):
    def method(self):
        from . import unary  # noqa: PLC0415 - it is made of what records here

        return getattr(unary, name)(self)

    return method


def _refused(what: str, instead: str):
    def method(self, *_):
        raise untraceable(what, instead)

    return method


for _name, _sign in {"add": "+", "sub": "-", "mul": "*", "div": "/", "pow": "**"}.items():
    _spelling = "truediv" if _name == "div" else _name
    setattr(Traced, f"__{_spelling}__", _operator(_name))
    setattr(Traced, f"__r{_spelling}__", _operator(_name, swap=True))
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


def _outside(name: str) -> Untraceable:
    import customops  # noqa: PLC0415 - what it offers, at the time of the error

    known = [n for n in customops.__all__ if not n.endswith("_")]
    there = f"use customops.{name}" if name in known else _ELSEWHERE
    return untraceable(f"{name}, no operator of the pack", there)


def _modes() -> tuple[bool, bool]:
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled()


def untraceable(what: str, instead: str) -> Untraceable:
    """The error at the line of the traced function that did it."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    file, line = frame.f_code.co_filename, frame.f_lineno
    source = linecache.getline(file, line, frame.f_globals).strip()
    return Untraceable(f"fuse: {frame.f_code.co_name}, {file}:{line}: `{shorten(source, 80)}`: {what}; {instead}")
