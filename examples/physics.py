"""Solve a differential equation with second derivatives in the loss, in lockstep with torch."""

from __future__ import annotations

import math
import sys

import torch
from lockstep import DTYPE, Schedule, Training, main, parameter
from torch import Tensor
from torch.autograd import grad


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
        self.inner, self.bias, self.outer = parameter(1, width), parameter(width), parameter(width, 1)

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


if __name__ == "__main__":
    sys.exit(main(Physics))
