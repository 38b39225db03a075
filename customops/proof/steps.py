"""The steps of the proof of an operator, each of which says what it found: what ``customops prove`` shows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from time import perf_counter
from typing import Any, NamedTuple

import torch

from .. import config
from ..ptx.faults import KernelFault
from ..tools.dry_run import dry_run
from ..tools.targets import TARGETS
from . import database
from .cases import LAYOUTS, REDUCTIONS, Call, OperatorCase, recorded_call, shapes_for
from .checks import (
    FLOATS,
    check_edges,
    check_edges_of_products,
    check_edges_of_rows,
    check_gradients,
    check_second_gradients,
    drawn,
    laid_out,
)
from .compare import assert_as_by_formula

EXECUTED = tuple(name for name, gpu in TARGETS.items() if gpu.backend == "cuda")
SHAPE = (2, 3, 2, 2)  # of what compiled code is executed on: every call takes four axes
SAMPLED = torch.float32, torch.complex64, torch.int64  # the dtypes of samples, where the operator has them


class Found(NamedTuple):
    """What a step found."""

    text: str  # one line
    details: tuple[str, ...] = ()  # more lines


class Skipped(Exception):
    """The reason why a step cannot be made here."""


class Step(NamedTuple):
    """A step of a proof."""

    name: str
    outcome: str  # "proven", "failed" or "skipped"
    found: str  # one line: what was found, or why it failed or was skipped
    details: tuple[str, ...]
    seconds: float


def steps_of(row: OperatorCase) -> Iterator[tuple[str, Callable[[], Step]]]:
    """Yield the name of each step of an operator's proof, and a function that makes it."""
    for name, check in STEPS.items():
        yield name, partial(_step, name, check, row)


def _step(name: str, check: Callable[[OperatorCase], Found], row: OperatorCase) -> Step:
    start = perf_counter()
    try:
        (found, details), outcome = check(row), "proven"
    except Skipped as reason:
        found, details, outcome = str(reason), (), "skipped"
    except Exception as error:  # whatever is raised, nothing is proven
        kind = "" if isinstance(error, AssertionError | KernelFault) else f"{type(error).__name__}: "
        found, *more = f"{kind}{error}".strip().split("\n")
        details, outcome = tuple(more), "failed"
    return Step(name, outcome, found, tuple(details), perf_counter() - start)


def operators(row: OperatorCase) -> tuple[Any, ...]:
    """Return the classes that calls of an operator apply."""
    nodes = (recorded_call(row, call)[0] for call in row.calls)
    return tuple(dict.fromkeys(node._forward_cls for node in nodes))


def _derivation(row: OperatorCase) -> Found:
    """Quote the docstrings of the operator, and find what they derive."""
    lines: list[str] = []
    for operator in operators(row):
        base = operator.__mro__[1]
        text = inspect.getdoc(operator) or ""
        if not text:
            raise AssertionError(f"{operator.__name__} has no derivation")
        lines += [f"{operator.__name__}: {text}"]
        if f":class:`{base.__name__}`" in text:
            lines += [f"{base.__name__}: {inspect.getdoc(base)}"]
    every = "\n".join(lines).split("\n")
    derived = [line.strip() for line in every if line.startswith("    d")]
    return Found("; ".join(dict.fromkeys(derived)) or every[0], tuple(every))


def _spelled(row: OperatorCase, module: str) -> Found:
    """Prove a spelling of the formulas equal to the definition, and its derivatives to those that SymPy takes."""
    from . import claims, notation, symbolic  # noqa: PLC0415 - they need SymPy

    spelled = symbolic.spelling(module)
    calls = [call for call in row.calls if row.definition and call.name not in symbolic.BY_CLAIMS]
    count = sum(symbolic.prove_call(spelled, row, call) for call in calls)
    claimed = [(claim, claim(spelled)) for each in operators(row) for claim in claims.claims_of(row.name, each)]
    count += sum(n for _, n in claimed)
    details = []
    for operator in operators(row):
        read = operator.derivatives if hasattr(operator, "derivatives") else filter(None, [operator.derivative])
        for formula in (operator.formula, *read):
            names = list(inspect.signature(spelled[formula.__name__]).parameters)
            names = [name for name in names if name not in ("out", "like")]
            term = notation.mathematics(formula.__name__, names, module)
            details.append(f"{formula.__name__}({', '.join(names)}) = {term}")
    texts = [inspect.getdoc(getattr(claim, "func", claim)) or "" for claim, _ in claimed]
    details += [text.partition("\n")[0] for text in dict.fromkeys(texts)]
    what = f"the definition {row.definition}" if row.definition else "the definition of the reduction"
    if not count:
        raise AssertionError("nothing was proven")
    return Found(f"{count} proofs: formula and derivatives follow from {what}", tuple(dict.fromkeys(details)))


def _by_sympy(row: OperatorCase) -> Found:
    return _spelled(row, "customops.formulas")


def _by_sympy_in_triton(row: OperatorCase) -> Found:
    if config.find_triton() is None:
        raise Skipped("its spelling of the formulas imports Triton: install triton")
    found = _spelled(row, "customops.triton_kernels.formulas")
    return Found(f"Triton's code too: {found.text}", found.details)


def _patterns(row: OperatorCase) -> list[tuple[Call, tuple[tuple[int, ...], ...], str]]:
    """Return of each call some shapes, one of each rank, in layouts that take turns."""
    layouts = cycle([name for name in LAYOUTS if name != "channels_last"])
    return [
        (call, shapes, next(layouts))
        for call in row.calls
        for shapes in {len(shapes[0]): shapes for shapes in shapes_for(call)}.values()
    ]


def _by_differences(row: OperatorCase, check: Callable, what: str) -> Found:
    patterns = _patterns(row)
    for call, shapes, layout in patterns:
        try:
            check(row, call, shapes, layout)
        except RuntimeError as error:
            raise AssertionError(f"{call} of {shapes}, {layout}: {error}") from None
    calls = ", ".join(call.name for call in row.calls)
    return Found(f"{len(patterns)} checks of {what} against finite differences in float64, rtol 1e-6", (calls,))


def _edges(row: OperatorCase) -> Found:
    if row.name == "prod":
        points = sum(check_edges_of_products(dtype) for dtype in FLOATS)
    elif row.name in REDUCTIONS:
        points = sum(check_edges_of_rows(row.name, dtype) for dtype in FLOATS)
    else:
        points = sum(check_edges(call, dtype) for call in row.calls for dtype in FLOATS)
    what = "0, -0, 1, -1, inf, -inf, nan, 1e30, -1e30"
    return Found(f"{points:,} points of {what}: value, gradients and signs of zero are torch's")


def _database(row: OperatorCase) -> Found:
    try:
        info = database.torchs(row)
    except ImportError:
        raise Skipped('torch\'s database needs expecttest: pip install "customops[prove]"') from None
    values = gradients = 0
    for dtype in [dtype for dtype in SAMPLED if dtype in info.supported_dtypes("cpu")]:
        for sample in info.sample_inputs("cpu", dtype):
            for each in (sample, sample.noncontiguous()):
                database.check_value(row, each)
                values += 1
        if dtype in info.supported_backward_dtypes("cpu"):
            gradients += sum(
                database.check_gradients(row, sample) for sample in info.sample_inputs("cpu", dtype, requires_grad=True)
            )
    return Found(f"{values} samples of PyTorch's database have its value, {gradients} its gradients")


def _compiled(row: OperatorCase, target: str) -> Found:
    """Execute the compiled code of each call, of its gradients and of theirs, and hold them against the formulas."""
    if config.find_triton() is None:
        raise Skipped("there are no kernels without Triton: install triton")
    if config.is_interpreted():
        raise Skipped("TRITON_INTERPRET is set, so kernels cannot be compiled: unset it")
    if config.current_backend == "torch":
        raise Skipped("CUSTOMOPS_BACKEND=torch, so no kernel runs: unset it")
    with dry_run(target, execute=True) as records:
        for call in row.calls:
            shapes = [SHAPE, SHAPE[2:]][: call.arity] if call.arity == 2 else [SHAPE]
            assert_as_by_formula(laid_out(call, "contiguous"), drawn(row, shapes))
        if row.name not in REDUCTIONS:
            check_edges(row.calls[0], torch.float32)
    if not records:
        raise AssertionError("no kernel was launched")
    kernels = {record.compiled.hash for record in records}
    return Found(
        f"{len(records)} launches of {len(kernels)} kernels: value, gradients and theirs are the formulas', 1e-10; "
        "every access is checked"
    )


STEPS: dict[str, Callable[[OperatorCase], Found]] = {
    "derivation": _derivation,
    "SymPy": _by_sympy,
    "both spellings": _by_sympy_in_triton,
    "gradcheck": lambda row: _by_differences(row, check_gradients, "gradients and tangents"),
    "gradgradcheck": lambda row: _by_differences(row, check_second_gradients, "second derivatives"),
    "edges": _edges,
    "database": _database,
    **{f"compiled for {target}": partial(_compiled, target=target) for target in EXECUTED},
}
