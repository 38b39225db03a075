"""Train one small network on handwritten digits twice, in lockstep: with torch's operators and with ours."""

from __future__ import annotations

import os
import sys
from collections import Counter
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

import customops

from .dispatch import find_triton, is_interpreted

OPERATORS = ("log", "exp", "relu", "sigmoid", "add", "sub", "mul", "pow", "mean", "sum")
TESTED = 360  # digits, of 1797

# Rounding alone drives two correct trainings apart: in 600 steps by 1e-13 of a gradient, in float32 by 1e-4.
DTYPE = torch.float64
TOLERANCE = 1e-10


class Schedule(NamedTuple):
    """How long to train how wide a network, and the test accuracy that it has to reach."""

    steps: int
    batch: int
    width: int
    floor: float


FULL = Schedule(steps=600, batch=64, width=64, floor=0.9)
SHORT = Schedule(steps=24, batch=32, width=32, floor=0.7)  # the interpreter takes a second a step


class Network(nn.Module):
    """64 pixels, a gated layer, a normalisation, ten classes: written once, on the operators ``ops``."""

    def __init__(self, ops: Any, width: int):
        """Draw every parameter; a gain is a power of 2, so that pow learns an exponent too."""
        super().__init__()
        self.ops = ops
        self.hidden, self.hidden_bias = _parameter(64, width), _parameter(width)
        self.gate, self.gate_bias = _parameter(64, width), _parameter(width)
        self.log2_gain, self.shift = _parameter(width), _parameter(width)
        self.classes, self.classes_bias = _parameter(width, 10), _parameter(10)

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

    def loss(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Average the cross-entropy, log Σ exp(logits) - logits[label]."""
        ops, logits = self.ops, self(pixels)
        logits = ops.sub(logits, logits.detach().amax(-1, keepdim=True))  # so that exp cannot overflow
        chosen = ops.sum(ops.mul(logits, nn.functional.one_hot(labels, 10)), -1)
        return ops.mean(ops.sub(ops.log(ops.sum(ops.exp(logits), -1)), chosen))


class Report(NamedTuple):
    """What two trainings came to, and the largest gaps between them: absolute, and relative."""

    losses: list[float]
    accuracies: list[float]
    gaps: dict[str, list[float]]
    calls: Counter[str]


def run(backend: str = "auto", schedule: Schedule | None = None, library: Any = customops) -> int:
    """Train, print the table, and exit with 1, the reason on stderr, where the two disagree."""
    name, device, words, usual = choose(backend)
    schedule = schedule or usual
    torch.set_num_threads(1)  # on busy cores a second thread made it ten times slower
    with customops.backend(name), np.errstate(all="ignore"):  # the interpreter computes both sides of a where
        report = train(library, schedule, device)
    reason = failure(report, schedule.floor)
    print(f"{schedule.steps} steps of {schedule.batch} digits, width {schedule.width}, by {words}\n")
    print(table(report))
    print(f"demo: {reason}" if reason else "\nThe two agree.", file=sys.stderr if reason else sys.stdout)
    return 1 if reason else 0


def choose(backend: str) -> tuple[str, str, str, Schedule]:
    """Read ``--backend`` for this machine: backend, device, what that is in words, schedule."""
    gpu = torch.cuda.is_available() and find_triton() is not None and not is_interpreted()
    if gpu and backend != "torch":
        return "triton", "cuda", f"Triton kernels on {torch.cuda.get_device_name()}", FULL
    if backend != "triton":
        return "torch", "cpu", "torch formulas on the CPU", FULL
    if find_triton() is None:
        raise ModuleNotFoundError("No module named 'triton'", name="triton")
    os.environ["TRITON_INTERPRET"] = "1"
    return "triton", "cpu", "Triton kernels in the interpreter", SHORT


def train(library: Any, schedule: Schedule, device: str) -> Report:
    """Train torch's copy and that of ``library`` on the same batches, comparing every loss and gradient."""
    torch.manual_seed(0)
    pixels, labels = _digits(device)
    calls: Counter[str] = Counter()
    copies = [Network(ops, schedule.width).to(device) for ops in (torch, counted(library, calls))]
    copies[1].load_state_dict(copies[0].state_dict())
    optimizers = [torch.optim.SGD(copy.parameters(), lr=0.05, momentum=0.9) for copy in copies]
    batches = torch.randint(TESTED, len(labels), (schedule.steps, schedule.batch), device=device)
    gaps = []
    for batch in tqdm(batches, "training", unit="step"):
        losses = [copy.loss(pixels[batch], labels[batch]) for copy in copies]
        torch.autograd.backward(losses)
        gaps.append(torch.stack([_gap(losses[:1], losses[1:]), _gap(*map(_gradients, copies))]))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        right = [copy(pixels[:TESTED]).argmax(-1) == labels[:TESTED] for copy in copies]
    largest = dict(zip(("loss", "gradient"), torch.stack(gaps).amax(0).tolist(), strict=True))
    return Report([x.item() for x in losses], [x.double().mean().item() for x in right], largest, calls)


def counted(library: Any, calls: Counter[str]) -> SimpleNamespace:
    """Wrap the ten operators of ``library`` to count the calls that a gradient will flow back through."""

    def count(name):
        def operator(*args, **kwargs):
            z = getattr(library, name)(*args, **kwargs)
            calls[name] += z.requires_grad
            return z

        return operator

    return SimpleNamespace(**{name: count(name) for name in OPERATORS})


def table(report: Report) -> str:
    """Lay the report out in columns."""
    pairs = {"final loss": report.losses, "test accuracy": report.accuracies}
    rows = [("", "torch", "customops", "difference")]
    rows += [(name, f"{a:.6f}", f"{b:.6f}", f"{abs(a - b):.2g}") for name, (a, b) in pairs.items()]
    rows += [("", "", "", ""), ("largest difference", "absolute", "relative", "tolerance")]
    rows += [(name, f"{a:.2g}", f"{r:.2g}", f"{TOLERANCE:g}") for name, (a, r) in report.gaps.items()]
    rows += [("", "", "", ""), ("operator", "calls", "", "")]
    rows += [(name, str(report.calls[name]), "", "") for name in OPERATORS]
    return "\n".join("{:<20}{:>12}{:>12}{:>12}".format(*row).rstrip() for row in rows)


def failure(report: Report, floor: float) -> str | None:
    """Say why the two trainings disagree, or prove nothing; None where they agree."""
    missing = [name for name in OPERATORS if not report.calls[name]]
    if missing:
        return f"no gradient flows through {', '.join(missing)}"
    if not np.isfinite(report.losses).all():
        return "a loss is not finite"
    for name, (_, relative) in report.gaps.items():
        if not relative <= TOLERANCE:  # nan too
            return f"{name} differs by {relative:.2g} of its largest entry, tolerance {TOLERANCE:g}"
    if min(report.accuracies) < floor:
        return f"test accuracy is {min(report.accuracies):.3f}, expected at least {floor:g}"
    return None


def _parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, dtype=DTYPE) / shape[0] ** 0.5)


def _digits(device: str) -> tuple[Tensor, Tensor]:
    """Shuffle the digits: pixels in [0, 1], labels."""
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels))
    return (torch.tensor(pixels, dtype=DTYPE) / 16)[order].to(device), torch.tensor(labels)[order].to(device)


def _gradients(network: Network) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in network.parameters()]


def _gap(theirs: list, ours: list) -> Tensor:
    """Find the largest difference: absolute, and relative to the largest entry of its tensor. A nan stays."""
    absolute = torch.stack([(a - b).detach().abs().max() for a, b in zip(theirs, ours, strict=True)])
    largest = torch.stack([a.detach().abs().max() for a in theirs])
    return torch.stack([absolute, absolute / largest], -1).amax(0)
