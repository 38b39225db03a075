"""``apply`` and ``restore``: which modules of a model are taken, that they compute what they did, and what stays."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import operator
import pickle
import random
import runpy
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


def fused(report) -> list[str]:
    """Return the modules whose whole forward is fused."""
    return [taken.name for taken in report.taken if taken.extent == "forward"]


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
    assert check.difference(got, want) < 1e-5


@pytest.mark.sample(compiled="all")
def test_values_and_gradients_of_a_model_are_torchs(model, x):
    plain = copy.deepcopy(model)
    report = customops.apply(model, x)
    assert fused(report) == TAKEN
    stretches = [(taken.name, taken.extent) for taken in report.taken if taken.extent != "forward"]
    assert stretches == [("", "NewGELU, RMSNorm")] * 2 + [("", "NewGELU, mean, Modulate")]
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
    assert fused(report) == TAKEN[:3]
    why = {left.name: left.reason for left in report.left}
    assert why["lin"] == "torch.nn.functional.linear cannot be traced, as it is a matrix product"
    assert why["silu"] == "torch computes it by one kernel"
    assert why["modulate"] == "no inputs are known that it takes: give an example"
    assert why["drop"].endswith("as it takes random numbers")


def test_what_is_selected_is_taken(model, x):
    assert fused(customops.apply(model, x, only=["norms.*", nn.SiLU], skip="norms.1")) == ["norms.0", "silu"]
    assert customops.restore(model) == 2
    assert fused(customops.apply(model, x, skip=(RMSNorm, "Mod*"))) == ["act"]


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
    assert customops.restore(model) == len(TAKEN) + 1
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert customops.restore(model) == 0


def test_a_module_that_a_user_fused_stays_fused(x):
    model = nn.Sequential(customops.fuse(RMSNorm(8)), RMSNorm(8))
    report = customops.apply(model)
    assert fused(report) == ["1"]
    assert {left.name: left.reason for left in report.left}["0"] == "it is fused already"
    assert type(model[0]) is not type(model[1])
    customops.restore(model)
    assert (type(model[0]) is RMSNorm, type(model[1]) is RMSNorm) == (False, True)


def test_copies_and_pickles_are_taken_and_can_be_restored(model, x):
    customops.apply(model, x)
    want = results(model, x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.norms[0] is other.norms[2]
        assert_alike(results(other, x), want)
        assert customops.restore(other) == len(TAKEN) + 1
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


class Counts(Branches):
    """A module that counts its calls, too."""

    calls = 0

    def forward(self, x):
        """Count, and compute it."""
        self.calls += 1
        return super().forward(x)


@pytest.mark.parametrize("by_name", [False, True])
def test_a_call_of_another_dtype_that_cannot_be_fused_is_counted_once(by_name, x):
    module = Counts()
    assert customops.apply(module, x).taken
    call = (lambda x: module(x=x)) if by_name else module
    call(x)
    with pytest.warns(UserWarning, match="Counts is torch's again"):
        call(x.double())
    assert module.calls == 2


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
    assert [t.class_name for t in report.taken] == ["Weighted"]
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
    assert fused(customops.apply(model)) == ["0", "1"]
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_alike(results(compiled, x), want)


@pytest.mark.skipif(MODE != "formulas", reason="the interpreter's functions do not compile")
def test_the_report_has_launches_before_and_after(model, x):
    report = customops.apply(model, x, only=RMSNorm)
    head, row, total, *left = str(report).splitlines()
    assert " ".join(head.split()) == "modules class fused launches and bytes on cuda:90 torch's difference"
    assert row.startswith("norms.0 and 1 more  RMSNorm  forward  1+")
    assert total.startswith("total: 2+")
    assert left == []
    written = json.loads(report.to_json())
    assert [each["module"] for each in written["taken"]] == ["norms.0", "norms.1"]
    before, after = (written["taken"][0][key] for key in ("before", "after"))
    assert after["launches"][0] == 1 < before["launches"][0]
    assert sum(after["bytes_moved"]) < sum(before["bytes_moved"])
    assert "left: lin, Linear: " in str(customops.apply(model, x))


class Block(nn.Module):
    """A layer with stretches: a residual sum and a norm, a gate, a second residual sum that is left."""

    scale = 0.5

    def __init__(self, width=8):
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(width, width) for _ in range(3))
        self.norm, self.act, self.drop = RMSNorm(width), nn.SiLU(), nn.Dropout(0.5)

    def forward(self, x, residual=None, training=False, **options):
        """Compute it, without the residual if there is none."""
        x = self.gate(x)
        if residual is not None:
            x = self.drop(x) + residual * self.scale
        y = self.norm(x)
        y = self.down(self.act(self.gate(y)) * self.up(y))
        return (x + y, y) if options.get("both") else x + y


class Blocks(nn.Module):
    """Two layers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        """Apply one after the other."""
        y, _ = self.layers[0](x, both=True)
        return self.layers[1](y, residual=x)


@pytest.fixture
def blocks_model() -> Blocks:
    torch.manual_seed(0)
    return Blocks()


@pytest.mark.sample(compiled="all")
def test_stretches_between_matrix_products_are_fused(blocks_model, x):
    plain = copy.deepcopy(blocks_model)
    report = customops.apply(blocks_model, x)
    assert [(t.name, t.extent) for t in report.taken if t.extent != "forward"] == [
        ("layers.0", "SiLU, mul"),
        ("layers.1", "add, RMSNorm"),
        ("layers.1", "SiLU, mul"),
    ]
    assert_alike(results(blocks_model, x), results(plain, x))
    assert_alike(results(blocks_model.eval(), x), results(plain.eval(), x))


@pytest.mark.skipif(not KERNELS, reason=NO_KERNEL)
def test_a_layer_with_stretches_is_one_kernel_for_each(blocks_model, x, monkeypatch):
    customops.apply(blocks_model, x)
    launched = record_launches(monkeypatch)
    blocks_model(x)
    assert len(launched) == 1 + 2 + 1


def train_sharded(is_applied) -> list[float]:
    """Train two layers by FSDP2 on this process and others, and return the losses."""
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415 - the ranks need it

    torch.manual_seed(0)
    model = Blocks().eval()
    if is_applied:
        assert len(customops.apply(model, torch.randn(2, 3, 8)).taken) == 5
    for layer in model.layers:
        fully_shard(layer)
    fully_shard(model)
    optimizer, losses = torch.optim.SGD(model.parameters(), 0.1), []
    torch.manual_seed(torch.distributed.get_rank())
    x = torch.randn(2, 3, 8)
    for _ in range(5):
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@formulas_only
def test_two_processes_train_a_sharded_model_as_torch_does(two):
    got, want = two(train_sharded, True), two(train_sharded, False)
    torch.testing.assert_close(torch.tensor(got), torch.tensor(want))
    assert all(losses[-1] < losses[0] for losses in got)


def test_a_layer_that_is_selected_has_its_stretches(blocks_model, x):
    report = customops.apply(blocks_model, x, only="layers.0")
    assert [(t.name, t.extent) for t in report.taken] == [("layers.0", "SiLU, mul")]


class DropPath(nn.Module):
    """A module that returns its argument outside of training, without torch's dropout."""

    def forward(self, x):
        """Scale rows by random numbers."""
        return x * (torch.rand(x.shape[0], 1, 1) > 0.5) * 2 if self.training else x


class Scaled(nn.Module):
    """A layer whose result is scaled, passed through another module, and added."""

    def __init__(self, between):
        super().__init__()
        self.lin, self.between, self.scale = nn.Linear(8, 8), between, nn.Parameter(torch.rand(8))
        self.norm = RMSNorm(8)

    def forward(self, x):
        """Compute it."""
        return self.norm(x + self.between(self.lin(x) * self.scale))


def stretches_of(report) -> list[str]:
    return [taken.extent for taken in report.taken if taken.extent != "forward"]


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize("between", [nn.Identity(), nn.Dropout(0.0)], ids=str)
def test_what_returns_its_argument_is_inside_a_stretch(between, x):
    model = Scaled(between)
    plain = copy.deepcopy(model)
    report = customops.apply(model, x)
    assert stretches_of(report) == ["mul, add, RMSNorm"]
    assert ("between", "it returns its argument") in [(left.name, left.reason) for left in report.left]
    assert_alike(results(model, x), results(plain, x))
    assert_alike(results(model.eval(), x), results(plain.eval(), x))


@pytest.mark.parametrize(
    ("between", "in_training"),
    [(nn.Dropout(0.5), "add, RMSNorm"), (DropPath(), "mul, DropPath, add, RMSNorm")],
    ids=str,
)
def test_what_returns_its_argument_in_one_mode_is_inside_a_stretch_for_that_mode(between, in_training, x):
    model = Scaled(between).eval()
    plain = copy.deepcopy(model)
    assert stretches_of(customops.apply(model, x)) == ["mul, add, RMSNorm"]
    ((of_mode, other),) = vars(model)["_customops_programs"].values()
    assert (of_mode.is_of_mode, other.is_of_mode) == (True, False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for training in (False, True, False):
            assert of_mode.is_for(model.train(training)) is not training
            assert other.is_for(model)
            assert_alike(results(model, x), results(plain.train(training), x))
    assert stretches_of(customops.apply(plain.train(), x)) == [in_training]


def test_a_module_that_writes_over_its_argument_and_returns_it_is_not_taken_for_one_that_does_nothing(x):
    model = Scaled(nn.ReLU(inplace=True))
    plain = copy.deepcopy(model)
    assert stretches_of(customops.apply(model, x)) == ["add, RMSNorm"]
    assert_alike(results(model, x), results(plain, x))


class Sum(Scaled):
    """A layer that computes a sum, and passes it through a module."""

    def forward(self, x):
        """Compute it."""
        return self.between(x + self.between(self.lin(x)))


def test_a_sum_that_is_only_passed_on_is_no_stretch(x):
    assert stretches_of(customops.apply(Sum(nn.Identity()), x)) == []


class Opaque:
    """What a module may return that is not looked into."""

    def __init__(self, value):
        self.value = value


class Returns(nn.Module):
    """A layer with a stretch that returns such a thing."""

    def __init__(self, kind):
        super().__init__()
        self.gate, self.up, self.kind = nn.Linear(8, 8), nn.Linear(8, 8), kind

    def forward(self, x):
        """Compute it."""
        return self.kind(torch.sigmoid(self.gate(x)) * self.up(x))


@pytest.mark.parametrize("kind", [Opaque, dataclasses.make_dataclass("Output", ["value"])])
def test_what_cannot_be_compared_is_left(kind, x):
    model = Returns(kind)
    report = customops.apply(model, x)
    assert [taken.extent for taken in report.taken] == ([] if kind is Opaque else ["sigmoid, mul"])
    assert (type(model) is Returns) is (kind is Opaque)
    assert_equal(model(x).value, torch.sigmoid(model.gate(x)) * model.up(x))


def test_what_hooks_make_of_arguments_is_tried(x):
    model = nn.Sequential(RMSNorm(8))
    model[0].register_forward_pre_hook(lambda module, args: (args[0].to_dense(),))
    assert fused(customops.apply(model, x.to_sparse())) == ["0"]


def test_a_call_of_another_kind_is_as_it_was(blocks_model, x, monkeypatch):
    """Other arguments, attributes that were changed, hooks on a module in a stretch."""
    layer = blocks_model.layers[1]
    plain = copy.deepcopy(layer)
    customops.apply(blocks_model, x)
    runs = []
    ((program,),) = vars(layer)["_customops_programs"].values()
    key = next(iter(vars(layer)["_customops_programs"]))
    monkeypatch.setitem(
        vars(layer)["_customops_programs"], key, (program._replace(run=lambda *a: runs.append(1) or program.run(*a)),)
    )

    def assert_as_plain(taken, *args, **kwargs):
        runs.clear()
        torch.manual_seed(0)
        got = layer(*args, **kwargs)
        torch.manual_seed(0)
        want = plain(*args, **kwargs)
        assert_alike(got if isinstance(got, tuple) else [got], want if isinstance(want, tuple) else [want])
        assert bool(runs) is taken

    assert_as_plain(True, x, residual=x)
    assert_as_plain(False, x, x)
    assert_as_plain(False, x, residual=x, both=True)
    assert_as_plain(False, x, residual=x, both=False)
    layer.eval(), plain.eval()
    assert_as_plain(True, x, residual=x)
    layer.scale = plain.scale = 2.0
    assert_as_plain(False, x, residual=x)
    layer.scale = plain.scale = 0.5
    assert_as_plain(True, x, residual=x)
    seen = []
    handle = layer.norm.register_forward_hook(lambda module, args, z: seen.append(type(z)))
    assert_as_plain(False, x, residual=x)
    assert seen == [torch.Tensor]
    handle.remove()
    assert_as_plain(True, x, residual=x)
    seen.clear()
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, z: seen.append(type(z)))
    assert_as_plain(False, x, residual=x)
    assert {*seen} == {torch.Tensor}
    handle.remove()
    assert_as_plain(True, x, residual=x)


def test_a_model_with_stretches_is_copied_pickled_and_restored(blocks_model, x):
    want, text = results(blocks_model, x), repr(blocks_model)
    customops.apply(blocks_model, x)
    for other in (copy.deepcopy(blocks_model), pickle.loads(pickle.dumps(blocks_model))):
        assert_alike(results(other, x), want)
        assert repr(other) == text
        assert customops.restore(other) == 4
        assert_alike(results(other, x), want)
        assert {type(module) for module in other.modules()} == {
            Blocks,
            Block,
            nn.ModuleList,
            *map(type, Block().children()),
        }
        assert not any(name.startswith("_customops") for module in other.modules() for name in vars(module))


def rotate_half(x):
    """Rotate halves of rows."""
    x1, x2 = x.chunk(2, -1)
    return torch.cat((-x2, x1), -1)


def rotary(q, k, cos, scale=1.0):
    """Scale and rotate."""
    return (q * cos + rotate_half(q)) * scale, k * cos + rotate_half(k)


def decorated(function):
    """Decorate a method as libraries do."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        assert type(args[0]).forward is not function
        return function(*args, **kwargs)

    return call


class Attention(nn.Module):
    """A module that calls a function of its file, and that is not traced."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.config = nn.Linear(8, 8), nn.Linear(8, 8), ["a list"]

    @decorated
    def forward(self, x, *, scale=2.0):
        """Compute the scores."""
        q, k = rotary(self.q(x), self.k(x), x.detach(), scale)
        return q @ k.mT * len(self.config)


@pytest.mark.sample(compiled="all")
def test_functions_that_a_module_calls_are_fused(x):
    torch.manual_seed(0)
    model = nn.Sequential(Attention())
    plain, before, code = copy.deepcopy(model), rotary, Attention.forward
    report = customops.apply(model, x)
    assert [(t.name, t.extent) for t in report.taken] == [("0", "rotary")]
    assert rotary is before
    assert type(plain[0]).forward is code
    assert_alike(results(model, x), results(plain, x))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other[0]) is type(model[0])
        assert_alike(results(other, x), results(plain, x))
        assert customops.restore(other) == 1
        assert type(other[0]) is Attention
    assert_equal(model[0](x, scale=0.5), plain[0](x, scale=0.5))


@pytest.mark.skipif(not KERNELS, reason=NO_KERNEL)
def test_a_function_that_a_module_calls_is_one_kernel(x, monkeypatch):
    model = Attention()
    customops.apply(model, x)
    launched = record_launches(monkeypatch)
    model(x)
    assert len(launched) == 1


def reading(how) -> nn.Module:
    """Return a module with a stretch, if it did not do what is to be tried."""

    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin, self.counts = nn.Linear(8, 8), []

        def forward(self, x):
            y = self.lin(x)
            return torch.sigmoid(y) * y + how(self, y)

    return Reads()


HOWS = {
    "branches on a value": (lambda self, y: 1 if y.sum() > 0 else 2, "cannot be used as inputs to control flow"),
    "reads a list": (lambda self, y: len(self.counts), "it reads self.counts, which may change unseen"),
    "writes an attribute": (lambda self, y: setattr(self, "seen", 1) or 1, "it writes self.seen"),
    "asks for the mode of autograd": (lambda self, y: float(torch.is_grad_enabled()), "asks whether gradients are"),
    "draws a number": (lambda self, y: 1 if torch.rand(()) > 2 else 2, "it draws random numbers"),
    "draws a number by Python": (lambda self, y: 1 if random.random() > 2 else 2, "it draws random numbers"),
    "writes in place": (lambda self, y: operator.iadd(y * 1, 1), "it writes to a tensor in place"),
    "asks for a class": (lambda self, y: float(isinstance(y, tuple)), "it asks for the class of what it computed"),
}


@pytest.mark.parametrize("how", HOWS)
def test_what_is_not_traced_is_left_and_says_why(how, x):
    function, reason = HOWS[how]
    model = reading(function)
    cls = type(model)
    want = results(model, x)
    (left,) = [left for left in customops.apply(model, x).left if not left.name]
    assert reason in left.reason
    assert type(model) is cls
    assert_alike(results(model, x), want)


@formulas_only
def test_the_example_of_a_training_agrees(capsys):
    example = runpy.run_path("examples/finetune.py")
    assert example["main"](["--steps", "3", "--rows", "2", "--length", "32"]) == 0
    assert capsys.readouterr().out.startswith("taken: 9 modules and stretches")


FACTOR, FACTORS = 2.0, [2.0]


class ReadsList(nn.Module):
    """A module with a stretch, but for a list of its file."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(8, 8)

    def forward(self, x):
        """Compute it."""
        y = self.lin(x)
        return torch.sigmoid(y) * y * FACTORS[0]


def test_a_forward_that_reads_a_list_of_its_file_is_left(x):
    (left,) = [left for left in customops.apply(ReadsList(), x).left if not left.name]
    assert "it reads the global FACTORS, which may change unseen" in left.reason


class ReadsGlobal(nn.Module):
    """A module with a stretch, and a number of its file."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(8, 8)

    def forward(self, x):
        """Compute it."""
        y = self.lin(x)
        return torch.sigmoid(y) * y * FACTOR


def test_a_stretch_is_for_the_global_numbers_that_it_was_traced_with(x, monkeypatch):
    model = ReadsGlobal()
    plain = copy.deepcopy(model)
    assert customops.apply(model, x).taken
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    assert_alike(results(model, x), results(plain, x))


def test_patterns_may_be_an_iterator(model, x):
    assert fused(customops.apply(model, x, only=iter(["norms.0"]))) == ["norms.0"]


@pytest.mark.parametrize("argument", ["only", "skip"])
def test_a_pattern_that_names_no_module_is_refused(model, argument):
    with pytest.raises(ValueError, match=f"^apply: {argument}: expected .*, got 'nrom', which is that of none"):
        customops.apply(model, **{argument: ["*", "nrom"]})
    assert customops.restore(model) == 0


def test_a_model_is_taken_inside_of_a_block_that_takes_calls(model, x):
    outside = customops.apply(copy.deepcopy(model), x)
    with customops.enabled():
        inside = customops.apply(model, x)
    assert [taken.name for taken in inside.taken] == [taken.name for taken in outside.taken]


def test_rich_draws_the_report_as_a_table(model, x):
    console = pytest.importorskip("rich.console").Console(width=200, record=True)
    report = customops.apply(model, x)
    console.print(report)
    drawn = console.export_text()
    assert "┃ modules" in drawn
    for line in report._lines_below():
        assert line[:60] in drawn.replace("\n", " ")
