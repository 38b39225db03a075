"""Losses of ``customops.nn.functional``: alone and inside other fused functions, against torch's."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional

import customops
from customops.blocks import plan
from customops.nn import functional as ours

from .cases import ids
from .compare import STRICT, TOLERANCE, assert_as_near, assert_same_outcome, assert_same_outcomes, cotangent, outcome
from .conftest import DEVICE, KERNELS, MODE

database = "torch.testing._internal.common_methods_invocations"
op_db = pytest.importorskip(database, reason="torch's database of operators needs the package expecttest").op_db
INF, NAN = math.inf, math.nan
HALVES = (torch.float16, torch.bfloat16)
INFOS = {op.name.rpartition(".")[2]: op for op in op_db if op.name.rpartition(".")[2] in ours.losses.__all__}


class Case(NamedTuple):
    """A call of a loss."""

    name: str  # in parametrized names
    loss: str  # the function
    tensors: dict[str, Any]  # the arguments that have a gradient, in float64, by name
    options: dict[str, Any]  # the others
    floats: dict[str, torch.Tensor]  # tensors that have none but are cast with them

    def __str__(self):
        return self.name

    def __call__(self, library: Any, *xs: torch.Tensor) -> torch.Tensor:
        """Return the loss of these, in the order of ``tensors``."""
        dtype, device = xs[0].dtype, xs[0].device
        floats = {name: x.to(device, dtype) for name, x in self.floats.items()}
        options = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in self.options.items()}
        return getattr(library, self.loss)(**dict(zip(self.tensors, xs, strict=True)), **floats, **options)

    def draw(self, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
        """Return the tensors, requiring a gradient."""
        return [x.to(DEVICE, dtype).requires_grad_() for x in self.tensors.values()]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, Y, W = drawn(4, 5), drawn(4, 5, seed=1), drawn(5, seed=2).abs()
PAIR = {"input": X, "target": Y}
X3, T1, T3 = drawn(3, 5, 2), torch.tensor([1, 4, -100, 0]), torch.tensor([[0, 1], [4, 2], [3, -100]])
P3 = drawn(3, 5, 2, seed=3).softmax(1)


def case(name: str, loss: str, tensors: dict, floats: dict | None = None, **options) -> Case:
    return Case(name, loss, tensors, options, floats or {})


CASES = [
    case("mse", "mse_loss", PAIR),
    case("mse weighted", "mse_loss", {**PAIR, "weight": Y.abs()}),
    case("l1", "l1_loss", PAIR, reduction="none"),
    case("l1 weighted", "l1_loss", {**PAIR, "weight": Y.abs()}, reduction="sum"),
    case("smooth_l1", "smooth_l1_loss", PAIR, beta=0.7),
    case("smooth_l1 of 0", "smooth_l1_loss", PAIR, reduction="sum", beta=0),
    case("huber", "huber_loss", PAIR, reduction="none"),
    case("huber weighted", "huber_loss", {**PAIR, "weight": Y.abs()}, delta=0.4),
    case("bce", "binary_cross_entropy_with_logits", {"input": X, "target": Y.sigmoid()}),
    case("bce weighted", "binary_cross_entropy_with_logits", {"input": X, "target": Y.sigmoid()},
         {"weight": W, "pos_weight": W + 0.5}, reduction="none"),
    case("kl", "kl_div", {"input": X.log_softmax(1), "target": Y.softmax(1)}),
    case("kl of logarithms", "kl_div", {"input": X, "target": Y}, reduction="batchmean", log_target=True),
    case("ce", "cross_entropy", {"input": X}, target=T1),
    case("ce none", "cross_entropy", {"input": X}, {"weight": W}, target=T1, reduction="none"),
    case("ce weighted", "cross_entropy", {"input": X3}, {"weight": W}, target=T3, label_smoothing=0.2),
    case("ce sum", "cross_entropy", {"input": X3}, target=T3.clamp(0), reduction="sum", label_smoothing=0.1,
         ignore_index=4),
    case("ce but for a class", "cross_entropy", {"input": X}, target=T1.clamp(0), ignore_index=4),
    case("ce of one", "cross_entropy", {"input": X[0]}, target=torch.tensor(3)),
    case("ce of bytes", "cross_entropy", {"input": X}, target=T1.abs().to(torch.uint8), ignore_index=100),
    case("ce of probabilities", "cross_entropy", {"input": X, "target": Y.softmax(1)}),
    case("ce of weighted probabilities", "cross_entropy", {"input": X3, "target": P3}, {"weight": W},
         label_smoothing=0.3),
    case("ce of a distribution", "cross_entropy", {"input": X[0], "target": Y[0].softmax(0)}, reduction="sum"),
    case("gaussian", "gaussian_nll_loss", {**PAIR, "var": W[:4, None] + 0.5}, full=True),
    case("gaussian of rows", "gaussian_nll_loss", {**PAIR, "var": W[:4] + 0.2}, reduction="none"),
    case("poisson", "poisson_nll_loss", PAIR),
    case("poisson of means", "poisson_nll_loss", {"input": X.abs() + 0.5, "target": 3 * Y.abs()}, reduction="sum",
         log_input=False, full=True),
    case("nll", "nll_loss", {"input": X}, target=T1),
    case("nll weighted", "nll_loss", {"input": X3}, {"weight": W}, target=T3, reduction="none"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _by_blocks(monkeypatch, replan):
    """Have blocks compute small tensors, too, where no kernel does: else all would be torch's own."""
    monkeypatch.setattr(plan, "LEAST_ELEMENTS", (0, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # kl_div's mean, sizes that broadcast
        yield


def gradients(z: torch.Tensor, xs: list[torch.Tensor]) -> tuple:
    return torch.autograd.grad(z, xs, cotangent(z), allow_unused=True) if z.requires_grad else ()


def results(function: Callable, library: Any, xs: list[torch.Tensor]) -> tuple:
    leaves = [x.detach().clone().requires_grad_() for x in xs]
    z = function(library, *leaves)
    return z.detach(), *gradients(z, leaves)


def flat(parts: tuple) -> torch.Tensor:
    return torch.cat([part.detach().double().flatten() for part in parts])


def inside(each: Case) -> Callable:
    """Return the loss as a part of another fused function: for torch, the same unfused."""
    fused = customops.fuse(lambda x, *others: each(ours, x * 1.5, *others) * 2)
    return lambda lib, x, *others: fused(x, *others) if lib is ours else each(lib, x * 1.5, *others) * 2


@pytest.mark.sample(kernels="loss")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=ids)
@pytest.mark.parametrize("loss", sorted(INFOS))
def test_samples_of_the_database_have_torchs_value_and_gradients(loss, dtype, tally):
    info, mine = INFOS[loss], getattr(ours, loss)
    if dtype not in info.supported_dtypes(DEVICE):
        pytest.skip("torch has none")
    for s in [*info.sample_inputs(DEVICE, dtype, requires_grad=True)][:: 8 if KERNELS else 1]:
        every = s.input, *s.args, *s.kwargs.values()
        xs = [x for x in every if isinstance(x, torch.Tensor) and x.requires_grad]
        got, want = (outcome(f, s.input, *s.args, **s.kwargs) for f in (mine, info))
        if dtype == torch.bfloat16 and isinstance(want, torch.Tensor):
            wide = [x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in every]
            first, named = wide[: 1 + len(s.args)], dict(zip(s.kwargs, wide[1 + len(s.args) :], strict=True))
            want = info(*first, **named).to(dtype)  # torch rounds on the way
        assert_same_outcome(got, want)
        if not isinstance(want, type):
            assert_same_outcomes(gradients(got, xs), gradients(want, xs))
        tally("database samples")


@pytest.mark.sample(kernels="")
@pytest.mark.parametrize("loss", [name for name, info in INFOS.items() if info.error_inputs_func])
def test_error_inputs_raise_torchs_type(loss, tally):
    for error in INFOS[loss].error_inputs(DEVICE):
        s = error.sample_input
        got, want = (outcome(f, s.input, *s.args, **s.kwargs) for f in (getattr(ours, loss), INFOS[loss]))
        if isinstance(want, type):
            assert got is want
        tally("database samples")


WRONG = {
    "no such reduction": lambda lib, x: lib.mse_loss(x, x, reduction="most"),
    "shapes": lambda lib, x: lib.l1_loss(x, x[:, :2]),
    "a weight of another shape": lambda lib, x: lib.mse_loss(x, x, weight=x[0]),
    "a weight of huber's": lambda lib, x: lib.huber_loss(x, x, weight=x[:1]),
    "beta": lambda lib, x: lib.smooth_l1_loss(x, x, beta=-1.0),
    "delta": lambda lib, x: lib.huber_loss(x, x, delta=0.0),
    "a target of one row": lambda lib, x: lib.binary_cross_entropy_with_logits(x, x[0]),
    "a weight of a larger shape": lambda lib, x: lib.binary_cross_entropy_with_logits(x, x, x.expand(2, 2, 3)),
    "int32 indices": lambda lib, x: lib.cross_entropy(x, torch.zeros(2, dtype=torch.int32, device=DEVICE)),
    "a class weight of one": lambda lib, x: lib.cross_entropy(x, torch.tensor([0, 1], device=DEVICE), x[0, :1]),
    "a class weight for probabilities": lambda lib, x: lib.cross_entropy(x, x, x[0, :1]),
    "too many indices": lambda lib, x: lib.cross_entropy(x, torch.zeros(3, dtype=torch.int64, device=DEVICE)),
    "integer probabilities": lambda lib, x: lib.cross_entropy(x, x.long()),
    "smoothing": lambda lib, x: lib.cross_entropy(x, x, label_smoothing=1.5),
    "a variance of another shape": lambda lib, x: lib.gaussian_nll_loss(x, x, x[:, :2]),
    "floats for nll": lambda lib, x: lib.nll_loss(x, x[:, 0]),
}


@pytest.mark.sample(kernels="")
@pytest.mark.parametrize("name", WRONG)
def test_what_torch_refuses_is_refused_alike_alone_and_fused(name):
    x = torch.ones(2, 3)
    want = outcome(WRONG[name], functional, x)
    assert isinstance(want, type)
    assert outcome(WRONG[name], ours, x) is want
    assert issubclass(outcome(customops.fuse(lambda x: WRONG[name](ours, x) * 2), x), (want, TypeError))


@pytest.mark.sample(kernels="case")
@pytest.mark.parametrize("size", [1, 7, 1 << 17], ids=ids)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_match_finite_differences_to_second_order(case, size, blocks, tally):
    if size != 7 and MODE != "formulas":
        pytest.skip("kernels have no blocks")
    blocks(size)
    xs = case.draw()
    assert gradcheck(lambda *xs: case(ours, *xs), xs, fast_mode=size != 7, **STRICT)
    assert gradgradcheck(lambda *xs: case(ours, *xs), xs, fast_mode=True, **STRICT)
    tally("gradchecks", 2)


@pytest.mark.sample(kernels="case", compiled="case")
@pytest.mark.parametrize("fused", [False, True], ids=["alone", "inside"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_are_torchs(case, fused):
    function = inside(case) if fused else case
    got, want = (results(function, library, case.draw()) for library in (ours, functional))
    torch.testing.assert_close(got, want, **TOLERANCE[torch.float64])


@pytest.mark.sample(kernels="case", compiled="case")
@pytest.mark.parametrize("dtype", HALVES, ids=ids)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_half_types_are_as_near_to_float64_as_torchs(case, dtype):
    xs = [x.detach() for x in case.draw(dtype)]
    floats = {name: x.to(dtype).double() for name, x in case.floats.items()}
    want = flat(results(case._replace(floats=floats), functional, [x.double() for x in xs]))
    theirs, mine = (flat(results(case, library, xs)) for library in (functional, ours))
    unit = torch.finfo(dtype).eps * want.abs().max()
    assert (mine - want).abs().max() <= (theirs - want).abs().max() + unit / 4


ROWS = {
    "large": [[1e4, -1e4, 0], [-1e4, -1e4, -1e4], [1e4, 1e4, 1e4], [-1e4, 1e4, 9999]],
    "equal": [[2.0, 2, 2], [0, 0, 0], [-7, -7, -7], [1e30, 1e30, 1e30]],
    "minus infinity": [[-INF, 0, 1], [0, -INF, -INF], [-INF, -INF, -INF], [1, -INF, 2]],
    "others": [[INF, 0, 1], [INF, INF, 0], [NAN, 0, 1], [0, 1, NAN]],
    "one class": [[1.0], [1e4], [-INF], [NAN]],
    "no rows": torch.empty(0, 3).tolist(),
}


@pytest.mark.sample(kernels="rows", compiled="rows")
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("rows", ROWS)
def test_losses_of_classes_at_extremes_are_torchs(rows, reduction, tally):
    wide = torch.tensor(ROWS[rows], device=DEVICE, dtype=torch.float64)
    wide = wide.view(-1, 3) if rows == "no rows" else wide
    targets = torch.tensor([[0, 1, 2, 0], [1, 1, 1, 2], [-100, -100, -100, -100]], device=DEVICE)
    for target in (targets.clamp(max=0) if rows == "one class" else targets)[:, : len(wide)]:
        for smoothing, dtype in product((0.0, 0.1), (torch.float32, *HALVES)):
            options = {"reduction": reduction, "label_smoothing": smoothing}
            function = lambda lib, x, t=target, options=options: lib.cross_entropy(x, t, **options)
            x = wide.to(dtype)
            got, want = (results(function, library, [x]) for library in (ours, functional))
            assert_as_near(got, want, results(function, functional, [x.double()]))
            tally("edge points", x.numel())


@pytest.mark.sample(kernels="loss", compiled="loss")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=ids)
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("loss", sorted({*INFOS} - {"cross_entropy", "gaussian_nll_loss", "nll_loss"}))
def test_losses_of_elements_at_extremes_are_torchs(loss, reduction, dtype, tally):
    numbers = torch.tensor([0.0, -0.0, 1, -1, 0.5, 2, 1e4, -1e4, 89, -104, 19, -21, -37, INF, -INF, NAN], dtype=dtype)
    ys = torch.tensor([0.0, 1, 0.5, 2, -1] if loss == "kl_div" else [0.0, 1, 0.5, 1e4, -3], dtype=dtype)
    x, y = (each.reshape(-1).to(DEVICE) for each in torch.meshgrid(numbers, ys, indexing="ij"))
    function = lambda lib, x, y: getattr(lib, loss)(x, y, reduction=reduction)
    got, want = (results(function, library, [x, y]) for library in (ours, functional))
    assert_as_near(got, want, results(function, functional, [x.double(), y.double()]))
    tally("edge points", x.numel())


@pytest.mark.sample(kernels="all", compiled="dtype")
@pytest.mark.parametrize("dtype", HALVES, ids=ids)
def test_half_types_tell_all_classes_apart(dtype):
    x, target = drawn(7, 2100).to(DEVICE, dtype), torch.tensor([0, 255, 257, 1023, 2047, 2049, 2099], device=DEVICE)
    function = lambda lib, x: lib.cross_entropy(x, target, reduction="none")
    want = results(function, functional, [x.float()])
    for mine, wide in zip(results(function, ours, [x]), want, strict=True):
        torch.testing.assert_close(mine, wide.to(dtype), **TOLERANCE[dtype])


@pytest.mark.parametrize("fused", [False, True], ids=["alone", "inside"])
@pytest.mark.parametrize("index", [-1, 3, 1 << 40, -100], ids=ids)
def test_an_index_of_no_class_raises_torchs_error_on_a_cpu(index, fused):
    x, target = torch.zeros(2, 3), torch.tensor([1, index])
    function = customops.fuse(lambda x, t: ours.cross_entropy(x * 1.0, t)) if fused else ours.cross_entropy
    if index == -100:
        torch.testing.assert_close(function(x, target), torch.tensor(math.log(3)))
        return
    for each in (x, x.clone().requires_grad_(), x[:, :, None].expand(2, 3, 2).clone()):
        labels = target if each.dim() == 2 else target[:, None].expand(2, 2)
        for _ in range(2):  # the second call finds its plan
            with pytest.raises(IndexError, match=f"Target {index} is out of bounds"):
                function(each, labels)


@pytest.mark.sample(kernels="all", compiled="once")
def test_a_class_without_others_has_the_loss_0():
    x, target = drawn(3, 1).float().to(DEVICE).requires_grad_(), torch.zeros(3, dtype=torch.int64, device=DEVICE)
    losses = customops.fuse(lambda x, t: ours.cross_entropy(x * 2, t, reduction="none"))(x, target)
    assert losses.tolist() == [0.0, 0.0, 0.0]
    assert torch.autograd.grad(losses.sum(), x)[0].tolist() == [[0.0], [0.0], [0.0]]


ODD = {
    "one index for one distribution": lambda lib, x: lib.cross_entropy(x[0], torch.tensor([2])),
    "no classes": lambda lib, x: lib.cross_entropy(x[:, :0], x[:, :0]),
    "a byte that -1 is": lambda lib, x: lib.cross_entropy(x, torch.tensor([1, 255]).byte(), ignore_index=-1),
    "a large index of none": lambda lib, x: lib.cross_entropy(x, torch.tensor([1, 1 << 40]), ignore_index=1 << 40),
    "names": lambda lib, x: lib.cross_entropy(target=torch.tensor([1, 0]), input=x),
    "another layout": lambda lib, x: lib.cross_entropy(x.t().contiguous().t(), torch.tensor([1, 0])),
    "two dtypes": lambda lib, x: lib.mse_loss(x, x.double() * 2),
    "integers": lambda lib, x: lib.mse_loss(x.long(), x),
    "a large beta": lambda lib, x: lib.smooth_l1_loss(x, x * 2, beta=1e30),
}


@pytest.mark.sample(kernels="")
@pytest.mark.parametrize("name", ODD)
def test_odd_calls_are_torchs(name):
    x = drawn(2, 3).float()
    assert_same_outcome(outcome(ODD[name], ours, x), outcome(ODD[name], functional, x))


@pytest.mark.sample(kernels="all", compiled="once")
def test_an_infinite_variance_has_torchs_loss():
    x, var = torch.ones(3), torch.tensor([1.0, 0.0, math.inf])
    fused = customops.fuse(lambda x, var: ours.gaussian_nll_loss(x * 2, x, var, reduction="none"))
    torch.testing.assert_close(fused(x, var), functional.gaussian_nll_loss(x * 2, x, var, reduction="none"))


def test_a_negative_smoothing_of_probabilities_is_none_as_torchs_is(blocks):
    blocks(8)
    x, target = torch.randn(4, 3, requires_grad=True), torch.rand(4, 3)
    want = functional.cross_entropy(x, target, label_smoothing=-0.1)
    torch.testing.assert_close(ours.cross_entropy(x, target, label_smoothing=-0.1), want)


def test_a_negative_variance_has_the_loss_nan():
    x, var = torch.zeros(3, device=DEVICE), torch.tensor([1.0, -1.0, 0.0], device=DEVICE)
    losses = ours.gaussian_nll_loss(x, x, var, reduction="none", eps=1.0)
    torch.testing.assert_close(losses, torch.tensor([0.0, NAN, 0.0], device=DEVICE), equal_nan=True)


@pytest.mark.sample(kernels="", compiled="once")
def test_an_index_of_no_class_is_nan_in_a_kernel():
    x = torch.zeros(3, 3, requires_grad=True)
    target = torch.tensor([1, 3, -1])
    if MODE != "compiled":
        program = ours.cross_entropy.program(x, target, reduction="none")
        assert "nan" in str(program)
        return
    losses = ours.cross_entropy(x, target, reduction="none")
    assert losses.isnan().tolist() == [False, True, True]


@pytest.mark.sample(kernels="", compiled="")
@pytest.mark.parametrize(
    ("case", "reduction", "forward", "backward"),
    [
        ("ce", "none", 1, 1), ("ce", "sum", 2, 1), ("ce", "mean", 3, 1), ("ce of probabilities", "none", 1, 1),
        ("nll", "none", 1, 1), ("mse", "mean", 2, 1), ("bce", "sum", 2, 1), ("huber", "none", 1, 1),
    ],
)  # fmt: skip
def test_losses_take_one_launch_each_way_and_one_for_partial_sums(case, reduction, forward, backward):
    if MODE != "formulas":
        pytest.skip("a dry run compiles")
    pytest.importorskip("triton", reason="a dry run compiles")
    each = next(one for one in CASES if one.name == case)
    options = {"reduction": reduction} | (
        {"target": torch.empty(4096, dtype=torch.int64)} if len(each.tensors) < 2 else {}
    )
    xs = [torch.empty(4096, 1024, requires_grad=True) for _ in each.tensors]
    with customops.dry_run("cuda:90") as launches:
        z = getattr(ours, each.loss)(*xs, **options)
        assert len(launches) == forward
        torch.autograd.grad(z, xs[:1], torch.empty_like(z))
    assert len(launches) == forward + backward


@pytest.mark.sample(kernels="")
def test_cross_entropy_saves_the_logits_and_statistics_of_rows():
    x, target = torch.randn(64, 33, requires_grad=True), torch.randint(33, (64,))
    saved: list[torch.Tensor] = []
    z = ours.cross_entropy(x, target)
    saved = list(z.grad_fn.saved_tensors)
    assert sum(each.numel() > 64 for each in saved) == 1
    assert any(each.data_ptr() == x.data_ptr() for each in saved)


@pytest.mark.sample(kernels="")
def test_torchs_spelling_inside_fuse_means_these():
    x, target = torch.randn(8, 5), torch.tensor([0, 1, 2, 3, 4, 4, -100, 1])
    fused = customops.fuse(lambda x, target: functional.cross_entropy(x * 2, target, label_smoothing=0.1))
    torch.testing.assert_close(fused(x, target), functional.cross_entropy(x * 2, target, label_smoothing=0.1))
    assert "position" in str(fused.program(x, target))


@pytest.mark.sample(kernels="")
def test_deprecated_arguments_are_torchs():
    x, y = torch.randn(3), torch.randn(3)
    torch.testing.assert_close(ours.mse_loss(x, y, False), functional.mse_loss(x, y, False))
    torch.testing.assert_close(ours.l1_loss(x, y, reduce=False), functional.l1_loss(x, y, reduce=False))


@pytest.mark.sample(kernels="")
def test_sizes_that_broadcast_warn_as_torch_does():
    x, y = torch.randn(3, 1), torch.randn(4)
    with pytest.warns(UserWarning, match="target size .*4.* different to the input size .*3, 1"):
        got = customops.fuse(lambda x, y: ours.mse_loss(x * 1.0, y))(x, y)
    torch.testing.assert_close(got, functional.mse_loss(x, y))


MODULES = {
    "BCEWithLogitsLoss": {"pos_weight": W, "reduction": "sum"},
    "CrossEntropyLoss": {"weight": W, "ignore_index": 3, "label_smoothing": 0.1},
    "GaussianNLLLoss": {"full": True, "eps": 0.1},
    "HuberLoss": {"delta": 0.3},
    "KLDivLoss": {"reduction": "batchmean", "log_target": True},
    "L1Loss": {"reduction": "none"},
    "MSELoss": {},
    "NLLLoss": {"weight": W, "reduction": "sum"},
    "PoissonNLLLoss": {"full": True, "reduction": "sum"},
    "SmoothL1Loss": {"beta": 0.2},
}


@pytest.mark.sample(kernels="")
@pytest.mark.parametrize("name", MODULES)
def test_modules_are_torchs_with_these_losses(name):
    mine, theirs = (getattr(library, name)(**MODULES[name]) for library in (customops.nn, torch.nn))
    assert repr(mine) == repr(theirs)
    assert mine.state_dict().keys() == theirs.state_dict().keys()
    target = torch.tensor([0, 4, 3, 1]) if name in ("CrossEntropyLoss", "NLLLoss") else Y
    targets = [target, Y.square()] if name == "GaussianNLLLoss" else [target]
    got, want = (results(lambda _, x, m=m: m(x, *targets), None, [X]) for m in (mine, theirs))
    torch.testing.assert_close(got, want, **TOLERANCE[torch.float64])
    assert "Fused" in type(mine(X.clone().requires_grad_(), *targets).grad_fn).__name__


@pytest.mark.sample(kernels="")
def test_programs_have_no_arguments_that_torch_refuses():
    x, target = torch.ones(2, 3), torch.tensor([0, 1])
    for call, message in (
        (lambda: ours.cross_entropy.program(x, target, x[0, :1]), "weights of .1,. for 3 classes"),
        (lambda: ours.cross_entropy.program(x, target[:1]), "indices of another shape"),
        (lambda: ours.cross_entropy.program(x, target, ignore_index=1 << 24), "indices of 16777216 and more"),
        (lambda: ours.huber_loss.program(x, x, weight=x[:1]), "weights of another shape"),
        (lambda: ours.mse_loss.program(x, x, False), "size_average"),
    ):
        with pytest.raises(customops.FusionError, match=message):
            call()
