"""Whatever changes between two calls, a fused function does what the function would: drawn at random."""

from __future__ import annotations

import gc
import random
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import customops
from customops import fuse

from .compare import TOLERANCE, outcome
from .conftest import KERNELS

CALLS_IN_A_SEQUENCE = 6
NUMBERS = (0.0, -0.0, 1, 1.0, True, 2, 2.5, -1.5, np.float32(2.5), np.int64(2))


class PassDispatch(TorchDispatchMode):
    """A mode that sees every operator, and changes none."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class PassFunctions(TorchFunctionMode):
    """A mode that sees every function, and changes none."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def default_dtype(dtype):
    stack = ExitStack()
    stack.callback(torch.set_default_dtype, torch.get_default_dtype())
    torch.set_default_dtype(dtype)
    return stack


MODES = {
    "none": nullcontext,
    "no grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", torch.float16),
    "formulas": lambda: customops.backend("torch"),
    "dispatch mode": PassDispatch,
    "function mode": PassFunctions,
    "default device": lambda: torch.device("meta"),
    "default dtype": lambda: default_dtype(torch.float64),
    "dual level": torch.autograd.forward_ad.dual_level,
}
READ_AND_NOT_RESTORED = ("default dtype", "inference")  # by a checkpoint: computed again, a function differs


@dataclass
class Config:
    """An object that is equal by value, without a hash; its address is soon that of another one."""

    scale: Any = 1.0
    kind: str = "exp"


@dataclass(frozen=True)
class Frozen:
    """An object that is equal, and has the same hash, for 0.0 and -0.0, for 1 and True."""

    scale: Any = 1.0
    kind: str = "exp"


class Slotted:
    """An object without a dictionary."""

    __slots__ = ("kind", "scale")

    def __init__(self, scale=1.0, kind="exp"):
        self.scale, self.kind = scale, kind


class Layer(torch.nn.Module):
    """A module that reads its state in every way: attributes of attributes, lists, properties, methods, modules."""

    def __init__(self):
        super().__init__()
        self.config, self.steps, self.table = Config(), [1.0], {"bias": 0.5}
        self.inner = torch.nn.Module()
        self.inner.gain = 2.0

    @property
    def bias(self):
        """Return one of the numbers in a dictionary."""
        return self.table["bias"]

    def shifted(self, x):
        """Shift ``x`` by what a method reads of the state."""
        return x + self.bias

    def compute(self, x, w, by=1.0, act=customops.neg):
        """Compute what is fused."""
        y = act(x) / self.config.scale
        if self.config.kind == "exp":
            y = customops.exp(-customops.abs(x)) + y
        for step in self.steps:
            y = y + step * x
        if self.training:
            y = y * w
        if y.dtype != x.dtype or x.shape[0] > 3:
            y = y - self.inner.gain
        if torch.is_grad_enabled():
            y = y * by
        if torch.is_autocast_enabled("cpu"):
            y = y * (3 if torch.get_autocast_dtype("cpu") == torch.float16 else 5)
        if torch.get_default_dtype() == torch.float64 or torch.is_inference_mode_enabled():
            y = y + 0.25
        return customops.mean(self.shifted(y), -1, keepdim=True) * x

    fused = fuse(compute)


def change(layer: Layer, drawn: random.Random) -> None:
    """Change one thing that :meth:`Layer.compute` reads."""
    number = drawn.choice(NUMBERS)

    def configure():
        layer.config = None
        gc.collect(0)  # so that the next one may take its place
        layer.config = drawn.choice((Config, Frozen, Slotted))(number, drawn.choice(("exp", "none")))

    def set_attribute():
        if not isinstance(layer.config, Frozen):
            layer.config.scale = number

    drawn.choice(
        (
            configure,
            set_attribute,
            lambda: layer.steps.append(number) if len(layer.steps) < 3 else layer.steps.clear(),
            lambda: layer.table.update(bias=number),
            lambda: setattr(layer.inner, "gain", number),
            lambda: layer.train(not layer.training),
        )
    )()


def draw_call(drawn: random.Random, device: str) -> dict[str, Any]:
    """Draw tensors, arguments and modes of one call."""
    dtype = drawn.choice((torch.float64, torch.float64, torch.float32, torch.bfloat16))
    shape = (drawn.choice((1, 2, 3, 5)), drawn.choice((1, 4, 7)))
    generator = torch.Generator().manual_seed(drawn.randrange(1 << 30))
    xs = [torch.rand(s, generator=generator, dtype=torch.float64) + 0.1 for s in (shape, shape[1:])]
    recomputed = drawn.random() < 0.3
    modes = [name for name in MODES if not (recomputed and name in READ_AND_NOT_RESTORED)]
    return {
        "tensors": [x.to(device, dtype) for x in xs],
        "needs": (drawn.random() < 0.7, drawn.random() < 0.5),
        "options": {} if drawn.random() < 0.5 else {"by": drawn.choice(NUMBERS)},
        "act": drawn.choice((None, customops.relu, torch.nn.Identity(), lambda x: x * 2)),
        "checkpoint": recomputed,
        "modes": (drawn.choice(modes), drawn.choice(modes)),
    }


def results(function, call: dict[str, Any]) -> list[Any]:
    """Return value and gradients of ``function`` at a call, and how they are recorded; or the error of either."""
    xs = [x.clone().requires_grad_(needs) for x, needs in zip(call["tensors"], call["needs"], strict=True)]
    options = dict(call["options"]) | ({} if call["act"] is None else {"act": call["act"]})

    def run():
        with MODES[call["modes"][0]]():
            if call["checkpoint"]:
                return checkpoint(lambda *xs: function(*xs, **options), *xs, use_reentrant=False)
            return function(*xs, **options)

    z = outcome(run)
    if not isinstance(z, torch.Tensor) or not z.requires_grad:
        return [z, getattr(z, "requires_grad", None), getattr(z, "is_inference", lambda: None)()]
    leaves = [x for x in xs if x.requires_grad]

    def grads():
        with MODES[call["modes"][1]]():
            return torch.autograd.grad(z, leaves, torch.ones_like(z, device=z.device), allow_unused=True)

    found = outcome(grads)
    return [z, *(found if isinstance(found, tuple) else [found])]


def assert_alike(got: list[Any], want: list[Any], name: str) -> None:
    """Assert equality to within rounding, signs of zeros and infinities included; what is no tensor is the same."""
    assert len(got) == len(want), name
    for mine, theirs in zip(got, want, strict=True):
        if not isinstance(mine, torch.Tensor) or not isinstance(theirs, torch.Tensor):
            assert mine == theirs, name
            continue
        tolerance = dict(TOLERANCE[theirs.dtype])
        if theirs.dtype == torch.bfloat16:  # fused it is rounded once, operator by operator many times
            largest = float(theirs.detach().abs().nan_to_num(posinf=0).max())
            tolerance = {"rtol": 0.1, "atol": 0.1 * max(1, largest)}
        torch.testing.assert_close(mine.detach(), theirs.detach(), equal_nan=True, msg=name, **tolerance)
        assert (mine.requires_grad, mine.is_inference()) == (theirs.requires_grad, theirs.is_inference()), name


def assert_sequence(seed: int, device: str, fused=Layer.fused) -> None:
    """Draw a sequence of calls and changes; assert that fused and plain function do the same."""
    drawn, layer = random.Random(seed), Layer()
    for k in range(CALLS_IN_A_SEQUENCE):
        call = draw_call(drawn, device)
        name = f"sequence {seed}, call {k}: {call}, {layer.config}, {layer.steps}, {layer.table}"
        got = results(lambda *xs, **options: fused(layer, *xs, **options), call)
        want = results(layer.compute, call)
        assert_alike(got, want, name)
        for _ in range(drawn.choice((0, 1, 2))):
            change(layer, drawn)


@pytest.mark.parametrize("part", range(8))
def test_fused_functions_with_states_that_change_do_what_the_function_does(part, full, device, tally):
    """With ``--full`` there are 2,000 sequences of six calls."""
    count = 250 if full else 5 if KERNELS else 12
    for seed in range(part, 8 * count, 8):
        assert_sequence(seed, device)
    tally("sequences of states", count)


def test_sequences_find_what_is_remembered_of_an_earlier_call(device):
    """A function that keeps the state it saw first is found, as a key by an address that is used again made it."""
    seen: dict[str, Any] = {}

    def stale(layer, *xs, **options):
        kept = Layer()
        kept.train(layer.training), setattr(kept, "steps", layer.steps), setattr(kept, "table", layer.table)
        kept.inner, kept.config = layer.inner, seen.setdefault(type(layer.config).__name__, layer.config)
        return kept.compute(*xs, **options)

    def run():
        for seed in range(20):
            assert_sequence(seed, device, stale)

    with pytest.raises(AssertionError, match="sequence"):
        run()
