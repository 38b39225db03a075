"""What torch's tools do with a model that was applied: they do what they do with the model, or say why not."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel

import customops

from .marks import formulas_only
from .test_apply import RMSNorm, assert_alike, fused, results, stretches_of

pytestmark = [formulas_only, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per")]


class Layer(nn.Module):
    """A layer with a norm that is fused, and a gate that is a stretch."""

    def __init__(self, width=8):
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(width, width) for _ in range(3))
        self.norm, self.act = RMSNorm(width), nn.SiLU()

    def forward(self, x):
        """Compute it."""
        y = self.norm(x)
        return x + self.down(self.act(self.gate(y)) * self.up(y))


@pytest.fixture
def x():
    return torch.randn(2, 3, 8)


@pytest.fixture
def pair(x):
    """Return a layer as it is, and one that was applied."""
    torch.manual_seed(0)
    plain = Layer()
    applied = copy.deepcopy(plain)
    report = customops.apply(applied, x)
    assert (fused(report), stretches_of(report)) == (["norm"], ["SiLU, mul"])
    return plain, applied


def is_by_program(module) -> bool:
    return bool(vars(module).get("_customops_programs"))


def test_script_says_what_would_work_and_takes_a_restored_model(pair, x):
    plain, applied = pair
    with pytest.raises(RuntimeError, match=r"^torch.jit.script: expected .*, got Layer, .* customops.restore"):
        torch.jit.script(applied)
    with pytest.raises(RuntimeError, match="got RMSNorm, whose forward is fused"):
        torch.jit.script(nn.Sequential(customops.fuse(RMSNorm(8))))
    customops.restore(applied)
    torch.testing.assert_close(torch.jit.script(applied)(x), plain(x))


def test_traces_and_exports_compute_the_same(pair, x):
    plain, applied = pair
    for made in (torch.jit.trace(applied, x), torch.fx.symbolic_trace(applied), exported(applied, x)):
        torch.testing.assert_close(made(x), plain(x))
        other = torch.randn(2, 3, 8)
        torch.testing.assert_close(made(other), plain(other))
    assert is_by_program(applied)


def exported(model, x):
    return torch.export.export(model, (x,)).module()


def test_a_model_that_was_saved_is_taken_and_has_stretches_after_another_apply(pair, x):
    plain, applied = pair
    file = io.BytesIO()
    torch.save(applied, file)
    file.seek(0)
    other = torch.load(file, weights_only=False)
    assert_alike(results(other, x), results(plain, x))
    assert type(other.norm) is type(applied.norm)
    assert not is_by_program(other)
    assert stretches_of(customops.apply(other, x)) == ["SiLU, mul"]
    assert is_by_program(other)
    assert_alike(results(other, x), results(plain, x))
    assert customops.restore(other) == 2


def test_copies_and_averages_are_taken(pair, x):
    plain, applied = pair
    for other in (copy.deepcopy(applied), copy.copy(applied), AveragedModel(applied).module):
        assert is_by_program(other)
        assert_alike(results(other, x), results(plain, x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_dtype_computes_the_same(dtype, pair, x):
    plain, applied = (model.to(dtype) for model in pair)
    x = x.to(dtype)
    tolerance = 3e-2 if dtype == torch.bfloat16 else 1e-12
    for got, want in zip(results(applied, x), results(plain, x), strict=True):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
    assert is_by_program(applied)


def test_a_model_on_meta_gets_memory_and_a_state(pair, x):
    plain, applied = pair
    empty = copy.deepcopy(applied).to("meta")
    assert empty(x.to("meta")).device.type == "meta"
    filled = empty.to_empty(device="cpu")
    filled.load_state_dict(plain.state_dict())
    assert_alike(results(filled, x), results(plain, x))
    assigned = copy.deepcopy(applied).to("meta")
    assigned.load_state_dict(plain.state_dict(), assign=True)
    assert_alike(results(assigned, x), results(plain, x))


def double(module):
    """Let the weight of a module be twice a parameter."""

    class Double(nn.Module):
        def forward(self, weight):
            return weight * 2

    return parametrize.register_parametrization(module, "weight", Double())


PARAMETRIZED = {
    "a norm's weight": lambda layer: double(layer.norm),
    "a matrix in a stretch's layer": lambda layer: double(layer.gate),
    "weight_norm": lambda layer: parametrizations.weight_norm(layer.up),
    "pruned": lambda layer: prune.l1_unstructured(layer.up, "weight", 0.5),
}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", PARAMETRIZED)
def test_parametrizations_before_and_after_compute_the_same(name, after, x):
    torch.manual_seed(0)
    plain = Layer()
    applied = copy.deepcopy(plain)
    if after:
        customops.apply(applied, x)
    for model in (plain, applied):
        PARAMETRIZED[name](model)
    if not after:
        assert stretches_of(customops.apply(applied, x)) == ["SiLU, mul"]
    assert_alike(results(applied, x), results(plain, x))


def test_dynamic_quantization_replaces_matrices_around_stretches(pair, x):
    quantized = [torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8) for model in pair]
    assert is_by_program(quantized[1])
    torch.testing.assert_close(quantized[1](x), quantized[0](x))


def test_transforms_of_functions_compute_the_same(pair, x):
    plain, applied = pair
    parameters = dict(plain.named_parameters())

    def loss(model):
        return lambda parameters, x: torch.func.functional_call(model, parameters, (x,)).square().sum()

    for transform in (torch.func.grad, lambda f: torch.func.vmap(torch.func.grad(f), (None, 0))):
        got, want = (transform(loss(model))(parameters, x) for model in (applied, plain))
        torch.testing.assert_close(got, want)


def test_a_model_in_shared_memory_computes_the_same(pair, x):
    plain, applied = pair
    applied.share_memory()
    assert_alike(results(applied, x), results(plain, x))
