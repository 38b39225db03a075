"""Train a classifier of handwritten digits on ten operators, in lockstep with torch."""

from __future__ import annotations

import sys

import torch
from lockstep import DTYPE, OPERATORS, Schedule, Training, main, parameter
from torch import Tensor, nn


class Digits(Training):
    """Handwritten digits: 64 pixels, a gated layer, a normalisation, ten classes."""

    title = "digits, ten operators"
    scored = "test accuracy"
    operators = OPERATORS
    full = Schedule(steps=600, batch=64, width=64, floor=0.9)
    short = Schedule(steps=24, batch=32, width=32, floor=0.7)
    tested = 360  # digits, of 1797
    pixels: Tensor
    labels: Tensor

    def build(self, width):
        """Draw every parameter; a gain is a power of 2, so that pow learns an exponent too."""
        from sklearn.datasets import load_digits  # noqa: PLC0415 - a missing package is named by main

        pixels, labels = load_digits(return_X_y=True)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        self.register_buffer("pixels", (torch.tensor(pixels, dtype=DTYPE) / 16)[order])
        self.register_buffer("labels", torch.tensor(labels)[order])
        self.hidden, self.hidden_bias = parameter(64, width), parameter(width)
        self.gate, self.gate_bias = parameter(64, width), parameter(width)
        self.log2_gain, self.shift = parameter(width), parameter(width)
        self.classes, self.classes_bias = parameter(width, 10), parameter(10)

    def optimizer(self):
        """Stochastic gradient descent with momentum."""
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    def forward(self, pixels: Tensor) -> Tensor:
        """Give the logits of the ten classes."""
        ops = self.ops
        gate = ops.sigmoid(ops.add(pixels @ self.gate, self.gate_bias))
        hidden = ops.mul(gate, ops.relu(ops.add(pixels @ self.hidden, self.hidden_bias)))
        return ops.add(self.normalise(hidden) @ self.classes, self.classes_bias)

    def normalise(self, x: Tensor) -> Tensor:
        """Bring each row to mean 0 and variance 1, then to the gain and shift that are learned."""
        ops = self.ops
        centred = ops.sub(x, ops.mean(x, -1, keepdim=True))
        variance = ops.mean(ops.pow(centred, 2), -1, keepdim=True)
        unit = ops.mul(centred, ops.pow(ops.add(variance, 1e-5), -0.5))
        return ops.add(ops.mul(unit, ops.pow(2, self.log2_gain)), self.shift)

    def draw(self, size):
        """Pixels and labels of digits that are not tested."""
        chosen = torch.randint(self.tested, len(self.labels), (size,), device=self.labels.device)
        return self.pixels[chosen], self.labels[chosen]

    def objectives(self, batch):
        """Average the cross-entropy, log Σ exp(logits) - logits[label]."""
        pixels, labels = batch
        ops, logits = self.ops, self(pixels)
        logits = ops.sub(logits, logits.detach().amax(-1, keepdim=True))  # so that exp cannot overflow
        chosen = ops.sum(ops.mul(logits, nn.functional.one_hot(labels, 10)), -1)
        yield ops.mean(ops.sub(ops.log(ops.sum(ops.exp(logits), -1)), chosen)), list(self.parameters())

    def score(self):
        """The share of test digits that it gets right."""
        return (self(self.pixels[: self.tested]).argmax(-1) == self.labels[: self.tested]).double().mean()


if __name__ == "__main__":
    sys.exit(main(Digits))
