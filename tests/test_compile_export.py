"""Whatever records a model that uses ours records torch's operators: torch.export, AOTInductor, make_fx, tracers."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx

import customops

from .cases import CALLS, ids
from .compare import assert_same_outcomes, outcome
from .compiling import COMPILER, FORMULAS, LIBRARIES, block
from .conftest import DEVICE

pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of what it does slowly, half or no longer

DYNAMIC = ({0: Dim("rows", min=2, max=64)},)


class Gate(nn.Module):
    """A chain of ten operators, with a parameter, a buffer, and sizes among its numbers."""

    def __init__(self, library, width=6):
        super().__init__()
        self.library = library
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, width))
        self.register_buffer("shift", torch.tensor(0.5))

    def forward(self, x):
        lib, n = self.library, x.shape[0]
        z = lib.add(block(lib, x, self.gain), self.shift)
        return z, lib.pow(lib.mul(x, self.gain), n), lib.add(x, x, alpha=n)


def targets(module) -> list[str]:
    return [str(node.target) for node in module.graph.nodes if node.op == "call_function"]


def rows(n):
    return torch.linspace(0.2, 1.2, n * 6, device=DEVICE).reshape(n, 6)


@pytest.mark.sample(formulas="strict, shapes")
@FORMULAS
@pytest.mark.parametrize("shapes", [None, DYNAMIC], ids=["static", "dynamic"])
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "lenient"])
def test_exported_models_are_torchs_and_survive_a_file(strict, shapes):
    graphs, buffer = [], io.BytesIO()
    for library in reversed(LIBRARIES):
        program = torch.export.export(Gate(library).to(DEVICE), (rows(4),), strict=strict, dynamic_shapes=shapes)
        graphs.append([targets(program), targets(program.run_decompositions())])
    assert graphs[0] == graphs[1]
    assert all(target.startswith("aten.") for target in graphs[1][0])
    torch.export.save(program, buffer)
    loaded = torch.export.load(io.BytesIO(buffer.getvalue()))
    for n in (4,) if shapes is None else (4, 9):
        want = Gate(torch).to(DEVICE)(rows(n))
        for exported in (program, program.run_decompositions(), loaded):
            assert_same_outcomes(exported.module()(rows(n)), want)


@pytest.mark.sample(formulas="")
@FORMULAS
@COMPILER
def test_aot_inductor_packages_a_model(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with torch.no_grad(), torch._inductor.config.patch(force_disable_caches=True):
        program = torch.export.export(Gate(customops).to(DEVICE), (rows(4),), dynamic_shapes=DYNAMIC)
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "gate.pt2"))
        got = torch._inductor.aoti_load_package(path)(rows(9))
        assert_same_outcomes(list(got), list(Gate(torch).to(DEVICE)(rows(9))))


@pytest.mark.sample(formulas="operator, path*mode", kernels="mode")
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_make_fx_records_torchs_operators(row, call, mode, device, tally):
    def record(library):
        return targets(make_fx(lambda *xs: call.function(library, *xs), tracing_mode=mode)(*xs))

    xs = [row.draw((2, 3, 2, 2), seed=i, device=device) for i in range(call.arity)]
    assert record(customops) == record(torch)
    tally("traces like torch's", 1)


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)], ids=["size last", "size first"])
@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "pow"])
def test_symbolic_sizes_are_numbers(name, order, device):
    def record(library):
        function = lambda x: getattr(library, name)(*(x, x.shape[0])[order])
        return targets(make_fx(function, tracing_mode="symbolic")(torch.rand(3, 2, device=device)))

    assert record(customops) == record(torch)


@pytest.mark.sample(formulas="operator, path", kernels="")
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_tracers_record_what_computes_the_same(row, call, device):
    def use(library, tracer):
        one, two = lambda x: call.function(library, x), lambda x, y: call.function(library, x, y)
        return tracer(one if call.arity == 1 else two)(*xs)

    xs = tuple(row.draw((2, 3, 2, 2), seed=i, device=device) for i in range(call.arity))
    for tracer in (lambda f: torch.jit.trace(f, xs), torch.fx.symbolic_trace):
        assert_same_outcomes(*(outcome(use, library, tracer) for library in LIBRARIES))
