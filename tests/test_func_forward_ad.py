"""Forward mode by dual numbers (torch.autograd.forward_ad): alone, with gradients of any order, batched, in place."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import func
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.nn import Parameter

import customops

from .cases import CALLS, EDGES, ELEMENTWISE, EXTREMA, LAYOUTS, ids, shapes_for
from .compare import TOLERANCE, assert_same_outcome, assert_same_outcomes, outcome
from .inplace import BINARY, UNARY, twin
from .marks import skip_changed_derivative

BINARY_CALLS = [(row, call) for row, call in CALLS if call.arity == 2]
CASES = [(row, call, shapes) for row, call in CALLS for shapes in shapes_for(call)]


def _moving(arity):
    """Return which of so many operands carry a tangent: all of them, or one."""
    return [(True,)] if arity == 1 else [(True, True), (True, False), (False, True)]


def _dual(x, tangent, moves=True):
    return forward_ad.make_dual(x, tangent) if moves else x


def _split(z):
    """Return what does not depend on the dual level: value and tangent, which may be None."""
    return [None if x is None else x.detach() for x in forward_ad.unpack_dual(z)]


def _pushed(function, library, xs, tangents, moves):
    with forward_ad.dual_level():
        return _split(function(library, *map(_dual, xs, tangents, moves)))


def _drawn(row, shapes, device, dtypes=(torch.float64, torch.float64)):
    """Draw operands of these shapes, and tangents for them."""
    return [
        [row.draw(shape, dtype, seed + i, device) for i, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=False))]
        for seed in (0, 7)
    ]


@pytest.mark.sample(formulas="call, ranks", kernels="path")
@pytest.mark.parametrize(("row", "call", "shapes"), CASES, ids=ids)
def test_tangents_of_any_operands_match_torch(row, call, shapes, device, tally):
    for moves, layout in product(_moving(call.arity), LAYOUTS):
        xs, tangents = (list(map(LAYOUTS[layout], each)) for each in _drawn(row, shapes, device))
        got, want = (_pushed(call.function, library, xs, tangents, moves) for library in (customops, torch))
        assert_same_outcomes(got, want)
        tally("tangents")


@pytest.mark.sample(formulas="call, path*dtypes", kernels="path")
@pytest.mark.parametrize(
    "dtypes", list(product([torch.float32, torch.float64, torch.int64, torch.complex128], repeat=2)), ids=ids
)
@pytest.mark.parametrize(("row", "call"), BINARY_CALLS, ids=ids)
def test_tangents_of_mixed_dtypes_match_torch(row, call, dtypes, device):
    for shapes, moves in product([((2, 3), (3,)), ((), (3,)), ((2, 3), ())], _moving(2)):
        xs, tangents = _drawn(row, shapes, device, dtypes)
        moves = [move and dtype != torch.int64 for move, dtype in zip(moves, dtypes, strict=True)]
        with customops.backend("auto"):  # complex numbers have no kernel
            got, want = (outcome(_pushed, call.function, lib, xs, tangents, moves) for lib in (customops, torch))
        if isinstance(want, type):  # complex numbers have no maximum
            assert got is want
            continue
        computed = torch.float32 if torch.float32 in dtypes else None
        for mine, theirs in zip(got, want, strict=True):
            assert_same_outcome(mine, theirs, computed=computed)


@pytest.mark.sample(kernels="path")
@pytest.mark.parametrize("call", ELEMENTWISE, ids=str)
def test_edges_have_torchs_tangents(call, device, tally):
    """They have them at all tuples of special inputs and tangents; zeros have torch's sign where all inputs move."""
    skip_changed_derivative(call, "maximum", "minimum")  # they multiply the tangent that is not chosen with 0
    columns = torch.tensor(list(product(EDGES, repeat=2 * call.arity)), dtype=torch.float64, device=device).unbind(1)
    xs, tangents = columns[: call.arity], columns[call.arity :]
    for moves in _moving(call.arity):
        (_, got), (_, want) = (_pushed(call.function, lib, xs, tangents, moves) for lib in (customops, torch))
        torch.testing.assert_close(got, want, equal_nan=True, **TOLERANCE[torch.float64])
        wrong = (got.signbit() != want.signbit()) & (want == 0)
        assert not all(moves) or not wrong.any(), "a zero has the wrong sign"
        tally("edge points", len(want))


@pytest.mark.parametrize("name", EXTREMA)
def test_edges_have_torchs_tangents_of_extrema(name, device, tally):
    """Rows have two special inputs, with ties and nan, and two special tangents."""
    columns = torch.tensor(list(product(EDGES, repeat=4)), dtype=torch.float64, device=device)
    x, tangent = columns[:, :2], columns[:, 2:]
    function = lambda lib, x: getattr(lib, name)(x, 1)
    got, want = (_pushed(function, lib, [x], [tangent], [True]) for lib in (customops, torch))
    torch.testing.assert_close(got, want, equal_nan=True, rtol=0, atol=0)
    tally("edge points", len(columns))


def _derived(function, library, xs, tangents, moves):
    """Return gradients of a tangent, gradients of those, and tangents of gradients, by leaf and tangent."""
    leaves = [Parameter(x.clone()) for x in xs]
    tangents = [t.clone().requires_grad_() for t in tangents]
    wanted = leaves + [t for t, move in zip(tangents, moves, strict=True) if move]
    with forward_ad.dual_level():
        inputs = list(map(_dual, leaves, tangents, moves))
        z = function(library, *inputs)
        tangent = forward_ad.unpack_dual(z).tangent + 0 * sum(x.sum() for x in wanted)
        first = torch.autograd.grad(tangent.square().sum(), wanted, create_graph=True, materialize_grads=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), wanted, materialize_grads=True)
        turned = torch.autograd.grad(function(library, *inputs).square().sum(), inputs)
        return [_split(g)[0] for g in (*first, *second)] + [x for g in turned for x in _split(g)]


@pytest.mark.sample(formulas="call, path*ranks", kernels="path")
@pytest.mark.parametrize(("row", "call", "shapes"), CASES, ids=ids)
def test_gradients_of_tangents_and_tangents_of_gradients_match_torch(row, call, shapes, device, tally):
    for moves in _moving(call.arity):
        xs, tangents = _drawn(row, shapes, device)
        got, want = (_derived(call.function, library, xs, tangents, moves) for library in (customops, torch))
        assert_same_outcomes(got, want)
        tally("tangents", len(want))


@pytest.mark.sample(formulas="call", kernels="once")
@pytest.mark.parametrize(("row", "call", "shapes"), CASES, ids=ids)
def test_both_modes_pass_gradcheck_in_batches(row, call, shapes, device, tally):
    xs = [x.requires_grad_() for x in _drawn(row, shapes, device)[0]]
    batched = {"check_forward_ad": True, "check_batched_forward_grad": bool(shapes[0]), "check_batched_grad": True}

    def function(*xs):
        return call.function(customops, *xs)

    assert gradcheck(function, xs, **batched)
    assert gradgradcheck(function, xs, check_fwd_over_rev=True, check_batched_grad=True)
    tally("gradchecks", 2)


@pytest.mark.sample(
    formulas="operator*view, operator*recorded, operator*moves, view*recorded*moves", kernels="operator, view*moves"
)
@pytest.mark.parametrize("moves", [(True, False), (False, True), (True, True)], ids=ids)
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("view", [lambda x: x, lambda x: x.t(), lambda x: x[1]], ids=["whole", "transposed", "row"])
@pytest.mark.parametrize("operator", [*UNARY, *BINARY])
def test_in_place_twin_of_dual_numbers_matches_torch(operator, view, recorded, moves, device):
    """It writes over a dual number, or over a plain tensor that becomes one."""
    xs, tangents = ([torch.rand(3, 3, dtype=torch.float64, device=device) + 0.5 for _ in range(2)] for _ in range(2))

    def function(lib, x, y):
        target = x * 1 if moves[0] else x.detach().clone().requires_grad_(recorded) * 1
        twin(lib, operator)(view(target), *([view(y)] if operator in BINARY else []))
        return target

    xs = [x.requires_grad_(recorded) for x in xs]
    got, want = (_pushed(function, library, xs, tangents, moves) for library in (customops, torch))
    assert_same_outcomes(got, want)


# Calls on a dual number that torch answers otherwise than those on a plain one, or refuses.
ODD = {
    "into out": lambda lib, x: lib.exp(x, out=torch.empty_like(x)),
    "into out, second operand": lambda lib, x: lib.mul(x.detach() * 0 + 1, x, out=torch.empty_like(x)),
    "into out, reduction": lambda lib, x: lib.sum(x, 0, out=x.new_empty(3)),
    "into a dual out": lambda lib, x: lib.exp(torch.ones(2, 3, dtype=x.dtype, device=x.device), out=x),
    "without gradients": lambda lib, x: torch.no_grad()(lib.sigmoid)(x),
    "in inference mode": lambda lib, x: torch.inference_mode()(lib.sigmoid)(x),
    "forward mode off": lambda lib, x: _forward_mode_off(lib.exp, x),
    "detached": lambda lib, x: lib.exp(x.detach()),
    "to integers": lambda lib, x: lib.sum(x, 0, dtype=torch.int64) + x,
    "to float32": lambda lib, x: lib.mean(x, dtype=torch.float32),
    "to complex": lambda lib, x: lib.sum(x, 0, dtype=torch.complex128),
    "times a complex number": lambda lib, x: lib.mul(x, 2j),
    "alpha complex": lambda lib, x: lib.add(x, x, alpha=2j),
    "empty": lambda lib, x: lib.mean(lib.exp(x[:0]), 1),
    "sum of nothing": lambda lib, x: lib.sum(x[:, :0], 1),
    "of itself": lambda lib, x: lib.mul(x, x),
    "to the power of itself": lambda lib, x: lib.pow(x, x),
    "axis": lambda lib, x: lib.sum(x, 2),
    "shapes": lambda lib, x: lib.mul(x, x.new_ones(5)),
    "sparse": lambda lib, x: lib.mul(x.to_sparse(), 2.0),
    "under vmap": lambda lib, x: torch.vmap(lambda x: lib.sum(lib.mul(x, lib.exp(x))))(x),
    "under vmap, beside an unbatched": lambda lib, x: torch.vmap(lambda y: lib.pow(x, y))(x.detach()),
    "under grad": lambda lib, x: func.grad(lambda y: lib.sum(lib.mul(lib.exp(y), x)))(x.detach()),
    "under grad of itself": lambda lib, x: func.grad(lambda y: lib.sum(lib.pow(y, y)))(x),
    "under vmap of grad": lambda lib, x: torch.vmap(func.grad(lambda y: lib.sum(lib.sigmoid(y))))(x),
    "under jvp": lambda lib, x: func.jvp(lib.exp, (x,), (x,))[1],
    "under jacrev": lambda lib, x: func.jacrev(lib.log)(x),
    "under functionalize": lambda lib, x: func.functionalize(lambda x: lib.exp(x).mul_(2))(x),
}


def _forward_mode_off(function, x):
    with forward_ad._set_fwd_grad_enabled(False):
        return function(x)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("odd", ODD)
def test_odd_calls_on_dual_numbers_match_torch(odd, recorded, device):
    x = torch.linspace(0.5, 2, 6, dtype=torch.float64, device=device).reshape(2, 3).requires_grad_(recorded)
    tangents = [x.detach().cos()]
    with customops.backend("auto"):  # complex numbers have no kernel
        got, want = (outcome(_pushed, ODD[odd], library, [x], tangents, [True]) for library in (customops, torch))
    assert_same_outcomes(got, want)
