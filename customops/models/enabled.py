"""``enabled``: inside a block, calls of torch's functions are calls of the package's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from threading import local
from typing import Any, NamedTuple

from torch import Tensor
from torch.compiler import is_dynamo_compiling

from .. import config
from .._compat import saved_tensor_hooks
from ..fusion import spelling
from ..ops import binary, comparison
from ..runtime.paths import BUILT_FOR_GPUS, KERNEL_DTYPES, TransparentMode, are_any_on_gpu, tensors_key

__all__ = ["enabled"]

SIGNS = {
    Tensor.__rsub__: ("sub", lambda x, y: binary.sub(y, x)),
    Tensor.__rtruediv__: ("div", lambda x, y: binary.div(y, x)),
    Tensor.__pow__: ("pow", binary.pow),
    Tensor.__rpow__: ("pow", lambda x, y: binary.pow(y, x)),
    Tensor.__ipow__: ("pow_", binary.pow_),
}
Names = str | Iterable[str]


class Entry(NamedTuple):
    """What is called instead of a function of torch."""

    name: str  # of the operator
    function: Callable
    parameters: frozenset[str]  # those that can be given by name; none if torch's names are no names of these


class TakenCalls:
    """The calls that were taken in a block."""

    def __init__(self):
        self.calls: Counter[tuple[str, str]] = Counter()  # by the name of the operator, and its backend: torch, triton

    def __repr__(self):
        return ", ".join(f"{n} {name} by {backend}" for (name, backend), n in self.calls.most_common()) or "nothing"


@contextmanager
def enabled(*, only: Names | None = None, skip: Names = ()) -> Iterator[TakenCalls]:
    """Let torch's functions be the package's inside the block, in this thread: all those that the package has.

    They are functions of ``torch``, ``torch.special`` and ``torch.nn.functional``, methods of tensors and Python's
    signs, whatever calls them: layers of ``torch.nn``, a model of others. A call with arguments that only torch's
    function has is torch's. So is all in a backward pass, what autograd's hooks for saved tensors see, those of a
    checkpoint for example, which would compute it again by torch, and what ``torch.compile`` compiles.

    Blocks may be nested: the innermost one decides, and counts.

    Args:
        only: names of operators to take, as ``"softmax"``; all by default.
        skip: names of operators to leave to torch.

    Yields:
        A :class:`TakenCalls`, whose ``calls`` counts by name and backend.

    Raises:
        ValueError: ``only`` or ``skip`` names no operator.

    >>> import customops, torch
    >>> x = torch.ones(4)
    >>> with customops.enabled(skip="exp") as taken:
    ...     y = torch.nn.GELU()(x.exp() * 2)
    >>> [name for name, backend in taken.calls]
    ['mul', 'gelu']
    """
    chosen, taken = _chosen(only, skip), TakenCalls()
    mode = _open.mode
    if mode is not None:
        before, mode.chosen, mode.taken = (mode.chosen, mode.taken), chosen, taken
        try:
            yield taken
        finally:
            mode.chosen, mode.taken = before
        return
    _open.mode = mode = _Taking(chosen, taken)
    try:
        with mode:
            yield taken
    finally:
        _open.mode = None


class _Open(local):
    """The mode of the block that is open in this thread."""

    mode: _Taking | None = None


_open = _Open()


class _Taking(TransparentMode):
    """Torch asks it at each call; while it answers it is not asked, so what the package calls is torch's."""

    def __init__(self, chosen: dict[Any, Entry], taken: TakenCalls):
        super().__init__()
        self.chosen = chosen
        self.taken = taken

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Call the package's function, or torch's."""
        if is_dynamo_compiling():  # asked first, as a compiler would guard all that is chosen
            return func(*args, **(kwargs or {}))
        entry = self.chosen.get(func)
        if entry is None or saved_tensor_hooks():
            return func(*args, **kwargs) if kwargs else func(*args)
        name, ours, parameters = entry
        try:
            if not kwargs:
                z = ours(*args)
            elif parameters.issuperset(kwargs):
                z = ours(*args, **kwargs)
            else:
                z = ours(*args, **spelling.arguments(ours, kwargs))
        except TypeError:  # torch says what is wrong, or takes what only it can
            return func(*args, **(kwargs or {}))
        self.taken.calls[name, _backend((*args, *kwargs.values()) if kwargs else args)] += 1
        return z


def _backend(args: tuple) -> str:
    """Return what computed a call of these arguments, with those by name."""
    if config.cpu_by_formula and not (BUILT_FOR_GPUS and are_any_on_gpu(args)):
        return "torch"
    tensors = [x for x in args if isinstance(x, Tensor)]
    has_kernel = config.current_backend != "torch" and tensors_key(tensors) is not None
    return "triton" if has_kernel and all(x.dtype in KERNEL_DTYPES for x in tensors) else "torch"


def _chosen(only: Names | None, skip: Names) -> dict[Any, Entry]:
    """Return the functions that are taken."""
    known = {entry.name for entry in _table().values()}
    wanted, left = (None if x is None else {x} if isinstance(x, str) else {*x} for x in (only, skip))
    for names in (wanted, left):
        if unknown := (names or set()) - known:
            raise ValueError(f"enabled: expected names of operators, got {sorted(unknown)}")
    return {
        function: entry
        for function, entry in _table().items()
        if (wanted is None or entry.name in wanted) and entry.name not in (left or ())
    }


@cache
def _table() -> dict[Any, Entry]:
    """Return the name and the function of ours for each function of torch's that the package has."""
    names = {ours: name for name, ours in spelling.operators().items() if name not in comparison.__all__}
    found = {function: (names[ours], ours) for function, ours in spelling.table().items() if ours in names}
    for name, ours in spelling.in_place_operators().items():
        found |= dict.fromkeys(spelling.functions_named(name), (ours.__name__, ours))
    if Tensor.where in spelling.table():
        found[Tensor.where] = "where", spelling.table()[Tensor.where]
    found |= SIGNS
    return {
        torchs: Entry(name, ours, spelling.parameters(ours) or frozenset()) for torchs, (name, ours) in found.items()
    }
