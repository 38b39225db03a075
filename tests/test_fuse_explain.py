"""``explain`` prints what a call of a fused function computes and launches, and leaves no trace of having asked."""

from __future__ import annotations

import re
import sys

import pytest
import torch

import customops
from customops import config
from customops.__main__ import main

from .conftest import INTERPRETED
from .programs import PROGRAMS

pytest.importorskip("triton", reason="without Triton there are no kernels")
resource = pytest.importorskip("resource", reason="Windows does not say how much memory was used")
if INTERPRETED:
    pytest.skip("the interpreter's functions do not compile", allow_module_level=True)

BYTES = r"bytes moved ([\d,]+)"
USERS = """
import customops

def rms_norm(x, weight, eps=1e-6):
    return x * customops.rsqrt(customops.mean(x * x, -1, keepdim=True) + eps) * weight

fused = customops.fuse(rms_norm)
seven = 7
"""


@customops.fuse
def rms_norm(x, weight, eps=1e-6):
    return x * customops.rsqrt(customops.mean(x * x, -1, keepdim=True) + eps) * weight


@customops.fuse
def rows_then_columns(x):
    rows = customops.exp(x) / customops.sum(customops.exp(x), 1, keepdim=True)
    return rows - customops.sum(rows, 0)


@pytest.fixture
def explained(capsys):
    """Return a function to all that ``explain`` prints; or what it prints in one screen, if not ``verbose``."""

    def run(fused, *args, verbose=True, **kwargs) -> str:
        assert fused.explain(*args, verbose=verbose, **kwargs) is None
        return re.sub(r"(?<!\n)\n {12}(?=\S)", " ", capsys.readouterr().out)  # the lines of a long program

    return run


@pytest.fixture
def users(tmp_path, monkeypatch):
    """Write a module ``users`` into the current directory."""
    (tmp_path / "users.py").write_text(USERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    yield tmp_path
    sys.modules.pop("users", None)


def block(text: str, heading: str) -> list[str]:
    """Return the indented lines below ``heading``."""
    return [line.strip() for line in re.search(rf"^{heading}\n((?: {{4}}\S.*\n)*)", text, re.MULTILINE)[1].splitlines()]


def number(text: str) -> int:
    return int(text.replace(",", ""))


def tensors(*shapes, **options):
    return [torch.empty(shape, **options) for shape in shapes]


def test_program_has_a_line_for_each_value(explained):
    text = explained(rms_norm, *tensors((64, 256), 256))
    assert text.startswith("rms_norm(float32[64, 256], float32[256]) on cuda:90, H100 SXM\n\n")
    assert block(text, "program") == [
        "t2 = mul(x, x)",
        "t3 = mean(t2) over dim 1 of x",
        "t6 = add(t3, 1e-06)",
        "t7 = rsqrt(t6)",
        "t8 = mul(x, t7)",
        "t9 = mul(t8, weight)",
        "return t9",
    ]


def test_backward_is_the_derived_program(explained):
    *lines, dx, dweight = block(explained(rms_norm, *tensors((64, 256), 256)), "backward")
    assert dx.startswith("return dx = t")
    total = dweight.removeprefix("return dweight = ")
    assert any(re.fullmatch(rf"{total} = sum\(t\d+\) over dim 0 of x", line) for line in lines)
    assert any(re.fullmatch(r"t\d+ = rsqrt_dx\(t\d+, t\d+\)", line) for line in lines)


@pytest.mark.parametrize("program", PROGRAMS[:1] + PROGRAMS[-1:], ids=str)
def test_launches_shown_are_those_of_a_call(program, explained):
    fused = customops.fuse(program.of(customops))
    xs = tensors(*program.small, requires_grad=True)
    shown = re.findall(r"^(?:forward|backward) +(\w+)  (.*)\n.*\n +bytes moved ([\d,]+) ", explained(fused, *xs), re.M)
    with customops.dry_run("cuda:90") as records:
        z = fused(*xs)
        torch.autograd.grad(z, xs, torch.empty_like(z))
    assert [(name, words, number(moved)) for name, words, moved in shown] == [
        (record.name, record.program, record.bytes_moved) for record in records
    ]


def test_total_of_rms_norm_is_near_the_floor_and_far_from_its_operators(explained):
    torch.use_deterministic_algorithms(False)  # which the tests use to have memory filled
    text = explained(rms_norm, *tensors((4096, 4096), 4096, dtype=torch.bfloat16))
    total, unfused = text.splitlines()[-2:]
    assert total.startswith("total     kernels 1 forward, 2 backward  ")
    moved, floor = (number(re.search(rf"{word} ([\d,]+)", total)[1]) for word in ("bytes moved", "floor"))
    matrix, vector = 2 * 4096**2, 2 * 4096
    assert floor == 5 * matrix + 3 * vector
    assert re.search(rf"ratio {moved / floor:.3f}  estimate [\d.]+ us$", total)
    assert sum(number(found) for found in re.findall(r"DRAM ([\d,]+)", text)) <= 1.05 * floor
    apart = number(re.search(BYTES, unfused)[1])
    assert unfused.endswith(f"{apart / moved:.2f} times those of fused")
    assert apart > 3.5 * moved


def test_operators_are_counted_forward_backward_and_where_gradients_meet(explained):
    fused = customops.fuse(lambda x: customops.exp(x) * customops.sigmoid(x))
    n = 4 * 64 * 1024
    unfused = explained(fused, *tensors((64, 1024))).splitlines()[-1]
    # exp 2, sigmoid 2, mul 3; backward mul 5, exp 3, sigmoid 3, and a sum of 3
    assert unfused.startswith(f"unfused   kernels 3 forward, 4 backward  bytes moved {21 * n:,}  {21 / 5:.2f} times")


def test_floor_is_of_the_tensors_that_are_used(explained):
    fused = customops.fuse(lambda x, y: customops.exp(x))
    text = explained(fused, *tensors((64, 256), (64, 256)))
    assert re.search(rf"floor {5 * 4 * 64 * 256:,}  ratio 1.000  estimate [\d.]+ us\nunfused", text)
    assert block(text, "backward")[-1] == "return dy = 0"


def test_floor_has_a_gradient_that_is_the_cotangent_once(explained):
    fused = customops.fuse(lambda x, y: x + y * 2.0)
    text = explained(fused, *tensors((64, 256), (64, 256)))
    assert re.search(rf"floor {5 * 4 * 64 * 256:,}  ratio 1.000", text)  # x, y, z; g, dy


def test_a_spill_names_the_value_and_the_reason(explained):
    text = explained(rows_then_columns, *tensors((64, 256)))
    value = re.search(r"(t\d+) = sum\(t\d+\) over dim 0 of x", "\n".join(block(text, "program")))[1]
    size = 4 * 256
    why = "it reduces other axes than the one before it"
    assert f"\nscratch   {value} passes through memory, {size:,} bytes: {why}\n" in text
    assert len(re.findall("^forward ", text, re.M)) > 1


def test_a_value_saved_for_the_gradients_is_not_computed_again(explained):
    fused = customops.fuse(lambda x: rows_then_columns(x) * rows_then_columns(x))
    lines = block(explained(fused, *tensors((64, 256))), "backward")
    (saved,) = (line for line in lines if line.endswith(" of the program, saved"))
    value = saved.partition(" ")[0]
    assert sum(line.startswith(f"{value} = ") for line in lines) == 1
    assert any(f"({value}," in line or f" {value})" in line for line in lines)


@pytest.mark.parametrize(
    ("function", "args", "reason"),
    [
        (rms_norm, tensors((4, 8), 8, dtype=torch.complex64), "no kernel for torch.complex64: cast it"),
        (
            customops.fuse(lambda x: customops.add(x, x)),
            tensors(8, dtype=torch.int32),
            "an operator computes in torch.int32",
        ),
        (customops.fuse(lambda x: (x, customops.exp(x))), tensors(8), "an argument is returned as it is"),
        (rms_norm, tensors((0, 8), 8), "a tensor has no elements"),
        (customops.fuse(customops.exp), [torch.eye(4).to_sparse()], "Tensor of layout torch.sparse_coo is no dense"),
        (rms_norm, [torch.empty(4, 8), torch.empty(8, device="meta")], "the tensors are on several devices"),
    ],
)
def test_what_is_not_fused_says_why(function, args, reason, explained):
    heading, why = explained(function, *args).splitlines()
    assert heading.endswith("on cuda:90, H100 SXM")
    assert why.startswith(f"not fused: {reason}")


def test_gradients_are_of_inputs_that_require_one_or_of_all(explained):
    x, weight = tensors((64, 256), 256)
    assert "return dx = " in explained(rms_norm, x, weight)
    text = explained(rms_norm, x, weight.requires_grad_())
    assert "return dweight = " in text
    assert "return dx = " not in text


def test_a_result_that_depends_on_no_input_that_requires_a_gradient_has_no_backward(explained):
    x, like = tensors(64, 64)
    text = explained(customops.fuse(lambda x, like: customops.exp(x.to(like.dtype))), x, like.requires_grad_())
    assert "kernels 1 forward  " in text
    assert "backward" not in text


def test_arguments_by_name_and_other_targets_are_taken(explained):
    x, weight = tensors((64, 256), 256)
    text = explained(rms_norm, x, weight=weight, eps=0.5, target="cuda:80")
    assert text.startswith("rms_norm(float32[64, 256], weight=float32[256], eps=0.5) on cuda:80, A100 SXM\n")
    assert "t6 = add(t3, 0.5)" in text


def test_a_parameter_called_target_is_the_functions_own(explained):
    mse = customops.fuse(lambda x, target: customops.mean((x - target) ** 2))
    x, target = tensors((64, 256), (64, 256))
    assert " = sub(x, target)\n" in explained(mse, x, target=target)


def test_layouts_are_those_of_the_tensors_given(explained):
    whole, shifted = (
        explained(rms_norm, torch.empty(64 * 256 + 1)[i:][: 64 * 256].view(64, 256), torch.empty(256)) for i in (0, 1)
    )
    assert "x 128 bits" in whole
    assert "x 32 bits" in shifted


def test_what_cannot_be_traced_raises_as_the_call_does():
    fused = customops.fuse(lambda x: x.cumsum(0))
    with pytest.raises(TypeError, match="cumsum"):
        fused.explain(torch.empty(8))


@pytest.mark.parametrize("inside", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_gradient_modes_change_nothing(inside, explained):
    expected = explained(rms_norm, *tensors((64, 256), 256))
    with inside():
        assert explained(rms_norm, *tensors((64, 256), 256)) == expected


def test_explain_leaves_no_trace(explained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fused, xs = customops.fuse(rms_norm.__wrapped__), [torch.ones(64, 256, requires_grad=True), torch.ones(256)]
    state = lambda: (
        dict(config.plans),
        fused.fused._traces.size,
        torch.is_grad_enabled(),
        customops.config.current_backend,
    )
    before = state()
    explained(fused, *xs)
    assert state() == before
    assert xs[0].grad is None
    assert all((x == 1).all() for x in xs)
    assert not list(tmp_path.iterdir())


def test_no_memory_is_touched(explained):
    torch.use_deterministic_algorithms(False)  # which the tests use to have it filled
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    explained(rms_norm, *tensors((32768, 32768), 32768, dtype=torch.bfloat16))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


def test_tensors_larger_than_memory_are_explained(explained):
    """They have 256 GB, and no elements."""
    text = explained(rms_norm, torch.empty(2**18, 2**18, device="meta"), torch.empty(2**18, device="meta"))
    assert f"floor {5 * 4 * 2**36 + 3 * 4 * 2**18:,}  ratio" in text


@pytest.mark.parametrize("name", ["users.rms_norm", "users.fused"])
def test_command_prints_what_the_method_does(name, users, capsys, explained):
    assert main(["explain", name, "--shape", "64,256", "--shape", "256", "--dtype", "bf16", "--target", "cuda:80"]) == 0
    shown = capsys.readouterr().out
    xs = tensors((64, 256), 256, dtype=torch.bfloat16)
    assert shown == explained(rms_norm, *xs, target="cuda:80", verbose=False)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("users.rms_norm --shape 64,256", "missing .* 'weight'"),
        ("users.rms_norm --shape 64,256 --shape 3", "must match"),
        ("users.rms_norm --shape 64*256 --shape 3", "--input: expected integers"),
        ("users.rms_norm --shape 8 --shape 8 --dtype int33", "--dtype: kernels take"),
        ("users.nothing --shape 8", "users has no nothing: there are "),
        ("users.seven --shape 8", "expected a function, got 7"),
        ("nowhere.rms_norm --shape 8", "No module named 'nowhere'"),
        ("torch.cumsum --shape 8", "cumsum"),
    ],
)
def test_refusal_is_one_line(line, reason, users, capsys):
    assert main(["explain", *line.split()]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert re.fullmatch(rf"customops explain: .*{reason}.*\n", err)


def test_interpreter_and_lack_of_triton_are_refused(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        with pytest.raises(RuntimeError, match="unset it"):
            rms_norm.explain(*tensors((4, 8), 8))
    monkeypatch.setattr(customops.config, "find_triton", lambda: None)
    with pytest.raises(RuntimeError, match="install triton"):
        rms_norm.explain(*tensors((4, 8), 8))


@pytest.mark.parametrize("program", PROGRAMS[:2], ids=str)
def test_one_screen_has_the_costs_and_a_line_for_each_launch(program, explained):
    """What it says in a table is what ``verbose`` says in bytes."""
    fused = customops.fuse(program.of(customops))
    xs = tensors(*program.small, requires_grad=True)
    screen = explained(fused, *xs, verbose=False)
    assert max(map(len, screen.splitlines())) <= 140
    assert len(screen.splitlines()) <= 24
    costs, launches = (part.splitlines() for part in screen.split("\n\n")[1:3])
    with customops.dry_run("cuda:90") as records:
        z = fused(*xs)
        count = len(records)
        torch.autograd.grad(z, xs, torch.empty_like(z))
    assert [line.split()[:2] for line in costs[1:]] == [
        ["forward", str(count)],
        ["backward", str(len(records) - count)],
        ["total", str(len(records))],
    ]
    seconds = sum(record.estimate.total for record in records)
    assert f" {1e6 * seconds:.1f}  " in costs[-1]
    assert len(launches) == 1 + len(records)
    for line, record in zip(launches[1:], records, strict=True):
        assert f" {record.grid[0]} x {record.num_warps} " in line
        assert f" {record.registers}  " in line
        assert line.endswith(record.estimate.limit)
