"""The comparison of fused layers calls the same formula everywhere; its verdicts miss what they should miss."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F

from benchmarks import __main__ as benchmark
from benchmarks import machine, report
from benchmarks.fused import command, first
from benchmarks.fused.contestants import composition, contestant
from benchmarks.fused.gallery import EVERY, GALLERY
from benchmarks.fused.layers import DTYPES, LAYERS, SIZES, Case, cases
from benchmarks.fused.lines import line
from benchmarks.fused.measure import PHASES, Layers, measure
from benchmarks.fused.verdicts import LARGE, SMALL, losses, verdicts
from customops.tools import timing
from examples import layers as examples

from .conftest import DEVICE, KERNELS

if KERNELS or DEVICE != "cpu":
    pytest.skip("the benchmark times the CPU, by formulas", allow_module_level=True)

TINY = (8, 16)
COMMAND = ["--fused", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _in_short(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(timing, "ROUND", 1e-4)
    monkeypatch.setattr(timing, "LEAST_ROUNDS", 2)
    monkeypatch.setattr(timing, "SECONDS", 0)
    monkeypatch.setattr(benchmark.fused, "warm_memory", lambda: None)
    yield
    torch.set_num_threads(threads)


def values_and_gradients(function, layer, xs) -> list[torch.Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in (xs[:-1] if layer.target else xs)]
    z = function(*leaves, *xs[len(leaves) :])
    zs = z if isinstance(z, tuple) else (z,)
    return [*zs, *torch.autograd.grad(zs, leaves, [torch.cos(z) for z in zs])]


@pytest.mark.parametrize("name", LAYERS)
def test_layers_agree_with_torch_in_values_and_gradients(name):
    layer = LAYERS[name]
    torchs = next(row.torchs for row in examples.COMPARISONS if row.ours is layer.ours)
    xs = layer.draw((5, 7), torch.float64)
    want = values_and_gradients(torchs, layer, xs)
    for function in (layer.ours, composition(layer.ours)):
        torch.testing.assert_close(values_and_gradients(function, layer, xs), want, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", GALLERY)
def test_functions_of_the_gallery_agree_with_torchs_and_with_their_compositions(name, blocks):
    blocks(64)
    layer = GALLERY[name]
    xs = layer.draw((32, 128), torch.float64)
    want = values_and_gradients(layer.eager, layer, xs)
    for who in ("ours", "own"):
        function = contestant(layer, who)
        assert function or not layer.has_own
        if function:
            torch.testing.assert_close(values_and_gradients(function, layer, xs), want, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", EVERY)
def test_the_composition_calls_torchs_operators_alone(name, blocks):
    blocks(64)
    layer = EVERY[name]
    xs = layer.draw((32, 128), torch.float32)
    leaves = [x.requires_grad_() for x in (xs[:-1] if layer.target else xs)]
    xs = [*leaves, *xs[len(leaves) :]]
    assert nodes_in_python(contestant(layer, "ours")(*xs)), "that of ours is in Python"
    assert not nodes_in_python(contestant(layer, "eager")(*xs))


def nodes_in_python(z) -> list:
    nodes = [x.grad_fn for x in (z if isinstance(z, tuple) else (z,))]
    found = []
    while nodes:
        node = nodes.pop()
        found += [node] if isinstance(node, torch.autograd.Function | torch.autograd.function.BackwardCFunction) else []
        nodes += [other for other, _ in node.next_functions if other]
    return found


@pytest.mark.parametrize(
    ("ours", "torchs"),
    [
        (examples.softplus, F.softplus),
        (lambda x: examples.binary_cross_entropy(x, T01), lambda x: F.binary_cross_entropy_with_logits(x, T01)),
        (lambda x: examples.huber_loss(x, T01), lambda x: F.huber_loss(x, T01)),
    ],
    ids=["softplus", "binary_cross_entropy", "huber_loss"],
)
def test_layers_are_exact_at_zero_and_far_from_it(ours, torchs):
    results = []
    for function in (ours, torchs):
        x = torch.tensor([0.0, 0.0, 1.0, -1.0, 20.0, -20.0, 200.0, -200.0, 1e4, -1e4], requires_grad=True)
        z = function(x)
        results.append([z, *torch.autograd.grad(z.sum(), x)])
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


T01 = torch.tensor([0.0, 1.0, 0.5, 0.5, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0])


def test_everything_is_timed_unless_a_part_is_named():
    assert len(LAYERS) == 15
    assert len([*cases()]) == len(LAYERS) * len(SIZES) * len(DTYPES)
    assert set(cases(quick=True)) < set(cases())
    assert [*cases(names=["softmax"], sizes=[TINY])] == [Case("softmax", TINY, dtype) for dtype in DTYPES]
    assert all((layer.own is not None) == layer.has_own for layer in EVERY.values())
    assert not {*LAYERS} & {*GALLERY}
    for layer in EVERY.values():
        first = layer.draw((64, 256), torch.float32)[0]
        assert first.numel() == 64 * 256, "as many elements as the size says"


def test_contestants_compute_on_the_same_tensors():
    layers = Layers(Case("cross_entropy", TINY, "bfloat16"), ("ours", "eager", "own"))
    assert [x.shape for x in (*layers.xs, *layers.target)] == [TINY, TINY]
    seen = []
    layers.functions["own"] = lambda *xs: seen.extend(x.data_ptr() for x in xs) or xs[0].sum()
    for phase in PHASES:
        layers.phase("own", phase)()
    assert seen == [x.data_ptr() for x in (*layers.xs, *layers.target)] * 2


def test_each_number_of_threads_and_phase_has_a_row():
    rows = [*measure(Case("add_rms_norm", TINY, "float32"), ("ours", "eager"), (1, 2))]
    assert [(row["threads"], row["phase"]) for row in rows] == [(n, phase) for n in (1, 2) for phase in PHASES]
    assert torch.get_num_threads() == 1
    for row in rows:
        assert row["ours_to"]["eager"] == pytest.approx(row["ratios"]["ours"])
        assert (row["faults"], row["failed"]) == ([], [])
    (with_memory,) = [row for row in rows if "peak" in row]
    assert (with_memory["threads"], with_memory["phase"]) == (1, "both")
    assert with_memory["saved"]["ours"] > 0 < with_memory["peak"]["ours"]


def test_a_contestant_that_fails_is_told_and_the_others_are_not_lost(monkeypatch):
    def broken(*_):
        raise RuntimeError("no such\n kernel")

    monkeypatch.setattr("benchmarks.fused.measure.contestant", lambda _, who: broken if who == "own" else torch.exp)
    rows = [*measure(Case("silu", TINY, "float32"), ("ours", "eager", "own"))]
    assert all([*row["times"]] == ["ours", "eager"] for row in rows)
    assert all(row["failed"] == ["own: RuntimeError: no such"] for row in rows)


def wrong_value(x):
    return torch.softmax(x, -1) * 1.001


def wrong_gradient(x):
    z = torch.softmax(x, -1)
    return z + 0.001 * (z - z.detach())


def wrong_when_recorded(x):
    z = torch.softmax(x, -1)
    return z + 0.001 * z.detach() if x.requires_grad else z


def fails(x):
    return x @ x @ "no"


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (wrong_value, "ours differs from eager in float64, forward: "),
        (wrong_when_recorded, "ours differs from eager in float64, recorded: "),
        (wrong_gradient, "ours differs from eager in float64, both: "),
        (fails, "ours or eager, softmax, 8x16, float32: "),
    ],
)
def test_a_fault_of_ours_is_printed_and_makes_the_command_fail(broken, told, monkeypatch, capsys):
    command_line = [*COMMAND, "--quick", "--sizes", "8x16", "--ops", "softmax"]
    assert benchmark.main(command_line) == 0
    broken.__name__ = "softmax"
    right = LAYERS["softmax"]
    monkeypatch.setitem(LAYERS, "softmax", right._replace(ours=broken, has_own=False, eager=composition(right.ours)))
    assert benchmark.main(command_line) == 1
    assert told in capsys.readouterr().out


def test_command_prints_and_writes_what_it_measured_of_everything(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(machine, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(command, "_why_nothing_compiles", lambda: "there is no C++ compiler")
    monkeypatch.setattr(command, "in_processes", lambda name, who: {"wall": 25.0, "cpu": 24.0})
    assert benchmark.main([*COMMAND, "--sizes", "8x16", "--ops", "mse_loss"]) == 0
    assert benchmark.main([*COMMAND, "--quick", "--ops", "mse_loss", "--minutes", "0"]) == 0
    assert "no time left for mse_loss, 4096x4096, float32" in capsys.readouterr().out
    assert not tmp_path.joinpath("results").exists(), "a part must not replace the whole"
    monkeypatch.setattr(command, "cases", lambda *_: [Case("mse_loss", TINY, dtype) for dtype in DTYPES])
    assert benchmark.main(COMMAND) == 0
    (path,) = tmp_path.glob("results/*/fused.json")
    document = json.loads(path.read_text())
    assert {row["dtype"] for row in document["rows"]} == set(DTYPES)
    assert len(document["first"]) == 2 * len(LAYERS), "ours and eager: nothing compiles"
    printed, page = capsys.readouterr().out, report.page(tmp_path / "results")
    assert "torch.compile is left out: there is no C++ compiler" in printed
    assert printed.count("no compiler") == len(document["rows"]), "the column says so"
    for verdict in document["verdicts"]:
        assert verdict in printed
        assert verdict in page
    assert "below 20 ms: 25.0 ms of softmax, 24.0 of CPU, the composition 25.0: MISSED" in printed
    assert all(row["layer"] in page for row in document["rows"])


def test_the_gallery_has_a_file_and_a_part_of_the_page_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(command, "_why_nothing_compiles", lambda: "there is no C++ compiler")
    monkeypatch.setattr(command, "in_processes", lambda name, who: {"wall": 15.0, "cpu": 14.0})
    monkeypatch.setattr(
        command, "cases", lambda _, names, __: [Case(name, (32, 64), "bfloat16") for name in names[-1:]]
    )
    assert benchmark.main([*COMMAND, "--gallery"]) == 0
    (path,) = tmp_path.glob("results/*/*.json")
    assert path.name == "gallery.json"
    assert [row["layer"] for row in json.loads(path.read_text())["rows"]] == ["cross_entropy_of_indices"] * 4
    page = report.page(tmp_path / "results")
    assert "Functions of the gallery" in page
    assert "Each layer of" not in page


def test_arguments_are_checked():
    with pytest.raises(SystemExit, match=r"expected some of elu, .*, got softmax"):
        benchmark.main([*COMMAND, "--gallery", "--ops", "softmax"])
    with pytest.raises(SystemExit, match=r"expected some of softmax, .*, got exp"):
        benchmark.main([*COMMAND, "--ops", "exp"])
    with pytest.raises(SystemExit, match="add --device cpu"):
        benchmark.main(["--fused", "--device", "cuda"])


def test_a_first_call_is_timed_in_a_process_of_its_own(monkeypatch):
    monkeypatch.setitem(first.PROCESSES, "ours", 1)
    found = first.in_processes("rms_norm", "ours")
    assert 0 < found["cpu"] < found["wall"] * 4
    monkeypatch.setitem(first.PROCESSES, "own", 1)
    with pytest.raises(RuntimeError, match="first call of swiglu: ValueError: torch has no function of its own"):
        first.in_processes("swiglu", "own")
    monkeypatch.undo()
    pairs = first.contestants_of(["softmax", "silu"], compiles=True)
    assert [who for name, who in pairs if name == "softmax"] == ["ours", "eager", "compile"]
    assert [who for name, who in pairs if name == "silu"] == ["ours", "eager"]


def row(layer="softmax", size=LARGE, threads=1, phase="both", ms=1.0, saved=1, peak=2, **ours_to) -> dict:
    """Return a row of which every target is met, unless it is changed."""
    ratios = {"eager": 0.3, "own": 1.0, "compile": 1.0} | ours_to
    times = {who: [ms, ms / ratio, 9.0] for who, ratio in {"ours": 1, **ratios}.items()}
    made_up = {"layer": layer, "size": size, "dtype": "float32", "threads": threads, "phase": phase}
    made_up |= {"ratios": {}, "ours_to": ratios, "times": times, "faults": [], "failed": []}
    made_up["peak"] = {"ours": peak, "eager": 4}
    return made_up | {"saved": {"ours": saved, "own": 1, "eager": 4}}


def rows() -> list[dict]:
    """Return rows of which every target is met."""
    one = [*(row(phase=phase) for phase in PHASES), row(size=SMALL)]
    return one + [row(threads=2, phase=phase, ms=0.6) for phase in PHASES]


FIRST = [{"layer": "softmax", "who": "ours", "wall": 19.0, "cpu": 18.0}]
FIRST += [{"layer": "softmax", "who": "compile", "wall": 9000.0, "cpu": 9000.0}]
WORSE = {
    "forward at 4096x4096, geometric mean of 1 ratios to the composition's": row(phase="forward", eager=0.46),
    "forward + backward at 4096x4096, geometric mean of 1 ratios to the composition's": row(eager=0.31),
    "forward + backward at 4096x4096, geometric mean of 1 ratios to torch.compile's": row(compile=1.01),
    "forward + backward at 4096x4096, at most 1 of torch's own in half": row(own=1.01),
    "forward at 4096x4096, at most 1 of torch's own in half": row(phase="forward", own=1.01),
    "forward + backward at 64x256, geometric mean of 1 ratios to the composition's": row(size=SMALL, eager=1.01),
    "peak memory of forward + backward": row(peak=2.1),
    "bytes saved at most those of torch's own": row(saved=1.1),
    "forward + backward at 4096x4096, two threads": row(threads=2, ms=0.63),
    "results and gradients as the composition's": row() | {"faults": ["ours differs"]},
}


def missed(rows, first=FIRST) -> list[str]:
    return [verdict for verdict in verdicts(rows, first) if not verdict.endswith(": met")]


@pytest.mark.parametrize("target", WORSE)
def test_a_verdict_says_what_is_missed(target):
    key = ("size", "threads", "phase")
    assert not missed(rows())
    worse = WORSE[target]
    (verdict,) = missed([worse if [r[k] for k in key] == [worse[k] for k in key] else r for r in rows()])
    assert verdict.startswith(target)
    assert verdict.endswith(": MISSED")


@pytest.mark.parametrize("phase", PHASES)
def test_one_layer_above_what_any_may_be_is_a_miss(phase):
    others = [row(layer=f"layer {i}", phase=phase, eager=0.1) for i in range(9)]
    (verdict,) = missed([*rows(), *others, row(layer="gelu", phase=phase, eager=0.91)])
    assert "no layer above 0.9: 0.91 of gelu: MISSED" in verdict
    (verdict,) = missed([*rows(), *others, row(layer="gelu", phase=phase, own=2.01)])
    assert "no layer above 2 of torch's own: 2.01 of gelu: MISSED" in verdict


def test_a_first_call_that_takes_too_long_is_a_miss():
    (verdict,) = missed(rows(), [*FIRST, {"layer": "gelu", "who": "ours", "wall": 20.5, "cpu": 9.0}])
    assert "below 20 ms: 20.5 ms of gelu, 9.0 of CPU, torch.compile of any 9000 or more: MISSED" in verdict


def test_what_was_not_measured_has_no_verdict():
    assert [*verdicts([], [])] == ["results and gradients as the composition's in float64: 0 faults of ours: met"]
    half = {**row(eager=9.0), "dtype": "bfloat16"}
    assert not missed([*rows(), half]), "the targets are about float32"


def test_losses_are_listed_with_how_much():
    slow = row(own=1.5, compile=1.02)
    assert [*losses([row(), slow])] == [
        "softmax, 4096x4096, float32, 1 thread, forward + backward: 1.50 of torch's own"
    ]
    assert "1.50" in line(slow)
    assert "\n    ours differs" in line(WORSE["results and gradients as the composition's"])
