"""The product over axes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import formulas as f
from ..runtime.elementwise import cast
from ..runtime.reduction import keepdim_shape
from .reductions import UNSET, Selective, Step, call_reduction, slope_by_formula

__all__ = ["prod"]


class Prod(Selective):
    """z_j = Π_i x_i over the elements i that output j is made of.

    By x_i the slope is the product of all others, which is z_j / x_i where x_i is not 0. An x_i that is 0 has it as the
    product of all that are not 0, if no other is 0; else it is 0. Let m_j be how many are 0, and p_j the product of the
    rest:

        dx_i = g_j·z_j / x_i where x_i is not 0, g_j·p_j where x_i = 0 and m_j = 1, else 0

    Where two are 0, the slope of one is the other times p_j: 0, but not by that other. So it is written as the sum of
    all zeros, less x_i, times p_j; else gradients of gradients would lose it. Those of a third order do where three
    are 0.

    Forward, dz_j is the sum of these with dx_i for g_j. Saves x and z.
    """

    formula = staticmethod(f.prod)
    eager = staticmethod(torch.prod)
    derivative = staticmethod(f.prod_dx)
    without_zeros = staticmethod(lambda g, x, z: g * (z / x))
    steps = (
        Step("zero", "is_zero", ("x",)),
        Step("zeros", "sum", ("zero",), reduces=True),
        Step("others", "one_for_zero", ("x",)),
        Step("rest", "prod", ("others",), reduces=True),
        Step("nothing", "zero_for_others", ("x",)),
        Step("nought", "sum", ("nothing",), reduces=True),
    )

    @staticmethod
    def backward(ctx, g):
        """Return ``g`` times the slope of each element; of a single number, whose product it is, ``g``."""
        *_, shape, dtype, (_, *dim) = ctx.saved_meta
        if g is not None and not shape:
            return cast(g, dtype), *[None] * (1 + len(dim))
        return Selective.backward(ctx, g)

    @classmethod
    def jvp(cls, ctx, dx, *_):
        """Return the sum of the tangents of elements, each times its slope."""
        _, _, shape, _, (dtype, *dim) = ctx.saved_meta
        x, z = ctx.saved_tensors
        if dtype is not None:
            dx, x = dx.to(dtype), x.to(dtype)
        return f.sum(slope_by_formula(cls.slope, dx, x, z.view(keepdim_shape(shape, *dim)), *dim[:1]), *dim)


def prod(
    input: Tensor, dim: int = UNSET, keepdim: bool = UNSET, *, dtype: torch.dtype | None = None, out: Any = None
) -> Tensor:
    """Return the product over an axis or all, 1 for that of nothing, as :func:`torch.prod`; gradient: :class:`Prod`.

    Args:
        input: a tensor of any shape and dtype; integers and bool are multiplied in int64.
        dim: the axis to multiply over, negative ones counted from the end; all axes for nothing.
        keepdim: whether to keep this axis, with size 1; needs ``dim``.
        dtype: a dtype to cast ``input`` to first.
        out: a tensor to write the result to, resized; needs ``dim``.

    Raises:
        IndexError: ``dim`` is out of range.
        RuntimeError: ``dtype`` is given and ``out`` has another.
        TypeError: ``dim`` is not an int, or ``keepdim`` not a bool.

    >>> prod(torch.tensor([[1, 2], [3, 4]]), dim=0)
    tensor([3, 8])
    """
    return call_reduction(Prod, input, dtype, dim, keepdim, out)
