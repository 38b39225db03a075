"""A network on ten operators, and how it is trained, in one process or in ranks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

import customops

from .compare import TOLERANCE
from .conftest import DEVICE, INTERPRETED

LIBRARIES = {"customops": customops, "torch": torch}
STEPS = 2 if INTERPRETED else 3
BATCH, SEQUENCE, FEATURES, WIDTH, CLASSES = 8, 4, 6, 8, 4

Step = dict[str, Tensor]  # the loss, and each gradient by its parameter's name


class Norm(nn.Module):
    """A normalisation of rows to mean 0 and variance 1, with a learned gain, a power of 2, and a learned shift."""

    def __init__(self, ops):
        super().__init__()
        self.ops = ops
        self.log2_gain, self.shift = nn.Parameter(torch.randn(WIDTH)), nn.Parameter(torch.randn(WIDTH))

    def forward(self, x):
        ops = self.ops
        centred = ops.sub(x, ops.mean(x, -1, keepdim=True))
        variance = ops.mean(ops.pow(centred, 2), -1, keepdim=True)
        unit = ops.mul(centred, ops.pow(ops.add(variance, 1e-5), -0.5))
        return ops.add(ops.mul(unit, ops.pow(2, self.log2_gain)), self.shift)


class Gated(nn.Module):
    """Two layers, the first of them gated."""

    def __init__(self, ops):
        super().__init__()
        self.ops = ops
        self.gate, self.up, self.down = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x):
        return self.down(self.ops.mul(self.ops.sigmoid(self.gate(x)), self.ops.relu(self.up(x))))


class Block(nn.Module):
    """A normalisation and a gated layer, added to what comes in."""

    def __init__(self, ops):
        super().__init__()
        self.ops, self.norm, self.feed = ops, Norm(ops), Gated(ops)

    def forward(self, x):
        return self.ops.add(x, self.feed(self.norm(x)))


class Network(nn.Sequential):
    """Two blocks between two linear layers, drawn alike for every library and in every process."""

    def __init__(self, ops: Any):
        with torch.random.fork_rng([]):
            torch.manual_seed(1)
            layers = {"enter": nn.Linear(FEATURES, WIDTH), "first": Block(ops), "second": Block(ops)}
            super().__init__(OrderedDict(layers, norm=Norm(ops), head=nn.Linear(WIDTH, CLASSES)))
        self.ops = ops
        self.to(DEVICE, torch.float64)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Average the cross-entropy, log Σ exp(logits) - logits[target]; of a DTensor every rank has all targets."""
        ops, targets = self.ops, targets.to(logits.dtype)
        if isinstance(logits, DTensor):
            targets = DTensor.from_local(targets, logits.device_mesh, [Replicate()] * logits.device_mesh.ndim)
        logits = ops.sub(logits, logits.detach().amax(-1, keepdim=True))
        chosen = ops.sum(ops.mul(logits, targets), -1)
        return ops.mean(ops.sub(ops.log(ops.sum(ops.exp(logits), -1)), chosen))


def batches() -> list[tuple[Tensor, Tensor]]:
    """Return for each step the inputs, and the classes that are right."""
    generator = torch.Generator().manual_seed(2)
    drawn = []
    for _ in range(STEPS):
        x = torch.randn(BATCH, SEQUENCE, FEATURES, generator=generator, dtype=torch.float64)
        classes = torch.randint(CLASSES, (BATCH, SEQUENCE), generator=generator)
        drawn.append((x.to(DEVICE), nn.functional.one_hot(classes, CLASSES).to(DEVICE)))
    return drawn


def at_once(parallel: nn.Module, loss: Callable, x: Tensor, targets: Tensor) -> Tensor:
    """Take one pass forward and one back; return the loss."""
    z = loss(parallel(x), targets)
    z.backward()
    return z


def as_it_is(x: Any) -> Any:
    """Return a network or a batch as one process takes it: unchanged."""
    return x


class Engine(NamedTuple):
    """One of PyTorch's engines: the ways in which it wraps, shares out and differentiates."""

    wrap: Callable[[Network], nn.Module] = as_it_is  # returns the network that this rank trains
    differentiate: Callable[[nn.Module, Callable, Tensor, Tensor], Tensor | None] = at_once  # returns the loss
    share: Callable[[Tensor], Tensor] = as_it_is  # returns this rank's part of a batch
    clips: bool = False  # whether gradients are clipped


def train(engine: Engine, library: str, steps: int = STEPS) -> list[Step]:
    """Train a new network; return its steps."""
    model = Network(LIBRARIES[library])
    parallel = engine.wrap(model)
    return train_on(engine, model.loss, parallel, optimizer_of(parallel), batches()[:steps])


@cache
def alone(library: str, clips: bool = False) -> list[Step]:
    """Train a network in this process, on the whole of each batch; return its steps."""
    return train(Engine(clips=clips), library)


def optimizer_of(parallel: nn.Module) -> torch.optim.Optimizer:
    """Return stochastic gradient descent with momentum."""
    return torch.optim.SGD(parallel.parameters(), lr=0.1, momentum=0.9)


def train_on(engine: Engine, loss: Callable, parallel: nn.Module, optimizer, batches: Sequence) -> list[Step]:
    """Take a step for each batch; return losses and gradients as this rank sees them."""
    steps = []
    for x, targets in batches:
        found = {"loss": engine.differentiate(parallel, loss, engine.share(x), engine.share(targets))}
        if engine.clips:
            nn.utils.clip_grad_norm_(parallel.parameters(), 0.1)
        found |= {name.removeprefix("module."): p.grad for name, p in parallel.named_parameters()}
        steps.append({name: whole(x) for name, x in found.items() if x is not None})
        optimizer.step()
        optimizer.zero_grad()
    return steps


def whole(x: Tensor) -> Tensor:
    """Return all of ``x``, in memory of the CPU that nothing else writes."""
    return (x.to(DEVICE).full_tensor() if isinstance(x, DTensor) else x).detach().cpu().clone()


def assert_same_training(ranks: Sequence[list[Step]], want: list[Step], **tolerance: float) -> None:
    """Assert that the mean of the ranks' losses, and each gradient on every rank that has it, are those of ``want``.

    Each gradient is on one rank at least.
    """
    tolerance = tolerance or TOLERANCE[torch.float64]
    for steps, wanted in zip(zip(*ranks, strict=True), want, strict=True):
        assert set().union(*steps) == wanted.keys()
        for name, expected in wanted.items():
            got = [step[name] for step in steps if name in step]
            for x in [torch.stack(got).mean(0)] if name == "loss" else got:
                torch.testing.assert_close(x, expected, msg=lambda text, name=name: f"{name}: {text}", **tolerance)
