"""``apply`` and ``restore``: a model computes by the package what of it can be fused, and by torch again."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor
from torch.nn import Module

from ..fusion.decorator import Fused
from . import classes
from .check import Left as Stays
from .check import check
from .probe import Probe, drawn, recorded
from .report import Costs, Left, Report, Taken, layouts

__all__ = ["apply", "restore"]

Selector = str | type  # a pattern of names, of modules or of classes; or a class
Selectors = Selector | Iterable[Selector]


def apply(
    model: Module,
    example: Tensor | tuple | list | dict[str, Any] | None = None,
    *,
    only: Selectors | None = None,
    skip: Selectors = (),
) -> Report:
    """Let ``model`` compute by fused kernels what can be; all else stays as it is, and nothing knows of any model.

    Each module without children is tried: whether its ``forward`` can be fused, whether torch needs several kernels
    for it, and whether value and all gradients are then torch's, on a probe. If so, its class becomes one made of its
    own, as :func:`fuse` does with a module. Parameters, buffers, their names, hooks, mode, device and sharing stay, and
    so do copies, pickles and state dicts. ``restore`` undoes it.

    The probe of a module is what it gets when the model is called with ``example``, once, without gradients. A module
    that this does not reach, or any if there is no example, is tried on random tensors with the dimensions of its
    parameters. That is decided at once: no call of a training is another one than those after it. A call that cannot
    be fused after all, of a dtype by which a module branches for example, is torch's: its module then gets its own
    class back, with a warning.

    Args:
        model: it is changed in place.
        example: inputs of the model: a dictionary of keyword arguments, a tuple or list of others, or the only one.
        only: the modules to take, also those that torch computes by one kernel: patterns of names in the model, as
            ``*.norm``, patterns of names of classes, or classes.
        skip: the modules to leave, likewise.

    Returns:
        A :class:`Report`, whose text is a table: what was taken, what it launches and moves, what was left and why.

    Raises:
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
    probes = {} if example is None else recorded(model, example)
    taken: list[Taken] = []
    left: list[Left] = []
    for name, module in model.named_modules():
        if any(True for _ in module.children()) or _is_among(skip, name, module):
            continue
        is_asked_for = only is not None and _is_among(only, name, module)
        if only is None or is_asked_for:
            try:
                taken.append(_take(name, module, probes.get(module), is_asked_for))
            except Stays as stays:
                left.append(Left(name, type(module).__name__, str(stays)))
    return Report(taken, left)


def restore(model: Module) -> int:
    """Give all modules that :func:`apply` changed their own classes back, and return how many these were."""
    taken = [module for module in model.modules() if classes.is_taken(module)]
    for module in taken:
        classes.give_back(module)
    return len(taken)


def _take(name: str, module: Module, probe: Probe | None, is_asked_for: bool) -> Taken:
    """Change a module's class. Raises Left where that cannot be, or gains nothing."""
    if why := classes.why_not_takable(module):
        raise Stays(why)
    probe = probe or drawn(module)
    if probe is None:
        raise Stays("no inputs are known that it takes: give an example")
    forward: Any = type(module).forward
    fused = Fused(forward)
    found = check(fused, module, probe)
    if found.plain[0].kernels < 2 and not is_asked_for:
        raise Stays("torch computes it by one kernel" if found.plain[0].kernels else "it launches nothing")
    kind = type(module).__name__
    classes.take(module)
    return Taken(name, kind, "fused", found.difference, Costs.of(found.plain), fused, module, layouts(probe))


def _is_among(selectors: Selectors, name: str, module: Module) -> bool:
    """Return whether a module is selected, by its class, the name of that, or its name in the model."""
    each = [selectors] if isinstance(selectors, str | type) else selectors
    return any(
        isinstance(module, x) if isinstance(x, type) else fnmatchcase(name, x) or fnmatchcase(type(module).__name__, x)
        for x in each
    )
