"""Compute what a trace records, from other tensors: by torch's functions, or by the pack's operators one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from ..ops.call import call
from ..ops.comparison import Predicate
from ..ops.reductions import call_reduction
from .operators import Ref, TraceOperator, is_elementwise


class Node(NamedTuple):
    """One operator applied."""

    operator: Any  # the operator's class
    inputs: tuple  # a Ref for each value of the trace; otherwise what the function wrote there


class Composed(NamedTuple):
    """A run of operators in a trace that compute what one function of torch does: where no kernels do, that does."""

    start: int  # the first value that they compute
    end: int  # the first value after them
    function: Callable  # torch's
    args: tuple  # a Ref for each value of the trace; otherwise what was written there
    kwargs: tuple[tuple[str, Any], ...]  # likewise, by name
    outputs: tuple[Ref | None, ...]  # the value that each of its results is; None for one that the operators leave out
    takes_any_size: bool  # whether it takes smaller tensors, too, as one that is given a shape does not

    def numbered(self, number: Callable[[Ref], Ref]) -> Composed:
        """Return it with its values numbered otherwise."""
        new = [number(x) if type(x) is Ref else x for x in (*self.args, *self.outputs)]
        length = self.end - self.start
        start = number(Ref(self.start)).value
        kwargs = tuple([(name, number(x) if type(x) is Ref else x) for name, x in self.kwargs])
        args, outputs = new[: len(self.args)], new[len(self.args) :]
        end = start + length
        return Composed(start, end, self.function, tuple(args), kwargs, tuple(outputs), self.takes_any_size)


class _Call(NamedTuple):
    """One call of a replay. Positions are those in the table of values and constants."""

    function: Callable[..., Any]
    arguments: list[int]  # the position of each
    results: int | list[int | None]  # the position of its result, or of each in a tuple, None if it is not wanted
    dead: list[int]  # the values that no later call reads


class Replay:
    """The calls that compute what a trace records, in order.

    Each value is let go after its last use: memory that is used again at once is in the cache, and what a process has
    at the end of its heap is given back to the system if it is much.
    """

    def __init__(
        self,
        arity: int,
        nodes: Sequence[Node],
        composed: Sequence[Composed] = (),
        kept: Sequence[int] | None = None,
        is_ours: bool = False,
    ):
        """Make it.

        Args:
            arity: how many tensors it takes.
            nodes: the operators.
            composed: the runs of these that are functions of torch; what is computed inside is None.
            kept: the values that are wanted; all if it is None.
            is_ours: whether the pack's operators compute, else torch's functions.
        """
        count = arity + len(nodes)  # of the values; after them the table has what the function wrote
        constants: list[Any] = []
        last: dict[int, int] = {}  # by value computed, the call that uses it last
        self.calls: list[_Call] = []
        for i, (function, args, results) in enumerate(_calls(arity, nodes, composed, is_ours)):
            positions = []
            for x in args:
                positions.append(x.value if type(x) is Ref else count + len(constants))
                if type(x) is not Ref:
                    constants.append(x)
            new = [results] if isinstance(results, int) else results
            last |= {k: i for k in (*positions, *new) if k is not None and arity <= k < count}
            self.calls.append(_Call(function, positions, results, []))
        for k, i in last.items():
            if kept is not None and k not in kept:
                self.calls[i].dead.append(k)
        self.rest = [None] * len(nodes) + constants

    def __call__(self, tensors: Sequence[Tensor]) -> list[Any]:
        """Return the table of values, computed from these tensors; after them are constants."""
        table = [*tensors, *self.rest]
        for function, arguments, results, dead in self.calls:
            z = function(*[table[k] for k in arguments])
            if type(results) is int:
                table[results] = z
            else:
                for k, value in zip(results, z if isinstance(z, tuple) else (z,), strict=True):  # type: ignore[arg-type]
                    if k is not None:
                        table[k] = value
            for k in dead:
                table[k] = None
        return table


def _calls(arity: int, nodes: Sequence[Node], composed: Sequence[Composed], is_ours: bool) -> Iterator[tuple]:
    """Yield each function that is called, its arguments, and the value or values that it returns."""
    starts = {each.start: each for each in composed if each.end > each.start}
    i = arity
    while i < arity + len(nodes):
        if each := starts.get(i):
            names = [name for name, _ in each.kwargs]
            function = partial(_call_by_name, each.function, names) if names else each.function
            results = [ref and ref.value for ref in each.outputs]
            yield function, (*each.args, *(x for _, x in each.kwargs)), results
            i = each.end
        else:
            operator, inputs = nodes[i - arity]
            yield *(_our_call(operator, inputs) if is_ours else operator.eager_call(inputs)), i
            i += 1


def _call_by_name(function: Callable, names: Sequence[str], *args: Any) -> Any:
    """Call a function with the last arguments by their names."""
    first = len(args) - len(names)
    return function(*args[:first], **dict(zip(names, args[first:], strict=True)))


def _our_call(operator: Any, inputs: Sequence) -> tuple[Callable[..., Tensor], Sequence]:
    """Return what applies an operator, recorded by autograd where that is due, and to what."""
    if issubclass(operator, TraceOperator | Predicate):
        return operator.by_formula, inputs
    if is_elementwise(operator):
        return lambda *args: call(operator, args), inputs
    return partial(call_reduction, operator), inputs
