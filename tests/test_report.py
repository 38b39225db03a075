"""The benchmarks' page says what the JSON says, losses and failures too, and the same each time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from benchmarks import report

from .marks import formulas_only

pytestmark = formulas_only

ROOT = report.RESULTS.parent.parent


def row(operator, ratio, **changes) -> dict:
    """Return a row of the JSON, in which eager takes 2 ms and a copy 1 ms."""
    return {
        "operator": operator,
        "call": f"{operator}(x, y)",
        "pattern": "contiguous",
        "shapes": [[1000, 1000], [1000, 1000]],
        "numel": 10**6,
        "dtype": "float32",
        "standard": True,
        "phase": "forward",
        "bytes": 12 * 10**6,
        "copy": [0.9, 1.0, 1.1],
        "copy_bytes": 8 * 10**6,
        "times": {"ours": [ratio, 2 * ratio, 3 * ratio], "eager": [1.0, 2.0, 3.0]},
        "ratios": {"ours": ratio},
        "faults": [],
    } | changes


def host(where, **figures) -> dict:
    return {"call": "mul(x, y)", "phase": "both", "where": where} | figures


CPU = {
    "rows": [row("mul", 0.5), row("mul", 1.25, phase="both", saved={"ours": 8e6, "eager": 16e6}), row("add", 1.0)]
    + [row("mul", 0.75, numel=100, shapes=[[100], [100]], bytes=1200, copy_bytes=800)],
    "host": [
        host("CPU", times={"ours": 6.0, "eager": 4.0}, ratio=1.5),
        host("recording driver", times={"ours": 40.0}),
    ],
}
GPU = {
    "rows": [
        row("sub", 0.25, ratios={"ours": 0.25, "compile": 3.0}, faults=["compile differs from eager"]),
        row("sum", 1.0, phase="backward", bytes=0),
        row("pow", 9.0, faults=["ours differs from eager"]),
    ],
    "verdicts": ["both, geometric mean: 0.81: MISSED"],
    "failed": ["compile, pow(x, y): RuntimeError:\n no"],
    "left_out": ["exp(x), 1073741824"],
}


def compiled(ratio: float, **changes) -> dict:
    """Return a row of the comparison of compiled code, in which Liger's pass takes 10 us."""
    figures = {
        "launches": 1, "dram_bytes": 3e6, "l2_bytes": 4e6, "sass": 12.5, "registers": 32, "spills": 0, "warps": 64.0,
        "in_flight": 65536.0, "seconds": 1e-5, "limit": "DRAM", "kernels": [],
    }  # fmt: skip
    name = {"layer": "softmax", "dtype": "float32", "length": 256, "pass": "forward"}
    return name | {"ours": figures | {"seconds": ratio * 1e-5}, "liger": figures} | changes


COMPILED = {
    "where": {"target": "cuda:90", "liger-kernel": "0.8.5", "command": "python -m benchmarks --compiled"},
    "verdicts": ["estimated time, no row above 1.05: 1 of 3 are: MISSED"],
    "short": ["softmax, float32, 1024, forward: estimated time"],
    "failed": ["liger, softmax, float32, 4096x7: RuntimeError: no\n kernel"],
    "rows": [compiled(0.5), compiled(2.0, length=1024), compiled(1.0, dtype="bfloat16")],
}


def fused(layer: str, ratio: float, **changes) -> dict:
    """Return a row of the comparison of fused layers, in which the composition takes 4 ms, torch's own 2 ms."""
    row = {"layer": layer, "size": [4096, 4096], "dtype": "float32", "threads": 1, "phase": "both"}
    row |= {"times": {"ours": [1.0, 4 * ratio, 9.0], "eager": [3.0, 4.0, 5.0], "own": [1.0, 2.0, 3.0]}}
    row |= {"ratios": {"ours": ratio, "own": 0.5}, "ours_to": {"eager": ratio, "own": 2 * ratio}}
    return row | {"faults": [], "failed": []} | changes


FUSED = {
    "where": {"device": "a cpu, of its kind", "date": "2026-01-01", "command": "python -m benchmarks --fused"},
    "no_compiler": "there is no\n C++ compiler",
    "verdicts": ["forward + backward at 4096x4096, no layer above 0.9: 1.25 of gelu: MISSED"],
    "losses": ["gelu, 4096x4096, float32, 1 thread, forward + backward: 1.25 of the composition's"],
    "failed": ["own, first call of gelu: no such\n function"],
    "left_out": ["silu, 64x256, bfloat16"],
    "first": [{"layer": "gelu", "who": "ours", "wall": 12.5, "cpu": 11.5}],
    "rows": [
        fused("gelu", 1.25, peak={"ours": 5e6, "eager": 10e6}, saved={"ours": 2e6, "eager": 4e6, "own": 1e6}),
        fused("gelu", 0.8, phase="forward"),
        fused("softmax", 0.2, faults=["ours differs from eager"]),
    ],
}


@pytest.fixture
def results(tmp_path):
    """Return a folder with the results of a CPU and of a GPU, and the comparisons of fused layers and compiled code."""
    for kind, document in {"cpu": CPU, "cuda": GPU}.items():
        where = {"device": f"a {kind}, of its kind", "date": "2026-01-01", "command": "python -m benchmarks"}
        whole = {"where": where, "kind": kind, "rows": [], "host": [], "verdicts": [], "failed": [], "left_out": []}
        whole |= document
        path = tmp_path / "results" / kind / "benchmark.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(whole))
    (tmp_path / "results" / "cpu" / "fused.json").write_text(json.dumps(FUSED))
    path = tmp_path / "results" / "compiled" / "cuda-90.json"
    path.parent.mkdir()
    path.write_text(json.dumps(COMPILED))
    return tmp_path / "results"


def test_rebuilding_changes_no_byte(results):
    pytest.importorskip("matplotlib", reason="the plots need Matplotlib, which customops[bench] brings")
    written = []
    for _ in range(2):
        report.main(results)
        written.append({path: path.read_bytes() for path in results.parent.rglob("*") if path.is_file()})
    names = {"README.md", "benchmark.json", "ratios.png", "roofline.png", "host.png", "cuda-90.json", "cuda-90.png"}
    assert {path.name for path in written[0]} == names | {"fused.json", "fused.png"}
    assert written[0] == written[1]


def test_without_matplotlib_it_says_what_to_install(results, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match=r'pip install "customops\[bench\]"'):
        report.main(results)


def test_every_row_is_in_the_page(results):
    page = report.page(results)
    for machine in (CPU, GPU):
        for call in (row["call"] for row in machine["rows"]):
            assert f"\n| `{call}`" in page
    assert "| 1000x1000 | forward | 1 | 2 | 0.50 | 12 | 150 |" in page  # 12 MB in 1 ms; a copy moves 8
    assert "| forward + backward | 2.5 | 2 | **1.25** | 4.8 | 60 | 8 / 16 |" in page
    assert "| 6.0 | 4.0 | **1.50** | 40.0 |" in page


def test_losses_and_only_losses_are_bold(results):
    page = report.page(results)
    assert {"**1.25**", "**3.00**", "**1.50**"} <= set(page.split())
    assert not {"**0.25**", "**0.50**", "**1.00**"} & set(page.split())
    assert "mul: 3 rows, in 1 slower than eager" in page


def test_faults_and_failures_are_told_and_in_no_mean(results):
    page = report.page(results)
    assert "- `pow(x, y), contiguous, float32, 1000x1000, forward: ours differs from eager`" in page
    assert "- `compile, pow(x, y): RuntimeError: no`" in page
    assert "- `exp(x), 1073741824`" in page
    assert "compile differs from eager`" in page
    assert "| forward | ours | 0.25 | 0.25 |" in page, "another's fault is not ours"
    assert "- both, geometric mean: 0.81: MISSED" in page


def test_a_machine_without_results_has_no_section(results):
    assert report.page(results).index("## a cuda") < report.page(results).index("## a cpu")
    shutil.rmtree(results / "cuda")
    page = report.page(results)
    assert "a cuda" not in page
    assert "What failed" not in page


def test_the_comparison_of_compiled_code_is_called_an_estimate_and_shows_losses(results):
    _, _, part = report.page(results).partition("\n## Layers against Liger-Kernel, by the compiled code: an estimate\n")
    assert part.lstrip().startswith("**No time here is measured.**")
    assert (
        "| `softmax` | forward | float32 | 256 | 1 / 1 | 3.0 / 3.0 | 12.5 / 12.5 | 32 / 32 | 0 / 0 | 64 / 64 |" in part
    )
    assert "| 5.0 / 10.0 | 0.50 | DRAM / DRAM |" in part
    assert "| 20.0 / 10.0 | **2.00** | DRAM / DRAM |" in part
    assert "| 10.0 / 10.0 | 1.00 |" in part
    assert "| all | 1.00 | 1.00 | 1.00 | 1.00 | 2.00 at 1024, float32 |" in part
    for text in (
        *COMPILED["verdicts"],
        *COMPILED["short"],
        "`liger, softmax, float32, 4096x7: RuntimeError: no kernel`",
    ):
        assert f"- {text}" in part
    shutil.rmtree(results / "compiled")
    assert "Liger-Kernel, by" not in report.page(results)


def test_the_comparison_of_fused_layers_shows_losses_and_what_failed(results):
    _, _, rest = report.page(results).partition("\n## Fused layers on a CPU\n")
    part = rest.partition("\n## ")[0]
    assert "| `gelu` | 4096x4096 | float32 | 1 | forward + backward | 5 | 4 | **1.25** | **2.50** |" in part
    assert "| `gelu` | 4096x4096 | float32 | 1 | forward | 3.2 | 4 | 0.80 | **1.60** |" in part
    assert "| `softmax` (faulty) |" in part
    assert "| 4096x4096 | float32 | 1 | forward + backward | 0.50 | 1.00 | 1.25 of gelu |" in part
    assert "| gelu | 5 | 10 | 2 | 4 | 1 | 12.5 | 11.5 |" in part
    assert "every row: 3, in 1 ours is slower than another" in part
    assert "torch.compile is left out: `there is no C++ compiler`" in part
    for text in (*FUSED["verdicts"], "`own, first call of gelu: no such function`", "`silu, 64x256, bfloat16`"):
        assert f"- {text}" in part
    (results / "cpu" / "fused.json").unlink()
    assert "Fused layers" not in report.page(results)


def test_the_report_needs_no_torch():
    code = "import sys, benchmarks.report; assert not {'torch', 'customops', 'matplotlib'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.skipif(not [*report.RESULTS.glob("*/benchmark.json")], reason="nothing has been measured yet: make bench")
def test_the_committed_page_is_what_its_json_gives():
    assert (report.RESULTS.parent / "README.md").read_text() == report.page(), "make report writes it anew"
