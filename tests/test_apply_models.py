"""``apply`` on models of transformers, of their configurations with random weights: all is as torch computes it."""

from __future__ import annotations

import copy
from functools import cache
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

import customops
from benchmarks.models.families import FAMILIES, inputs_of, made, step
from customops.blocks import plan
from customops.blocks.loop import BlockLoop
from customops.models.check import check, difference
from customops.models.probe import Probe, mapped
from customops.models.report import Layout

from .compare import record_launches
from .conftest import KERNELS, MODE, NO_KERNEL
from .marks import formulas_only


def having(names):
    """Return a mark with these families, of which those are skipped whose library is not there."""
    libraries = {name: FAMILIES[name].library for name in names}
    return pytest.mark.parametrize(
        "name",
        [
            pytest.param(name, marks=pytest.mark.skipif(find_spec(x) is None, reason=f"{x} has the model"))
            for name, x in libraries.items()
        ],
    )


families = having(FAMILIES)
once = pytest.mark.sample(formulas="once", kernels="")


@cache
def pair(name: str) -> tuple[Any, Any, Any]:
    """Return a model as it is, one that was applied, and the report."""
    plain = made(name)
    applied = copy.deepcopy(plain)
    return plain, applied, customops.apply(applied, inputs_of(name))


def assert_alike(got, want):
    assert max(map(difference, got, want)) < 2e-5


@formulas_only
@families
def test_logits_loss_and_gradients_are_torchs(name, blocks, walked):
    plain, applied, report = pair(name)
    assert FAMILIES[name].extent in ([taken.extent for taken in report.taken] or [None])
    want = step(plain, inputs_of(name))
    blocks(8)  # as large tensors are computed
    walked.clear()
    assert_alike(step(applied, inputs_of(name)), want)
    assert bool(walked) is bool(report.taken)


@pytest.mark.skipif(not KERNELS, reason=NO_KERNEL)
@pytest.mark.sample(formulas="")
@having(["Llama", "Cohere2"])
def test_logits_loss_and_gradients_by_kernels_are_torchs(name, monkeypatch):
    plain, applied, _ = pair(name)
    launched = record_launches(monkeypatch)
    assert_alike(step(applied, inputs_of(name)), step(plain, inputs_of(name)))
    assert launched


@once
@families
def test_ten_steps_of_training_are_in_lockstep(name, blocks):
    blocks(1 << 10)
    losses = []
    for model in copy.deepcopy(pair(name)[:2]):
        optimizer = torch.optim.SGD(model.train().parameters(), 0.05)
        torch.manual_seed(2)
        losses.append([])
        for _ in range(10):
            loss = model(**inputs_of(name)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    plain, applied = map(torch.tensor, losses)
    assert plain[-1] < plain[0]
    assert (plain - applied).abs().max() < 1e-4


@once
@having([name for name, family in FAMILIES.items() if family.generates])
def test_the_same_tokens_are_generated(name, blocks):
    blocks(1 << 10)
    tokens = [
        model.generate(inputs_of(name)["input_ids"], max_new_tokens=4, do_sample=False, pad_token_id=0)
        for model in pair(name)[:2]
    ]
    assert torch.equal(*tokens)


@once
@families
def test_autocast_is_torchs(name, blocks):
    blocks(1 << 10)
    plain, applied, _ = pair(name)
    with torch.autocast("cpu", torch.bfloat16):
        want, got = (model(**inputs_of(name)).logits.float() for model in (plain, applied))
    assert (got - want).abs().max() <= 0.05 * want.abs().max()


@once
@families
def test_checkpoints_are_torchs(name, blocks):
    blocks(1 << 10)
    plain, applied = copy.deepcopy(pair(name)[:2])
    if not getattr(plain, "supports_gradient_checkpointing", False):
        pytest.skip("its class has no gradient checkpoints")
    inputs = inputs_of(name) | ({"use_cache": False} if FAMILIES[name].generates else {})
    for model in (plain, applied):
        model.train().gradient_checkpointing_enable()
    want, got = (step(model, inputs) for model in (plain, applied))
    assert_alike(got, want)


@once
@families
def test_a_compiler_sees_torchs_functions(name):
    plain, applied = copy.deepcopy(pair(name)[:2])
    compiled = torch.compile(applied, backend="eager")
    assert_alike(step(compiled, inputs_of(name)), step(plain, inputs_of(name)))


@pytest.mark.skipif(MODE != "compiled", reason="CUSTOMOPS_TEST_COMPILED executes compiled code")
@pytest.mark.sample(formulas="", kernels="", compiled="once")
@having([name for name, family in FAMILIES.items() if family.extent])
def test_a_layer_by_compiled_code_is_torchs(name, monkeypatch):
    with customops.backend("torch"):
        model = made(name)
        taken = customops.apply(model, inputs_of(name)).taken
    one = next(x for x in taken if x.extent == FAMILIES[name].extent)
    launched = record_launches(monkeypatch)
    found = check(one.fused, one.module, Probe(*(mapped(random, x, Layout) for x in one.probe)))
    assert found.difference < 2e-5
    assert launched


def random(x):
    """Return a tensor that is laid out as ``x``, of random elements where these are floats."""
    z = torch.empty_strided(x.shape, x.strides, dtype=x.dtype)
    return z.normal_() if z.is_floating_point() else z.zero_()


@pytest.mark.sample(formulas="", kernels="")
def test_a_sharded_model_is_that_of_one_process(two):
    pytest.importorskip("transformers", reason="it has the model")
    for worst, walks, classes in two(_trained, "Llama"):
        assert worst < 1e-5
        assert walks > 0
        assert classes == {"FSDPLlamaDecoderLayer"}


def _trained(name):
    """Train by FSDP2 on half of a batch each and, as it is, on all: return how far parameters come apart, and more."""
    plain, inputs = made(name), inputs_of(name)
    applied = copy.deepcopy(plain)
    customops.apply(applied, inputs)
    for layer in applied.model.layers:
        fully_shard(layer)
    fully_shard(applied)
    rank = dist.get_rank()
    walks = []
    compute = BlockLoop.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "LEAST_ELEMENTS", (0, 0))  # small tensors are computed as large ones
        patch.setattr(BlockLoop, "__call__", lambda self, *args: (walks.append(1), compute(self, *args))[1])
        for model, batch in ((plain, inputs), (applied, {key: x[rank : rank + 1] for key, x in inputs.items()})):
            optimizer = torch.optim.SGD(model.parameters(), 0.05)
            for _ in range(3):
                optimizer.zero_grad()
                model(**batch).loss.backward()
                optimizer.step()
    pairs = zip(applied.parameters(), plain.parameters(), strict=True)
    worst = max((x.full_tensor() - y).abs().max().item() for x, y in pairs)
    return worst, len(walks), {type(layer).__name__ for layer in applied.model.layers}


@formulas_only
@families
def test_a_model_is_restored(name):
    plain, applied, report = pair(name)
    applied = copy.deepcopy(applied)
    assert customops.restore(applied) == len({taken.name for taken in report.taken})
    assert [type(module) for module in applied.modules()] == [type(module) for module in plain.modules()]
    assert list(applied.state_dict()) == list(plain.state_dict())
