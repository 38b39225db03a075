"""``x.detach()`` inside a fused function has a derivative of zero, as torch's has, in both orders."""

from __future__ import annotations

import pytest
import torch

import customops
from customops import fuse
from customops.compiler.evaluate import evaluate
from customops.compiler.gradient import differentiate
from customops.compiler.graph import Op

from .compare import assert_equal, cotangent
from .test_fuse import draw


def stable_softmax(lib, x):
    e = lib.exp(x - lib.amax(x, -1, keepdim=True).detach())
    return e / lib.sum(e, -1, keepdim=True)


def stable_logsumexp(lib, x):
    most = lib.amax(x, -1, keepdim=True).detach()
    return most + lib.log(lib.sum(lib.exp(x - most), -1, keepdim=True))


FUNCTIONS = {
    "softmax": stable_softmax,
    "logsumexp": stable_logsumexp,
    "a factor": lambda lib, x: x * x.detach(),
    "a divisor": lambda lib, x: x / lib.sum(x, -1, keepdim=True).detach(),
    "a dividend": lambda lib, x: x.detach() / lib.sum(x, -1, keepdim=True),
    "a divisor of exponentials": lambda lib, x: lib.exp(x) / lib.sum(lib.exp(x), -1, keepdim=True).detach(),
    "both quotients": lambda lib, x: (
        lib.exp(x) / lib.sum(lib.exp(x), -1, keepdim=True).detach() + lib.exp(x) / lib.sum(lib.exp(x), -1, keepdim=True)
    ),
    "both quotients, the other first": lambda lib, x: (
        lib.exp(x) / lib.sum(lib.exp(x), -1, keepdim=True) + lib.exp(x) / lib.sum(lib.exp(x), -1, keepdim=True).detach()
    ),
    "what is reduced": lambda lib, x: x * lib.amax(x.detach(), -1, keepdim=True) + lib.sum(x.detach()),
    "along another axis": lambda lib, x: x * lib.exp(lib.mean(x, 1)).detach() - lib.sum(x, 1),
    "a function's argument": lambda lib, x: torch.detach(lib.exp(x)) * x,
    "one result": lambda lib, x: (lib.exp(x).detach(), x * 2),
    "a value and itself": lambda lib, x: [y := lib.exp(x), y.detach()],
    "a value twice": lambda lib, x: [(y := lib.exp(x)).detach(), y.detach(), x * 2],
    "an argument": lambda lib, x: (x.detach(), x * 2),
    "of an axis of one": lambda lib, x: x * lib.sum(lib.sum(x, -1, keepdim=True).detach(), -1, keepdim=True),
    "a mean that is taken off": lambda lib, x: lib.sum(
        (x - lib.mean(x, -1, keepdim=True).detach() + x * lib.mean(x * x, -1, keepdim=True))
        * lib.sum(lib.exp(x), -1, keepdim=True),
        -1,
    ),
    "what a mean is taken off": lambda lib, x: lib.sum(
        (x.detach() - lib.mean(x, -1, keepdim=True) + x * lib.mean(x * x, -1, keepdim=True))
        * lib.sum(lib.exp(x), -1, keepdim=True),
        -1,
    ),
    "everything but one": lambda lib, x: lib.exp(x.detach()) * x,
}


def both_orders(function, lib, x):
    """Return values, gradients, and gradients of these; and which results are recorded and share memory."""
    x = x.detach().requires_grad_()
    zs = function(lib, x) if lib is torch else fuse(lambda x: function(customops, x))(x)
    zs = list(zs) if isinstance(zs, tuple | list) else [zs]
    recorded = [z for z in zs if z.requires_grad]
    once = torch.autograd.grad(recorded, x, list(map(cotangent, recorded)), retain_graph=True)
    (again,) = torch.autograd.grad(recorded, x, list(map(cotangent, recorded)), create_graph=True)
    twice = torch.autograd.grad(again, x, cotangent(again), allow_unused=True) if again.requires_grad else (None,)
    memory = [z.data_ptr() for z in (x, *zs)]
    return [*zs, *once, again, twice[0] if twice[0] is not None else torch.zeros_like(x)], [
        [z.requires_grad for z in zs],
        [[a == b for b in memory] for a in memory],
    ]


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_of_both_orders_are_torchs(name, device):
    (x,) = draw([(4, 4)], device)
    (got, facts), (want, same) = (both_orders(FUNCTIONS[name], lib, x) for lib in (customops, torch))
    assert facts == same
    for mine, theirs in zip(got, want, strict=True):
        assert_equal(mine.detach(), theirs.detach())


@pytest.mark.sample(compiled="all")
def test_dtypes_are_torchs_though_what_is_detached_is_wider(device):
    (x,), scale = draw([(4, 4)], device, torch.float32), torch.tensor(0.3, dtype=torch.float64, device=device)
    got = fuse(lambda x, scale, n: x * scale.detach() + x * n.detach())(x, scale, n := torch.arange(4, device=device))
    assert_equal(got, x * scale + x * n)


def test_operators_without_kernels_are_detached_too(device):
    (x,) = draw([(4, 4)], device)
    with customops.backend("torch"):
        got, want = (both_orders(FUNCTIONS["a factor"], lib, x)[0] for lib in (customops, torch))
    for mine, theirs in zip(got, want, strict=True):
        assert_equal(mine.detach(), theirs.detach())


DIVISIONS = {
    "of a row by what varies along it": lambda lib, x, s: lib.mean(x, -1, keepdim=True) / s,
    "of a row by what varies along the same axis": lambda lib, x, s: lib.mean(x, -1, keepdim=True) / s + x,
    "of a row, summed again": lambda lib, x, s: lib.sum(lib.sum(x, -1, keepdim=True) / lib.exp(s), -1),
    "by a row": lambda lib, x, s: x / lib.sum(x * s, -1, keepdim=True),
    "by a number": lambda lib, x, s: lib.exp(x) / 3 + x / s,
    "with a quotient that is detached": lambda lib, x, s: (
        lib.exp(x) / lib.sum(s) + lib.exp(x) / lib.sum(s).detach() + lib.exp(x).detach() / lib.sum(s)
    ),
    "twice": lambda lib, x, s: lib.exp(x) / lib.sum(lib.exp(x), -1, keepdim=True) / lib.mean(x, 0) / s,
    "by a scalar": lambda lib, x, s: (x - s) / lib.sum(s),
    "of a square": lambda lib, x, s: x * x / lib.sum(x * x, -1, keepdim=True) + x**2 / s,
    "of what meets itself": lambda lib, x, s: (x / lib.mean(x, 1)) * lib.exp(lib.mean(x, 1, keepdim=True)) * s,
}


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize("name", DIVISIONS)
def test_divisions_that_wait_have_torchs_gradients(name, device):
    """They do by kernels, and the derived graph by formulas, which are differentiated again."""
    xs = [x.requires_grad_() for x in draw([(4, 4), (4,)], device)]
    fused, want = fuse(lambda *xs: DIVISIONS[name](customops, *xs)), DIVISIONS[name](torch, *xs)
    graph, results = differentiate(fused.program(*xs), (0, 1), (0,))
    derived = evaluate(graph, dict(enumerate([g := cotangent(want), *xs])), torch.float64)
    assert None not in results
    expected = torch.autograd.grad(want, xs, g, create_graph=True)
    for got in (torch.autograd.grad(fused(*xs), xs, g), derived):
        for mine, theirs in zip(got, expected, strict=True):
            assert_equal(mine.detach(), theirs.detach())
    again, like = (torch.autograd.grad(sum(dx.sin().sum() for dx in grads), xs) for grads in (derived, expected))
    for mine, theirs in zip(again, like, strict=True):
        assert_equal(mine, theirs)


def formulas_of_gradient(function, x) -> list[str]:
    """Return the formulas that the gradient of a function computes."""
    graph, _ = differentiate(fuse(lambda x: function(customops, x)).program(x), (0,), (0,))
    nodes = [graph.values[i] for i in graph.ancestors([value for value, _ in graph.results])]
    return [node.formula for node in nodes if isinstance(node, Op)]


def test_the_gradient_of_a_stable_softmax_compares_nothing_and_divides_as_forward_does(device):
    (x,) = draw([(4, 4)], device)
    formulas = formulas_of_gradient(stable_softmax, x)
    assert "equal" not in formulas
    assert "extremum_dx" not in formulas
    assert [name for name in formulas if name.startswith("div")] == ["div"]


def test_ties_are_compared_once(device):
    (x,) = draw([(4, 4)], device)
    formulas = formulas_of_gradient(lambda lib, x: x * lib.amax(x, -1, keepdim=True), x)
    assert (formulas.count("equal"), formulas.count("extremum_dx")) == (1, 1)


def test_what_is_detached_is_printed_as_what_it_is(device):
    (x,) = draw([(4, 4)], device)
    text = str(fuse(lambda x: customops.exp(x).detach() * x).program(x))
    assert text == "t1 = exp(x)\nt2 = mul(detach(t1), x)\nreturn t2"
