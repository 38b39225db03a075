"""Call our layers in a dry run, on tensors whose memory nobody touches, and note what they launch."""

from __future__ import annotations

import torch

import customops
from customops.runtime.memory import unbacked_like
from customops.tools.record import LaunchRecord

from .layers import PASSES, Layer


def launches(layer: Layer, dtype: torch.dtype, length: int, target: str) -> dict[str, list[LaunchRecord]]:
    """Return what each pass launches."""
    shapes = layer.shapes(length)
    inputs = [unbacked_like(torch.empty(shape, dtype=dtype, device="meta")).requires_grad_() for shape in shapes]
    passes = {}
    with customops.dry_run(target) as records, customops.backend("triton"):
        z = layer.ours(*inputs)
        for name in PASSES:
            if name == "backward":
                torch.autograd.grad(z, inputs, unbacked_like(z))
            passes[name] = [*records]
            records.clear()
    return passes
