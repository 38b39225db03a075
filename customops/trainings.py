"""What the demo trains: each a network and its loss, written once, on operators ``ops`` that are torch's or ours."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import grad

OPERATORS = ("log", "exp", "relu", "sigmoid", "add", "sub", "mul", "pow", "mean", "sum")
DTYPE = torch.float64  # rounding alone drives two correct trainings apart: in float32 by 1e-4 of a gradient


class Schedule(NamedTuple):
    """How long to train how wide a network, and the score that it has to reach."""

    steps: int
    batch: int
    width: int
    floor: float


class Training(nn.Module):
    """A network, what it learns from, and what it minimises.

    ``short`` is for Triton's interpreter, which takes a second a step.
    """

    title: ClassVar[str]
    scored: ClassVar[str]  # what ``score`` measures, more being better
    operators: ClassVar[tuple[str, ...]]  # which a gradient must flow through
    full: ClassVar[Schedule]
    short: ClassVar[Schedule]

    def __init__(self, ops: Any, width: int, device: str):
        super().__init__()
        self.ops = ops
        self.build(width)
        self.to(device)

    def build(self, width: int) -> None:
        """Draw every parameter."""
        raise NotImplementedError

    def optimizer(self) -> torch.optim.Optimizer:
        """What takes the steps."""
        return torch.optim.Adam(self.parameters(), lr=1e-2)

    def draw(self, size: int) -> tuple[Tensor, ...]:
        """Draw a batch."""
        raise NotImplementedError

    def objectives(self, batch: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, list[nn.Parameter]]]:
        """Each loss, with the parameters that are to lower it."""
        raise NotImplementedError

    def score(self) -> Tensor:
        """How well the task is solved."""
        raise NotImplementedError


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
        from sklearn.datasets import load_digits  # noqa: PLC0415 - only this training needs it

        pixels, labels = load_digits(return_X_y=True)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        self.register_buffer("pixels", (torch.tensor(pixels, dtype=DTYPE) / 16)[order])
        self.register_buffer("labels", torch.tensor(labels)[order])
        self.hidden, self.hidden_bias = _parameter(64, width), _parameter(width)
        self.gate, self.gate_bias = _parameter(64, width), _parameter(width)
        self.log2_gain, self.shift = _parameter(width), _parameter(width)
        self.classes, self.classes_bias = _parameter(width, 10), _parameter(10)

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


class Wasserstein(Training):
    """A generator of numbers, against a critic whose slope is held below 1 by a penalty on its gradient (WGAN-GP).

    Gulrajani et al., 2017, https://arxiv.org/abs/1704.00028, with the one-sided penalty: among numbers the other keeps
    a slope from turning. It is differentiated through: a derivative of the derivative of each operator in the critic.
    """

    title = "WGAN-GP, a penalty on the critic's gradient"
    scored = "1 - distance"
    operators = ("log", "exp", "relu", "add", "sub", "mul", "pow", "mean", "sum")
    full = Schedule(steps=400, batch=128, width=16, floor=0.3)
    short = Schedule(steps=6, batch=32, width=8, floor=0.24)
    weight = 10.0

    def build(self, width):
        """Draw every parameter."""
        self.critic = nn.ParameterList([_parameter(1, width), _parameter(width), _parameter(width, 1)])
        self.generator = nn.ParameterList([_parameter(1, width), _parameter(width), _parameter(width, 1)])
        with torch.no_grad():
            self.critic[0] *= 4  # steep, so that the penalty acts from the first step

    def optimizer(self):
        """The critic learns faster than the generator, or the two would chase each other."""
        paces = [{"params": self.critic, "lr": 4e-2}, {"params": self.generator, "lr": 1e-2}]
        return torch.optim.Adam(paces, betas=(0.0, 0.9))

    def softplus(self, x: Tensor) -> Tensor:
        """log(1 + e^x)."""
        return self.ops.log(self.ops.add(self.ops.exp(x), 1))

    def layers(self, parameters, x: Tensor) -> Tensor:
        """Two layers with a softplus between."""
        inner, bias, outer = parameters
        return self.softplus(self.ops.add(x @ inner, bias)) @ outer

    def draw(self, size):
        """Numbers around -1 and 1, noise to generate from, and where between real and generated to take slopes."""
        options: dict[str, Any] = {"dtype": DTYPE, "device": self.critic[0].device}
        real = torch.randint(0, 2, (size, 1), **options) * 2 - 1 + 0.1 * torch.randn(size, 1, **options)
        return real, torch.randn(size, 1, **options), torch.rand(size, 1, **options)

    def objectives(self, batch):
        """The critic's: what it gives the generated over the real, and the penalty; then the generator's."""
        real, noise, between = batch
        ops, critic = self.ops, self.critic
        fake = self.layers(self.generator, noise)
        apart = ops.sub(ops.mean(self.layers(critic, fake.detach())), ops.mean(self.layers(critic, real)))
        yield ops.add(apart, self.penalty(real, fake.detach(), between), alpha=self.weight), list(critic)
        yield ops.mul(ops.mean(self.layers(critic, fake)), -1), list(self.generator)

    def penalty(self, real: Tensor, fake: Tensor, between: Tensor) -> Tensor:
        """The square of what slopes have beyond 1 at points between real and fake, averaged."""
        ops = self.ops
        x = ops.add(fake, ops.mul(between, ops.sub(real, fake))).requires_grad_()
        (slope,) = grad(ops.sum(self.layers(self.critic, x)), x, create_graph=True)
        norm = ops.pow(ops.sum(ops.pow(slope, 2), -1), 0.5)
        return ops.mean(ops.pow(ops.relu(ops.sub(norm, 1)), 2))

    def score(self):
        """One less the Wasserstein distance of what it generates to what is real: in order, they are paired."""
        torch.manual_seed(1)
        real, noise, _ = self.draw(2048)
        return 1 - (self.layers(self.generator, noise).sort(0).values - real.sort(0).values).abs().mean()


class Physics(Training):
    """A function u with u'' = -π² sin πx, 0 at -1 and 1: its second derivative is in the loss.

    Raissi et al., 2019, https://doi.org/10.1016/j.jcp.2018.10.045. A parameter's gradient is a third derivative.
    """

    title = "physics-informed, a second derivative in the loss"
    scored = "1 - error"
    operators = ("sigmoid", "add", "sub", "mul", "pow", "mean", "sum")
    full = Schedule(steps=300, batch=64, width=16, floor=0.9)
    short = Schedule(steps=6, batch=16, width=8, floor=-0.15)

    def build(self, width):
        """Draw every parameter."""
        self.inner, self.bias, self.outer = _parameter(1, width), _parameter(width), _parameter(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(1 - x²)·N(x), which is 0 at both ends whatever N is."""
        ops = self.ops
        within = ops.sub(1, ops.pow(x, 2))
        return ops.mul(within, ops.sigmoid(ops.add(x @ self.inner, self.bias, alpha=2)) @ self.outer)

    def draw(self, size):
        """Points between -1 and 1."""
        return (torch.rand(size, 1, dtype=DTYPE, device=self.bias.device) * 2 - 1,)

    def objectives(self, batch):
        """Average (u'' + π² sin πx)²."""
        ops, x = self.ops, batch[0].clone().requires_grad_()
        (slope,) = grad(ops.sum(self(x)), x, create_graph=True)
        (curvature,) = grad(ops.sum(slope), x, create_graph=True)
        source = math.pi**2 * torch.sin(math.pi * x.detach())
        yield ops.mean(ops.pow(ops.add(curvature, source), 2)), list(self.parameters())

    def score(self):
        """One less the largest error; the solution is sin πx."""
        x = torch.linspace(-1, 1, 201, dtype=DTYPE, device=self.bias.device)[:, None]
        return 1 - (self(x) - torch.sin(math.pi * x)).abs().max()


TRAININGS: dict[str, type[Training]] = {"digits": Digits, "wgan-gp": Wasserstein, "physics": Physics}


def _parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, dtype=DTYPE) / shape[0] ** 0.5)
