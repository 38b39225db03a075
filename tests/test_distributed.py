"""The processes that distributed tests run in: what fails in one fails the test, and nothing hangs."""

from __future__ import annotations

import os
import time

import pytest
import torch
import torch.distributed as dist

from .conftest import DEVICE
from .marks import formulas_only

pytestmark = formulas_only


def _rank_times(factor):
    total = torch.tensor(dist.get_rank() + 1, device=DEVICE)
    dist.all_reduce(total)
    return dist.get_rank() * factor, total.item()


def _fail_on_last(how):
    if dist.get_rank() == dist.get_world_size() - 1:
        how()
    dist.barrier()


def _raise():
    raise ValueError("of its own")


def _die():
    os._exit(3)


def _sleep():
    time.sleep(60)


def test_ranks_answer_in_order(two):
    assert two(_rank_times, 10) == [(0, 3), (10, 3)]


@pytest.mark.sample(formulas="once", kernels="")
@pytest.mark.parametrize(
    ("how", "seconds", "message"),
    [(_raise, 60, "ValueError: of its own"), (_die, 60, "exit code 3"), (_sleep, 5, "did not answer in 5 s")],
    ids=["raises", "dies", "hangs"],
)
def test_rank_that_fails_fails_all_with_its_message(two, how, seconds, message):
    with pytest.raises(AssertionError, match=message):
        two(_fail_on_last, how, seconds=seconds)
    assert not two.processes
