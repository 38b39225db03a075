"""``customops doctor``: what is here, what each operator runs on and why, whether it works, and what to do if not."""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import shutil
import sys
import textwrap
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from time import perf_counter
from typing import Any, NamedTuple

import torch

import customops

from .. import config
from ..proof.cases import CALLS, ROWS, Call, OperatorCase
from ..proof.compare import assert_equal, cotangent
from ..runtime.paths import kernel_blocker
from ..tools.dry_run import dry_run
from ..tools.table import Table
from .output import FINE, PROBLEM, Result, progress

PACKAGES = ("torch", "triton", "numpy", "rich", "sympy", "expecttest")
LEAST = {"torch": (2, 11), "triton": (3, 6)}
LEAST_CAPABILITY = (8, 0)
SHAPES = ((2, 3, 4, 5), (4, 5))  # of what an operator is tested on


class Problem(NamedTuple):
    """Something that does not work, and what would help."""

    what: str
    remedy: str


class Tested(NamedTuple):
    """What an operator runs on, and whether it computes what torch's does."""

    name: str
    device: str
    backend: str  # "kernel" or "torch formula"
    why: str
    passed: bool
    found: str  # what was compared, or how it failed
    seconds: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: there is one way to ask."""


def run(args: argparse.Namespace) -> Result:
    """Return what is here and whether it works; a PROBLEM where something does not."""
    versions, gpus, compiler = _versions(), _gpus(), _compiler()
    problems = [*_problems(versions, gpus, compiler)]
    devices = ["cpu"] + ["cuda"] * bool(gpus)
    todo = [(row, device) for device in devices for row in ROWS]
    tested = [_tested(*each) for each in progress(todo, "testing operators", len(todo))]
    problems += [
        Problem(f"{x.name} on {x.device} fails its test: {x.found}", f"customops prove {x.name} shows which step fails")
        for x in tested
        if not x.passed
    ]
    notes = [*_notes(gpus)]
    document = {
        "ok": not problems,
        "versions": versions,
        "gpus": gpus,
        "driver": _driver(),
        "compiler": compiler,
        "backend": config.current_backend,
        "operators": [x._asdict() for x in tested],
        "problems": [x._asdict() for x in problems],
        "notes": notes,
    }
    return Result(PROBLEM if problems else FINE, document, [*_parts(document, tested)])


def _parts(document: dict[str, Any], tested: list[Tested]) -> Iterator[str | Table]:
    """Yield the report."""
    versions = "  ".join(f"{name} {number or 'not installed'}" for name, number in document["versions"].items())
    yield from textwrap.wrap(f"versions    {versions}", 118, subsequent_indent=f"{'':12}")
    yield "GPU         " + ("; ".join(f"{gpu['name']}, sm_{gpu['capability']}" for gpu in document["gpus"]) or "none")
    yield f"driver      {document['driver'] or 'none'}"
    yield f"compiler    {document['compiler']['found']}"
    yield f"backend     {document['backend']}"
    yield ""
    rows = [(x.name, x.device, x.backend, "passed" if x.passed else "FAILED") for x in tested]
    yield Table(("operator", "device", "runs by", "self-test"), rows)
    yield from dict.fromkeys(f"on {x.device} by {x.backend}: {x.why}" for x in tested)
    yield ""
    yield from (f"note: {note}" for note in document["notes"])
    yield from (f"PROBLEM: {x['what']}: {x['remedy']}" for x in document["problems"])
    passed, seconds = sum(x.passed for x in tested), sum(x.seconds for x in tested)
    count = len(document["problems"]) or "no"
    yield f"{passed} of {len(tested)} self-tests passed in {seconds:.1f} s; {count} problem{'' if count == 1 else 's'}"


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"customops": customops.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found | {"system": f"{platform.system()} {platform.machine()}"}


def _gpus() -> list[dict[str, Any]]:
    """Return the GPUs that torch sees."""
    if not torch.cuda.is_available():
        return []
    every = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [{"name": x.name, "capability": f"{x.major}{x.minor}", "bytes": x.total_memory} for x in every]


def _driver() -> str | None:
    """Return the version of CUDA that NVIDIA's driver here is for; None without one."""
    number = ctypes.c_int()
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        if library.cuDriverGetVersion(ctypes.byref(number)):
            return None
    except (OSError, AttributeError):
        return None
    return f"CUDA {number.value // 1000}.{number.value % 1000 // 10}"


def _compiler() -> dict[str, Any]:
    """Compile a kernel for a GPU, as a dry run does, which runs Triton and ptxas; and look for a C compiler."""
    c_compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, ("gcc", "clang", "cc"))), None)
    found: dict[str, Any] = {"works": False, "c_compiler": c_compiler}
    if config.find_triton() is None:
        return found | {"found": "none: Triton is not installed"}
    if config.is_interpreted():
        return found | {"found": "not tried: TRITON_INTERPRET is set"}
    start = perf_counter()
    try:
        with dry_run("cuda:90") as records, config.backend("triton"):
            customops.sigmoid(torch.empty(64))
        text = f"Triton and ptxas compile for sm_90: {records[0].registers} registers, {perf_counter() - start:.1f} s"
    except Exception as error:
        return found | {"found": f"fails: {type(error).__name__}: {' '.join(str(error).split())}"}
    return found | {"works": True, "found": f"{text}; C compiler {c_compiler or 'none'}"}


def _problems(versions: dict, gpus: list, compiler: dict) -> Iterator[Problem]:
    """Yield what keeps operators from working, or from their kernels."""
    for name, least in LEAST.items():
        if versions[name] and _numbers(versions[name]) < least:
            wanted = ".".join(map(str, least))
            yield Problem(f"{name} {versions[name]} is older than {wanted}", f'pip install "{name}>={wanted}"')
    if compiler["found"].startswith("fails"):
        yield Problem(f"Triton's compiler {compiler['found']}", "pip install --force-reinstall triton")
    if gpus and versions["triton"] is None:
        yield Problem("there is a GPU, but no Triton, so no kernel", "pip install triton")
    if gpus and compiler["c_compiler"] is None:
        yield Problem("there is a GPU, but no C compiler, which Triton's launcher needs", "install gcc, or set CC")
    for gpu in gpus:
        if tuple(map(int, (gpu["capability"][:-1], gpu["capability"][-1]))) < LEAST_CAPABILITY:
            yield Problem(f"{gpu['name']} is older than sm_80", 'use customops.backend("torch")')
    if config.current_backend == "triton" and not gpus and not config.is_interpreted():
        yield Problem(
            "CUSTOMOPS_BACKEND=triton requires kernels, and none can run here",
            "unset it, or set TRITON_INTERPRET=1 to interpret them",
        )
    if not gpus and _driver():
        yield Problem("there is a driver of NVIDIA's, but torch sees no GPU", "install a torch that is built for CUDA")


def _notes(gpus: list) -> Iterator[str]:
    """Yield what is no problem, and good to know."""
    if not gpus:
        yield "no GPU: torch's operators compute; customops explain shows what a GPU would run"
    if config.is_interpreted():
        yield "TRITON_INTERPRET is set: kernels are interpreted, slowly; unset it to compile them"
    if config.current_backend == "torch":
        yield "CUSTOMOPS_BACKEND=torch: no kernel runs; unset it to use them"


def _numbers(text: str) -> tuple[int, ...]:
    """Return the first two numbers of a version."""
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in text.split(".")[:2])


def _tested(row: OperatorCase, device: str) -> Tested:
    """Compute value and gradients of each call, and compare them with torch's."""
    start = perf_counter()
    backend, why = _backend(device)
    calls = [call for other, call in CALLS if other is row]
    try:
        for call in calls:
            _check(row, call, device)
    except Exception as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return Tested(row.name, device, backend, why, False, text, perf_counter() - start)
    found = f"value and gradients of {len(calls)} calls are torch's"
    return Tested(row.name, device, backend, why, True, found, perf_counter() - start)


def _backend(device: str) -> tuple[str, str]:
    """Return what computes floats on a device, and why: by the rules that calls ask."""
    if config.current_backend == "torch":
        return "torch formula", "the backend is torch"
    blocker = kernel_blocker([torch.empty(1, device=device)], None, set(), by_blocks=False)
    if blocker is None:
        return "kernel", "Triton interprets it" if config.is_interpreted() else "there is a GPU, and Triton"
    return "torch formula", f"there is no kernel for {blocker}"


def _check(row: OperatorCase, call: Call, device: str) -> None:
    shapes = SHAPES[: call.arity]
    results = []
    for library in (customops, torch):
        xs = [row.draw(x, torch.float32, i, device).requires_grad_() for i, x in enumerate(shapes)]
        z = call.function(library, *xs)
        results.append([z.detach(), *torch.autograd.grad(z, xs, cotangent(z))])
    for got, want in zip(*results, strict=True):
        assert_equal(got, want)
