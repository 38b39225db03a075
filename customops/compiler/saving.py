"""Choose what forward saves for the gradients: by the bytes that backward then reads, and by what it computes again.

Candidates are the results, which are outputs anyway; statistics, which are values of few elements that forward has
reduced, as a mean of each row; and the inputs. Take RMSNorm, ``y = x * r * w`` with ``r = rsqrt(mean(x * x))``: without
r backward goes through each row once more to find it. It costs four bytes a row to save r, and so it is saved.
Softmax's gradient, ``y * (g - sum(g * y))``, can be computed from the result alone, which takes no exponential: so y is
saved, and x is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, combinations
from typing import NamedTuple

from ..triton_kernels.stage import COMPARED
from .axes import NO_AXES, Axes
from .graph import Graph, Input, Op
from .nodes import inputs_of

MAX_CANDIDATES = 8  # of which every subset is tried

# Instructions for an element in float32, on the usual way through a kernel of this formula for sm_90, less those of a
# copy: as `python -m tests.instructions` counts them. All other formulas take about one.
INSTRUCTIONS = {
    "clamp": 8,
    "clamp_max": 3,
    "clamp_min": 3,
    "cos": 83,
    "div": 9,
    "erf": 31,
    "exp": 9,
    "exp2": 4,
    "expm1": 27,
    "finite": 3,
    "log": 25,
    "log1p": 26,
    "log2": 27,
    "logical_and": 8,
    "maximum": 3,
    "minimum": 3,
    "norm_power": 10,
    "pow": 99,
    "reciprocal": 10,
    "rsqrt": 20,
    "same": 4,
    "sigmoid": 16,
    "sign": 3,
    "sin": 83,
    "softplus": 48,
    "sqrt": 10,
    "tanh": 12,
    # the derivatives by the formulas that they are made of
    "abs_dx": 5,
    "clamp_dx": 3,
    "cos_dx": 83,
    "div_dx": 9,
    "div_dy": 20,
    "erf_dx": 11,
    "extremum_dx": 9,
    "log1p_dx": 10,
    "log2_dx": 10,
    "log_dx": 9,
    "mean_dx": 7,
    "norm_power_dx": 25,
    "pow_dx": 101,
    "pow_dy": 28,
    "prod_dx": 16,
    "rsqrt_dx": 3,
    "sin_dx": 83,
    "softplus_dx": 19,
    "sqrt_dx": 10,
}
INSTRUCTIONS_PER_BYTE = 10  # an H100 issues 29e12 a second for threads, while its memory brings 3.0e12 bytes


class Saved(NamedTuple):
    """The values of a graph that forward saves for the gradients, beside inputs."""

    results: tuple[int, ...] = ()  # which are outputs anyway
    statistics: tuple[int, ...] = ()  # which forward writes for that alone


NOTHING_SAVED = Saved()


class ItemSizes(NamedTuple):
    """The bytes of an element of what may be saved."""

    inputs: Sequence[int]  # of each input of the graph
    results: dict[int, int]  # of each value that is a result and may be saved
    statistics: int  # of any statistic


def choose_saved(graph: Graph, back: Graph, itemsizes: ItemSizes, allows_statistics: bool) -> Saved:
    """Return what to save of ``graph`` so that ``back``, the graph of its gradients, costs least.

    Gradients of gradients are computed without the statistics, so the inputs that these depend on are saved as well.
    """
    return _Choice(graph, back, itemsizes, allows_statistics).best()


class _Choice:
    """The candidates of one graph, by their indices in the graph of gradients, and what subsets of them cost."""

    def __init__(self, graph: Graph, back: Graph, itemsizes: ItemSizes, allows_statistics: bool):
        self.graph, self.back = graph, back
        self.targets = [value for value, _ in back.results]
        self.offset = sum(isinstance(node, Input) for node in back.values) - len(itemsizes.inputs)
        self.results = {self.offset + i: n for i, n in itemsizes.results.items()}
        statistics = _statistics(graph) if allows_statistics else ()
        self.statistics = {self.offset + i: itemsizes.statistics for i in statistics if i not in itemsizes.results}
        inputs = {self.offset + i: n for i, n in enumerate(itemsizes.inputs)}
        sizes = inputs | self.statistics | self.results
        # Of each value of ``back``: its bytes, none for cotangents, which are read in any case; and what computing it
        # takes, in instructions.
        self.bytes = [back.count(axes) * sizes.get(i, 0) for i, axes in enumerate(back.axes)]
        self.instructions = [_instructions(back, i) for i in range(len(back.values))]
        self._ancestors_found: dict[frozenset[int], list[int]] = {}

    def best(self) -> Saved:
        """Return the subset that costs least; of those the one that takes the least memory.

        Results are only saved instead of inputs, not with them: that would save more than one operator of torch does.
        """
        subsets = {frozenset(self._read(subset)) for subset in _subsets(self._candidates())}
        most = self._bytes_saved(frozenset())
        subsets = {known for known in subsets if self._bytes_saved(known - self.statistics.keys()) <= most}
        best = min(subsets, key=lambda known: (self._cost(known), self._bytes_saved(known), sorted(known)))
        results = tuple(i - self.offset for i in sorted(best) if i in self.results)
        return Saved(results, tuple(i - self.offset for i in sorted(best) if i in self.statistics))

    def _candidates(self) -> list[int]:
        """Return the values that may be saved: results, then the statistics that are read next, then others."""
        every = {*self.results, *self.statistics} - self._compared()
        reached = every.intersection(self.back.ancestors(self.targets))
        nearest = set(self._read(reached))
        return sorted(reached, key=lambda i: (i in self.statistics, i not in nearest, -i))[:MAX_CANDIDATES]

    def _compared(self) -> set[int]:
        """Return the values that others are computed from which are compared with one another.

        None of these is saved: a kernel that adds in another order, or rounds, would find that what was equal is not.
        """
        ops = [op for i in self.back.ancestors(self.targets) if isinstance(op := self.back.values[i], Op)]
        return set(
            self.back.ancestors(i for op in ops if op.formula in COMPARED for i in op.inputs[COMPARED[op.formula]])
        )

    def _read(self, known: Iterable[int]) -> list[int]:
        """Return the values among ``known`` that are read if all of these are saved."""
        known = frozenset(known)
        return [i for i in self._ancestors(known) if i in known]

    def _ancestors(self, known: frozenset[int]) -> list[int]:
        """Return what the gradients are computed from, not looking past ``known``; it is found once for each set."""
        if known not in self._ancestors_found:
            self._ancestors_found[known] = self.back.ancestors(self.targets, known)
        return self._ancestors_found[known]

    def _cost(self, known: frozenset[int]) -> int:
        """Return what it costs to save and to read these values, and to compute all else, in instructions."""
        written = sum(self.bytes[i] for i in self.statistics.keys() & known)
        ancestors = self._ancestors(known)
        read = sum(self.bytes[i] for i in ancestors if i in known or isinstance(self.back.values[i], Input))
        computed = sum(self.instructions[i] for i in ancestors if i not in known)
        return INSTRUCTIONS_PER_BYTE * (written + read) + computed

    def _bytes_saved(self, known: frozenset[int]) -> int:
        ancestors = self._ancestors(frozenset(self.results.keys() & known))
        inputs = {i for i in ancestors if isinstance(self.back.values[i], Input)}
        return sum(self.bytes[i] for i in inputs | known)


def _instructions(graph: Graph, i: int) -> int:
    """Return the instructions that computing value ``i`` takes."""
    node = graph.values[i]
    if not isinstance(node, Op):
        return 0
    return INSTRUCTIONS.get(node.formula, 1) * graph.count(graph.axes[i] | node.reduced)


def _statistics(graph: Graph) -> Iterator[int]:
    """Yield the values of few elements that a result's kernel has reduced, or computed of what it reduced."""
    domains: list[Axes] = []
    is_reduced: list[bool] = []
    for i, node in enumerate(graph.values):
        inputs, reduced = inputs_of(node), getattr(node, "reduced", NO_AXES)
        domains.append(graph.axes[i].union(reduced, *(domains[j] for j in inputs)))
        is_reduced.append(bool(reduced) or any(is_reduced[j] for j in inputs))
    written = {domains[value] for value, _ in graph.results}
    for i, node in enumerate(graph.values):
        if isinstance(node, Op) and is_reduced[i] and graph.axes[i] < domains[i] and domains[i] in written:
            yield i


def _subsets(values: Sequence[int]) -> Iterator[tuple[int, ...]]:
    return chain.from_iterable(combinations(values, n) for n in range(len(values) + 1))
