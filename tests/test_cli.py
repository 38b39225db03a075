"""The command line: what it prints on a terminal, in a pipe and as JSON, exit codes, and what it says of mistakes."""

from __future__ import annotations

import functools
import io
import json
import os
import re
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import customops
from customops import config
from customops.cli import arguments, bench, doctor, output
from customops.cli.main import COMMANDS, main
from customops.proof import steps
from customops.proof.cases import ROW, ROWS
from customops.tools import timing

from .conftest import INTERPRETED, MODE

pytestmark = pytest.mark.skipif(MODE != "formulas", reason="the shell is the same whatever computes")
compiling = pytest.mark.skipif(
    INTERPRETED or config.find_triton() is None, reason="only Triton compiles, and where it does not interpret"
)
NORM = """
import functools
import torch

def norm(x, weight, eps=1e-6):
    return x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * weight

def layer_norm(x, weight, bias):
    centred = x - x.mean(-1, keepdim=True)
    return norm(centred, weight) + bias

def masked(x, mask):
    return torch.where(mask, x, 0.5).exp()

def sorted_(x):
    return x.sort()[0]

def raising(x):
    return {}["a"]

def rows(x):
    return x.sum(-1)

def rows_kept(x):
    return x.sum(-1, keepdim=True)

def logarithm(x):
    return (x - 5).log()

def first(x, y):
    return x * 2

def first_and_nothing(x, y):
    return x * 2 + y * 0

class Layer(torch.nn.Module):
    def forward(self, x):
        return x * x.exp()

scaled = functools.partial(norm, eps=0.5)
seven = 7
"""


class Terminal(io.StringIO):
    """A terminal, of what is written to it."""

    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def _layers(tmp_path, monkeypatch):
    """Have ``layers.py`` in the current directory, and nothing imported of it."""
    (tmp_path / "layers.py").write_text(NORM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    yield
    sys.modules.pop("layers", None)
    for name in ("broken", "raising", "missing", "ending", "__random__", "__layers__"):
        sys.modules.pop(name, None)


@pytest.fixture
def run(capsys):
    """Return a function to the exit code and what is printed for a line of arguments."""

    def call(line: str) -> tuple[int, str, str]:
        code = main(line.split(" "))
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def document(run):
    """Return a function to what ``--json`` prints, for a line of arguments, and its exit code."""

    def call(line: str) -> tuple[int, dict]:
        code, out, err = run(f"{line} --json")
        assert not err
        return code, json.loads(out)

    return call


def shape_of(value: object) -> object:
    """Return the names and types of what JSON holds; of a list the first element's."""
    if isinstance(value, dict):
        return {key: shape_of(x) for key, x in value.items()}
    if isinstance(value, list):
        return [shape_of(value[0])] if value else []
    return type(value).__name__


def test_version_names_the_versions_that_matter(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.startswith(f"customops {customops.__version__}, torch {torch.__version__}, triton ")


def test_the_installed_script_is_this_program():
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"customops": f"{main.__module__}:{main.__name__}"}
    assert {"cli", "prove"} <= project["optional-dependencies"].keys()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_the_exit_codes(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert "exit codes: 0 all is fine, 1 a problem was found, 2 bad arguments" in " ".join(text.split())
    assert "--json" in text


BROKEN = "def f(x):\n    return (x\n"
MISTAKES = [
    ("", "customops: the following arguments are required: COMMAND"),
    ("nothing", "customops: argument COMMAND: invalid choice: 'nothing'"),
    ("kernels exp --input 8 --nothing", "unrecognized arguments: --nothing"),
    ("kernels sigmod --input 8", "unknown operator 'sigmod': the nearest are sigmoid"),
    ("prove sigmod", "unknown operator 'sigmod': the nearest are sigmoid"),
    ("prove exp --step simpy", "unknown step 'simpy': there are derivation, SymPy"),
    ("bench sigmod --input 8", "unknown operator 'sigmod': the nearest are sigmoid"),
    ("bench", "name what to time, as customops bench sigmoid --input 4096x4096"),
    ("bench exp", "no tensor is given: describe each by --input"),
    (
        "kernels exp --input 8 --target h101",
        "--target: expected one of a100, h100, h200, b200, mi300x, rtx5090, cuda:80",
    ),
    ("explain layers.norm", "no tensor is given: describe each by --input, as --input x:4096x4096:bf16"),
    ("explain norm --input 8", "norm: expected MODULE.NAME, or FILE.py:NAME"),
    ("explain nowhere.norm --input 8", "No module named 'nowhere' here or among what is installed"),
    ("explain layers.nrom --input 8", "layers has no nrom: the nearest are norm"),
    ("explain layers.py:nrom --input 8", "layers.py has no nrom: the nearest are norm"),
    ("explain layers.seven --input 8", "layers.seven: expected a function, got 7"),
    ("explain layres.py:norm --input 8", "layres.py: there is no such file in "),
    ("explain broken.f --input 8", r"broken.py, line 2: SyntaxError: '\(' was never closed: correct the file"),
    ("explain broken.py:f --input 8", r"broken.py, line 2: SyntaxError: '\(' was never closed: correct the file"),
    ("explain raising.py:f --input 8", "raising.py: importing it failed: ZeroDivisionError: division by zero"),
    (
        "explain missing.py:f --input 8",
        "missing.py: importing it failed: ModuleNotFoundError: No module named 'absent'",
    ),
    ("explain layers.norm --input 8x8", r"norm\(\) missing 1 required positional argument: 'weight'"),
    ("explain layers.norm --input 8x8 --input 3", "must match"),
    ("explain layers.norm --input x:8x8:bf17 --input 8", "--input: kernels take bfloat16, bool, .*, got 'bf17'"),
    (
        "explain layers.norm --input x:8x8:strides=8 --input 8",
        r"dimensionality of sizes \(2\) must match dimensionality of strides \(1\)",
    ),
    ("explain layers.norm --input x:8x8 --input 8", "--input: an argument by position stands behind one by name"),
    (
        "explain layers.norm --input 8x8 --input 8 --number eps=small",
        "--number: expected a number, as 2, 1e-6 or eps=1e-6",
    ),
    ("explain layers.norm --input 8x8 --input 8 --number epsilon=1", "unexpected keyword argument 'epsilon'"),
    ("explain layers.sorted_ --input 8x8", "Tensor.sort"),
    ("explain math.sin --input 8", "^customops explain: fuse: sin: a number cannot be made of a traced tensor"),
    ("explain torch.asinh --input 8", "^customops explain: fuse: asinh: torch.asinh cannot be traced"),
    ("explain torch.nn.functional.bilinear --input 8 --input 8 --input 8x8x8", "explain: fuse: bilinear: torch"),
    ("explain customops.nn.functional.softmax --input 8", "explain: fuse: softmax: a softmax without dim cannot"),
    ("explain layers.Layer --input 8", "layers.Layer: expected a function, got <class 'layers.Layer'>"),
    ("explain ending.py:f --input 8", "ending.py: importing it failed: SystemExit: 3"),
    ("explain customops.nn.functional.silx --input 8", "^customops explain: customops.nn.functional has no silx"),
    ("explain layers.seven.norm --input 8", "layers.seven has no norm"),
    ("explain torch.zzzzzz --input 8", r"torch has no zzzzzz: none of [\d,]+ names is near"),
    ("explain layers.norm --input x:8x8 --number 2", "--number: an argument by position stands behind one by name"),
    ("explain layers.norm --input x:8x8 --input x:8", "x is given twice"),
    ("kernels mul --input x:8 --input y:8", r"mul\(input, other\b.*\) has no x: "),
    ("kernels exp --input 8 --input 8", r"exp\(input\b.*\) takes 1 operand, got 2"),
    ("bench layers.raising --input 8", "KeyError: 'a'"),
]


@pytest.mark.parametrize(("line", "reason"), MISTAKES)
def test_a_mistake_is_one_line_and_exits_2(line, reason, run, tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    (tmp_path / "raising.py").write_text("1 / 0\n")
    (tmp_path / "missing.py").write_text("import absent\n")
    (tmp_path / "ending.py").write_text("raise SystemExit(3)\n")
    code, out, err = run(line) if line else (main([]), "", "")
    assert code == 2
    assert not out
    if line:
        assert re.search(reason, err), err
        assert err.count("\n") == 1
        assert err.startswith("customops")


def test_an_interrupt_is_one_line(monkeypatch, run):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "ROWS", (ROW["exp"],))
    monkeypatch.setattr(doctor, "_check", interrupted)
    assert run("doctor") == (130, "", "customops doctor: interrupted\n")


def test_without_arguments_it_says_what_is_missing(capsys):
    assert main([]) == 2
    assert "arguments are required: COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("4096x64", (None, (4096, 64), None, None, None)),
        ("4096,64", (None, (4096, 64), None, None, None)),
        ("", (None, (), None, None, None)),
        ("x:", ("x", (), None, None, None)),
        (":bf16", (None, (), torch.bfloat16, None, None)),
        ("x:8x8:bf16:nograd", ("x", (8, 8), torch.bfloat16, None, False)),
        ("mask:8:bool", ("mask", (8,), torch.bool, None, None)),
        ("8x4:strides=1x8:grad:fp64", (None, (8, 4), torch.float64, (1, 8), True)),
    ],
)
def test_a_tensor_is_read_as_it_is_written(text, parsed):
    assert tuple(arguments.tensor(text)) == parsed


def test_a_number_is_any_literal():
    assert arguments._number("eps=1e-6") == ("eps", 1e-6)
    assert arguments._number("mode='a=b'") == ("mode", "a=b")
    assert arguments._number("-inf") == (None, float("-inf"))


def test_a_file_of_the_name_of_a_module_leaves_that(tmp_path, run):
    (tmp_path / "random.py").write_text(NORM)
    known = sys.modules["random"]
    assert run("explain random.py:nrom --input 8")[0] == 2
    assert sys.modules["random"] is known


@compiling
def test_explain_takes_dtypes_strides_masks_numbers_and_gradients(run):
    code, out, _ = run("explain layers.norm --input 64x256:bf16:strides=1x64 --input weight:256 --number eps=0.5 -v")
    assert code == 0
    assert out.startswith("norm(bfloat16[64, 256], weight=float32[256], eps=0.5) on cuda:90, H100 SXM\n")
    assert "0.5" in out.partition("program\n")[2].partition("backward")[0]
    assert "return dx = " in out
    assert "return dweight = " in out
    _, out, _ = run("explain layers.norm --input 64x256 --input 256:grad -v")
    assert ("return dx = " in out, "return dweight = " in out) == (False, True)
    _, out, _ = run("explain layers.norm --input 64x256 --input 256:nograd -v")
    assert ("return dx = " in out, "return dweight = " in out) == (True, False)
    _, out, _ = run("explain layers.norm --input 64x256:nograd --input 256:nograd -v")
    assert "backward" not in out
    code, out, _ = run("explain layers.py:masked --input 64x256 --input 64x256:bool")
    assert code == 0
    assert out.startswith("masked(float32[64, 256], bool[64, 256])")


@compiling
@pytest.mark.parametrize(
    ("by_position", "by_name"),
    [
        ("mul --input 64x64 --input 64", "mul --input 64x64 --input other:64"),
        ("mul --input 64x64 --input 64", "mul --input other:64 --input input:64x64"),
        ("where --input 64x64 --input 64", "where --input input:64x64 --input other:64"),
        ("clamp --input 64 --input 64 --input 64", "clamp --input 64 --input min:64"),
        ("sum --input 64x64 --dim 0", "sum --input input:64x64 --number dim=0"),
    ],
)
def test_operands_by_name_are_those_by_position(by_position, by_name, document):
    (code, want), (_, got) = (document(f"kernels {line} --backward") for line in (by_position, by_name))
    assert code == 0
    assert want["launches"]
    assert {**got, "call": ""} == {**want, "call": ""}
    assert "tensor(" not in got["call"]


@compiling
def test_strides_reach_the_kernels(document):
    """Elements that lie apart are loaded one by one."""
    widths = [
        document(f"kernels exp --input 64x256{strides}")[1]["launches"][0]["bits_loaded"]
        for strides in ("", ":strides=512x2")
    ]
    assert widths == [{"x": 128}, {"x": 32}]


@compiling
@pytest.mark.parametrize(("name", "target", "gpu"), [("h200", "cuda:90", "H200"), ("A100", "cuda:80", "A100 SXM")])
def test_gpus_go_by_their_names(name, target, gpu, document):
    _, found = document(f"kernels exp --input 4096x4096 --target {name}")
    _, known = document(f"kernels exp --input 4096x4096 --target {target}")
    assert found["gpu"] == gpu
    assert found["launches"][0]["registers"] == known["launches"][0]["registers"]
    assert (found["seconds"] == known["seconds"]) == (gpu == known["gpu"])


@compiling
def test_explain_shows_the_derivatives_as_mathematics(run):
    pytest.importorskip("sympy", reason="the terms are SymPy's")
    _, out, _ = run("explain layers.norm --input 64x256 --input 256 -v")
    program, backward = (re.search(rf"^{name}\n((?: {{4}}\S.*\n)*)", out, re.M)[1] for name in ("program", "backward"))
    assert re.search(r"t\d+ = 1/√t\d+\n", program)
    assert re.search(r"t\d+ = -t\d+·t\d+\^3/2\n", backward)
    assert "rsqrt(" not in program


@compiling
def test_explain_goes_by_names_without_sympy(run, monkeypatch):
    from customops.cli import proofs  # noqa: PLC0415 - what is patched

    monkeypatch.setattr(proofs, "find_spec", lambda name: None)
    _, out, _ = run("explain layers.norm --input 64x256 --input 256 -v")
    assert " = rsqrt(" in out
    assert out.endswith('formulas go by their names: pip install "customops[prove]" shows them as mathematics\n')


@compiling
def test_what_is_not_fused_is_a_problem(run, document):
    code, out, _ = run("explain layers.norm --input 0x8 --input 8")
    assert code == 1
    assert out.endswith("not fused: a tensor has no elements\n")
    code, found = document("explain layers.norm --input 0x8 --input 8")
    assert (code, found["not_fused"]) == (1, "a tensor has no elements")


LAUNCH = {
    **dict.fromkeys(("phase", "kernel", "program", "limited_by"), "str"),
    **dict.fromkeys(("warps", "registers", "spills", "bytes_moved", "bytes_floor", "dram_bytes", "l2_bytes"), "int"),
    **dict.fromkeys(("bytes_in_flight", "seconds"), "float"),
    "grid": ["int"],
    "block": ["int"],
}


def assert_is_launch(launch: dict) -> None:
    """Assert that a launch has the fields that it has always had."""
    widths = {*launch.pop("bits_loaded").values(), *launch.pop("bits_stored").values()}
    assert widths <= {8, 16, 32, 64, 128}
    assert {key: shape_of(x) if key not in ("dram_bytes", "l2_bytes") else "int" for key, x in launch.items()} == LAUNCH


@compiling
def test_json_of_kernels_keeps_its_schema(document):
    code, found = document("kernels mul --input 64x256 --input 256 --backward")
    assert code == 0
    launches = found.pop("launches")
    assert [launch["phase"] for launch in launches] == ["forward", *["backward"] * (len(launches) - 1)]
    for launch in launches:
        assert_is_launch(launch)
    assert shape_of(found) == {
        **dict.fromkeys(("call", "target", "gpu"), "str"),
        **dict.fromkeys(("bytes_moved", "bytes_floor"), "int"),
        "seconds": "float",
    }


@compiling
def test_json_of_explain_keeps_its_schema(document):
    _, found = document("explain layers.norm --input 64x256 --input 256")
    for launch in found.pop("launches"):
        assert_is_launch(launch)
    assert shape_of(found) == {
        **dict.fromkeys(("call", "target", "gpu"), "str"),
        **dict.fromkeys(("bytes_moved", "bytes_floor"), "int"),
        "seconds": "float",
        "saved": dict.fromkeys(found["saved"], "int"),
        "on_cpu": ["str"],
        "phases": [
            {
                "name": "str",
                "program": ["str"],
                **dict.fromkeys(("kernels", "bytes_moved", "bytes_floor"), "int"),
                "seconds": "float",
                "scratch": [],
                "unfused": {"kernels": "int", "bytes_moved": "int"},
            }
        ],
    }
    assert found["bytes_moved"] == sum(phase["bytes_moved"] for phase in found["phases"])


@compiling
def test_a_terminal_gets_tables_and_a_pipe_plain_text(monkeypatch, capsys):
    pytest.importorskip("rich", reason="the tables are rich's")
    line = ["kernels", "exp", "--input", "64x256"]
    assert main(line) == 0
    plain = capsys.readouterr().out
    assert plain.isascii()
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", "160")
    assert main(line) == 0
    drawn = re.sub(r"\x1b\[[\d;]*m", "", terminal.getvalue())
    assert "┃" in drawn
    assert "exp(float32[64, 256]) on cuda:90" in drawn  # brackets are no markup
    words = {*re.findall(r"[\w.]+", plain)}
    assert words <= {*re.findall(r"[\w.]+", drawn)}


@compiling
def test_a_terminal_without_rich_gets_plain_text(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    assert main(["kernels", "exp", "--input", "64x256"]) == 0
    assert terminal.getvalue().isascii()


def test_an_encoding_without_the_signs_of_mathematics_is_no_error(monkeypatch):
    pytest.importorskip("sympy", reason="the proofs need SymPy")
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, "ascii"))
    assert main(["prove", "sqrt", "--step", "derivation"]) == 0
    sys.stdout.flush()
    assert b"dx = g / (2z)" in written.getvalue()


def test_a_pipe_that_is_closed_early_is_no_error(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        monkeypatch.setattr(doctor, "ROWS", (ROW["exp"],))
        assert main(["doctor"]) == 0


def test_progress_shows_on_a_terminal_alone(monkeypatch):
    pytest.importorskip("rich", reason="the bar is rich's")
    for kind, shown in ((io.StringIO, False), (Terminal, True)):
        monkeypatch.setattr("sys.stderr", kind())
        assert [*output.progress(range(3), "counting", 3)] == [0, 1, 2]
        assert ("counting" in sys.stderr.getvalue()) is shown


def test_doctor_names_the_backend_of_every_operator_and_finds_no_problem(document, run):
    code, found = document("doctor")
    assert code == 0
    assert found["ok"]
    assert [x["name"] for x in found["operators"]] == [row.name for row in ROWS]
    assert {x["backend"] for x in found["operators"]} == {"torch formula"}
    assert all("CPU tensors" in x["why"] and x["passed"] for x in found["operators"])
    assert sum(x["seconds"] for x in found["operators"]) < 20
    assert shape_of(found["operators"][0]) == {
        **dict.fromkeys(("name", "device", "backend", "why", "found"), "str"),
        "passed": "bool",
        "seconds": "float",
    }
    assert found["versions"]["torch"]
    code, out, _ = run("doctor")
    assert code == 0
    assert all(re.search(rf"^{row.name} +cpu +torch formula +passed", out, re.M) for row in ROWS)
    assert out.endswith("; no problems\n")


def test_doctor_says_which_operator_fails_and_what_to_do(monkeypatch, run):
    monkeypatch.setattr(customops, "exp", lambda x: torch.exp(x) * 1.0001)
    monkeypatch.setattr(doctor, "ROWS", (ROW["exp"], ROW["log"]))
    code, out, _ = run("doctor")
    assert code == 1
    assert "exp       cpu     torch formula  FAILED" in out
    assert re.search(r"PROBLEM: exp on cpu fails its test: .*: customops prove exp shows which step fails\n", out)
    assert "1 of 2 self-tests passed" in out


def test_doctor_says_what_to_do_about_a_backend_that_nothing_has(monkeypatch, run):
    monkeypatch.setattr(doctor, "ROWS", (ROW["exp"],))
    with customops.backend("triton"):
        code, out, _ = run("doctor")
    assert code == 1
    assert "PROBLEM: CUSTOMOPS_BACKEND=triton requires kernels, and none can run here: unset it, or set TRITON" in out


@compiling
def test_doctor_tries_the_compiler_where_the_backend_is_torch(monkeypatch, document):
    monkeypatch.setattr(doctor, "ROWS", (ROW["exp"],))
    with customops.backend("torch"):
        code, found = document("doctor")
    assert (code, found["problems"]) == (0, [])
    assert found["compiler"]["works"]


def test_doctor_knows_of_a_missing_triton(monkeypatch, run):
    monkeypatch.setattr(doctor, "ROWS", (ROW["exp"],))
    monkeypatch.setattr(config, "find_triton", lambda: None)
    code, out, _ = run("doctor")
    assert code == 0
    assert "compiler    none: Triton is not installed\n" in out


@compiling
def test_prove_shows_each_step_and_what_it_found(document, run):
    pytest.importorskip("sympy", reason="the proofs need SymPy")
    code, found = document("prove sigmoid")
    assert code == 0
    assert found["proven"]
    (operator,) = found["operators"]
    assert [step["name"] for step in operator["steps"]] == [*steps.STEPS]
    assert {step["outcome"] for step in operator["steps"]} <= {"proven", "skipped"}
    assert all(step["outcome"] == "proven" for step in operator["steps"] if step["name"] != "database")
    assert shape_of(operator["steps"][0]) == {
        **dict.fromkeys(("name", "outcome", "found"), "str"),
        "details": ["str"],
        "seconds": "float",
    }
    by_name = {step["name"]: step for step in operator["steps"]}
    assert by_name["derivation"]["found"] == "dx = g·z·(1 - z)"
    assert "sigmoid_dx(g, z) = g·z·(1 - z)" in by_name["SymPy"]["details"]
    assert re.match(r"\d+ launches of \d+ kernels", by_name["compiled for cuda:90"]["found"])


@compiling
def test_nothing_is_proven_of_compiled_code_where_no_kernel_runs(capsys):
    pytest.importorskip("sympy", reason="the proofs need SymPy")
    with customops.backend("torch"):
        main(["prove", "exp", "--step", "compiled for cuda:90"])
    assert re.search(r"^  compiled for cuda:90 +skipped +CUSTOMOPS_BACKEND=torch", capsys.readouterr().out, re.M)


@pytest.mark.parametrize("name", ["mean", "amax", "clamp", "maximum", "pow"])
def test_claims_of_operators_that_are_no_plain_formula_are_proven(name, run):
    pytest.importorskip("sympy", reason="the proofs need SymPy")
    code, out, _ = run(f"prove {name} --step derivation --step SymPy")
    assert code == 0, out
    assert re.search(r"^  SymPy +proven +\d+ proofs", out, re.M)


def test_prove_says_which_step_fails(monkeypatch, run):
    pytest.importorskip("sympy", reason="the proofs need SymPy")
    monkeypatch.setattr(customops, "exp", lambda x: torch.exp(x) * 1.0001)
    code, out, _ = run("prove exp --step gradcheck --step edges")
    assert code == 1
    assert re.search(r"^  gradcheck +proven", out, re.M)  # of what it is
    assert re.search(r"^  edges +failed +\S", out, re.M)


def test_prove_of_several_is_a_table(run):
    pytest.importorskip("sympy", reason="the proofs need SymPy")
    code, out, _ = run("prove exp neg --step derivation --step edges")
    assert code == 0
    assert [line.split() for line in out.splitlines()[:3]] == [
        ["operator", "derivation", "edges"],
        ["exp", "yes", "yes"],
        ["neg", "yes", "yes"],
    ]
    assert out.splitlines()[-1].startswith("2 operators: 4 proven steps in ")
    _, out, _ = run("prove exp exp --step derivation")
    assert out.splitlines()[-1].startswith("1 operator: 1 proven step in ")


def test_prove_needs_sympy_and_says_so(monkeypatch, run):
    from customops.cli import proofs  # noqa: PLC0415 - what is patched

    monkeypatch.setattr(proofs, "find_spec", lambda name: None)
    code, _, err = run("prove exp")
    assert code == 2
    assert err == ('customops prove: SymPy is not installed, and proves the formulas: pip install "customops[prove]"\n')


@pytest.fixture
def _in_short(monkeypatch):
    monkeypatch.setattr(timing, "SECONDS", 0)
    monkeypatch.setattr(timing, "LEAST_ROUNDS", 2)
    monkeypatch.setattr(timing, "ROUND", 1e-4)


@pytest.mark.usefixtures("_in_short")
def test_bench_times_an_operator_against_torchs(document):
    code, found = document("bench mul --input 64x64 --input 64 --threads 1")
    assert code == 0
    assert [(row["phase"], row["who"]) for row in found["times"]] == [
        (phase, who) for phase in ("forward", "forward and backward") for who in ("ours", "torch")
    ]
    assert all(0 < row["seconds"] < 1 for row in found["times"])
    assert found["faults"] == []


@pytest.mark.usefixtures("_in_short")
def test_bench_times_a_function_fused_and_one_by_one(run):
    code, out, _ = run("bench layers.norm --input 64x64 --input 64 --threads 1 --against layers.norm")
    assert code == 0
    assert re.search(r"^forward +layers.norm +[\d,.]+ +[\d.]+$", out, re.M)
    assert re.search(r"^forward and backward +one by one ", out, re.M)


@pytest.mark.usefixtures("_in_short")
def test_bench_takes_tensors_by_name(document):
    code, found = document("bench layers.norm --input x:64x64 --input weight:64 --threads 1")
    assert code == 0
    assert found["call"] == "layers.norm(x=float32[64, 64], weight=float32[64]) on cpu, 1 thread"
    assert {row["phase"] for row in found["times"]} == {"forward", "forward and backward"}


@pytest.mark.usefixtures("_in_short")
@pytest.mark.parametrize(
    ("line", "faults"),
    [
        ("layers.rows --input 1x1 --against layers.rows_kept", {"forward"}),  # shapes that broadcast
        ("layers.rows --input 8x8 --against layers.rows_kept", {"forward"}),
        ("layers.logarithm --input 8", set()),  # nan
        ("layers.first --input 8 --input 8 --against layers.first_and_nothing", set()),  # no gradient is one of zeros
        ("layers.scaled --input 8x8 --input 8", set()),
        ("layers.layer_norm --input 1024x1024 --input 1024 --input 1024 --dtype bf16", set()),  # rounded one by one
        ("layers.scaled --input 8x8 --input 8 --against layers.norm", {"forward", "forward and backward"}),
    ],
)
def test_bench_compares_what_contestants_return(line, faults, document):
    code, found = document(f"bench {line} --threads 1")
    assert {fault.rpartition(", ")[2] for fault in found["faults"]} == faults
    assert code == bool(faults)


def test_help_of_all_benchmarks_is_no_mistake(run):
    code, out, err = run("bench --all --help")
    assert (code, err) == (0, "")
    assert out.startswith("usage: python -m benchmarks ")


def test_bench_runs_all_benchmarks_where_they_are(monkeypatch, run):
    from benchmarks import __main__ as benchmarks  # noqa: PLC0415 - what is patched

    given = []
    monkeypatch.setattr(benchmarks, "main", lambda argv: given.extend(argv) or 0)
    assert run("bench --all --quick --ops mul")[0] == 0
    assert given == ["--quick", "--ops", "mul"]
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    code, _, err = run("bench --all")
    assert code == 2
    assert "no wheel has the benchmarks: run it in a clone of the repository, or name a function\n" in err


@pytest.mark.usefixtures("_in_short")
def test_bench_sees_a_wrong_result(monkeypatch, run):
    from customops.tools.kernels import OPERATORS  # noqa: PLC0415 - what is patched

    monkeypatch.setitem(OPERATORS, "exp", functools.wraps(customops.exp)(lambda x: torch.exp(x) * 1.01))
    code, out, _ = run("bench exp --input 64 --threads 1")
    assert code == 1
    assert "ours differs from torch, forward\n" in out
