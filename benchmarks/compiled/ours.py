"""Call our layers in a dry run, on tensors whose memory nobody touches, and note what they launch."""

from __future__ import annotations

import torch

import customops
from customops.runtime.memory import unbacked_like
from customops.tools.record import LaunchRecord

from .layers import Layer


def launches(layer: Layer, dtype: torch.dtype, length: int, target: str) -> dict[str, list[LaunchRecord]]:
    """Return what each pass launches."""
    operands = layer.operands(length, dtype)
    inputs = [unbacked_like(x).requires_grad_(x.requires_grad) for x in operands]
    with customops.dry_run(target) as records, customops.backend("triton"):
        z = layer.ours(*inputs)
        zs = z if isinstance(z, tuple) else (z,)
        forward = len(records)
        torch.autograd.grad(zs, [x for x in inputs if x.requires_grad], [*map(unbacked_like, zs)])
    return {"forward": records[:forward], "backward": records[forward:]}
