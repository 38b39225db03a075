"""Train one small network twice, in lockstep: with torch's operators and with those of customops.

An example states its network once, on operators ``ops`` that are torch's or ours, as a :class:`Training`;
:func:`main` trains both copies on the same batches and compares every loss and gradient.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import customops

OPERATORS = ("log", "exp", "relu", "sigmoid", "add", "sub", "mul", "pow", "mean", "sum")
DTYPE = torch.float64  # rounding alone drives two correct trainings apart: in float32 by 1e-4 of a gradient
TOLERANCE = 1e-10  # in float64 by 1e-13 of a gradient in 600 steps
BACKENDS = ("auto", "torch", "triton")
PACKAGES = {"sklearn": "scikit-learn"}  # names to install by, of modules that are imported by another


class Schedule(NamedTuple):
    """The length of a training, the width of its network, and the score that this has to reach."""

    steps: int  # of the optimizer
    batch: int  # examples in each step
    width: int  # units of the hidden layer
    floor: float  # the least score that counts as solving the task


class Training(nn.Module):
    """A network, the batches that it learns from, and the losses that it minimises."""

    title: ClassVar[str]  # what the printed table is headed with
    scored: ClassVar[str]  # what ``score`` measures; more is better
    operators: ClassVar[tuple[str, ...]]  # names of those that a gradient must flow through
    full: ClassVar[Schedule]
    short: ClassVar[Schedule]  # for Triton's interpreter, which takes a second a step

    def __init__(self, ops: Any, width: int, device: str):
        super().__init__()
        self.ops = ops
        self.build(width)
        self.to(device)

    def build(self, width: int) -> None:
        """Draw every parameter."""
        raise NotImplementedError

    def optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer that takes the steps."""
        return torch.optim.Adam(self.parameters(), lr=1e-2)

    def draw(self, size: int) -> tuple[Tensor, ...]:
        """Draw a batch."""
        raise NotImplementedError

    def objectives(self, batch: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, list[nn.Parameter]]]:
        """Yield each loss, with the parameters that are to lower it."""
        raise NotImplementedError

    def score(self) -> Tensor:
        """Measure how well the task is solved."""
        raise NotImplementedError


class Report(NamedTuple):
    """The results of two trainings, torch's copy first, and how far apart the two came."""

    losses: list[float]  # of the last batch, for each copy
    scores: list[float]  # after the last step, for each copy
    gaps: dict[str, list[float]]  # of "loss" and "gradient": the largest absolute and the largest relative difference
    calls: Counter[str]  # of each operator of ours, those that a gradient flows back through


class Choice(NamedTuple):
    """The backend that ``--backend`` chose on this machine."""

    backend: Any  # as :func:`customops.backend` takes it
    device: str  # "cuda" or "cpu"
    description: str  # both, as they are printed
    is_slow: bool  # whether the interpreter computes, so that the short schedule is due


def main(training: type[Training]) -> int:
    """Read ``--backend`` from the command line and train; return the exit code, 2 where a package is missing."""
    parser = argparse.ArgumentParser(description=f"{training.title}: in lockstep with torch")
    add_backend(parser)
    args = parser.parse_args()
    return with_packages(lambda: run(training, args.backend))


def add_backend(parser: argparse.ArgumentParser) -> None:
    """Add the option that :func:`choose` reads."""
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="auto: kernels on a GPU, else formulas; triton: kernels, interpreted where there is no GPU",
    )


def with_packages(run: Callable[[], int]) -> int:
    """Return what ``run`` returns, and 2 where a package that it needs is not installed."""
    try:
        return run()
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in ("sklearn", "tqdm", "triton"):
            raise
        print(f"{module} is not installed: pip install {PACKAGES.get(module, module)}", file=sys.stderr)
        return 2


def run(
    training: type[Training], backend: str = "auto", schedule: Schedule | None = None, library: Any = customops
) -> int:
    """Train, print the table, and return 1, the reason on stderr, where the two copies disagree."""
    choice = choose(backend)
    schedule = schedule or (training.short if choice.is_slow else training.full)
    torch.set_num_threads(1)  # on busy cores a second thread made it ten times slower
    with customops.backend(choice.backend), np.errstate(all="ignore"):  # the interpreter computes both sides of a where
        report = train(training, library, schedule, choice.device)
    reason = failure(training, report, schedule.floor)
    size = f"{schedule.steps} steps of {schedule.batch}, width {schedule.width}"
    print(f"{training.title}: {size}, by {choice.description}\n")
    print(table(training, report))
    print(f"they differ: {reason}" if reason else "\nThe two agree.", file=sys.stderr if reason else sys.stdout)
    return 1 if reason else 0


class SingleProcess:
    """One copy of a network, trained in one process."""

    def __init__(self, network: Training):
        self.network = network

    def differentiate(self, batch: tuple[Tensor, ...]) -> list[Tensor]:
        """Give every parameter its gradient, and return the losses."""
        losses = []
        for loss, parameters in self.network.objectives(batch):
            grads = torch.autograd.grad(loss, parameters, materialize_grads=True)
            for parameter, g in zip(parameters, grads, strict=True):
                parameter.grad = g
            losses.append(loss.detach())
        return losses

    def gradients(self) -> list[Tensor]:
        """Return the gradients that :meth:`differentiate` gave."""
        return [p.grad for p in self.network.parameters() if p.grad is not None]

    def score(self) -> float:
        """Measure how well the task is solved."""
        return self.network.score().item()


def choose(backend: str, processes: int = 1) -> Choice:
    """Return what ``--backend`` means on this machine.

    It is taken to have no GPU unless it has one for each of ``processes``.
    """
    gpus = torch.cuda.is_available() and (processes == 1 or torch.cuda.device_count() >= processes)
    gpu = gpus and has_triton() and not is_interpreted()
    if gpu and backend != "torch":
        return Choice("triton", "cuda", f"Triton kernels on {torch.cuda.get_device_name()}", False)
    if backend != "triton":
        return Choice("torch", "cpu", "torch formulas on the CPU", False)
    if not has_triton():
        raise ModuleNotFoundError("No module named 'triton'", name="triton")
    os.environ["TRITON_INTERPRET"] = "1"
    return Choice("triton", "cpu", "Triton kernels in the interpreter", True)


def train(
    training: type[Training],
    library: Any,
    schedule: Schedule,
    device: str,
    engine: Callable[[Training], SingleProcess] = SingleProcess,
    title: str | None = "training",
) -> Report:
    """Train torch's copy and that of ``library`` on the same batches, comparing every loss and gradient.

    ``engine`` trains the second; ``title`` is printed before the progress bar, None for no bar.
    """
    from tqdm import tqdm  # noqa: PLC0415 - a missing package is named by main

    torch.manual_seed(0)
    calls: Counter[str] = Counter()
    copies = [training(ops, schedule.width, device) for ops in (torch, counted(library, calls))]
    copies[1].load_state_dict(copies[0].state_dict())
    trainers = [SingleProcess(copies[0]), engine(copies[1])]
    optimizers = [copy.optimizer() for copy in copies]
    gaps = []
    for _ in tqdm(range(schedule.steps), title, unit="step", disable=title is None):
        batch = copies[0].draw(schedule.batch)
        losses = [trainer.differentiate(batch) for trainer in trainers]
        gaps.append(torch.stack([_gap(*losses), _gap(*(trainer.gradients() for trainer in trainers))]))
        if not all(calls[name] for name in training.operators):
            break  # DDP would wait for a gradient that never comes
        for optimizer in optimizers:
            optimizer.step()
    with torch.no_grad():
        scores = [trainer.score() for trainer in trainers]
    largest = dict(zip(("loss", "gradient"), torch.stack(gaps).amax(0).tolist(), strict=True))
    return Report([float(sum(of_copy)) for of_copy in losses], scores, largest, calls)


def counted(library: Any, calls: Counter[str]) -> SimpleNamespace:
    """Wrap the ten operators of ``library`` to count the calls that a gradient will flow back through."""

    def count(name):
        def operator(*args, **kwargs):
            z = getattr(library, name)(*args, **kwargs)
            calls[name] += z.requires_grad
            return z

        return operator

    return SimpleNamespace(**{name: count(name) for name in OPERATORS})


def table(training: type[Training], report: Report) -> str:
    """Lay the report out in columns."""
    pairs = {"final loss": report.losses, training.scored: report.scores}
    rows = [("", "torch", "customops", "difference")]
    rows += [(name, f"{a:.6f}", f"{b:.6f}", f"{abs(a - b):.2g}") for name, (a, b) in pairs.items()]
    rows += [("", "", "", ""), ("largest difference", "absolute", "relative", "tolerance")]
    rows += [(name, f"{a:.2g}", f"{r:.2g}", f"{TOLERANCE:g}") for name, (a, r) in report.gaps.items()]
    rows += [("", "", "", ""), ("operator", "calls", "", "")]
    rows += [(name, str(report.calls[name]), "", "") for name in training.operators]
    return "\n".join("{:<20}{:>12}{:>12}{:>12}".format(*row).rstrip() for row in rows)


def failure(training: type[Training], report: Report, floor: float) -> str | None:
    """Say why the two trainings disagree, or prove nothing; None where they agree."""
    missing = [name for name in training.operators if not report.calls[name]]
    if missing:
        return f"no gradient flows through {', '.join(missing)}"
    if not np.isfinite(report.losses).all():
        return "a loss is not finite"
    for name, (_, relative) in report.gaps.items():
        if not relative <= TOLERANCE:  # nan too
            return f"{name} differs by {relative:.2g} of its largest entry, tolerance {TOLERANCE:g}"
    if min(report.scores) < floor:
        return f"{training.scored} is {min(report.scores):.3f}, expected at least {floor:g}"
    return None


def _gap(theirs: list, ours: list) -> Tensor:
    """Return the largest difference: absolute, and relative to the largest entry of its tensor. A nan stays."""
    absolute = torch.stack([(a - b).abs().max() for a, b in zip(theirs, ours, strict=True)])
    largest = torch.stack([a.abs().max() for a in theirs])
    return torch.stack([absolute, absolute / largest], -1).amax(0)


def parameter(*shape: int) -> nn.Parameter:
    """Draw a parameter whose products keep their size."""
    return nn.Parameter(torch.randn(shape, dtype=DTYPE) / shape[0] ** 0.5)


def has_triton() -> bool:
    """Return whether Triton is installed."""
    return find_spec("triton") is not None


def is_interpreted() -> bool:
    """Return whether kernels run in Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")
