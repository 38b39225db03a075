"""Torch's views, slices and concatenations of a traced tensor, by their names, as operators of shapes.py.

Each asks torch what it would do: of a tensor on the meta device, which has no memory. What they raise where torch
raises an error does not matter: the caller runs the function on the tensors, so that torch's error speaks of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from operator import index
from typing import Any

import torch
from torch import Tensor

from ..ops.call import tracing_hook
from .shapes import Cat, Expand, Narrow, Permute, Regroup

INDICES = "ints, slices, None and ..."


class NotAView(Exception):
    """The error of what is no view that can be traced; its text says what."""


def ghost(x: Any) -> Any:
    """Return a dense tensor of the shape of ``x`` without memory, if it is a tensor; all else as it is."""
    return torch.empty(x.shape, device="meta") if isinstance(x, Tensor) else x


def _apply(operator: Any, *inputs: Any) -> Any:
    trace = tracing_hook(inputs)
    assert trace  # one of them is traced
    return trace(operator, inputs)


def _regroups(name: str, copies: bool = False) -> Callable:
    """Return the function of torch's method ``name``, which gives dimensions other sizes."""
    method = getattr(Tensor, name)

    def regrouped(x: Any, *args: Any, **kwargs: Any) -> Any:
        if not tracing_hook((x,)):  # a tensor seen as a stand-in is
            return method(x, *map(ghost, args), **{name: ghost(each) for name, each in kwargs.items()})
        if torch.dtype in map(type, (*args, *kwargs.values())):
            raise NotAView("the bits of a traced tensor cannot be seen as another dtype")
        return _regroup(x, method(ghost(x), *map(ghost, args), **kwargs).shape, copies)

    return regrouped


def _permutes(name: str) -> Callable:
    """Return the function of torch's method or property ``name``, which puts dimensions in another order."""
    attribute = getattr(Tensor, name)
    method = attribute if callable(attribute) else attribute.__get__

    def permuted(x: Any, *args: Any, **kwargs: Any) -> Any:
        before = torch.empty([2] * x.dim(), device="meta")
        after = method(before, *args, **kwargs)
        return _apply(Permute, x, tuple(map(before.stride().index, after.stride())))

    return permuted


def _expands(name: str) -> Callable:
    """Return the function of torch's method ``name``, which repeats a tensor along dimensions of size 1."""
    method = getattr(Tensor, name)

    def expanded(x: Any, *args: Any, **kwargs: Any) -> Any:
        if not tracing_hook((x,)):  # likewise
            return method(x, *map(ghost, args), **{name: ghost(each) for name, each in kwargs.items()})
        shape = method(ghost(x), *map(ghost, args), **kwargs).shape
        return x if shape == x.shape else _apply(Expand, x, tuple(shape))

    return expanded


def _takes_apart(name: str) -> Callable:
    """Return the function of torch's method ``name``, which gives ranges of a dimension, one after another."""
    method = getattr(Tensor, name)

    def taken_apart(x: Any, *args: Any, **kwargs: Any) -> Any:
        found = method(ghost(x), *args, **kwargs)
        d = index(kwargs.get("dim", args[1] if len(args) > 1 else 0)) % x.dim()
        starts = [sum(each.shape[d] for each in found[:k]) for k in range(len(found))]
        return type(found)(_narrow(x, d, at, each.shape[d]) for at, each in zip(starts, found, strict=True))

    return taken_apart


def narrow(x: Any, dim: int, start: int, length: int) -> Any:
    """Return ``x.narrow(...)``."""
    ghost(x).narrow(dim, start, length)
    d = index(dim) % x.dim()
    at = index(start)
    return _narrow(x, d, at + x.shape[d] if at < 0 else at, index(length))


def select(x: Any, dim: int, index: int) -> Any:
    """Return ``x.select(...)``."""
    sizes = ghost(x).select(dim, index).shape
    d = dim % x.dim()
    return _regroup(_narrow(x, d, index % x.shape[d], 1), sizes)


def unbind(x: Any, dim: int = 0) -> tuple:
    """Return ``x.unbind(...)``."""
    return tuple(select(x, dim, k) for k in range(len(ghost(x).unbind(dim))))


def iterate(x: Any) -> Iterator:
    """Return an iterator over dimension 0."""
    return iter(unbind(x))


def repeat(x: Any, *each: Any, repeats: Sequence[int] = ()) -> Any:
    """Return ``x.repeat(...)``."""
    times = repeats or (each if each and type(each[0]) is int else each[0])
    shape = ghost(x).repeat(times).shape
    x = _regroup(x, torch.Size([*[1] * (len(shape) - x.dim()), *x.shape]))
    return _repeat(x, times, lambda n, times: (times, n))


def tile(x: Any, *each: Any, dims: Sequence[int] = ()) -> Any:
    """Return ``x.tile(...)``: as ``repeat``, of fewer numbers than x has dimensions, too."""
    times = dims or (each if each and type(each[0]) is int else each[0])
    return repeat(x, *[1] * (x.dim() - len(times)), *times)


def repeat_interleave(x: Any, repeats: int, dim: int | None = None, *, output_size: int | None = None) -> Any:
    """Return ``x.repeat_interleave(...)`` of one number of times."""
    if type(repeats) is not int:
        raise NotAView("repeat_interleave by a tensor, or of one, cannot be traced, only by a number")
    ghost(x).repeat_interleave(repeats, dim, output_size=output_size)
    if dim is None:
        x, dim = _regroup(x, torch.Size([x.numel()]), copies=True), 0
    times = [repeats if d == dim % x.dim() else 1 for d in range(x.dim())]
    return _repeat(x, times, lambda n, times: (n, times))


def cat(tensors: Sequence, dim: int = 0) -> Any:
    """Return ``torch.cat(...)``."""
    ranks = {x.dim() for x in tensors if x.shape != (0,)}
    if len(ranks) == 1 and any(x.shape == (0,) for x in tensors) and ranks != {1}:
        raise NotAView("a tensor of shape (0,) cannot be joined with others")
    d = range(tensors[0].dim())[dim]
    like = {(x.dtype, *x.shape[:d], *x.shape[d + 1 :]) for x in tensors}
    there = [x for x in tensors if x.shape[d] or len(like) > 1]  # what a rotary embedding passes may be nothing
    return _apply(Cat, d, *(there if tracing_hook(there) else tensors))


def stack(tensors: Sequence, dim: int = 0) -> Any:
    """Return ``torch.stack(...)``."""
    shape = tensors[0].shape
    d = range(len(shape) + 1)[dim]
    if any(x.shape != shape for x in tensors):
        raise ValueError("tensors of several shapes cannot be stacked")  # torch says so
    return _apply(Cat, d, *[_regroup(x, torch.Size([*shape[:d], 1, *shape[d:]])) for x in tensors])


def get_item(x: Any, key: Any) -> Any:
    """Return ``x[key]`` of an index without values."""
    items = list(key) if type(key) is tuple else [key]
    for item in items:
        if type(item) not in (int, slice, type(None), type(Ellipsis)):
            raise NotAView(f"an index of type {type(item).__name__} cannot be traced, only {INDICES}")
    ghost(x)[key]
    if Ellipsis not in items:
        items.append(Ellipsis)
    at, taken = items.index(Ellipsis), sum(item is not None and item is not Ellipsis for item in items)
    items[at : at + 1] = [slice(None)] * (x.dim() - taken)
    sizes: list[int] = []
    dim = 0
    for item in items:
        if item is None:
            sizes.append(1)
        elif type(item) is int:
            x, dim = _narrow(x, dim, item % x.shape[dim], 1), dim + 1
        else:
            x, dim = _slice(x, dim, range(x.shape[dim])[item]), dim + 1
            sizes.append(x.shape[dim - 1])
    return _regroup(x, torch.Size(sizes))


def _slice(x: Any, d: int, chosen: range) -> Any:
    """Return the elements ``chosen`` of dimension d: one of each group of ``step`` elements."""
    n, step, length = x.shape[d], chosen.step, len(chosen)
    if step == 1 or length < 2:
        return _narrow(x, d, chosen.start if length else 0, length)
    place = max(0, chosen.start + length * step - n)  # of the element in its group
    if place > chosen.start:
        raise NotAView(f"a slice in steps of {step} of {n} elements cannot be traced, as its last group is not whole")
    x = _narrow(x, d, chosen.start - place, length * step)
    x = _regroup(x, torch.Size([*x.shape[:d], length, step, *x.shape[d + 1 :]]))
    x = _narrow(x, d + 1, place, 1)
    return _regroup(x, torch.Size([*x.shape[: d + 1], *x.shape[d + 2 :]]))


def _narrow(x: Any, d: int, start: int, length: int) -> Any:
    return x if length == x.shape[d] else _apply(Narrow, x, d, start, length)


def _regroup(x: Any, sizes: torch.Size, copies: bool = False) -> Any:
    return x if sizes == x.shape else _apply(Regroup, x, copies, tuple(sizes))


def _repeat(x: Any, times: Sequence[int], order: Callable[[int, int], tuple[int, int]]) -> Any:
    """Return a copy of ``x`` that is repeated so many times along each dimension, which is ``order(size, times)``."""
    if all(each == 1 for each in times):
        return x.clone()
    pairs = list(zip(x.shape, times, strict=True))
    x = _regroup(x, torch.Size(chain.from_iterable(order(n, 1) for n, _ in pairs)))
    x = _apply(Expand, x, tuple(chain.from_iterable(order(n, each) for n, each in pairs)))
    return _regroup(x, torch.Size([n * each for n, each in pairs]), copies=True)


_COPY = frozenset({"reshape", "reshape_as", "flatten", "ravel"})
_REGROUP = ("view", "view_as", "unflatten", "unsqueeze", "squeeze", *_COPY)
_PERMUTE = ("permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims", "t", "T", "mT")
# The methods of a traced tensor, by name; torch has most of them as functions, too.
METHODS: dict[str, Callable] = {
    **{name: _regroups(name, name in _COPY) for name in _REGROUP},
    **{name: _permutes(name) for name in _PERMUTE},
    **{name: _expands(name) for name in ("expand", "expand_as", "broadcast_to")},
    **{name: _takes_apart(name) for name in ("chunk", "split", "tensor_split")},
    **{"narrow": narrow, "select": select, "unbind": unbind},
    **{"repeat": repeat, "repeat_interleave": repeat_interleave, "tile": tile},
}
PROPERTIES = ("T", "mT")
_JOINS = {"cat": cat, "concat": cat, "concatenate": cat, "stack": stack}
# Torch's functions, and what each of them does with traced tensors.
FUNCTIONS: dict[Any, Callable] = {
    **{getattr(torch, name): function for name, function in {**METHODS, **_JOINS}.items() if hasattr(torch, name)},
    **{getattr(Tensor, name): function for name, function in METHODS.items()},
}
