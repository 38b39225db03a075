"""Functions of torch that are compositions of operators: fused by themselves and inside others, against torch's."""

from __future__ import annotations

import math
import pickle
import warnings

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import customops
from customops.blocks import plan as blocks

from .cases import Call, ids
from .compare import STRICT, TOLERANCE, assert_as_near, assert_same_outcome, assert_same_outcomes, cotangent, outcome
from .conftest import DEVICE, KERNELS, MODE

database = "torch.testing._internal.common_methods_invocations"
op_db = pytest.importorskip(database, reason="torch's database of operators needs the package expecttest").op_db
INF, NAN = math.inf, math.nan
NAMES = ("var", "std", "var_mean", "std_mean", "logsumexp", "norm", "linalg.vector_norm", "max", "min")
INFOS = {ids(op.formatted_name): op for op in op_db if op.name in NAMES}


def _norms(orders: tuple[float, ...]) -> list[Call]:
    calls = [Call(f"norm(x, {p})", lambda lib, x, p=p: lib.norm(x, p, 1, True)) for p in orders]
    return [*calls, *(Call(f"vector_norm({p})", lambda lib, x, p=p: vector_norm(lib)(x, p)) for p in orders)]


def vector_norm(library):
    return library.linalg.vector_norm if library is torch else library.vector_norm


ORDERS = (0, 0.5, 1, 1.5, 2, 3, -1, INF, -INF)
CALLS = [
    Call("var()", lambda lib, x: lib.var(x)),
    Call("var(1)", lambda lib, x: lib.var(x, 1)),
    Call("var(False)", lambda lib, x: lib.var(x, False)),
    Call("var(0, True, True)", lambda lib, x: lib.var(x, 0, True, True)),
    Call("var(correction=0)", lambda lib, x: lib.var(x, [0, 1], correction=0)),
    Call("std(1)", lambda lib, x: lib.std(x, 1)),
    Call("std(unbiased)", lambda lib, x: lib.std(x, -1, unbiased=False, keepdim=True)),
    Call("var_mean(0)", lambda lib, x: lib.var_mean(x, 0)),
    Call("std_mean(1)", lambda lib, x: lib.std_mean(x, (1,), correction=0.5)),
    Call("logsumexp(1)", lambda lib, x: lib.logsumexp(x, 1)),
    Call("logsumexp(0, 1)", lambda lib, x: lib.logsumexp(x, (0, 1), True)),
    Call("norm()", lambda lib, x: lib.norm(x)),
    *_norms(ORDERS),
    Call("norm(dtype)", lambda lib, x: lib.norm(x, 3, 1, dtype=torch.float64)),
    Call("max()", lambda lib, x: lib.max(x)),
    Call("min()", lambda lib, x: lib.min(x)),
    Call("max(1)", lambda lib, x: lib.max(x, 1).values),
    Call("min(0)", lambda lib, x: lib.min(x, 0, True)[0]),
    Call("max(x, y)", lambda lib, x: lib.max(x, lib.neg(x))),
    Call("min(x, other=y)", lambda lib, x: lib.min(x, other=lib.neg(x))),
]
ROWS = {
    "numbers": torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    "ties": torch.tensor([[1.0, 3, 3], [2, 2, 2], [0, -0.0, 0], [-1, 1, -1]]),
    "edges": torch.tensor([[-INF, -INF], [INF, 1], [INF, INF], [NAN, 1], [NAN, NAN], [0, 0], [0, 3], [1e30, -1e30]]),
    "one column": torch.tensor([[2.0], [0.0], [-INF], [NAN]]),
}
ONE_LAUNCH = ("var(1)", "std(1)", "logsumexp(1)", "max(1)")
KNOWN = {  # what docs/limits.md says of a gradient that is nan in the row, or whose size is no number
    "norm(x, 0.5)", "vector_norm(0.5)", "vector_norm(-1)", "var_mean(0)", "std_mean(1)",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _by_blocks(monkeypatch, replan):
    """Have blocks compute small tensors, too, where no kernel does: else all would be torch's own."""
    monkeypatch.setattr(blocks, "LEAST_ELEMENTS", (0, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # degrees of freedom
        yield


def gradients(z, *xs):
    """Return the gradients of all results that have one; zeros where torch has none, of norms of order 0."""
    zs = [each for each in (z if isinstance(z, tuple) else (z,)) if each.requires_grad]
    return torch.autograd.grad(zs, xs, list(map(cotangent, zs)), materialize_grads=True) if zs else ()


def results(call, library, x):
    leaf = x.clone().requires_grad_()
    z = call(library, leaf)
    return z, gradients(z, leaf)


def wide_gradients(info, s, xs, want):
    """Return torch's gradients, for a half type those of float32, which torch rounds on the way."""
    if not xs or xs[0].itemsize > 2:
        return gradients(want, *xs)
    wide = [x.detach().float().requires_grad_() if isinstance(x, torch.Tensor) else x for x in (s.input, *s.args)]
    leaves = [x for x in wide if isinstance(x, torch.Tensor)]
    return [None if x is None else x.to(xs[0].dtype) for x in gradients(info(*wide, **s.kwargs), *leaves)]


def ours(info):
    return getattr(customops, info.name.removeprefix("linalg."))


@pytest.mark.sample(kernels="name")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.complex64], ids=ids)
@pytest.mark.parametrize("name", INFOS)
def test_samples_of_the_database_have_torchs_value_and_gradients(name, dtype, tally):
    info = INFOS[name]
    if dtype not in info.supported_dtypes(DEVICE) or (KERNELS and dtype.is_complex):
        pytest.skip("torch has none, or no kernel")
    grad = dtype in info.supported_backward_dtypes(DEVICE)
    for s in [*info.sample_inputs(DEVICE, dtype, requires_grad=grad)][:: 4 if KERNELS else 1]:
        xs = [x for x in (s.input, *s.args) if isinstance(x, torch.Tensor) and x.requires_grad]
        got, want = (outcome(f, s.input, *s.args, **s.kwargs) for f in (ours(info), info))
        assert_same_outcomes(
            tuple(got) if isinstance(got, tuple) else got, tuple(want) if isinstance(want, tuple) else want
        )
        if grad and not isinstance(want, type):
            assert_same_outcomes(gradients(got, *xs), wide_gradients(info, s, xs, want))
        tally("database samples")


@pytest.mark.parametrize("name", [name for name, info in INFOS.items() if info.error_inputs_func])
def test_error_inputs_raise_torchs_type(name, tally):
    info = INFOS[name]
    for error in info.error_inputs(DEVICE):
        s = error.sample_input
        got, want = (outcome(f, s.input, *s.args, **s.kwargs) for f in (ours(info), info))
        assert_same_outcome(got, want) if isinstance(want, type) else None
        tally("database samples")


WRONG = {
    "no dim": lambda lib, x: lib.logsumexp(x),
    "dim out of range": lambda lib, x: lib.var(x, 2),
    "dim twice": lambda lib, x: lib.var(x, (0, 0)),
    "both corrections": lambda lib, x: lib.var(x, 0, True, correction=1),
    "integers": lambda lib, x: lib.std(x.long()),
    "a word": lambda lib, x: lib.norm(x, "two"),
    "no such argument": lambda lib, x: lib.var_mean(x, axes=0),
    "dim of max": lambda lib, x: lib.max(x, 3),
    "nothing": lambda lib, x: lib.max(x[:0]),
    "complex": lambda lib, x: lib.min(x + 1j),
    "out of another dtype": lambda lib, x: lib.var(x, out=torch.empty((), dtype=torch.int32)),
}


@pytest.mark.sample(kernels="")
@pytest.mark.parametrize("name", WRONG)
def test_what_torch_refuses_is_refused_alike_alone_and_fused(name):
    x, want = torch.ones(2, 3), outcome(WRONG[name], torch, torch.ones(2, 3))
    assert isinstance(want, type)
    assert outcome(WRONG[name], customops, x) is want
    assert issubclass(outcome(customops.fuse(lambda x: WRONG[name](customops, x) * 2), x), (want, TypeError))


@pytest.mark.sample(kernels="", compiled="")
@pytest.mark.parametrize("call", CALLS, ids=ids)
def test_gradients_match_finite_differences_to_second_order(call, tally):
    x = ROWS["numbers"][:2, :3].clone().requires_grad_()
    assert gradcheck(lambda x: call.function(customops, x), x, **STRICT)
    assert gradgradcheck(lambda x: call.function(customops, x), x, **STRICT)
    tally("gradchecks", 2)


@pytest.mark.sample(kernels="call", compiled="call")
@pytest.mark.parametrize("fused", [False, True], ids=["alone", "inside"])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("call", CALLS, ids=ids)
def test_values_and_gradients_at_special_rows_are_torchs(call, rows, fused, tally):
    if rows in ("edges", "one column") and call.name in KNOWN:
        pytest.skip("docs/limits.md says how they differ")
    x = ROWS[rows].to(DEVICE, torch.float64)
    function = call.function
    if fused:
        inside = customops.fuse(lambda x: call.function(customops, x * 1.0))
        function = lambda lib, x: inside(x) if lib is customops else call.function(lib, x)
    assert_same_outcomes(*(results(function, library, x) for library in (customops, torch)))
    tally("edge points", x.numel())


@pytest.mark.sample(kernels="call", compiled="call")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=ids)
@pytest.mark.parametrize("call", CALLS, ids=ids)
def test_half_types_are_as_near_to_float64_as_torchs(call, dtype):
    """They are, alone, where blocks or kernels compute, and where a fused function applies its operators one by one."""
    x = (ROWS["numbers"].repeat(8, 9)[:, :37] + 3).to(DEVICE, dtype)
    want = _flat(results(call.function, torch, x.double()))
    theirs, mine = (_flat(results(call.function, library, x)) for library in (torch, customops))
    unit = torch.finfo(dtype).eps * want.abs().max()
    assert (mine - want).abs().max() <= (theirs - want).abs().max() + unit / 4


@pytest.mark.sample(formulas="call, rows*dtype", kernels="rows")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=ids)
@pytest.mark.parametrize("rows", [*ROWS][1:])
@pytest.mark.parametrize("call", CALLS, ids=ids)
def test_special_rows_of_half_types_are_as_near_to_float64_as_torchs(call, rows, dtype, tally):
    if rows in ("edges", "one column") and call.name in KNOWN:
        pytest.skip("docs/limits.md says how they differ")
    wide = ROWS[rows].to(DEVICE)
    x = torch.where(wide.abs() == 1e30, wide / 1e26, wide).to(dtype)  # no float32 has its square
    mine, theirs = (results(call.function, library, x) for library in (customops, torch))
    assert_as_near(mine, theirs, results(call.function, torch, x.double()))
    tally("edge points", x.numel())


def _flat(nested) -> torch.Tensor:
    parts = [nested] if isinstance(nested, torch.Tensor) else map(_flat, nested)
    return torch.cat([part.detach().double().flatten() for part in parts])


@pytest.mark.sample(kernels="")
@pytest.mark.parametrize("call", CALLS, ids=ids)
def test_every_call_of_a_fused_function_has_the_same_bits(monkeypatch, call):
    """The first one traces, later ones do not; where operators are applied one by one, torch's function computes.

    By kernels, which round a half type once, not after each step of torch's gradient, they are alike among themselves.
    """
    monkeypatch.setattr(blocks, "LEAST_ELEMENTS", (1 << 30, 1 << 30))
    x = ROWS["numbers"].to(torch.bfloat16)
    fused = customops.fuse(lambda x: call.function(customops, customops.neg(x)))
    found = [results(lambda _, x: fused(x), customops, x) for _ in range(3)]
    if not KERNELS:
        found.append(results(lambda lib, x: call.function(lib, -x), torch, x))
    for got in found[1:]:
        torch.testing.assert_close(_flat(found[0]), _flat(got), rtol=0, atol=0)


def test_extremes_do_not_overflow():
    x = torch.tensor([[1e4, 1e4, -1e4], [-1e4, -1e4, -1e4]], device=DEVICE)
    want = torch.tensor([1e4 + math.log(2), -1e4 + math.log(3)], device=DEVICE)
    torch.testing.assert_close(customops.logsumexp(x, 1), want)
    large = torch.full((3, 50), 1e6, device=DEVICE) + torch.arange(50.0, device=DEVICE)
    torch.testing.assert_close(customops.var(large, 1), large.double().var(1).float())


@pytest.mark.parametrize("fused", [False, True], ids=["alone", "inside"])
@pytest.mark.parametrize("dim", [0, 1, None])
def test_gradients_of_gradients_of_products_are_torchs(dim, fused):
    """They are whether none, one, two or three of a row are 0."""
    x = torch.tensor([[2.0, 3, 0, 5], [0, 0, 2, 1], [0, 0, 0, 4], [1, 2, 3, 4]], dtype=torch.float64, device=DEVICE)
    product = lambda lib, x: lib.prod(x) if dim is None else lib.prod(x, dim)
    mine = customops.fuse(lambda x: product(customops, x * 1.0)) if fused else lambda x: product(customops, x)
    found = []
    for function in (mine, lambda x: product(torch, x)):
        leaf = x.clone().requires_grad_()
        z = function(leaf)
        (grad,) = torch.autograd.grad(z, leaf, cotangent(z), create_graph=True)
        found.append((z, grad, *torch.autograd.grad(grad, leaf, cotangent(grad))))
    torch.testing.assert_close(*found, **TOLERANCE[torch.float64])


@pytest.mark.sample(kernels="all", compiled="")
@pytest.mark.parametrize("p", [None, 0.5, 2, 3], ids=["std", "norm 0.5", "norm 2", "norm 3"])
def test_gradients_of_gradients_where_all_are_equal_are_torchs_where_those_are_finite(p):
    x = torch.tensor([[2.0, 2, 2], [0, 0, 0], [1, 2, 0]], dtype=torch.float64, device=DEVICE)
    call = lambda x: x.std(1) if p is None else x.norm(p, 1)
    found = []
    for function in (customops.fuse(lambda x: call(x) * 1.0), call):
        leaf = x.clone().requires_grad_()
        z = function(leaf)
        g = torch.ones_like(z).requires_grad_()
        (grad,) = torch.autograd.grad(z, leaf, g, create_graph=True)
        found.append(torch.autograd.grad(grad, (leaf, g), cotangent(grad)))
    for mine, theirs in zip(*found, strict=True):
        assert theirs.isfinite().any()
        torch.testing.assert_close(torch.where(theirs.isfinite(), mine, theirs), theirs, equal_nan=True)


@pytest.mark.parametrize("name", ["max", "min"])
def test_gradients_of_gradients_of_ties_are_those_of_their_index(name):
    x = torch.tensor([[2.0, 3, 3], [1, 1, 1]], dtype=torch.float64, device=DEVICE)
    mine = customops.fuse(lambda x: customops.exp(getattr(customops, name)(x, 1).values))
    found = []
    for function in (mine, lambda x: torch.exp(getattr(torch, name)(x, 1).values)):
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(function(leaf).sum(), leaf, create_graph=True)
        found.append((grad, *torch.autograd.grad(grad, leaf, cotangent(grad))))
    torch.testing.assert_close(*found, **TOLERANCE[torch.float64])


@pytest.mark.sample(kernels="", compiled="")
@pytest.mark.parametrize("call", [call for call in CALLS if call.name in ONE_LAUNCH], ids=ids)
def test_rows_take_one_launch_each_way(call):
    if MODE != "formulas":
        pytest.skip("a dry run compiles")
    pytest.importorskip("triton", reason="a dry run compiles")
    x = torch.empty(4096, 1024, requires_grad=True)
    z = customops.fuse(lambda x: call.function(customops, x * 2.0) * 2.0)
    with customops.dry_run("cuda:90") as launches:
        y = z(x)
        assert len(launches) == 1
        torch.autograd.grad(y, x, torch.empty_like(y))
    assert len(launches) == 2


@pytest.mark.sample(kernels="")
def test_what_cannot_be_traced_says_so():
    x = torch.ones(2, 3)
    for function, message in (
        (lambda x: x * customops.max(x, 1, True).indices, "the indices of max and min cannot be traced"),
        (lambda x: customops.max(x, 1).indices.float() * x, "the indices of max and min cannot be traced"),
        (lambda x: customops.var(x, out=x) * x, "out= cannot be traced"),
        (lambda x: customops.norm(x, "nuc") * x, "a norm of order 'nuc' cannot be traced, as it is one of matrices"),
        (lambda x: torch.linalg.norm(x, 2) * x, "a norm of matrices cannot be traced"),
    ):
        with pytest.raises(TypeError, match=message):
            customops.fuse(function)(x)


@pytest.mark.sample(kernels="")
def test_transforms_compilers_and_pickles_see_torchs_function():
    x = ROWS["numbers"]
    assert pickle.loads(pickle.dumps(customops.var)) is customops.var
    torch.testing.assert_close(torch.func.vmap(customops.var)(x), x.var(1))
    torch.testing.assert_close(torch.func.jvp(customops.std, (x,), (x,)), torch.func.jvp(torch.std, (x,), (x,)))
    compiled = torch.compile(lambda x: customops.logsumexp(x, 1), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), x.logsumexp(1))
    assert "mean(" in str(customops.var.program(x, 1))
