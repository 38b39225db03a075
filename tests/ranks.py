"""Processes that stay, each a rank of one group, in which tests call functions: gloo on CPUs, NCCL on GPUs."""

from __future__ import annotations

import ctypes
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from .conftest import DEVICE

PR_SET_PDEATHSIG = 1  # of Linux's prctl
SECONDS = 90  # after which ranks that wait for one another are taken to hang


class Ranks:
    """A group of ``size`` processes; ``ranks(function, *args)`` returns what ``function(*args)`` returned on each.

    The function is one of a module's own, as it is pickled by name. Where a rank raises, an AssertionError here holds
    its traceback, and the other ranks, which may wait for it, are killed; the next call starts new ones.
    """

    def __init__(self, size: int, **environment: str):
        if DEVICE == "cuda" and torch.cuda.device_count() < size:
            pytest.skip(f"needs {size} GPUs, for NCCL")
        self.size, self.environment, self.processes, self.pipes = size, environment, [], []

    def __call__(self, function: Callable, *args: Any, seconds: float = SECONDS) -> list:
        """Call ``function`` on every rank; return the results in order of rank."""
        if not self.processes:
            self.start()
        for pipe in self.pipes:
            pipe.send((function, args))
        results: dict[int, Any] = {}
        while len(results) < self.size:
            waiting = [pipe for rank, pipe in enumerate(self.pipes) if rank not in results]
            for pipe in wait(waiting, seconds) or [None]:
                rank = self.pipes.index(pipe) if pipe else None
                worked, result = self.receive(rank, seconds)
                if not worked:
                    self.close()
                    raise AssertionError(result)
                results[rank] = result
        return [results[rank] for rank in range(self.size)]

    def receive(self, rank: int | None, seconds: float) -> tuple[bool, Any]:
        """Return whether the call worked on ``rank``, and its result or error; None is a rank that is late."""
        if rank is None:
            return False, f"a rank did not answer in {seconds} s"
        try:
            return self.pipes[rank].recv()
        except EOFError:
            self.processes[rank].join()
            return False, f"rank {rank} died with exit code {self.processes[rank].exitcode}"

    def start(self) -> None:
        """Start the processes, in a new group."""
        context = multiprocessing.get_context("spawn" if self.environment else "forkserver")  # which has its own
        if not self.environment:
            context.set_forkserver_preload(["tests.engines", "torch.distributed.tensor"])  # imported once for all ranks
        self.folder = tempfile.TemporaryDirectory()  # of the file through which groups are made, later ones too
        meeting = f"{self.folder.name}/group"
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            for rank in range(self.size):
                pipe, end = context.Pipe()
                process = context.Process(target=_serve, args=(end, meeting, rank, self.size), daemon=True)
                process.start()
                end.close()
                self.pipes.append(pipe)
                self.processes.append(process)
        ready = [self.receive(rank, SECONDS) for rank in range(self.size)]
        assert all(worked for worked, _ in ready), ready

    def close(self) -> None:
        """Kill the processes: gloo's threads may abort one that ends while another still speaks to it."""
        for process in self.processes:
            process.kill()
            process.join()
        self.processes, self.pipes = [], []


def _serve(pipe, meeting: str, rank: int, size: int) -> None:
    """Join the group, then call what arrives until nothing more does."""
    if sys.platform == "linux":  # end with the parent, if that is killed: a rank may wait for another for ever
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if DEVICE == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if DEVICE == "cuda" else "gloo",
        init_method=Path(meeting).as_uri(),
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=SECONDS),
    )
    pipe.send((True, None))
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        torch.manual_seed(0)
        try:
            pipe.send((True, function(*args)))
        except BaseException:
            pipe.send((False, f"on rank {rank}:\n{traceback.format_exc()}"))
