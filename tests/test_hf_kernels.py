"""Kernel mappings of Hugging Face's ``kernels``: the layers that they replace are fused, and compute what they did."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import customops

from .compare import record_launches
from .conftest import DEVICE, KERNELS, NO_KERNEL
from .marks import formulas_only

kernels = pytest.importorskip("kernels", reason="it has the mappings")

from examples import hf_kernels  # noqa: E402 - it imports kernels

TRAINING = kernels.Mode.TRAINING
COMPILED = TRAINING | kernels.Mode.TORCH_COMPILE
modes = pytest.mark.parametrize("mode", [TRAINING, COMPILED, kernels.Mode.INFERENCE], ids=lambda mode: mode.name)
CLASSES = [hf_kernels.RMSNorm, hf_kernels.SwiGLU]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Nothing is fetched: no request is even made."""

    def refuse(*args, **kwargs):
        raise AssertionError("a request was made")

    monkeypatch.setattr("socket.socket.connect", refuse)


def pair():
    torch.manual_seed(0)
    plain = hf_kernels.model().to(DEVICE, torch.float64)
    return plain, copy.deepcopy(plain), torch.randn(4, 10, 32, dtype=torch.float64, device=DEVICE)


def kernelized(model, mode, mapping):
    with kernels.use_kernel_mapping(mapping, inherit_mapping=False):
        return kernels.kernelize(model, mode=mode, use_fallback=False)


def replaced(model):
    """Return the classes of modules with another forward; a layer without a mapping gets its own as an attribute."""
    own = [(type(x), vars(x).get("forward")) for x in model.modules()]
    return [cls.__name__ for cls, forward in own if forward and forward.__func__ is not cls.forward]


@formulas_only
@modes
def test_a_mapping_replaces_every_layer_of_its_classes(mode, blocks, walked):
    plain, model, x = pair()
    kernelized(model, mode, hf_kernels.mapping(CLASSES))
    assert replaced(model) == ["RMSNorm", "SwiGLU"] * 2 + ["RMSNorm"]
    blocks(8)  # as large tensors are computed
    torch.testing.assert_close(hf_kernels.results(model, x), hf_kernels.results(plain, x))
    assert walked


@pytest.mark.skipif(not KERNELS, reason=NO_KERNEL)
@pytest.mark.sample(formulas="")
def test_layers_of_a_mapping_run_by_kernels(monkeypatch):
    plain, model, x = pair()
    kernelized(model, TRAINING, hf_kernels.mapping(CLASSES))
    launched = record_launches(monkeypatch)
    torch.testing.assert_close(hf_kernels.results(model, x), hf_kernels.results(plain, x))
    assert launched


@formulas_only
def test_layers_of_a_mapping_are_compiled():
    plain, model, x = pair()
    compiled = torch.compile(kernelized(model, COMPILED, hf_kernels.mapping(CLASSES)), backend="eager", fullgraph=True)
    torch.testing.assert_close(hf_kernels.results(compiled, x), hf_kernels.results(plain, x))


@formulas_only
def test_a_layer_comes_from_a_folder(blocks, walked):
    plain, model, x = pair()
    kernels.replace_kernel_forward_from_hub(hf_kernels.RMSNorm, "RMSNorm")
    layer = kernels.LocalLayerRepository(Path(__file__).parent / "hub", layer_name="RMSNorm")
    with kernels.use_kernel_mapping({"RMSNorm": {DEVICE: layer}}, inherit_mapping=False):
        kernels.kernelize(model, mode=COMPILED)
    assert replaced(model) == ["RMSNorm"] * 3
    blocks(8)
    torch.testing.assert_close(hf_kernels.results(model, x), hf_kernels.results(plain, x))
    assert walked


@formulas_only
def test_a_copy_of_what_was_mapped_has_its_own_parameters():
    _, model, x = pair()
    again = copy.deepcopy(kernelized(model, TRAINING, hf_kernels.mapping(CLASSES)))
    want = again(x)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert torch.equal(again(x), want)


@formulas_only
def test_apply_leaves_what_a_mapping_replaced_and_a_mapping_replaces_what_was_applied():
    plain, model, x = pair()
    kernelized(model, TRAINING, hf_kernels.mapping(CLASSES))
    report = customops.apply(model, x)
    assert not report.taken
    assert "its attribute `forward` replaces that of its class" in str(report)
    _, model, x = pair()
    customops.apply(model, x)
    kernelized(model, TRAINING, hf_kernels.mapping(CLASSES))
    torch.testing.assert_close(hf_kernels.results(model, x), hf_kernels.results(plain, x))


@formulas_only
def test_a_mapping_is_found_for_a_model_of_transformers(blocks, walked):
    pytest.importorskip("transformers", reason="it has the model")
    from benchmarks.models.families import inputs_of, made, step  # noqa: PLC0415 - it needs transformers

    plain, inputs = made("Llama"), inputs_of("Llama")
    model = copy.deepcopy(plain)
    taken = customops.apply(copy.deepcopy(plain), inputs).taken
    classes = {type(x.module)._unfused for x in taken if x.extent == "forward"}
    kernelized(model, TRAINING, hf_kernels.mapping(classes))
    assert replaced(model).count("LlamaRMSNorm") == 5
    blocks(8)
    for got, want in zip(step(model, inputs), step(plain, inputs), strict=True):
        torch.testing.assert_close(list(got), list(want))
    assert walked


@formulas_only
def test_the_example_says_that_all_agree(capsys):
    hf_kernels.main()
    assert capsys.readouterr().out.count("5 layers by fused kernels, value and gradients are torch's") == 2
