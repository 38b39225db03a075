"""The comparison of compiled code counts every launch, torch's too, and its verdicts miss what they should miss."""

from __future__ import annotations

import json
import resource

import pytest
import torch

from benchmarks import __main__ as benchmark
from benchmarks import machine
from benchmarks.compiled import command, liger, ours
from benchmarks.compiled.counts import counts
from benchmarks.compiled.layers import DTYPES, LAYERS, LENGTHS, PASSES, ROWS, Case, cases
from benchmarks.compiled.verdicts import TARGETS, short, verdicts
from customops.tools import targets

from .conftest import INTERPRETED
from .marks import formulas_only

if INTERPRETED:
    pytest.skip("the interpreter's functions do not compile", allow_module_level=True)

pytest.importorskip("triton", reason="there is nothing to compile with")
pytest.importorskip("liger_kernel", reason="there is nothing to compare with: customops[peers] brings it")

pytestmark = formulas_only

GPU = "cuda:90"
CASE = Case("relu_squared", "bfloat16", 256)


def figures(**changes) -> dict:
    return {"launches": 2, "dram_bytes": 2e6, "sass": 20.0, "spills": 0, "seconds": 2e-6} | changes


def row(name="backward", **changes) -> dict:
    return {**CASE._asdict(), "pass": name, "ours": figures(**changes), "liger": figures()}


GOOD = {"launches": 1, "dram_bytes": 1.9e6, "sass": 19.0, "seconds": 1.6e-6}


def test_launches_of_torch_are_counted_with_their_bytes():
    with liger.TorchLaunches() as torchs:
        partials = torch.empty(132, 100).view(132, 100)
        total = partials.sum(dim=0).to(torch.bfloat16)
        total.to(torch.bfloat16)  # as it is: nothing is launched
    assert torchs.launches == [("sum", 132 * 100 * 4, 400), ("_to_copy", 400, 200)]


def test_an_operator_of_torch_that_is_not_known_is_no_launch_left_out():
    x = torch.ones(2)
    with pytest.raises(NotImplementedError, match=r"aten\.exp: it is not known how many"), liger.TorchLaunches():
        x.exp()


@pytest.mark.parametrize(
    ("layer", "dtype", "of_torch"),
    [
        ("rms_norm", "bfloat16", ["sum", "_to_copy"]),
        ("rms_norm", "float32", ["sum"]),
        ("layer_norm", "bfloat16", ["sum", "_to_copy"] * 2),
    ],
)
def test_liger_launches_what_it_launches_on_a_gpu(layer, dtype, of_torch):
    """A program for each multiprocessor, then torch's sums of what they leave."""
    passes = liger.launches(LAYERS[layer], getattr(torch, dtype), 256, GPU)
    assert [(record.grid, record.num_warps) for record in passes["forward"]] == [((ROWS, 1, 1), 4)]
    kernel, *others = passes["backward"]
    assert kernel.grid == (targets.TARGETS[GPU].multiprocessors, 1, 1)
    assert [launch.name for launch in others] == of_torch
    assert others[0].bytes_read == 132 * 256 * 4


def test_a_loss_has_all_launches_of_torch_and_both_passes_in_one():
    """Liger's checks of indices launch, too; the gradient of 1 that arrives is compared with 1, in two launches."""
    layer = LAYERS["cross_entropy"]
    (name, launches), *others = layer.passes(liger.launches(layer, torch.bfloat16, 256, GPU)).items()
    assert (name, others) == ("forward + backward", [])
    checks = ["ne", "sum", "mul", "max", "lt", "mul", "min", "ge"]
    expected = ["liger_cross_entropy_kernel", "zeros", *checks, "sum", "equal", "equal"]
    assert [launch.name for launch in launches] == expected
    (name, launches), *others = layer.passes(ours.launches(layer, torch.bfloat16, 256, GPU)).items()
    assert (name, others) == ("forward + backward", [])
    assert 2 <= len(launches) <= 4


def test_heads_lie_in_memory_as_projections_leave_them():
    q, k, cos, sin = LAYERS["rotary_embedding"].operands(1024, torch.bfloat16)
    assert (q.shape, q.stride()) == ((1, 8, ROWS, 128), (1024 * ROWS, 128, 1024, 1))
    assert [x.requires_grad for x in (q, k, cos, sin)] == [True, True, False, False]
    assert cos.shape == sin.shape == (ROWS, 128)


@pytest.mark.parametrize("name", LAYERS)
def test_a_row_has_its_length_whatever_the_shape(name):
    first = LAYERS[name].operands(1024, torch.float32)[0]
    assert first.numel() == ROWS * 1024


def test_nothing_is_computed_and_no_memory_taken():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for library in (ours, liger):
        passes = library.launches(LAYERS["relu_squared"], torch.float32, 65536, GPU)
        assert [len(passes[name]) for name in PASSES] == [1, 1]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 512 << 10, "KiB; one of the tensors would take 1 GiB"


def test_figures_are_those_of_the_whole_pass():
    rows, failed = command.compare(CASE, GPU)
    assert not failed
    for found, tensors in zip(rows, (2, 3), strict=True):  # x and z; g, x and dx
        for who in ("ours", "liger"):
            assert found[who]["launches"] == 1
            assert found[who]["dram_bytes"] == tensors * ROWS * 256 * 2
            assert 3 < found[who]["sass"] < 60
    launches = ours.launches(LAYERS[CASE.layer], torch.bfloat16, 256, GPU)["forward"]
    once, twice = (counts(launches * n, ROWS * 256, GPU) for n in (1, 2))
    for figure in ("launches", "dram_bytes", "l2_bytes", "sass", "seconds"):
        assert twice[figure] == pytest.approx(2 * once[figure])
    assert twice["registers"] == once["registers"]


def test_a_launch_of_torch_takes_the_time_of_its_bytes_and_a_launch():
    gpu = targets.TARGETS[GPU]
    launches = ours.launches(LAYERS[CASE.layer], torch.bfloat16, 256, GPU)["forward"]
    alone = counts(launches, ROWS * 256, GPU)
    copied = counts([*launches, liger.TorchLaunch("_to_copy", 10**9, 10**9)], ROWS * 256, GPU)
    assert copied["seconds"] - alone["seconds"] == pytest.approx(2e9 / gpu.dram_bandwidth + gpu.launch_latency)
    assert copied["dram_bytes"] - alone["dram_bytes"] == 2 * 10**9
    assert (copied["launches"], copied["sass"], copied["registers"]) == (2, alone["sass"], alone["registers"])


def test_partial_sums_that_the_l2_holds_cost_no_dram():
    gpu = targets.TARGETS[GPU]
    small, large = 10**6, gpu.l2_bytes
    kernel, *_ = liger.launches(LAYERS["rms_norm"], torch.float32, 256, GPU)["backward"]
    alone = counts([kernel], ROWS * 256, GPU)["dram_bytes"]
    for size, dram in ((small, alone - small), (large, alone + large)):
        found = counts([kernel, liger.TorchLaunch("sum", size, 0)], ROWS * 256, GPU)
        assert found["dram_bytes"] == dram


def test_verdicts_say_what_is_missed():
    rows = [row(**GOOD, name=name) for name in PASSES]
    assert all(line.endswith(": met") for line in verdicts(rows))
    assert not [*short(rows)]
    for figure, target in TARGETS.items():
        limit = figures()[figure] * target.mean
        for value, met in ((limit, True), (limit * 1.001, False)):
            lines = [line for line in verdicts([row(**GOOD | {figure: value})]) if "geometric mean" in line]
            assert [line.endswith(": met") for line in lines] == [met or figure != f for f in TARGETS]


@pytest.mark.parametrize("figure", [figure for figure, target in TARGETS.items() if target.row])
def test_a_row_that_is_worse_than_it_may_be_is_listed_with_how_much(figure):
    target, liger_has = TARGETS[figure], figures()[figure]
    bad = row(**GOOD | {figure: liger_has * target.row * 1.01})
    (line,) = [line for line in verdicts([row(**GOOD)] * 9 + [bad]) if f"{target.title}, no row above" in line]
    assert f"1 of 10 are; highest {target.row * 1.01:.2f} of relu_squared, bfloat16, 256, backward" in line
    assert line.endswith(": MISSED")
    (listed,) = short([row(**GOOD), bad])
    assert listed.startswith(f"relu_squared, bfloat16, 256, backward: {target.title}")
    assert listed.endswith(f"{target.row * 1.01:.2f} times, over {target.row}")


def test_a_spill_is_missed_and_listed():
    rows = [row(**GOOD), row(**GOOD, spills=8)]
    assert [*verdicts(rows)][-1] == "spills of ours, in no row: in 1: MISSED"
    assert [*short(rows)] == ["relu_squared, bfloat16, 256, backward: spills 8 bytes of a thread"]


def test_everything_is_compared_unless_a_part_is_named():
    assert len([*cases()]) == len(LAYERS) * len(DTYPES) * len(LENGTHS) == 110
    assert set(cases(quick=True)) < set(cases())
    assert [*cases(names=["softmax"], lengths=[7])] == [Case("softmax", dtype, 7) for dtype in DTYPES]


def test_command_prints_and_writes_what_it_compared_of_everything(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    monkeypatch.setattr(command, "cases", lambda *_: iter([CASE]))
    assert benchmark.main(["--compiled", "--quick"]) == 0
    assert not [*tmp_path.iterdir()], "a part must not replace the whole"
    assert benchmark.main(["--compiled", "--jobs", "1"]) == 0
    document = json.loads((tmp_path / "compiled" / "cuda-90.json").read_text())
    assert [row["pass"] for row in document["rows"]] == [*PASSES]
    assert {"target", "torch", "triton", "liger-kernel", "commit"} <= set(document["where"])
    printed = capsys.readouterr().out
    for text in (*document["verdicts"], *document["short"], "relu_squared, forward, bfloat16, 256"):
        assert text in printed


def test_a_layer_that_fails_is_told_and_the_others_are_not_lost(monkeypatch, capsys):
    broken = LAYERS["relu_squared"]._replace(ours=lambda x: x @ x)
    monkeypatch.setitem(LAYERS, "relu_squared", broken)
    monkeypatch.setattr(command, "cases", lambda *_: iter([CASE]))
    assert benchmark.main(["--compiled", "--quick"]) == 1
    assert "ours, relu_squared, bfloat16, 4096x256: " in capsys.readouterr().out


def test_names_of_layers_are_checked():
    with pytest.raises(SystemExit, match=r"expected some of softmax, .*, got exp"):
        benchmark.main(["--compiled", "--ops", "exp"])


def test_without_liger_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda _: None)
    with pytest.raises(SystemExit, match=r'pip install "customops\[peers\]"'):
        benchmark.main(["--compiled"])
