"""``apply`` and ``restore``: a model computes by the package what of it can be fused, and by torch again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import Module

from .._compat import function_mode_count, without_function_mode
from ..fusion.decorator import Fused
from ..runtime.paths import in_transparent_mode
from . import classes
from .check import NotTaken, check, compare, returns_argument
from .functions import as_method, called_by, recording, with_fused
from .probe import Probe, drawn, recorded
from .report import Costs, Left, Report, Taken, layouts
from .stretches import Inner, Program, Stretch, find
from .tracing import Untraced, call_key, inputs_of, trace

__all__ = ["apply", "restore"]

Selector = str | type  # a pattern of names, of modules or of classes; or a class
Selectors = Selector | Iterable[Selector]


def apply(
    model: Module,
    example: Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any] | None = None,
    *,
    only: Selectors | None = None,
    skip: Selectors = (),
) -> Report:
    """Let ``model`` compute by fused kernels what can be; all else stays as it is.

    Tried are modules without children, functions of its own file that a ``forward`` calls, as rotary embeddings, and
    stretches of a ``forward`` between its matrix products, as a residual sum and the norm after it: whether it can be
    fused, whether torch needs several kernels for it, and whether value and all gradients are then torch's, on a probe.
    If so, the module's class becomes one made of its own, as :func:`fuse` does with a module. Parameters, buffers,
    their names, hooks, mode, device and sharing stay, and so do copies, pickles and state dicts. ``restore`` undoes it.

    The probe of a module is what it gets when the model is called with ``example``, once, without gradients; a small
    one will do. A module that this does not reach, or any if there is no example, is tried on random tensors with the
    dimensions of its parameters. All is decided at once: no call of a training is another one than those after it. A
    call that cannot be fused after all, of a dtype by which a module branches for example, is torch's: its module then
    gets its own class back, with a warning. A stretch is used for calls with arguments of the kinds that its probe has.

    Args:
        model: it is changed in place.
        example: inputs of the model: a dictionary of keyword arguments, a tuple or list of others, or the only one.
        only: the modules to take, also those that torch computes by one kernel: patterns of names in the model, as
            ``*.norm``, patterns of names of classes, or classes.
        skip: the modules to leave, likewise.

    Returns:
        A :class:`Report`, whose text is a table: what was taken, what it launches and moves, what was left and why.

    Raises:
        ValueError: a pattern of ``only`` or ``skip`` names no module.
        Exception: what the model raises for ``example``.

    >>> import customops, torch
    >>> class RMSNorm(torch.nn.Module):
    ...     def __init__(self, width):
    ...         super().__init__()
    ...         self.weight = torch.nn.Parameter(torch.ones(width))
    ...
    ...     def forward(self, x):
    ...         return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), RMSNorm(8))
    >>> report = customops.apply(model)
    >>> [taken.name for taken in report.taken], [(left.name, left.reason) for left in report.left]
    (['1'], [('0', 'torch.nn.functional.linear cannot be traced, as it is a matrix product')])
    >>> customops.restore(model)
    1
    """
    if function_mode_count() and in_transparent_mode():  # inside of `enabled`, which need not see what is tried
        with without_function_mode():
            return apply(model, example, only=only, skip=skip)
    only, skip = None if only is None else _each(only), _each(skip)
    _refuse_unknown(model, only=only, skip=skip)
    functions = {function for module in model.modules() for function in called_by(type(module)).values()}
    with recording(functions) as calls:
        probes = {} if example is None else recorded(model, example)
    return _Applying(model, probes, calls, only, skip).report()


class _Applying:
    """One call of :func:`apply`."""

    def __init__(
        self,
        model: Module,
        probes: dict[Module, Probe],
        calls: dict[Any, Probe],
        only: Selectors | None,
        skip: Selectors,
    ):
        self.model, self.probes, self.calls, self.only, self.skip = model, probes, calls, only, skip
        self.fusable: dict[Module, Inner] = {}  # the modules that can be part of a stretch
        self.taken: list[Taken] = []
        self.left: list[Left] = []

    def report(self) -> Report:
        """Take what can be taken, children before parents, and return what it was."""
        for name, module in reversed(list(self.model.named_modules())):
            if type(module).forward is Module.forward:  # a list of modules has none of its own
                continue
            is_asked_for = self.only is not None and _is_among(self.only, name, module)
            is_chosen = (self.only is None or is_asked_for) and not _is_among(self.skip, name, module)
            try:
                if not any(True for _ in module.children()):
                    self._take(name, module, is_asked_for, is_chosen)
                elif is_chosen:
                    self._take_stretches(name, module)
            except NotTaken as error:
                self.left += [Left(name, type(module).__name__, str(error))] if is_chosen else []
        return Report(self.taken[::-1], self.left[::-1])

    def _take(self, name: str, module: Module, is_asked_for: bool, is_chosen: bool) -> None:
        """Change a module's class, if it is chosen. Raises NotTaken where that cannot be, or gains nothing."""
        class_name, fused = type(module).__name__, Fused(self._forward(module))
        probe = self._probe(module)
        if returns_argument(module, probe, module.training):
            of_mode = not returns_argument(module, probe, not module.training)
            self.fusable[module] = Inner(0, of_mode)
            raise NotTaken("it returns its argument")
        found = check(fused, module, probe)
        kernels = found.plain[0].kernels
        self.fusable |= {module: Inner(kernels)} if kernels else {}
        if not is_chosen:
            return
        if kernels < 2 and not is_asked_for:
            raise NotTaken("torch computes it by one kernel" if kernels else "it launches nothing")
        classes.take(module)
        costs = Costs.of(found.plain)
        self.taken.append(
            Taken(name, class_name, "forward", found.difference, costs, (), fused, module, layouts(probe))
        )

    def _take_stretches(self, name: str, module: Module) -> None:
        """Change a module's class to one that computes stretches of its forward at once, where there are any."""
        class_name, forward = type(module).__name__, self._forward(module)
        probe = self._probe(module)
        key = call_key(*probe)
        try:
            programs, stretches = self._programs(module, probe)
        except Untraced as error:
            if self._take_functions(name, module, probe):
                return
            raise NotTaken(f"it is not looked for stretches: {error}") from None
        if not programs:
            self._take_functions(name, module, probe)
            return
        for program in programs:
            compare(partial(forward, module), partial(_run, program, module), module, probe)
        classes.take_stretches(module, key, programs)
        for x in reversed(stretches):
            costs, probed = Costs.of(x.checked.plain), layouts(Probe(x.inputs, {}))
            inner = tuple(f"{name}.{path}".removeprefix(".") for path in x.modules)
            found = x.text, x.checked.difference, costs, inner, x.function
            self.taken.append(Taken(name, class_name, *found, module, probed))

    def _programs(self, module: Module, probe: Probe) -> tuple[tuple[Program, ...], list[Stretch]]:
        """Return the programs of a module, and the stretches of the first, which may be of the mode that it is in.

        Then there is one more, for the other mode, unless that has no stretches.
        """
        program, stretches = find(module, trace(module, *probe), inputs_of(*probe.fresh()), self.fusable)
        if not program or not program.is_of_mode:
            return (program,) if program else (), stretches
        of_any_mode = {x: inner for x, inner in self.fusable.items() if not inner.is_of_mode}
        other, _ = find(module, trace(module, *probe), inputs_of(*probe.fresh()), of_any_mode)
        return (program, other) if other else (program,), stretches

    def _take_functions(self, name: str, module: Module, probe: Probe) -> bool:
        """Change a module's class to one that calls fused functions, if it calls any that gain; return whether so."""
        cls, taken = type(module), []
        for called, function in called_by(cls).items():
            try:
                fused, given = as_method(function), self.calls[function]
                found = check(fused, module, given)
            except (NotTaken, KeyError):
                continue
            if found.plain[0].kernels > 1:
                costs, probed = Costs.of(found.plain), layouts(given)
                taken.append(Taken(name, cls.__name__, called, found.difference, costs, (), fused, module, probed))
        if not taken:
            return False
        names = tuple(x.extent for x in taken)
        run = with_fused(cls.forward, names)  # type: ignore[arg-type]
        compare(partial(cls.forward, module), partial(run, module), module, probe)
        classes.take_functions(module, names)
        self.taken += taken
        return True

    def _forward(self, module: Module) -> Any:
        if classes.has_lost_stretches(module):  # it was pickled
            classes.give_back(module)
        if why := classes.why_not_takable(module):
            raise NotTaken(why)
        return type(module).forward

    def _probe(self, module: Module) -> Probe:
        probe = self.probes.get(module) or drawn(module)
        if probe is None:
            raise NotTaken("no inputs are known that it takes: give an example")
        return probe


def _run(program: Program, module: Module, *args: Any, **kwargs: Any) -> Any:
    return program.run(module, module, *inputs_of(args, kwargs))


def restore(model: Module) -> int:
    """Give all modules that :func:`apply` changed their own classes back, and return how many these were."""
    taken = [module for module in model.modules() if classes.is_taken(module)]
    for module in taken:
        classes.give_back(module)
    return len(taken)


def _refuse_unknown(model: Module, **selectors: Selectors | None) -> None:
    """Raise ValueError for a pattern that names no module. A class may be there for other models."""
    for argument, chosen in selectors.items():
        for pattern in filter(lambda x: isinstance(x, str), _each(chosen or ())):
            if not any(_is_among(pattern, *each) for each in model.named_modules()):
                expected = "patterns of the names of modules in the model, or of their classes"
                raise ValueError(f"apply: {argument}: expected {expected}, got {pattern!r}, which is that of none")


def _is_among(selectors: Selectors, name: str, module: Module) -> bool:
    """Return whether a module is selected, by its class, the name of that, or its name in the model."""
    return any(
        isinstance(module, x) if isinstance(x, type) else fnmatchcase(name, x) or fnmatchcase(type(module).__name__, x)
        for x in _each(selectors)
    )


def _each(selectors: Selectors) -> tuple[Selector, ...]:
    return (selectors,) if isinstance(selectors, str | type) else tuple(selectors)
