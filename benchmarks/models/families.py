"""Models of transformers, diffusers and timm: their configurations, with random weights, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import cross_entropy, mse_loss

TOKENS, LABELS = 61, 5
SMALL: dict[str, Any] = {"vocab_size": TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LONG = {"intermediate_size": 48, "max_position_embeddings": 64}
IDS = {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
HEADS = {"num_key_value_heads": 2, "head_dim": 8}
# What a training step is timed with.
WIDE: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 1376, "num_attention_heads": 8}
WIDE_HEADS = {"num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 256}


def of_transformers(kind: str, options: dict[str, Any]) -> Module:
    """Return a model of transformers."""
    import transformers  # noqa: PLC0415 - nothing else needs it

    transformers.logging.set_verbosity_error()
    cls = getattr(transformers, kind)
    return cls(cls.config_class(**options))


class OfDiffusers(Module):
    """A block of diffusers, with a loss."""

    def __init__(self, kind: str, options: dict[str, Any]):
        super().__init__()
        from diffusers.models.unets import unet_2d_blocks  # noqa: PLC0415 - nothing else needs it

        self.block = getattr(unet_2d_blocks, kind)(**options)

    def forward(self, labels: Tensor, **inputs: Tensor) -> SimpleNamespace:
        """Return what the block computes, and how far it is from the labels."""
        z, _ = self.block(**inputs)
        return SimpleNamespace(logits=z, loss=mse_loss(z, labels))


class OfTimm(Module):
    """A classifier of timm, with a loss."""

    def __init__(self, kind: str, options: dict[str, Any]):
        super().__init__()
        from timm import create_model  # noqa: PLC0415 - nothing else needs it

        known = {name: x for name, x in options.items() if name != "image_size"}
        self.classifier = create_model(kind, num_classes=LABELS, **known)

    def forward(self, labels: Tensor, pixel_values: Tensor) -> SimpleNamespace:
        """Return the logits of images, and their loss."""
        z = self.classifier(pixel_values)
        return SimpleNamespace(logits=z, loss=cross_entropy(z, labels))


class Family(NamedTuple):
    """A family of models."""

    kind: str  # of the model
    options: dict[str, Any]  # of its configuration
    wide: dict[str, Any]  # the options that a step is timed with
    extent: str | None  # what is fused of some modules: the longest stretch that is found, or "forward"
    generates: bool = True
    inputs: str = "input_ids"
    library: str = "transformers"
    length: int = 256  # of rows in a step that is timed: tokens; of a UNet block the sides of its input
    make: Callable[[str, dict[str, Any]], Any] = of_transformers


FAMILIES = {
    "Llama": Family("LlamaForCausalLM", {**SMALL, **LONG, **IDS, **HEADS}, {**WIDE, **WIDE_HEADS}, "add, LlamaRMSNorm"),
    "Qwen3": Family(
        "Qwen3ForCausalLM", {**SMALL, **LONG, **IDS, **HEADS}, {**WIDE, **WIDE_HEADS}, "SiLUActivation, mul"
    ),
    "Gemma3": Family(
        "Gemma3ForCausalLM",
        {**SMALL, **LONG, **IDS, **HEADS},
        {**WIDE, **WIDE_HEADS},
        "Gemma3RMSNorm, add, Gemma3RMSNorm",
    ),
    "Cohere2": Family(
        "Cohere2ForCausalLM",
        {**SMALL, **LONG, **IDS, "num_key_value_heads": 2},
        {**WIDE, "num_key_value_heads": 8, "max_position_embeddings": 256},
        "add, add",
    ),
    "GPT-2": Family(
        "GPT2LMHeadModel",
        {"vocab_size": TOKENS, "n_embd": 32, "n_layer": 2, "n_head": 4, **IDS},
        {"n_embd": 512, "n_head": 8},
        "add, LayerNorm",
    ),
    "GPT-NeoX": Family(
        "GPTNeoXForCausalLM", {**SMALL, **LONG, **IDS}, {**WIDE, "max_position_embeddings": 256}, "add, add"
    ),
    "BERT": Family(
        "BertForMaskedLM",
        {**SMALL, **LONG},
        {**WIDE, "max_position_embeddings": 256},
        "add, add, LayerNorm",
        generates=False,
    ),
    "T5": Family(
        "T5ForConditionalGeneration",
        {"vocab_size": TOKENS, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
        | {"decoder_start_token_id": 0, **IDS},
        {"d_model": 512, "d_kv": 64, "d_ff": 1376, "num_heads": 8},
        "forward",
        length=128,
    ),
    "ViT": Family(
        "ViTForImageClassification",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
        | {"image_size": 8, "patch_size": 4, "num_labels": LABELS},
        {**WIDE, "image_size": 64},
        "add, LayerNorm",
        generates=False,
        inputs="pixel_values",
    ),
    "Falcon-Mamba": Family(
        "FalconMambaForCausalLM",
        {"vocab_size": TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, **IDS},
        {"hidden_size": 512, "state_size": 8},
        "forward",
        length=32,
    ),
    "ConvNeXt": Family(
        "ConvNextForImageClassification",
        {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2, "image_size": 16, "num_labels": LABELS},
        {"hidden_sizes": [64, 128], "image_size": 128},
        "mul, add",
        generates=False,
        inputs="pixel_values",
    ),
    "MobileNetV2": Family(
        "MobileNetV2ForImageClassification",
        {"depth_multiplier": 0.25, "image_size": 32, "num_labels": LABELS},
        {"image_size": 128},
        None,
        generates=False,
        inputs="pixel_values",
    ),
    "UNet block": Family(
        "CrossAttnDownBlock2D",
        {"in_channels": 16, "out_channels": 32, "temb_channels": 24, "num_layers": 2, "resnet_groups": 4}
        | {"num_attention_heads": 4, "cross_attention_dim": 16},
        {"in_channels": 64, "out_channels": 128},
        "add, GroupNorm, SiLU",
        generates=False,
        inputs="hidden_states",
        library="diffusers",
        make=OfDiffusers,
        length=32,
    ),
    "ConvNeXt of timm": Family(
        "convnext_tiny",
        {"depths": (1, 2, 1, 1), "dims": (8, 8, 16, 16), "image_size": 32},
        {"depths": (1, 1, 3, 1), "dims": (32, 64, 128, 256), "image_size": 128},
        "mul, add",
        generates=False,
        inputs="pixel_values",
        library="timm",
        make=OfTimm,
    ),
    "MobileNetV3 of timm": Family(
        "mobilenetv3_small_050",
        {"image_size": 64},
        {"image_size": 128},
        "Hardsigmoid, mul",
        generates=False,
        inputs="pixel_values",
        library="timm",
        make=OfTimm,
    ),
}


def made(name: str, **options: Any) -> Any:
    """Return the model of a family, in eval mode: without dropout. No weight is 0 or 1."""
    family = FAMILIES[name]
    torch.manual_seed(0)
    model = family.make(family.kind, family.options | options)
    with torch.no_grad():
        for x in model.parameters():
            x.add_(0.02 * torch.randn_like(x))
    return model.eval()


def inputs_of(name: str, rows: int = 2, length: int = 6, **options: Any) -> dict[str, Tensor]:
    """Return inputs of a family's model, and labels. ``length`` is that of rows of tokens, or the side of an image."""
    torch.manual_seed(1)
    family = FAMILIES[name]
    options = family.options | options
    if family.inputs == "pixel_values":
        size = options["image_size"]
        return {"pixel_values": torch.randn(rows, 3, size, size), "labels": torch.randint(0, LABELS, (rows,))}
    if family.inputs == "hidden_states":
        half = (length + 1) // 2
        inputs = {"hidden_states": torch.randn(rows, options["in_channels"], length, length)}
        inputs |= {"temb": torch.randn(rows, options["temb_channels"])}
        inputs |= {"encoder_hidden_states": torch.randn(rows, 5, options["cross_attention_dim"])}
        return inputs | {"labels": torch.randn(rows, options["out_channels"], half, half)}
    ids = torch.randint(2, TOKENS, (rows, length))
    return {"input_ids": ids, "labels": ids}


def step(model: Module, inputs: dict[str, Tensor]) -> tuple[Sequence[Tensor | None], ...]:
    """Return logits, the loss, and the gradients of all parameters."""
    torch.manual_seed(2)
    out = model(**inputs)
    return [out.logits], [out.loss], torch.autograd.grad(out.loss, list(model.parameters()), allow_unused=True)
