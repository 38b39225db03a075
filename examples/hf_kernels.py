"""Layers of a model by fused kernels, through a kernel mapping of Hugging Face's ``kernels``: offline, as code.

``python examples/hf_kernels.py`` maps the layers of a small model, and compares it with torch: value and gradients, as
it is and under ``torch.compile``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, NamedTuple

import kernels
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import customops

DEVICES = "cpu", "cuda", "rocm"


class Fused(NamedTuple):
    """What ``kernels`` calls the repository of a layer: here the ``forward`` of a class, fused; nothing is fetched."""

    cls: type[nn.Module]

    def load(self) -> type[nn.Module]:
        """Return a class without state, whose ``forward`` is called on modules of the other class."""
        members = {"forward": customops.fuse(self.cls.forward), "has_backward": True, "can_torch_compile": True}
        return type(self.cls.__name__, (nn.Module,), members)


def mapping(classes: Iterable[type[nn.Module]]) -> dict[str, dict[Any, Any]]:
    """Return a kernel mapping for these classes, and let ``kernelize`` see them, each by its own name."""
    found: dict[str, dict[Any, Any]] = {}
    for cls in classes:
        kernels.replace_kernel_forward_from_hub(cls, cls.__name__)
        found[cls.__name__] = dict.fromkeys(DEVICES, Fused(cls))
    return found


class RMSNorm(nn.Module):
    """Root mean square normalisation, written out."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return x, normalised over its last axis."""
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class SwiGLU(nn.Module):
    """A gate of two halves."""

    def forward(self, x: Tensor) -> Tensor:
        """Return half of x, by the other half."""
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up


def model() -> nn.Module:
    """Return a small model of such layers."""
    blocks = [nn.Sequential(RMSNorm(32), nn.Linear(32, 64), SwiGLU()) for _ in range(2)]
    return nn.Sequential(*blocks, RMSNorm(32))


def results(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the value of a module, and the gradients of its parameters."""
    z = module(x)
    return [z, *torch.autograd.grad(z.square().sum(), list(module.parameters()))]


def main() -> None:
    """Compare a model with a mapping and one without."""
    torch.manual_seed(0)
    plain, x = model(), torch.randn(4, 10, 32)
    training = kernels.Mode.TRAINING
    for name, mode in (("as it is", training), ("under torch.compile", training | kernels.Mode.TORCH_COMPILE)):
        mapped = copy.deepcopy(plain)
        with kernels.use_kernel_mapping(mapping([RMSNorm, SwiGLU])):
            kernels.kernelize(mapped, mode=mode, use_fallback=False)
        count = sum("forward" in vars(module) for module in mapped.modules())
        if mode is not training:
            mapped.compile(backend="eager")
        torch.testing.assert_close(results(mapped, x), results(plain, x))
        print(f"{name}: {count} layers by fused kernels, value and gradients are torch's")


if __name__ == "__main__":
    main()
