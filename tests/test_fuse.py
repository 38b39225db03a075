"""What a fused function promises: values and gradients, launches, traces, what is saved, under every transform."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import customops
from customops import fuse

from .compare import (
    STRICT,
    assert_as_by_formula,
    assert_equal,
    assert_same_outcome,
    cotangent,
    outcome,
    record_launches,
)
from .conftest import INTERPRETED, KERNELS, NO_KERNEL
from .programs import PROGRAMS, rms_norm

LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.mT.contiguous().mT if x.dim() > 1 else x,
    "sliced": lambda x: x.repeat_interleave(2, -1)[..., ::2] if x.dim() else x.expand(3)[1],
    "expanded": lambda x: x[..., :1].expand_as(x) if x.dim() else x,
    "unaligned": lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape),
}
kernels_only = pytest.mark.skipif(not KERNELS, reason=NO_KERNEL)


def draw(shapes, device, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(s, dtype=torch.float64, generator=generator).add(0.1).to(device, dtype) for s in shapes]


def small(shapes, most=7):
    return [tuple(min(n, most) for n in shape) for shape in shapes]


def results(function, xs, **options):
    """Return values, then gradients, of leaves like ``xs``."""
    leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in xs]
    z = function(*leaves)
    zs = z if isinstance(z, tuple | list) else (z,)
    taken = [x for x in leaves if x.requires_grad]
    return [*zs, *torch.autograd.grad(zs, taken, [cotangent(z) for z in zs], allow_unused=True, **options)]


@pytest.mark.sample(kernels="program, layout", compiled="all")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_values_strides_and_gradients_are_torchs(program, layout, device):
    xs = [LAYOUTS[layout](x) for x in draw(small(program.small), device)]
    got, want = results(fuse(program.of(customops)), xs), results(program.of(torch), xs)
    for i, (mine, theirs) in enumerate(zip(got, want, strict=True)):
        assert_equal(mine, theirs, strides=i == 0 and layout == "contiguous")


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_derivatives_of_both_orders_match_finite_differences(program, device):
    xs = [x.requires_grad_() for x in draw(small(program.small, 3), device)]
    if KERNELS:
        assert_as_by_formula(fuse(program.of(customops)), xs)
    else:
        assert gradcheck(fuse(program.of(customops)), xs, **STRICT)
        assert gradgradcheck(fuse(program.of(customops)), xs, **STRICT)


@pytest.mark.sample(compiled="all")
@kernels_only
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_rows_that_no_program_walks_are_cut_and_right(program, device, monkeypatch, replan):
    monkeypatch.setattr("customops.compiler.partition.MAX_ROW_LENGTH", 2)
    xs = draw(small(program.small), device)
    for mine, theirs in zip(results(fuse(program.of(customops)), xs), results(program.of(torch), xs), strict=True):
        assert_equal(mine, theirs)


@pytest.mark.sample(compiled="all")
@kernels_only
def test_a_layer_is_one_kernel_forward_and_one_backward_and_the_sum_of_its_parts(device, monkeypatch):
    launched = record_launches(monkeypatch)
    x, weight = (x.requires_grad_() for x in draw([(40, 20), (20,)], device))
    z = fuse(rms_norm)(customops, x, weight)
    forward = len(launched)
    z.sum().backward()
    assert (forward, len(launched) - forward) == (1, 2)


@kernels_only
def test_only_inputs_that_the_gradients_read_are_saved(device):
    x, y, w = (x.requires_grad_() for x in draw([(4, 5), (4, 5), (5,)], device))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t.data_ptr()), t)[1], lambda t: t):
        fuse(lambda x, y, w: customops.exp(x * w) + y)(x, y, w)
    assert sorted(saved) == sorted([x.data_ptr(), w.data_ptr()])


TRANSFORMS = {
    "vmap": lambda f, x, w: torch.vmap(f, (0, None))(x, w),
    "jvp": lambda f, x, w: torch.func.jvp(lambda x: f(x, w), (x,), (x,))[1],
    "vjp": lambda f, x, w: torch.func.vjp(f, x, w)[1](x)[1],
    "grad of grad": lambda f, x, w: torch.func.grad(lambda x: torch.func.grad(lambda x: f(x, w).sin().sum())(x).sum())(
        x
    ),
    "batch of cotangents": lambda f, x, w: torch.autograd.grad(
        f(x.requires_grad_(), w), x, torch.eye(12).to(x).view(12, 3, 4), is_grads_batched=True
    )[0],
    "jacrev": lambda f, x, w: torch.func.jacrev(f, 1)(x, w),
    "compile": lambda f, x, w: torch.compile(f, fullgraph=True, backend="aot_eager")(x, w),
    "checkpoint": lambda f, x, w: torch.autograd.grad(
        checkpoint(f, x.requires_grad_(), w, use_reentrant=False).sum(), x
    )[0],
    "inference": lambda f, x, w: torch.inference_mode()(f)(x, w),
    "no grad": lambda f, x, w: torch.no_grad()(f)(x.requires_grad_(), w),
    "complex": lambda f, x, w: f(x.to(torch.complex128), w),
    "empty": lambda f, x, w: f(x[:0], w),
    "meta": lambda f, x, w: f(x.to("meta"), w.to("meta")).shape,
    "shapes that do not broadcast": lambda f, x, w: f(x, w[:2]),
    "integers": lambda f, x, w: f(x.long(), w),
    "several devices": lambda f, x, w: f(x, w.to("meta")),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_whatever_is_done_to_it_does_what_it_does_to_the_function(name, device):
    if name == "complex" and KERNELS:
        pytest.skip("there is no kernel, which the backend triton refuses")
    torch.compiler.reset()

    def run(lib, wrap):
        x, w = draw([(3, 4), (4,)], device)
        return outcome(TRANSFORMS[name], wrap(lambda x, w: rms_norm(lib, x, w)), x, w)

    got, want = run(customops, fuse), run(torch, lambda f: f)
    if name == "shapes that do not broadcast":
        assert want is RuntimeError
    assert_same_outcome(got, want)


def test_results_come_as_the_function_returns_them(device):
    (x,) = draw([(3, 4)], device)
    x.requires_grad_()
    once = fuse(lambda x: [z := customops.exp(x), z, x * 2])(x)
    assert type(once) is list
    assert once[0] is once[1]
    assert fuse(lambda x: (x, customops.exp(x)))(x)[0] is x
    a, b = fuse(lambda x: (customops.exp(x), customops.exp(x)))(x)
    assert a.data_ptr() != b.data_ptr()
    a, b = fuse(lambda x, y: (customops.exp(x), customops.exp(y)))(x, x.detach())
    assert (a.requires_grad, b.requires_grad) == (True, False)


def test_part_of_the_results_and_of_the_inputs_have_gradients(device):
    def function(x, y):
        return x * y, customops.exp(x), customops.sum(y, 0)

    x, y = draw([(3, 4), (4,)], device)
    for wanted, used in ((0, 0), (0, 1), (1, 0), (1, 2)):
        want, got = [], []
        for f, found in ((function, want), (fuse(function), got)):
            xs = [x.clone(), y.clone()]
            xs[wanted].requires_grad_()
            found += torch.autograd.grad(f(*xs)[used].sum(), xs[wanted])
        assert_equal(got[0], want[0])


@pytest.mark.sample(compiled="all")
def test_one_tensor_passed_twice_gets_both_gradients(device):
    """It does so beside a tensor whose name could be mistaken for it."""
    x, other = draw([(3, 4), (4, 3)], device)
    x.requires_grad_()
    z = fuse(lambda x, y, y1: x * customops.exp(y) + y1)(x, x, other.mT)
    assert_equal(z.detach(), x.detach() * x.detach().exp() + other.mT)
    (dx,) = torch.autograd.grad(z.sum(), x)
    assert_equal(dx, (1 + x.detach()) * x.detach().exp())


ALIKE = {
    "lambda lib, x, b, v: x + b + v": [(1, 3), (3,), (3,)],
    "lambda lib, a, b, d: lib.exp(a + b + d)": [(3,), (1, 3), (1, 1, 3)],
    "lambda lib, a, b: lib.sum(a + b)": [(1,), (1, 1)],
    "lambda lib, a, b: lib.sum(a) + b": [(1,), (1, 1)],
    "lambda lib, x, b: -lib.sum(x, -1, True) - b": [(3, 1), (3,)],
    "lambda lib, x: lib.mean(x)": [(3, 4)],
}


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize("backward", ["by kernel", "by formula", "with a graph"])
@pytest.mark.parametrize("source", ALIKE)
@pytest.mark.filterwarnings("ignore:Using backward")
def test_gradients_accumulate_in_memory_of_their_own(source, device, backward):
    function = eval(source)
    fused, xs = fuse(function), [x.requires_grad_() for x in draw(ALIKE[source], device)]
    like = [x.detach().clone().requires_grad_() for x in xs]
    for n in (1, 2):
        z, want = fused(customops, *xs), function(torch, *like)
        cotangents = [torch.full_like(want, n) for _ in range(2)]
        with customops.backend("torch") if backward == "by formula" else nullcontext():
            z.backward(cotangents[0], create_graph=backward == "with a graph")
        want.backward(cotangents[1])
        for x, y in zip(xs, like, strict=True):
            assert_close(x.grad, y.grad)
            x.grad.data.add_(n), y.grad.data.add_(n)
        assert cotangents[0].eq(n).all()


def test_what_saves_nothing_goes_backward_twice(device):
    (x,) = (x.requires_grad_() for x in draw([(3,)], device))
    z = fuse(lambda x: x + 1)(x).sum()
    for _ in range(2):
        z.backward()
    assert x.grad.eq(2).all()


def test_an_argument_may_be_called_g(device):
    """The cotangent has that name in printed programs."""
    g, x = draw([(3, 4), (3, 4)], device)
    got = results(fuse(lambda g, x: customops.exp(g) * x), [g, x])
    for mine, theirs in zip(got, results(lambda g, x: torch.exp(g) * x, [g, x]), strict=True):
        assert_equal(mine, theirs)


def test_changing_what_is_saved_is_torchs_error(device):
    x, w = draw([(3, 4), (4,)], device)
    z = fuse(lambda x, w: customops.exp(x * w))(x.requires_grad_(), w)
    w.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


@pytest.mark.sample(compiled="all")
def test_a_value_meets_itself_along_another_axis(device):
    (x,) = draw([(4, 4)], device)

    def function(lib, x):
        return x * lib.exp(lib.mean(x, -1)) - lib.sum(x, 1)

    got, want = (results(f, [x]) for f in (fuse(lambda x: function(customops, x)), lambda x: function(torch, x)))
    for mine, theirs in zip(got, want, strict=True):
        assert_equal(mine, theirs)


@pytest.mark.sample(compiled="all")
def test_half_types_are_rounded_once(device):
    """They are nearer to the truth than operator by operator, where kernels compute."""
    x, w = draw([(64, 100), (100,)], device, torch.bfloat16)
    truth = rms_norm(torch, x.double(), w.double())
    off = [(f(lib, x, w).double() - truth).abs().max() for f, lib in ((fuse(rms_norm), customops), (rms_norm, torch))]
    assert off[0] <= (0.6 * off[1] if KERNELS else off[1])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16], ids=str)
def test_narrow_integers_wrap_and_only_their_masks_are_of_floats(dtype, device):
    top = torch.iinfo(dtype).max
    x, y = (torch.tensor(numbers, dtype=dtype, device=device) for numbers in ([top, 3, 2, top], [7, 6, 7, top]))
    assert fuse(lambda x, y: customops.mul(x**y, x) + x)(x, y).tolist() == (x**y * x + x).tolist()
    z = torch.ones(4, device=device)
    assert fuse(lambda x, y, z: customops.where(x > y, z, -z))(x, y, z).tolist() == torch.where(x > y, z, -z).tolist()


def test_the_backend_may_change_before_backward(device):
    x, w = (x.requires_grad_() for x in draw([(3, 4), (4,)], device))
    z = fuse(rms_norm)(customops, x, w)
    with customops.backend("torch"):
        got = torch.autograd.grad(z.sum(), (x, w))
    for mine, theirs in zip(got, torch.autograd.grad(rms_norm(torch, x, w).sum(), (x, w)), strict=True):
        assert_equal(mine, theirs)


def test_threads_share_it(device):
    fused = fuse(rms_norm)

    def run(n):
        x, w = draw([(n % 3 + 2, 4), (4,)], device)
        return fused(customops, x, w), rms_norm(torch, x, w)

    with ThreadPoolExecutor(4) as pool:
        for mine, theirs in pool.map(run, range(12)):
            assert_equal(mine, theirs)


@kernels_only
def test_a_call_like_an_earlier_one_makes_no_plan(device, monkeypatch):
    from customops.triton_kernels import plan  # noqa: PLC0415 - Triton may be missing

    made, real = [], plan.Plan.__init__
    monkeypatch.setattr(plan.Plan, "__init__", lambda self, *args: (made.append(self), real(self, *args))[1])
    fused, counts = fuse(rms_norm), []
    for _ in range(3):
        x, w = (x.requires_grad_() for x in draw([(3, 5), (5,)], device))
        fused(customops, x, w).sum().backward()
        counts.append(len(made))
    assert counts == [2, 2, 2]


@pytest.mark.skipif(INTERPRETED, reason="a dry run compiles, which the interpreter cannot")
def test_an_edited_formula_is_compiled_anew(monkeypatch, replan):
    """Triton by itself would find the old kernel by the formulas' names."""
    formulas = pytest.importorskip("customops.triton_kernels.formulas", reason="needs Triton")
    hashes = []
    for formula in (formulas.exp, formulas.log):
        monkeypatch.setattr(formulas, "exp", formula)
        replan()
        with customops.dry_run() as records:
            fuse(lambda x: customops.exp(x) * 2)(torch.empty(64))
        hashes.append(records[0].compiled.hash)
    assert hashes[0] != hashes[1]
