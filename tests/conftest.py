"""Fixtures of every test, and the count of what was checked."""

from __future__ import annotations

import os
from collections import Counter
from zlib import crc32

import pytest
import torch

KERNELS = os.environ.get("TRITON_INTERPRET") == "1" and os.environ.get("CUSTOMOPS_BACKEND") == "triton"
COUNTED = ("database samples", "gradchecks", "edge points") + (() if KERNELS else ("compiled kernels",))

torch.set_num_threads(1)  # tests run side by side


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="every sample, however long (make test-full)")


def pytest_report_header(config):
    backend = "Triton kernels in the interpreter" if KERNELS else "torch formulas"
    extent = "every sample" if config.getoption("full") else "a seeded subset; every sample with --full"
    return [f"customops computes with {backend}", f"database and compilation: {extent}"]


def pytest_configure(config):
    config.addinivalue_line("markers", "thin(kernels=1, formulas=1): run one in so many of its cases without --full")


def pytest_collection_modifyitems(config, items):
    """Thin out what there is no time for: the interpreter takes milliseconds a launch. By name, so always the same."""
    if config.getoption("full"):
        return
    keep = {True: [], False: []}
    for item in items:
        mark = item.get_closest_marker("thin")
        share = mark.kwargs.get("kernels" if KERNELS else "formulas", 1) if mark else 1
        keep[crc32(item.nodeid.encode()) % share == 0].append(item)
    items[:] = keep[True]
    config.hook.pytest_deselected(items=keep[False])


@pytest.fixture
def full(request) -> bool:
    """Whether to run every sample."""
    return request.config.getoption("full")


@pytest.fixture
def tally(request):
    """Count what was checked: ``tally("gradchecks")``."""

    def count(name: str, n: int = 1):
        request.node.user_properties.append((name, n))

    return count


@pytest.fixture
def breaking(monkeypatch):
    """Replace a Triton formula by the wrong one of that name in ``broken.py``."""
    if not KERNELS:
        pytest.skip("no kernel runs: TRITON_INTERPRET=1 CUSTOMOPS_BACKEND=triton runs them")
    from customops.triton_kernels import formulas  # noqa: PLC0415 - Triton may be missing
    from customops.triton_kernels.program import program_of  # noqa: PLC0415

    from . import broken  # noqa: PLC0415

    def replace(name):
        program_of.cache_clear()
        monkeypatch.setattr(formulas, name, getattr(broken, name))

    yield replace
    program_of.cache_clear()


@pytest.fixture(autouse=True)
def _fresh_memory_is_nan():
    """Fill what ``torch.empty`` returns with nan, or the largest integer, so that an unwritten element shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(before)


_checked: Counter[str] = Counter()


def pytest_runtest_logreport(report):
    if report.when == "call" and report.passed:
        for name, n in report.user_properties:
            _checked[name] += n


def pytest_sessionfinish(session):
    if _unchecked(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    for name, n in sorted(_checked.items()):
        terminalreporter.write_line(f"{n:>8} {name}")
    for name in _unchecked(config):
        terminalreporter.write_line(f"FAILED: {name}: a whole run checked none", red=True)


def _unchecked(config) -> list[str]:
    """The proofs that a whole run should have made and did not: a run that checks nothing has failed."""
    whole = [os.path.basename(os.path.normpath(a)) for a in config.args] == ["tests"] and not config.option.keyword
    return [name for name in COUNTED if not _checked[name]] if whole and not hasattr(config, "workerinput") else []
