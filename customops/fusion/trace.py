"""Run a function on stand-ins for tensors, and record the operators that it applies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ops.call import call
from ..ops.function import CustomFunction
from ..ops.reductions import call_reduction
from ..runtime.paths import MODES, modes
from ..runtime.plans import MAX_PLANS
from ..runtime.specs import CPU, Miniatures, TensorSpec, infer
from .cache_key import BY_REPR, BY_VALUE, NO_KEY
from .proxy import Detach, FusionError, Place, Ref, Traced, is_alias, is_elementwise, place, untraceable
from .shapes import ShapeOperator, is_shape_operator


class Node(NamedTuple):
    """One operator applied."""

    operator: Any  # the operator's class
    inputs: tuple  # a Ref for each value of the trace; otherwise what the function wrote there


class ValueSpec(NamedTuple):
    """The facts about a value that hold whatever its shape."""

    dtype: torch.dtype
    ndim: int


class Trace:
    """A record of what a function does to tensors: operators in order, and which of their values it returns.

    Values are numbered: first the tensors, then one for each node.
    """

    def __init__(
        self, tracing: Tracing, outputs: tuple[Ref, ...], output_order: tuple[int, ...], output_type: type | None
    ):
        self.arity = len(tracing.tensors)  # how many tensors the function is given
        self.nodes = tuple(tracing.nodes())  # in the order in which they were applied
        self.places = [branch.place for branch in tracing.path]  # of each, the line that applied it first
        self.dtypes = [spec.dtype for spec in tracing.value_specs]  # of each value, under the modes that there were
        self.device = tracing.device  # of all values
        self.outputs = outputs  # the values that are returned, each once
        self.output_order = output_order  # for each value returned, its position in ``outputs``
        self.output_type = output_type  # tuple or list if the function returned one; None for a single value
        self.graphs: dict[tuple, Any] = {}  # a cache of build.py
        self.is_unread = self._find_unread()  # of each node
        views = [node for node in self.nodes if is_shape_operator(node.operator)]
        self.has_views = bool(views)  # whether operators move elements
        self.has_empty_views = any(node.operator.is_empty(*node.inputs) for node in views)  # whatever the tensors are
        self.is_dense_if_inputs_are = False  # whether results are known to be contiguous where inputs are

    def replay(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Compute every value from these tensors, by torch's formulas."""
        return replay(self.nodes, tensors)

    def infer(self, tensors: Sequence[Tensor]) -> list[TensorSpec]:
        """Return what torch would compute from these tensors for every value, but on the CPU."""
        return _infer(self.nodes, tensors)

    def apply(self, tensors: Sequence[Tensor]) -> Any:
        """Return what the function returns for these tensors, its operators applied one by one."""
        values = list(tensors)
        for operator, inputs in self.nodes:
            args = tuple([values[x.value] if type(x) is Ref else x for x in inputs])
            if not issubclass(operator, CustomFunction):
                values.append(operator.by_formula(*args))
            else:
                values.append(call(operator, args) if is_elementwise(operator) else call_reduction(operator, *args))
        return self.pack([values[ref.value] for ref in self.outputs])

    def source(self, value: int) -> int:
        """Return the value whose memory ``value`` may share: that which it is a view of, or is detached."""
        while value >= self.arity and is_alias(self.nodes[value - self.arity].operator):
            value = self.nodes[value - self.arity].inputs[0].value
        return value

    def _find_unread(self) -> list[bool]:
        """Return which nodes are views that nothing is computed of: ``x.unbind()[0]`` makes as many as x has rows."""
        read = {ref.value for ref in self.outputs}
        is_unread = []
        for value, (operator, inputs) in reversed(list(enumerate(self.nodes, self.arity))):
            is_unread.append(is_shape_operator(operator) and value not in read)
            if not is_unread[-1]:
                read.update(x.value for x in inputs if type(x) is Ref)
        return is_unread[::-1]

    def computed_dtypes(self) -> list[torch.dtype]:
        """Return the dtype of each value that an operator computes: all but the tensors given, and views."""
        dtypes = self.dtypes[self.arity :]
        return [dtype for dtype, node in zip(dtypes, self.nodes, strict=True) if not is_alias(node.operator)]

    def pack(self, results: Sequence) -> Any:
        """Return ``results``, one for each of ``outputs``, as the function returns them."""
        return self.output_type(results[k] for k in self.output_order) if self.output_type else results[0]


class Branch:
    """A point in the tracing of a function: the value made last, and where operators applied next lead.

    A function is run on stand-ins along branches that are known, which costs little, and grows new ones where it does
    what it never did. What it reads from anywhere may so change at any time: another operator, or another number, is
    another branch.
    """

    __slots__ = ("next", "node", "place", "ref", "spec", "traces")

    def __init__(self, ref: Ref, node: Node | None = None, spec: ValueSpec | None = None, place: Place | None = None):
        self.ref = ref  # the value made last
        self.node = node  # the operator that made it; None at a root, where the last value is a tensor given
        self.spec = spec  # what is known of that value; None at a root
        self.place = place  # the line that applied that operator first; None at a root
        self.next: dict[tuple, Branch] = {}  # by operator, and the keys of its inputs
        self.traces: dict[tuple, Trace] = {}  # those that end here, by what was returned


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
    """One run of a function on stand-ins for tensors, along the branches from a root."""

    def __init__(self, root: Branch, tensors: Sequence[Tensor], now: tuple):
        self.branch = root  # the point reached
        self.tensors = tensors  # that stand-ins stand for
        self.modes = now  # those around the call
        self.device = tensors[0].device
        self.value_specs = [ValueSpec(x.dtype, x.dim()) for x in tensors]  # of each value so far
        self.shapes = [x.shape for x in tensors]  # of the first values: those that were asked for so far
        self.path: list[Branch] = []  # the branches since the root
        self.grown = 0  # how many branches and traces were new

    def run(self, function: Callable, args: Sequence, kwargs: dict[str, Any]) -> Trace:
        """Return what ``function`` does."""
        stand_ins = (Traced(self, Ref(i)) for i in range(len(self.tensors)))
        args = [next(stand_ins) if isinstance(x, Tensor) else x for x in args]
        kwargs = {name: next(stand_ins) if isinstance(x, Tensor) else x for name, x in kwargs.items()}
        returned = function(*args, **kwargs)
        self.check_modes(function)
        output_type = type(returned) if type(returned) in (tuple, list) else None
        results = tuple(returned) if output_type else (returned,)
        for z in results or [returned]:
            self._check_returned(z, function)
        outputs = tuple(dict.fromkeys(z.ref for z in results))
        key = outputs, tuple(outputs.index(z.ref) for z in results), output_type
        trace = self.branch.traces.get(key)
        if trace is None:
            trace = self.branch.traces[key] = Trace(self, *key)
            self.grown += 1
        return trace

    def _check_returned(self, z: Any, function: Callable) -> None:
        """Raise if ``z``, which ``function`` returned, is no value of this run."""
        if type(z) is not Traced or z._tracing is not self:
            got = "a value of another call" if type(z) is Traced else repr(z)
            raise FusionError(
                f"fuse: {name_of(function)}: expected a tensor or a tuple of them to be returned, got {got}"
            )

    def nodes(self) -> list[Any]:
        """Return the operators applied so far."""
        return [branch.node for branch in self.path]

    def apply(self, operator: Any, inputs: Sequence) -> Traced:
        """Apply ``operator`` to stand-ins and numbers, along a branch; torch refuses what it would."""
        if modes() != self.modes:
            self.check_modes()
        key_parts = [operator]
        for x in inputs:
            kind = type(x)
            if kind is Traced:
                key_parts.append(x.ref if x._tracing is self else x)
            else:
                key_parts += kind, x if kind in BY_VALUE else repr(x) if kind in BY_REPR else NO_KEY
        key = tuple(key_parts)
        branch = self.branch.next.get(key)
        if branch is None:
            branch = self._grow(operator, inputs, key)
        self.branch = branch
        self.path.append(branch)
        self.value_specs.append(branch.spec)  # type: ignore[arg-type]  # only a root has none
        return Traced(self, branch.ref)

    def _grow(self, operator: Any, inputs: Sequence, key: tuple) -> Branch:
        """Return a new branch; it is forgotten after this run if an input has no key."""
        self._refuse(operator, inputs)
        node = Node(operator, tuple([x.ref if type(x) is Traced else x for x in inputs]))
        branch = Branch(Ref(len(self.value_specs)), node, self._spec_of_result(operator, inputs), place())
        if NO_KEY in key:
            return branch
        self.grown += 1
        return self.branch.next.setdefault(key, branch)

    def _refuse(self, operator: Any, inputs: Sequence) -> None:
        """Raise if this operator, or an input, cannot be part of a trace."""
        for k, x in enumerate(inputs):
            if not isinstance(x, Tensor):
                continue
            if type(x) is not Traced:
                raise untraceable(
                    "a tensor that is no argument of the function cannot be traced", "make it an argument"
                )
            if x._tracing is not self:
                raise untraceable("a value of another call cannot be used", "compute it again, or make it an argument")
            if k > 1 and not is_shape_operator(operator):
                raise untraceable(
                    "a tensor cannot be traced where torch expects a number", "pass a number, or multiply by the tensor"
                )
        if operator is not Detach and not issubclass(operator, CustomFunction | ShapeOperator):
            raise untraceable("an in-place operator cannot be traced", f"use customops.{operator.__name__.lower()}")

    def _spec_of_result(self, operator: Any, inputs: Sequence) -> ValueSpec:
        """Ask torch what it makes of single elements, on their device and under the modes that there are."""
        if is_shape_operator(operator):
            values = [x.ref for x in inputs if type(x) is Traced]
            shape = self._shape_of(operator, [x.ref if type(x) is Traced else x for x in inputs])
            return ValueSpec(reduce(torch.promote_types, [self.value_specs[x.value].dtype for x in values]), len(shape))
        specs = [self.value_specs[x.ref.value] if type(x) is Traced else None for x in inputs]
        ones = [
            x if spec is None else torch.ones([1] * spec.ndim, dtype=spec.dtype, device=self.device)
            for x, spec in zip(inputs, specs, strict=True)
        ]
        with torch.no_grad():
            one = operator.by_formula(*ones)
        return ValueSpec(one.dtype, one.dim())

    def check_modes(self, function: Callable | None = None) -> None:
        """Raise if the function switched a mode that operators heed: kernels run under those around the call."""
        now = modes()
        if now != self.modes:
            changed = next(name for name, a, b in zip(MODES, now, self.modes, strict=True) if a != b)
            instead = "split the function there, or change it around the call"
            if function is None:
                raise untraceable(f"a change of {changed} cannot be traced", instead)
            what = f"a change of {changed}, which it leaves behind, cannot be traced"
            raise FusionError(f"fuse: {name_of(function)}: {what}; {instead}")

    def shape(self, ref: Ref) -> torch.Size:
        """Return the shape of a value for the tensors of this call."""
        while len(self.shapes) <= ref.value:
            node = self.path[len(self.shapes) - len(self.tensors)].node
            assert node  # only a root has none
            self.shapes.append(self._shape_of(*node))
        return self.shapes[ref.value]

    def _shape_of(self, operator: Any, inputs: Sequence) -> torch.Size:
        """Return the shape of an operator's value."""
        shapes = [self.shape(x) if type(x) is Ref else x for x in inputs]
        if is_shape_operator(operator):
            return operator.shape(*shapes)
        own = [shape for x, shape in zip(inputs, shapes, strict=True) if type(x) is Ref]
        if is_elementwise(operator):
            return own[0] if all(shape == own[0] for shape in own) else torch.broadcast_shapes(*own)
        values = [
            torch.empty(shape, dtype=self.value_specs[x.value].dtype, device="meta") if type(x) is Ref else x
            for x, shape in zip(inputs, shapes, strict=True)
        ]
        spec = infer(operator.by_formula, tuple(values), {})
        if spec is None:
            raise ValueError(f"{operator.__name__} has no value of these shapes")  # torch says why, about the tensors
        return spec.shape


def _infer(nodes: Sequence[Node], tensors: Sequence[Tensor]) -> list[TensorSpec]:
    """Return what torch would compute from these tensors for every value, but on the CPU."""
    miniatures = Miniatures(tensors, CPU)
    return [miniatures.spec(x) for x in replay(nodes, [miniatures.of(x) for x in tensors])]


def replay(nodes: Sequence[Node], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Compute the values of ``nodes`` from these tensors, by torch's formulas."""
    values = list(tensors)
    with torch.no_grad():
        for operator, inputs in nodes:
            values.append(operator.by_formula(*[values[x.value] if type(x) is Ref else x for x in inputs]))
    return values


def name_of(function: Callable) -> str:
    """Return what errors call ``function``."""
    return getattr(function, "__qualname__", type(function).__name__)
