"""Operators over axes: sum, mean, amax, amin.

Let alpha be the number of elements of the input and beta that of the output: each output is made of alpha/beta inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import index
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, is_grad_enabled
from torch.compiler import is_dynamo_compiling

from .. import formulas as f
from .._compat import forward_level, transforms_active
from ..compiler.executable import COMPUTE, Executable, by_kernel, gradient_spec
from ..compiler.graph import Graph, Input, Op
from ..compiler.vjp import add_steps
from ..runtime.elementwise import HALVES, cast, pointwise
from ..runtime.memory import positions
from ..runtime.paths import CLASSES, is_by_formula, is_private_cpu, is_recorded, is_strided, plan_key
from ..runtime.reduction import keepdim_shape, reduce, reduced_axes
from ..runtime.rules import parameters, tuple_getter
from .call import differentiates, tracing_hook
from .function import CustomFunction

Axes = int | Sequence[int] | None


class _NotGiven:
    """The default of an argument that has none."""

    def __repr__(self):
        return "..."


DIFFERENTIABLE = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128}
UNSET: Any = _NotGiven()  # torch tells dim=None from no dim
_FIRST_AND_LAST = tuple_getter((0, -1))  # x and z, out of all inputs and the output

__all__ = ["amax", "amin", "mean", "sum"]


class Step(NamedTuple):
    """A value that the derivative of a reduction reads, beside its input x and its output z."""

    name: str
    formula: str  # in ``formulas.py``
    inputs: tuple[str, ...]  # the names of what it is applied to
    reduces: bool = False  # whether it is a reduction over the same axes


class Slope(NamedTuple):
    """The derivative of a reduction, and how it is found: what a compiler sees of the operator in backward."""

    name: str  # of the operator's formula
    derivative: Callable
    steps: tuple[Step, ...]
    reads: tuple[str, ...]  # what the derivative reads, by name, in its order
    without_zeros: Callable | None = None  # the same of g, x and z where no x is 0, if that takes no steps


class Reduction(CustomFunction):
    """An operator over axes: its ``formula``, and its ``derivative``, None where each slope is 1.

    Takes x, a dtype or None, and what ``reduce`` takes as ``dim``. Saves shapes only, unless it says otherwise.
    """

    formula: ClassVar[Callable]
    eager: ClassVar[Callable]  # torch's function of the same name
    derivative: ClassVar[Callable | None] = None
    steps: ClassVar[tuple[Step, ...]] = ()  # what the derivative reads that is no x, z or count, in order

    @classmethod
    def forward(cls, x, dtype, *dim):
        """Return the value, by kernel or formula."""
        return reduce(cls.formula, x, *dim, dtype=dtype)

    @classmethod
    def recorded_value(cls, inputs):
        """Return the value inside ``record``, by kernel or formula."""
        x, dtype, *dim = inputs
        if dtype is None and is_by_formula(x):
            return cls.eager(x, *dim)
        return reduce(cls.formula, x, *dim, dtype=dtype)

    @classmethod
    def eager_call(cls, inputs):
        """Return torch's function for these inputs, and those that it takes: no dtype, where there is none."""
        x, dtype, *dim = inputs
        return (cls.eager, (x, *dim)) if dtype is None else (cls.by_formula, inputs)

    @classmethod
    def by_formula(cls, x, dtype, *dim):
        """Return the value, by formula."""
        return cls.formula(x, *dim, **({} if dtype is None else {"dtype": dtype}))

    @classmethod
    def prepare(cls, ctx, inputs):
        """Keep the arguments, and of x only shape and dtype; save no tensor."""
        x, *arguments = inputs
        ctx.saved_meta = cls.formula.__name__, cls.derivative, x.shape, x.dtype, arguments
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, g):
        """Return ``g`` scaled while it is small, then viewed in the shape of x: nothing of that size is written.

        Differentiated again, the view is a sum: of a half type it is taken, and scaled, in what kernels compute in.
        """
        _, derivative, shape, dtype, (_, *dim) = ctx.saved_meta
        if g is None:
            return None, *[None] * (1 + len(dim))
        again = dtype in HALVES and is_grad_enabled()
        if again:
            g = g.to(torch.promote_types(g.dtype, COMPUTE[dtype]))
        if derivative and (count := shape.numel() // max(g.numel(), 1)):
            g = pointwise(derivative, g, count)
        if g.dtype != dtype and not again:
            g = cast(g, dtype)
        if dim and g.shape != (keepdim := keepdim_shape(shape, *dim)):
            g = g.view(*keepdim)
        g = g.expand(*shape or (shape,))  # one by one: torch takes 1 us longer to read a Size
        return cast(g, dtype) if again else g, *[None] * (1 + len(dim))

    @classmethod
    def jvp(cls, ctx, dx, *_):
        """Return the operator of the tangent: the operator is linear."""
        *_, (dtype, *dim) = ctx.saved_meta
        return cls.formula(dx, *dim, dtype=dtype)


class Selective(Reduction):
    """An operator over axes whose derivative reads x and z, and what its ``steps`` make of them. Saves both."""

    derivative: ClassVar[Callable]
    steps: ClassVar[tuple[Step, ...]]
    without_zeros: ClassVar[Callable | None] = None
    slope: ClassVar[Slope]

    def __init_subclass__(cls):
        """Give each operator its slope."""
        super().__init_subclass__()
        if hasattr(cls, "formula") and hasattr(cls, "steps"):
            reads = tuple(parameters(cls.derivative))
            cls.slope = Slope(cls.formula.__name__, cls.derivative, cls.steps, reads, cls.without_zeros)

    @classmethod
    def prepare(cls, ctx, inputs):
        """Save x and z, too."""
        super().prepare(ctx, inputs)
        ctx.saved_meta = cls.slope, *ctx.saved_meta[1:]
        return _FIRST_AND_LAST

    @classmethod
    def setup_context(cls, ctx, inputs, output):
        """Save x and z for forward mode, too."""
        super().setup_context(ctx, inputs, output)
        ctx.save_for_forward(inputs[0], output)

    @staticmethod
    def backward(ctx, g):
        """Return ``g`` times the slope of each element."""
        slope, _, shape, _, (dtype, *dim) = ctx.saved_meta
        others = [None] * (1 + len(dim))
        if g is None:
            return None, *others
        x, z = ctx.saved_tensors
        if g.shape != (keepdim := keepdim_shape(shape, *dim)):
            g, z = g.view(*keepdim), z.view(*keepdim)
        y = x if dtype is None else x.to(dtype)
        if y.is_complex():
            y, z = y.conj(), z.conj()
        grad = times_slope(slope, g, y, z, *dim[:1])
        return grad if grad.dtype is x.dtype else grad.to(x.dtype), *others


class Extremum(Selective):
    """An operator over axes that gives one of the values: z_j = x_i for some i, of those that output j is made of.

    Where a single x_i equals z_j, moving it moves z_j as much, and moving any other a little does nothing: the slope
    is 1 for that i, else 0. Where n of them do there is a kink, with a gradient on each side that gives all of the
    slope to one of the n. The mean of these n is in the subdifferential (of amin in the superdifferential), prefers
    none of them, and is torch's choice too:

        dx_i = g_j·[x_i = z_j] / n_j,   n_j = Σ_i [x_i = z_j]

    Forward, dz_j = Σ_i [x_i = z_j]·dx_i / n_j. Where z_j is nan nothing equals it, and 0/0 makes all of these nan.

    Saves x and z.
    """

    derivative = staticmethod(f.extremum_dx)
    steps = Step("mask", "equal", ("x", "z")), Step("ties", "sum", ("mask",), reduces=True)

    @classmethod
    def jvp(cls, ctx, dx, *_):
        """Return the mean of the tangents of the elements that are the output."""
        _, _, shape, _, (_, *dim) = ctx.saved_meta
        x, z = ctx.saved_tensors
        z = z.view(keepdim_shape(shape, *dim))
        tangents = torch.where(x == z, dx, 0)  # of an element that is not the output, even inf
        wide = COMPUTE[x.dtype]
        mean = f.sum(tangents, *dim, dtype=wide) / f.sum(f.equal(x, z), *dim, dtype=wide)
        return mean if wide == x.dtype else mean.to(f.sum(tangents.new_zeros(())).dtype)  # under autocast it is wide


class Sum(Reduction):
    """z_j = Σ_i x_i over the elements i that output j is made of.

    Each x_i adds 1·x_i to one output, dz_j/dx_i = 1 for that one and 0 for every other:

        dx_i = g_j
    """

    formula = staticmethod(f.sum)
    eager = staticmethod(torch.sum)


class Mean(Reduction):
    """z_j = (beta/alpha)·Σ_i x_i over the elements i that output j is made of.

    A sum scaled by one over the alpha/beta elements in it, so dz_j/dx_i = beta/alpha:

        dx_i = (beta/alpha)·g_j

    (The source notebook has the inverse factor, alpha/beta, for the mean over an axis.)
    """

    formula = staticmethod(f.mean)
    eager = staticmethod(torch.mean)
    derivative = staticmethod(f.mean_dx)


class Amax(Extremum):
    """z_j = max_i x_i over the elements i that output j is made of, nan if one is; gradient as :class:`Extremum`."""

    formula = staticmethod(f.amax)
    eager = staticmethod(torch.amax)


class Amin(Extremum):
    """z_j = min_i x_i over the elements i that output j is made of, nan if one is; gradient as :class:`Extremum`."""

    formula = staticmethod(f.amin)
    eager = staticmethod(torch.amin)


def sum(
    input: Tensor,
    dim: Axes = UNSET,
    keepdim: bool = UNSET,
    *,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Return the sum over axes, as :func:`torch.sum`; gradient: :class:`Sum`.

    Args:
        input: a tensor of any shape and dtype; integers and bool are summed in int64.
        dim: the axes to sum over, negative ones counted from the end; all axes for None, () or nothing.
        keepdim: whether to keep each of these axes, with size 1; needs ``dim``.
        dtype: a dtype to cast ``input`` to first.
        out: a tensor to write the result to, resized; needs ``dim``.

    Raises:
        IndexError: ``dim`` is out of range.
        RuntimeError: an axis appears twice, or ``dtype`` is given and ``out`` has another.
        TypeError: ``dim`` is not an int, or ``keepdim`` not a bool.

    >>> sum(torch.tensor([[1, 2], [3, 4]]), dim=0)
    tensor([4, 6])
    """
    return call_reduction(Sum, input, dtype, dim, keepdim, out)


def mean(
    input: Tensor,
    dim: Axes = UNSET,
    keepdim: bool = UNSET,
    *,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Return the mean over axes, nan for that of nothing, as :func:`torch.mean`; gradient: :class:`Mean`.

    Args:
        input: a tensor of any shape and of a floating or complex dtype, unless ``dtype`` is given.
        dim: the axes to average over, negative ones counted from the end; all axes for None, () or nothing.
        keepdim: whether to keep each of these axes, with size 1; needs ``dim``.
        dtype: a floating or complex dtype to cast ``input`` to first.
        out: a tensor to write the result to, resized.

    Raises:
        IndexError: ``dim`` is out of range.
        RuntimeError: ``input`` has integers or bool and no ``dtype`` is given, an axis appears twice, or ``dtype`` is
            given and ``out`` has another.
        TypeError: ``dim`` is not an int, or ``keepdim`` not a bool.

    >>> mean(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), dim=(0, 1), keepdim=True)
    tensor([[2.5000]])
    """
    return call_reduction(Mean, input, dtype, dim, keepdim, out)


def amax(input: Tensor, dim: Axes = UNSET, keepdim: bool = UNSET, *, out: Tensor | None = None) -> Tensor:
    """Return the greatest value over axes, nan where there is one, as :func:`torch.amax`; gradient: :class:`Amax`.

    Args:
        input: a tensor of any shape and real dtype; the result has the same dtype.
        dim: the axes to reduce, negative ones counted from the end; all axes for None, () or nothing.
        keepdim: whether to keep each of these axes, with size 1.
        out: a tensor to write the result to, resized.

    Raises:
        IndexError: ``dim`` is out of range, or an axis of size 0.
        NotImplementedError: ``input`` is complex.
        RuntimeError: an axis appears twice, ``out`` has another dtype, or ``input`` is empty and ``dim`` not given.
        TypeError: ``dim`` is not an int, or ``keepdim`` not a bool.

    >>> amax(torch.tensor([[1, 2], [4, 3]]), dim=0)
    tensor([4, 3])
    """
    return call_reduction(Amax, input, None, _or_all(dim, keepdim), keepdim, out)


def amin(input: Tensor, dim: Axes = UNSET, keepdim: bool = UNSET, *, out: Tensor | None = None) -> Tensor:
    """Return the least value over axes, nan where there is one, as :func:`torch.amin`; gradient: :class:`Amin`.

    Args:
        input: a tensor of any shape and real dtype; the result has the same dtype.
        dim: the axes to reduce, negative ones counted from the end; all axes for None, () or nothing.
        keepdim: whether to keep each of these axes, with size 1.
        out: a tensor to write the result to, resized.

    Raises:
        IndexError: ``dim`` is out of range, or an axis of size 0.
        NotImplementedError: ``input`` is complex.
        RuntimeError: an axis appears twice, ``out`` has another dtype, or ``input`` is empty and ``dim`` not given.
        TypeError: ``dim`` is not an int, or ``keepdim`` not a bool.

    >>> amin(torch.tensor([[1.0, 2.0], [4.0, 3.0]]), dim=1, keepdim=True)
    tensor([[1.],
            [3.]])
    """
    return call_reduction(Amin, input, None, _or_all(dim, keepdim), keepdim, out)


def _or_all(dim: Any, keepdim: Any) -> Any:
    """Return ``dim``, or every axis where only ``keepdim`` is given, which torch takes by itself for these."""
    return () if type(dim) is _NotGiven and keepdim is not UNSET else dim


def times_slope(slope: Slope, g: Tensor, x: Tensor, z: Tensor, *dim) -> Tensor:
    """Return ``g`` times the slope of each element of x; one kernel does it, but for very long rows."""
    tensors = g, x, z
    if layout := plan_key(tensors):
        reduced = reduced_axes(x.dim(), *dim)
        key = slope, *reduced
        grads = by_kernel(slope.name, key, layout, tensors, lambda _: _compile_slope(slope, g, x, z, reduced))
        if grads is not None:
            return grads[0]
    return slope_by_formula(slope, g, x, z, *dim)


def slope_by_formula(slope: Slope, g: Tensor, x: Tensor, z: Tensor, *dim) -> Tensor:
    """Return the same, by torch's formulas; ``g`` may have the shape of x, as a tangent has."""
    # A mask in the dtype of x at once: one of bool takes a pass more, and torch sums and multiplies it in several.
    is_private = is_private_cpu((x, z))
    if slope.without_zeros and is_private and x.all():
        return slope.without_zeros(g, x, z)
    out = {"out": torch.empty_like(x)} if is_private else {}
    wide = {"dtype": COMPUTE.get(x.dtype)}  # a half type counts no further than 256 or 2048
    named, axes = {"g": g, "x": x, "z": z}, sorted(reduced_axes(x.dim(), *dim))
    if "position" in slope.reads:
        named["position"] = positions(tuple(_along(x, axes)), COMPUTE[x.dtype], x.device)
    for name, formula, inputs, reduces in slope.steps:
        function, args = getattr(f, formula), [named[each] for each in inputs]
        if reduces:
            named[name] = function(*args, axes, True, **(wide if formula in ("sum", "prod") else {}))
        else:
            named[name] = function(*args, **(out if formula == "equal" else {}))
    return slope.derivative(*[named[each] for each in slope.reads])


def _along(x: Tensor, axes: Sequence[int]) -> list[int]:
    """Return the shape of what varies along these axes of x alone."""
    return [n if a in axes else 1 for a, n in enumerate(x.shape)]


def _compile_slope(slope: Slope, g: Tensor, x: Tensor, z: Tensor, reduced: set[int]) -> Executable:
    """Return the kernels of :func:`times_slope` for this layout; ``g`` and ``z`` have size 1 where x is reduced."""
    dims = tuple(None if n == 1 else a for a, n in enumerate(x.shape))
    keepdim = tuple(None if a in reduced else axis for a, axis in enumerate(dims))
    graph = Graph(dict(enumerate(x.shape)))
    inputs = {"g": keepdim, "x": dims, "z": keepdim}
    named = {name: graph.add(Input(name, each)) for name, each in inputs.items()}
    tensors = dict(zip(named.values(), (g, x, z), strict=True))
    add_steps(graph, slope, named, frozenset(reduced & set(dims)))
    derivative = slope.derivative
    graph.results = [(graph.add(Op(derivative.__name__, tuple(named[each] for each in parameters(derivative)))), dims)]
    common = torch.promote_types(x.dtype, z.dtype)  # z may be wider, under autocast
    return Executable(graph, tensors, [gradient_spec(x)], common)


def call_reduction(operator: type[Reduction], x, dtype, dim=UNSET, keepdim=UNSET, out=None) -> Tensor:
    """Apply ``operator``, and let autograd record it where a derivative can be asked for."""
    is_given = type(dim) is not _NotGiven  # not `is UNSET`: torch 2.11 compiles that for no symbolic integer
    if not is_given and keepdim is not UNSET:
        return operator.formula(x, keepdim=keepdim)  # raises: torch wants a dim with it
    axes: tuple = ()
    if is_given:
        axes = dim if type(dim) is int else _as_ints(dim), False if keepdim is UNSET else keepdim
    if out is None and dtype is None and type(x) in CLASSES and forward_level() < 0:
        recorded = x.requires_grad and is_recorded()
        if recorded and is_strided(x) and not transforms_active():
            return operator.record(x, dtype, *axes)
        if not recorded:
            return operator.eager(x, *axes) if is_by_formula(x) else reduce(operator.formula, x, *axes)
    if trace := tracing_hook((x,)):
        return trace(operator, (x, dtype, *axes))
    if out is None and differentiates((x,)) and (dtype is None or dtype in DIFFERENTIABLE):
        return operator.apply(x, dtype, *axes)
    return reduce(operator.formula, x, *axes, dtype=dtype, out=out)


def _as_ints(dim: Any) -> Any:
    """Return ``dim`` in Python's integers, and not the caller's list, which may change before backward."""
    if isinstance(dim, list | tuple):
        return tuple([axis if type(axis) is int else _as_ints(axis) for axis in dim])
    if isinstance(dim, Tensor) and is_dynamo_compiling():
        return dim  # torch 2.11 compiles a sum over one, but no index of it
    return index(dim) if isinstance(dim, np.integer | Tensor) else dim
