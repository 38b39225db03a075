"""Run a function on stand-ins for tensors, and record the operators that it applies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ops.call import call
from ..ops.function import CustomFunction, Operator
from ..ops.reductions import call_reduction
from ..runtime.modes import MODES, modes
from ..runtime.plans import MAX_PLANS
from ..runtime.specs import on_meta, spec_of
from .proxy import FusionError, Ref, Traced, untraceable


class Node(NamedTuple):
    """An operator of the pack applied: each input is a value of the trace, or what the function wrote there."""

    operator: Any
    inputs: tuple


class Look(NamedTuple):
    """What can be told of a value before its shape is known."""

    dtype: torch.dtype
    dim: int


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
            apply = call if issubclass(operator, Operator) else call_reduction
            values.append(apply(operator, *[values[x.value] if type(x) is Ref else x for x in inputs]))
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
        if self.size >= MAX_PLANS:
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
                raise FusionError(
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
        if not issubclass(operator, CustomFunction):
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
            raise FusionError(f"fuse: {name_of(function)}: {what}, which it leaves behind; {instead} the call")

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
