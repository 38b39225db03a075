"""Train a Wasserstein GAN whose penalty differentiates gradients, in lockstep with torch."""

from __future__ import annotations

import sys
from typing import Any

import torch
from lockstep import DTYPE, Schedule, Training, main, parameter
from torch import Tensor, nn
from torch.autograd import grad


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
        self.critic = nn.ParameterList([parameter(1, width), parameter(width), parameter(width, 1)])
        self.generator = nn.ParameterList([parameter(1, width), parameter(width), parameter(width, 1)])
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


if __name__ == "__main__":
    sys.exit(main(Wasserstein))
