"""Layers of neural networks, each written as the formula it is and fused.

``python examples/layers.py`` compares every layer with torch's own, value and gradients, and prints what it finds.
``customops explain examples.layers.rms_norm --input 4096x4096 --input 4096`` prints the kernels of one.

The functions take tensors of any shape; those that reduce do so along the last axis, unless ``dim`` says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import customops as ops


@ops.fuse
def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """Divide each row by the root of its mean square, then scale each column."""
    return x * ops.rsqrt(ops.mean(x * x, -1, keepdim=True) + eps) * weight


@ops.fuse
def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Return :func:`rms_norm` of ``x + residual``, and that sum, which the next block adds to."""
    total = x + residual
    return rms_norm(total, weight, eps), total


@ops.fuse
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Shift and scale each row to mean 0 and variance 1, then scale and shift each column."""
    centred = x - ops.mean(x, -1, keepdim=True)
    variance = ops.mean(centred * centred, -1, keepdim=True)
    return centred * ops.rsqrt(variance + eps) * weight + bias


@ops.fuse
def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Return e^x divided by its sum along ``dim``; the largest x is subtracted first, so nothing overflows.

    What is subtracted cancels, so it needs no gradient: hence ``detach``.
    """
    e = ops.exp(x - ops.amax(x, dim, keepdim=True).detach())
    return e / ops.sum(e, dim, keepdim=True)


@ops.fuse
def log_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Return the logarithm of the softmax, which stays finite where the softmax rounds to 0."""
    shifted = x - ops.amax(x, dim, keepdim=True).detach()
    return shifted - ops.log(ops.sum(ops.exp(shifted), dim, keepdim=True))


@ops.fuse
def log_sum_exp(x: Tensor, dim: int = -1) -> Tensor:
    """Return the logarithm of the sum of e^x along ``dim``, which stays as an axis of length 1."""
    largest = ops.amax(x, dim, keepdim=True).detach()
    return largest + ops.log(ops.sum(ops.exp(x - largest), dim, keepdim=True))


@ops.fuse
def gelu(x: Tensor) -> Tensor:
    """Return GELU in its tanh form, as ``torch.nn.functional.gelu(x, approximate="tanh")``.

    (1 + tanh u) / 2 is the sigmoid of 2u.
    """
    return x * ops.sigmoid(x * (1.5957691216057308 + 0.07135481627260025 * ops.square(x)))


@ops.fuse
def silu(x: Tensor) -> Tensor:
    """Multiply ``x`` by sigmoid(``x``)."""
    return x * ops.sigmoid(x)


@ops.fuse
def swiglu(x: Tensor, gate: Tensor) -> Tensor:
    """Multiply ``x`` by ``gate``·sigmoid(``gate``)."""
    return gate * ops.sigmoid(gate) * x


@ops.fuse
def geglu(x: Tensor, gate: Tensor) -> Tensor:
    """Multiply ``x`` by GELU(``gate``), in its tanh form."""
    return gelu(gate) * x


@ops.fuse
def relu_squared(x: Tensor) -> Tensor:
    """Return the square of relu(x)."""
    return ops.relu(x) ** 2


@ops.fuse
def softplus(x: Tensor) -> Tensor:
    """Return log(1 + e^x) of a finite ``x``; e is raised to negative powers alone, so nothing overflows.

    (x + |x|)/2 is relu(x), but with the gradient 1/2 at 0, as softplus has there.
    """
    a = ops.abs(x)
    return 0.5 * (x + a) + ops.log(1 + ops.exp(-a))


@ops.fuse
def mse_loss(x: Tensor, target: Tensor) -> Tensor:
    """Return the mean of (x - target)²."""
    difference = x - target
    return ops.mean(difference * difference)


@ops.fuse
def huber_loss(x: Tensor, target: Tensor, delta: float = 1.0) -> Tensor:
    """Return the mean of d²/2 where d = x - target is within ``delta``, of delta·(|d| - delta/2) elsewhere."""
    d = x - target
    within = ops.clamp(d, -delta, delta)
    return ops.mean(within * (d - 0.5 * within))


@ops.fuse
def binary_cross_entropy(x: Tensor, target: Tensor) -> Tensor:
    """Return the mean of softplus(x) - x·target: the binary cross entropy of logits ``x``.

    It is added up in an order in which x·target cancels (x + |x|)/2 without rounding, see :func:`softplus`.
    """
    a = ops.abs(x)
    return ops.mean(0.5 * (x + a) - x * target + ops.log(1 + ops.exp(-a)))


@ops.fuse
def cross_entropy(x: Tensor, probabilities: Tensor) -> Tensor:
    """Return the cross entropy of logits ``x`` with target ``probabilities``, averaged over rows."""
    shifted = x - ops.amax(x, -1, keepdim=True).detach()
    log_probabilities = shifted - ops.log(ops.sum(ops.exp(shifted), -1, keepdim=True))
    return -ops.mean(ops.sum(log_probabilities * probabilities, -1))


class RMSNorm(nn.Module):
    """:func:`rms_norm` with a weight that is learned."""

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of ``x``."""
        return rms_norm(x, self.weight, self.eps)


class FeedForward(nn.Module):
    """The feed-forward block of a transformer: RMSNorm, two projections, SwiGLU, a projection back."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.norm = RMSNorm(width)
        self.up = nn.Linear(width, hidden, bias=False)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's output to ``x``."""
        y = self.norm(x)
        return x + self.down(swiglu(self.up(y), self.gate(y)))


class Comparison(NamedTuple):
    """One of our layers, torch's, and the shapes of the tensors that both take."""

    ours: Callable[..., Any]
    torchs: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]


F = nn.functional
ROWS, COLUMN = (8, 64), (64,)
COMPARISONS = (
    Comparison(rms_norm, lambda x, weight: F.rms_norm(x, weight.shape, weight, 1e-6), (ROWS, COLUMN)),
    Comparison(
        add_rms_norm, lambda x, y, weight: (F.rms_norm(x + y, weight.shape, weight, 1e-6), x + y), (ROWS, ROWS, COLUMN)
    ),
    Comparison(layer_norm, lambda x, weight, bias: F.layer_norm(x, weight.shape, weight, bias), (ROWS, COLUMN, COLUMN)),
    Comparison(softmax, lambda x: F.softmax(x, -1), (ROWS,)),
    Comparison(log_softmax, lambda x: F.log_softmax(x, -1), (ROWS,)),
    Comparison(log_sum_exp, lambda x: torch.logsumexp(x, -1, keepdim=True), (ROWS,)),
    Comparison(gelu, lambda x: F.gelu(x, approximate="tanh"), (ROWS,)),
    Comparison(silu, F.silu, (ROWS,)),
    Comparison(swiglu, lambda x, gate: x * F.silu(gate), (ROWS, ROWS)),
    Comparison(geglu, lambda x, gate: x * F.gelu(gate, approximate="tanh"), (ROWS, ROWS)),
    Comparison(relu_squared, lambda x: F.relu(x) ** 2, (ROWS,)),
    Comparison(softplus, F.softplus, (ROWS,)),
    Comparison(mse_loss, F.mse_loss, (ROWS, ROWS)),
    Comparison(huber_loss, F.huber_loss, (ROWS, ROWS)),
    Comparison(binary_cross_entropy, F.binary_cross_entropy_with_logits, (ROWS, ROWS)),
    Comparison(cross_entropy, F.cross_entropy, (ROWS, ROWS)),
)


def largest_difference(row: Comparison) -> float:
    """Return the largest difference between the two layers, in the values and in every gradient, in float64."""
    torch.manual_seed(0)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in row.shapes]
    results = []
    for layer in row.ours, row.torchs:
        z = layer(*inputs)
        zs = z if isinstance(z, tuple) else (z,)
        cotangents = [torch.ones_like(z) if z.dim() == 0 else torch.sin(z) for z in zs]
        results.append([*zs, *torch.autograd.grad(zs, inputs, cotangents)])
    return max((a - b).abs().max().item() for a, b in zip(*results, strict=True))


def main() -> int:
    """Print, for each layer, whether it agrees with torch's; return 1 where one does not."""
    failed = 0
    for row in COMPARISONS:
        difference = largest_difference(row)
        agrees = difference <= 1e-12
        failed |= not agrees
        print(f"{row.ours.__name__:<20}", "agrees with torch to 1e-12" if agrees else f"differs by {difference:.2g}")
    x = torch.randn(8, 64)
    y = FeedForward(64, 128)(x)
    print(f"{'FeedForward':<20}", f"output of shape {tuple(y.shape)}")
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
