"""What overrides or records torch's functions: ``__torch_function__``, with and without tensors, and modes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import customops

from .cases import CALLS, ROWS, ids
from .compare import assert_as_torch, backward
from .conftest import DEVICE
from .marks import by_path

TEN = [getattr(torch, row.name, None) or getattr(torch.nn.functional, row.name) for row in ROWS]


class Picky(Tensor):
    """A tensor that knows the ten functions of torch, and refuses any other."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return function.__name__ if function in TEN else NotImplemented


@by_path
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_subclass_is_asked_about_torchs_function_alone(row, call):
    xs = [row.draw((2, 3, 2, 2), seed=i, device=DEVICE).as_subclass(Picky) for i in range(call.arity)]
    assert call.function(torch, *xs) == row.name
    assert call.function(customops, *xs) == row.name


class Duck:
    """An object that is no tensor, but that torch's functions take for the one that it holds."""

    __hash__ = None

    def __init__(self, x):
        self.x = x

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return function(*(a.x if isinstance(a, Duck) else a for a in args), **(kwargs or {}))


@pytest.mark.sample(formulas="operator, path*ducks", kernels="path")
@pytest.mark.parametrize("ducks", [{0}, {1}, {0, 1}], ids=["first", "second", "both"])
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_gradients_reach_what_stands_for_a_tensor(row, call, ducks, device):
    def use(f, *xs):
        z = f(*(Duck(x) if i in ducks else x for i, x in enumerate(xs)))
        return z, backward(z, *xs)

    assert_as_torch(use, row, call, device)


class Negated(TorchFunctionMode):
    """A mode that has the ten functions return the negative of what they would."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        z = function(*args, **(kwargs or {}))
        return -z if function in TEN else z


@pytest.mark.sample(formulas="operator, path*wanted", kernels="path, wanted")
@pytest.mark.parametrize("wanted", [False, True], ids=["value", "gradient"])
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_function_mode_may_change_a_result(row, call, wanted, device):
    """The mode then changes the gradient, too."""

    def use(f, *xs):
        with Negated(), torch.set_grad_enabled(wanted):
            z = f(*xs)
        return z, backward(z, *xs) if wanted else []

    assert_as_torch(use, row, call, device)


class Names(TorchDispatchMode):
    """A mode that keeps the names of the aten operators that are called."""

    def __init__(self):
        super().__init__()
        self.called = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.called.append(str(function))
        return function(*args, **(kwargs or {}))


@by_path
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_dispatch_mode_sees_what_torch_calls(row, call):
    """It sees the same forward and backward, so that what counts or records operators does the same."""
    called = []
    for library in (customops, torch):
        xs = [row.draw((2, 3, 2, 2), seed=i, device=DEVICE).requires_grad_() for i in range(call.arity)]
        with Names() as names:
            torch.autograd.grad(call.function(library, *xs).sum(), xs)
        called.append(names.called)
    assert called[0] == called[1]
