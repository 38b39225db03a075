"""``apply`` and ``restore``: which modules of a model are taken, that they compute what they did, and what stays."""

from __future__ import annotations

import copy
import json
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import customops
from customops.models import check

from .compare import assert_as_near, assert_equal, cotangent, record_launches
from .conftest import KERNELS, MODE, NO_KERNEL
from .marks import formulas_only


class RMSNorm(nn.Module):
    """The norm of many models."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, hidden_states):
        """Normalize in float32."""
        dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(variance + 1e-6)).to(dtype)


class NewGELU(nn.Module):
    """An activation without parameters."""

    def forward(self, x):
        """Compute it as it is written for GPT-2."""
        return 0.5 * x * (1.0 + torch.tanh(0.7978845608 * (x + 0.044715 * torch.pow(x, 3.0))))


class Modulate(nn.Module):
    """A module of two arguments, the second with one dimension less."""

    def forward(self, x, *, shift):
        """Scale and shift."""
        return x * (1 + shift.unsqueeze(1)) + shift.unsqueeze(1)


class Branches(nn.Module):
    """A module that can be fused for one dtype."""

    def forward(self, x):
        """Add up along rows in float64."""
        return torch.cumsum(x, -1) if x.dtype == torch.float64 else x * torch.sigmoid(1.702 * x)


class Model(nn.Module):
    """A model of all of them, with a norm that is shared."""

    def __init__(self, width=8):
        super().__init__()
        self.lin = nn.Linear(width, width)
        self.norms = nn.ModuleList([RMSNorm(width), RMSNorm(width)])
        self.norms.append(self.norms[0])
        self.act, self.modulate, self.silu = NewGELU(), Modulate(), nn.SiLU()
        self.batch, self.drop = nn.BatchNorm1d(width), nn.Dropout(0.5)

    def forward(self, x):
        """Use each."""
        for norm in self.norms:
            x = self.act(self.lin(norm(x)))
        x = self.modulate(x, shift=x.mean(1))
        return self.drop(self.silu(self.batch(x.transpose(1, 2))))


class Weighted(RMSNorm):
    """A norm that computes in the dtype of its input, but for the weight."""

    def forward(self, x):
        """Normalize."""
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Running(RMSNorm):
    """A module that keeps statistics while it trains, which cannot be fused, and counts its calls."""

    def __init__(self, width):
        super().__init__(width)
        self.register_buffer("scale", torch.ones(width))
        self.calls = 0

    def forward(self, x):
        """Write to the buffer twice, the second time what is computed."""
        self.calls += 1
        if self.training:
            self.scale.mul_(0.9).add_(0.1 * x.detach().abs().mean((0, 1)))
        return super().forward(x) / self.scale


class Keeps(RMSNorm):
    """A module that keeps what it computed."""

    def __init__(self, width):
        super().__init__(width)
        self.kept = []

    def forward(self, x):
        """Keep the norm."""
        z = super().forward(x)
        self.kept.append(z)
        return z * 2


class Demanding(RMSNorm):
    """A class that no other can be derived from as fuse does it."""

    def __init_subclass__(cls, *, tag):
        """Ask for a tag."""


class Asking(RMSNorm):
    """A module that computes something else where its class is another."""

    def forward(self, x):
        """Normalize, if it is itself."""
        return super().forward(x) * (1 if type(self) is Asking else 2)


class Reduced(RMSNorm):
    """A module that says itself how it is copied."""

    def __reduce__(self):
        return type(self), (len(self.weight),), self.__dict__


TAKEN = ["norms.0", "norms.1", "act", "modulate"]


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


@pytest.fixture
def x():
    return torch.randn(2, 3, 8)


def results(model, x):
    """Return a model's value and gradients, the same random numbers each time."""
    x = x.detach().clone().requires_grad_()
    torch.manual_seed(1)
    z = model(x)
    return [z, *torch.autograd.grad(z, [x, *model.parameters()], cotangent(z), allow_unused=True)]


def assert_alike(got, want):
    for mine, theirs in zip(got, want, strict=True):
        assert_equal(mine, theirs)


@pytest.mark.sample(compiled="all")
def test_values_and_gradients_of_a_model_are_torchs(model, x):
    plain = copy.deepcopy(model)
    report = customops.apply(model, x)
    assert [taken.name for taken in report.taken] == TAKEN
    assert all(taken.difference < 1e-5 for taken in report.taken)
    assert_alike(results(model, x), results(plain, x))


@pytest.mark.skipif(not KERNELS, reason=NO_KERNEL)
def test_a_norm_is_one_kernel_forward(x, monkeypatch):
    norm = RMSNorm(8)
    customops.apply(norm)
    launched = record_launches(monkeypatch)
    norm(x)
    assert len(launched) == 1


def test_without_an_example_inputs_are_drawn_by_parameters(model):
    report = customops.apply(model)
    assert [taken.name for taken in report.taken] == TAKEN[:3]
    why = {left.name: left.reason for left in report.left}
    assert why["lin"] == "torch.nn.functional.linear cannot be traced, as it is a matrix product"
    assert why["silu"] == "torch computes it by one kernel"
    assert why["modulate"] == "no inputs are known that it takes: give an example"
    assert why["drop"].endswith("as it takes random numbers")


def test_what_is_selected_is_taken(model, x):
    assert [t.name for t in customops.apply(model, x, only=["norms.*", nn.SiLU], skip="norms.1").taken] == [
        "norms.0",
        "silu",
    ]
    assert customops.restore(model) == 2
    assert [t.name for t in customops.apply(model, x, skip=(RMSNorm, "Modulate")).taken] == ["act"]


def test_a_model_is_itself_and_restored(model, x):
    before = {name: type(module) for name, module in model.named_modules()}
    text, names, identities = repr(model), list(model.state_dict()), [*map(id, model.parameters())]
    calls = []
    model.norms[0].register_forward_hook(lambda module, args, z: calls.append(type(z)))
    model.eval()
    customops.apply(model, x)
    calls.clear()
    assert (repr(model), list(model.state_dict()), [*map(id, model.parameters())]) == (text, names, identities)
    assert not any(module.training for module in model.modules())
    assert model.norms[0] is model.norms[2]
    assert isinstance(model.norms[0], RMSNorm)
    model(x)
    assert calls == [torch.Tensor] * 2
    assert customops.apply(model, x).taken == ()
    assert customops.restore(model) == len(TAKEN)
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert customops.restore(model) == 0


def test_a_module_that_a_user_fused_stays_fused(x):
    model = nn.Sequential(customops.fuse(RMSNorm(8)), RMSNorm(8))
    report = customops.apply(model)
    assert [t.name for t in report.taken] == ["1"]
    assert report.left[0].reason == "it is fused already"
    assert type(model[0]) is not type(model[1])
    customops.restore(model)
    assert (type(model[0]) is RMSNorm, type(model[1]) is RMSNorm) == (False, True)


def test_copies_and_pickles_are_taken_and_can_be_restored(model, x):
    customops.apply(model, x)
    want = results(model, x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.norms[0] is other.norms[2]
        assert_alike(results(other, x), want)
        assert customops.restore(other) == len(TAKEN)
        assert_alike(results(other, x), want)


def test_an_example_leaves_buffers_and_random_numbers(model, x):
    before = copy.deepcopy(dict(model.named_buffers()))
    torch.manual_seed(3)
    want = torch.rand(1)
    torch.manual_seed(3)
    customops.apply(model, x)
    assert_equal(torch.rand(1), want)
    assert before.keys() == dict(model.named_buffers()).keys()
    for name, buffer in model.named_buffers():
        assert_equal(buffer, before[name])
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("kind", ["value", "gradient"])
def test_a_module_that_differs_is_left(kind, monkeypatch):
    at_once = check._at_once

    def off(*args):
        z = at_once(*args)
        return z * 1.0001 if kind == "value" else z + (1e-3 * (z - z.detach()))

    monkeypatch.setattr(check, "_at_once", off)
    norm = RMSNorm(8)
    report = customops.apply(norm)
    assert type(norm) is RMSNorm
    assert "differ from torch's by" in report.left[0].reason


def test_a_call_that_cannot_be_fused_is_torchs_from_then_on(x):
    module = Branches()
    assert customops.apply(module).taken
    assert_equal(module(x), x * torch.sigmoid(1.702 * x))
    with pytest.warns(UserWarning, match=r"Branches is torch's again: .*cumsum"):
        z = module(x.double())
    assert_equal(z, x.double().cumsum(-1))
    assert type(module) is Branches
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(x.double())


def test_a_call_that_cannot_be_fused_leaves_no_trace_but_torchs(x):
    module = Running(8).eval()
    plain = copy.deepcopy(module)
    assert customops.apply(module, x).taken
    assert module.calls == 0
    assert_equal(module(x), plain(x))
    with pytest.warns(UserWarning, match="Running is torch's again"):
        z = module.train()(x)
    assert_equal(z, plain.train()(x))
    assert_equal(module.scale, plain.scale)
    assert (type(module), module.calls) == (Running, 2)


def test_a_module_that_asks_for_its_class_is_left(x):
    module = Asking(8)
    (left,) = customops.apply(module, x).left
    assert left.reason.startswith("value or gradient differ from torch's by")
    assert type(module) is Asking


def test_a_module_that_keeps_what_it_computes_is_left(x):
    module = Keeps(8)
    (left,) = customops.apply(module, x).left
    assert left.reason.startswith("it keeps a value that it computes")
    assert module.kept == []


def test_what_one_module_raises_leaves_the_others_to_be_taken(x):
    with torch.inference_mode():
        raises = RMSNorm(8)  # whose parameters autograd does not save
    model = nn.Sequential(Demanding(8), raises, torch.fx.symbolic_trace(NewGELU()), RMSNorm(8))
    report = customops.apply(model, x)
    assert [t.name for t in report.taken] == ["3"]
    first, second, third = (left.reason for left in report.left)
    assert first.startswith("no class can be derived from its own: ")
    assert second.startswith("its call with gradients raises RuntimeError: Inference tensors")
    assert third.startswith("its `forward` is generated")


def test_half_inputs_of_float_parameters_are_compared_as_half_types_are():
    torch.manual_seed(1)
    report = customops.apply(Weighted(8), torch.randn(2, 3, 8, dtype=torch.bfloat16))
    assert [t.kind for t in report.taken] == ["Weighted"]
    assert report.taken[0].difference > check.TOLERANCE[torch.float32]


def test_a_module_that_says_how_it_is_copied_has_copies_of_its_own_class():
    module = Reduced(8)
    assert customops.apply(module).taken
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(other) is Reduced
        assert_equal(other.weight, module.weight)


def test_autocast_checkpoints_and_half_types(model, x):
    plain = copy.deepcopy(model.eval())
    wide = copy.deepcopy(plain).double()
    exact = results_of(wide, wide, x.double())
    customops.apply(model, x)
    for use in (torch.autocast("cpu", torch.bfloat16), lambda m: lambda x: checkpoint(m, x, use_reentrant=False)):
        assert_as_near(results_of(use(model), model, x), results_of(use(plain), plain, x), exact)


def results_of(call, model, x):
    x = x.detach().clone().requires_grad_()
    torch.manual_seed(1)
    z = call(x)
    return [z, *torch.autograd.grad(z, [x, *model.parameters()], cotangent(z))]


@formulas_only
def test_a_compiler_sees_torchs_functions(x):
    model = nn.Sequential(RMSNorm(8), NewGELU())
    want = results(model, x)
    assert len(customops.apply(model).taken) == 2
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_alike(results(compiled, x), want)


@pytest.mark.skipif(MODE != "formulas", reason="the interpreter's functions do not compile")
def test_the_report_has_launches_before_and_after(model, x):
    report = customops.apply(model, x, only=RMSNorm)
    head, row, *left = str(report).splitlines()
    assert " ".join(head.split()) == "modules class became launches and bytes on cuda:90 torch's difference"
    assert row.startswith("norms.0 and 1 more  RMSNorm  fused   1+")
    assert left == []
    written = json.loads(report.to_json())
    assert [each["module"] for each in written["taken"]] == ["norms.0", "norms.1"]
    before, after = (written["taken"][0][key] for key in ("before", "after"))
    assert after["launches"][0] == 1 < before["launches"][0]
    assert sum(after["bytes_moved"]) < sum(before["bytes_moved"])
    assert "left: lin, Linear: " in str(customops.apply(model, x))
