"""Which backend computes, what it says when it cannot, and what is imported when."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest
import torch

import customops
from customops import formulas

from .cases import CALLS, REDUCTIONS, ROWS, ids
from .compare import record_launches
from .conftest import DEVICE, INTERPRETED, KERNELS, NO_KERNEL
from .marks import formulas_only

X = torch.tensor([0.5, 2.0], device=DEVICE)


@pytest.fixture
def launches(monkeypatch):
    """Return the list of the kernels launched during a test, by name; needs kernels."""
    if not KERNELS:
        pytest.skip(NO_KERNEL)
    return record_launches(monkeypatch)


@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_forward_is_one_launch(row, call, launches, device):
    call.function(customops, *(row.draw((2, 3, 2, 2), seed=i, device=device) for i in range(call.arity)))
    assert launches == ["map_reduce_kernel" if row.name in REDUCTIONS else "map_kernel"]


@pytest.mark.parametrize("shapes", [((2, 3), (3,)), ((2, 3), (2, 1)), ((3, 1), (1, 4))], ids=ids)
@pytest.mark.parametrize("name", ["mul", "pow"])
def test_backward_of_a_broadcast_is_one_pass_for_both_gradients(name, shapes, launches, device):
    xs = [row.draw(shape, device=device).requires_grad_() for row in ROWS if row.name == name for shape in shapes]
    z = getattr(customops, name)(*xs)
    launches.clear()
    torch.autograd.grad(z, xs, torch.ones_like(z))
    assert launches == ["map_reduce_kernel"]


def test_formula_answers_where_torch_must_see_through(launches):
    x = X.clone().requires_grad_()
    z = customops.exp(x)
    launches.clear()
    torch.autograd.grad(z.sum(), x, create_graph=True)
    torch.vmap(customops.exp)(X)
    torch.func.jvp(lambda x: torch.func.jvp(customops.exp, (x,), (x,))[1], (X,), (X,))
    customops.exp(X.to("meta"))
    customops.exp(X[:0])
    assert launches == []


def test_breaking_a_triton_formula_changes_results(breaking):
    """The kernels are what computes here, not the formulas."""
    want = torch.mul(X, X)
    torch.testing.assert_close(customops.mul(X, X), want)
    breaking("mul")
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(customops.mul(X, X), want)


@pytest.mark.skipif(not KERNELS, reason="there is no kernel to be forced")
def test_complex_numbers_have_no_kernel_and_say_so():
    for x, y in ((X + 0j, X), (X, 1j)):
        with pytest.raises(RuntimeError, match=r"mul: backend 'triton' has no kernel for .*complex.*: cast it"):
            customops.mul(x, y)
        with customops.backend("auto"):
            torch.testing.assert_close(customops.mul(x, y), x * y)


@pytest.mark.skipif(INTERPRETED, reason="in the interpreter kernels run on CPU tensors")
def test_forcing_a_kernel_where_none_can_run_says_why_and_what_to_do():
    with (
        customops.backend("triton"),
        pytest.raises(RuntimeError, match=r"exp: .*CPU tensors: set TRITON_INTERPRET=1"),
    ):
        customops.exp(X.cpu())


@formulas_only
def test_unknown_backend_is_refused_by_name():
    with pytest.raises(ValueError, match=r"backend\(\): expected one of auto, torch, triton, got 'cuda'"):
        customops.backend("cuda").__enter__()
    done = python("import customops", CUSTOMOPS_BACKEND="gpu")
    assert "CUSTOMOPS_BACKEND: expected one of auto, torch, triton, got 'gpu'" in done.stderr


def test_backend_is_restored_after_an_error():
    with pytest.raises(KeyError), customops.backend("torch"):
        raise KeyError
    assert customops.config.current_backend == ("triton" if KERNELS else "auto")


@formulas_only
def test_importing_needs_neither_triton_nor_gpu():
    done = python(
        "import sys; sys.modules['triton'] = None\n"
        "import customops.config, torch\n"
        "customops.config.find_triton = lambda: None\n"
        "print(customops.sigmoid(torch.ones(3)))\n"
        "with customops.backend('triton'):\n    customops.exp(torch.ones(3))"
    )
    assert "tensor([0.7311, 0.7311, 0.7311])" in done.stdout
    assert (
        "RuntimeError: exp: backend 'triton' has no kernel for any tensor without Triton: install triton" in done.stderr
    )


@formulas_only
def test_importing_does_not_import_triton():
    done = python("import sys, customops; print('triton' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


@formulas_only
def test_triton_formulas_are_the_twins_of_torchs():
    """They have the same names, the same arguments and the same order."""
    twins = pytest.importorskip("customops.triton_kernels.formulas", reason="without Triton there are no twins")
    mine = [n for n in vars(formulas) if callable(getattr(formulas, n)) and not n.startswith("_") and n[-1] != "_"]
    theirs = [n for n, value in vars(twins).items() if hasattr(value, "arg_names") and not n.startswith("_")]
    assert mine == theirs
    for name in mine:
        if name not in REDUCTIONS:  # their twins finish a total that the kernel made
            assert list(customops.runtime.rules.parameters(getattr(formulas, name))) == getattr(twins, name).arg_names


@formulas_only
def test_approximate_formulas_are_twins_of_the_exact_ones():
    """Those for half types are some of the formulas: they have the same arguments and the same order."""
    exact = pytest.importorskip("customops.triton_kernels.formulas", reason="without Triton there are no twins")
    approximate = importlib.import_module("customops.triton_kernels.approximate")
    theirs = {n: v.arg_names for n, v in vars(approximate).items() if _is_formula(n, v)}
    mine = {n: v.arg_names for n, v in vars(exact).items() if _is_formula(n, v)}
    assert [*theirs] == [name for name in mine if name in theirs]
    assert theirs == {name: mine[name] for name in theirs}


def _is_formula(name, value):
    return hasattr(value, "arg_names") and not name.startswith("_")


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Run ``code`` in a fresh interpreter."""
    kept = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "CUSTOMOPS_BACKEND")}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(not KERNELS, reason=NO_KERNEL)
def test_a_lazily_negated_tensor_is_read_as_what_it_stands_for():
    """The imaginary part of a conjugate shares its memory, and notes that its sign is another."""
    x = torch.complex(torch.zeros(5), torch.linspace(-1, 2, 5)).to(DEVICE).conj().imag
    assert x.is_neg()
    assert torch.equal(customops.add(x, 2.5), torch.add(x, 2.5))
    assert torch.equal(customops.amax(x, 0), torch.amax(x, 0))
    assert torch.equal(customops.fuse(lambda x: customops.relu(x) * 2)(x), torch.relu(x) * 2)
    leaf = torch.ones(5, device=DEVICE, requires_grad=True)
    (dx,) = torch.autograd.grad(customops.mul(leaf, 3), leaf, x)
    assert torch.equal(dx, x * 3)
