"""Hold what a module would become against what it is: value and gradients, on a probe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from .._compat import version_of
from ..fusion.decorator import Fused
from ..fusion.errors import FusionError
from ..fusion.function import FusedFunction, why_not_fused
from ..fusion.proxy import Traced
from ..fusion.unfused import Cost
from ..ptx.faults import KernelFault
from . import classes
from .cost import counted
from .probe import Probe, flat, unchanged

# How far a value or gradient may be from torch's, relative to the largest element: sums are added up in another order.
# Operators alone are compared element by element, by proof/compare.py.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.float16: 8e-3, torch.bfloat16: 6e-2}


class NotTaken(Exception):
    """The reason why a module stays as it is."""


class Checked(NamedTuple):
    """What was found of a call that was fused on a probe."""

    difference: float  # the largest of value and gradients from torch's, relative to the largest element of each
    plain: list[Cost]  # what torch launches, forward and backward


def check(fused: Fused, module: Module, probe: Probe) -> Checked:
    """Return how the fused ``forward`` of ``module`` compares with its own. Raises NotTaken where it differs.

    Whatever their size, tensors are computed as large ones are: by kernels, or by blocks on a CPU.
    """
    costs: list[Cost] = []

    def count(call: Callable) -> Any:
        result, cost = counted(call)
        costs.append(cost)
        return result

    with _reasons():
        own = _derivatives(partial(fused.function, module), module, probe, count)
        with _as_taken(module):  # a module may ask for its class
            got = _derivatives(partial(_at_once, fused, module), module, probe)
    return Checked(_differences(got, own, module, probe), costs)


def returns_argument(module: Module, probe: Probe, training: bool) -> bool:
    """Return whether ``module`` returns its only argument unchanged, if it is in this mode."""
    args, kwargs = probe.fresh()
    given = *args, *kwargs.values()
    if len(given) != 1 or not isinstance(given[0], Tensor):
        return False
    version = version_of(given[0])
    with unchanged(module), torch.no_grad():
        module.training = training
        try:
            z = type(module).forward(module, *args, **kwargs)
        except Exception:
            return False
    return z is given[0] and version_of(z) == version


def compare(plain: Callable, other: Callable, module: Module, probe: Probe) -> float:
    """Return by how much two ways to call ``module`` differ. Raises NotTaken if by too much."""
    with _reasons():
        want = _derivatives(plain, module, probe)
        got = _derivatives(other, module, probe)
    return _differences(got, want, module, probe)


@contextmanager
def _reasons() -> Iterator[None]:
    """Raise NotTaken for what is raised inside: what one module raises is no reason to leave the others."""
    try:
        yield
    except FusionError as error:
        raise NotTaken(reason(error)) from None
    except (NotTaken, KernelFault):
        raise
    except Exception as error:
        raise NotTaken(f"its call with gradients raises {type(error).__name__}: {error}") from None


@contextmanager
def _as_taken(module: Module) -> Iterator[None]:
    """Give ``module`` inside the class that it would have. Raises NotTaken where there is none."""
    try:
        classes.take(module)
    except Exception as error:  # whatever the class does where one is derived from it
        raise NotTaken(f"no class can be derived from its own: {error}") from None
    try:
        yield
    finally:
        classes.give_back(module)


def reason(error: FusionError) -> str:
    """Return what cannot be traced, without the line that does it."""
    return error.what or str(error).removeprefix("fuse: ").split("; ")[0]


def _differences(got: Sequence, want: Sequence, module: Module, probe: Probe) -> float:
    if len(got) != len(want):
        raise NotTaken("gradients are recorded otherwise than torch's")
    dtypes = {x.dtype for x in (*probe.tensors(), *module.parameters())}  # torch rounds to these on the way
    tolerance = max([TOLERANCE.get(dtype, 0.0) for dtype in dtypes], default=0.0)
    return max(difference(mine, theirs, tolerance) for mine, theirs in zip(got, want, strict=True))


def difference(got: Sequence[Tensor | None], want: Sequence[Tensor | None], tolerance: float = 0.0) -> float:
    """Return the largest difference, relative to the largest element of a tensor. Raises NotTaken if one is too large.

    ``tolerance`` is allowed in any event, what ``TOLERANCE`` has for a tensor's dtype besides. A tensor counts as no
    smaller than a hundredth of the largest: a gradient that is zero is so up to rounding.
    """
    largest, least = 0.0, 0.01 * max([_size(x) for x in want if x is not None], default=0.0)
    if [x is None for x in got] != [x is None for x in want]:
        raise NotTaken("another tensor gets a gradient than torch's")
    for mine, theirs in zip(got, want, strict=True):
        if mine is None or theirs is None:
            continue
        if (mine.shape, mine.dtype) != (theirs.shape, theirs.dtype):
            raise NotTaken("a result has another shape or dtype than torch's")
        found = _difference(mine.detach(), theirs.detach(), least)
        if not found <= max(tolerance, TOLERANCE.get(theirs.dtype, 0)):
            raise NotTaken(f"value or gradient differ from torch's by {found:.1e}")
        largest = max(largest, found)
    return largest


def _difference(a: Tensor, b: Tensor, least: float) -> float:
    if a.numel() == 0 or torch.equal(a, b):
        return 0.0
    a, b = a.double(), b.double()
    is_same = (a == b) | (a.isnan() & b.isnan())
    return float(torch.where(is_same, 0, a - b).abs().max()) / (max(_size(b), least) or 1.0)


def _size(x: Tensor) -> float:
    """Return the largest finite element of a tensor, without its sign."""
    return float(x.detach().double().abs().nan_to_num(0, 0, 0).max()) if x.numel() else 0.0


def _derivatives(
    call: Callable, module: Module, probe: Probe, run: Callable[[Callable], Any] = lambda call: call()
) -> tuple[Sequence[Tensor | None], ...]:
    """Return values, and gradients; each direction is called by ``run``."""
    with unchanged(module), torch.enable_grad(), torch.inference_mode(mode=False):
        args, kwargs = probe.fresh()
        leaves = [x for x in (*Probe(args, kwargs).tensors(), *module.parameters()) if x.requires_grad]
        torch.manual_seed(0)
        returned = run(lambda: call(*args, **kwargs))
        zs = list(flat(returned))
        if not zs:
            raise NotTaken("it returns no tensors that can be compared")
        recorded = [z for z in zs if z.requires_grad]
        if not recorded or not leaves:
            return (zs,)
        gs = [torch.randn_like(z) for z in recorded]
        return zs, run(lambda: torch.autograd.grad(recorded, leaves, gs, allow_unused=True))


def _at_once(fused: Fused, module: Module, *args: Any, **kwargs: Any) -> Any:
    """Return what the fused function returns, by kernels or blocks. Raises NotTaken where it never runs by these."""
    arguments, named = fused.all_arguments((module, *args), kwargs)
    tensors, key = fused.read(arguments, named)
    if not fused.is_traceable(tensors):
        raise NotTaken("it takes no dense tensor")
    trace, inputs = fused.trace(tensors, key, arguments, named)
    if any(type(x) is Traced for x in flat(vars(module))):
        raise NotTaken("it keeps a value that it computes, which the next call would find to be no tensor")
    if why := why_not_fused(trace, inputs):
        raise NotTaken(why)
    return FusedFunction.of(fused.fuse(trace, inputs, arguments, named), inputs)
