"""Fixtures of every test, the device they run on, and the count of what was checked."""

from __future__ import annotations

import os
import sys
from collections import Counter

import pytest
import torch

import customops
from customops import config
from customops.blocks import loop, plan, space
from customops.ptx.faults import KernelFault
from customops.runtime import elementwise

from . import accuracy, compiled, recorder, selection
from .features import CHECKS

DEVICE = os.environ.get("CUSTOMOPS_TEST_DEVICE", "cpu")  # where the tests' tensors are: cpu or cuda
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
KERNELS = os.environ.get("CUSTOMOPS_BACKEND") == "triton" and (
    INTERPRETED or DEVICE == "cuda" or compiled.TARGET is not None
)
MODE = "gpu" if DEVICE == "cuda" else "compiled" if compiled.TARGET else "kernels" if KERNELS else "formulas"
EXECUTED = ("calls by compiled code", "launches executed", "thread blocks executed")
FAULTS = "faults of compiled code"
_OFTEN = ("gradchecks", "edge points", "transforms", "uses of autograd", "derivatives of orders 1 to 3")
COUNTED = {
    "formulas": (*_OFTEN, "database samples", "compiled kernels", "audited calls", "compiled graphs like torch's")
    + ("placements", "trainings under an engine", "random programs"),
    "kernels": (*_OFTEN, "database samples", "placements", "trainings under an engine", "random programs"),
    "gpu": (*_OFTEN, "accuracies"),  # the database needs a package that a machine with a GPU may lack
    "compiled": (*EXECUTED, "edge points", "derivatives of orders 1 to 3", "database samples", "random programs")
    + ("derivatives by kernel as by formula", "accuracies"),
}[MODE]
LIBRARY = os.environ.get("CUSTOMOPS_TEST_LIBRARY", "customops")  # whose operators are tested: torch's stand for ours
WALKING = {"MAX_ROW_VALUES": 0, "WALK_WARPS": (1, 2), "WALK_CHUNKS": 2, "SUM_WARPS": ((1, 0),)}
WALKING |= {"MAX_L2_BYTES": 2000, "MULTIPROCESSORS": 4, "THREAD_ELEMENTS": 1}
NO_KERNEL = (
    "no kernel runs: CUSTOMOPS_BACKEND=triton with TRITON_INTERPRET=1, CUSTOMOPS_TEST_DEVICE=cuda or "
    "CUSTOMOPS_TEST_COMPILED=cuda:90 runs them"
)

torch.set_num_threads(1)  # tests run side by side
if LIBRARY == "torch":  # set here, so in the processes that tests start too
    for name in customops.__all__:
        if name.rstrip("_") in recorder.OPERATORS:
            places = [torch.Tensor] if name.endswith("_") else [torch, torch.nn.functional]
            setattr(customops, name, next(getattr(place, name) for place in places if hasattr(place, name)))


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="every case and sample, however long (make test-full)")
    parser.addoption(
        "--share", metavar="K/N", help="the K-th of N shares of what --full runs and a run without it does not"
    )
    parser.addoption("--part", metavar="K/N", help="the K-th of N parts of what a run without --full takes")
    parser.addoption("--record", help="run the tests behind docs/compatibility.md, and write what became of them here")
    parser.addoption("--check", action="store_true", help="fail where results are not those of docs/compatibility")


def pytest_report_header(config):
    kinds = {"formulas": "torch formulas", "kernels": "Triton kernels in the interpreter", "gpu": "Triton kernels"}
    kinds["compiled"] = f"Triton kernels compiled for {compiled.TARGET}, executed on the CPU"
    backend = kinds[MODE] + (f" on {torch.cuda.get_device_name()}" if MODE == "gpu" else "")
    extent = "a sample of the cases; all of them with --full"
    if config.option.part:
        extent = f"part {config.option.part} of a sample of the cases"
    if config.option.full or config.option.share:
        extent = f"share {config.option.share} of what is not in the sample" if config.option.share else "all cases"
    if LIBRARY == "torch":
        backend = "torch's own operators, in place of ours"
    return [f"customops computes with {backend}", extent]


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "sample(formulas, kernels, gpu=kernels, compiled): what the cases taken without --full must cover"
    )
    config.addinivalue_line("markers", "xdist_group(name): tests that run in one process of pytest-xdist")
    if DEVICE not in ("cpu", "cuda"):
        raise pytest.UsageError(f"CUSTOMOPS_TEST_DEVICE: expected cpu or cuda, got {DEVICE!r}")
    if DEVICE == "cuda" and (INTERPRETED or not KERNELS):
        raise pytest.UsageError("CUSTOMOPS_TEST_DEVICE=cuda goes with CUSTOMOPS_BACKEND=triton, not TRITON_INTERPRET=1")
    if compiled.TARGET and (INTERPRETED or DEVICE == "cuda" or not KERNELS):
        raise pytest.UsageError(
            "CUSTOMOPS_TEST_COMPILED goes with CUSTOMOPS_BACKEND=triton, and with none of TRITON_INTERPRET=1 and "
            "CUSTOMOPS_TEST_DEVICE=cuda"
        )
    if DEVICE == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("CUSTOMOPS_TEST_DEVICE=cuda: torch sees no GPU")
    if config.option.record or config.option.check:
        where = recorder.where(MODE, LIBRARY)
        config.pluginmanager.register(recorder.Recorder(CHECKS, where, config.option.record, config.option.check))


def pytest_ignore_collect(collection_path):
    """Leave out the files of which no test takes part: most, by compiled code; what no page names, by torch's own."""
    if LIBRARY == "torch" and collection_path.name.startswith("test_"):
        return collection_path.name not in {check.file for check in CHECKS.values()} or None
    if MODE == "compiled" and collection_path.suffix == ".py":
        return "compiled=" not in collection_path.read_text() or None
    return None


def pytest_itemcollected(item):
    """Have all tests that call functions in ranks run in one process, so that ranks are started once."""
    if {"two", "four"} & {*getattr(item, "fixturenames", ())}:
        item.add_marker(pytest.mark.xdist_group("ranks"))


def pytest_collection_modifyitems(config, items):
    """Take a sample of the cases, or a share of those that are not in it; a case that is named runs in any event."""
    if config.option.share:
        chosen = selection.share(selection.rest(items, MODE), *selection.parse_share(config.option.share))
    elif any("[" in argument for argument in config.args):
        return
    elif config.option.full:
        chosen = selection.taking_part(items, MODE)
    else:
        chosen = selection.sample(items, MODE)
        if config.option.part:
            chosen = selection.share(chosen, *selection.parse_share(config.option.part))
    taken = set(chosen)
    config.hook.pytest_deselected(items=[item for item in items if item not in taken])
    items[:] = chosen


@pytest.fixture
def full(request) -> bool:
    """Return whether to run every sample."""
    return request.config.option.full or bool(request.config.option.share)


@pytest.fixture
def device() -> str:
    """Return where a test puts its tensors: ``cpu``, or ``cuda`` with CUSTOMOPS_TEST_DEVICE=cuda."""
    return DEVICE


@pytest.fixture
def measured(request):
    """Keep a measurement of ``accuracy.measure`` for the table that the session writes at its end."""
    return lambda m: request.node.user_properties.append(("accuracy", m))


@pytest.fixture
def tally(request):
    """Count what was checked: ``tally("gradchecks")``."""

    def count(name: str, n: int = 1):
        request.node.user_properties.append((name, n))

    return count


@pytest.fixture
def replan():
    """Forget the plans of earlier calls before and after a test that changes what plans are made of."""
    _forget_plans()
    yield _forget_plans
    _forget_plans()


def _forget_plans():
    config.plans.clear()
    row_tiling = sys.modules.get("customops.triton_kernels.row_tiling")
    if row_tiling:
        row_tiling.choose_row_tiling.cache_clear()


@pytest.fixture
def walking(monkeypatch, replan):
    """Return ``begin(**constants)``, which has plans made anew whose programs walk rows however short.

    They walk them with a warp or two, in several chunks, and one after the other; sums are in memory. ``constants`` of
    ``row_tiling`` change that.
    """

    def begin(**constants) -> None:
        from customops.triton_kernels import row_tiling  # noqa: PLC0415 - Triton may be missing

        for name, value in {**WALKING, **constants}.items():
            monkeypatch.setattr(row_tiling, name, value)
        replan()

    return begin


@pytest.fixture
def blocks(monkeypatch, replan):
    """Return ``begin(elements)``, which has plans made anew whose blocks have so few elements on a CPU, of 8 bytes.

    Every gradient and every fused call is then large, and axes are cut however short what is left of a cache line, of
    ``line`` elements.
    """

    def begin(elements: int, line: int = 1) -> None:
        monkeypatch.setattr(plan, "BLOCK_BYTES", 8 * elements)
        monkeypatch.setattr(plan, "LEAST_ELEMENTS", (0, 0))
        monkeypatch.setattr(space, "LINE_ELEMENTS", line)
        monkeypatch.setattr(elementwise, "LARGE_ELEMENTS", 1)
        replan()

    return begin


@pytest.fixture
def walked(monkeypatch) -> list[tuple[int, ...]]:
    """Return a list of the shapes of blocks, which grows as a CPU computes them."""
    shapes: list[tuple[int, ...]] = []
    compute = loop.BlockLoop.__call__

    def recorded(self, *args) -> None:
        shapes.extend(self.shapes)
        compute(self, *args)

    monkeypatch.setattr(loop.BlockLoop, "__call__", recorded)
    return shapes


@pytest.fixture
def breaking(monkeypatch, replan):
    """Replace a Triton formula by the wrong one of that name in ``broken.py``."""
    if not KERNELS:
        pytest.skip(NO_KERNEL)
    from customops.triton_kernels import formulas  # noqa: PLC0415 - Triton may be missing

    from . import broken  # noqa: PLC0415

    def replace(name):
        replan()
        monkeypatch.setattr(formulas, name, getattr(broken, name))

    return replace


@pytest.fixture
def deriving(monkeypatch):
    """Return ``replace(operator, *derivatives)``, which gives an operator others, and forgets the rules of its own."""

    def replace(operator, *derivatives):
        monkeypatch.setattr(operator, "derivatives", derivatives)
        monkeypatch.setattr(operator, "known_vjps", {})
        monkeypatch.setattr(operator, "alone", None)

    return replace


@pytest.fixture(scope="session")
def two():
    """Yield two processes that form a group, for the whole session; see :class:`ranks.Ranks`."""
    yield from _ranks(2)


@pytest.fixture(scope="session")
def four():
    """Yield four processes that form a group, for the whole session."""
    yield from _ranks(4)


def _ranks(size):
    from .ranks import Ranks  # noqa: PLC0415 - it reads DEVICE here

    ranks = Ranks(size)
    yield ranks
    ranks.close()


@pytest.fixture(autouse=True)
def _fresh_memory_is_nan():
    """Fill what ``torch.empty`` returns with nan, or the largest integer, so that an unwritten element shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def _compiled(request):
    """Execute what is compiled for the GPU of CUSTOMOPS_TEST_COMPILED, where that is the mode."""
    if MODE != "compiled":
        yield
        return
    with compiled.executing(compiled.TARGET) as counts:
        yield
    request.node.user_properties += counts.items()  # the report of the fixtures' end has them, too late for the test's


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    if call.excinfo is not None and call.excinfo.errisinstance(KernelFault):
        item.user_properties.append((FAULTS, 1))
    return (yield)


_checked: Counter[str] = Counter()
_measured: list[dict] = []


def pytest_runtest_logreport(report):
    for name, value in report.user_properties:
        if (report.when == "teardown") != (name in EXECUTED) or report.when == "setup":
            continue
        if name == "accuracy":
            _measured.append(value)
        elif report.passed or name == FAULTS:
            _checked[name] += value


def pytest_sessionfinish(session):
    if _unchecked(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    for name, n in sorted((_checked | ({FAULTS: _checked[FAULTS]} if MODE == "compiled" else {})).items()):
        terminalreporter.write_line(f"{n:>8} {name}")
    if _measured:
        whole = DEVICE == "cuda" and not config.option.keyword and not any("::" in argument for argument in config.args)
        terminalreporter.write_line(accuracy.summary(_measured, accuracy.write(_measured) if whole else None))
    for name in _unchecked(config):
        terminalreporter.write_line(f"FAILED: {name}: a whole run checked none", red=True)


def _unchecked(config) -> list[str]:
    """Return the proofs that a whole run should have made and did not: a run that checks nothing has failed."""
    whole = [os.path.basename(os.path.normpath(a)) for a in config.args] == ["tests"] and not config.option.keyword
    whole = whole and not (config.option.record or config.option.share)
    counted = [name for name in COUNTED if name in EXECUTED or not config.option.part]
    return [name for name in counted if not _checked[name]] if whole and not hasattr(config, "workerinput") else []
