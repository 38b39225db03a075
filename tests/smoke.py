"""A user's program, for an installed customops: it takes nothing else of this repository, and says what it tried.

``python -m tests.publish`` runs it in new environments, in a folder of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

import customops as ops

UNARY = "log", "exp", "sqrt", "rsqrt", "relu", "sigmoid", "tanh", "abs", "neg", "log1p", "erf", "softplus"
BINARY = "add", "sub", "mul", "div", "pow", "maximum", "minimum"
REDUCTIONS = "sum", "mean", "amax", "amin", "prod", "var", "logsumexp"


@ops.fuse
def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """Return a fused layer's value, as the README has it."""
    return x * ops.rsqrt(ops.mean(x * x, -1, keepdim=True) + eps) * weight


def doubles(*shape: int) -> Tensor:
    """Return numbers between 0.5 and 1.5, whose gradients are asked for."""
    return (0.5 + torch.rand(shape, dtype=torch.float64)).requires_grad_()


def operators() -> str:
    """Compare every operator with torch's."""
    x, y = doubles(3, 4), doubles(4)
    for name in UNARY:
        of_torch = getattr(torch, name, None) or getattr(nn.functional, name)
        torch.testing.assert_close(getattr(ops, name)(x), of_torch(x))
    for name in BINARY:
        torch.testing.assert_close(getattr(ops, name)(x, y), getattr(torch, name)(x, y))
    for name in REDUCTIONS:
        torch.testing.assert_close(getattr(ops, name)(x, 1), getattr(torch, name)(x, 1))
    return f"{len(UNARY + BINARY + REDUCTIONS)} operators"


def gradients() -> str:
    """Check derivatives of an operator and of a fused function by finite differences."""
    assert gradcheck(ops.tanh, doubles(5), rtol=1e-6)
    assert gradcheck(rms_norm, (doubles(3, 4), doubles(4)), rtol=1e-6)
    return "gradcheck"


def fused() -> str:
    """Compare a fused layer with torch's, and print what a GPU would run."""
    x, weight = torch.randn(64, 128), torch.rand(128)
    torch.testing.assert_close(rms_norm(x, weight), nn.functional.rms_norm(x, (128,), weight, 1e-6))
    rms_norm.explain(x, weight)
    return "fuse"


def layers() -> str:
    """Compare a module with torch's, value and gradient."""
    x, got, want = torch.randn(6, 8), ops.nn.LayerNorm(8), nn.LayerNorm(8)
    got.load_state_dict(want.state_dict())
    torch.testing.assert_close(got(x), want(x))
    torch.testing.assert_close(ops.nn.functional.gelu(x), nn.functional.gelu(x))
    return "nn"


class Gated(nn.Module):
    """What models multiply by a gate."""

    def __init__(self, width: int):
        super().__init__()
        self.gate, self.up = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the product."""
        return nn.functional.silu(self.gate(x)) * self.up(x)


def models() -> str:
    """Let a model be fused and be torch's again."""
    model, x = Gated(8), torch.randn(4, 8)
    want = model(x)
    report = ops.apply(model, x)
    assert report.taken, report
    torch.testing.assert_close(model(x), want)
    assert ops.restore(model) == len(report.taken)
    with ops.enabled() as taken:
        torch.testing.assert_close(torch.exp(x), x.exp())
    assert taken.calls["exp", "torch"] == 2
    return "apply, restore, enabled"


def compiled() -> str:
    """Compile kernels for a GPU, and execute what was compiled."""
    with ops.dry_run("cuda:90", execute=True) as records:
        z = ops.sigmoid(torch.zeros(3))
    assert z.tolist() == [0.5] * 3
    assert [record.program for record in records] == ["sigmoid(x)"]
    return "dry_run"


TRIED: tuple[Callable[[], str], ...] = operators, gradients, fused, layers, models, compiled


def main() -> int:
    """Try all, where the package was installed as users install it."""
    torch.manual_seed(0)
    place = Path(ops.__file__).parent
    assert place.parent.name == "site-packages", f"customops was imported from {place}, not from an installation"
    assert (place / "py.typed").exists()
    for tried in TRIED:
        print(f"passed: {tried()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
