"""``customops.nn``: modules that are torch's but for what computes ``forward``."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn

import customops
from customops.nn import functional

from .cases import ids
from .compare import assert_same_outcomes, cotangent
from .marks import formulas_only

pytestmark = formulas_only
LOSSES = {name for name in customops.nn.__all__ if name.endswith("Loss")}  # in test_functional_losses.py
NAMES = [name for name in customops.nn.__all__ if name != "functional" and name not in LOSSES]
TORCHS = [name for name in NAMES if hasattr(nn, name)]
ARGUMENTS = {
    "CELU": (0.5,),
    "CosineSimilarity": (-1, 1e-3),
    "ELU": (0.5,),
    "GELU": ("tanh",),
    "GLU": (0,),
    "GroupNorm": (2, 4),
    "Hardtanh": (-0.5, 0.7),
    "Hardshrink": (0.3,),
    "LayerNorm": ((4,), 1e-3),
    "LeakyReLU": (0.2,),
    "LogSoftmax": (1,),
    "PReLU": (4,),
    "RMSNorm": (4, 1e-3),
    "Softmax": (1,),
    "Softmin": (0,),
    "Softplus": (2.0, 3.0),
    "Softshrink": (0.3,),
    "Threshold": (0.2, -1.0),
}
OWN = {
    "AddRMSNorm": ((4,), functional.add_rms_norm, 2),
    "GeGLU": (("tanh",), functional.geglu, 2),
    "Softcap": ((3.0,), functional.softcap, 1),
    "SwiGLU": ((), functional.swiglu, 2),
}


def made(library, name: str) -> nn.Module:
    torch.manual_seed(0)
    module = getattr(library, name)(*ARGUMENTS.get(name, ()))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


def used(module: nn.Module, xs: list[torch.Tensor]) -> tuple:
    leaves = [x.clone().requires_grad_() for x in xs]
    z = module(*leaves)
    return z, torch.autograd.grad(z, [*leaves, *module.parameters()], cotangent(z))


def inputs(name: str) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(2, 4) for _ in range(2 if name == "CosineSimilarity" else 1)]


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize("name", TORCHS)
def test_a_module_computes_what_torchs_does(name, large, blocks):
    if large:
        blocks(8)
    module, torchs = made(customops.nn, name), made(nn, name)
    assert_same_outcomes(used(module, inputs(name)), used(torchs, inputs(name)))


@pytest.mark.parametrize("name", TORCHS)
def test_a_module_is_torchs_but_for_forward(name):
    module, torchs = made(customops.nn, name), made(nn, name)
    assert isinstance(module, getattr(nn, name))
    assert (str(module), inspect.signature(type(module))) == (str(torchs), inspect.signature(type(torchs)))
    module.load_state_dict(torchs.state_dict())
    assert [*module.state_dict()] == [*torchs.state_dict()]
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(again) is type(module)
        assert_same_outcomes(used(again, inputs(name)), used(module, inputs(name)))


@pytest.mark.parametrize(
    "name", [name for name in TORCHS if "inplace" in inspect.signature(getattr(nn, name)).parameters]
)
def test_a_module_writes_in_place_where_it_is_told_to(name):
    x, arguments = torch.tensor([-2.0, 0.5]), ARGUMENTS.get(name, ())
    module, want = getattr(customops.nn, name)(*arguments, inplace=True), getattr(nn, name)(*arguments)(x)
    assert module(x) is x
    torch.testing.assert_close(x, want)


@pytest.mark.parametrize("name", OWN)
def test_a_module_that_torch_has_not_calls_its_function(name):
    arguments, function, arity = OWN[name]
    module = getattr(customops.nn, name)(*arguments)
    xs = [torch.randn(2, 4) for _ in range(arity)]
    further = ((4,), module.weight) if name == "AddRMSNorm" else arguments
    assert_same_outcomes(module(*xs), function(*xs, *further))
    assert all(repr(each) in str(module) for each in arguments)


def test_every_function_of_torchs_modules_has_its_module():
    """A function of which torch has a module has ours, too."""
    theirs = {name.lower(): name for name in dir(nn) if isinstance(getattr(nn, name), type)}
    functions = {theirs.get(name.replace("_", "")) for name in functional.__all__} - {None}
    assert functions <= {*customops.nn.__all__}


@pytest.mark.parametrize("name", TORCHS, ids=ids)
def test_torchs_module_is_fused_as_ours(name, blocks):
    """Torch's module inside a fused function means the same function as ours does."""
    blocks(8)
    torchs, module = made(nn, name), made(customops.nn, name)
    fused = [customops.fuse(lambda *xs, m=each: m(*[x * 2.0 for x in xs])) for each in (torchs, module)]
    got, want = (f(*inputs(name)) for f in fused)
    assert_same_outcomes(got, want)
    assert_same_outcomes(got, torchs(*[x * 2.0 for x in inputs(name)]))
