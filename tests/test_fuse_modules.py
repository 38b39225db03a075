"""What a fused function reads that is no argument: parameters, buffers, tensors around it; and modules as a whole."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import random
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrizations, parametrize
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import customops
from customops import fuse
from customops.fusion import trace

from .compare import STRICT, assert_as_by_formula, assert_equal, cotangent, outcome, record_launches
from .conftest import DEVICE, KERNELS, NO_KERNEL
from .test_fuse import draw
from .test_fuse_states import PassDispatch, PassFunctions

kernels_only = pytest.mark.skipif(not KERNELS, reason=NO_KERNEL)


def parameter(*shape) -> nn.Parameter:
    return nn.Parameter(torch.rand(shape, dtype=torch.float64) + 0.5)


class Norm(nn.Module):
    """An RMSNorm with a bias."""

    def __init__(self, columns=4):
        super().__init__()
        self.weight, self.bias = parameter(columns), parameter(columns)
        self.eps = 1e-6

    def forward(self, x):
        """Normalize the rows of x."""
        return x * customops.rsqrt(customops.mean(x * x, -1, keepdim=True) + self.eps) * self.weight + self.bias


class Kept(nn.Module):
    """A module with tensors in every place that Python has for them."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.tensor(1.5, dtype=torch.float64))
        self.listed = nn.ParameterList([parameter(4), parameter(3, 1)])
        self.config = {"shift": torch.rand(1, 4, dtype=torch.float64)}
        self.inner = Norm()

    def forward(self, x):
        """Read them, one of them twice and one as the left operand."""
        for weight in self.listed:
            x = x * weight + self.config["shift"]
        return self.scale * self.inner(x) / (1 + self.listed[0]), customops.sum(x, 0)


class Tied(nn.Module):
    """Two norms that share a weight, which is an output, too."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Norm(), Norm()
        self.second.weight = self.first.weight

    def forward(self, x):
        """Apply one after the other."""
        return self.second(self.first(x)) * self.first.weight


class OfParameters(nn.Module):
    """A module that computes with its parameters alone, by torch and by customops, before it meets x."""

    def __init__(self):
        super().__init__()
        self.weight, self.log = parameter(4), parameter(4)

    def forward(self, x):
        """Scale x, and shift it."""
        return x * (1 + self.weight) - customops.exp(self.log)


MODULES = [Norm, Kept, Tied, OfParameters]


def in_class(module: nn.Module) -> nn.Module:
    """Fuse ``forward`` of a class, as a decorator in its body does, and make ``module`` one of it."""
    cls = type(module)
    module.__class__ = type(cls.__name__, (cls,), {"forward": fuse(cls.forward)})
    return module


WAYS = {"in the class": in_class, "of the module": fuse}


def make(cls, device="cpu") -> nn.Module:
    torch.manual_seed(0)
    return cls().to(device)


def several(z) -> tuple:
    return z if isinstance(z, tuple | list) else (z,)


def results(module: Callable, x: Tensor, leaves, **options) -> list:
    """Return the values of a call, and the gradients of x and ``leaves`` that require one."""
    x = x.detach().requires_grad_()
    zs = several(module(x))
    taken = [x, *[p for p in leaves if p.requires_grad]]
    return [*zs, *torch.autograd.grad(zs, taken, [cotangent(z) for z in zs], allow_unused=True, **options)]


def assert_alike(got, want):
    for mine, theirs in zip(got, want, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert_equal(mine, theirs)


def assert_as_plain(fused: nn.Module, plain: nn.Module, x: Tensor):
    assert_alike(results(fused, x, fused.parameters()), results(plain, x, plain.parameters()))


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cls", MODULES)
def test_values_and_gradients_are_those_of_the_module(cls, way, device):
    plain, fused = make(cls, device), WAYS[way](make(cls, device))
    for shape in ((3, 4), (1, 4), (3, 4)):
        (x,) = draw([shape], device)
        assert_as_plain(fused, plain, x)


@pytest.mark.skipif(KERNELS or DEVICE != "cpu", reason="kernels compute fused calls, and blocks none")
@pytest.mark.parametrize("cls", MODULES)
def test_values_and_gradients_by_blocks_are_those_of_the_module(cls, blocks, walked, device):
    plain, fused = make(cls), fuse(make(cls))
    (x,) = draw([(3, 4)], device)
    want = results(plain, x, plain.parameters())
    blocks(2)
    for _ in range(2):
        assert_alike(results(fused, x, fused.parameters()), want)
    assert walked


@pytest.mark.parametrize("cls", MODULES)
def test_derivatives_of_both_orders_match_finite_differences(cls, device):
    fused = fuse(make(cls, device))
    names, leaves = zip(*fused.named_parameters(), strict=True)
    (x,) = draw([(3, 4)], device)
    call = lambda x, *leaves: torch.func.functional_call(fused, dict(zip(names, leaves, strict=True)), (x,))
    xs = [x.requires_grad_(), *[p.detach().clone().requires_grad_() for p in leaves]]
    if KERNELS:
        assert_as_by_formula(call, xs)
    else:
        assert gradcheck(call, xs, **STRICT)
        assert gradgradcheck(call, xs, **STRICT)


@kernels_only
@pytest.mark.sample(compiled="all")
def test_a_module_is_one_kernel_forward_and_one_backward_and_the_sum_of_its_parts(device, monkeypatch):
    launched, fused, (x,) = record_launches(monkeypatch), fuse(Norm(20).to(device)), draw([(40, 20)], device)
    z = fused(x.requires_grad_())
    forward = len(launched)
    z.sum().backward()
    assert (forward, len(launched) - forward) == (1, 2)


scale = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)


def by_scale(x):
    """Read a global tensor where only a caller is inspected."""
    return customops.exp(x) * scale


def test_tensors_around_a_function_are_read_at_every_call(device, monkeypatch):
    """So are those that functions read that it calls, whatever stands for a call like an earlier one."""
    x, closed = draw([(3, 4), (4,)], device)
    reads = [by_scale, lambda x: by_scale(x) + 1, lambda x: x * closed, lambda x, many=(closed, 2): x * many[0]]
    fused = [fuse(f) for f in reads]
    monkeypatch.setitem(globals(), "scale", scale.to(device))
    for _ in range(3):
        for mine, function in zip(fused, reads, strict=True):
            assert_equal(mine(x), function(x))
        monkeypatch.setitem(globals(), "scale", scale * 2)
        closed.mul_(2)
        for mine, function in zip(fused, reads, strict=True):
            assert_equal(mine(x), function(x))
        closed = closed + 1


def test_what_torch_makes_inside_is_made_at_every_call(device):
    (x,) = draw([(3, 4)], device)
    fused = fuse(lambda x: x + torch.rand(4, dtype=torch.float64, device=device))
    torch.manual_seed(1)
    got = [fused(x) for _ in range(3)]
    torch.manual_seed(1)
    for z in got:
        assert_equal(z, x + torch.rand(4, dtype=torch.float64, device=device))
    assert_equal(fuse(lambda x: x * torch.ones(x.shape[1:], device=x.device))(x), x)


def test_a_tensor_that_is_an_argument_too_is_one_input_and_one_met_twice(device):
    module, plain = fuse(make(Norm, device)), make(Norm, device)
    for m in (module, plain):
        m(m.weight).sum().backward()
    assert_equal(module.weight.grad, plain.weight.grad)
    (x,) = draw([(3, 4)], device)
    traced, tensors = type(module).forward.fused.trace([x], None, (module, x), {})
    assert [t is x or t is module.weight or t is module.bias for t in tensors] == [True] * 3
    assert (traced.arity, traced.lifted) == (3, 2)


def test_tensors_of_another_structure_are_other_traces(device, monkeypatch):
    grown, real = [], trace.Tracing._grow
    monkeypatch.setattr(trace.Tracing, "_grow", lambda *args: (grown.append(args[1]), real(*args))[1])
    module, (x,) = fuse(make(Norm, device)), draw([(3, 4)], device)
    plain, counts = make(Norm, device), []
    for weight in ((4,), (4,), (1, 4), (1,), (), (3, 1), (3, 4), (4,)):
        for dtype in (torch.float64, torch.float32):
            value = torch.rand(weight, device=device).to(dtype)
            module.weight, plain.weight = nn.Parameter(value), nn.Parameter(value.clone())
            assert_as_plain(module, plain, x)
            counts.append(len(grown))
    assert counts[3] == counts[1]
    assert counts[-1] == counts[-3]
    assert counts == sorted(counts)


class Branches(nn.Module):
    """A module that branches on the dtype and the dimensions of what it computes."""

    weight: Tensor

    def forward(self, x):
        """Scale the product by what it is."""
        z = x * self.weight
        return z * 2 if z.dtype == torch.float64 else z * 3 if z.dim() == 2 else z * 5


def test_a_function_branches_on_what_comes_of_a_tensor_that_was_lifted(device):
    fused, plain, (x,) = fuse(Branches()), Branches(), draw([(4,)], device, torch.float32)
    for shape in ((4,), (3, 4), (1, 4), (4,), ()):
        for dtype in (torch.float32, torch.float64, torch.float32):
            fused.weight = plain.weight = torch.rand(shape, device=device).to(dtype)
            assert_equal(fused(x), plain(x))


def test_a_failed_operator_leaves_no_input_in_another_trace(device):
    """A function may catch the error of an operator that met a tensor, and go on."""

    def function(x, bad, good):
        try:
            x = customops.amax(bad, 7)
        except IndexError:
            x = x * 2
        return x * good

    (x,), held = draw([(3, 4)], device), [torch.full((4,), 3.0, device=device), torch.full((4,), 5.0, device=device)]
    fused = fuse(lambda x, held: function(x, *held))
    assert_equal(fused(x, [customops.exp(held[0]), held[1]]), x * 10)
    assert_equal(fuse(lambda x, held: x * 2 * held[1])(x, held), x * 10)


def test_a_tensor_may_be_returned_as_it_is(device):
    module, (x,) = make(Norm, device), draw([(3, 4)], device)
    a, b = fuse(lambda x, m: (m(x), m.bias))(x, module)
    assert b is module.bias
    assert_equal(a, module(x))
    assert fuse(lambda x, m: m.bias)(x, module) is module.bias


class Writes(nn.Module):
    """A module that writes to a buffer when it is called."""

    def __init__(self, write: Callable):
        super().__init__()
        self.register_buffer("seen", torch.ones(4, dtype=torch.float64))
        self.write = write

    @fuse
    def forward(self, x):
        """Compute e^x by the buffer."""
        return self.write(self, x)


def _store(module, x):
    module.seen = customops.exp(x)
    return x * 2


def _before(module, x):
    module.seen.mul_(2)
    return x * module.seen


def _after(module, x):
    z = x * module.seen
    module.seen.mul_(2)
    return z


REFUSED_WRITES = {
    "a value": (lambda m, x: (m.seen.copy_(x), x * 2)[1], r"seen.copy_.*Tensor.copy_ cannot be traced"),
    "an operator": (lambda m, x: customops.mul_(m.seen, x) * 2, r"mul_\(m.seen, x\).*Tensor.mul_ cannot be traced"),
    "an attribute": (_store, r"module.seen = .*storing a value in a module cannot be traced; return it"),
    "after it was read": (_after, r"Writes.forward: writing to a tensor after an operator read it .*write before"),
}


@pytest.mark.parametrize("name", REFUSED_WRITES)
def test_writes_of_what_is_traced_or_was_read_are_refused(name, device):
    write, message = REFUSED_WRITES[name]
    (x,) = draw([(3, 4)], device)
    for _ in range(2):
        with pytest.raises(customops.FusionError, match=message):
            Writes(write).to(device)(x)


def test_a_write_before_a_tensor_is_read_is_seen(device):
    (x,), module = draw([(3, 4)], device), Writes(_before).to(device)
    for n in (2, 4, 8):
        assert_equal(module(x), x * n)


def test_copies_and_pickles_are_fused_and_share_nothing(device):
    model = nn.Sequential(fuse(make(Norm, device)), fuse(make(Tied, device)))
    model[0].myself = model  # a cycle
    (x,), saved = draw([(3, 4)], device), io.BytesIO()
    want = model(x)
    torch.save(model, saved)
    saved.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), pickle.loads(pickle.dumps(model, 0))]
    for other in (*copies, torch.load(saved, weights_only=False)):
        assert type(other[0]) is type(model[0])
        assert other[0].myself is other
        assert other[1].first.weight is other[1].second.weight
        assert_equal(other(x), want)
        nn.init.zeros_(other[0].weight)
        assert_equal(model(x), want)
        assert_equal(other[0](x), other[0].bias.expand_as(x))


def test_a_shallow_copy_reads_its_own_tensors(device):
    """As a replica of DataParallel does, whose parameters are other tensors."""
    module, (x,) = fuse(make(Norm, device)), draw([(3, 4)], device)
    replica = module._replicate_for_data_parallel()
    replica.weight, replica.bias = module.weight * 2, module.bias
    assert_equal(replica(x) - module.bias, (module(x) - module.bias) * 2)


def test_a_fused_module_is_the_module(device):
    plain, module = make(Norm, device), make(Norm, device)
    fused = fuse(module)
    assert fused is module
    assert fuse(fused) is fused
    assert isinstance(fused, Norm)
    assert repr(fused) == repr(plain)
    assert fused.state_dict().keys() == plain.state_dict().keys()
    assert fused.load_state_dict(plain.state_dict()).missing_keys == []
    assert type(fuse(Norm())) is type(fused)
    calls, (x,) = [], draw([(3, 4)], device)
    fused.register_forward_pre_hook(lambda module, args: calls.append("before") or (args[0] * 2,))
    fused.register_forward_hook(lambda module, args, z: calls.append("after") or torch.cumsum(z, 0))
    assert_equal(fused(x), torch.cumsum(plain(x * 2), 0))
    assert calls == ["before", "after"]
    assert not fused.eval().training
    half = fused.to(torch.float16)
    assert half(x.half()).dtype == torch.float16


def test_a_fused_module_is_explained_with_the_names_of_its_tensors(device, capsys):
    module, (x,) = fuse(make(Tied, device)), draw([(3, 4)], device)
    assert "mul(t10, first.weight)" in str(module.program(x))
    assert "second.bias" in str(module.program(x))
    if not KERNELS:
        fuse(OfParameters()).explain(x, verbose=True)
        printed = capsys.readouterr().out
        assert printed.count("return dx") == 2  # both are computed of parameters, and x requires no gradient
        assert "return dx = " not in printed


def test_a_module_whose_class_cannot_stand_for_it_is_refused():
    module = Norm()
    module.forward = lambda x: x
    with pytest.raises(TypeError, match="Norm: its attribute `forward` replaces that of its class; fuse it before"):
        fuse(module)
    with pytest.raises(TypeError, match="LazyLinear: it becomes one of another class at its first call; call it first"):
        fuse(nn.LazyLinear(3))
    with pytest.raises(TypeError, match="TracedModule: its `forward` is generated; fuse what it was made of"):
        fuse(torch.jit.trace(Norm(), torch.ones(3, 4, dtype=torch.float64)))


def test_a_parent_of_a_matrix_product_is_refused_by_the_line(device):
    model, (x,) = fuse(nn.Sequential(nn.Linear(4, 4), Norm()).to(device, torch.float64)), draw([(3, 4)], device)
    with pytest.raises(customops.FusionError, match=r"model\(x\)`: torch.nn.functional.linear cannot"):
        model(x)


def test_a_module_assigned_a_fused_forward_trains_copies_and_compiles(device):
    class Assigned(Norm):
        pass

    Assigned.forward = fuse(Norm.forward)
    module, plain, (x,) = make(Assigned, device), make(Norm, device), draw([(3, 4)], device)
    assert_as_plain(module, plain, x)
    assert_as_plain(copy.deepcopy(module), plain, x)
    torch.compiler.reset()
    assert_as_plain(torch.compile(module, fullgraph=True, backend="eager"), plain, x)
    torch.compiler.reset()


@pytest.mark.parametrize("cls", MODULES)
def test_a_fused_module_compiles_without_a_graph_break(cls, device):
    torch.compiler.reset()
    module, plain, (x,) = nn.Sequential(fuse(make(cls, device))), make(cls, device), draw([(3, 4)], device)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_alike(results(compiled, x, module.parameters()), results(plain, x, plain.parameters()))
    torch.compiler.reset()


def _functional(module, x):
    given = {name: p * 2 for name, p in module.named_parameters()}
    return results(partial(torch.func.functional_call, module, given), x, module.parameters())


def _ensemble(module, x):
    models = [module, copy.deepcopy(module)]
    nn.init.ones_(next(models[1].parameters()))
    given, buffers = torch.func.stack_module_state(models)
    call = lambda p, b, x: torch.func.functional_call(module, (p, b), (x,))
    return list(several(torch.vmap(call, (0, 0, None))(given, buffers, x)))


def _jvp(module, x):
    given = {name: p.detach() for name, p in module.named_parameters()}
    call = lambda p, x: torch.func.functional_call(module, p, (x,))
    return list(several(torch.func.jvp(call, (given, x), (given, x))[1]))


def _dual(module, x):
    given = {name: p.detach() for name, p in module.named_parameters()}
    with torch.autograd.forward_ad.dual_level() as _:
        duals = {name: torch.autograd.forward_ad.make_dual(p, p) for name, p in given.items()}
        zs = several(torch.func.functional_call(module, duals, (x,)))
        return [torch.autograd.forward_ad.unpack_dual(z).tangent for z in zs]


def _grad(module, x):
    given = {name: p.detach() for name, p in module.named_parameters()}
    call = lambda p, x: several(torch.func.functional_call(module, p, (x,)))[0].sum()
    return list(torch.func.grad(call)(given, x).values())


def _parametrized(module, x):
    for submodule in module.modules():
        if isinstance(submodule, Norm):
            parametrizations.weight_norm(submodule, "weight")
    found = results(module, x, module.parameters())
    with parametrize.cached():
        found += results(module, x, module.parameters())
    return found


def _hooked(module, x):
    for p in module.parameters():
        p.register_hook(lambda g: g * 2)
    sum(z.sum() for z in several(module(x))).backward()
    return [p.grad for p in module.parameters()]


def _frozen(module, x):
    next(module.parameters()).requires_grad_(False)
    found = results(module, x, module.parameters())
    module.requires_grad_(False)
    found += results(module, x, [])
    with torch.no_grad():
        found += several(module(x))
    with torch.inference_mode():
        found += several(module(x))
    return [*found, *results(module.requires_grad_(), x, module.parameters())]


def _checkpointed(module, x, forward=nullcontext, again=nullcontext):
    with forward():
        zs = several(checkpoint(module, x, use_reentrant=False))
    with again():
        return list(torch.autograd.grad(zs, [*module.parameters()], [cotangent(z) for z in zs], allow_unused=True))


def _trained(module, x):
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        sum(z.sum() for z in several(module(x))).backward()
        optimizer.step()
    return [*several(module(x)), *module.parameters()]


def _made_in_inference_mode(module, x):
    with torch.inference_mode():
        other = copy.deepcopy(module)
    with torch.no_grad():
        found = list(several(other(x)))
    recorded = outcome(other, x.requires_grad_())
    return [*found, *([] if isinstance(recorded, type) else several(recorded))]


def _autocast(module, x):
    with torch.autocast("cpu", torch.bfloat16):
        return results(module, x, module.parameters())


def _moved(module, x):
    module.to(torch.float32)
    found = [*results(module, x, module.parameters()), *results(module, x.float(), module.parameters())]
    return [z.float() for z in found]  # kernels round to the widest dtype


def _subclass(module, x):
    name, p = next(module.named_parameters())
    given = {name: nn.Parameter(p.detach().as_subclass(Subclass))}
    zs = several(torch.func.functional_call(module, given, (x,)))
    return [z.as_subclass(Tensor) for z in zs]


class Subclass(Tensor):
    """A tensor that sees the calls made with it."""


USES = {
    "functional_call": _functional,
    "an ensemble by vmap": _ensemble,
    "jvp": _jvp,
    "tangents of parameters": _dual,
    "grad": _grad,
    "parametrized": _parametrized,
    "hooks of parameters": _hooked,
    "frozen, and no longer": _frozen,
    "checkpoint": _checkpointed,
    "optimizer": _trained,
    "made in inference mode": _made_in_inference_mode,
    "autocast": _autocast,
    "other dtypes": _moved,
    "a parameter of a subclass": _subclass,
    "changed in place after the call": lambda module, x: outcome(_changed, module, x),
}


def _changed(module, x):
    zs = several(module(x))
    with torch.no_grad():
        for p in module.parameters():
            p.add_(1)
    return list(torch.autograd.grad([z.sum() for z in zs], [*module.parameters()], allow_unused=True))


@pytest.mark.filterwarnings("ignore:.*lr_scheduler")
@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("cls", MODULES)
def test_whatever_is_done_to_a_module_does_what_it_does_unfused(cls, name, device):
    (x,) = draw([(3, 4)], device)
    got, want = (USES[name](module, x.clone()) for module in (fuse(make(cls, device)), make(cls, device)))
    if isinstance(want, type):
        assert got is want
    else:
        assert_alike(got, want)


AGAIN = {
    "none": nullcontext,
    "dispatch mode": PassDispatch,
    "function mode": PassFunctions,
    "formulas": lambda: customops.backend("torch"),
    "dual level": torch.autograd.forward_ad.dual_level,
}


@pytest.mark.parametrize("again", AGAIN)
@pytest.mark.parametrize("forward", AGAIN)
def test_a_checkpoint_of_a_module_is_computed_again_under_another_mode(forward, again, device):
    """Of x alone no gradient is asked for, so that only what is lifted tells that the call is recorded."""
    (x,) = draw([(3, 4)], device)
    for cls in (Norm, OfParameters):
        got = _checkpointed(fuse(make(cls, device)), x, AGAIN[forward], AGAIN[again])
        assert_alike(got, _checkpointed(make(cls, device), x))


def test_a_graph_of_a_checkpoint_holds_what_is_computed_of_parameters_alone(device):
    """A tracer sees it, though stand-ins take the place of x."""
    module, (x, weight) = fuse(make(OfParameters, device)), draw([(3, 4), (4,)], device)

    def gradient(weight, x):
        call = lambda x: torch.func.functional_call(module, {"weight": weight}, (x,))
        return torch.autograd.grad(checkpoint(call, x, use_reentrant=False).sum(), x)[0]

    graph = make_fx(gradient)(weight, x.requires_grad_())
    assert_equal(graph(weight * 2, x), gradient(weight * 2, x))


def test_nothing_keeps_parameters_alive(device):
    module, (x,) = fuse(make(Norm, device)), draw([(3, 4)], device)
    module(x)
    alive = [weakref.ref(module.weight), weakref.ref(module)]
    del module
    gc.collect()
    assert [ref() for ref in alive] == [None, None]


def test_threads_call_modules_of_one_class(device):
    modules = [fuse(Norm(n).to(device)) for n in (3, 4, 5, 6)]

    def run(n):
        module = modules[n % 4]
        (x,) = draw([(n % 3 + 1, n % 4 + 3)], device)
        return results(module, x, module.parameters()), results(partial(Norm.forward, module), x, module.parameters())

    with ThreadPoolExecutor(4) as pool:
        for got, want in pool.map(run, range(24)):
            assert_alike(got, want)


def _replace(model, drawn):
    child = drawn.choice([model.first, model.second])
    name = drawn.choice(["weight", "bias"])
    setattr(child, name, nn.Parameter(torch.rand(drawn.choice([(4,), (1, 4), (1,), (3, 1)]), dtype=torch.float64)))


def _tie(model, drawn):
    names = [drawn.choice(["weight", "bias"]) for _ in range(2)]
    setattr(drawn.choice([model.first, model.second]), names[0], getattr(model.first, names[1]))


def _untie(model, drawn):
    for p in [*model.first.parameters()]:
        name = next(n for n, q in model.first.named_parameters() if q is p)
        setattr(model.first, name, nn.Parameter(p.detach().clone()))


def _freeze(model, drawn):
    for p in model.parameters():
        p.requires_grad_(drawn.random() < 0.5)


def _step(model, drawn):
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(drawn.choice([0.5, 1.5]))


def _cast(model, drawn):
    model.to(drawn.choice([torch.float32, torch.float64]))


CHANGES = [_replace, _tie, _untie, _freeze, _step, _cast]


def assert_sequence(seed: int, fused: nn.Module, device: str):
    """Hold a fused model against a plain one through random changes of their parameters."""
    drawn, plain = random.Random(seed), make(Tied)
    models = [fused, plain.to(device)]
    for _ in range(8):
        change, state = drawn.choice(CHANGES), drawn.getrandbits(32)
        for model in models:
            torch.manual_seed(state)
            change(model, random.Random(state))
            model.to(device)
        (x,) = draw([drawn.choice([(3, 4), (1, 4)])], device)
        if drawn.random() < 0.3:
            x = plain.first.bias.detach().expand(3, 4).to(x)
        assert_as_plain(fused, plain, x)


@pytest.mark.parametrize("seed", range(8))
def test_parameters_that_change_between_calls_are_read_anew(seed, device):
    assert_sequence(seed, fuse(make(Tied, device)), device)


def test_sequences_find_a_parameter_that_is_remembered(device):
    """They fail for a module that reads what its first call read."""

    class Remembers(Tied):
        @fuse
        def forward(self, x):
            self.kept = getattr(self, "kept", [self.first, self.first.weight])
            return self.second(self.kept[0](x)) * self.kept[1]

    found = [outcome(assert_sequence, seed, make(Remembers, device), device) for seed in range(8)]
    assert AssertionError in found


def _train_in_ranks(wrap: bool) -> list[Tensor]:
    """Train a fused module under DistributedDataParallel, one batch in each rank."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4, dtype=torch.float64), fuse(Norm()) if wrap else Norm())
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(2):
        optimizer.zero_grad()
        parallel(
            torch.full((3, 4), distributed.get_rank() + step + 1.0, dtype=torch.float64).cumsum(1)
        ).square().sum().backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def test_a_fused_module_trains_under_distributed_data_parallel(two):
    for got, want in zip(two(_train_in_ranks, True), two(_train_in_ranks, False), strict=True):
        assert_close(got, want)
