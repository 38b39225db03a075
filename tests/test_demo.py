"""The demo agrees, and each of its checks is seen to fail once."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import digits
import digits_fused
import lockstep as demo
import physics
import pytest
import torch
import wgan_gp

import customops

from .conftest import INTERPRETED, KERNELS

pytest.importorskip("sklearn", reason="its digits come from scikit-learn")
pytest.importorskip("tqdm", reason="trainings show their progress with it")
TRAININGS = {"digits": digits.Digits, "wgan-gp": wgan_gp.Wasserstein, "physics": physics.Physics}
BACKEND = "triton" if KERNELS else "torch"
TINY = demo.Schedule(steps=1 if KERNELS else 3, batch=8, width=8, floor=-99)


@pytest.fixture(autouse=True)
def _tested(monkeypatch):
    if INTERPRETED:
        monkeypatch.setattr(digits.Digits, "tested", 16)  # to test on all digits takes the interpreter ten seconds


class Identity(torch.autograd.Function):
    """z = x, with a fault in the gradient that a subclass adds."""

    @staticmethod
    def forward(ctx, x):
        """Copy x."""
        return x.clone()


class NoSecond(Identity):
    """A gradient that cannot be differentiated."""

    @staticmethod
    def backward(ctx, g):
        """Cut g off from its graph."""
        return g.detach()


class OffGradient(Identity):
    """A gradient that is 0.1 % off."""

    @staticmethod
    def backward(ctx, g):
        """Scale g."""
        return g * 1.001


def broken(name, spoil):
    """Return our operators, but with ``spoil`` applied to what operator ``name`` returns."""
    ours = {operator: getattr(customops, operator) for operator in demo.OPERATORS}
    return SimpleNamespace(**ours | {name: lambda *args, **kwargs: spoil(ours[name](*args, **kwargs))})


def test_trainings_agree_and_every_operator_is_counted(capsys):
    assert demo.run(digits.Digits, BACKEND, TINY) == 0
    words = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["sum", str(2 * TINY.steps)] in words
    assert {line[0] for line in words if line} >= set(demo.OPERATORS)


@pytest.mark.sample(formulas="once")
@pytest.mark.skipif(INTERPRETED, reason="hundreds of steps take ten minutes in the interpreter")
@pytest.mark.parametrize("training", TRAININGS)
def test_full_schedule_learns_in_higher_and_first_order(training, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["example", "--backend", BACKEND])
    assert demo.main(TRAININGS[training]) == 0
    assert "The two agree." in capsys.readouterr().out


@pytest.mark.sample(kernels="")
@pytest.mark.parametrize("training", ["wgan-gp", "physics"])
def test_trainings_of_higher_order_agree(training):
    assert demo.run(TRAININGS[training], BACKEND, TINY) == 0


@pytest.mark.skipif(INTERPRETED, reason="what fails is the demo's own check, kernels or none, and takes minutes")
@pytest.mark.parametrize(
    ("training", "name"), [("wgan-gp", "add"), ("wgan-gp", "exp"), ("physics", "add"), ("physics", "sigmoid")]
)
def test_second_derivative_dropped_fails_in_higher_order(training, name, capsys):
    library = broken(name, NoSecond.apply)
    assert demo.run(TRAININGS[training], BACKEND, TINY, library) == 1
    assert "differs by" in capsys.readouterr().err
    assert demo.run(digits.Digits, BACKEND, TINY, library) == 0


@pytest.mark.sample(kernels="")
@pytest.mark.parametrize("name", ["sigmoid"] if KERNELS else demo.OPERATORS)
def test_gradient_off_by_a_thousandth_fails(name, capsys):
    assert demo.run(digits.Digits, BACKEND, TINY, broken(name, OffGradient.apply)) == 1
    reason = capsys.readouterr().err.splitlines()[-1]
    assert reason.startswith(("they differ: gradient differs by", "they differ: loss differs by"))


@pytest.mark.sample(kernels="")
@pytest.mark.parametrize(
    ("name", "spoil", "reason"),
    [
        ("mean", lambda z: z + 1e-6, "loss differs by"),
        ("log", lambda z: z * torch.nan, "a loss is not finite"),
        ("relu", torch.detach, "no gradient flows through relu"),
    ],
)
def test_broken_operator_fails_for_a_reason(name, spoil, reason, capsys):
    assert demo.run(digits.Digits, BACKEND, TINY, broken(name, spoil)) == 1
    assert f"they differ: {reason}" in capsys.readouterr().err


@pytest.mark.sample(kernels="")
def test_network_that_learned_nothing_fails(capsys):
    assert demo.run(digits.Digits, BACKEND, TINY._replace(floor=0.99)) == 1
    assert "they differ: test accuracy is" in capsys.readouterr().err


@pytest.mark.parametrize(("module", "package"), [("sklearn.datasets", "scikit-learn"), ("tqdm", "tqdm")])
def test_missing_package_is_named(module, package, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["example"])
    monkeypatch.setitem(sys.modules, module, None)
    assert demo.main(digits.Digits) == 2
    assert f"pip install {package}" in capsys.readouterr().err


def test_triton_without_triton_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["example", "--backend", "triton"])
    monkeypatch.setattr(demo, "has_triton", lambda: False)
    assert demo.main(digits.Digits) == 2
    assert "triton is not installed: pip install triton" in capsys.readouterr().err


def test_triton_without_gpu_is_interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(demo, "has_triton", lambda: True)
    assert demo.choose("triton") == ("triton", "cpu", "Triton kernels in the interpreter", True)
    assert os.environ["TRITON_INTERPRET"] == "1"


def test_gpu_runs_kernels_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(demo, "has_triton", lambda: True)
    monkeypatch.setattr(demo, "is_interpreted", lambda: False)
    assert demo.choose("auto") == ("triton", "cuda", "Triton kernels on a GPU", False)
    assert demo.choose("torch")[:2] == ("torch", "cpu")


def test_fused_layers_learn_digits_as_composed_ones_do(capsys):
    assert digits_fused.main(width=32 if INTERPRETED else 96, steps=3) == 0
    assert "The losses agree" in capsys.readouterr().out


def test_fused_layers_that_learn_something_else_are_told(monkeypatch, capsys):
    wrong = lambda layer: lambda *tensors: layer(*tensors, customops) * 1.01
    monkeypatch.setattr(digits_fused, "fused", wrong)
    assert digits_fused.main(width=32, steps=3) == 1
    assert "The losses differ" in capsys.readouterr().out
