"""``customops.nn.functional``: compositions by themselves, and torch's functions inside ``fuse``, against torch's."""

from __future__ import annotations

import ast
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

import customops
from customops.nn import functional as ours

from .cases import EDGES, ids
from .compare import STRICT, assert_as_near, assert_same_outcome, assert_same_outcomes, cotangent, outcome
from .conftest import DEVICE, KERNELS, MODE
from .marks import formulas_only

database = "torch.testing._internal.common_methods_invocations"
op_db = pytest.importorskip(database, reason="torch's database of operators needs the package expecttest").op_db
INF = math.inf
NAMES = {name: name.removeprefix("nn.functional.") for name in {op.name for op in op_db}}
INFOS = {
    ids(op.formatted_name): op
    for op in op_db
    if NAMES[op.name] in {*ours.__all__} - {*customops.__all__, *ours.losses.__all__}
}


class Case(NamedTuple):
    """A call as ``function(library, *tensors)`` of tensors of these shapes."""

    name: str
    function: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...] = ((2, 6),)

    def __str__(self):
        return self.name


def _pointwise(name: str) -> Case:
    return Case(f"{name}(x)", lambda lib, x: getattr(lib, name)(x))


ROW = (6,)
ACTIVATIONS = [
    *map(_pointwise, ("relu", "sigmoid", "tanh", "silu", "gelu", "softplus", "elu", "selu", "celu", "leaky_relu")),
    *map(_pointwise, ("hardswish", "hardsigmoid", "mish", "relu6", "hardtanh", "logsigmoid", "softsign")),
    *map(_pointwise, ("tanhshrink", "hardshrink", "softshrink")),
    Case("threshold(x, 0.4, -1)", lambda lib, x: lib.threshold(x, 0.4, -1.0)),
    Case("softshrink(x, 1.5)", lambda lib, x: lib.softshrink(x, 1.5)),
    Case("gelu(tanh)", lambda lib, x: lib.gelu(x, approximate="tanh")),
    Case("elu(x, 0.5)", lambda lib, x: lib.elu(x, 0.5)),
    Case("celu(x, alpha=2)", lambda lib, x: lib.celu(x, alpha=2.0)),
    Case("leaky_relu(x, 0.3)", lambda lib, x: lib.leaky_relu(x, 0.3)),
    Case("hardtanh(x, -2, 0.5)", lambda lib, x: lib.hardtanh(x, -2.0, 0.5)),
    Case("softplus(x, 2, 5)", lambda lib, x: lib.softplus(x, 2, 5)),
    Case("softcap(x, 3)", lambda lib, x: lib.softcap(x, 3.0)),
]
ROWS = [
    Case("softmax(x, 1)", lambda lib, x: lib.softmax(x, 1)),
    Case("softmax(x, 0)", lambda lib, x: lib.softmax(x, dim=0)),
    Case("log_softmax(x, -1)", lambda lib, x: lib.log_softmax(x, -1)),
    Case("softmin(x, 1)", lambda lib, x: lib.softmin(x, 1)),
    Case("layer_norm(x)", lambda lib, x: lib.layer_norm(x, (x.shape[-1],))),
    Case("rms_norm(x)", lambda lib, x: lib.rms_norm(x, [x.shape[-1]])),
    Case("normalize(x)", lambda lib, x: lib.normalize(x)),
    Case("normalize(x, 3)", lambda lib, x: lib.normalize(x, 3.0, -1)),
]
SEVERAL = [
    Case("layer_norm(x, w, b)", lambda lib, x, w, b: lib.layer_norm(x, w.shape, w, b, 1e-3), ((2, 6), ROW, ROW)),
    Case("layer_norm(2 axes)", lambda lib, x, w: lib.layer_norm(x, w.shape, w), ((2, 4, 6), (4, 6))),
    Case("rms_norm(x, w)", lambda lib, x, w: lib.rms_norm(x, w.shape, w, 1e-5), ((2, 6), ROW)),
    Case("prelu(x, w)", lambda lib, x, w: lib.prelu(x, w), ((2, 6), ROW)),
    Case("prelu(x, 1)", lambda lib, x, w: lib.prelu(x, w), ((2, 6), (1,))),
    Case("swiglu", lambda lib, x, y: lib.swiglu(x, y), ((2, 6), (2, 6))),
    Case("geglu", lambda lib, x, y: lib.geglu(x, y), ((2, 6), (2, 6))),
    Case("geglu(tanh)", lambda lib, x, y: lib.geglu(x, y, "tanh"), ((2, 6), (2, 6))),
    Case("add_rms_norm", lambda lib, x, y, w: lib.add_rms_norm(x, y, w.shape, w, 1e-6), ((2, 6), (2, 6), ROW)),
]
VIEWS = [
    Case("glu(x)", lambda lib, x: lib.glu(x)),
    Case("glu(x, 0)", lambda lib, x: lib.glu(x, 0)),
    Case("group_norm(x)", lambda lib, x: lib.group_norm(x, 2)),
    Case(
        "group_norm(x, w, b)",
        lambda lib, x, w, b: lib.group_norm(x, len(w) // 2, w, b),
        ((2, 6, 2, 3), ROW, ROW),
    ),
    Case("cosine_similarity", lambda lib, x, y: lib.cosine_similarity(x, y), ((2, 6), (2, 6))),
    Case("cosine_similarity(-2)", lambda lib, x, y: lib.cosine_similarity(x, y, -2), ((2, 6), (6,))),
    Case(
        "rotary_embedding",
        lambda lib, x, c, s: lib.rotary_embedding(x, torch.cat((c, c), -1), torch.cat((s, s), -1)),
        ((2, 4, 6), (4, 3), (4, 3)),
    ),
]
CASES = [*ACTIVATIONS, *ROWS, *SEVERAL, *VIEWS]
ROTARY = Case("rotary(x)", lambda lib, x: lib.rotary_embedding(x, x.detach(), x.detach()))


def _rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def _add_rms_norm(x: Tensor, y: Tensor, *options) -> tuple[Tensor, Tensor]:
    return F.rms_norm(x + y, *options), x + y


theirs = SimpleNamespace(
    **{name: getattr(F, name) for name in ours.__all__ if hasattr(F, name)},
    swiglu=lambda x, gate: x * F.silu(gate),
    geglu=lambda x, gate, approximate="none": x * F.gelu(gate, approximate=approximate),
    add_rms_norm=_add_rms_norm,
    softcap=lambda x, cap: cap * torch.tanh(x / cap),
    rotary_embedding=_rotary,
)

HALVES = (torch.float16, torch.bfloat16)
FLOAT32_SLOPES = {"hardsigmoid(x)"}  # torch has 1/6 in float32, whatever the dtype
NAN_SLOPES = (
    "elu",
    "selu",
    "celu",
    "relu6",
    "hardtanh",
    "hardswish",
    "hardshrink",
    "softshrink",
)  # torch's scalar and vector code differ at nan
SPECIAL = {
    "large": [[1e4, 1e4, -1e4], [-1e4, -1e4, -1e4], [1e4, 0, 1]],
    "equal": [[3.0, 3, 3], [-2, -2, -2], [0, 0, 0]],
    "infinite": [[-INF, -INF, -INF], [-INF, 1, 2], [INF, 1, -INF], [math.nan, 1, 2]],
    "one column": [[2.0], [0.0], [-3.0]],
}


def draw(case: Case, dtype=torch.float64) -> list[Tensor]:
    """Return tensors for a case whose elements are not near the ends of pieces."""
    generator = torch.Generator().manual_seed(0)
    xs = [torch.randn(shape, generator=generator, dtype=torch.float64) * 2 for shape in case.shapes]
    return [torch.where(x.abs() < 0.05, 0.5, x).to(DEVICE, dtype) for x in xs]


def dtypes_of(case: Case) -> tuple[torch.dtype, ...]:
    return (torch.float32,) if case.name in FLOAT32_SLOPES else (torch.float32, torch.float64)


def leaves(xs: list[Tensor]) -> list[Tensor]:
    return [x.detach().clone().requires_grad_() for x in xs]


def gradients(z: Any, xs: list[Tensor]) -> tuple:
    zs = [each for each in (z if isinstance(z, tuple) else (z,)) if each.requires_grad]
    return torch.autograd.grad(zs, xs, list(map(cotangent, zs)), allow_unused=True) if zs else ()


def results(case: Case, library: Any, xs: list[Tensor]) -> tuple:
    xs = leaves(xs)
    z = case.function(library, *xs)
    return z, gradients(z, xs)


def inside(case: Case) -> Callable:
    """Return the case within a fused function, by torch's names where it has them."""
    fused = customops.fuse(lambda *xs: case.function(theirs, xs[0] * 1.0, *xs[1:]))
    return lambda library, *xs: fused(*xs)


def is_by_us(z: Any) -> bool:
    """Return whether a node of ours recorded a result, and so no function of torch."""
    z = z[0] if isinstance(z, tuple) else z
    return hasattr(z.grad_fn, "_forward_cls")


@pytest.fixture
def by_blocks(request):
    """Have blocks compute small tensors, too, where no kernel does: else all would be torch's own."""
    request.getfixturevalue("blocks")(8)


@pytest.mark.usefixtures("by_blocks")
@pytest.mark.sample(kernels="name", compiled="")
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.complex64], ids=ids
)
@pytest.mark.parametrize("name", INFOS)
def test_samples_of_the_database_have_torchs_value_and_gradients(name, dtype, tally):
    info = INFOS[name]
    if dtype not in info.supported_dtypes(DEVICE) or (KERNELS and dtype.is_complex):
        pytest.skip("torch has none, or no kernel")
    grad = dtype in info.supported_backward_dtypes(DEVICE)
    make = info.sample_inputs if KERNELS or grad else info.reference_inputs
    for s in [*make(DEVICE, dtype, requires_grad=grad)][:: 4 if KERNELS else 1]:
        got, want = (outcome(f, s.input, *s.args, **s.kwargs) for f in (function_of(info), info))
        assert_same_outcome(got, want)
        if grad and not isinstance(want, type):
            torchs = gradients(want, tensors_of(s))
            if (NAMES[info.name], dtype) != ("hardsigmoid", torch.float64):  # see FLOAT32_SLOPES
                assert_as_near(
                    gradients(got, tensors_of(s)), torchs, torchs if dtype.is_complex else exact_gradients(info, s)
                )
        tally("database samples")


def function_of(info: Any) -> Callable:
    return getattr(ours, NAMES[info.name])


def tensors_of(s: Any) -> list[Tensor]:
    return [x for x in (s.input, *s.args, *s.kwargs.values()) if isinstance(x, Tensor) and x.requires_grad]


def exact_gradients(info: Any, s: Any) -> tuple:
    """Return torch's gradients in float64 of the same values."""
    wide = s.transform(lambda x: x.detach().double().requires_grad_(x.requires_grad) if is_float(x) else x)
    return gradients(info(wide.input, *wide.args, **wide.kwargs), tensors_of(wide))


def is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


@pytest.mark.usefixtures("by_blocks")
@formulas_only
@pytest.mark.parametrize("name", INFOS)
def test_torchs_function_inside_fuse_is_ours(name, tally):
    """Each sample of the database is called by torch's name within a fused function: it has torch's value."""
    info = INFOS[name]
    for s in info.sample_inputs(DEVICE, torch.float32):
        fused = customops.fuse(lambda x, s=s: info(x * 1.0, *s.args, **s.kwargs) * 2.0)
        assert_same_outcome(fused(s.input), info(s.input, *s.args, **s.kwargs) * 2.0)
        tally("database samples")


@formulas_only
@pytest.mark.parametrize("name", [name for name, info in INFOS.items() if info.error_inputs_func])
def test_error_inputs_raise_torchs_type(name, tally):
    info = INFOS[name]
    for error in info.error_inputs(DEVICE):
        s = error.sample_input
        got, want = (outcome(f, s.input, *s.args, **s.kwargs) for f in (function_of(info), info))
        assert_same_outcome(got, want)
        tally("database samples")


WRONG = {
    "no such dim": lambda lib, x: lib.softmax(x, 2),
    "integers": lambda lib, x: lib.softmax(x.long(), 1),
    "a word": lambda lib, x: lib.gelu(x, approximate="exact"),
    "no such argument": lambda lib, x: lib.silu(x, slope=1),
    "another shape": lambda lib, x: lib.layer_norm(x, (4,)),
    "another weight": lambda lib, x: lib.rms_norm(x, (3,), x),
    "bounds": lambda lib, x: lib.hardtanh(x, 2.0, 1.0),
    "odd": lambda lib, x: lib.glu(x),
    "groups": lambda lib, x: lib.group_norm(x, 2),
    "no broadcast": lambda lib, x: lib.cosine_similarity(x, x[:, :2]),
    "no tensor": lambda lib, x: lib.mish(1.0),
    "negative": lambda lib, x: lib.softshrink(x, -0.5),
    "slopes": lambda lib, x: lib.prelu(x, x[0, :2]),
}


@pytest.mark.usefixtures("by_blocks")
@formulas_only
@pytest.mark.parametrize("name", WRONG)
def test_what_torch_refuses_is_refused_alike(name):
    want = outcome(WRONG[name], F, torch.ones(2, 3))
    assert isinstance(want, type)
    assert outcome(WRONG[name], ours, torch.ones(2, 3)) is want


@pytest.mark.sample(kernels="case", compiled="")
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_gradients_match_finite_differences_to_second_order(case, blocks, tally):
    blocks(4)
    xs = leaves(draw(case))
    assert is_by_us(case.function(ours, *xs))
    assert gradcheck(lambda *xs: case.function(ours, *xs), xs, **STRICT)
    assert gradgradcheck(lambda *xs: case.function(ours, *xs), xs, **STRICT)
    tally("gradchecks", 2)


@pytest.mark.usefixtures("by_blocks")
@pytest.mark.sample(kernels="case", compiled="case")
@pytest.mark.parametrize("fused", [False, True], ids=["alone", "inside"])
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_values_and_gradients_are_torchs(case, fused):
    for dtype in dtypes_of(case):
        xs = draw(case, dtype)
        got = results(case._replace(function=inside(case)) if fused else case, ours, xs)
        assert is_by_us(got[0])
        assert_same_outcomes(got, results(case, theirs, xs))


@pytest.mark.usefixtures("by_blocks")
@pytest.mark.parametrize("name", ["leaky_relu", "hardtanh", "relu6", "relu"])
def test_a_constant_gradient_has_a_gradient_of_zeros_as_torchs(name):
    for library in (ours, theirs):
        x = torch.tensor([-2.0, 0.5, 9.0], device=DEVICE, requires_grad=True)
        (dx,) = torch.autograd.grad(getattr(library, name)(x).sum(), x, create_graph=True)
        (again,) = torch.autograd.grad(dx.sum(), x)
        assert_same_outcome(again, torch.zeros_like(x))


@pytest.mark.usefixtures("by_blocks")
@pytest.mark.parametrize("name", ["elu", "selu", "celu"])
def test_second_derivatives_at_0_are_those_at_its_left(name):
    x = torch.tensor([0.0, -1e-7], device=DEVICE, requires_grad=True)
    (dx,) = torch.autograd.grad(getattr(ours, name)(x).sum(), x, create_graph=True)
    (again,) = torch.autograd.grad(dx.sum(), x)
    torch.testing.assert_close(again[0], again[1])
    assert again[1] > 0.5


@pytest.mark.usefixtures("by_blocks")
@pytest.mark.sample(kernels="case", compiled="case")
@pytest.mark.parametrize("case", ACTIVATIONS, ids=ids)
def test_activations_at_special_numbers_are_torchs(case, tally):
    x = torch.tensor([*EDGES, 3.0, -3.0, 6.0, -20.5, 20.5, 1e4, -1e4], device=DEVICE)
    for dtype in (*dtypes_of(case), *HALVES):
        (z, (dx,)), (want, (want_dx,)) = (results(case, library, [x.to(dtype)]) for library in (ours, theirs))
        wide, _ = results(case, theirs, [x.to(dtype).double()])
        want = torch.where(want.isnan(), wide.to(dtype), want)  # of gelu in vectors, at inf, on some CPUs
        smooth = ~x.isnan() if case.name.startswith(NAN_SLOPES) else slice(None)
        assert_same_outcomes((z, dx[smooth]), (want, want_dx[smooth]))
        tally("edge points", x.numel())


@pytest.mark.usefixtures("by_blocks")
@pytest.mark.sample(kernels="case", compiled="rows")
@pytest.mark.parametrize("rows", SPECIAL)
@pytest.mark.parametrize("case", [*ROWS, VIEWS[4]], ids=ids)
def test_special_rows_have_torchs_values_and_gradients(case, rows, tally):
    x = torch.tensor(SPECIAL[rows], device=DEVICE)
    for dtype in (*dtypes_of(case), *HALVES):
        xs = [x.to(dtype)] * len(case.shapes)
        got, want = (results(case, library, xs) for library in (ours, theirs))
        assert_as_near(got, want, results(case, theirs, [x.double() for x in xs]))
        tally("edge points", x.numel())


@pytest.mark.usefixtures("by_blocks")
@formulas_only
@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3), (3, 0)], ids=ids)
@pytest.mark.parametrize("case", [*ACTIVATIONS, *ROWS], ids=ids)
def test_no_elements_give_what_torch_gives(case, shape):
    for dtype in (torch.float32, *HALVES):
        got, want = (outcome(results, case, library, [torch.ones(shape, dtype=dtype)]) for library in (ours, theirs))
        assert_same_outcomes(got, want)


@pytest.mark.usefixtures("by_blocks")
@pytest.mark.sample(compiled="name")
@pytest.mark.parametrize("shape", [(), (1,), (1, 5), (3, 1, 5)], ids=ids)
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "softmin"])
def test_the_gradient_of_one_element_by_itself_is_zero(name, shape):
    x = torch.linspace(-3, 3, math.prod(shape), device=DEVICE).view(shape).bfloat16().requires_grad_()
    dim = -2 if len(shape) > 1 else 0
    z = customops.fuse(lambda x: getattr(ours, name)(x, dim))(x)
    assert torch.equal(z, getattr(F, name)(x, dim))
    (dx,) = torch.autograd.grad(z, x, cotangent(z))
    assert not dx.any()


@pytest.mark.usefixtures("by_blocks")
@pytest.mark.sample(kernels="case", compiled="dtype")
@pytest.mark.parametrize("dtype", HALVES, ids=ids)
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_half_types_are_as_near_to_float64_as_torchs(case, dtype):
    xs = draw(case, dtype)
    want = _flat(results(case, theirs, [x.double() for x in xs]))
    torchs, mine = (_flat(results(case, library, xs)) for library in (theirs, ours))
    unit = torch.finfo(dtype).eps * want.abs().max()
    assert (mine - want).abs().max() <= (torchs - want).abs().max() + unit / 4


def _flat(nested: Any) -> Tensor:
    parts = [nested] if isinstance(nested, Tensor) else map(_flat, nested)
    return torch.cat([part.detach().double().flatten() for part in parts])


@pytest.mark.usefixtures("by_blocks")
@formulas_only
@pytest.mark.parametrize("library", [ours, theirs], ids=["ours", "torch's"])
def test_a_write_in_place_is_torchs_and_is_refused_inside_fuse(library):
    for name in ("relu", "silu", "elu", "selu", "celu", "leaky_relu", "mish", "hardswish", "hardsigmoid", "relu6"):
        function = getattr(library, name)
        x = torch.tensor([-2.0, -0.5, 1.5])
        want = getattr(F, name)(x)
        assert function(x, inplace=True) is x
        torch.testing.assert_close(x, want)
        with pytest.raises(customops.FusionError, match=r"writes over|in-place"):
            customops.fuse(lambda x, f=function: f(x * 2.0, inplace=True))(x)
        assert_same_outcome(customops.fuse(lambda x, f=function: f(x * 2.0, inplace=False))(x), getattr(F, name)(x * 2))


@formulas_only
def test_what_cannot_be_traced_says_so():
    x = torch.ones(2, 3)
    for function, message in (
        (lambda x: F.softmax(x * 2), "softmax without dim"),
        (lambda x: torch.softmax(x * 2, 1, torch.float64), "write dtype="),
        (lambda x: ours.normalize(x * 2, out=x), "out= cannot be traced"),
    ):
        with pytest.raises(customops.FusionError, match=message):
            customops.fuse(function)(x)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.testing.assert_close(ours.softmax(x), torch.full((2, 3), 1 / 3))
    assert any("Implicit dimension" in str(w.message) for w in caught)


@pytest.mark.usefixtures("by_blocks")
@formulas_only
def test_all_spellings_of_torch_mean_the_same():
    x = torch.randn(3, 5)
    for function in (
        lambda x: x.softmax(-1),
        lambda x: torch.softmax(x, -1, dtype=torch.float64),
        lambda x: F.log_softmax(x, dim=-1, dtype=torch.float32),
        lambda x: x.log_softmax(1),
        lambda x: torch.special.softmax(x, 1),
        lambda x: torch.layer_norm(x, [5]),
        lambda x: torch.rms_norm(x, (5,)),
        torch.selu,
        torch.nn.GELU("tanh"),
        torch.nn.Softmax(dim=-1),
        customops.nn.SiLU(),
    ):
        fused = customops.fuse(lambda x, f=function: f(x * 2.0) + 1.0)
        assert_same_outcome(fused(x), function(x * 2.0) + 1.0)


def test_formulas_of_the_gallery_are_shorter_than_350_lines():
    """Counted are the lines of all statements in functions, without docstrings, comments, signatures and imports."""
    folder, counted = Path(ours.__file__).parent, 0
    for path in folder.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        bodies = [node.body for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
        statements = [each for body in bodies for each in body[isinstance(_value(body[0]), str) :]]
        if "modules" not in path.stem:  # these call the functions
            numbers = {n for each in statements for n in range(each.lineno, each.end_lineno + 1)}
            counted += sum(bool(text.splitlines()[n - 1].partition("#")[0].strip()) for n in numbers)
    assert 150 < counted < 350


def _value(statement: ast.stmt) -> Any:
    return getattr(getattr(statement, "value", None), "value", None)


TWO_LAUNCHES = {"layer_norm(x, w, b)", "rms_norm(x, w)", "add_rms_norm"}  # the gradients of weights are added up
LARGE = {"layer_norm(x, w, b)", "rms_norm(x, w)", "add_rms_norm", "softmax(x, 1)", "gelu(x)", "swiglu", "rms_norm(x)"}
LARGE |= {"glu(x)", "group_norm(x)", "cosine_similarity"}


@pytest.mark.sample(kernels="", compiled="")
@pytest.mark.parametrize("case", [ROTARY, *(case for case in CASES if case.name in LARGE)], ids=ids)
def test_a_call_takes_one_launch_each_way(case):
    if MODE != "formulas":
        pytest.skip("a dry run compiles")
    pytest.importorskip("triton", reason="a dry run compiles")
    xs = [torch.empty([8192 * n if n == 2 else n for n in shape], requires_grad=True) for shape in case.shapes]
    with customops.dry_run("cuda:90") as launches:
        z = case.function(ours, *xs)
        assert len(launches) == 1
        zs = z if isinstance(z, tuple) else (z,)
        torch.autograd.grad(zs, xs, list(map(torch.empty_like, zs)))
    assert len(launches) == 2 + (case.name in TWO_LAUNCHES)
