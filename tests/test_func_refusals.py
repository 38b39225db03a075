"""Under torch.func's transforms: what is written in place, and what torch refuses."""

from __future__ import annotations

import pytest
import torch

import customops

from .compare import assert_same_outcome, assert_same_outcomes
from .conftest import DEVICE
from .inplace import BINARY, UNARY, twin
from .test_func import ONCE, TRANSFORMS, run

pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of what it does slowly, half or no longer


@pytest.mark.sample(formulas="operator, operator*written, name*written", kernels="name*written")
@pytest.mark.parametrize("written", [0, 1])
@pytest.mark.parametrize("name", [*TRANSFORMS, "functionalize"])
@pytest.mark.parametrize("operator", [*UNARY, *BINARY])
def test_in_place_twin_under_a_transform_matches_torch(operator, name, written):
    """It writes over a copy, or over what the transform handed in."""
    xs = [torch.rand(2, 3, dtype=torch.float64, device=DEVICE) + 0.5 for _ in range(1 + (operator in BINARY))]

    def written_over(library):
        def function(lib, x, *rest):
            x = x if written else x * 1
            return twin(lib, operator)(x, *rest)

        return [run(library, [name], function, given := [x.clone() for x in xs]), *given]

    assert_same_outcomes(written_over(customops), written_over(torch))


def _add_to_unbatched(lib, x):
    return torch.vmap(lambda y: twin(lib, "add_")(x, y))(x)


# What torch refuses, or reads differently under a transform.
BAD = {
    "shapes": lambda lib, x: lib.mul(x, x.new_ones(5)),
    "string": lambda lib, x: lib.add(x, "a"),
    "alpha": lambda lib, x: lib.add(x.long(), x.long(), alpha=1.5),
    "no tensor": lambda lib, x: lib.exp(1.5) + x,
    "axis": lambda lib, x: lib.sum(x, 2),
    "axis before the first": lambda lib, x: lib.mean(x, -3),
    "axis twice": lambda lib, x: lib.sum(x, (0, 0)),
    "keepdim": lambda lib, x: lib.mean(x, keepdim=True),
    "mean of integers": lambda lib, x: lib.mean(x.long()),
    "integer dtype": lambda lib, x: lib.mean(x, dtype=torch.int64),
    "integer to a negative": lambda lib, x: lib.pow(x.long(), -1),
    "bool": lambda lib, x: lib.sub(x > 0, x),
    "relu of bool": lambda lib, x: lib.relu(x > 0),
    "relu of complex": lambda lib, x: lib.relu(x + 0j),
    "into out": lambda lib, x: lib.exp(x, out=torch.empty_like(x)),
    "into out, binary": lambda lib, x: lib.mul(x, x, out=torch.empty_like(x)),
    "into out, reduction": lambda lib, x: lib.sum(x, 0, out=x.new_empty(())),
    "into out from outside": lambda lib, x: lib.exp(x, out=torch.empty(3, dtype=torch.float64, device=DEVICE)),
    "over unbatched": _add_to_unbatched,
    "over fewer axes": lambda lib, x: twin(lib, "add_")(x.new_ones(()), x),
    "over an integer": lambda lib, x: twin(lib, "mul_")(x.long(), x),
}


@pytest.mark.sample(formulas="bad*name", kernels="bad, name")
@pytest.mark.parametrize("name", ONCE)
@pytest.mark.parametrize("bad", BAD)
def test_what_torch_refuses_under_a_transform_is_refused(bad, name):
    x = torch.linspace(0.5, 2, 6, dtype=torch.float64, device=DEVICE).reshape(2, 3)
    with customops.backend("auto"):  # complex numbers have no kernel
        got, want = (run(library, [name], BAD[bad], [x]) for library in (customops, torch))
    assert_same_outcome(got, want)


def test_most_of_what_is_bad_is_refused():
    x = torch.linspace(0.5, 2, 6, dtype=torch.float64, device=DEVICE).reshape(2, 3)
    results = [run(torch, [name], BAD[bad], [x]) for bad in BAD for name in ONCE]
    assert sum(isinstance(r, type) for r in results) > 0.8 * len(results)
