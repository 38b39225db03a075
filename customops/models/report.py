"""What of a model's modules is fused, what each launches and moves, before and after, and what was left, and why."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from ..fusion.decorator import Fused
from ..fusion.explain import examine
from ..fusion.findings import NotFused
from ..fusion.unfused import Cost
from ..runtime.memory import unbacked
from ..tools.table import Table
from .probe import Probe, mapped


class Costs(NamedTuple):
    """The cost of a call: forward, and backward if there is one."""

    launches: tuple[int, ...]
    bytes_moved: tuple[int | None, ...]

    @classmethod
    def of(cls, costs: Sequence[Cost]) -> Costs:
        """Return the launches and bytes of each cost."""
        return cls(tuple(x.kernels for x in costs), tuple(x.bytes_moved for x in costs))

    def __str__(self):
        return f"{'+'.join(map(str, self.launches))}, {'+'.join(map(_bytes, self.bytes_moved))}"


def _sum(costs: Iterable[Any]) -> Costs:
    """Return the sums of both directions."""
    each = [Costs((*x.launches, 0)[:2], (*x.bytes_moved, 0)[:2]) for x in costs]
    total = lambda rows: tuple(map(sum, zip((0, 0), *rows, strict=True)))  # noqa: E731
    return Costs(total(x.launches for x in each), total(x.bytes_moved for x in each))


def _bytes(n: int | None) -> str:
    return "?" if n is None else f"{n:,}"


@dataclass(frozen=True)
class Taken:
    """A module that computes by the package now."""

    name: str  # in the model
    class_name: str
    extent: str  # what of it is fused: its forward, the operators of a stretch, or a function that it calls
    difference: float  # the largest of value and gradients on the probe, relative to the largest element
    before: Costs  # what torch launches on the probe
    inner_modules: tuple[str, ...]  # the names of those inside, for a stretch of several
    fused: Fused = field(repr=False)
    module: Module = field(repr=False)
    probe: Probe = field(repr=False)  # with a Layout for each tensor

    def after(self, target: str) -> Costs | None:
        """Return what a GPU would launch instead; None where no kernel can be compiled here."""
        args, kwargs = (mapped(Layout.tensor, x, Layout) for x in self.probe)
        try:
            phases = examine(self.fused, (self.module, *args), kwargs, target).fused[: len(self.before.launches)]
        except (NotFused, RuntimeError):
            return None
        return Costs(tuple(len(x.records) for x in phases), tuple(x.bytes_moved for x in phases))


class Left(NamedTuple):
    """A module that is as it was, and why."""

    name: str
    class_name: str
    reason: str


class Layout(NamedTuple):
    """A tensor without values."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def tensor(self) -> Tensor:
        """Return a tensor that is laid out so; on the CPU it takes no memory."""
        if self.device.type == "cpu":
            x = unbacked(self.shape, self.strides, self.dtype)
        else:
            x = torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=self.device)
        return x.requires_grad_(self.dtype.is_floating_point)


def layouts(probe: Probe) -> Probe:
    """Return a probe with layouts in the place of tensors."""
    layout = lambda x: Layout(tuple(x.shape), x.stride(), x.dtype, x.device)  # noqa: E731
    return Probe(mapped(layout, probe.args), mapped(layout, probe.kwargs))


class Report:
    """What :func:`apply` did to a model. Its text is a table; ``launches`` and ``bytes`` are those of the probe.

    What a GPU would launch is compiled when the text is asked for, some seconds the first time.
    """

    def __init__(self, taken: Sequence[Taken], left: Sequence[Left], target: str = "cuda:90"):
        self.taken, self.left, self.target = tuple(taken), tuple(left), target

    @cached_property
    def after(self) -> list[Costs | None]:
        """What each of the modules taken launches on the GPU ``target``, by a dry run; None where there is none."""
        known: dict[tuple, Costs | None] = {}
        costs = []
        for x in self.taken:
            key = x.class_name, x.extent, x.before, str(x.probe)
            if key not in known:
                known[key] = x.after(self.target)
            costs.append(known[key])
        return costs

    def totals(self) -> tuple[Costs, Costs] | None:
        """Return what one call of each takes, before and after; None where kernels cannot be compiled.

        A module that is part of a stretch counts there.
        """
        inside = {name for x in self.taken for name in x.inner_modules}
        pairs = [
            (x.before, y)
            for x, y in zip(self.taken, self.after, strict=True)
            if x.name not in inside or x.inner_modules
        ]
        if any(y is None for _, y in pairs):
            return None
        before, after = (_sum(costs) for costs in zip(*pairs, strict=True)) if pairs else (_sum([]), _sum([]))
        return before, after

    def to_json(self) -> str:
        """Return all of it, one object for each module."""
        taken = [
            {
                "module": x.name,
                "class": x.class_name,
                "extent": x.extent,
                "difference": x.difference,
                "before": x.before._asdict(),
                "after": costs and costs._asdict(),
            }
            for x, costs in zip(self.taken, self.after, strict=True)
        ]
        left = [{"module": x.name, "class": x.class_name, "left": x.reason} for x in self.left]
        return json.dumps({"target": self.target, "taken": taken, "left": left}, indent=1)

    def __rich__(self):
        """Return the table as ``rich.print`` draws it, where rich is installed."""
        from rich import console, text  # noqa: PLC0415 - it is optional

        return console.Group(self._table(), *map(text.Text, self._lines_below()))

    def __str__(self):
        return "\n".join((str(self._table()), *self._lines_below()))

    __repr__ = __str__

    def _table(self) -> Table:
        head = "modules", "class", "fused", f"launches and bytes on {self.target}", "torch's", "difference"
        return Table(head, [*self._rows()])

    def _rows(self) -> Iterator[tuple[str, ...]]:
        """Yield a row for all modules of which the same is said."""
        groups: dict[tuple, list[Taken]] = {}
        for x, costs in zip(self.taken, self.after, strict=True):
            after = "?" if costs is None else str(costs)
            groups.setdefault((x.class_name, x.extent, after, str(x.before)), []).append(x)
        for (class_name, extent, after, before), members in groups.items():
            yield (
                _first_and_count(members),
                class_name,
                extent,
                after,
                before,
                f"{max(x.difference for x in members):.0e}",
            )

    def _lines_below(self) -> Iterator[str]:
        """Yield the total, then a line for all modules that were left for one reason."""
        totals = self.totals()
        if totals and self.taken:
            yield f"total: {totals[1]} instead of {totals[0]}"
        groups: dict[tuple[str, str], list[Left]] = {}
        for x in self.left:
            groups.setdefault((x.class_name, x.reason), []).append(x)
        for (class_name, reason), members in groups.items():
            yield f"left: {_first_and_count(members)}, {class_name}: {reason}"


def _first_and_count(members: Sequence[Any]) -> str:
    """Return the name of the first module, and how many there are more."""
    first = members[0].name or "the model"
    return first if len(members) == 1 else f"{first} and {len(members) - 1} more"
