"""Models of transformers and diffusers with random weights: what ``customops.apply`` makes of them.

``python -m benchmarks.models`` prints the table of docs/models.md. Launches are those of one training step's forward
and backward that are no matrix product, attention or embedding: torch's by what its operators are, one each; ours as
compiled for the GPU. With ``--time`` a step of one model is timed on the CPU, each in a process of its own.
"""

from __future__ import annotations

import argparse
import copy
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import mse_loss

import customops
from customops._compat import without_modes
from customops.fusion.decorator import Fused
from customops.fusion.function import FusedFunction
from customops.models.cost import TorchKernels

TOKENS = 61
SMALL: dict[str, Any] = {"vocab_size": TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LONG = {"intermediate_size": 48, "max_position_embeddings": 64}
IDS = {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
HEADS = {"num_key_value_heads": 2, "head_dim": 8}
PRODUCTS = "mm", "bmm", "addmm", "baddbmm", "convolution", "embedding", "attention"  # parts of torch's names


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


class Family(NamedTuple):
    """A family of models."""

    kind: str  # of the model
    options: dict[str, Any]  # of its configuration
    became: str | None  # what some modules become: the longest stretch that is found, or "fused"; None: nothing is
    generates: bool = True
    inputs: str = "input_ids"
    library: str = "transformers"
    make: Callable[[str, dict[str, Any]], Any] = of_transformers


FAMILIES = {
    "Llama": Family("LlamaForCausalLM", {**SMALL, **LONG, **IDS, **HEADS}, "add, LlamaRMSNorm"),
    "Qwen3": Family("Qwen3ForCausalLM", {**SMALL, **LONG, **IDS, **HEADS}, "SiLUActivation, mul"),
    "Gemma3": Family("Gemma3ForCausalLM", {**SMALL, **LONG, **IDS, **HEADS}, "Gemma3RMSNorm, add, Gemma3RMSNorm"),
    "Cohere2": Family("Cohere2ForCausalLM", {**SMALL, **LONG, **IDS, "num_key_value_heads": 2}, "add, add"),
    "GPT-2": Family(
        "GPT2LMHeadModel", {"vocab_size": TOKENS, "n_embd": 32, "n_layer": 2, "n_head": 4, **IDS}, "add, LayerNorm"
    ),
    "GPT-NeoX": Family("GPTNeoXForCausalLM", {**SMALL, **LONG, **IDS}, "add, add"),
    "BERT": Family("BertForMaskedLM", {**SMALL, **LONG}, "add, add, LayerNorm", generates=False),
    "T5": Family(
        "T5ForConditionalGeneration",
        {"vocab_size": TOKENS, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
        | {"decoder_start_token_id": 0, **IDS},
        "fused",
    ),
    "ViT": Family(
        "ViTForImageClassification",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
        | {"image_size": 8, "patch_size": 4, "num_labels": 5},
        "add, LayerNorm",
        generates=False,
        inputs="pixel_values",
    ),
    "Falcon-Mamba": Family(
        "FalconMambaForCausalLM",
        {"vocab_size": TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, **IDS},
        "fused",
    ),
    "ConvNeXt": Family(
        "ConvNextForImageClassification",
        {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2, "image_size": 16, "num_labels": 5},
        None,
        generates=False,
        inputs="pixel_values",
    ),
    "MobileNetV2": Family(
        "MobileNetV2ForImageClassification",
        {"depth_multiplier": 0.25, "image_size": 32, "num_labels": 5},
        None,
        generates=False,
        inputs="pixel_values",
    ),
    "UNet block": Family(
        "CrossAttnDownBlock2D",
        {"in_channels": 16, "out_channels": 32, "temb_channels": 24, "num_layers": 2, "resnet_groups": 4}
        | {"num_attention_heads": 4, "cross_attention_dim": 16},
        "add, GroupNorm, SiLU",
        generates=False,
        inputs="hidden_states",
        library="diffusers",
        make=OfDiffusers,
    ),
}


def made(name: str, **options: Any) -> Any:
    """Return the model of a family, in eval mode: without dropout. No weight is 0 or 1."""
    family = FAMILIES[name]
    torch.manual_seed(0)
    model = family.make(family.kind, {**family.options, **options})
    with torch.no_grad():
        for x in model.parameters():
            x.add_(0.02 * torch.randn_like(x))
    return model.eval()


def inputs_of(name: str, rows: int = 2, length: int = 6) -> dict[str, Tensor]:
    """Return inputs of a family's model, and labels."""
    torch.manual_seed(1)
    family = FAMILIES[name]
    if family.inputs == "pixel_values":
        size = family.options["image_size"]
        return {"pixel_values": torch.randn(rows, 3, size, size), "labels": torch.randint(0, 5, (rows,))}
    if family.inputs == "hidden_states":
        inputs = {"hidden_states": torch.randn(rows, 16, 8, 8), "temb": torch.randn(rows, 24)}
        return inputs | {"encoder_hidden_states": torch.randn(rows, 5, 16), "labels": torch.randn(rows, 32, 4, 4)}
    ids = torch.randint(2, TOKENS, (rows, length))
    return {"input_ids": ids, "labels": ids}


def step(model: Module, inputs: dict[str, Tensor]) -> tuple[Sequence[Tensor | None], ...]:
    """Return logits, the loss, and the gradients of all parameters."""
    torch.manual_seed(2)
    out = model(**inputs)
    return [out.logits], [out.loss], torch.autograd.grad(out.loss, list(model.parameters()), allow_unused=True)


class Launches(NamedTuple):
    """The launches of a step that are no matrix product, attention or embedding."""

    count: int
    bytes_moved: int


def launches(model: Module, inputs: dict[str, Tensor]) -> Launches:
    """Return what a step launches: torch's operators, and for fused calls what is compiled for a GPU."""
    backward = FusedFunction._backward_cls
    with (
        mock.patch.object(Fused, "call", _unseen(Fused.call)),
        mock.patch.object(backward, "apply", _unseen(backward.apply)),
        customops.dry_run("cuda:90") as records,
        TorchKernels() as seen,
    ):
        step(model, inputs)
    each = [size for name, size in seen.launches if not any(part in name for part in PRODUCTS)]
    each += [record.bytes_moved or 0 for record in records]
    return Launches(len(each), sum(each))


def _unseen(function: Callable) -> Callable:
    """Return a function in which torch's operators are not counted."""

    def call(*args, **kwargs):
        with without_modes():
            return function(*args, **kwargs)

    return call


def row(name: str) -> str:
    """Return the line of the table about one family."""
    plain, inputs = made(name), inputs_of(name)
    applied = copy.deepcopy(plain)
    taken = customops.apply(applied, inputs).taken
    modules = sum(not any(True for _ in x.children()) for x in plain.modules())
    fused = sum(x.became == "fused" for x in taken)
    before, after = launches(plain, inputs), launches(applied, inputs)
    cells = name, f"{fused} of {modules}", len(taken) - fused, before.count, after.count
    cells += f"{after.count / before.count:.2f}", f"{after.bytes_moved / before.bytes_moved:.2f}"
    return f"| {' | '.join(map(str, (*cells, f'{max([x.difference for x in taken], default=0):.0e}')))} |"


def table() -> Iterator[str]:
    """Yield the table in lines."""
    yield "| model | modules fused | stretches, functions | launches, torch | ours | ratio | bytes | difference |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|"
    yield from [row(name) for name in FAMILIES]


TIMED = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 2, "num_attention_heads": 8}
TIMED |= {"num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 1024}


def time_steps(is_applied: bool) -> None:
    """Print the least time of a step, in seconds, and the peak memory of the process, in MiB."""
    torch.set_num_threads(1)
    model, inputs = made("Llama", **TIMED), inputs_of("Llama", 4, 512)
    if is_applied:
        customops.apply(model, inputs_of("Llama", 1, 8))
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(4):
        start = time.perf_counter()
        step(model, inputs)
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{min(times):.3f} s, {(peak - base) / 1024:.0f} MiB more than before")


def main(argv: Sequence[str]) -> None:
    """Print the table, or time a step."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=__doc__)
    parser.add_argument("--time", choices=["both", "torch", "ours"], help="time a step of Llama on the CPU instead")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    if args.time == "both":
        for which in ("torch", "ours") * 2:
            print(which, end=": ", flush=True)
            subprocess.run([sys.executable, "-m", "benchmarks.models", "--time", which], check=True)
    elif args.time:
        time_steps(args.time == "ours")
    else:
        print(*table(), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
