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
from torch._C import _are_functorch_transforms_active

from .autograd import Recorded
from .compute import MOST_PLANS, on_meta, spec_of
from .dispatch import MODES, modes

_OURS = tuple(f"{Path(file).parent}{os.sep}" for file in (__file__, torch.__file__))


class Ref(NamedTuple):
    """A value of a trace: a tensor that the function was given, or what a node returned."""

    value: int


class Node(NamedTuple):
    """An operator of the pack applied: each input is a value of the trace, or what the function wrote there."""

    operator: Any
    inputs: tuple


class Look(NamedTuple):
    """What can be told of a value before its shape is known."""

    dtype: torch.dtype
    dim: int


class Untraceable(TypeError):
    """A function does what cannot be traced."""


class Trace:
    """What a function does to ``arity`` tensors: nodes in order, and which values it returns.

    Values are numbered: tensors, then one for each node; ``dtypes`` has the dtype of each, as torch computes it on
    ``device`` under the modes that there were. ``picks`` says which of ``outputs`` the function returned, in order, and
    ``packs`` in what: a tuple, a list, or None for a single value.
    """

    def __init__(self, tracing: Tracing, outputs: tuple[Ref, ...], picks: tuple[int, ...], packs: type | None):
        self.arity = len(tracing.tensors)
        self.nodes = tuple(tracing.nodes())
        self.dtypes = [look.dtype for look in tracing.looks]
        self.device = tracing.device
        self.outputs, self.picks, self.packs = outputs, picks, packs
        self.graphs: dict[tuple, Any] = {}  # what ``build`` made of it
        self.keeps_dense = False  # whether results are known to be contiguous where tensors are

    def replay(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Compute every value from these tensors, by torch's formulas."""
        return _replay(self.nodes, tensors)

    def apply(self, tensors: Sequence[Tensor]) -> Any:
        """Return what the function returns for these tensors, its operators applied one by one."""
        values = list(tensors)
        for operator, inputs in self.nodes:
            values.append(operator.applied(*[values[x.value] if type(x) is Ref else x for x in inputs]))
        return self.returned([values[ref.value] for ref in self.outputs])

    def returned(self, results: Sequence) -> Any:
        """Return ``results``, each given once, as the function returns them."""
        return self.packs(results[k] for k in self.picks) if self.packs else results[0]


class Branch:
    """A point in the tracing of a function: the value made last, by ``node``, and where operators applied next lead.

    A function is run on stand-ins along branches that are known, which costs little, and grows new ones where it does
    what it never did. What it reads from anywhere may so change at any time: another operator, or another number, is
    another branch. ``traces`` are those that end here, by what was returned.
    """

    __slots__ = ("look", "next", "node", "ref", "traces")

    def __init__(self, ref: Ref, node: Node | None = None, look: Look | None = None):
        self.ref, self.node, self.look = ref, node, look
        self.next: dict[tuple, Branch] = {}
        self.traces: dict[tuple, Trace] = {}


class Traces:
    """All that a function was seen to do: a tree of branches for each structure of its tensors, under each mode."""

    def __init__(self):
        self._roots: dict[tuple, Branch] = {}
        self.size = 0  # branches in all trees

    def trace(self, function: Callable, args: Sequence, kwargs: dict[str, Any], tensors: Sequence[Tensor]) -> Trace:
        """Trace ``function`` on ``tensors``, which stand in ``args`` and ``kwargs``, in order.

        Raises TypeError, naming the line, where it does what cannot be traced.
        """
        if self.size >= MOST_PLANS:
            self._roots.clear()
            self.size = 0
        now = modes()
        structure = now, *[(x.dtype, x.device, *[n == 1 for n in x.shape]) for x in tensors]
        root = self._roots.get(structure)
        if root is None:
            root = self._roots[structure] = Branch(Ref(len(tensors) - 1))
        tracing = Tracing(root, tensors, now)
        trace = tracing.run(function, args, kwargs)
        self.size += tracing.grown
        return trace


class Tracing:
    """One run of a function on stand-ins for ``tensors``, along the branches from ``root``, under modes ``now``."""

    def __init__(self, root: Branch, tensors: Sequence[Tensor], now: tuple):
        self.branch, self.tensors, self.modes = root, tensors, now
        self.device = tensors[0].device
        self.looks = [Look(x.dtype, x.dim()) for x in tensors]
        self.path: list[Branch] = []
        self.grown = 0

    def run(self, function: Callable, args: Sequence, kwargs: dict[str, Any]) -> Trace:
        """Return what ``function`` does."""
        stand_ins = (Traced(self, Ref(i)) for i in range(len(self.tensors)))
        given = [next(stand_ins) if isinstance(x, Tensor) else x for x in args]
        named = {name: next(stand_ins) if isinstance(x, Tensor) else x for name, x in kwargs.items()}
        returned = function(*given, **named)
        self.check_modes(function)
        packs = type(returned) if type(returned) in (tuple, list) else None
        results = tuple(returned) if packs else (returned,)
        for z in results or [returned]:
            if type(z) is not Traced or z._tracing is not self:
                got = "a value of another call" if type(z) is Traced else repr(z)
                raise Untraceable(
                    f"fuse: {name_of(function)}: expected a tensor or a tuple of them to be returned, got {got}"
                )
        outputs = tuple(dict.fromkeys(z.ref for z in results))
        key = outputs, tuple(outputs.index(z.ref) for z in results), packs
        trace = self.branch.traces.get(key)
        if trace is None:
            trace = self.branch.traces[key] = Trace(self, *key)
            self.grown += 1
        return trace

    def nodes(self) -> list[Any]:
        """The operators applied so far."""
        return [branch.node for branch in self.path]

    def apply(self, operator: Any, inputs: Sequence) -> Traced:
        """Apply ``operator`` to stand-ins and numbers, along a branch; torch refuses what it would."""
        if modes() != self.modes:
            self.check_modes()
        parts = [operator]
        for x in inputs:
            kind = type(x)
            if kind is Traced:
                parts.append(x.ref if x._tracing is self else x)
            else:
                parts += kind, x if kind in _TOLD_BY_VALUE else repr(x) if kind in _TOLD_BY_REPR else None
        key = tuple(parts)
        branch = self.branch.next.get(key)
        if branch is None:
            branch = self._grow(operator, inputs, key)
        self.branch = branch
        self.path.append(branch)
        self.looks.append(branch.look)  # type: ignore[arg-type]  # only a root has none
        return Traced(self, branch.ref)

    def _grow(self, operator: Any, inputs: Sequence, key: tuple) -> Branch:
        """Return a new branch; forgotten after this run if it depends on what keys cannot tell from all else."""
        self._refuse(operator, inputs)
        node = Node(operator, tuple([x.ref if type(x) is Traced else x for x in inputs]))
        branch = Branch(Ref(len(self.looks)), node, self._look(operator, inputs))
        if None in key:
            return branch
        self.grown += 1
        return self.branch.next.setdefault(key, branch)

    def _refuse(self, operator: Any, inputs: Sequence) -> None:
        """Raise where this cannot be part of a program."""
        for k, x in enumerate(inputs):
            if not isinstance(x, Tensor):
                continue
            if type(x) is not Traced:
                raise untraceable("a tensor that is no argument of the function", "make it an argument")
            if x._tracing is not self:
                raise untraceable("a value of another call", "compute it again, or make it an argument")
            if k > 1:
                raise untraceable("a value where torch wants a number", "pass that as a number, or multiply by it")
        if not issubclass(operator, Recorded):
            raise untraceable("writing over a value", f"use customops.{operator.__name__.lower()}")

    def _look(self, operator: Any, inputs: Sequence) -> Look:
        """Ask torch what it makes of single elements, on their device and under the modes that there are."""
        looks = [self.looks[x.ref.value] if type(x) is Traced else None for x in inputs]
        given = [
            x if look is None else torch.ones([1] * look.dim, dtype=look.dtype, device=self.device)
            for x, look in zip(inputs, looks, strict=True)
        ]
        with torch.no_grad():
            one = operator.by_formula(*given)
        return Look(one.dtype, one.dim())

    def check_modes(self, function: Callable | None = None) -> None:
        """Raise if the function switched a mode that operators heed: kernels run under those around the call."""
        now = modes()
        if now != self.modes:
            changed = next(name for name, a, b in zip(MODES, now, self.modes, strict=True) if a != b)
            what, instead = f"a change of {changed}", "split the function there, or change it around"
            if function is None:
                raise untraceable(what, f"{instead} the call")
            raise Untraceable(f"fuse: {name_of(function)}: {what}, which it leaves behind; {instead} the call")

    def shape(self, ref: Ref) -> torch.Size:
        """Return the shape of a value for the tensors of this call."""
        if ref.value < len(self.tensors):
            return self.tensors[ref.value].shape
        return _replay(self.nodes(), [on_meta(spec_of(x)) for x in self.tensors])[ref.value].shape


def _replay(nodes: Sequence[Node], tensors: Sequence[Tensor]) -> list[Tensor]:
    values = list(tensors)
    with torch.no_grad():
        for operator, inputs in nodes:
            values.append(operator.by_formula(*[values[x.value] if type(x) is Ref else x for x in inputs]))
    return values


_TOLD_BY_VALUE = frozenset({int, bool, str, torch.dtype})  # what equals one of these is no other for an operator
_TOLD_BY_REPR = frozenset({float, complex, tuple, list, type(None)})


def name_of(function: Callable) -> str:
    """Return what errors call ``function``."""
    return getattr(function, "__qualname__", type(function).__name__)


class Traced:
    """Stands for a tensor while a function is traced."""

    __slots__ = ("_tracing", "ref")
    __array_ufunc__ = None  # NumPy's scalars leave arithmetic to it

    @property  # type: ignore[misc]
    def __class__(self):
        """Be a tensor for isinstance; a transform would go on in C++, where nothing can stand for a tensor."""
        if _are_functorch_transforms_active():
            raise untraceable("a transform of torch.func", "transform the fused function instead")
        return Tensor

    def __init__(self, tracing: Tracing, ref: Ref):
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


def untraceable(what: str, instead: str) -> Untraceable:
    """The error at the line of the traced function that did it."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    file, line = frame.f_code.co_filename, frame.f_lineno
    source = linecache.getline(file, line, frame.f_globals).strip()
    return Untraceable(f"fuse: {frame.f_code.co_name}, {file}:{line}: `{shorten(source, 80)}`: {what}; {instead}")
