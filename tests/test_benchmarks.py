"""The benchmark sees what it is there to see: slow, wrong, and too fast to come from memory."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

import customops
from benchmarks import __main__ as benchmark
from benchmarks import estimates, machine, memory, peers
from benchmarks.cases import FIRST, KINDS, LAYER, SHAPES, STANDARD, Case, cases
from benchmarks.measure import measure
from benchmarks.targets import verdicts
from customops.ops import unary
from customops.tools import timing
from customops.tools.targets import GPUS

from .cases import CALLS, ROWS
from .conftest import DEVICE, KERNELS

if KERNELS or DEVICE != "cpu":
    pytest.skip("what is broken on purpose are the torch formulas", allow_module_level=True)


@pytest.fixture(autouse=True)
def _in_short(monkeypatch):
    monkeypatch.setattr(timing, "SECONDS", 0.2)


ROW = {row.name: row for row in ROWS}
RELU = Case(ROW["relu"], ROW["relu"].calls[0], "contiguous", 1 << 16, torch.float32)


def test_slow_formula_shows(monkeypatch):
    usual = measure(RELU, "forward", "cpu")["ratios"]["ours"]
    monkeypatch.setattr(unary.Relu, "eager", lambda x: [torch.relu(x) for _ in range(100)][-1])
    assert measure(RELU, "forward", "cpu")["ratios"]["ours"] > 3 * usual, "a hundred times, on a busy machine"


@pytest.mark.parametrize("phase", ["forward", "backward", "both"])
def test_wrong_result_is_a_fault(phase, monkeypatch, deriving):
    assert measure(RELU, phase, "cpu")["faults"] == []
    if phase == "forward":
        monkeypatch.setattr(unary.Relu, "eager", lambda x: torch.relu(x) * 1.0001)
    else:
        deriving(unary.Relu, lambda g, z: torch.where(z > 0, g * 1.0001, 0))
    (fault,) = measure(RELU, phase, "cpu")["faults"]
    assert fault.startswith("ours differs from eager: Tensor-likes are not close!")


def test_operands_in_the_cache_show(monkeypatch):
    """With a cache to get past, operands are drawn often enough, and drawn in one place they are too fast."""
    cache = 16 << 20
    case = Case(ROW["sum"], ROW["sum"].calls[0], "contiguous", 1 << 18, torch.float32)  # a sum only reads
    row = measure(case, "forward", "cpu", cache)
    assert not row["cached"]
    assert row["faults"] == []
    assert measure(case, "forward", "cpu", cache, draws=1)["cached"], "one draw fits"
    draw = Case.draw
    monkeypatch.setattr(Case, "draw", lambda case, device, seed: same.setdefault(device, draw(case, device, seed)))
    same: dict = {}
    faults = measure(case, "forward", "cpu", cache)["faults"]
    assert any("is faster than memory" in fault for fault in faults), faults  # one of the two, on a busy machine


def test_operands_fill_the_cache_again_and_again():
    """They lie elsewhere each time, and so do those of a copy."""
    seen = set()

    def function(_library, x):
        seen.add(x.data_ptr())
        return x.relu()

    case = RELU._replace(call=RELU.call._replace(function=function))
    measure(case, "forward", "cpu", cache=4 << 20)
    assert len(seen) * case.numel * 4 >= 4 * (4 << 20)


def test_verdicts_say_what_is_missed():
    def row(call, pattern, phase, ratio, peak=1 << 20):
        return {
            "call": call, "pattern": pattern, "phase": phase, "dtype": "float32", "numel": KINDS["cpu"], "faults": [],
            "standard": True,
            "ratios": {"ours": ratio}, "peak": {"ours": peak, "eager": 1 << 20},
        }  # fmt: skip

    rows = [row(*each, phase, 0.7) for each in STANDARD for phase in ("forward", "both")]
    assert all(line.endswith(": met") for line in verdicts("cpu", rows))
    missed = {
        "forward, geometric mean": [row(*each, "forward", 1.03) for each in STANDARD],
        "forward, none above 1.08: 1.09 of exp(x)": [row("exp(x)", "contiguous", "forward", 1.09)],
        "both, geometric mean": [row(*each, "both", 0.81) for each in STANDARD],
        "both, none above 1.08: 1.09 of exp(x)": [row("exp(x)", "contiguous", "both", 1.09)],
        "peak memory no higher than eager's: 2.00 of exp(x)": [row("exp(x)", "contiguous", "both", 0.7, peak=2 << 20)],
    }
    for text, worse in missed.items():
        replaced = {(r["call"], r["pattern"], r["phase"]): r for r in [*rows, *worse]}.values()
        (line,) = [line for line in verdicts("cpu", list(replaced)) if line.endswith(": MISSED")]
        assert line.startswith(text)


@pytest.mark.parametrize(
    ("name", "gpu"),
    [("NVIDIA A100-SXM4-80GB", "A100 SXM"), ("NVIDIA H100 80GB HBM3", "H100 SXM"), ("NVIDIA H200", "H200")]
    + [("NVIDIA B200", "B200"), ("AMD Instinct MI300X", "MI300X"), ("NVIDIA GeForce RTX 5090", "RTX 5090")]
    + [("NVIDIA H100 PCIe", None), ("NVIDIA A100-SXM4-40GB", None), ("NVIDIA GH200 480GB", None), ("Tesla T4", None)],
)
def test_the_models_constants_are_those_of_the_device_or_none(name, gpu):
    assert estimates.gpu_named(name) == (GPUS[gpu] if gpu else None)


@pytest.mark.parametrize(("phase", "tensors"), [("forward", 3), ("backward", 5), ("both", 8)])
@pytest.mark.parametrize("pattern", ["contiguous", "transposed", "sliced"])
def test_a_case_is_estimated_without_a_gpu_or_memory(phase, tensors, pattern):
    """256 MiB of float32 in each tensor that mul and its gradients read and write, at 3.0 TB/s."""
    pytest.importorskip("triton", reason="without Triton there are no kernels")
    case = Case(ROW["mul"], ROW["mul"].calls[0], pattern, KINDS["cuda"], torch.float32)
    milliseconds = estimates.estimate(case, phase, GPUS["H100 SXM"])
    launches = 2 if phase == "both" else 1
    assert milliseconds == pytest.approx(1e3 * (tensors * 4 * KINDS["cuda"] / 3.0e12 + launches * 3e-6), rel=0.01)
    assert estimates.estimate(case, phase, GPUS["H200"]) < milliseconds


def made_up(call: str, phase: str, measured: float, estimate: float | None) -> dict:
    """Return a row with times that nobody measured."""
    row = {"call": call, "phase": phase, "pattern": "made up", "numel": 8, "dtype": "float32", "estimate": estimate}
    return row | {"times": {"ours": [0.0, measured, 9.0]}}


def test_the_model_is_compared_with_what_was_measured():
    rows = [made_up("exp(x)", "forward", 2.0, 1.0), made_up("log(x)", "forward", 0.5, 1.0)]
    rows += [made_up("sum(x)", "backward", 3.0, 4.0), made_up("add(x, y)", "backward", 1.0, None)]
    forward, backward, *worst = estimates.comparison(rows)
    assert forward == "model, forward: measured 1.00 of the estimate, geometric mean of 2 rows; off by a factor of 2.00"
    assert backward.startswith("model, backward: measured 0.75 of the estimate, geometric mean of 1 rows; off by")
    assert backward.endswith(" 1.33")
    assert worst[0] == "model, furthest off: exp(x), made up, 8, float32, forward: 2 ms, estimate 1 ms, 2.00"
    assert worst[2].endswith("sum(x), made up, 8, float32, backward: 3 ms, estimate 4 ms, 0.75")
    assert not [*estimates.comparison(rows[3:])]


def test_command_prints_the_estimates_of_a_gpu_and_says_where_there_are_none(monkeypatch, capsys):
    """The GPU is a stand-in: what is measured is the CPU."""
    pytest.importorskip("triton", reason="without Triton there are no kernels")
    monkeypatch.setattr(timing, "LEAST_ROUNDS", 2)
    monkeypatch.setattr(benchmark.estimates, "gpu_named", lambda name: GPUS["H200"] if name == "a GPU" else None)
    for name in ("a GPU", "another"):
        monkeypatch.setattr(benchmark, "_device", lambda _, name=name: (0, name))
        benchmark.main(["--device", "cpu", "--ops", "relu", "--numel", "1024", "--quick"])
        printed = capsys.readouterr().out
        assert ("estimate 0.00" in printed) == ("model, both: measured" in printed) == (name == "a GPU")
        assert ("no estimates: the model has no constants of another" in printed) == (name == "another")


def test_command_writes_what_it_measured_of_everything(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    monkeypatch.setattr(timing, "LEAST_ROUNDS", 2)
    command = ["--device", "cpu", "--ops", "relu", "--numel", "1024", "--quick"]
    assert benchmark.main(command) == 0
    assert not [*tmp_path.iterdir()], "a part must not replace the whole"
    chosen = [*cases("cpu", quick=True, ops=["relu"], numel=[1024])]
    monkeypatch.setattr(benchmark, "cases", lambda *_: chosen)
    monkeypatch.setattr(benchmark.host, "measure", lambda *_: [])
    assert benchmark.main(["--device", "cpu"]) == 0
    (path,) = tmp_path.glob("*/benchmark.json")
    assert [row["phase"] for row in json.loads(path.read_text())["rows"]] == ["forward", "backward", "both"]
    monkeypatch.setattr(unary.Relu, "eager", lambda x: torch.relu(x) * 1.0001)
    assert benchmark.main(command) == 1
    assert "ours differs from eager" in capsys.readouterr().out
    monkeypatch.setattr(unary.Relu, "eager", lambda x: x @ x @ "no")
    assert benchmark.main(command) == 1
    assert "ours or eager, relu(x), contiguous, 1024, float32, forward: TypeError" in capsys.readouterr().out


def test_every_call_pattern_and_dtype_is_timed():
    timed = list(cases("cpu", quick=False))
    assert len(timed) == len(set(timed))
    assert {case.call for case in timed} >= {
        call for _, call in CALLS if call.rank < 3 and call.name != "pow(x, 0)"
    } | set(LAYER.calls)
    assert {case.pattern for case in timed} == set(SHAPES)
    assert {case.dtype for case in timed} == {torch.float32, torch.bfloat16, torch.float16}
    quick = list(cases("cpu", quick=True))
    assert quick == timed[: len(quick)]
    assert {(case.call.name, case.pattern) for case in quick} >= set(STANDARD)
    assert len(FIRST) == len(ROWS)


@pytest.mark.parametrize("pattern", SHAPES)
def test_operands_have_the_size_asked_for(pattern):
    for numel in (1 << 10, 1 << 13):
        case = Case(ROW["mul"], ROW["mul"].calls[0], pattern, numel, torch.float32)
        xs = case.draw("cpu", 0)
        assert max(x.numel() for x in xs) == numel
        assert tuple(x.shape for x in xs) == case.shapes
        assert case.call.function(torch, *xs).numel() == numel


def test_peak_and_saved_bytes_are_counted():
    x = torch.rand(1 << 18).requires_grad_()  # 1 MiB
    mib = 1 << 20
    assert memory.peak(lambda: torch.exp(x), "cpu") == mib
    assert memory.peak(lambda: torch.exp(x.detach()).neg_().exp_(), "cpu") == mib
    assert memory.peak(lambda: torch.exp(x) + torch.exp(x), "cpu") == 3 * mib
    assert memory.saved(lambda: torch.exp(x)) == mib
    assert memory.saved(lambda: torch.add(x, x)) == 0
    assert memory.footprint([x, x, x.new_zeros(()).expand(1 << 18)]) == mib + 4


def test_what_is_saved_is_read_from_the_recorded_graph():
    """A fused call saves inputs instead of statistics where hooks see it; both, and lists of tensors, are counted."""
    x = torch.rand(64, 256, requires_grad=True)
    assert memory.saved(lambda: torch.nn.functional.layer_norm(x, (256,))) == (64 * 256 + 2 * 64) * 4
    assert memory.saved(lambda: _WithStatistics.apply(x)) == (64 * 256 + 64) * 4
    assert memory.saved(lambda: x[torch.tensor([0, 1]), torch.tensor([2, 3])]) == 2 * 2 * 8
    assert memory.saved(lambda: (torch.exp(x), x.detach(), torch.exp(x) + torch.exp(x))) == 3 * 64 * 256 * 4
    assert memory.saved(x.detach) == 0


class _WithStatistics(torch.autograd.Function):
    """Save the input and one number for each row, unless hooks would see them."""

    @staticmethod
    def forward(ctx, x):
        total = x.sum(-1)
        ctx.save_for_backward(x, total)
        return x / total[:, None]


def test_contestants_take_turns():
    seen = []
    runs = {name: lambda name=name: seen.append(name) or 1.0 for name in "abc"}
    times = timing.in_turns(runs)
    rounds = [seen[i : i + 3] for i in range(3, len(seen), 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in rounds)
    assert len({tuple(turn) for turn in rounds}) > 1, "always in the same order"
    assert [len(samples) for samples in times.values()] == [len(rounds)] * 3


def test_a_failing_peer_is_reported_and_left_out(monkeypatch):
    def broken(*_):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("benchmarks.measure.peers", lambda *_: {"Broken": broken})
    row = measure(RELU, "forward", "cpu")
    assert list(row["times"]) == ["ours", "eager"]
    assert row["failed"] == ["Broken, relu(x), contiguous, 65536, float32, forward: RuntimeError: no such kernel"]


def test_operators_have_no_peer_where_none_is_installed(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda _: None)
    for (_, call), phase in itertools.product(CALLS, ("forward", "both")):
        assert peers.peers(call, phase) == {}


def test_page_of_a_layer_agrees_with_torch():
    x, weight = Case(*(LAYER, LAYER.calls[0]), "[M, N], [N]", 1 << 10, torch.float64).draw("cpu", 0)
    want = torch.nn.functional.rms_norm(x, weight.shape, weight, 1e-6)
    torch.testing.assert_close(LAYER.calls[0].function(customops, x, weight), want)
