"""Under torch.compile ours are torch's: the same graphs, compiled as often, and programs that do the same."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend

import customops
from customops import config

from . import inplace
from .cases import CALLS, ids
from .compare import assert_equal, assert_same_outcomes, cotangent, outcome
from .compiling import FORMULAS, LIBRARIES, STATIC_AND_DYNAMIC, compiling_anew, leaf, rand
from .conftest import DEVICE
from .inplace import twin

pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of what it does slowly, half or no longer


@pytest.fixture(autouse=True)
def _compile_anew(tmp_path):
    with compiling_anew(tmp_path):
        yield


def compiled_graphs(library, call, xs, dynamic) -> tuple[list, list]:
    """Return a compiled call's value and gradients, and the ATen operators of its graphs, forward and backward."""
    graphs = []

    def keep(module, _):
        graphs.append([str(node.target) for node in module.graph.nodes if node.op == "call_function"])
        return make_boxed_func(module.forward)

    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep)
    function = torch.compile(lambda *xs: call.function(library, *xs), fullgraph=True, dynamic=dynamic, backend=backend)
    z = function(*xs)
    return [z, *torch.autograd.grad(z, xs, cotangent(z))], graphs


@pytest.mark.sample(formulas="operator, path, dynamic", kernels="once")
@STATIC_AND_DYNAMIC
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_compiled_calls_have_torchs_graphs_values_and_gradients(row, call, dynamic, device, tally):
    shapes = ((2, 3, 2, 2), (3, 1, 2))[: call.arity]
    xs = [row.draw(shape, seed=i, device=device).requires_grad_() for i, shape in enumerate(shapes)]
    (got, ours), (_, torchs) = (compiled_graphs(library, call, xs, dynamic) for library in LIBRARIES)
    assert len(ours) == 2
    assert ours == torchs
    z = call.function(torch, *xs)
    for mine, want in zip(got, [z, *torch.autograd.grad(z, xs, cotangent(z))], strict=True):
        assert_equal(mine, want)
    tally("compiled graphs like torch's", 2)


UNARY = ("log", "exp", "relu", "sigmoid", "tanh", "sqrt", "rsqrt", "abs", "neg", "sum", "mean")


def unary(library, x):
    return [getattr(library, name)(x) for name in UNARY]


def binary(library, x, y):
    return [getattr(library, name)(x, y) for name in ("add", "sub", "mul", "div", "pow")]


def scaled(library, x, alpha):
    return library.add(x, x, alpha=alpha), library.sub(x, x, alpha=alpha)


def over(library, x, dim):
    return library.sum(x, dim), library.mean(x, dim, keepdim=True)


# What follows another call's arguments, the first twice: nothing may be compiled for what is already there.
CHANGES = {
    "shape": (unary, [(rand(2, 3),), (rand(4, 3),), (rand(5, 7),), (rand(1, 3),), (rand(0, 3),), (rand(3),)]),
    "grad": (unary, [(rand(2, 3),), (leaf(2, 3),), (leaf(4, 3),), (rand(2, 3),)]),
    "dtype": (unary, [(rand(3, dtype=dtype),) for dtype in (torch.float64, torch.float32, torch.float16)]),
    "layout": (unary, [(rand(2, 3),), (rand(3, 2).t(),), (rand(2, 6)[:, ::2],), (rand(1).expand(2, 3),)]),
    "broadcast": (binary, [(rand(2, 3), rand(3)), (rand(4, 3), rand(4, 1)), (rand(5, 3), rand(5, 3))]),
    "operand": (binary, [(rand(3), rand(3)), (rand(3), 2.5), (3, rand(3)), (rand(3), 4), (leaf(3), 2j)]),
    "int": (binary, [(rand(3), n) for n in (4, 5, 6, 2, 3, -1, 1, 0)]),
    "int beside a leaf": (torch.no_grad()(binary), [(leaf(3), n) for n in (4, 5, 6, 2)]),
    "int base": (binary, [(n, rand(3)) for n in (4, 5, 6, 2, 1)]),
    "float": (binary, [(rand(3), number) for number in (4.5, 5.5, 0.5, 2.0, -0.5)]),
    "alpha": (scaled, [(rand(3), alpha) for alpha in (4, 5, 6, 1, 0)]),
    "float alpha": (scaled, [(rand(3), alpha) for alpha in (4.5, 5.5, 1.0)]),
    "dim": (over, [(rand(2, 3, 4), dim) for dim in (0, 1, -1, (0, 1), (0, 2), None)]),
}


@pytest.mark.sample(formulas="change, dynamic")
@FORMULAS
@pytest.mark.parametrize("dynamic", [None, False, True], ids=["automatic", "static", "dynamic"])
@pytest.mark.parametrize("change", CHANGES)
@torch._dynamo.config.patch(specialize_int=False)
def test_changed_arguments_are_compiled_for_as_often_as_torchs(change, dynamic, tally):
    function, calls = CHANGES[change]

    def count(library):
        torch.compiler.reset()
        backend = CompileCounterWithBackend("eager")
        compiled = torch.compile(lambda *xs: function(library, *xs), fullgraph=True, dynamic=dynamic, backend=backend)
        return [(compiled(*xs), backend.frame_count)[1] for xs in (calls[0], *calls)]

    ours, torchs = map(count, LIBRARIES)
    assert ours == torchs
    assert ours[:2] == [1, 1]
    tally("calls compiled as often as torch's", len(calls))


@torch._dynamo.config.patch(specialize_int=False)
def test_powers_of_a_changing_integer_are_differentiated():
    """Torch before 2.15 fails to: its own power gets a symbolic n from the second value on, ours does from 2.15 on."""
    backend = CompileCounterWithBackend("aot_eager")
    power = torch.compile(customops.pow, fullgraph=True, backend=backend)
    x, exponents = leaf(3), (4, 5, 7, -3)
    for n in exponents:
        assert_equal(torch.autograd.grad(power(x, n).sum(), x)[0], torch.autograd.grad(torch.pow(x, n).sum(), x)[0])
    assert backend.frame_count == (2 if torch.__version__ >= (2, 15) else len(exponents))


def test_settings_leave_compiled_functions_whole(device):
    x = rand(3)
    compiled = torch.compile(customops.exp, fullgraph=True, backend="aot_eager")
    for name in config.BACKENDS:
        with customops.backend(name):
            assert_equal(compiled(x), torch.exp(x))
    if config.find_triton() and not config.is_interpreted() and device == "cpu":
        with customops.dry_run() as records:
            assert_equal(compiled(x), torch.exp(x))
        assert not records


def into_view(library, x, name, *rest):
    z = x * 1
    twin(library, name)(z[..., ::2], *rest)
    return z * x


def test_no_generator_binds_a_name():
    """Torch 2.11 compiles no generator that does: it reads the name before it is bound."""
    for path in Path(customops.__file__).parent.glob("*.py"):
        generators = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.GeneratorExp)]
        assert not any(isinstance(part, ast.NamedExpr) for node in generators for part in ast.walk(node)), path


def under(context):
    def program(library, x):
        with context():
            z = library.mul(torch.mm(x, x.t()), library.exp(library.mean(x)))
        return library.mul(z, library.sum(x))

    return program


PROGRAMS = {
    **{f"into a view, {name}": (lambda lib, x, n=name: into_view(lib, x, n)) for name in inplace.UNARY},
    **{f"into a view, {name}": (lambda lib, x, n=name: into_view(lib, x, n, 2)) for name in inplace.BINARY},
    "argument written": lambda lib, x: twin(lib, "exp_")(x.detach()),
    "leaf written": lambda lib, x: twin(lib, "exp_")(x),
    "out": lambda lib, x: lib.mul(x.detach(), 2.5, out=torch.empty_like(x)),
    "out of a leaf": lambda lib, x: lib.mul(x, 2.5, out=torch.empty_like(x)),
    "out resized": lambda lib, x: lib.mul(x.detach(), 2.5, out=x.new_empty(5)),
    "autocast": under(lambda: torch.autocast(DEVICE, torch.bfloat16)),
    "no_grad": under(torch.no_grad),
    "checkpoint": lambda lib, x: torch.utils.checkpoint.checkpoint(lib.exp, x, use_reentrant=False),
    "cond": lambda lib, x: torch.cond(x.sum() > 0, lib.exp, lib.log, (x,)),
    "NumPy scalar": lambda lib, x: lib.pow(x, np.float64(2)) + lib.mul(x, np.int64(3)),
    "symbolic size": lambda lib, x: lib.mul(lib.add(x, x, alpha=x.shape[0]), lib.sub(x.shape[1], x)),
    "alpha in a tensor": lambda lib, x: lib.add(x, x, alpha=torch.tensor(2.0)),
    "dtype": lambda lib, x: lib.sum(x, dtype=torch.float32) + lib.mean(x, 0, dtype=torch.float32),
    "dim in a tensor": lambda lib, x: lib.sum(x, torch.tensor(1)),
    # and what torch refuses
    "shapes": lambda lib, x: lib.add(x, x[:, :2]),
    "bool minus": lambda lib, x: lib.sub(x, x > 1),
    "complex relu": lambda lib, x: lib.relu(x + 1j),
    "bool relu": lambda lib, x: lib.relu(x > 1),
    "integer mean": lambda lib, x: lib.mean(x.long()),
    "dim out of range": lambda lib, x: lib.sum(x, 5),
    "dim twice": lambda lib, x: lib.mean(x, (0, 0)),
    "dim of a float": lambda lib, x: lib.sum(x, 1.5),
    "negative integer power": lambda lib, x: lib.pow(x.long(), -1),
    "power of bools": lambda lib, x: lib.pow(x > 1, x > 1),
    "power of numbers": lambda lib, x: lib.pow(2, 3),
    "float alpha": lambda lib, x: lib.add(x.long(), 1, alpha=1.5),
    "too large a number": lambda lib, x: lib.mul(x.long(), 2**64),
    "no tensor": lambda lib, x: lib.log(2.5),
    "nothing": lambda lib, x: lib.add(x, None),
    "unknown name": lambda lib, x: lib.exp(x, base=2),
}


@pytest.mark.sample(formulas="kind, dynamic", kernels="once")
@STATIC_AND_DYNAMIC
@pytest.mark.parametrize("name", PROGRAMS)
def test_compiled_programs_do_what_torchs_do(name, dynamic, tally):
    """Value, gradient and what became of the argument are the same, or the type of error is."""

    def use(library):
        torch.compiler.reset()
        compiled = torch.compile(PROGRAMS[name], fullgraph=True, dynamic=dynamic, backend="aot_eager")
        x = torch.linspace(0.5, 2, 12, device=DEVICE, dtype=torch.float64).reshape(3, 4).requires_grad_()
        z = compiled(library, x)
        grads = torch.autograd.grad(z, x, cotangent(z)) if z.requires_grad else ()
        return z, x, *grads

    assert_same_outcomes(*(outcome(use, library) for library in LIBRARIES))
    tally("compiled programs", 1)
