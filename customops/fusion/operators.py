"""The operators that only a trace has: they compute nothing but a rounding, and torch applies them one by one.

Each has ``by_formula``, torch's function of the same inputs, as the package's operators have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .. import formulas as f
from ..ops.comparison import Predicate
from ..ops.function import Operator


class Ref(NamedTuple):
    """A value of a trace: a tensor that the function was given, or what an operator returned."""

    value: int  # its number: first the tensors, then what each operator returned, in order


class TraceOperator:
    """An operator that only a trace has."""

    by_formula: ClassVar[Callable[..., Tensor]]
    may_alias: ClassVar[bool] = False  # whether its value may be its input itself, or share its memory
    is_elementwise: ClassVar[bool] = True  # whether each element of its value is made of the one in its place

    @classmethod
    def eager_call(cls, inputs: Sequence) -> tuple[Callable[..., Tensor], Sequence]:
        """Return torch's function, and the inputs that it takes."""
        return cls.by_formula, inputs


class Detach(TraceOperator):
    """The operator of ``x.detach()``: x, with a derivative of zero."""

    by_formula = staticmethod(Tensor.detach)
    may_alias = True


class Cast(TraceOperator):
    """The operator of ``x.to(dtype)``: a copy of x in another dtype, or in the same one."""

    @staticmethod
    def by_formula(x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the copy."""
        return x.to(dtype, copy=True)


class Fill(TraceOperator):
    """The operator of ``torch.full_like(x, number, dtype)``: the number for each element of x."""

    @staticmethod
    def by_formula(x: Tensor, number: Any, dtype: torch.dtype) -> Tensor:
        """Return the tensor of it."""
        return torch.full_like(x, number, dtype=dtype)


class Rounding(NamedTuple):
    """The formula of a cast, as graphs have it, where the values of all dtypes are in one."""

    formula: Callable[..., Tensor]
    derivatives: tuple[Callable, ...] = (f.add_dx,)  # the cotangent as it is: it is rounded where it leaves the graph


ROUNDINGS = {
    torch.float16: Rounding(f.to_float16),
    torch.bfloat16: Rounding(f.to_bfloat16),
    torch.float32: Rounding(f.to_float32),
}


def rounding(source: torch.dtype, target: torch.dtype) -> Rounding | None:
    """Return the formula that rounds values of dtype ``source`` to ``target``, None where all of them are exact in it.

    >>> rounding(torch.float16, torch.float32) is None, rounding(torch.float16, torch.bfloat16) is None
    (True, False)
    """
    is_exact = source == torch.bool or (source.is_floating_point and torch.promote_types(source, target) == target)
    return None if is_exact else ROUNDINGS.get(target)


def is_elementwise(operator: Any) -> bool:
    """Return whether an operator of a trace computes each element of its value from one of each input."""
    return issubclass(operator, Operator | Predicate) or getattr(operator, "is_elementwise", False)
