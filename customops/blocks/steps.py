"""The steps of one pass: the calls of torch's operators that are made for every block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from ..triton_kernels.layout import Strides
from ..triton_kernels.stage import Argument, Output
from .lowering import Number, copy, lower
from .lowering import Ref as FormulaRef
from .passes import Passes, Targets, Total
from .space import Axes, joined, variation

ADDED = {"mean": "sum"}  # the reduction that blocks are added up by, where it is not that of the whole
# By reduction: what makes one of two parts.
JOIN: dict[str, Callable[..., Any]] = {
    "sum": torch.add,
    "prod": torch.mul,
    "amax": torch.maximum,
    "amin": torch.minimum,
}


class Memory(NamedTuple):
    """A leaf that is a tensor of the call, seen over the axes."""

    argument: int  # its position among the arguments
    strides: Strides  # in elements; 0 along an axis along which it does not vary


class Ones(NamedTuple):
    """A leaf that is 1 everywhere."""

    varies: Axes


class Ref(NamedTuple):
    """A value of a pass: a leaf, or what a step computes."""

    is_leaf: bool
    position: int  # among the leaves, or the steps


class Step(NamedTuple):
    """A call that is made for every block."""

    function: Callable[..., Any]  # takes ``args`` and ``out``
    args: tuple  # Refs, and what is the same for every block
    dtype: torch.dtype  # of what it computes
    varies: Axes
    out: Ref | None = None  # the leaf that it is written to; None if it is a temporary
    is_compared: bool = False  # whether all passes need the same bits of it, so that no other step is joined to it


class Pass(NamedTuple):
    """One walk over the blocks of a stage."""

    leaves: list[Any]  # what it reads and writes: of type Memory, Ones, or Total
    steps: list[Step]
    totals: list[int]  # the leaves that it adds to
    finished: list[tuple[int, Memory]]  # the totals among these that are outputs, and where each is then written
    active: frozenset[int]  # the axes that it walks along


def variation_of(value: Ref, leaves: Sequence[Any], steps: Sequence[Step]) -> Axes:
    """Return the axes along which a value of a pass varies."""
    if not value.is_leaf:
        return steps[value.position].varies
    leaf = leaves[value.position]
    return variation(leaf.strides, len(leaf.strides)) if isinstance(leaf, Memory) else leaf.varies


class Dtypes(NamedTuple):
    """The dtypes of a plan."""

    common: torch.dtype  # that values are rounded to as they are loaded
    compute: torch.dtype  # in which they are computed


def build_pass(
    passes: Passes, targets: Targets, numbers: dict[int, Any], arguments: Sequence[Argument | None], dtypes: Dtypes
) -> Pass:
    """Return the pass that computes ``targets``.

    Args:
        passes: those of the stage.
        targets: what it writes and adds up.
        numbers: the arguments that are numbers, by position.
        arguments: what is known of each argument, scratch buffers among them.
        dtypes: those of the plan.
    """
    return _Builder(passes, targets.number, numbers, arguments, dtypes).build(targets)


class _Builder:
    """A pass that is being built."""

    def __init__(self, passes: Passes, number: int, numbers: dict[int, Any], arguments, dtypes: Dtypes):
        self.passes, self.number, self.space = passes, number, passes.space
        self.numbers, self.arguments, self.dtypes = numbers, arguments, dtypes
        self.leaves: list[Any] = []
        self.steps: list[Step] = []
        self.totals: list[int] = []
        self.finished: list[tuple[int, Memory]] = []
        self.known: dict[int, Any] = {}  # what a value of the stage is here: a Ref, or the same for every block

    def build(self, targets: Targets) -> Pass:
        passes, outputs = self.passes, self.passes.stage.outputs
        sources = [passes.inputs[i][0] for i in targets.totals]
        for i in passes.needed([*sources, *(outputs[k].value for k in targets.outputs)], self.number):
            self.known[i] = self._value(i)
        for i, source in zip(targets.totals, sources, strict=True):
            self._add_up(passes.totals[i], self.known[source], self.space.row_axes)
        for k in targets.outputs:
            self._write_output(k, outputs[k])
        varying = [self._varies(Ref(True, k)) for k in range(len(self.leaves))] + [step.varies for step in self.steps]
        active = frozenset(a for a in range(self.space.rank) if any(varies[a] for varies in varying))
        return Pass(self.leaves, self.steps, self.totals, self.finished, active)

    def _value(self, i: int) -> Any:
        """Return a value of the stage, loaded or computed."""
        if self.passes.is_finished(i, self.number):
            return self._leaf(self.passes.totals[i])
        op = self.passes.op(i)
        if op is None:
            return self._load(i)
        args = [self.known[j] for j in op.inputs]
        if op.reduces:
            return self._reduce(op.formula, args[0], self.space.row_axes)
        args += () if op.constant is None else (op.constant,)
        return self._apply(op.formula, args, is_compared=i in self.passes.compared)

    def _load(self, i: int) -> Any:
        """Return an operand, as a number or in the dtype in which values are computed."""
        operand, strides = self.passes.stage.operands[i], self.space.operand_strides[i]
        if strides is None:
            return self.numbers[operand.argument]
        leaf = self._leaf(Memory(operand.argument, strides))
        argument = self.arguments[operand.argument]
        if argument.is_scratch:
            return leaf
        rounded = leaf if argument.dtype == self.dtypes.common else self._copy(leaf, self.dtypes.common)
        return rounded if self.dtypes.common == self.dtypes.compute else self._copy(rounded, self.dtypes.compute)

    def _write_output(self, k: int, z: Output) -> None:
        """Write an output of the stage, or add to its total."""
        memory, reduced = Memory(z.argument, self.space.output_strides[k]), self.space.reduced_axes[k]
        value = self.known[z.value]
        if z.reduction and reduced & self.passes.is_cut:
            varies = variation(memory.strides, self.space.rank)
            total = Total(z.reduction, z.reduced_count, varies, self.dtypes.compute, (True, k))
            self.finished.append((self._add_up(total, value, reduced), memory))
            return
        if z.reduction:
            value = self._reduce(z.reduction, value, reduced)
        self._write(value, self._leaf(memory))

    def _write(self, value: Any, leaf: Ref) -> None:
        """Write a value to a leaf: by the step that computes it, or by a copy."""
        dtype, varies = self.arguments[self.leaves[leaf.position].argument].dtype, self._varies(leaf)
        step = self.steps[value.position] if isinstance(value, Ref) and not value.is_leaf else None
        if step and step.out is None and (step.dtype, step.varies) == (dtype, varies):
            self.steps[value.position] = step._replace(out=leaf)
        else:
            self.steps.append(Step(copy, (value,), dtype, varies, leaf))

    def _add_up(self, total: Total, value: Any, axes: frozenset[int]) -> int:
        """Add what a block has of a total; return the total's position among the leaves."""
        leaf = self._leaf(total)
        self.totals.append(leaf.position)
        name = ADDED.get(total.reduction, total.reduction)
        part = self._reduce(name, value, axes)
        self.steps.append(Step(JOIN[name], (leaf, part), total.dtype, total.varies, leaf))
        return leaf.position

    def _reduce(self, name: str, value: Any, axes: frozenset[int]) -> Any:
        """Return a value reduced over axes.

        A sum, and a product, has it once for each element along those that it does not vary along.
        """
        varies = self._varies(value)
        constant_along = [a for a in axes if not varies[a]]
        if constant_along and name in ("sum", "prod"):
            ones = self._leaf(Ones(tuple(a in constant_along for a in range(self.space.rank))))
            product = joined([varies, self._varies(ones)], self.space.rank)
            value = self._append(Step(torch.mul, (value, ones), self.dtypes.compute, product))
        reduced = tuple(a for a in axes if self._varies(value)[a])
        return self._apply(name, [value], reduced) if reduced else value

    def _apply(self, formula: str, args: Sequence, reduced: tuple[int, ...] = (), is_compared: bool = False) -> Any:
        """Append the steps of a formula; return its value."""
        kinds = tuple(self._varies(x) if isinstance(x, Ref) else Number(x, repr(x)) for x in args)
        lowered = lower(formula, kinds, reduced, self.dtypes.compute)
        values = list(args)
        for call in lowered.calls:
            inputs = tuple(values[x.value] if isinstance(x, FormulaRef) else x for x in call.args)
            varies = call.varies or (False,) * self.space.rank
            values.append(self._append(Step(call.function, inputs, call.dtype, varies, is_compared=is_compared)))
        return values[lowered.result.value] if isinstance(lowered.result, FormulaRef) else lowered.result

    def _copy(self, value: Any, dtype: torch.dtype) -> Ref:
        return self._append(Step(copy, (value,), dtype, self._varies(value)))

    def _append(self, step: Step) -> Ref:
        self.steps.append(step)
        return Ref(False, len(self.steps) - 1)

    def _leaf(self, leaf: Any) -> Ref:
        if leaf not in self.leaves:
            self.leaves.append(leaf)
        return Ref(True, self.leaves.index(leaf))

    def _varies(self, value: Any) -> Axes:
        """Return the axes along which a value varies."""
        if not isinstance(value, Ref):
            return (False,) * self.space.rank
        return variation_of(value, self.leaves, self.steps)
