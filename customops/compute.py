"""Kernel or torch formula: the ways an operator computes, none of which knows which operator it is."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .dispatch import runs_kernel


class Like(NamedTuple):
    """All that a gradient has to know of its input."""

    shape: torch.Size
    dtype: torch.dtype


class _Spec(NamedTuple):
    """A tensor without its memory."""

    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def pointwise(formula: Callable, *args, out: Tensor | None = None) -> Tensor:
    """``formula`` on tensors and numbers, broadcast together."""
    given = {} if out is None else {"out": out}
    if not runs_kernel(formula.__name__, args, out) or _partly_overlap(out, args):
        return formula(*args, **given)
    spec = _spec(formula, args)
    z = torch.empty_strided(spec.shape, spec.strides, dtype=spec.dtype, device=spec.device)
    _launch([formula], _named(formula, args), [z], spec)
    return z if out is None else torch.maximum(z, z, out=out)  # torch's own resizing and casts


def pointwise_(formula: Callable, twin: Callable, x: Tensor, *args) -> Tensor:
    """``formula`` on ``x`` and the rest, written over ``x``; ``twin`` is torch's own way to do so."""
    if not runs_kernel(formula.__name__, (x, *args)):
        return twin(x, *args)
    spec = _spec(formula, (x, *args))
    if spec.shape != x.shape or not torch.can_cast(spec.dtype, x.dtype):
        return twin(x, *args)  # raises what torch raises
    _launch([formula], _named(formula, (x, *args)), [x], spec)
    if not x.is_inference():
        torch.autograd.graph.increment_version(x)
    return x


def pointwise_vjp(derivatives: Sequence[Callable], values: dict[str, Any], likes: Sequence[Like]) -> list[Tensor]:
    """The gradients that ``derivatives`` give, each summed to the shape of its input, in one pass.

    ``values`` holds by name what they read: the incoming gradient ``g``, inputs, output, numbers.
    """
    g = values["g"]
    if not runs_kernel(derivatives[0].__name__, list(values.values())):
        return [_fit(_pull_back(formula, values), like) for formula, like in zip(derivatives, likes, strict=True)]
    grads = [
        torch.empty_like(g, dtype=like.dtype)
        if like.shape == g.shape
        else torch.empty(like.shape, dtype=like.dtype, device=g.device)
        for like in likes
    ]
    _launch(derivatives, values, grads, _spec_of(g))
    return grads


def reduce(formula: Callable, x: Tensor, *dim, dtype: torch.dtype | None = None, out: Tensor | None = None) -> Tensor:
    """``formula`` over axes: over all of them where ``dim`` is empty, else it holds the axes and ``keepdim``."""
    options = {"dtype": dtype} | ({} if out is None else {"out": out})
    if not (_are_axes(*dim) and runs_kernel(formula.__name__, (x, dtype), out)) or _partly_overlap(out, (x,)):
        return formula(x, *dim, **options)
    spec = _spec(formula, (x, *dim), **options)
    axes = reduced_axes(x.dim(), *dim)
    kept = [1 if a in axes else n for a, n in enumerate(x.shape)]
    z = torch.empty(spec.shape, dtype=spec.dtype, device=x.device)
    count = prod(x.shape[a] for a in axes)
    _launch([], {"x": x}, [z.view(kept)], spec._replace(shape=x.shape), finish=(formula, count))
    return z if out is None else torch.maximum(z, z, out=out)


def reduced_axes(ndim: int, axes: Any = (), _keepdim: bool = False) -> set[int]:
    """The axes that a reduction runs over, counted from 0: all of them where none is named."""
    axes = (axes,) if isinstance(axes, int) else axes
    return {a % ndim for a in axes} if axes and ndim else set(range(ndim))


def _are_axes(axes: Any = (), _keepdim: bool = False) -> bool:
    """Whether ``axes`` is what a reduction usually gets; anything odder is torch's to read."""
    axes = axes if isinstance(axes, tuple | list) else () if axes is None else (axes,)
    return all(type(a) is int for a in axes)


def _pull_back(formula: Callable, values: dict[str, Any]) -> Tensor:
    """A derivative applied to the cotangent ``g``: for complex numbers, to its conjugate and conjugated back."""
    values = {name: values[name] for name in parameters(formula)}
    if not any(v.is_complex() if isinstance(v, Tensor) else isinstance(v, complex) for v in values.values()):
        return formula(**values)
    return formula(**{**values, "g": values["g"].conj()}).conj()


def _fit(grad: Tensor, like: Like) -> Tensor:
    """Sum a gradient over the axes that its input was broadcast along, and give it the input's dtype."""
    return cast(grad.sum_to_size(like.shape), like.dtype)


def cast(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """A gradient in the dtype of its input: a real one gets the real part."""
    return (grad.real if grad.is_complex() and not dtype.is_complex else grad).to(dtype)


@cache
def parameters(formula: Callable) -> tuple[str, ...]:
    """The names of what a formula reads, in order, ``out`` not among them."""
    return tuple(name for name, p in inspect.signature(formula).parameters.items() if p.kind == p.POSITIONAL_OR_KEYWORD)


def _named(formula: Callable, args: Sequence) -> dict[str, Any]:
    return dict(zip(parameters(formula), args, strict=True))


def _partly_overlap(out: Tensor | None, args: Sequence) -> bool:
    """Whether ``out`` shares memory with an argument but is not laid out as it is: torch may have to refuse that."""
    if out is None:
        return False
    return any(
        isinstance(x, Tensor)
        and x.untyped_storage().data_ptr() == out.untyped_storage().data_ptr()
        and (x.data_ptr(), *_spec_of(x)) != (out.data_ptr(), *_spec_of(out))
        for x in args
    )


def _spec(formula: Callable, args: tuple, **options) -> _Spec:
    """What torch would return for these arguments, raising what torch would raise."""
    try:
        named = tuple((name, _key(option)) for name, option in options.items())
        settings = torch.get_default_dtype(), torch.is_autocast_enabled()
        return _ask_torch(formula, tuple(map(_key, args)), named, *settings)
    except Exception:
        formula(*args, **options)  # so that the error speaks of the caller's tensors
        raise


def _key(arg: Any) -> Any:
    """An argument as a cache key: 2, 2.0 and True are one key without their type."""
    if isinstance(arg, Tensor):
        return _spec_of(arg)
    return type(arg), tuple(arg) if isinstance(arg, list) else arg


@lru_cache(maxsize=4096)
def _ask_torch(formula: Callable, args: tuple, options: tuple, *_settings) -> _Spec:
    """Run ``formula`` on single elements, where all of torch's checks are made, and on meta tensors for the shape."""

    def call(imagine: Callable) -> Tensor:
        given = [imagine(arg) if isinstance(arg, _Spec) else arg[1] for arg in args]
        named = {name: imagine(arg) if isinstance(arg, _Spec) else arg[1] for name, arg in options}
        return formula(*given, **named)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an ``out`` of one element is resized, the caller's may not be
        one = call(lambda spec: torch.ones([1] * len(spec.shape), dtype=spec.dtype, device=spec.device))
        many = call(lambda spec: torch.empty_strided(spec.shape, spec.strides, dtype=spec.dtype, device="meta"))
    return _Spec(many.shape, many.stride(), one.dtype, one.device)


def _spec_of(x: Tensor) -> _Spec:
    return _Spec(x.shape, x.stride(), x.dtype, x.device)


def _launch(formulas: Sequence[Callable], values: dict[str, Any], outputs: Sequence[Tensor], spec: _Spec, finish=None):
    """Hand tensors to the kernels: ``formulas`` over ``spec.shape``, summed where an output broadcasts to it."""
    from .triton_kernels.launch import run  # noqa: PLC0415 - Triton is imported by the first kernel

    values = {name: value.resolve_neg() if isinstance(value, Tensor) else value for name, value in values.items()}
    names = tuple(formula.__name__ for formula in formulas)
    run(names, values, outputs, spec.shape, spec.dtype, finish and (finish[0].__name__, finish[1]))
