"""Inputs to try a module on: those of one call of the model, or some that its parameters suggest."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import is_dataclass
from inspect import Parameter as Argument
from inspect import signature
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

ROWS = 2, 3  # the dimensions before those of a parameter, of an input that is drawn
WIDTH = 8  # the last one where there is no parameter
MOST_DRAWN = 16  # draws for one module


class Probe(NamedTuple):
    """The arguments of one call."""

    args: tuple
    kwargs: dict[str, Any]

    def fresh(self) -> Probe:
        """Return copies: new tensors, of which all that can require a gradient do, and new objects."""
        copies: dict[int, Tensor] = {}
        args, kwargs = copied(self)
        return Probe(mapped(lambda x: _fresh(x, copies), args), mapped(lambda x: _fresh(x, copies), kwargs))

    def tensors(self) -> list[Tensor]:
        """Return all tensors in it, each once."""
        return list({id(x): x for x in flat((self.args, self.kwargs))}.values())


def flat(x: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists, dictionaries and dataclasses."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, tuple | list | dict):
        for each in x.values() if isinstance(x, dict) else x:
            yield from flat(each)
    elif is_dataclass(x) and not isinstance(x, type):
        yield from flat(vars(x))


def mapped(function: Callable, x: Any, kind: type = Tensor) -> Any:
    """Return nested tuples, lists and dictionaries with ``function`` of each tensor; all else as it is."""
    if isinstance(x, kind):
        return function(x)
    if type(x) in (tuple, list):
        return type(x)(mapped(function, each, kind) for each in x)
    return {name: mapped(function, each, kind) for name, each in x.items()} if type(x) is dict else x


def copied(probe: Probe) -> Probe:
    """Return a probe whose objects, such as caches, are other ones, where these can be copied; its tensors stay."""
    memo = {id(x): x for x in probe.tensors()}
    try:
        return Probe(*copy.deepcopy((probe.args, probe.kwargs), memo))
    except Exception:
        return probe


def _fresh(x: Tensor, copies: dict[int, Tensor]) -> Tensor:
    if id(x) not in copies:
        copies[id(x)] = x.detach().clone().requires_grad_(x.is_floating_point())
    return copies[id(x)]


def recorded(model: Module, example: Any) -> dict[Module, Probe]:
    """Return the arguments of the first call of each module while ``model`` is called, once and without gradients.

    ``example`` is a dictionary of keyword arguments, a tuple or list of others, or the only argument. Buffers and the
    generators of random numbers are as before afterwards.
    """
    probes: dict[Module, Probe] = {}

    def keep(module: Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if module not in probes:
            probes[module] = copied(Probe(args, kwargs))

    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(module.register_forward_pre_hook(keep, with_kwargs=True).remove)
        stack.enter_context(unchanged(model))
        stack.enter_context(torch.no_grad())
        if isinstance(example, Mapping):
            model(**example)
        else:
            model(*example) if isinstance(example, tuple | list) else model(example)
    return probes


@contextmanager
def unchanged(model: Module) -> Iterator[None]:
    """Put back what calls inside may change without being asked: modules, and generators of random numbers."""
    state = State(model)
    devices = {x.device.index for x in model.parameters() if x.is_cuda}
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        state.restore()


class State:
    """What the modules of a model were: values of buffers, attributes, and what lists, sets and dictionaries there had.

    Memory is copied for buffers alone.
    """

    def __init__(self, model: Module):
        self._buffers = [(x, x.clone()) for x in model.buffers()]
        attributes = [vars(module) for module in model.modules()]
        containers = [x for each in attributes for x in each.values() if type(x) in (list, set, dict)]
        self._containers: list[tuple[Any, Any]] = [(x, x.copy()) for x in (*attributes, *containers)]

    def restore(self) -> None:
        """Put all of it back."""
        for now, before in self._containers:
            now.clear()
            (now.extend if isinstance(now, list) else now.update)(before)
        with torch.no_grad():
            for x, before in self._buffers:
                if not torch.equal(x, before):  # batch_norm counts none of its writes
                    x.copy_(before)


def drawn(module: Module) -> Probe | None:
    """Return inputs that ``module`` computes something of, None if none are found.

    Each argument without a default is a random tensor, whose last dimensions are those of a parameter or buffer: the
    first that ``module`` takes.
    """
    names = _needed(type(module).forward)
    if not names:
        return None
    tensors = [x for x in (*module.parameters(), *module.buffers()) if x.is_floating_point()]
    like = tensors[0] if tensors else torch.empty(0)
    shapes = list(dict.fromkeys((*ROWS, *ends) for x in tensors for ends in _ends(x))) or [(*ROWS, WIDTH)]
    for k, chosen in enumerate(product(shapes, repeat=len(names))):
        if k == MOST_DRAWN:
            break
        probe = Probe(tuple(torch.randn(shape, dtype=like.dtype, device=like.device) for shape in chosen), {})
        with unchanged(module), torch.no_grad():
            if _accepts(module, probe):
                return probe
    return None


def _accepts(module: Module, probe: Probe) -> bool:
    """Return whether ``module`` computes something of these arguments."""
    try:
        type(module).forward(module, *probe.args)
    except Exception:
        return False
    return True


def _needed(forward: Callable) -> Sequence[str]:
    """Return the names of arguments without a default, after the module; none if one can be passed by name only."""
    parameters = list(signature(forward).parameters.values())[1:]
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return [p.name for p in needed] if all(p.kind != Argument.KEYWORD_ONLY for p in needed) else []


def _ends(x: Tensor) -> Iterable[tuple[int, ...]]:
    """Return what the last dimensions of an input may be that meets ``x``."""
    return (tuple(x.shape), (x.shape[-1],)) if x.dim() == 1 else ((x.shape[-1],), tuple(x.shape)) if x.dim() else ()
