"""Processes train like one; each check of the command is seen to fail, and so is the command where a process fails."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from functools import partial

import distributed_digits as demo
import lockstep as choice
import pytest
import torch
import torch.distributed as dist

import customops

from .conftest import DEVICE, INTERPRETED
from .test_demo import BACKEND, TINY, Identity, broken

ENGINES = [engine.title for engine in demo.ENGINES]
TESTED = 16  # digits: to test on all of them takes the interpreter ten seconds
pytestmark = pytest.mark.filterwarnings("ignore:Unable to enable fault handler")  # pytest has replaced stderr
needs_gpus = pytest.mark.skipif(DEVICE == "cuda" and torch.cuda.device_count() < 2, reason="needs 2 GPUs, for NCCL")
each_engine = pytest.mark.parametrize("engine", demo.ENGINES, ids=ENGINES)


def _is_last():
    return dist.get_rank() == dist.get_world_size() - 1


class OffOnLast(Identity):
    """A gradient that is 0.1 % off on one process."""

    @staticmethod
    def backward(ctx, g):
        """Scale g everywhere, as DTensors want the same operators on each process."""
        return g * (1.001 if _is_last() else 1)


class OffAfterwards(demo.DDP):
    """Gradients that are 0.1 % off as one process sees them."""

    def gradients(self):
        """Scale the gradients on the last process."""
        return [g * (1.001 if _is_last() else 1) for g in super().gradients()]


def _raise():
    raise ValueError("of its own")


FAULTS = {"raises": _raise, "dies": partial(os._exit, 3), "hangs": partial(time.sleep, 600)}


def _reason(engine, name="exp", spoil=torch.clone):
    """Return why training with an operator whose results are spoilt fails."""
    mesh = demo.init_device_mesh(DEVICE, (dist.get_world_size(),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo.Digits, "tested", TESTED)
        report = demo.run_engine(engine, broken(name, spoil), TINY, mesh)
    return demo.failure(demo.Digits, report, TINY.floor)


def _misplaced():
    """Return the parameters whose gradients tensor parallelism leaves with other placements than their own."""
    mesh = demo.init_device_mesh(DEVICE, (dist.get_world_size(),))
    network = demo.Digits(customops, TINY.width, DEVICE)
    batch = network.draw(TINY.batch)
    demo.TensorParallel(mesh, network).differentiate(batch)
    return [name for name, p in network.named_parameters() if p.grad.placements != p.placements]


def _rows():
    """Return the rows that this process takes of a batch of six."""
    mesh = demo.init_device_mesh(DEVICE, (dist.get_world_size(),))
    return demo.DDP(mesh, demo.Digits(torch, 1, DEVICE)).local_batch(torch.arange(6)).tolist()


def _with_fault(how):
    """Run the command with an operator that fails on the last process."""

    def fail(z):
        if _is_last():
            FAULTS[how]()
        return z

    return demo.run(BACKEND, TINY, broken("exp", fail), seconds=4 if how == "hangs" else demo.SECONDS)


def _torchrun(*arguments):
    """Run a command by torchrun on two processes, within a time that a hanging process would exceed."""
    started = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(started, env=environment, capture_output=True, text=True, timeout=110, check=False)


@pytest.fixture
def alone(monkeypatch):
    """Let this process be the only one of a group that torchrun started."""
    monkeypatch.setattr(demo.Digits, "tested", TESTED)
    names = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": 0}
    for name, value in (names | {"MASTER_ADDR": "localhost", "TORCHELASTIC_RUN_ID": "none"}).items():
        monkeypatch.setenv(name, str(value))
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def _main(monkeypatch):
    """Run the example as its command does, without arguments."""
    monkeypatch.setattr(sys, "argv", ["distributed_digits.py"])
    return demo.main()


@pytest.mark.sample(kernels="")  # test_distributed_kernels.py has engines by kernels
@each_engine
def test_engine_agrees_with_one_process(engine, two):
    assert two(_reason, engine) == [None, None]


@pytest.mark.sample(formulas="engine, name", kernels="")
@pytest.mark.parametrize("name", demo.OPERATORS)
@each_engine
def test_gradient_off_by_a_thousandth_on_one_process_fails(engine, name, two):
    for reason in two(_reason, engine, name, OffOnLast.apply):
        assert reason.startswith(("gradient differs by", "loss differs by"))


@pytest.mark.sample(kernels="")
def test_difference_that_one_process_sees_fails_on_all(two):
    first, last = two(_reason, OffAfterwards)
    assert first == last
    assert first.startswith("gradient differs by 0.001 ")


@pytest.mark.sample(kernels="")
@each_engine
def test_operator_without_gradient_fails(engine, two):
    assert two(_reason, engine, "relu", torch.detach) == ["no gradient flows through relu"] * 2


def test_tensor_parallel_gradients_are_where_the_parameters_are(two):
    assert two(_misplaced) == [[], []]


@pytest.mark.sample(kernels="")
def test_each_process_takes_its_rows(two):
    assert two(_rows) == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.sample(kernels="")
def test_run_of_one_process_prints_each_engine(alone, capsys):
    assert demo.run(BACKEND, TINY) == 0
    rows = [re.split(" {2,}", line) for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows if len(row) == 5] == ["engine", *ENGINES]


@pytest.mark.skipif(INTERPRETED, reason="what fails is the demo's own check, kernels or none")
def test_network_that_learned_nothing_fails(alone, capsys):
    assert demo.run(BACKEND, TINY._replace(floor=0.99)) == 1
    reasons = [line for line in capsys.readouterr().err.splitlines() if line.startswith("distributed: ")]
    assert [reason.split(": ")[1] for reason in reasons] == ENGINES
    assert all("test accuracy is" in reason for reason in reasons)


def test_run_without_torchrun_names_the_command(monkeypatch, capsys):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert _main(monkeypatch) == 2
    assert f"torchrun has to start it: {demo.COMMAND}" in capsys.readouterr().err


@pytest.mark.parametrize("rank", ["0", "1"])
def test_odd_number_of_processes_is_refused_by_each_of_them(rank, alone, monkeypatch, capsys):
    """The first one that ends makes torchrun end all."""
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", rank)
    assert _main(monkeypatch) == 2
    assert "3 processes cannot evenly split a batch of 64 and width 64" in capsys.readouterr().err


def test_half_of_torchruns_environment_is_not_torchrun(monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert _main(monkeypatch) == 2
    assert "torchrun has to start it" in capsys.readouterr().err


@pytest.mark.parametrize(("module", "package"), [("sklearn.datasets", "scikit-learn"), ("tqdm", "tqdm")])
def test_missing_package_is_named(module, package, alone, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    assert _main(monkeypatch) == 2
    assert f"pip install {package}" in capsys.readouterr().err


@pytest.mark.parametrize(("gpus", "device"), [(1, "cpu"), (2, "cuda")])
def test_two_processes_want_two_gpus(gpus, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(choice, "has_triton", lambda: True)
    monkeypatch.setattr(choice, "is_interpreted", lambda: False)
    assert choice.choose("auto", 2)[1] == device


@pytest.mark.sample(formulas="")
@needs_gpus
@pytest.mark.skipif(INTERPRETED, reason="a hundred steps take minutes in the interpreter")
def test_command_learns_on_two_processes_without_noise():
    run = _torchrun("examples/distributed_digits.py", "--backend", BACKEND)
    assert run.returncode == 0, run.stderr
    assert run.stdout.endswith("Each agrees with one process.\n")
    assert run.stdout.count("steps of") == 1
    assert {line.split(":")[0].strip() for line in run.stderr.splitlines() if line.strip()} == set(ENGINES)


@pytest.mark.sample(formulas="")  # it waits for processes to end
@needs_gpus
@pytest.mark.skipif(INTERPRETED, reason="what ends it is torchrun, kernels or none")
@pytest.mark.parametrize(
    ("how", "message"),
    [("raises", "ValueError: of its own"), ("dies", "exitcode  : 3"), ("hangs", "[Tt]im(ed|ing) out")],
)
def test_process_that_fails_ends_the_run(how, message):
    code = f"import sys; from tests.test_distributed_demo import _with_fault; sys.exit(_with_fault({how!r}))"
    run = _torchrun("--no-python", sys.executable, "-c", code)
    assert run.returncode == 1
    assert re.search(message, run.stderr)
    assert "Each agrees" not in run.stdout
