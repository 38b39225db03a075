"""Layers of transformers as the installed package has them, unchanged: fused, torch's values, gradients, launches."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import customops
from customops import fuse

from . import zoo
from .compare import assert_same_outcome, cotangent
from .conftest import DEVICE, MODE

reason = "layers are taken from transformers, which customops[models] brings"
transformers = pytest.importorskip("transformers", reason=reason)
activations = import_module("transformers.activations")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

WIDTH, INNER = 16, 32  # of hidden states, and between the matrices of an MLP
X = (2, 6, WIDTH)
ANGLES, HALF = (2, 6, WIDTH), (2, 6, WIDTH // 2)  # of a rotary embedding, and those of half of a head
Q, K = (2, 3, 6, WIDTH), (2, 1, 6, WIDTH)  # batch, heads, length, width


class Layer(NamedTuple):
    """A layer, and what its fused call launches on a GPU."""

    make: Callable[[], Callable]  # returns a module or a function
    shapes: tuple[tuple[int, ...], ...]  # of the tensors that it takes
    launches: tuple[int, int]  # kernels forward and backward
    recorded: int | None = None  # how many of the tensors have gradients, where launches are counted; None for all


def of(model: str, name: str) -> Any:
    """Return what the modelling file of a model calls ``name``."""
    return getattr(import_module(f"transformers.models.{model}.modeling_{model}"), name)


def config(model: str) -> Any:
    """Return a small configuration of a model."""
    sizes = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": 1, "vocab_size": 24}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0}
    return transformers.AutoConfig.for_model(model, **sizes, **heads)


def without_matrices(module: nn.Module) -> nn.Module:
    """Return the module, whose forward stays, with the identity in place of the products with matrices."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear | transformers.pytorch_utils.Conv1D):
                setattr(parent, name, nn.Identity())
    return module.eval()


def gated(mlp: nn.Module) -> Callable:
    """Return what a gated MLP computes between its matrices."""
    return lambda gate, up: mlp.act_fn(gate) * up


LAYERS = {
    "norm, llama": Layer(lambda: of("llama", "LlamaRMSNorm")(WIDTH), (X,), (1, 2)),
    "norm, qwen3 of heads": Layer(lambda: of("qwen3", "Qwen3RMSNorm")(8), ((2, 6, 4, 8),), (1, 2)),
    "norm, gemma3": Layer(lambda: of("gemma3", "Gemma3RMSNorm")(WIDTH), (X,), (1, 2)),
    "norm, cohere2": Layer(lambda: of("cohere2", "Cohere2LayerNorm")(WIDTH), (X,), (1, 2)),
    "norm, t5": Layer(lambda: of("t5", "T5LayerNorm")(WIDTH), (X,), (1, 2)),
    "norm, gpt_oss": Layer(lambda: of("gpt_oss", "GptOssRMSNorm")(WIDTH), (X,), (1, 2)),
    "norm, llama4": Layer(lambda: of("llama4", "Llama4TextL2Norm")(eps=1e-5), (X,), (1, 1)),
    "norm, bamba of groups, gated": Layer(lambda: of("bamba", "BambaRMSNormGated")(WIDTH, 8), (X, X), (1, 2)),
    "norm, gpt_neox": Layer(
        lambda: of("gpt_neox", "GPTNeoXLayer")(config("gpt_neox"), 0).input_layernorm, (X,), (1, 2)
    ),
    "norm, gpt2": Layer(lambda: of("gpt2", "GPT2Block")(config("gpt2"), 0).ln_1, (X,), (1, 2)),
    "norm, bert of a residual sum": Layer(
        lambda: without_matrices(of("bert", "BertOutput")(config("bert"))), (X, X), (1, 2)
    ),
    "norm, convnextv2": Layer(lambda: of("convnextv2", "ConvNextV2GRN")(WIDTH), ((2, 3, 5, WIDTH),), (2, 5)),
    "mlp, llama": Layer(lambda: gated(of("llama", "LlamaMLP")(config("llama"))), (X, X), (1, 1)),
    "mlp, gemma3": Layer(lambda: gated(of("gemma3", "Gemma3MLP")(config("gemma3_text"))), (X, X), (1, 1)),
    "mlp, phi3": Layer(lambda: without_matrices(of("phi3", "Phi3MLP")(config("phi3"))), (X,), (1, 1)),
    "mlp, gpt2": Layer(lambda: without_matrices(of("gpt2", "GPT2MLP")(INNER, config("gpt2"))), (X,), (1, 1)),
    "mlp, gpt_neox": Layer(lambda: without_matrices(of("gpt_neox", "GPTNeoXMLP")(config("gpt_neox"))), (X,), (1, 1)),
    "rotary, llama": Layer(lambda: of("llama", "apply_rotary_pos_emb"), (Q, K, ANGLES, ANGLES), (2, 2), 2),
    "rotary, llama of as many keys": Layer(
        lambda: of("llama", "apply_rotary_pos_emb"), (Q, Q, ANGLES, ANGLES), (1, 1), 2
    ),
    "rotary, llama's rotate_half": Layer(lambda: of("llama", "rotate_half"), (Q,), (1, 1)),
    "rotary, cohere2": Layer(lambda: of("cohere2", "apply_rotary_pos_emb"), (Q, K, ANGLES, ANGLES), (2, 2), 2),
    "rotary, gpt_neox of a part": Layer(lambda: of("gpt_neox", "apply_rotary_pos_emb"), (Q, K, HALF, HALF), (4, 4), 2),
    "rotary, gpt_neox of all": Layer(lambda: of("gpt_neox", "apply_rotary_pos_emb"), (Q, K, ANGLES, ANGLES), (2, 2), 2),
    "rotary, glm4 of a part": Layer(lambda: of("glm4", "apply_rotary_pos_emb"), (Q, K, HALF, HALF), (4, 4), 2),
    "rotary, gptj": Layer(lambda: of("gptj", "apply_rotary_pos_emb"), ((2, 6, 3, WIDTH), HALF, HALF), (1, 1), 1),
    "rotary, gpt_oss": Layer(lambda: of("gpt_oss", "apply_rotary_pos_emb"), (Q, K, HALF, HALF), (2, 2), 2),
    "rotary, deepseek_v3": Layer(
        lambda: of("deepseek_v3", "apply_rotary_pos_emb_interleave"), (Q, K, ANGLES, ANGLES), (2, 2), 2
    ),
    "rotary, deepseek_v3 of as many keys": Layer(
        lambda: of("deepseek_v3", "apply_rotary_pos_emb_interleave"), (Q, Q, ANGLES, ANGLES), (1, 1), 2
    ),
    "rotary, gpt_oss of as many keys": Layer(
        lambda: of("gpt_oss", "apply_rotary_pos_emb"), (Q, Q, HALF, HALF), (1, 1), 2
    ),
    "rotary, glm4 of a part, of as many keys": Layer(
        lambda: of("glm4", "apply_rotary_pos_emb"), (Q, Q, HALF, HALF), (2, 2), 2
    ),
    "rotary, qwen2_vl of an image": Layer(
        lambda: of("qwen2_vl", "apply_rotary_pos_emb_vision"), (Q[1:], Q[1:], (3, WIDTH), (3, WIDTH)), (1, 1), 2
    ),
    "rotary, pe_audio": Layer(lambda: of("pe_audio", "apply_rotary_pos_emb"), (Q, K, ANGLES, ANGLES), (2, 2), 2),
    "other, dac's snake": Layer(lambda: of("dac", "Snake1d")(WIDTH), ((2, WIDTH, 5),), (1, 2)),
    "other, esm's symmetrize": Layer(lambda: of("esm", "symmetrize"), ((2, 6, 6),), (1, 1)),
    "other, esm's gelu": Layer(lambda: of("esm", "gelu"), (X,), (1, 1)),
}
FUSED_ACTIVATIONS = sorted({*activations.ACT2CLS} - {"linear"})  # which returns its input


@pytest.fixture
def by_blocks(request):
    """Have blocks compute small tensors, too, where no kernel does: else all would be torch's own."""
    request.getfixturevalue("blocks")(8)


def made(make: Callable[[], Callable]) -> Callable:
    """Return a layer, the parameters of a module drawn anew, as many are 1 or 0 at first."""
    layer = make()
    for parameter in layer.parameters() if isinstance(layer, nn.Module) else ():
        with torch.no_grad():
            parameter.copy_(torch.rand_like(parameter) + 0.5)
    return layer.to(DEVICE) if isinstance(layer, nn.Module) else layer


def drawn(shapes: tuple, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes]


def results(layer: Callable, xs: list[Tensor], rounded: torch.dtype | None = None) -> list[Tensor]:
    """Return what a layer returns, and the gradients of its tensors and parameters, of cotangents that are rounded."""
    xs = [x.clone().requires_grad_() for x in xs]
    z = layer(*xs)
    zs = list(z) if isinstance(z, tuple) else [z]
    leaves = [*xs, *(layer.parameters() if isinstance(layer, nn.Module) else ())]
    gs = [cotangent(z).to(rounded or z.dtype).to(z.dtype) for z in zs]
    return [*zs, *torch.autograd.grad(zs, leaves, gs)]


def fused_copy(layer: Callable) -> Callable:
    return fuse(copy.deepcopy(layer))


def assert_equal_and_ours(layer: Callable, shapes: tuple) -> None:
    xs = drawn(shapes)
    got, want = results(fused_copy(layer), xs), results(layer, xs)
    assert hasattr(got[0].grad_fn, "_forward_cls")  # a node of ours recorded it, and so no function of torch
    for mine, theirs in zip(got, want, strict=True):
        assert_same_outcome(mine, theirs)


def assert_as_near_in_bfloat16(layer: Callable, shapes: tuple) -> None:
    """Assert that values and gradients are as near to those in float64 as torch's, but for a quarter of eps."""
    xs = drawn(shapes, torch.bfloat16)
    half = copy.deepcopy(layer).to(torch.bfloat16) if isinstance(layer, nn.Module) else layer
    wide = copy.deepcopy(half).double() if isinstance(layer, nn.Module) else layer
    exact = results(wide, [x.double() for x in xs], torch.bfloat16)
    for mine, torchs, want in zip(results(fused_copy(half), xs), results(half, xs), exact, strict=True):
        assert mine.dtype == torchs.dtype
        unit = torch.finfo(torch.bfloat16).eps * want.abs().max()
        assert (mine - want).abs().max() <= (torchs - want).abs().max() + unit / 4


@pytest.mark.usefixtures("by_blocks")
@pytest.mark.sample(kernels="name", compiled="kind")
@pytest.mark.parametrize("name", LAYERS)
def test_values_and_all_gradients_are_torchs(name):
    assert_equal_and_ours(made(LAYERS[name].make), LAYERS[name].shapes)


@pytest.mark.usefixtures("by_blocks")
@pytest.mark.sample(kernels="name", compiled="kind")
@pytest.mark.parametrize("name", LAYERS)
def test_bfloat16_is_as_near_to_float64_as_torchs(name):
    assert_as_near_in_bfloat16(made(LAYERS[name].make), LAYERS[name].shapes)


@pytest.mark.usefixtures("by_blocks")
@pytest.mark.sample(kernels="name", compiled="")
@pytest.mark.parametrize("name", FUSED_ACTIVATIONS)
def test_activations_by_name_are_torchs(name):
    layer = made(lambda: activations.ACT2FN[name])
    assert_equal_and_ours(layer, (X,))
    assert_as_near_in_bfloat16(layer, (X,))


@pytest.mark.sample(kernels="", compiled="")
@pytest.mark.parametrize("name", LAYERS)
def test_a_call_launches_as_many_kernels_as_the_table_says(name):
    if MODE != "formulas":
        pytest.skip("a dry run compiles")
    pytest.importorskip("triton", reason="a dry run compiles")
    layer = LAYERS[name]
    shapes = [tuple(8192 if n == 2 and d == 0 else n for d, n in enumerate(shape)) for shape in layer.shapes]
    xs = [torch.empty(shape) for shape in shapes]
    recorded = [x.requires_grad_() for x in xs[: layer.recorded]]
    fused = fused_copy(made(layer.make))
    parameters = [*fused.parameters()] if isinstance(fused, nn.Module) else []
    with customops.dry_run("cuda:90") as launches:
        z = fused(*xs)
        zs, forward = z if isinstance(z, tuple) else (z,), len(launches)
        torch.autograd.grad(zs, [*recorded, *parameters], list(map(torch.empty_like, zs)))
    assert (forward, len(launches) - forward) == layer.launches


@pytest.mark.usefixtures("by_blocks")
@pytest.mark.sample(kernels="", compiled="")
def test_the_forward_of_a_class_is_fused_for_all_its_modules(monkeypatch):
    cls = of("llama", "LlamaRMSNorm")
    layer, xs = made(lambda: cls(WIDTH)), drawn((X,))
    want = results(layer, xs)
    monkeypatch.setattr(cls, "forward", fuse(cls.forward))
    for mine, theirs in zip(results(layer, xs), want, strict=True):
        assert_same_outcome(mine, theirs)
    assert "rsqrt" in str(cls.forward.program(layer, *xs))


MODELS = ["llama", "qwen3", "gemma3_text", "cohere2", "gpt_neox"]


@pytest.mark.usefixtures("by_blocks")
@pytest.mark.sample(kernels="once", compiled="")
@pytest.mark.parametrize("name", MODELS)
def test_a_model_with_fused_layers_computes_what_it_did(name, monkeypatch):
    """All norms and activations of a model of one layer, and its rotary embedding."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config(name), attn_implementation="eager").to(DEVICE)
    ids = torch.arange(12, device=DEVICE).reshape(2, 6)
    want = logits_and_gradients(model, ids)
    fused = copy.deepcopy(model)
    modelling = import_module(type(model).__module__)
    monkeypatch.setattr(modelling, "apply_rotary_pos_emb", fuse(modelling.apply_rotary_pos_emb))
    taken = [m for m in fused.modules() if not [*m.children()] and ("Norm" in type(m).__name__ or is_activation(m))]
    assert len(taken) >= 3
    for module in taken:
        fuse(module)
    for mine, theirs in zip(logits_and_gradients(fused, ids), want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("by_blocks")
@pytest.mark.sample(kernels="", compiled="")
@pytest.mark.filterwarnings("ignore")
def test_the_survey_finds_layers_and_tells_what_is_refused():
    files, surveyed = zoo.survey(["cohere2", "bloom"])
    said = {copies[0].name: outcome for copies, outcome in surveyed}
    taken = {name for name, outcome in said.items() if outcome == "equal"}
    assert {"Cohere2LayerNorm", "apply_rotary_pos_emb", "rotate_half", "ReLUSquaredActivation"} <= taken
    assert re.search("an autograd.Function|a change of grad mode", said["BloomGelu"])  # the latter from torch 2.15 on
    assert "Cohere2MLP" not in said
    norms, *_ = [line for line in zoo.table(files, surveyed) if line.startswith("| norms")]
    assert norms == "| norms | 1 of 1 | 1 of 1 |"


def is_activation(module: nn.Module) -> bool:
    return type(module) in {x[0] if isinstance(x, tuple) else x for x in activations.ACT2CLS.values()}


def logits_and_gradients(model: nn.Module, ids: Tensor) -> list[Tensor]:
    logits = model(ids).logits
    return [logits, *torch.autograd.grad(logits, [*model.parameters()], cotangent(logits), materialize_grads=True)]
