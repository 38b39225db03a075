"""Train the digits on several processes, by DDP, FSDP2 and tensor parallelism, each in lockstep with one."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial, reduce
from operator import and_
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from digits import Digits
from lockstep import (
    DTYPE,
    OPERATORS,
    Report,
    Schedule,
    SingleProcess,
    Training,
    add_backend,
    choose,
    failure,
    train,
    with_packages,
)
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import customops

COMMAND = "python -m torch.distributed.run --standalone --nproc-per-node 2 examples/distributed_digits.py"
FULL = Digits.full._replace(steps=100)
SHORT = Digits.short._replace(steps=4, floor=0.25)  # for the interpreter
SECONDS = 120.0  # after which a process that others wait for is taken to hang


class Loss(nn.Module):
    """The loss of a network as a forward pass, which is what DDP wraps."""

    def __init__(self, network: Training):
        super().__init__()
        self.network = network

    def forward(self, *batch: Tensor) -> Tensor:
        """The one loss there is."""
        ((loss, _),) = self.network.objectives(batch)
        return loss


class DDP(SingleProcess):
    """All parameters on every process, which takes its rows of a batch; gradients are averaged."""

    title: ClassVar[str] = "DDP"

    def __init__(self, mesh: DeviceMesh, network: Training):
        super().__init__(network)
        self.mesh = mesh
        self.forward = self.shard(Loss(network))

    def shard(self, loss: Loss) -> nn.Module:
        """The loss, on parameters that are spread over the mesh."""
        return DistributedDataParallel(loss, process_group=self.mesh.get_group())

    def local_batch(self, x: Tensor) -> Tensor:
        """What this process takes of a batch."""
        return x.chunk(self.mesh.size())[self.mesh.get_rank()]

    def differentiate(self, batch):
        """Give every parameter its gradient, and return the loss, averaged over processes."""
        self.forward.zero_grad()
        loss = self.forward(*map(self.local_batch, batch))
        loss.backward()
        mean = full_tensor(loss.detach()) / self.mesh.size()
        dist.all_reduce(mean)
        return [mean]

    def gradients(self):
        """Of each parameter all of its gradient."""
        parameters = self.network.parameters()
        return [full_tensor(torch.zeros_like(p) if p.grad is None else p.grad) for p in parameters]

    def score(self):
        """How well the task is solved."""
        return full_tensor(self.network.score()).item()


class FSDP2(DDP):
    """Rows of each parameter on each process, gathered to compute with."""

    title = "FSDP2"

    def shard(self, loss):
        """Shard the parameters in place."""
        fully_shard(loss.network, mesh=self.mesh)
        return loss


class TensorParallel(DDP):
    """Units of the hidden layers on each process, which takes the whole batch; all is DTensors."""

    title = "tensor parallel"
    columns: ClassVar = ("hidden", "gate")
    rows: ClassVar = ("hidden_bias", "gate_bias", "log2_gain", "shift", "classes")

    def shard(self, loss):
        """Shard the parameters of the units, and repeat all else."""
        distribute_module(loss.network, self.mesh, self.shard_units)
        loss.network.ops = joined(loss.network.ops)
        return loss

    def shard_units(self, _: str, network: nn.Module, mesh: DeviceMesh) -> None:
        """Shard them in place."""
        for name in (*self.columns, *self.rows):
            parameter = distribute_tensor(network.get_parameter(name), mesh, [Shard(int(name in self.columns))])
            network.register_parameter(name, nn.Parameter(parameter))

    def local_batch(self, x):
        """All rows."""
        return DTensor.from_local(x, self.mesh, [Replicate()])


ENGINES = (DDP, FSDP2, TensorParallel)


def joined(ops: Any) -> SimpleNamespace:
    """Let the operators add up partial sums first: DTensor would go on with them, over the whole width."""

    def join(x):
        if not isinstance(x, DTensor) or not any(p.is_partial() for p in x.placements):
            return x
        return DTensor.from_local(x.full_tensor(), x.device_mesh, [Replicate()])

    def joining(operator):
        return lambda *args, **kwargs: operator(*map(join, args), **kwargs)

    return SimpleNamespace(**{name: joining(getattr(ops, name)) for name in OPERATORS})


def full_tensor(x: Tensor) -> Tensor:
    """All of a tensor that may be spread."""
    return x.full_tensor() if isinstance(x, DTensor) else x


@record
def run(
    backend: str = "auto", schedule: Schedule | None = None, library: Any = customops, seconds: float = SECONDS
) -> int:
    """Train by each engine, print the table, and exit with 1, the reasons on stderr, where it differs from one process.

    Exit with 2 where torchrun did not start it, or started more processes than can split the work evenly.
    """
    if not (dist.is_torchelastic_launched() and {"WORLD_SIZE", "LOCAL_WORLD_SIZE"} <= {*os.environ}):
        return _refuse(f"torchrun has to start it: {COMMAND}")
    size = int(os.environ["WORLD_SIZE"])
    name, device, words, slow = choose(backend, int(os.environ["LOCAL_WORLD_SIZE"]))
    schedule = schedule or (SHORT if slow else FULL)
    if schedule.batch % size or schedule.width % size:
        return _refuse(f"{size} processes cannot evenly split a batch of {schedule.batch} and width {schedule.width}")
    with (
        group(device, seconds) as mesh,
        customops.backend(name),
        np.errstate(all="ignore"),
    ):  # the interpreter computes both sides of a where
        reports = {engine.title: run_engine(engine, library, schedule, mesh) for engine in ENGINES}
        what = f"{schedule.steps} steps of {schedule.batch}, width {schedule.width}"
        _print(f"{Digits.title}: {what}, by {words}, processes: {size}\n\n{table(reports)}")
        reasons = [(engine, failure(Digits, report, schedule.floor)) for engine, report in reports.items()]
        failed = [f"{engine}: {reason}" for engine, reason in reasons if reason]
        for reason in failed:
            _print(f"distributed: {reason}", file=sys.stderr)
        if not failed:
            _print("\nEach agrees with one process.")
        return 1 if failed else 0


@contextmanager
def group(device: str, seconds: float) -> Iterator[DeviceMesh]:
    """Form a group of all processes; who is done waits for the others.

    torchrun kills those that have not printed why when the first exits, and gloo may abort one whose peer has left.
    """
    torch.set_num_threads(1)
    here = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if device == "cuda" else None
    if here:
        torch.cuda.set_device(here)
    dist.init_process_group("nccl" if here else "gloo", timeout=timedelta(seconds=seconds), device_id=here)
    yield init_device_mesh(device, (dist.get_world_size(),))
    dist.barrier()
    dist.destroy_process_group()


def run_engine(engine: type[DDP], library: Any, schedule: Schedule, mesh: DeviceMesh) -> Report:
    """Train by ``engine`` in lockstep with one process; the worst that any process found."""
    title = engine.title if mesh.get_rank() == 0 else None
    report = train(Digits, library, schedule, mesh.device_type, partial(engine, mesh), title)
    reports = [report] * mesh.size()
    dist.all_gather_object(reports, report)
    gaps = torch.tensor([list(each.gaps.values()) for each in reports], dtype=DTYPE).amax(0)  # a nan stays
    scores = torch.tensor([each.scores for each in reports], dtype=DTYPE).amin(0)
    calls = reduce(and_, [each.calls for each in reports])
    return Report(report.losses, scores.tolist(), dict(zip(report.gaps, gaps.tolist(), strict=True)), calls)


def table(reports: dict[str, Report]) -> str:
    """Lay the reports out in columns."""
    rows: list[tuple[str, ...]] = [("engine", "loss diff", "gradient diff", "relative", Digits.scored)]
    for engine, report in reports.items():
        absolute, relative = zip(*report.gaps.values(), strict=True)
        rows.append((engine, *(f"{gap:.2g}" for gap in (*absolute, max(relative))), f"{report.scores[1]:.6f}"))
    return "\n".join("{:<20}{:>15}{:>15}{:>15}{:>15}".format(*row) for row in rows)


def _refuse(reason: str) -> int:
    """Print why, on every process: torchrun ends all with the first."""
    print(f"distributed: {reason}", file=sys.stderr)
    return 2


def _print(*words: str, **options: Any) -> None:
    """Print, on one process only."""
    if os.environ.get("RANK", "0") == "0":
        print(*words, **options)


def main() -> int:
    """Read ``--backend`` from the command line and train; return the exit code."""
    parser = argparse.ArgumentParser(description="the digits on several processes, in lockstep with one")
    add_backend(parser)
    args = parser.parse_args()
    return with_packages(lambda: run(args.backend) or 0)


if __name__ == "__main__":
    code = main()
    if "TORCHELASTIC_RUN_ID" in os.environ:  # threads of torch 2.13's that outlive the group may abort
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
