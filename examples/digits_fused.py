"""Train a wide classifier of handwritten digits on all of them at once, its layers fused and not; time a step of each.

``python examples/digits_fused.py`` prints the median time of a training step and the loss after each, which agree.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import customops

WIDTH, STEPS = 2048, 12


def gated(x: Tensor, x_bias: Tensor, gate: Tensor, gate_bias: Tensor, ops: Any) -> Tensor:
    """Let pass of each ``x`` above 0 what its gate says."""
    return ops.sigmoid(gate + gate_bias) * ops.relu(x + x_bias)


def normalised(x: Tensor, weight: Tensor, bias: Tensor, ops: Any) -> Tensor:
    """Bring each row to mean 0 and variance 1, then scale and shift each column."""
    centred = x - ops.mean(x, -1, keepdim=True)
    variance = ops.mean(centred * centred, -1, keepdim=True)
    return centred * ops.rsqrt(variance + 1e-5) * weight + bias


def plain(layer: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a layer as a composition of torch's operators."""
    return lambda *tensors: layer(*tensors, torch)


def fused(layer: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a layer as one operator."""
    return customops.fuse(lambda *tensors: layer(*tensors, customops))


class Classifier(nn.Module):
    """Two projections of the pixels, one of which gates the other, a normalisation, and ten classes."""

    def __init__(self, width: int, made: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]):
        super().__init__()
        self.gated, self.normalised = made(gated), made(normalised)
        self.hidden, self.gate = (nn.Linear(64, width, bias=False) for _ in range(2))
        self.hidden_bias, self.gate_bias, self.bias = (nn.Parameter(torch.zeros(width)) for _ in range(3))
        self.weight = nn.Parameter(torch.ones(width))
        self.classes = nn.Linear(width, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits of the ten classes."""
        x = self.gated(self.hidden(pixels), self.hidden_bias, self.gate(pixels), self.gate_bias)
        return self.classes(self.normalised(x, self.weight, self.bias))


def train(model: Classifier, pixels: Tensor, labels: Tensor, steps: int) -> tuple[list[float], list[float]]:
    """Return the loss of each step, and the milliseconds that it took."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses, times = [], []
    for _ in range(steps):
        start = time.perf_counter()
        loss = nn.functional.cross_entropy(model(pixels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(1e3 * (time.perf_counter() - start))
        losses.append(loss.item())
    return losses, times


def main(width: int = WIDTH, steps: int = STEPS) -> int:
    """Train both; return 1 if their losses differ."""
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415 - a missing package is named
    except ImportError:
        print("the digits come with scikit-learn: pip install scikit-learn")
        return 2
    pixels, labels = map(torch.tensor, load_digits(return_X_y=True))
    results = {}
    for name, made in (("composed", plain), ("fused", fused)):
        torch.manual_seed(0)
        model = Classifier(width, made)
        losses, times = train(model, pixels.float() / 16, labels, steps)
        print(f"{name:<9} {statistics.median(times):8.1f} ms a step, loss {losses[0]:.4f} to {losses[-1]:.4f}")
        results[name] = losses
    difference = max(abs(a - b) for a, b in zip(*results.values(), strict=True))
    print(f"The losses {'agree' if difference < 1e-3 else 'differ'}: by {difference:.1g} at most.")
    return int(difference >= 1e-3)


if __name__ == "__main__":
    sys.exit(main())
