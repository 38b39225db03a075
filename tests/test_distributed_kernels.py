"""Kernels compute on what each rank has, under PyTorch's engines; always in the interpreter."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest
import torch
from torch.distributed.pipelining import ScheduleGPipe

from .compare import record_launches
from .conftest import DEVICE, KERNELS
from .engines import ENGINES, by_schedule, pipeline
from .network import Engine, alone, assert_same_training, train
from .ranks import Ranks


@pytest.fixture(scope="module")
def interpreted(two):
    """Yield two ranks whose kernels run in the interpreter."""
    if DEVICE == "cuda":
        pytest.skip("the interpreter runs kernels on CPU tensors")
    pytest.importorskip("triton", reason="without Triton there are no kernels")
    if KERNELS:
        yield two
        return
    ranks = Ranks(2, TRITON_INTERPRET="1", CUSTOMOPS_BACKEND="triton")
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def once(interpreted):
    """Return the launches of one step in one process."""
    made = launches(interpreted, Engine())[0]
    assert made.total() > 80
    assert {backward for backward, _ in made} == {False, True}
    return made


def launches(ranks, engine):
    """Count each rank's launches in one step, which has to be the one that torch's operators take in one process."""
    made, steps = zip(*ranks(step, engine), strict=True)
    assert_same_training(steps, alone("torch")[:1])
    return made


def step(engine):
    """Take a step; return its launches, by whether the backward pass made them and what they compute, and the step."""
    with pytest.MonkeyPatch.context() as patch:
        made = record_launches(patch, lambda launch: (torch._C._current_graph_task_id() >= 0, launch.summary))
        steps = train(engine, "customops", steps=1)
    return Counter(made), steps


@pytest.mark.sample(formulas="")
@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_each_rank_launches_what_one_process_does(name, interpreted, once, tally):
    assert launches(interpreted, ENGINES[name]) == (once, once)
    tally("trainings under an engine")


@pytest.mark.sample(formulas="")
@pytest.mark.parametrize(("name", "torchs"), [("tensor", 3), ("tensor, DTensors", 10)])
def test_shards_of_dtensors_take_the_same_launches_but_for_partial_sums(name, torchs, interpreted, once):
    """Gradients of three gains, and sums over classes where these are spread, are added up by torch's operator."""
    for made in launches(interpreted, ENGINES[name]):
        assert made <= once
        assert (once - made).total() <= torchs


@pytest.mark.sample(formulas="")
def test_stages_together_launch_what_one_process_does_for_each_microbatch(interpreted, once):
    """They launch at least that: to find out shapes a stage runs once more."""
    engine = Engine(partial(pipeline, schedule=ScheduleGPipe, microbatches=2), by_schedule)
    assert sum(launches(interpreted, engine), Counter()) >= once + once
