"""Partition a graph into stages, each of which one kernel computes, with scratch buffers between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from ..runtime.plans import kernels
from ..triton_kernels.layout import Layout, Strides, TooManyGroups, arrange, dense, gathered, repeated
from ..triton_kernels.stage import KernelOp, Operand, Output, Stage
from ..triton_kernels.tiling import MAX_THREAD_VALUES, holds
from .axes import NO_AXES, Axes, Dims
from .graph import Constant, Graph, Op, Renamed
from .schedule import Reads, best_end, held, in_order

MAX_OPS = 1024  # values that a kernel computes: it takes about a second to compile
MAX_LIVE = 160  # values that a thread holds of each element where it holds no row, fewer if they are doubles

EXTREMA = ("amax", "amin")
COMPARED = {  # which of its values a formula compares, if only later, when an extremum meets the elements that are it
    **dict.fromkeys(EXTREMA, slice(0, 1)),
    "equal": slice(0, 2),
    "maximum_dx": slice(1, 3),
    "maximum_dy": slice(1, 3),
}


class Binding(NamedTuple):
    """Where a value lies: argument ``argument`` of a plan, with the axis and the stride of each dimension."""

    argument: int
    dims: Dims
    strides: Strides


class Spill(NamedTuple):
    """A value that passes from one kernel to another through memory, and why."""

    value: int
    reason: str


class SubPartition(NamedTuple):
    """What kernels of its own have to compute before the rest: ``values``, for a reason, and targets ``done``."""

    values: tuple[int, ...]
    reason: str
    done: frozenset[int] = frozenset()


class Partition:
    """The ``stages`` that compute a graph, in order; what is cut, and the elements of the ``rooms`` that it takes."""

    def __init__(
        self,
        graph: Graph,
        sources: dict[int, Binding],
        numbers: dict[int, int],
        targets: Sequence[tuple[int, Binding]],
        itemsize: int,
        registers: int,
    ):
        """Find the stages that write each value of ``targets`` into its place.

        ``sources`` has the places of the tensors given, ``numbers`` the arguments that numbers are; ``itemsize`` is
        that of the narrowest tensor, and a value takes ``registers`` of a thread. Room follows the other arguments.
        """
        self.graph, self.numbers = graph, numbers
        self.itemsize, self.registers = itemsize, registers
        self.most_live = min(MAX_LIVE, MAX_THREAD_VALUES // registers)
        self._plan(sources, targets)
        compared = self._sums_compared(sources, targets)
        if len(self.stages) > 1 and compared:
            self._plan(sources, targets, compared)

    def _plan(
        self, sources: dict[int, Binding], targets: Sequence[tuple[int, Binding]], first: Sequence[int] = ()
    ) -> None:
        """Make the stages anew, those that compute the values ``first`` before all others."""
        self.sources = dict(sources)
        self.free = len(sources) + len(self.numbers) + len(targets)
        self.stages: list[Stage] = []
        self.cuts: list[Spill] = []
        self.rooms: list[int] = []
        for value in first:
            if value not in self.sources:
                self._cut(SubPartition((value,), "several kernels compare what is computed from it"))
        self._write(targets)

    def _sums_compared(self, sources: dict[int, Binding], targets: Sequence[tuple[int, Binding]]) -> list[int]:
        """The sums from which values are computed that are compared with one another.

        Another kernel may add in another order, and what was equal is equal no longer: all have to read one total. The
        other formulas give the same bits in every kernel, and so does an extremum of the same bits.
        """
        values = self.graph.needed([value for value, _ in targets], sources)
        steps = [step for i in values if i not in sources and isinstance(step := self.graph.values[i], Op)]
        compared = [i for step in steps if step.formula in COMPARED for i in step.reads[COMPARED[step.formula]]]
        needed = {i: self.graph.values[i] for i in self.graph.needed(compared, sources) if i not in sources}
        return [i for i, step in needed.items() if isinstance(step, Op) and step.over and step.formula not in EXTREMA]

    def _write(self, targets: Sequence[tuple[int, Binding]]) -> None:
        """Add the stages that write ``targets``: those computed over the same axes share one."""
        while True:
            self._see_again([value for value, _ in targets])
            together: dict[Axes, list[tuple[int, Binding]]] = {}
            for value, place in targets:
                together.setdefault(self._span(value), []).append((value, place))
            made = [one for group in together.values() for one in self._split(group)]
            part = next((one for one in made if isinstance(one, SubPartition)), None)
            if part is None:
                self.stages += made
                return
            targets = self._cut(part, targets)

    def _see_again(self, values: Sequence[int]) -> None:
        """Find what ``values`` see along other axes in memory, where it has to lie."""
        for i in self.graph.needed(values, self.sources):
            value = self.graph.values[i]
            if isinstance(value, Renamed) and i not in self.sources:
                source = value.reads[0]
                if source not in self.sources:
                    self._cut(SubPartition((source,), "it meets itself along another axis"))
                place, renamed = self.sources[source], dict(zip(value.old, value.new, strict=True))
                self.sources[i] = place._replace(dims=tuple(renamed.get(a) for a in place.dims))

    def _cut(self, part: SubPartition, targets: Sequence[tuple[int, Binding]] = ()) -> list[tuple[int, Binding]]:
        """Compute ``part``; the targets that are left."""
        self.cuts += [Spill(value, part.reason) for value in part.values]
        rooms = [(value, self._room(value)) for value in part.values]
        self._write([*rooms, *(target for target in targets if target[0] in part.done)])
        self.sources.update(rooms)
        return [target for target in targets if target[0] not in part.done]

    def _split(self, targets: Sequence[tuple[int, Binding]]) -> list[Stage | SubPartition]:
        """Kernels for ``targets``: one, or more where they are reduced over more sets of axes than one pass has."""
        try:
            return [self._stage(targets)]
        except TooManyGroups:
            if len(targets) > 1:
                return [*self._split(targets[:-1]), *self._split(targets[-1:])]
            (end,) = (value for value, _ in targets)
            while not self._over(end):  # what is linear in it
                (end,) = self._read(end)
            value = self.graph.values[end].reads[0]
            return [SubPartition((value,), "it is reduced over a part of the axes of a row, and others")]

    def _room(self, value: int) -> Binding:
        self.rooms.append(self.graph.count(self.graph.axes[value]))
        self.free += 1
        return scratch_binding(self.graph, value, self.free - 1)

    def _step(self, value: int) -> Op | None:
        """The step that computes ``value`` here, if one does."""
        step = self.graph.values[value]
        return step if isinstance(step, Op) and value not in self.sources else None

    def _reads(self, value: int) -> Sequence[int]:
        """What ``value`` is computed from here; nothing if it is loaded."""
        return self._read(value) if self._step(value) else ()

    def _is_own(self, value: int) -> bool:
        """Whether the program computes a value, here or before."""
        return isinstance(self.graph.values[value], Op)

    def _is_wide(self, value: int) -> bool:
        """Whether a value differs among elements, so that it takes a register for each."""
        return bool(self.graph.axes[value])

    def _over(self, value: int) -> Axes:
        """The axes that are reduced to ``value`` here."""
        step = self._step(value)
        return step.over if step else NO_AXES

    def _span(self, value: int) -> Axes:
        """The axes of the box that ``value`` is computed over."""
        values = self.graph.needed([value], self.sources)
        return NO_AXES.union(*(self.graph.axes[i] | self._over(i) for i in values))

    def _stage(self, targets: Sequence[tuple[int, Binding]]) -> Stage | SubPartition:
        """One kernel for ``targets``, or what has to be cut first. Raises TooManyGroups where they cannot share one."""
        wanted = [value for value, _ in targets]
        values = self.graph.needed(wanted, self.sources)
        ends = self._ends(values, wanted)
        middle = [i for i in values if self._over(i) and i not in ends.values()]
        row = self._over(middle[0]) if middle else NO_AXES
        for i in middle:
            if self._over(i) != row:
                return SubPartition((i,), "it reduces other axes than the one before it")
        reads = {i: self._reads(i) for i in values}.__getitem__
        most = len(values) if row else self.most_live - len(ends)
        live, fits = (0, []) if row else self._walk(values, wanted, reads, most)
        if row or len(fits) < len(values):
            values = self._in_order(values, wanted, reads)
            live, fits = self._walk(values, wanted, reads, most)
            part = len(fits) < len(values) and self._part(values[: len(fits)], fits, wanted, reads)
            if part:
                return part
        stage = self._describe(values, ends, targets, row)
        if row:
            return self._in_row(stage, values, middle[0])
        return stage._replace(live_values=max(1, live + len(ends)) * self.registers)

    def _in_order(self, values: Sequence[int], targets: Sequence[int], reads: Reads) -> list[int]:
        """Return ``values`` in a kernel's order; it is found once for graphs that differ in sizes alone."""
        key = tuple(targets), frozenset(self.sources)
        order = self.graph.orders.get(key)
        if order is None:
            longest = sorted(targets, key=lambda i: -len(self.graph.needed([i], self.sources)))
            numbers = [i for i in values if isinstance(self.graph.values[i], Constant)]
            order = self.graph.orders[key] = [*numbers, *in_order(longest, reads, self._is_own)]
        return order

    def _walk(self, order: Sequence[int], targets: Sequence[int], reads: Reads, most: int) -> tuple[int, list]:
        """How many values a kernel holds that computes these in order; and what is needed after each that it can."""
        steps, live, later = 0, 0, []
        for i, now in zip(order, held(order, targets, reads, self._is_wide), strict=False):
            steps += self._step(i) is not None
            if now.alive > most or steps > MAX_OPS:
                break
            live = max(live, now.alive)
            later.append(now.later)
        return live, later

    def _part(
        self, order: Sequence[int], later: Sequence[frozenset[int]], targets, reads: Reads
    ) -> SubPartition | None:
        """What a kernel computes that gets no further than ``order``; None where it cannot be a part of it."""
        end = best_end(order, later, targets, reads, self.most_live * 2 // 3)
        if end is None:
            return None
        values, last = end
        why = f"a kernel computes {MAX_OPS} values at most, and holds {self.most_live} of each element"
        return SubPartition(tuple(values), why, frozenset(targets).intersection(order[: last + 1]))

    def _in_row(self, stage: Stage, values: Sequence[int], first: int) -> Stage | SubPartition:
        """A stage that holds a row: what it reads again for every row it holds too or, to hold less, loads again."""
        row = self._over(first)
        strides = (tuple(x.strides for x in xs) for xs in (stage.operands, stage.outputs))
        layout = arrange(stage.shape, *strides, tuple(output.reduced_axes for output in stage.outputs), stage.row_axes)
        for reloads in (False, True):
            stage = stage._replace(reloads=reloads)
            live = self._live(values, row, stage, layout)
            if holds(layout, self.itemsize, live, self.registers):
                return stage._replace(live_values=live * self.registers)
        n = self.graph.count(row)
        return SubPartition((first,), f"registers do not hold {live} values for each of the {n} elements of a row")

    def _ends(self, values: Sequence[int], targets: Sequence[int]) -> dict[int, int]:
        """The targets that are reduced on their way out, and by which step: themselves, or one that they are linear in.

        What is linear can be done to each element as well, before the sum: -mean(x) is mean(-x).
        """
        readers = Counter(j for step in map(self._step, values) if step for j in step.reads)
        readers.update(targets)
        under = {target: self._reduction_under(target, readers) for target in targets}
        return {target: i for target, i in under.items() if i is not None}

    def _reduction_under(self, target: int, readers: Counter[int]) -> int | None:
        i = target
        while readers[i] == 1 and (step := self._step(i)):
            if step.over:
                return i if i == target or self.graph.is_linear(i) else None
            if not self.graph.is_linear(i):
                return None
            (i,) = self._read(i)
        return None

    def _read(self, value: int) -> list[int]:
        """What a step reads but numbers."""
        return [i for i in self.graph.values[value].reads if not isinstance(self.graph.values[i], Constant)]

    def _describe(self, values: Sequence[int], ends: dict[int, int], targets, row: Axes) -> Stage:
        axes = sorted(NO_AXES.union(*(self.graph.axes[i] | self._over(i) for i in values)))
        reduced = {i: self.graph.values[i].reads[0] for i in ends.values()}
        steps = [i for i in values if self._step(i) and i not in reduced]
        constants = {i: self._constant(i) for i in steps}
        reads = {i: self.graph.values[i].reads[: -1 if constants[i] is not None else None] for i in steps}
        used = {j for i in steps for j in reads[i]}
        used |= {*reduced.values(), *(value for value, _ in targets)}
        operands = [i for i in values if not self._step(i) and i in used]
        where = {i: k for k, i in enumerate((*operands, *steps))}
        where |= {i: where[x] for i, x in reduced.items()}
        results = []
        for value, place in targets:
            strides = _over_axes(place, axes)
            if value in ends:
                step = self.graph.values[ends[value]]
                over, count = _positions(step.over, axes), self.graph.count(step.over)
                results.append(Output(where[value], place.argument, strides, step.formula, over, count))
            else:
                results.append(Output(where[value], place.argument, strides))
        return Stage(
            tuple(self.graph.sizes[a] for a in axes),
            tuple(self._operand(i, axes) for i in operands),
            tuple(self._launch_step(i, reads[i], where, constants[i]) for i in steps),
            tuple(results),
            _positions(row, axes),
        )

    def _constant(self, i: int) -> float | None:
        """The number that kernels are compiled for with step i."""
        step = self.graph.values[i]
        compiled = not step.over and kernels().constexpr_parameter(step.formula)
        return self.graph.number(step.reads[-1]) if compiled else None

    def _launch_step(self, i: int, reads: Sequence[int], where: dict[int, int], constant) -> KernelOp:
        step = self.graph.values[i]
        return KernelOp(step.formula, tuple(where[j] for j in reads), constant, bool(step.over))

    def _operand(self, i: int, axes: Sequence[int]) -> Operand:
        value = self.graph.values[i]
        if isinstance(value, Constant):
            return Operand(self.numbers[i], None, "count" if value.over else str(value.number))
        place = self.sources[i]
        return Operand(place.argument, _over_axes(place, axes), getattr(value, "name", f"cut{i}"))

    def _live(self, values: Sequence[int], row: Axes, stage: Stage, layout: Layout) -> int:
        """How many values for each element of a row a program holds at once: what it loads, from the start.

        While it goes through rows it also holds what it gathers of them, and what each of them reads again.
        """
        arguments = {stage.operands[k].argument for k in repeated(layout)}
        wide = {i for i in values if row <= self.graph.axes[i]}
        again = {i for i in wide if i in self.sources and self.sources[i].argument in arguments}
        last = {j: k for k, i in enumerate(values) for j in (i, *self._reads(i))}
        alive = {i for i in wide if not self._step(i)} - (again if stage.reloads else set())
        most = len(alive)
        for k, i in enumerate(values):
            alive |= wide.intersection((i, *self._reads(i))) if self._step(i) else set()
            most = max(most, len(alive))
            alive = {j for j in alive if last[j] > k or (j in again and not stage.reloads)}
        return most + gathered(layout)


def _positions(over: Axes, axes: Sequence[int]) -> frozenset[int]:
    """Where axes are in a box of ``axes``."""
    return frozenset(k for k, a in enumerate(axes) if a in over)


def scratch_binding(graph: Graph, value: int, argument: int) -> Binding:
    """Where ``value`` lies in room of its size, which is this argument: its axes in order."""
    axes = tuple(sorted(graph.axes[value]))
    return Binding(argument, axes, dense([graph.sizes[a] for a in axes], (1,) * len(axes)))


def _over_axes(place: Binding, axes: Sequence[int]) -> Strides:
    """The strides over a box of these axes."""
    by_axis = dict(zip(place.dims, place.strides, strict=True))
    return tuple(by_axis.get(a, 0) for a in axes)
