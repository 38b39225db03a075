"""Our functions, and models that use them, go wherever torch's go: into pickles, copies and other processes."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import multiprocessing, nn
from torch.autograd import Function
from torch.utils.data import DataLoader, Dataset

import customops
from customops.ops import binary, reductions, unary

from .cases import CALLS, ROWS
from .compare import assert_equal, gradients
from .conftest import DEVICE, KERNELS

SECONDS = 120  # after which a child hangs
OPERATORS = [
    value
    for module in (unary, binary, reductions)
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, Function) and value.__module__ == module.__name__
]
forks = pytest.mark.skipif(DEVICE != "cpu", reason="a forked process cannot use CUDA")


class Model(nn.Module):
    """A layer told which functions to use, and a weight to train."""

    def __init__(self, library):
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, 4, device=DEVICE))
        self.activation, self.times, self.average = library.sigmoid, library.mul, library.mean

    def forward(self, x):
        return self.average(self.activation(self.times(x, self.gain)))

    def step(self, x):
        """Go down the gradient, in place."""
        (g,) = torch.autograd.grad(self(x), self.gain)
        with torch.no_grad():
            self.gain -= g


class Gradients(Dataset):
    """A data set with the gradient of each operator's last call, taken in the process that asks for the element."""

    def __init__(self, library):
        self.library = library

    def __len__(self):
        return len(ROWS)

    def __getitem__(self, i):
        row, call = ROWS[i], ROWS[i].calls[-1]
        xs = [row.draw((2, 3, 2, 2), seed=i) for i in range(call.arity)]
        return gradients(lambda *xs: call.function(self.library, *xs), xs)[0]

    def collate(self, grads):
        return self.library.mean(self.library.add(torch.stack(grads), 1.5), -1)


@pytest.mark.parametrize(
    "value", [*map(customops.__dict__.get, customops.__all__), *OPERATORS], ids=lambda v: v.__name__
)
def test_functions_and_operators_are_pickled_and_copied_as_themselves(value):
    for made in (pickle.loads(pickle.dumps(value)), copy.copy(value), copy.deepcopy(value)):
        assert made is value


def _saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"copy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model)), "file": _saved}


@pytest.mark.parametrize("how", COPIES)
def test_copies_of_a_model_train_like_torchs_and_apart_from_it(how, device):
    x = torch.rand(3, 4, device=device)
    models = [Model(customops), Model(torch)]
    copies = [COPIES[how](model) for model in models]
    for model in copies:
        model.step(x)
    assert_equal(copies[0].gain, copies[1].gain)
    assert torch.equal(models[0].gain, models[1].gain)
    assert not torch.equal(models[0].gain, copies[0].gain)


def _check_all_and_train(models, x):
    for row, call in CALLS[:: 4 if KERNELS else 1]:
        xs = [row.draw((2, 3, 2, 2), seed=i, device=DEVICE) for i in range(call.arity)]
        pairs = [gradients(lambda *xs, lib=lib: call.function(lib, *xs), xs) for lib in (customops, torch)]  # noqa: B023 - used at once
        for got, want in zip(*pairs, strict=True):
            assert_equal(got, want)
    for model in models:
        model.step(x)


@pytest.mark.sample(kernels="")
@pytest.mark.parametrize("method", [pytest.param("fork", marks=forks), "spawn"])
def test_child_processes_compute_the_same_and_train_a_shared_model(method, device):
    """They do so after a backward pass in the parent, too."""
    x, models = torch.rand(3, 4, device=device), [Model(customops).share_memory(), Model(torch).share_memory()]
    _check_all_and_train(models, x)
    before = models[0].gain.detach().clone()
    context = multiprocessing.get_context(method)
    child = context.Process(target=_check_all_and_train, args=(models, x), daemon=True)
    child.start()
    child.join(SECONDS)
    child.kill()
    assert child.exitcode == 0
    assert not torch.equal(models[0].gain, before)
    assert_equal(models[0].gain, models[1].gain)


@forks
def test_workers_of_a_data_loader_give_what_torchs_do():
    def batches(library, **options):
        data = Gradients(library)
        return list(DataLoader(data, batch_size=4, collate_fn=data.collate, **options))

    got = batches(customops, num_workers=2, timeout=SECONDS, multiprocessing_context="fork")
    for mine, theirs in zip(got, batches(torch), strict=True):
        assert_equal(mine, theirs)
