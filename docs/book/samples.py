"""The call that a function's docstring shows, as something that can be called with other tensors and libraries."""

from __future__ import annotations

import ast
import doctest
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

import customops

SHORT = {"input": "x", "other": "y", "exponent": "y", "x1": "x", "x2": "y", "cond": "condition"}


class Argument(NamedTuple):
    """An argument of the call."""

    parameter: str  # of the function
    keyword: bool  # whether it is given by name
    value: Any
    source: str  # the Python of the value

    @property
    def moves(self) -> bool:
        """Return whether it is a tensor with a gradient."""
        return isinstance(self.value, Tensor) and self.value.is_floating_point()

    @property
    def name(self) -> str:
        """Return the variable that the page has for it."""
        return SHORT.get(self.parameter, self.parameter)


class Sample(NamedTuple):
    """The call with the most tensors that the docstring of a public function shows."""

    name: str  # of the function
    place: str  # ops, or ops.nn.functional
    function: Callable[..., Any]
    arguments: tuple[Argument, ...]

    @property
    def tensors(self) -> list[Tensor]:
        """Return the tensors that have a gradient, in float32."""
        return [argument.value for argument in self.arguments if argument.moves]

    @property
    def names(self) -> list[str]:
        """Return the variables that the page has for them."""
        return [argument.name for argument in self.arguments if argument.moves]

    def call(self, function: Callable[..., Any], *tensors: Tensor) -> Any:
        """Call ``function`` with these tensors in place of those that have a gradient."""
        left, args, kwargs = list(tensors), [], {}
        for argument in self.arguments:
            value = left.pop(0) if argument.moves else argument.value
            if argument.keyword:
                kwargs[argument.parameter] = value
            else:
                args.append(value)
        return function(*args, **kwargs)

    def results(self, function: Callable[..., Any], *tensors: Tensor) -> list[Tensor]:
        """Return all results of the call that have a gradient."""
        z = self.call(function, *tensors)
        every = [z] if isinstance(z, Tensor) else list(z)
        return [each for each in every if isinstance(each, Tensor) and each.is_floating_point()]

    def sized(self, alone: int, several: int) -> Sample:
        """Return the same call of tensors of other sizes, which hold no values.

        Each axis of several elements has ``alone`` where no tensor has more than one axis, else ``several``; so has the
        first of several axes, whatever its size.
        """
        size = alone if max(x.dim() for x in self.tensors) == 1 else several
        grows = all(x.numel() == 1 for x in self.tensors)

        def resize(value: Any) -> Any:
            if isinstance(value, Tensor):
                shape = [
                    size if n > 1 or grows or (value.dim() > 1 and axis == 0) else n
                    for axis, n in enumerate(value.shape)
                ]
                return torch.empty(shape, dtype=value.dtype) if value.is_floating_point() else value.new_zeros(shape)
            is_shape = isinstance(value, tuple) and value and all(type(n) is int and n > 1 for n in value)
            return tuple(size for _ in value) if is_shape else value

        return self._replace(arguments=tuple(a._replace(value=resize(a.value)) for a in self.arguments))


def sample(name: str, place: str, function: Callable[..., Any]) -> Sample:
    """Return the call that the docstring of a function shows; raise ValueError where there is none."""
    found = []
    for example in doctest.DocTestParser().get_examples(inspect.getdoc(function) or ""):
        calls = [node for node in ast.walk(ast.parse(example.source)) if isinstance(node, ast.Call)]
        found += [node for node in calls if isinstance(node.func, ast.Name) and node.func.id == name]
    if not found:
        raise ValueError(f"{name}: expected a call of it in its docstring, as '>>> {name}(...)', got none")
    tried = [Sample(name, place, function, _arguments(node, function)) for node in found]
    return max(tried, key=lambda each: len(each.tensors))


def _arguments(node: ast.Call, function: Callable[..., Any]) -> tuple[Argument, ...]:
    parameters = [*inspect.signature(function).parameters]
    given = [(parameters[i], False, value) for i, value in enumerate(node.args)]
    given += [(str(keyword.arg), True, keyword.value) for keyword in node.keywords]
    names = {"torch": torch, "math": __import__("math"), "customops": customops}
    values = [eval(ast.unparse(value), names) for _, _, value in given]  # of our own docstrings
    floats = any(isinstance(x, Tensor) and x.is_floating_point() for x in values)
    out = []
    for (parameter, keyword, value), evaluated in zip(given, values, strict=True):
        source = ast.unparse(value)
        is_number = isinstance(evaluated, Tensor) and evaluated.dtype == torch.int64
        if is_number and not floats:  # an operator of integers, shown of floats, which have gradients
            evaluated = evaluated.float()
            source = f"torch.tensor({evaluated.tolist()})"
        out.append(Argument(parameter, keyword, evaluated, source))
    return tuple(out)


def counterpart(each: Sample) -> Callable[..., Any] | None:
    """Return torch's function of that name, or None where torch has none."""
    places: tuple[ModuleType, ...] = (torch.nn.functional, torch, torch.linalg)
    if each.place == "ops":
        places = (torch, torch.nn.functional, torch.linalg)
    return next((getattr(place, each.name) for place in places if hasattr(place, each.name)), None)


def is_elementwise(each: Sample) -> bool:
    """Return whether element i of the result depends on element i of each tensor alone, whatever their shape."""
    torch.manual_seed(0)
    xs = [torch.rand(5) + 0.25 for _ in each.tensors]
    others = [a.value for a in each.arguments if isinstance(a.value, Tensor) and not a.moves]
    if others:
        return False
    try:
        before = each.results(each.function, *xs)
        after = each.results(each.function, *[torch.cat((x[:2] + 0.5, x[2:])) for x in xs])
    except (RuntimeError, ValueError, IndexError, TypeError):
        return False
    shapes = {z.shape for z in (*before, *after)}
    return shapes == {xs[0].shape} and len(before) == 1 and torch.equal(before[0][2:], after[0][2:])
