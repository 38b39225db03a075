"""Programs nobody thought of, drawn by Hypothesis: fused, they have torch's values and derivatives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import pytest
import torch
from torch import Tensor

import customops
from customops import config, formulas
from customops.blocks import plan
from customops.compiler.evaluate import evaluate
from customops.compiler.executable import COMPUTE, Executable
from customops.compiler.gradient import differentiate
from customops.fusion.decorator import fused_behind
from customops.fusion.function import Fusion

from .compare import cotangent
from .conftest import KERNELS, WALKING

pytest.importorskip("hypothesis", reason="it draws the programs")
from hypothesis import Phase, assume, given, seed, settings
from hypothesis import strategies as st

from . import test_hypothesis  # noqa: F401 - it registers the profile
from .programs_drawn import Program, programs

settings.load_profile("customops")  # again, as torch's own tests load another when they are imported

PARTS = range(8)  # each draws other programs, so that they can run side by side
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROOMS = ("as on a GPU", "as on a GPU", "two elements")  # what a program holds of a row at once
ROUNDING = 2.0**-24  # of float32, in which half types are computed

Function = Callable[..., Tensor | tuple[Tensor, ...]]


def examples(full: bool, kernels: int, formulas: int) -> settings:
    """Return settings for so many examples of a part in this mode; with ``--full``, 2,000 of all parts and tests."""
    return settings(max_examples=125 if full else kernels if KERNELS else formulas)


def several(returned: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (returned,) if isinstance(returned, Tensor) else tuple(returned)


def derivatives(function: Function, xs: Sequence[Tensor], taken: Sequence[int]) -> list[list[Tensor]]:
    """Return values, gradients from the results ``taken``, and gradients of those, by inputs and cotangents alike."""
    leaves = [x for x in xs if x.requires_grad]
    zs = several(function(*xs))
    gs = [cotangent(zs[i]).requires_grad_() for i in taken]
    once = _grad([zs[i] for i in taken], leaves, gs, retain_graph=True)
    again = _grad([zs[i] for i in taken], leaves, gs, create_graph=True)
    live = [dx for dx in again if dx.requires_grad]
    twice = _grad(live, [*leaves, *gs], [cotangent(dx) for dx in live]) if live else []
    return [list(zs), once, again, twice]


def _grad(zs, leaves, gs, **options) -> list[Tensor]:
    grads = torch.autograd.grad(zs, leaves, gs, allow_unused=True, **options)
    return [torch.zeros_like(x) if dx is None else dx for x, dx in zip(leaves, grads, strict=True)]


def derived(program: Program) -> Function:
    """Return the program with the gradients that :mod:`customops.compiler.gradient` derives, by torch's formulas."""
    made = customops.fuse(program.function(customops))

    class Derived(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *xs):
            ctx.save_for_backward(*xs)
            ctx.set_materialize_grads(False)
            graph = made.program(*xs)
            zs = evaluate(graph, dict(enumerate(xs)), COMPUTE[_common(xs)])
            ctx.mark_non_differentiable(*(zs[k] for k in graph.detached_results))
            return tuple(zs)

        @staticmethod
        def backward(ctx, *gs):
            xs = ctx.saved_tensors
            arrived = tuple(i for i, g in enumerate(gs) if g is not None)
            wanted = tuple(i for i, needed in enumerate(ctx.needs_input_grad) if needed)
            graph, result_index = differentiate(made.program(*xs), wanted, arrived)
            given = dict(enumerate([*(gs[i] for i in arrived), *xs]))
            grads = evaluate(graph, given, COMPUTE[_common(xs)])
            found = dict(zip(wanted, (None if i is None else grads[i] for i in result_index), strict=True))
            return tuple(found.get(i) for i in range(len(xs)))

    results = list(dict.fromkeys(program.returns))  # one returned twice is one result
    return lambda *xs: [z[results.index(name)] for z in [Derived.apply(*xs)] for name in program.returns]


def _common(xs: Sequence[Tensor]) -> torch.dtype:
    return torch.float64 if any(x.dtype == torch.float64 for x in xs) else torch.float32


def assert_near(got: Sequence[Tensor], want: Sequence[Tensor], rounding: float, name: str) -> None:
    """Assert equality to within ``rounding`` of the largest of all elements."""
    largest = max([1e-3, *(float(z.detach().abs().max()) for z in want if z.numel())])
    for mine, theirs in zip(got, want, strict=True):
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype), name
        torch.testing.assert_close(mine, theirs, rtol=0, atol=rounding * largest, msg=lambda m: f"{name}: {m}")


def relations(xs: Sequence[Tensor], returned: Tensor | Sequence[Tensor]) -> list[tuple]:
    """Return for each result whether it is recorded, its strides, and which inputs and results share its memory."""
    zs = several(returned)
    memory = [z.untyped_storage().data_ptr() for z in (*xs, *zs)]
    return [
        (z.requires_grad, z.stride(), tuple(memory[len(xs) + k] == other for other in memory)) for k, z in enumerate(zs)
    ]


def assert_torchs_derivatives(function: Function, program: Program, first: bool) -> None:
    """Assert torch's derivatives in float64; those of the ``first`` recorded result only, if so asked."""
    plain = program.function(torch)
    recorded = [i for i, z in enumerate(several(plain(*program.tensors()))) if z.requires_grad]
    assume(recorded)
    taken = recorded[:1] if first else recorded
    want = derivatives(plain, program.tensors(), taken)
    got = derivatives(function, program.tensors(), taken)
    names = "values", "gradients", "gradients to differentiate", "gradients of gradients"
    for name, mine, theirs in zip(names, got, want, strict=True):
        assert_near(mine, theirs, 1e-10, name)


@pytest.fixture
def kernels(walking, blocks):
    """Return ``begin(room)``, which has plans made anew, for programs or blocks that hold so much of a row."""
    if not KERNELS:
        as_usual = plan.BLOCK_BYTES // 8
        return lambda room: blocks(as_usual if room == ROOMS[0] else 2)
    from customops.triton_kernels import row_tiling  # noqa: PLC0415 - Triton may be missing

    as_on_a_gpu = {name: getattr(row_tiling, name) for name in (*WALKING, "WARP_THREADS")}
    return lambda room: walking(**(as_on_a_gpu if room == ROOMS[0] else {"WARP_THREADS": 8}))


def compiled() -> Counter:
    """Count stages, and reasons for spills, of the plans that there are for fused programs."""
    fusions = [x for x in config.plans.values() if isinstance(x, Fusion)]
    made = [("forward", executable) for fusion in fusions for executable in fusion.executables.values()]
    made += [("backward", x) for x in config.plans.values() if isinstance(x, Executable)]
    found = Counter()
    for way, plans in made:
        found[f"fused {way} programs"] += 1
        found[f"fused {way} programs in one stage"] += plans.stage_count <= 1
        reasons = {spill.reason.split(" values")[0].rstrip("0123456789 ") for spill in plans.spills}
        for reason in reasons or ({"no spill: results over several sets of axes"} if plans.stage_count > 1 else ()):
            found[f"fused {way} programs cut: {reason}"] += 1
    return found


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize("part", PARTS)
def test_fused_random_programs_have_torchs_derivatives(part, full, kernels, tally):
    """They have them in float64, gradients of gradients too; in a few, values pass between stages through memory."""
    counts = Counter()

    @seed(part)
    @examples(full, kernels=4, formulas=25)
    @given(programs(seen=counts), st.booleans(), st.sampled_from(ROOMS))
    def check(program, first, room):
        kernels(room)
        assert_torchs_derivatives(customops.fuse(program.function(customops)), program, first)
        counts.update(compiled() if room == ROOMS[0] else {"random programs with few registers": 1} if KERNELS else {})
        counts["random programs"] += 1

    check()
    for name, n in counts.items():
        tally(name, n)


@pytest.mark.sample(compiled="all")
@seed(0)
@settings(max_examples=60)
@given(program=programs())
def test_results_of_fused_random_programs_lie_and_are_recorded_as_torchs(program, kernels):
    """No result is a view of an argument or of another result; one that depends on no leaf is not recorded."""
    kernels(ROOMS[0])
    got, want = [], []
    for lib, found in ((customops, got), (torch, want)):
        run = program.function(lib)
        xs = program.tensors()
        found += relations(xs, (customops.fuse(run) if lib is customops else run)(*xs))
    assert got == want


@pytest.mark.skipif(KERNELS, reason="kernels compute, and blocks nothing")
@pytest.mark.parametrize("part", PARTS[:4])
def test_fused_random_programs_by_blocks_of_any_length_have_the_values_of_one_block(part, full, blocks, tally):
    """They differ by less than a sum in another order does; half types by one unit at most."""
    counts = Counter()

    @seed(part)
    @examples(full, kernels=0, formulas=20)
    @given(programs(dtypes=DTYPES), st.integers(1, 9), st.sampled_from((1, 16)))
    def check(program, elements, line):
        found = []
        for begin in (lambda: blocks(1 << 17, 16), lambda: blocks(elements, line)):
            begin()
            xs = program.tensors()
            zs = several(customops.fuse(program.function(customops))(*xs))
            taken = [z for z in zs if z.requires_grad]
            leaves = [x for x in xs if x.requires_grad]
            found.append([*zs, *(_grad(taken, leaves, list(map(cotangent, taken))) if taken else ())])
        rounding = max(4 * torch.finfo(z.dtype).eps if z.dtype.itemsize == 2 else 2e-5 for z in found[0])
        assert_near(found[1], found[0], rounding, "by blocks")
        counts["random programs"] += 1

    check()
    tally("random programs", counts["random programs"])


@pytest.mark.parametrize("name", ["mul_dx", "mean_dx", "sigmoid"])
def test_fused_random_programs_find_a_formula_off_by_1e_5(name, monkeypatch):
    """The formula is wrong in what is derived; torch's own, which the plain program uses, is not touched."""
    right = getattr(formulas, name)
    wrong = wraps(right)(lambda *args, **options: right(*args, **options) * (1 + 1e-5))
    monkeypatch.setattr(formulas, name, wrong)

    @seed(0)
    @settings(max_examples=100, phases=[Phase.generate], report_multiple_bugs=False)
    @given(programs())
    def check(program):
        assert_torchs_derivatives(derived(program), program, first=False)

    with pytest.raises(AssertionError, match=r"values|gradients"):
        check()


@pytest.mark.skipif(KERNELS, reason="by formulas it is the same in either mode")
@pytest.mark.parametrize("part", PARTS)
def test_derived_gradients_of_random_programs_for_fuse_are_torchs(part, full, tally):
    """Kernels are made of these gradients, which formulas compute here, in float64."""
    counts = Counter()

    @seed(part)
    @examples(full, kernels=0, formulas=50)
    @given(programs(), st.booleans())
    def check(program, first):
        assert_torchs_derivatives(derived(program), program, first)
        counts["random programs"] += 1

    check()
    tally("random programs", counts["random programs"])


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize("part", PARTS)
def test_fused_random_programs_in_any_dtype_are_rounded_once(part, full, kernels, tally):
    """Values and gradients are half a unit of the dtype from the truth, but for the rounding of float32 between.

    The truth of a gradient is that of the results as they are saved: rounded, as torch's own operators save them.
    """
    counts = Counter()

    @seed(part)
    @examples(full, kernels=4, formulas=15)
    @given(programs(dtypes=DTYPES, casts=True))
    def check(program):
        kernels(ROOMS[0])
        plain = several(program.function(torch)(*program.tensors()))
        taken = [i for i, z in enumerate(plain) if z.requires_grad]
        assume(taken)
        run = program.function(customops)
        assert_rounded_once(customops.fuse(run) if KERNELS else derived(program), program, plain, taken)
        counts["random programs"] += 1

    check()
    tally("random programs", counts["random programs"])


def assert_rounded_once(function: Function, program: Program, plain: Sequence[Tensor], taken: Sequence[int]) -> None:
    gs = [cotangent(plain[i]) for i in taken]
    exact = program.function(torch, cast=rounded)
    truth = _in_dtype(exact, program, taken, gs, torch.float64)
    inexact = [(_in_dtype(exact, program, taken, gs, torch.float32), truth)]
    for k in range(3):  # what cancels may do so exactly for one input, and not for its neighbours
        near = [_in_dtype(exact, program, taken, gs, dtype, nudge=k + 1) for dtype in (torch.float32, torch.float64)]
        inexact.append(tuple(near))
        random = torch.Generator().manual_seed(k)
        noise = lambda z, unit, random=random: z * (1 + unit * (torch.rand(z.shape, generator=random) * 2 - 1).to(z))
        noisy = program.function(torch, noise, rounded)
        inexact.append((_in_dtype(noisy, program, taken, gs, torch.float64), truth))
    xs = program.tensors()
    zs = several(function(*xs))
    leaves = [x for x in xs if x.requires_grad]
    gs = [g.to(zs[i].dtype) for i, g in zip(taken, gs, strict=True)]
    got = [*zs, *_grad([zs[i] for i in taken], leaves, gs, retain_graph=True)]
    if KERNELS and type(zs[taken[0]].grad_fn).__name__ == "FusedFunctionBackward":
        truth = [*truth[: len(zs)], *_of_saved_results(function, xs, zs, dict(zip(taken, gs, strict=True)))]
    for k, (mine, like, true) in enumerate(zip(got, [*plain, *leaves], truth, strict=True)):
        if KERNELS:
            assert mine.dtype == like.dtype
        info = torch.finfo(like.dtype)
        assume(true.abs().max() <= info.max)
        between = max(float((other[k] - same[k]).abs().max()) for other, same in inexact)
        allowed = info.eps / 2 * true.abs() + info.smallest_normal * info.eps
        allowed += 8 * between + 8 * ROUNDING * true.abs().max()
        excess = ((mine.double() - true).abs() - allowed).max()
        assert excess <= 0, f"result {k}: off by {excess} more than rounding; {mine} is not {true}"


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return numbers of ``dtype`` in the dtype of ``x``, with the derivative of x."""
    return x + (x.detach().to(dtype).to(x.dtype) - x.detach())


def _of_saved_results(fused: Any, xs: Sequence[Tensor], zs: Sequence[Tensor], gs: dict[int, Tensor]) -> list[Tensor]:
    """Return the gradients in float64 that are derived, of the inputs and of the results that were saved."""
    made = fused_behind(fused)
    trace, _ = made.trace(xs, (), xs, {})
    fusion = made.fuse(trace, xs, xs, {})
    recording = fusion.recording((False, *(x.requires_grad for x in xs)), True)
    cotangents: dict[int, Any] = {}
    for i, g in gs.items():
        cotangents[trace.output_order[i]] = cotangents.get(trace.output_order[i], 0) + g.double()
    gradient = fusion.gradient(recording.needed, tuple(sorted(cotangents)), recording.values)
    outputs = {trace.output_order[i]: z.detach() for i, z in enumerate(zs)}
    given = {k: cotangents[i] for k, i in enumerate(gradient.outputs)}
    given |= {gradient.offset + i: x.detach() for i, x in enumerate(xs)}
    given |= {gradient.offset + i: outputs[k] for i, k in fusion.savable_results.items()}
    grads = evaluate(gradient.graph, given, torch.float64, gradient.known)
    at = dict(zip(recording.needed, gradient.result_index, strict=True))
    leaves = [(i, x) for i, x in enumerate(xs) if x.requires_grad]
    return [torch.zeros_like(x).double() if at[i] is None else grads[at[i]] for i, x in leaves]


def _in_dtype(function: Function, program: Program, taken, gs, dtype: torch.dtype, nudge: int = 0) -> list[Tensor]:
    """Return values and gradients of the same inputs, or some a little larger, computed throughout in ``dtype``."""
    given = [(x, x.detach() * (1 + nudge * 2.0**-6) if nudge else x.detach()) for x in program.tensors()]
    xs = [near.to(dtype).requires_grad_(x.requires_grad) for x, near in given]
    zs = several(function(*xs))
    grads = _grad([zs[i] for i in taken], [x for x in xs if x.requires_grad], [g.to(dtype) for g in gs])
    return [z.detach().double() for z in (*zs, *grads)]
