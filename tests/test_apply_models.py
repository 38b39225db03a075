"""``apply`` on models of transformers, of their configurations with random weights: all is as torch computes it."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch

import customops
from benchmarks.models import FAMILIES, inputs_of, made, step
from customops.models.check import difference

from .compare import record_launches
from .conftest import KERNELS, NO_KERNEL
from .marks import formulas_only

pytest.importorskip("transformers", reason="it has the models")

families = pytest.mark.parametrize("name", FAMILIES)


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
    assert FAMILIES[name].became in [taken.became for taken in report.taken]
    want = step(plain, inputs_of(name))
    blocks(8)  # as large tensors are computed
    assert_alike(step(applied, inputs_of(name)), want)
    assert walked


@pytest.mark.skipif(not KERNELS, reason=NO_KERNEL)
@pytest.mark.sample(formulas="")
@pytest.mark.parametrize("name", ["Llama", "Cohere2"])
def test_logits_loss_and_gradients_by_kernels_are_torchs(name, monkeypatch):
    plain, applied, _ = pair(name)
    launched = record_launches(monkeypatch)
    assert_alike(step(applied, inputs_of(name)), step(plain, inputs_of(name)))
    assert launched


@formulas_only
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


@formulas_only
@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.generates])
def test_the_same_tokens_are_generated(name, blocks):
    blocks(1 << 10)
    tokens = [
        model.generate(inputs_of(name)["input_ids"], max_new_tokens=4, do_sample=False, pad_token_id=0)
        for model in pair(name)[:2]
    ]
    assert torch.equal(*tokens)


@formulas_only
@pytest.mark.parametrize("name", ["Llama", "GPT-2"])
def test_autocast_and_checkpoints_are_torchs(name, blocks):
    blocks(1 << 10)
    inputs = inputs_of(name)
    plain, applied = copy.deepcopy(pair(name)[:2])
    with torch.autocast("cpu", torch.bfloat16):
        want, got = (model(**inputs).logits.float() for model in (plain, applied))
    assert (got - want).abs().max() <= 0.05 * want.abs().max()
    for model in (plain, applied):
        model.train().gradient_checkpointing_enable()
    want, got = (step(model, {**inputs, "use_cache": False}) for model in (plain, applied))
    assert_alike(got, want)


@formulas_only
@pytest.mark.parametrize("name", ["Llama", "BERT"])
def test_a_compiler_sees_torchs_functions(name):
    plain, applied = copy.deepcopy(pair(name)[:2])
    compiled = torch.compile(applied, backend="eager")
    assert_alike(step(compiled, inputs_of(name)), step(plain, inputs_of(name)))


@formulas_only
@families
def test_a_model_is_restored(name):
    plain, applied, report = pair(name)
    applied = copy.deepcopy(applied)
    assert customops.restore(applied) == len({taken.name for taken in report.taken})
    assert [type(module) for module in applied.modules()] == [type(module) for module in plain.modules()]
    assert list(applied.state_dict()) == list(plain.state_dict())
