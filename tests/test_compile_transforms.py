"""Differentiated inside a compiled function, or by a compiled engine, ours lose no derivative."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo import compiled_autograd
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import customops

from .cases import CALLS, ROWS, one_of_each_path
from .compare import assert_equal, outcome
from .compiling import FORMULAS, LIBRARIES, compiling_anew, every, leaf, rand

pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of what it does slowly, half or no longer

SOME = [call for _, call in CALLS if call.rank < 2]  # more axes would add nothing but time


@pytest.fixture(autouse=True)
def _compile_anew(tmp_path):
    with compiling_anew(tmp_path):
        yield


def dual(f, x, t):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, t))).tangent


TRANSFORMS = {
    "grad": lambda f, x, t: grad(f)(x),
    "vjp": lambda f, x, t: vjp(f, x)[1](t.sum()),
    "jvp": lambda f, x, t: jvp(f, (x,), (t,)),
    "jvp of jvp": lambda f, x, t: jvp(lambda x: jvp(f, (x,), (t,))[1], (x,), (t,)),
    "grad of grad": lambda f, x, t: grad(lambda x: grad(f)(x).sin().sum())(x),
    "jacrev": lambda f, x, t: jacrev(f)(x),
    "jacfwd": lambda f, x, t: jacfwd(f)(x),
    "hessian": lambda f, x, t: hessian(f)(x),
    "vmap": lambda f, x, t: vmap(f)(torch.stack([x, t])),
    "vmap of grad": lambda f, x, t: vmap(grad(f))(torch.stack([x, t])),
    "forward mode": dual,
}


@pytest.mark.sample(kernels="")
@pytest.mark.parametrize("name", TRANSFORMS)
def test_compiled_transforms_drop_no_derivative(name, full, tally):
    """Ours give inside what torch's give without a compiler; Dynamo itself would lose a Function's jvp.

    Each transform has a call of every fourth path, other transforms those of the others; with ``--full`` all calls.
    """
    number = list(TRANSFORMS).index(name)
    calls = SOME if full else [call for _, call in one_of_each_path(number // 4, rank=1)[number % 4 :: 4]]
    x, t = leaf(2, 1, 2, 1), rand(2, 1, 2, 1)

    def use(library):
        return lambda x, t: TRANSFORMS[name](lambda x: every(library, x, calls), x, t)

    got = outcome(torch.compile(use(customops), fullgraph=True, backend="aot_eager"), x, t)
    if isinstance(got, type) and name == "jvp of jvp":  # after a jvp torch 2.13 compiles none, of its own neither
        assert got is outcome(torch.compile(use(torch), fullgraph=True, backend="aot_eager"), x, t)
    else:
        torch.testing.assert_close(got, use(torch)(x, t))
        tally(f"compiled transforms: {name}")


@FORMULAS
def test_compiled_autograd_traces_our_backward(full):
    """It traces that of a call of every other path; with ``--full`` of two calls of each operator."""
    calls = [call for row in ROWS for call in row.calls[:2]] if full else [call for _, call in one_of_each_path()[::2]]
    start, grads = rand(2, 3, 2, 2), []
    for library in LIBRARIES:
        x = start.clone().requires_grad_()
        z = every(library, x, calls)
        torch.compiler.reset()
        with compiled_autograd._enable(torch.compile(backend="eager", fullgraph=True)):
            z.backward()
        grads.append(x.grad)
    assert_equal(*grads)


@FORMULAS
def test_compiled_autograd_traces_our_backward_in_place():
    start, grads = (rand(2, 3), rand(2, 3)), []
    for multiply in (customops.mul_, torch.Tensor.mul_):
        x, y = (value.clone().requires_grad_() for value in start)
        z = multiply(x.clone(), y)
        torch.compiler.reset()
        with compiled_autograd._enable(torch.compile(backend="eager", fullgraph=True)):
            z.sum().backward()
        grads.append((x.grad, y.grad))
    for mine, theirs in zip(*grads, strict=True):
        assert_equal(mine, theirs)
