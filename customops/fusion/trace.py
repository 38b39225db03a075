"""Run a function on stand-ins for tensors, and record the operators that it applies."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._compat import version_of, without_modes
from ..ops.call import tracing_hook
from ..ops.comparison import Predicate
from ..ops.function import CustomFunction
from ..runtime.paths import CLASSES, MODES, is_intercepted, modes
from ..runtime.plans import MAX_PLANS
from ..runtime.specs import CPU, Miniatures, TensorSpec, broadcast_shapes, infer
from . import spelling
from .cache_key import BY_REPR, BY_VALUE, NO_KEY
from .constants import is_number, key_of
from .errors import FusionError, Place, name_of, place, run, untraceable
from .operators import Cast, Ref, TraceOperator, is_elementwise
from .proxy import Traced
from .replay import Composed, Node, Replay
from .shapes import is_shape_operator

EXACT = dict.fromkeys((torch.uint8, torch.int8, torch.int16), torch.float32)  # the floats that integers are exact in


class ValueSpec(NamedTuple):
    """The facts about a value that hold whatever its shape."""

    dtype: torch.dtype
    ndim: int


class Lifted(NamedTuple):
    """A tensor that is no argument, and that an operator met: a parameter, for example."""

    tensor: Tensor
    version: int | None  # how often it was written when it was met; None if torch does not count


class Trace:
    """A record of what a function does to tensors: operators in order, and which of their values it returns.

    Values are numbered: first the tensors, those that are arguments and then those that were lifted, as they were met;
    after these one value for each node.
    """

    def __init__(
        self,
        tracing: Tracing,
        outputs: tuple[Ref, ...],
        output_order: tuple[int, ...],
        output_type: type | None,
        composed: tuple[Composed, ...],
    ):
        self.lifted = len(tracing.lifted)  # how many tensors are no arguments
        self.arity = len(tracing.tensors) + self.lifted  # how many tensors there are
        self.nodes = tuple(tracing.nodes())  # in the order in which they were applied
        self.places = [branch.place for branch in tracing.path]  # of each, the line that applied it first
        self.dtypes = [spec.dtype for spec in tracing.specs()]  # of each value, under the modes that there were
        self.device = tracing.device  # of all values
        self.outputs = tuple(map(tracing.number, outputs))  # the values that are returned, each once
        self.output_order = output_order  # for each value returned, its position in ``outputs``
        self.output_type = output_type  # tuple or list if the function returned one; None for a single value
        # The runs of ``nodes`` that are functions of torch, in order.
        self.composed = tuple([each.numbered(tracing.number) for each in composed])
        self.graphs: dict[tuple, Any] = {}  # a cache of build.py
        self.is_unread = self._find_unread()  # of each node
        views = [(*x, unread) for x, unread in zip(self.nodes, self.is_unread, strict=True) if is_shape_operator(x[0])]
        self.has_views = bool(views)  # whether operators move elements
        # Whether one that is read has no elements, whatever the tensors are.
        self.has_empty_views = any(operator.is_empty(*inputs) for operator, inputs, unread in views if not unread)
        self._replay = Replay(self.arity, self.nodes, self.composed, [ref.value for ref in self.outputs])
        self.is_dense_if_inputs_are = False  # whether results are known to be contiguous where inputs are

    def replay(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Compute the results from these tensors, each once, by torch's operators, which torch's autograd records."""
        values = self._replay(tensors)
        return [values[ref.value] for ref in self.outputs]

    def infer(self, tensors: Sequence[Tensor]) -> list[TensorSpec]:
        """Return what torch would compute from these tensors for every value, but on the CPU."""
        return _infer(self.nodes, tensors, [each for each in self.composed if each.takes_any_size])

    def apply(self, tensors: Sequence[Tensor]) -> Any:
        """Return what the function returns for these tensors, by the pack's operators, one by one."""
        kept = [ref.value for ref in self.outputs]
        values = Replay(self.arity, self.nodes, self.composed, kept, is_ours=True)(tensors)
        return self.pack([values[ref.value] for ref in self.outputs])

    def source(self, value: int) -> int:
        """Return the value that ``value`` is, or may share memory with."""
        while value >= self.arity and getattr(self.nodes[value - self.arity].operator, "may_alias", False):
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
        """Return the dtype in which each operator computes that computes: that of its value, of a mask its inputs'."""
        dtypes = []
        for dtype, (operator, inputs) in zip(self.dtypes[self.arity :], self.nodes, strict=True):
            if getattr(operator, "may_alias", False):
                continue
            if dtype != torch.bool:
                dtypes.append(dtype)
                continue
            sources = [self.dtypes[x.value] for x in inputs if type(x) is Ref]
            dtypes += [EXACT.get(source, source) for source in sources if source != torch.bool]
        return dtypes

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
        self.node = node  # the operator that made it; None where it is a tensor given or lifted
        self.spec = spec  # what is known of that value; None at a root
        self.place = place  # the line that applied that operator first; None at a root
        self.next: dict[tuple, Branch] = {}  # by operator and the keys of its inputs, or by a lifted tensor's structure
        self.traces: dict[tuple, Trace] = {}  # those that end here, by what was returned


class Traces:
    """All that a function was seen to do: a tree of branches for each structure of its tensors, under each mode."""

    def __init__(self):
        self._roots: dict[tuple, Branch] = {}
        self.size = 0  # branches in all trees

    def trace(
        self,
        function: Callable,
        args: Sequence,
        kwargs: dict[str, Any],
        tensors: Sequence[Tensor],
        is_known_by_key: bool,
    ) -> tuple[Trace, Sequence[Tensor]]:
        """Trace ``function`` on ``tensors``, which stand in ``args`` and ``kwargs``, in order.

        If a call ``is_known_by_key``, without running the function, tensors of one number that it makes are numbers of
        the trace; else they are lifted as all others are, so that no trace is made for each number. Returns the trace,
        and the tensors that it is of: these, and those that were lifted. Raises TypeError, naming the line, where the
        function does what cannot be traced.
        """
        if self.size >= MAX_PLANS:
            self._roots.clear()
            self.size = 0
        now = modes()
        structure = now, *[_structure(x) for x in tensors]
        root = self._roots.get(structure)
        if root is None:
            root = self._roots[structure] = Branch(Ref(len(tensors) - 1))
        tracing = Tracing(root, tensors, now, is_known_by_key)
        trace = tracing.run(function, args, kwargs)
        self.size += tracing.grown
        return trace, [*tensors, *[x.tensor for x in tracing.lifted]] if tracing.lifted else tensors


def _structure(x: Tensor) -> tuple:
    """Return what a trace depends on of a tensor."""
    return x.dtype, x.device, *[n == 1 for n in x.shape]


def _is_tensor(x: Any) -> bool:
    """Return whether ``x`` is a tensor, and no stand-in for one."""
    return type(x) is not Traced and isinstance(x, Tensor)


class Tracing:
    """One run of a function on stand-ins for tensors, along the branches from a root.

    Values are numbered as in a trace, but that tensors are lifted while there are nodes: they count down from -1, and
    :meth:`number` tells the number in the trace.
    """

    def __init__(self, root: Branch, tensors: Sequence[Tensor], now: tuple, is_known_by_key: bool):
        self.branch = root  # the point reached
        self.is_known_by_key = is_known_by_key  # whether the next call like this one may not run the function
        self.tensors = tensors  # the arguments
        self.lifted: list[Lifted] = []  # the tensors that are none
        self._numbers: dict[int, int] | None = None  # of all these, by identity, once one is lifted
        self.modes = now  # those around the call
        self.device = tensors[0].device
        self.value_specs = {i: ValueSpec(x.dtype, x.dim()) for i, x in enumerate(tensors)}  # of each value so far
        self.path: list[Branch] = []  # the branches since the root, of operators
        self._shapes: list[torch.Size] = []  # of the values of the first operators: those that were asked for so far
        self.composed: list[Composed] = []  # the functions of torch so far that operators compute
        self.grown = 0  # how many branches and traces were new

    call = staticmethod(spelling.call)
    attribute = staticmethod(spelling.attribute)

    def run(self, function: Callable, args: Sequence, kwargs: dict[str, Any]) -> Trace:
        """Return what ``function`` does."""
        stand_ins = (Traced(self, Ref(i)) for i in range(len(self.tensors)))
        args = [next(stand_ins) if isinstance(x, Tensor) else x for x in args]
        kwargs = {name: next(stand_ins) if isinstance(x, Tensor) else x for name, x in kwargs.items()}
        returned = run(function, args, kwargs)
        self.check_modes(function)
        output_type = type(returned) if type(returned) in (tuple, list) else None
        results = tuple(returned) if output_type else (returned,)
        refs = [self._returned(z, function) for z in results or [returned]]
        if self.lifted:
            self._check_written(function)
        outputs = tuple(dict.fromkeys(refs))
        key = outputs, tuple([outputs.index(ref) for ref in refs]), output_type, tuple(self.composed)
        trace = self.branch.traces.get(key)
        if trace is None:
            trace = self.branch.traces[key] = Trace(self, *key)
            self.grown += 1
        return trace

    def _returned(self, z: Any, function: Callable) -> Ref:
        """Return the value that ``function`` returned as ``z``; raise if it is none of this run."""
        if type(z) is Traced and z._tracing is self:
            return z.ref
        if _is_tensor(z):
            return self.lift(z).ref
        got = "a value of another call" if type(z) is Traced else repr(z)
        raise FusionError(f"fuse: {name_of(function)}: expected a tensor or a tuple of them to be returned, got {got}")

    def _check_written(self, function: Callable) -> None:
        """Raise if the function wrote to a tensor that an operator had read: kernels read it only now."""
        for x in self.lifted:
            if version_of(x.tensor) != x.version:
                raise FusionError(
                    f"fuse: {name_of(function)}: writing to a tensor after an operator read it cannot be traced; write "
                    "before the operator reads it, or outside the function"
                )

    def lift(self, x: Tensor) -> Traced:
        """Return the stand-in for a tensor that an operator met: an argument, one met before, or one more input.

        Its values are read when the function has ended, so they may be others at each call. One tensor is one input.
        """
        if self._numbers is None:
            self._numbers = {id(x): i for i, x in reversed([*enumerate(self.tensors)])}
        number = self._numbers.get(id(x))
        if number is None:
            if x.is_nested:
                raise untraceable("a nested tensor that is no argument cannot be traced", "make it an argument")
            number = self._numbers[id(x)] = ~len(self.lifted)
            self.lifted.append(Lifted(x, version_of(x)))
            self._go_along(x, Ref(number))
        return Traced(self, Ref(number))

    def _go_along(self, x: Tensor, ref: Ref) -> None:
        """Take the branch of a tensor that is lifted, as what the function does next may depend on its structure."""
        key = _structure(x)
        if key not in self.branch.next:
            self.branch.next[key] = Branch(ref, None, ValueSpec(x.dtype, x.dim()))
            self.grown += 1
        self.branch = self.branch.next[key]
        self.value_specs[ref.value] = self.branch.spec  # type: ignore[assignment]  # only a root has none

    def number(self, ref: Ref) -> Ref:
        """Return a value as it is numbered in a trace: arguments, lifted tensors, nodes."""
        arguments = len(self.tensors)
        if ref.value < 0:
            return Ref(arguments + ~ref.value)
        return ref if ref.value < arguments else Ref(ref.value + len(self.lifted))

    def nodes(self) -> list[Any]:
        """Return the operators applied so far, their inputs numbered as in a trace."""
        nodes: list[Any] = [branch.node for branch in self.path]
        if not self.lifted:
            return nodes
        return [Node(x.operator, tuple([self.number(i) if type(i) is Ref else i for i in x.inputs])) for x in nodes]

    def specs(self) -> list[ValueSpec]:
        """Return the facts about each value, in the order of a trace."""
        return [self.value_specs[i] for i in sorted(self.value_specs, key=lambda i: self.number(Ref(i)))]

    def apply(self, operator: Any, inputs: Sequence) -> Traced:
        """Apply ``operator`` to stand-ins and numbers, along a branch; torch refuses what it would."""
        if modes() != self.modes:
            self.check_modes()
        if len(inputs) > 1 and type(inputs[1]) is torch.dtype and operator is not Cast:
            inputs = self._cast_first(*inputs)
        key_parts = [operator]
        for x in inputs:
            kind = type(x)
            if kind is Traced:
                key_parts.append(x.ref if x._tracing is self else x)
            elif kind in BY_VALUE:
                key_parts += kind, x
            elif kind in BY_REPR:
                key_parts += kind, repr(x)
            elif kind in CLASSES and self.is_known_by_key and is_number(x):
                key_parts += key_of(x)
            elif isinstance(x, Tensor):
                return self.apply(operator, [self.lift(x) if _is_tensor(x) else x for x in inputs])
            else:
                key_parts += kind, NO_KEY
        key = tuple(key_parts)
        branch = self.branch.next.get(key)
        if branch is None:
            branch = self._grow(operator, inputs, key)
        self.branch = branch
        self.path.append(branch)
        self.value_specs[branch.ref.value] = branch.spec  # type: ignore[assignment]  # only a root has none
        return Traced(self, branch.ref)

    def _cast_first(self, x: Traced, dtype: torch.dtype, *dim) -> Sequence:
        """Return the inputs of a reduction of ``x`` in this dtype, x cast to it, unless it computes in integers."""
        if not (dtype.is_floating_point or dtype.is_complex):
            return x, dtype, *dim
        return x.to(dtype), None, *dim

    def compose(
        self, body: Callable, function: Callable, of_one: Callable, args: Sequence, kwargs: dict[str, Any]
    ) -> Any:
        """Run ``body`` on stand-ins: a composition of operators that computes what ``function`` of torch does.

        Torch refuses what it would, asked by ``of_one`` of single elements. Raises FusionError where the operators
        return another dtype, as under autocast or of complex numbers.
        """
        args = [self.lift(x) if _is_tensor(x) else x for x in args]
        kwargs = {name: self.lift(x) if _is_tensor(x) else x for name, x in kwargs.items()}
        wanted = self._ask(of_one, args, kwargs)
        start = len(self.tensors) + len(self.path)
        returned = self._compute(body, function, args, kwargs)
        results = returned if isinstance(returned, tuple) else (returned,)
        for z, want in zip(results, wanted, strict=True):
            if type(z) is Traced and z.dtype != want.dtype:
                what = f"{function.__name__} is {want.dtype} by torch, and {z.dtype} by operators"
                raise untraceable(what, "call it outside the function")
        given = [x.ref if type(x) is Traced else x for x in args]
        named = [(name, x.ref if type(x) is Traced else x) for name, x in kwargs.items()]
        outputs = tuple([z.ref if type(z) is Traced else None for z in results])
        self.composed = [each for each in self.composed if each.end <= start]  # what it is made of is part of it
        end = len(self.tensors) + len(self.path)
        is_general = of_one is function
        self.composed.append(Composed(start, end, function, tuple(given), tuple(named), outputs, is_general))
        return returned

    def _compute(self, body: Callable, function: Callable, args: Sequence, kwargs: dict[str, Any]) -> Any:
        """Return what ``body`` returns, which may take floats alone."""
        dtypes = {x.dtype for x in (*args, *kwargs.values()) if type(x) is Traced}
        try:
            return body(*args, **kwargs)
        except Exception as error:
            if isinstance(error, FusionError) or all(dtype.is_floating_point for dtype in dtypes):
                raise
        raise untraceable(f"{function.__name__} of {dtypes.pop()} cannot be traced", "call it outside the function")

    def _ask(self, function: Callable, args: Sequence, kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
        """Return what torch's function makes of single elements."""
        with torch.no_grad(), without_modes() if is_intercepted() else nullcontext(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ones = {name: self._one_or_index(x) for name, x in kwargs.items()}
            results = function(*map(self._one_or_index, args), **ones)
        return results if isinstance(results, tuple) else (results,)

    def _one(self, x: Any) -> Any:
        """Return a tensor of one element for a stand-in, and anything else as it is."""
        if type(x) is not Traced:
            return x
        spec = self.value_specs[x.ref.value]
        return torch.ones([1] * spec.ndim, dtype=spec.dtype, device=self.device)

    def _one_or_index(self, x: Any) -> Any:
        """Return the same, but 0 for an integer: the only index along a dimension of one element."""
        one = self._one(x)
        return torch.zeros_like(one) if type(x) is Traced and is_index(one) else one

    def _grow(self, operator: Any, inputs: Sequence, key: tuple) -> Branch:
        """Return a new branch; it is forgotten after this run if an input has no key."""
        self._refuse(operator, inputs)
        node = Node(operator, tuple(map(_recorded, inputs)))
        branch = Branch(Ref(len(self.tensors) + len(self.path)), node, self._spec_of_result(operator, inputs), place())
        if NO_KEY in key:
            return branch
        self.grown += 1
        return self.branch.next.setdefault(key, branch)

    def _refuse(self, operator: Any, inputs: Sequence) -> None:
        """Raise if this operator, or an input, cannot be part of a trace."""
        for k, x in enumerate(inputs):
            if not isinstance(x, Tensor):
                tracing_hook((x,))  # what stands for something else that is not known says so
                continue
            if type(x) is not Traced:
                continue
            if x._tracing is not self:
                raise untraceable("a value of another call cannot be used", "compute it again, or make it an argument")
            if k >= getattr(operator, "tensors", 2) and not is_shape_operator(operator):
                raise untraceable(
                    "a tensor cannot be traced where torch expects a number", "pass a number, or multiply by the tensor"
                )
        if not issubclass(operator, TraceOperator | CustomFunction | Predicate):
            name = operator.operator.formula.__name__.removesuffix("_number")
            raise untraceable("an in-place operator cannot be traced", f"use customops.{name}")

    def _spec_of_result(self, operator: Any, inputs: Sequence) -> ValueSpec:
        """Ask torch what it makes of single elements, on their device, unseen by modes that see calls."""
        if is_shape_operator(operator):
            values = [x.ref for x in inputs if type(x) is Traced]
            shape = self._shape_of(operator, [x.ref if type(x) is Traced else x for x in inputs])
            return ValueSpec(reduce(torch.promote_types, [self.value_specs[x.value].dtype for x in values]), len(shape))
        with torch.no_grad(), without_modes() if is_intercepted() else nullcontext():
            one = operator.by_formula(*map(self._one, inputs))
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
        if ref.value < 0:
            return self.lifted[~ref.value].tensor.shape
        if ref.value < len(self.tensors):
            return self.tensors[ref.value].shape
        with without_modes() if is_intercepted() else nullcontext():
            while len(self._shapes) <= ref.value - len(self.tensors):
                node = self.path[len(self._shapes)].node
                assert node  # only a root has none
                self._shapes.append(self._shape_of(*node))
        return self._shapes[ref.value - len(self.tensors)]

    def _shape_of(self, operator: Any, inputs: Sequence) -> torch.Size:
        """Return the shape of an operator's value."""
        shapes = [self.shape(x) if type(x) is Ref else x for x in inputs]
        if is_shape_operator(operator):
            return operator.shape(*shapes)
        own = [shape for x, shape in zip(inputs, shapes, strict=True) if type(x) is Ref]
        if is_elementwise(operator):
            return own[0] if all(shape == own[0] for shape in own) else broadcast_shapes(*own)
        values = [
            torch.empty(shape, dtype=self.value_specs[x.value].dtype, device="meta") if type(x) is Ref else x
            for x, shape in zip(inputs, shapes, strict=True)
        ]
        spec = infer(operator.by_formula, tuple(values), {})
        if spec is None:
            raise ValueError(f"{operator.__name__} has no value of these shapes")  # torch says why, about the tensors
        return spec.shape


def _recorded(x: Any) -> Any:
    """Return what a node has of an input: of a tensor that is read as a number a copy, as that may change."""
    if type(x) is Traced:
        return x.ref
    return x.detach().clone() if isinstance(x, Tensor) else x


def _infer(nodes: Sequence[Node], tensors: Sequence[Tensor], composed: Sequence[Composed]) -> list[Any]:
    """Return what torch would compute from these tensors for every value, but on the CPU.

    It is None of what is computed inside a function of torch.
    """
    miniatures = Miniatures(tensors, CPU)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's functions warn where their results are computed
        small = [miniatures.of(x, 0 if is_index(x) else 1) for x in tensors]
        values = Replay(len(tensors), nodes, composed)(small)
    return [None if x is None else miniatures.spec(x) for x in values[: len(tensors) + len(nodes)]]


def is_index(x: Tensor) -> bool:
    """Return whether a tensor may have indices, which have to be in range: 0 is."""
    return not (x.is_floating_point() or x.is_complex())
