"""A network of our operators trains under PyTorch's engines as torch's does, and as in one process."""

from __future__ import annotations

from collections import Counter

import pytest
from lockstep import OPERATORS, counted

from .engines import ENGINES, HALF, OF_FOUR
from .network import LIBRARIES, Network, alone, assert_same_training, at_once, batches, train

TOLERANCES = {"ddp, compressed": {"rtol": 2e-3, "atol": 2e-3}, "fsdp, mixed": {"rtol": 1.6e-2, "atol": 1e-2}}


@pytest.mark.sample(kernels="")
@pytest.mark.parametrize("library", LIBRARIES)
def test_gradient_flows_through_all_ten_operators_to_every_parameter(library):
    calls = Counter()
    model = Network(counted(LIBRARIES[library], calls))
    at_once(model, model.loss, *batches()[0])
    assert calls.keys() == set(OPERATORS)
    assert min(calls.values()) > 0
    assert all(p.grad.count_nonzero() == p.numel() for p in model.parameters())


@pytest.mark.sample(formulas="kind", kernels="", gpu="name")
@pytest.mark.parametrize("name", ENGINES)
def test_two_ranks_train_as_one_process(name, two, tally):
    hold(ENGINES[name], two, tally)


@pytest.mark.sample(formulas="kind", kernels="", gpu="name")
@pytest.mark.parametrize("name", OF_FOUR)
def test_four_ranks_train_as_one_process(name, four, tally):
    hold(OF_FOUR[name], four, tally)


def hold(engine, ranks, tally):
    """Train both libraries under ``engine``: as each does alone, and as the other."""
    for library in LIBRARIES:
        got = ranks(train, engine, library)
        for other in LIBRARIES:
            assert_same_training(got, alone(other, engine.clips))
        tally("trainings under an engine")


@pytest.mark.sample(kernels="", gpu="name")
@pytest.mark.parametrize("name", HALF)
def test_half_precision_trains_as_torch_does_under_the_same_engine(name, two, tally):
    ranks = zip(*(two(train, HALF[name], library) for library in LIBRARIES), strict=True)
    for ours, theirs in ranks:
        assert_same_training([ours], theirs, **TOLERANCES[name])
    tally("trainings under an engine", 2)
