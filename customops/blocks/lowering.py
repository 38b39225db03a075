"""Formulas as calls of torch's operators that write to memory they are given.

A formula is run once on tensors of a few elements, and what it asks of ATen is recorded. Each such call has a variant
that takes ``out``, of which a block's temporaries are reused. So every formula is computed in place, as it stands in
``formulas.py``, and no second spelling is needed. What is bool there is a mask in a block, as ``masks.py`` says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import formulas
from .._compat import LightDispatchMode, in_place_variant, out_variant
from .masks import CHOICES, IN_ONE_CALL, exclusive_or, is_zero, keep

ALIASES = frozenset({"detach", "alias", "lift_fresh"})  # operators that return their input
WITHOUT_NUMBERS = frozenset({"maximum", "minimum", "where"})  # where torch refuses numbers, or gives them a dtype


class Ref(NamedTuple):
    """A value that a call reads."""

    value: int  # its number: first the arguments of the formula, then the result of each call


class Call(NamedTuple):
    """A call of one of torch's operators."""

    function: Callable[..., Any]  # takes the arguments, and ``out``
    args: tuple  # a Ref for each tensor of the formula
    dtype: torch.dtype  # of the result
    varies: tuple[bool, ...]  # along which axes the result varies, if it is no 0-dim tensor


class Lowered(NamedTuple):
    """A formula as calls, in order."""

    calls: tuple[Call, ...]
    result: Any  # a Ref, or a tensor that is the same for all arguments


class Number(NamedTuple):
    """An argument of a formula that is a number."""

    number: Any
    text: str  # its repr, without which -0.0 were 0.0 and 1 were True


@lru_cache(maxsize=1024)
def lower(formula: str, args: tuple, reduced: tuple[int, ...], dtype: torch.dtype) -> Lowered:
    """Return the calls of a formula.

    Args:
        formula: its name in ``formulas.py``.
        args: for each of its arguments the axes along which it varies, as flags, or a Number.
        reduced: the axes that a reduction reduces; none if the formula is elementwise.
        dtype: the dtype of tensors.
    """
    with torch.no_grad(), torch.autocast("cpu", enabled=False), _Recorder(len(args), dtype) as recorder:
        examples = [
            x.number
            if isinstance(x, Number)
            else recorder.known(torch.ones([2 if varies else 1 for varies in x], dtype=dtype, device="cpu"), Ref(k))
            for k, x in enumerate(args)
        ]
        z = getattr(formulas, formula)(*operands(formula, examples, dtype), *([[*reduced], True] if reduced else ()))
    return Lowered(tuple(recorder.calls), recorder.ref(z))


def operands(formula: str, args: Sequence, dtype: torch.dtype) -> Sequence:
    """Return ``args`` of a formula, numbers as 0-dim tensors where torch would refuse them, or give them a dtype."""
    if formula not in WITHOUT_NUMBERS:
        return args
    return [x if isinstance(x, Tensor) else torch.tensor(x, dtype=dtype, device="cpu") for x in args]


class _Recorder(LightDispatchMode):
    """Records the calls of operators on tensors that are known."""

    def __init__(self, arity: int, dtype: torch.dtype):
        super().__init__()
        self.arity = arity  # of the formula
        self.dtype = dtype  # of its tensors, and of masks
        self.calls: list[Call] = []
        self._refs: dict[int, tuple[Tensor, Ref]] = {}  # by id; the tensor, too, so that the id stays its own

    def known(self, x: Tensor, ref: Ref) -> Tensor:
        """Return ``x``, which from here on is what ``ref`` says."""
        self._refs[id(x)] = x, ref
        return x

    def ref(self, x: Any) -> Any:
        """Return the Ref of a tensor that is known, and anything else as it is."""
        known = self._refs.get(id(x)) if isinstance(x, Tensor) else None
        return known[1] if known else x

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        z = function(*args, **kwargs)
        refs = tuple(map(self.ref, args))
        name = function.overloadpacket.__name__
        first = next((x for x in refs if isinstance(x, Ref)), None)
        if first is None or (name.startswith("new_") and z.dim() == 0):
            return z  # the same for all arguments
        dtype = self._dtype(z)
        if name in ALIASES or (name == "_to_copy" and dtype == self._dtype(args[0])):
            return self.known(z, first)
        if name in CHOICES:
            return self.known(z, self._choose(z, *CHOICES[name](*args)))
        if name in IN_ONE_CALL:
            return self.known(z, self._append(IN_ONE_CALL[name], tuple(map(self._value, args)), dtype, z.shape))
        writing = copy if name == "_to_copy" else _writing(function, tuple(sorted(kwargs.items())))
        return self.known(z, self._append(writing, refs, dtype, z.shape))

    def _append(self, function: Callable[..., Any], args: tuple, dtype: torch.dtype, shape: Sequence[int]) -> Ref:
        """Record a call; return its result."""
        self.calls.append(Call(function, args, dtype, tuple(n > 1 for n in shape)))
        return Ref(self.arity + len(self.calls) - 1)

    def _dtype(self, x: Tensor) -> torch.dtype:
        """Return the dtype of what stands for a tensor of the formula."""
        return self.dtype if x.dtype == torch.bool else x.dtype

    def _value(self, x: Any) -> Any:
        """Return the Ref of a tensor that is known, and a constant as a 0-dim tensor."""
        ref = self.ref(x)
        return ref if isinstance(ref, Ref) else torch.as_tensor(x, dtype=self.dtype, device="cpu")

    def _choose(self, z: Tensor, mask: Any, x: Any, y: Any) -> Ref:
        """Record the calls that choose x or y by a mask, of which ``z`` is the result here; return their result."""
        # torch.broadcast_shapes would import SymPy.
        sides = torch.broadcast_tensors(*[torch.as_tensor(v, device="cpu") for v in (x, y)])
        mask, x, y = map(self._value, (mask, x, y))
        chosen = self._append(keep, (self._different_bits(x, y, sides[0].shape), mask), self.dtype, z.shape)
        return self._different_bits(chosen, y, z.shape)

    def _different_bits(self, x: Any, y: Any, shape: Sequence[int]) -> Any:
        """Record the call that finds in which bits two values differ; where one is 0, it is the other."""
        if is_zero(x) or is_zero(y):
            return x if is_zero(y) else y
        if isinstance(x, Ref) or isinstance(y, Ref):
            return self._append(exclusive_or, (x, y), self.dtype, shape)
        return exclusive_or(x, y, out=torch.empty_like(x))


def copy(x, out):
    """Write ``x`` to ``out``, rounded to its dtype."""
    return out.copy_(x)


def _writing(overload: Any, kwargs: tuple) -> Callable:
    """Return what computes an operator into ``out``: by the variant that does, else in place, else by a copy."""
    name = overload.overloadpacket.__name__
    variant = out_variant(overload)
    if variant is None:
        inplace = in_place_variant(overload)
        if inplace is None:
            return lambda *args, out: out.copy_(overload(*args, **dict(kwargs)))

        def in_place(x, *args, out):
            if any(y is out for y in args):  # it would be written over before it is read
                return out.copy_(overload(x, *args, **dict(kwargs)))
            return inplace(out if out is x else out.copy_(x), *args, **dict(kwargs))

        return in_place
    overload_out, parameter = variant
    function = getattr(torch, name, None)  # without the checks of a schema in Python
    if parameter != "out" or function is None:
        return lambda *args, out: overload_out(*args, **dict(kwargs), **{parameter: out})
    given = {key: value for key, value in kwargs if value is not None}
    return partial(function, **given) if given else function
