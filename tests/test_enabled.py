"""``enabled``: which calls of torch's functions are the package's inside a block, and that nothing of it is left."""

from __future__ import annotations

import copy
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import customops
from customops import enabled
from customops.models.enabled import _table
from customops.ops import unary

from .compare import assert_equal
from .conftest import KERNELS
from .marks import formulas_only

BACKEND = "triton" if KERNELS else "torch"


class Layer(nn.Module):
    """A layer that calls what it can in every spelling."""

    def __init__(self):
        super().__init__()
        self.norm, self.lin, self.act = nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU()

    def forward(self, x):
        """Call functions, methods and signs."""
        y = self.act(self.lin(self.norm(x)))
        y = functional.silu(y) + 1 - torch.exp(x) / 2
        return (2 / (1 + y.sigmoid() ** 2)).softmax(-1).mean(0).sum()


CALLS = "layer_norm gelu silu add sub exp div div add pow sigmoid softmax mean sum".split()  # noqa: SIM905


@pytest.fixture
def layer() -> Layer:
    torch.manual_seed(0)
    return Layer()


def named(taken) -> Counter:
    counted: Counter = Counter()
    for (name, _), n in taken.calls.items():
        counted[name] += n
    return counted


def derivatives(call, layer, x) -> list:
    x = x.clone().requires_grad_()
    z = call(x)
    return [z, *torch.autograd.grad(z, [x, *layer.parameters()])]


def assert_alike(got, want):
    for mine, theirs in zip(got, want, strict=True):
        assert_equal(mine, theirs)


@pytest.mark.sample(compiled="all")
def test_calls_in_every_spelling_are_taken_with_torchs_results(layer):
    x = torch.randn(5, 8)
    want = derivatives(layer, layer, x)
    with enabled() as taken:
        got = derivatives(layer, layer, x)
    assert_alike(got, want)
    assert named(taken) == Counter(CALLS)
    assert {backend for _, backend in taken.calls} == {BACKEND}


def test_an_argument_by_name_counts_for_the_backend():
    with enabled() as taken:
        torch.exp(input=torch.ones(3))
    assert taken.calls == {("exp", BACKEND): 1}


def is_torch_again() -> bool:
    """Return whether the graph of a call has a node of torch's."""
    z = torch.exp(torch.ones(2, requires_grad=True))
    return "Backward0" in z.grad_fn.name()


def is_ours() -> bool:
    z = torch.exp(torch.ones(2, requires_grad=True))  # it has a name: in torch 2.11 a node of ours does not outlive it
    return z.grad_fn.name() == "ExpBackward"


def test_an_exception_leaves_nothing_behind():
    with pytest.raises(ZeroDivisionError), enabled():  # noqa: PT012
        assert is_ours()
        with enabled(skip="exp"):
            1 / 0  # noqa: B018
    assert is_torch_again()
    with enabled() as taken:
        assert is_ours()
    assert is_torch_again()
    assert taken.calls


def test_the_innermost_block_decides_and_counts():
    x = torch.ones(3)
    with enabled() as outer:
        with enabled(only={"sin"}) as inner:
            x.sin(), x.exp()
        with enabled() as second:
            x.sin()
        x.exp(), x.exp()
    assert (named(outer), named(inner), named(second)) == ({"exp": 2}, {"sin": 1}, {"sin": 1})


def test_a_block_is_of_its_thread():
    with enabled() as taken, ThreadPoolExecutor(1) as other:
        assert other.submit(is_torch_again).result()
        assert is_ours()
    assert named(taken) == {"exp": 1}


def test_names_select(layer):
    x = torch.randn(5, 8)
    with enabled(only=["silu", "exp"], skip="exp") as taken:
        layer(x)
    assert named(taken) == {"silu": 1}
    with (
        pytest.raises(ValueError, match=r"enabled: expected names of operators, got \['cumsum'\]"),
        enabled(skip="cumsum"),
    ):
        pass


def test_what_only_torch_takes_is_torchs():
    x = torch.tensor([[1.0, 2.0], [4.0, 3.0]])
    with enabled() as taken:
        assert_equal(torch.max(x), torch.tensor(4.0))
        assert_equal(torch.add(input=x, other=x, alpha=2), x * 3)
        assert_equal(x.sum(axis=1), torch.tensor([3.0, 7.0]))
        assert_equal(x.cumsum(0)[1], torch.tensor([5.0, 5.0]))
        torch.softmax(x, 0, out=(z := torch.empty(2, 2)))
        assert_equal(z.sum(0), torch.ones(2))
        with pytest.raises(TypeError, match="exp"):
            torch.exp("x")
        with pytest.raises(RuntimeError):
            x + torch.ones(3)
    assert "cumsum" not in named(taken)


def test_in_place_operators_write():
    with enabled() as taken:
        x = y = torch.ones(3)
        x += 2
        x *= 3
        x.exp_()
        torch.sigmoid_(x)
    assert x is y
    assert named(taken) == {"add_": 1, "mul_": 1, "exp_": 1, "sigmoid_": 1}
    assert_equal(x, torch.full((3,), 9.0).exp().sigmoid())


@pytest.mark.parametrize("reentrant", [True, False])
def test_backward_and_checkpoints_have_torchs_gradients(reentrant, layer):
    x = torch.randn(5, 8, requires_grad=True)
    (want,) = torch.autograd.grad(layer(x), x)
    with enabled() as taken:
        z = layer(x)
        before = named(taken)
        z.backward()
        assert named(taken) == before
        other = x.detach().clone().requires_grad_()
        checkpoint(layer, other, use_reentrant=reentrant).backward()
    assert named(taken) == (before + before if reentrant else before)
    assert_equal(other.grad, want)
    assert_equal(x.grad, want)


def test_fused_functions_and_operators_of_ours_work_inside(layer):
    x = torch.randn(5, 8)
    fused = customops.fuse(lambda x: (x * torch.sigmoid(x)).sum(-1))
    want = fused(x), customops.exp(x)
    with enabled():
        got = fused(x), customops.exp(x)
    assert_alike(got, want)
    model = copy.deepcopy(layer)
    customops.apply(model, x)
    with enabled():
        assert_alike(derivatives(model, model, x), derivatives(layer, layer, x))


@formulas_only
def test_a_compiler_sees_torchs_functions(layer):
    x, graphs = torch.randn(5, 8), []

    def backend(graph, inputs):
        graphs.append(graph.code)
        return graph.forward

    with enabled():
        got = torch.compile(layer, backend=backend, fullgraph=True)(x)
    assert_equal(got, layer(x))
    (code,) = graphs
    assert "torch._C._nn.gelu(" in code
    assert "torch.nn.functional.silu(" in code


def test_other_modes_see_the_calls():
    seen = []

    class Sees(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with enabled() as taken, Sees():
        torch.exp(torch.ones(2))
    assert torch.exp in seen
    assert named(taken) == {"exp": 1}


def test_all_operators_are_taken():
    found = {entry.name for entry in _table().values()}
    assert {name for name in unary.__all__ if hasattr(torch, name)} <= found
    assert {"softmax", "layer_norm", "gelu", "cross_entropy", "where", "clamp", "var", "add_", "sub"} <= found
    assert all(callable(function) for function in _table())
    assert Tensor.__rsub__ in _table()
