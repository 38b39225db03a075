"""Partition a graph into stages, each of which one kernel computes, with scratch buffers between them.

Softmax is one stage: a program has a whole row, and reduces along it twice. A reduction along the columns of what was
reduced along rows makes another stage. The first one spills: it writes its value to a scratch buffer, which later ones
read. What needs no reduction is computed again where it is read. For x divided by its rows' sums, then its columns'::

    stage 1   reads x         sum(x) over a row                   writes scratch 0
    stage 2   reads x, 0      v = div(x, sum), div(v, sum(v))     writes the result

A stage that reduces is two kernels where programs share a sum: one leaves partial sums, another adds them up. A sum
over a segment of each row and over other axes takes another stage after that of the rows (see ``segments.py``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from ..triton_kernels.layout import TooManyGroups, arrange, in_order
from ..triton_kernels.row_tiling import MAX_ROW_LENGTH
from ..triton_kernels.stage import COMPARED, EXTREMA, Stage
from ..triton_kernels.tiling import MAX_THREAD_VALUES
from .axes import NO_AXES, Axes
from .axis_sharing import shareable_axes
from .graph import Constant, Graph, Op, Renamed, SegmentSums
from .schedule import InputsOf, best_spill_point, kernel_order, live_values
from .segments import by_segments
from .stages import Binding, Bound, IsCompiledIn, axes_of, describe_stage, scratch_binding

MAX_OPS = 1024  # values that a kernel computes: it takes about a second to compile
MAX_LIVE = 160  # values that a thread holds of each element where it holds no row, fewer if they are doubles


class Spill(NamedTuple):
    """A value that passes from one kernel to another through memory."""

    value: int  # its index in the graph; of sums of segments, that of a sum that is made of them
    reason: str  # why one kernel cannot compute both sides, in words for users
    elements: int  # of the scratch buffer


class Partition(NamedTuple):
    """A graph as stages."""

    stages: tuple[Stage, ...]  # in the order in which they have to run
    spills: tuple[Spill, ...]  # the values that pass through memory, in the order of their scratch buffers
    scratch_sizes: list[int]  # the number of elements of each scratch buffer; they follow the plan's other arguments


class SubPartition(NamedTuple):
    """The part of a graph that has to be computed before the rest, by kernels of its own."""

    values: tuple[int, ...]  # the values that it spills
    reason: str  # why, in words for users
    finished: frozenset[int] = frozenset()  # the values among the outputs that it computes, too
    instead: Mapping[int, int] = MappingProxyType({})  # of outputs: the equal sum of sums of segments


def partition(
    graph: Graph,
    inputs: dict[int, Binding],
    numbers: dict[int, int],
    outputs: Sequence[Bound],
    registers: int,
    is_compiled_in: IsCompiledIn,
    same_bits: bool = True,
    sums_segments: bool = False,
) -> Partition:
    """Return stages that compute and write each value of ``outputs``.

    Args:
        graph: its results do not matter, but ``outputs`` do.
        inputs: where each input lies in memory.
        numbers: for each constant that is read, its position among the arguments of the plan.
        outputs: values, and where each is to be written. Scratch buffers follow these arguments.
        registers: how many a value takes in a thread, of 4 bytes each.
        is_compiled_in: as of :func:`describe_stage`.
        same_bits: whether elementwise formulas give the same bits in every stage.
        sums_segments: whether a stage that holds rows adds up segments of them.
    """
    facts = numbers, registers, is_compiled_in, sums_segments
    found = _Partitioner(graph, *facts).partition(inputs, outputs, same_bits)
    if len(found.stages) == 1:
        return found
    bindings = [*inputs.values(), *(binding for _, binding in outputs)]
    names = shareable_axes(graph, graph.ancestors([value for value, _ in outputs], inputs), bindings)
    if not names:
        return found
    inputs = {i: binding.renamed(names) for i, binding in inputs.items()}
    outputs = [(value, binding.renamed(names)) for value, binding in outputs]
    shared = _Partitioner(graph.renamed(names), *facts).partition(inputs, outputs, same_bits)
    return shared if len(shared.stages) < len(found.stages) else found


class _Partitioner:
    """Makes the stages of one graph, and keeps what is found so far."""

    def __init__(
        self, graph: Graph, numbers: dict[int, int], registers: int, is_compiled_in: IsCompiledIn, sums_segments: bool
    ):
        self.graph, self.numbers, self.is_compiled_in = graph, numbers, is_compiled_in
        self.sums_segments = sums_segments  # whether a stage that holds rows adds up segments of them
        self.registers = registers  # how many a value takes in a thread, of 4 bytes each
        self.max_live = min(MAX_LIVE, MAX_THREAD_VALUES // registers)  # values of each element, in a thread

    def partition(self, inputs: dict[int, Binding], outputs: Sequence[Bound], same_bits: bool) -> Partition:
        """Return the stages that compute and write ``outputs``."""
        self.run(inputs, outputs)
        compared = self.compared_sums(inputs, outputs) if same_bits else self.compared_values(inputs, outputs)
        if len(self.stages) > 1 and compared:
            self.run(inputs, outputs, compared)
        return Partition(tuple(self.stages), tuple(self.spills), self.scratch_sizes)

    def run(self, inputs: dict[int, Binding], outputs: Sequence[Bound], first: Sequence[int] = ()) -> None:
        """Make the stages, forgetting earlier ones; the values ``first`` are spilled before anything else."""
        self.bindings = dict(inputs)  # of all values that lie in memory so far
        self.next_argument = len(inputs) + len(self.numbers) + len(outputs)
        self.stages: list[Stage] = []
        self.spills: list[Spill] = []
        self.scratch_sizes: list[int] = []
        for value in first:
            if value not in self.bindings:
                self._spill(SubPartition((value,), "several kernels compare what is computed from it"))
        self._write(outputs)

    def compared_sums(self, inputs: dict[int, Binding], outputs: Sequence[Bound]) -> list[int]:
        """Return the sums from which values are computed that are compared with one another.

        Another kernel may add in another order, and what was equal is equal no longer: all have to read one total. The
        other formulas give the same bits in every kernel, and so does an extremum of the same bits.
        """
        nodes = {i: self.graph.values[i] for i in self.graph.ancestors(self._compared(inputs, outputs), inputs)}
        return [i for i, op in nodes.items() if i not in inputs and self._is_no_extremum(op) and op.reduced]

    def compared_values(self, inputs: dict[int, Binding], outputs: Sequence[Bound]) -> list[int]:
        """Return the values that are computed and then compared, in order, but for extrema."""
        compared = sorted(self._compared(inputs, outputs))
        return [i for i in compared if i not in inputs and self._is_no_extremum(self.graph.values[i])]

    def _compared(self, inputs: dict[int, Binding], outputs: Sequence[Bound]) -> set[int]:
        values = self.graph.ancestors([value for value, _ in outputs], inputs)
        ops = [op for i in values if i not in inputs and isinstance(op := self.graph.values[i], Op)]
        return {i for op in ops if op.formula in COMPARED for i in op.inputs[COMPARED[op.formula]]}

    def _is_no_extremum(self, node: Any) -> bool:
        return isinstance(node, Op) and node.formula not in EXTREMA

    def _write(self, outputs: Sequence[Bound]) -> None:
        """Add the stages that write ``outputs``: those computed over the same domain share one."""
        while True:
            self._bind_renamed([value for value, _ in outputs])
            self._bind_repeated(outputs)
            by_domain: dict[Axes, list[Bound]] = {}
            for value, binding in outputs:
                by_domain.setdefault(self._domain_of(value, binding), []).append((value, binding))
            kernels_or_sub = [one for group in by_domain.values() for one in self._split(group)]
            sub = next((one for one in kernels_or_sub if isinstance(one, SubPartition)), None)
            if sub is None:
                self.stages += kernels_or_sub
                return
            outputs = self._spill(sub, outputs)

    def _bind_renamed(self, values: Sequence[int]) -> None:
        """Bind the aliases that ``values`` are computed from: what has other axes can only be read from memory."""
        for i in self.graph.ancestors(values, self.bindings):
            node = self.graph.values[i]
            if isinstance(node, Renamed) and i not in self.bindings:
                source = node.inputs[0]
                if source not in self.bindings:
                    self._spill(SubPartition((source,), "it meets itself along another axis"))
                binding, renamed = self.bindings[source], dict(zip(node.old, node.new, strict=True))
                self.bindings[i] = binding._replace(dims=tuple(renamed.get(a) for a in binding.dims))

    def _bind_repeated(self, outputs: Sequence[Bound]) -> None:
        """Bind what is written along more axes than it varies along, if it is reduced: a kernel writes that once."""
        for value, binding in outputs:
            if axes_of(binding) <= self.graph.axes[value] or value in self.bindings:
                continue
            if any(map(self._reduced, self.graph.ancestors([value], self.bindings))):
                self._spill(SubPartition((value,), "it is repeated along another axis"))

    def _spill(self, sub: SubPartition, outputs: Sequence[Bound] = ()) -> list[Bound]:
        """Add the stages of ``sub``, which write its values to scratch buffers. Return the outputs that are left."""
        spilled = [(value, self._scratch(value)) for value in sub.values]
        sizes = self.scratch_sizes[len(self.scratch_sizes) - len(spilled) :]
        names = {self.graph.values[by].inputs[0]: i for i, by in sub.instead.items()}  # of sums of segments
        self.spills += [Spill(names.get(i, i), sub.reason, n) for i, n in zip(sub.values, sizes, strict=True)]
        self._write([*spilled, *(output for output in outputs if output[0] in sub.finished)])
        self.bindings.update(spilled)
        return [(sub.instead.get(i, i), binding) for i, binding in outputs if i not in sub.finished]

    def _scratch(self, value: int) -> Binding:
        binding = self._binding_of(value)
        self.scratch_sizes.append(self.graph.count(self.graph.axes[value]))
        self.next_argument += 1
        return binding

    def _binding_of(self, value: int) -> Binding:
        """Return where a value lies in the next scratch buffer."""
        return scratch_binding(self.graph, value, self.next_argument)

    def _split(self, outputs: Sequence[Bound]) -> list[Stage | SubPartition]:
        """Return a kernel for ``outputs``; several, if they are reduced over more sets of axes than one pass has."""
        try:
            return [self._stage(outputs)]
        except TooManyGroups:
            if sub := self._by_segments(outputs):
                return [sub]
            if len(outputs) > 1:
                together, others = self._with_the_first(outputs)
                return [*self._split(together), *self._split(others)]
            ((value, _),) = outputs
            while not self._reduced(value):  # what is linear in a reduction
                (value,) = self._not_constant(value)
            source = self.graph.values[value].inputs[0]
            return [SubPartition((source,), "it is reduced over a part of the axes of a row, and others")]

    def _by_segments(self, outputs: Sequence[Bound]) -> SubPartition | None:
        """Return the part of ``outputs`` for one kernel of rows, some of which are sums over segments of rows.

        It leaves sums of segments, of which a later kernel computes these outputs. Returns None where it cannot.
        """
        targets = [value for value, _ in outputs]
        values = self.graph.ancestors(targets, self.bindings)
        sums = {i for target, i in self._epilogues(values, targets).items() if target == i}
        rows = {self._reduced(i) for i in values if i not in sums} - {NO_AXES}
        if not self.sums_segments or len(rows) != 1:
            return None
        (row_axes,) = rows
        over_segments = [i for i in targets if i in sums and NO_AXES < self._reduced(i) & row_axes < row_axes]
        others = [output for output in outputs if output[0] not in over_segments]
        row, graph = self._row_of(others), self.graph
        self.graph, instead = by_segments(graph, over_segments, row)
        segments = [*dict.fromkeys(self.graph.values[i].inputs[0] for i in instead.values())]
        together = [*((i, self._binding_of(i)) for i in segments), *others]
        if not segments or self._row_of(together) != row:
            self.graph = graph
            return None
        why = "a sum over a segment of each row, and other axes, is one of sums of segments"
        return SubPartition(tuple(segments), why, frozenset(value for value, _ in others), instead)

    def _row_of(self, outputs: Sequence[Bound]) -> tuple[int, ...]:
        """Return the axes of a row of the kernel of ``outputs``, outermost first; none where it is not one of rows."""
        try:
            stage = self._stage(outputs)
        except TooManyGroups:
            return ()
        if not isinstance(stage, Stage):
            return ()
        axes = sorted(NO_AXES.union(*(self._domain_of(*output) for output in outputs)))
        tensors = [x.strides for x in (*stage.outputs, *stage.operands) if x.strides is not None]
        return tuple(axes[k] for k in in_order(stage.shape, stage.row_axes, tensors))

    def _with_the_first(self, outputs: Sequence[Bound]) -> tuple[list[Bound], list[Bound]]:
        """Return those of ``outputs`` that one kernel can compute with the first of them, and the others."""
        together, others = list(outputs[:1]), []
        for output in outputs[1:]:
            try:
                self._stage([*together, output])
                together.append(output)
            except TooManyGroups:
                others.append(output)
        return together, others

    def _op(self, value: int) -> Op | SegmentSums | None:
        """Return the op that computes ``value``, None if it is loaded from memory."""
        return self.graph.values[value] if self._is_computed(value) and value not in self.bindings else None

    def _inputs(self, value: int) -> Sequence[int]:
        """Return what ``value`` is computed from but numbers; nothing if it is loaded."""
        return self._not_constant(value) if self._op(value) else ()

    def _not_constant(self, value: int) -> list[int]:
        return [i for i in self.graph.values[value].inputs if not isinstance(self.graph.values[i], Constant)]

    def _is_computed(self, value: int) -> bool:
        """Return whether the program computes a value, in this stage or an earlier one."""
        return isinstance(self.graph.values[value], Op | SegmentSums)

    def _varies(self, value: int) -> bool:
        """Return whether a value differs among elements, so that it takes a register for each."""
        return bool(self.graph.axes[value])

    def _reduced(self, value: int) -> Axes:
        """Return the axes over which ``value`` is reduced, if it is computed."""
        op = self._op(value)
        return op.reduced if op else NO_AXES

    def _domain(self, value: int) -> Axes:
        """Return the axes of the iteration space that ``value`` is computed over."""
        values = self.graph.ancestors([value], self.bindings)
        return NO_AXES.union(*(self.graph.axes[i] | self._reduced(i) for i in values))

    def _domain_of(self, value: int, binding: Binding) -> Axes:
        """Return the axes of the iteration space that an output is computed over."""
        op = self._op(value)
        if isinstance(op, SegmentSums):
            return self._domain(op.inputs[0])
        return self._domain(value) | axes_of(binding)

    def _stage(self, outputs: Sequence[Bound]) -> Stage | SubPartition:
        """Return one kernel for ``outputs``, or what has to be spilled first.

        Raises TooManyGroups if they cannot share a kernel.
        """
        targets = [value for value, _ in outputs]
        values = self.graph.ancestors(targets, self.bindings)
        epilogues = self._epilogues(values, targets)
        reductions = [i for i in values if self._reduced(i) and i not in epilogues.values()]
        row_axes = self._reduced(reductions[0]) if reductions else NO_AXES
        for i in reductions:
            if self._reduced(i) != row_axes:
                return self._before_reductions(i, reductions, targets)
        if row_axes:
            if self.graph.count(row_axes) > MAX_ROW_LENGTH:
                why = f"one kernel walks rows of {MAX_ROW_LENGTH} elements at most"
                return SubPartition(tuple(reductions[:1]), why)
            epilogues = {target: i for target, i in epilogues.items() if self._reduced(i) != row_axes}
            return self._row_stage(outputs, values, epilogues, row_axes)
        return self._map_stage(outputs, values, epilogues)

    def _before_reductions(self, i: int, reductions: Sequence[int], targets: Sequence[int]) -> SubPartition:
        """Return what to compute before reduction ``i``, the first over other axes than the row's, is read.

        The same kernel computes those over the same domain and axes, and the targets, that read no such reduction.
        """
        others = {j for j in reductions if self._reduced(j) != self._reduced(reductions[0])}
        like = {j for j in others if self._reduced(j) == self._reduced(i) and self._domain(j) == self._domain(i)}
        spilled = [j for j in like if others.isdisjoint(self.graph.ancestors(self._inputs(j), self.bindings))]
        finished = [j for j in targets if others.isdisjoint(self.graph.ancestors([j], self.bindings))]
        return SubPartition(tuple(sorted(spilled)), "it reduces other axes than the one before it", frozenset(finished))

    def _row_stage(
        self, outputs: Sequence[Bound], values: Sequence[int], epilogues: dict[int, int], row_axes: Axes
    ) -> Stage | SubPartition:
        """Return a kernel each of whose programs has whole rows, to reduce over them."""
        targets = [value for value, _ in outputs]
        inputs_of = {i: self._inputs(i) for i in values}.__getitem__
        values = self._in_order(values, targets, inputs_of)
        _, needed_later = self._measure(values, targets, inputs_of, len(values))
        if len(needed_later) < len(values):
            sub = self._beginning(values[: len(needed_later)], needed_later, targets, inputs_of)
            if sub:
                return sub
        return self._describe(values, epilogues, outputs, row_axes)

    def _map_stage(
        self, outputs: Sequence[Bound], values: Sequence[int], epilogues: dict[int, int]
    ) -> Stage | SubPartition:
        """Return a kernel that reduces nothing, but on the way out."""
        targets = [value for value, _ in outputs]
        inputs_of = {i: self._inputs(i) for i in values}.__getitem__
        most = self.max_live - len(epilogues)
        live, needed_later = self._measure(values, targets, inputs_of, most)
        if len(needed_later) < len(values):
            values = self._in_order(values, targets, inputs_of)
            live, needed_later = self._measure(values, targets, inputs_of, most)
            if len(needed_later) < len(values):
                sub = self._beginning(values[: len(needed_later)], needed_later, targets, inputs_of)
                if sub:
                    return sub
        stage = self._describe(values, epilogues, outputs, NO_AXES)
        return stage._replace(live_values=max(1, live + len(epilogues)) * self.registers)

    def _in_order(self, values: Sequence[int], targets: Sequence[int], inputs_of: InputsOf) -> list[int]:
        """Return ``values`` in a kernel's order; it is found once for graphs that differ in sizes alone."""
        key = tuple(targets), frozenset(self.bindings)
        order = self.graph.orders.get(key)
        if order is None:
            longest = sorted(targets, key=lambda i: -len(self.graph.ancestors([i], self.bindings)))
            numbers = [i for i in values if isinstance(self.graph.values[i], Constant)]
            order = self.graph.orders[key] = [*numbers, *kernel_order(longest, inputs_of, self._is_computed)]
        return order

    def _measure(
        self, order: Sequence[int], targets: Sequence[int], inputs_of: InputsOf, most: int
    ) -> tuple[int, list[frozenset[int]]]:
        """Measure how far a kernel gets that computes values in this order, and holds ``most`` of each element.

        Returns how many it holds at once, and what is needed later after each value that it gets to.
        """
        ops, live = 0, 0
        needed_later: list[frozenset[int]] = []
        for i, now in zip(order, live_values(order, targets, inputs_of, self._varies), strict=False):
            ops += self._op(i) is not None
            if now.values > most or ops > MAX_OPS:
                break
            live = max(live, now.values)
            needed_later.append(now.needed_later)
        return live, needed_later

    def _beginning(
        self, order: Sequence[int], needed_later: Sequence[frozenset[int]], targets, inputs_of: InputsOf
    ) -> SubPartition | None:
        """Return what a kernel should compute that gets no further than ``order``, None if it can stop nowhere."""
        point = best_spill_point(order, needed_later, targets, inputs_of, self.max_live * 2 // 3)
        if point is None:
            return None
        why = f"a kernel computes {MAX_OPS} values at most, and holds {self.max_live} of each element"
        finished = frozenset(targets).intersection(order[: point.last + 1])
        return SubPartition(tuple(point.spilled), why, finished)

    def _epilogues(self, values: Sequence[int], targets: Sequence[int]) -> dict[int, int]:
        """Return the targets that are reduced on their way out, and by which op.

        The op is the target, or one that it is linear in. What is linear can be done to each element as well, before
        the sum: -mean(x) is mean(-x).
        """
        readers = Counter(j for op in map(self._op, values) if op for j in op.inputs)
        readers.update(targets)
        reductions = {target: self._reduction_under(target, readers) for target in targets}
        return {target: i for target, i in reductions.items() if i is not None}

    def _reduction_under(self, target: int, readers: Counter[int]) -> int | None:
        i = target
        while readers[i] == 1 and (op := self._op(i)):
            if op.reduced:
                return i if i == target or self.graph.is_linear(i) else None
            if not self.graph.is_linear(i):
                return None
            (i,) = self._not_constant(i)
        return None

    def _describe(
        self, values: Sequence[int], epilogues: dict[int, int], outputs: Sequence[Bound], row_axes: Axes
    ) -> Stage:
        """Return the stage that computes ``values``. Raises TooManyGroups if it has not the groups for ``outputs``."""
        stage = describe_stage(
            self.graph,
            self.bindings,
            self.numbers,
            values,
            epilogues,
            outputs,
            row_axes,
            self.is_compiled_in,
        )
        strides = (tuple(x.strides for x in xs) for xs in (stage.operands, stage.outputs))
        arrange(stage.shape, *strides, tuple(output.reduced_axes for output in stage.outputs), stage.row_axes)
        return stage
