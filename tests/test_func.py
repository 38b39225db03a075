"""torch.func: each transform, alone and composed, makes of our operators what it makes of torch's."""

from __future__ import annotations

from functools import reduce
from itertools import product
from random import Random

import pytest
import torch
from torch import func, nn
from torch.autograd import functional
from torch.utils._pytree import tree_leaves

import customops

from .cases import BY_FUNCTIONS, CALLS, ids, shapes_for
from .compare import assert_same_outcome, assert_same_outcomes, outcome
from .conftest import DEVICE

pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of what it does slowly, half or no longer

LOW = ((3,), (3,), (2, 3), (2, 1, 2), (1, 2, 1, 2))  # a small shape of each rank


def _scalar(f):
    """Return a function to a real loss, none of whose derivatives is constant."""
    return lambda *xs: (f(*xs).abs() ** 2).sum() / 2


def _joined(tree):
    return torch.cat([x.reshape(-1) for x in tree_leaves(tree)])


def _all(xs):
    return tuple(range(len(xs)))


def _moving(xs):
    return tuple(x.cos() for x in xs)


def _vjp(f, *xs):
    z, pull = func.vjp(f, *xs)
    return _joined(pull(z.cos()))


# From a function of tensors to another one of them that returns a tensor: so they compose in any order.
TRANSFORMS = {
    "grad": lambda f: lambda *xs: _joined(func.grad(_scalar(f), _all(xs))(*xs)),
    "vjp": lambda f: lambda *xs: _vjp(f, *xs),
    "jvp": lambda f: lambda *xs: func.jvp(f, xs, _moving(xs))[1],
    "jacrev": lambda f: lambda *xs: _joined(func.jacrev(f, _all(xs))(*xs)),
    "jacfwd": lambda f: lambda *xs: _joined(func.jacfwd(f, _all(xs))(*xs)),
    "vmap": torch.vmap,
}
MORE = {
    "grad_and_value": lambda f: lambda *xs: _joined(func.grad_and_value(_scalar(f), _all(xs))(*xs)),
    "jacrev by chunks": lambda f: lambda *xs: _joined(func.jacrev(f, _all(xs), chunk_size=2)(*xs)),
    "hessian": lambda f: lambda *xs: _joined(func.hessian(f, _all(xs))(*xs)),
    "vmap by chunks": lambda f: lambda *xs: torch.vmap(f, chunk_size=2)(*(torch.cat([x, x + 0.1]) for x in xs)),
    "functionalize": lambda f: func.functionalize(f, remove="mutations_and_views"),
}
LINEARIZE = {"linearize": lambda f: lambda *xs: func.linearize(f, *xs)[1](*_moving(xs))}
ONCE = TRANSFORMS | MORE | LINEARIZE
TWICE = [names for names in product(TRANSFORMS | MORE, repeat=2) if names != ("functionalize", "functionalize")]
TWICE += [("linearize", name) for name in ("grad", "vjp", "jacrev", "vmap")]  # torch refuses every other pair of it
THRICE = list(product(TRANSFORMS, repeat=3))


def run(library, names, function, xs):
    """Return the outcome of ``function(library, *xs)`` under these transforms, the last one innermost."""
    transforms = [ONCE[name] for name in reversed(names)]
    return outcome(reduce(lambda f, transform: transform(f), transforms, lambda *xs: function(library, *xs)), *xs)


def _draw(row, call, batches=0, dtype=torch.float64):
    """Draw inputs with axes for as many vmaps, the second one broadcast within them."""
    batch = (2,) * batches
    shapes = [batch + LOW[call.rank], batch + (1,) if batches else (3,)]
    return [row.draw(shape, dtype, i, DEVICE) for i, shape in enumerate(shapes[: call.arity])]


def _check(names, row, call):
    xs = _draw(row, call, sum(name.startswith("vmap") for name in names))
    want = run(torch, names, call.function, xs)
    assert isinstance(want, torch.Tensor), f"{call}: torch raises {want}"
    assert_same_outcome(run(customops, names, call.function, xs), want)


@pytest.mark.sample(formulas="operator*name, path*name", kernels="path, name")
@pytest.mark.parametrize("name", ONCE)
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_transform_matches_torch(row, call, name, tally):
    _check([name], row, call)
    tally("transforms")


@pytest.mark.sample(kernels="outermost, innermost")
@pytest.mark.parametrize("names", TWICE + THRICE, ids="-".join)
def test_transform_of_transforms_matches_torch(names, full, tally):
    taken = BY_FUNCTIONS if names[-1] == "functionalize" else CALLS  # there torch refuses a comparison by a method
    calls = taken if full else Random("-".join(names)).sample(BY_FUNCTIONS, 6 if len(names) == 2 else 2)
    for row, call in calls:
        _check(names, row, call)
    tally("transforms", len(calls))


@pytest.mark.sample(formulas="operator, path*name", kernels="name")
@pytest.mark.parametrize("name", ["grad", "vjp", "jvp", "vmap", "jacrev", "jacfwd", "hessian"])
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_transform_of_complex_numbers_matches_torch(row, call, name):
    xs = _draw(row, call, name == "vmap")
    xs = [torch.complex(x, x.flip(-1)) for x in xs]
    with customops.backend("auto"):  # complex numbers have no kernel
        assert_same_outcome(*(run(library, [name], call.function, xs) for library in (customops, torch)))


def _axes(shapes):
    """Return the axes that a batch of inputs of these shapes can have, where all of them or one alone has it."""
    some = [[0, -1, 1] if shape else [0, -1] for shape in shapes]
    return list(product(*some)) + ([(0, None), (None, -1)] if len(shapes) == 2 else [])


@pytest.mark.sample(formulas="call, ranks", kernels="path")
@pytest.mark.parametrize(
    ("row", "call", "shapes"), [(row, call, shapes) for row, call in CALLS for shapes in shapes_for(call)], ids=ids
)
def test_vmap_over_any_axis_matches_torch_forward_and_backward(row, call, shapes, tally):
    for axes in _axes(shapes):
        batched = [shape if axis is None else (2, *shape) for shape, axis in zip(shapes, axes, strict=True)]
        xs = [row.draw(shape, seed=i, device=DEVICE) for i, shape in enumerate(batched)]
        xs = [x if axis is None else x.movedim(0, axis) for x, axis in zip(xs, axes, strict=True)]
        for out_dims in (0, -1, 1):
            got, want = (outcome(_vmapped, call, library, xs, axes, out_dims) for library in (customops, torch))
            assert isinstance(want, list) or out_dims == 1  # an output of rank 0 has no axis 1
            assert_same_outcomes(got, want)
            tally("transforms")


def _vmapped(call, library, xs, in_dims, out_dims):
    leaves = [x.detach().requires_grad_() for x in xs]
    z = torch.vmap(lambda *xs: call.function(library, *xs), in_dims, out_dims)(*leaves)
    return [z.detach(), *torch.autograd.grad(z.square().sum(), leaves)]


@pytest.mark.sample(kernels="path")
@pytest.mark.parametrize(("row", "call"), [c for c in CALLS if c[1].arity == 2], ids=ids)
def test_nested_vmap_over_different_axes_matches_torch(row, call):
    """They give a table of all pairs of vectors, as a kernel matrix is."""
    xs = [row.draw(shape, seed=i, device=DEVICE) for i, shape in enumerate([(3, 2), (3, 4)])]

    def table(library):
        inner = torch.vmap(lambda *xs: call.function(library, *xs), (None, -1), out_dims=-1)
        return torch.vmap(inner, (1, None), out_dims=1)(*xs)

    assert table(torch).shape == (3, 2, 4)
    assert_same_outcome(table(customops), table(torch))


@pytest.mark.sample(formulas="operator, path*transform", kernels="transform")
@pytest.mark.parametrize("transform", [func.grad, func.grad_and_value, func.jacrev, func.jacfwd])
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_auxiliary_output_matches_torch(row, call, transform):
    xs = _draw(row, call)

    def run(library):
        def loss(tree):
            z = call.function(library, *tree["xs"])
            return z.square().sum(), {"z": z}

        return transform(loss, has_aux=True)({"xs": xs})

    got, want = run(customops), run(torch)
    assert_same_outcomes(tree_leaves(got), tree_leaves(want))


class Net(nn.Module):
    """A block of a transformer in small, with ten operators of ``library``."""

    def __init__(self, library):
        super().__init__()
        self.library = library
        self.first, self.second = nn.Linear(4, 5, dtype=torch.float64), nn.Linear(5, 3, dtype=torch.float64)
        self.gain = nn.Parameter(torch.ones(5, dtype=torch.float64))

    def forward(self, x, target):
        lib = self.library
        x = lib.relu(self.first(x))
        x = lib.mul(lib.mul(x, lib.pow(lib.add(lib.mean(lib.pow(x, 2), -1, keepdim=True), 1e-6), -0.5)), self.gain)
        x = self.second(lib.mul(x, lib.sigmoid(x)))
        total = lib.log(lib.sum(lib.exp(x), -1, keepdim=True))
        return lib.mean(lib.pow(lib.sub(lib.sub(x, total), target), 2))


def test_gradients_of_each_sample_match_torch_and_a_loop(device):
    nets = {library: Net(library).to(device) for library in (customops, torch)}
    nets[customops].load_state_dict(nets[torch].state_dict())
    x, target = (torch.randn(6, n, dtype=torch.float64, device=device) for n in (4, 3))
    parameters = {name: p.detach() for name, p in nets[torch].named_parameters()}

    def each(net):
        loss = func.grad(lambda parameters, x, y: func.functional_call(net, parameters, (x, y)))
        return torch.vmap(loss, (None, 0, 0))(parameters, x, target)

    got, want = each(nets[customops]), each(nets[torch])
    assert_same_outcomes([got[name] for name in parameters], [want[name] for name in parameters])
    for i in range(len(x)):
        alone = torch.autograd.grad(nets[customops](x[i], target[i]), nets[customops].parameters())
        assert_same_outcomes(alone, [want[name][i] for name in parameters])


FUNCTIONAL = {
    "jacobian": lambda f, xs: functional.jacobian(f, xs, create_graph=True),
    "jacobian, vectorized": lambda f, xs: functional.jacobian(f, xs, vectorize=True),
    "jacobian, forward": lambda f, xs: functional.jacobian(f, xs, vectorize=True, strategy="forward-mode"),
    "hessian": lambda f, xs: functional.hessian(_scalar(f), xs),
    "hessian, vectorized": lambda f, xs: functional.hessian(_scalar(f), xs, vectorize=True),
    "hessian, forward": lambda f, xs: functional.hessian(
        _scalar(f), xs, vectorize=True, outer_jacobian_strategy="forward-mode"
    ),
    "hvp": lambda f, xs: functional.hvp(_scalar(f), xs, _moving(xs)),
    "vhp": lambda f, xs: functional.vhp(_scalar(f), xs, _moving(xs)),
    "jvp": lambda f, xs: functional.jvp(f, xs, _moving(xs)),
    "vjp": lambda f, xs: functional.vjp(_scalar(f), xs),
}


@pytest.mark.sample(formulas="operator, path, name", kernels="name")
@pytest.mark.parametrize("name", FUNCTIONAL)
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_autograd_functional_matches_torch(row, call, name):
    xs = tuple(_draw(row, call))
    got, want = (
        tree_leaves(FUNCTIONAL[name](lambda *xs, library=library: call.function(library, *xs), xs))
        for library in (customops, torch)
    )
    assert_same_outcomes(got, want)
