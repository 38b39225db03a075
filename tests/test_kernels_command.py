"""``customops kernels`` prints what a dry run records, and says in a line why it cannot."""

from __future__ import annotations

import re

import pytest
import torch

import customops
from customops import config
from customops.__main__ import main
from customops.tools import kernels
from customops.tools.machine_code import widest

from .cases import ROWS
from .conftest import INTERPRETED

pytest.importorskip("triton", reason="without Triton there are no kernels")
resource = pytest.importorskip("resource", reason="Windows does not say how much memory was used")
if INTERPRETED:
    pytest.skip("the interpreter's functions do not compile", allow_module_level=True)

BYTES = re.compile(r"bytes moved ([\d,]+)  floor ([\d,]+)  ratio (\S+)")


@pytest.fixture
def show(capsys):
    """Return a function to what the command prints below its tables for a line of arguments, and its heading."""

    def run(line: str) -> str:
        assert main(["kernels", *line.split(" "), "-v"]) == 0
        heading, *tables, details = capsys.readouterr().out.split("\n\n", 3)
        assert tables
        return f"{heading}\n{details}"

    return run


@pytest.fixture
def refusal(capsys):
    """Return a function to the line in which the command says why it prints nothing else."""

    def run(line: str) -> str:
        assert main(["kernels", *line.split(" ")]) == 2
        out, err = capsys.readouterr()
        assert not out
        assert err.startswith("customops kernels: ")
        assert err.count("\n") == 1
        return err

    return run


def blocks(text: str) -> list[str]:
    """Return the lines of each launch, then those of the total, without the heading."""
    return re.split(r"\n(?=forward|backward|total)", text)[1:]


def traffic(text: str) -> list[tuple[int, int]]:
    """Return the bytes moved and the fewest possible, for each launch and for the total."""
    return [(int(moved.replace(",", "")), int(floor.replace(",", ""))) for moved, floor, _ in BYTES.findall(text)]


def test_operators_are_those_under_test():
    assert set(kernels.OPERATORS) == {row.name for row in ROWS}


@pytest.mark.sample(formulas="flags")
@pytest.mark.parametrize("flags", ["", " --backward"], ids=["forward", "backward"])
@pytest.mark.parametrize("name", kernels.OPERATORS)
def test_every_operator_is_shown_and_added_up(name, flags, show):
    text = show(f"{name} --shape 8,64{flags}")
    *launches, total = blocks(text)
    launches = [launch for launch in launches if "launches nothing" not in launch]
    assert text.startswith(f"{name}(bool[8, 64], float32[8, 64]" if name == "where" else f"{name}(float32[8, 64]")
    assert {block.split()[0] for block in blocks(text)} == {"forward", "total", *flags.split(" --")[1:]}
    assert total.split()[:3] == ["total", "launches", str(len(launches))]
    *each, whole = traffic(text)
    assert len(each) == len(launches) > 0
    assert whole == tuple(map(sum, zip(*each, strict=True)))


def test_launch_is_shown_with_all_that_is_known_of_it(show):
    text = show("mul --shape 64,1024 --shape 1024 --dtype bf16 --backward")
    shown = blocks(text)[:-1]
    with customops.dry_run("cuda:90") as records:
        xs = [torch.empty(shape, dtype=torch.bfloat16, requires_grad=True) for shape in ((64, 1024), (1024,))]
        z = customops.mul(*xs)
        torch.autograd.grad(z, xs, torch.empty_like(z))
    assert [block.split()[0] for block in shown] == ["forward"] + ["backward"] * (len(records) - 1)
    assert text.endswith(f"  estimate {1e6 * sum(record.estimate.total for record in records):.1f} us\n")
    for block, record in zip(shown, records, strict=True):
        assert f"{record.name}  {record.program}\n" in block
        assert f"grid {record.grid}  warps {record.num_warps}  " in block
        assert f"registers {record.registers}  spills {record.spills}\n" in block
        assert traffic(block) == [(record.bytes_moved, record.bytes_floor)]
        found = record.estimate
        assert (
            f"DRAM {found.dram_bytes:,}  L2 {found.l2_bytes:,}  instructions {found.instructions_per_element:.1f} "
            in block
        )
        assert f"warps {found.warps:.1f}  in flight {found.bytes_in_flight / 1024:.1f} KiB on a multiprocessor" in block
        assert f"estimate {1e6 * found.total:.1f} us, limited by {found.limit}\n" in block
        loads, stores = (dict(re.findall(r"  (\w+) (\d+)", line)) for line in block.splitlines()[-2:])
        bits = {leaf: str(bits) for leaf, bits in widest(record.compiled).items()}
        assert loads == {name: bits["operands", i] for i, name in enumerate(record.operands)}
        assert stores == {f"out{i}": bits["outputs", i] for i in range(len(bits) - len(loads))}


def test_ratio_is_bytes_moved_over_the_floor(show):
    for block in blocks(show("mul --shape 4096,64 --shape 64 --backward")):
        ((moved, floor),) = traffic(block)
        assert BYTES.search(block)[3] == (f"{moved / floor:.3f}" if floor else "-")


@pytest.mark.parametrize(
    ("line", "call", "floor"),
    [
        ("add --shape 8,64", "add(float32[8, 64], float32[8, 64])", 3 * 2048),
        ("add --shape 8,64 --shape 64", "add(float32[8, 64], float32[64])", 2 * 2048 + 256),
        ("add --shape 8x1 --shape 64", "add(float32[8, 1], float32[64])", 32 + 256 + 2048),
        ("add --shape 8,64 --shape ", "add(float32[8, 64], float32[])", 2 * 2048 + 4),
        ("pow --shape 8,64 --number 2", "pow(float32[8, 64], 2)", 2 * 2048),
        ("pow --shape 8,64 --number -2.5", "pow(float32[8, 64], -2.5)", 2 * 2048),
        ("sum --shape 4,5,6", "sum(float32[4, 5, 6])", 480 + 4),
        ("mean --shape 4,5,6 --dim=-1,0", "mean(float32[4, 5, 6], dim=(-1, 0))", 480 + 20),
        ("mean --shape 4,5,6 --dim 1", "mean(float32[4, 5, 6], dim=(1,))", 480 + 96),
        ("exp --shape ", "exp(float32[])", 8),
        ("where --shape 8,64", "where(bool[8, 64], float32[8, 64], float32[8, 64])", 512 + 3 * 2048),
        ("where --shape 8,64 --number 2", "where(bool[8, 64], float32[8, 64], 2)", 512 + 2 * 2048),
        ("clamp --shape 8,64 --number 2", "clamp(float32[8, 64], 2, 2)", 2 * 2048),
        ("clamp --shape 8,64 --shape 64", "clamp(float32[8, 64], float32[64], float32[64])", 2 * 2048 + 512),
    ],
)
def test_arguments_are_those_of_the_call(line, call, floor, show):
    text = show(line)
    assert text.startswith(f"{call} on cuda:90, H100 SXM\n")
    assert traffic(text)[-1][1] == floor


def test_number_is_whole_or_not_as_it_is_written(show):
    assert "pow_number(x, 2)" in show("pow --shape 8,64 --number 2")
    assert show("mul --shape 8,64 --number 2 --dtype int32").count("out0") == 1
    assert traffic(show("mul --shape 8,64 --number 2.0 --dtype int8"))[0] == (512 + 2048, 512 + 2048)  # gives float32


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("bf16", "bfloat16"), ("fp16", "float16"), ("half", "float16"), ("float", "float32"), ("fp32", "float32")]
    + [("fp64", "float64"), ("float64", "float64"), ("int32", "int32"), ("long", "int64"), ("uint8", "uint8")],
)
def test_dtype_goes_by_torchs_names_and_short_ones(name, dtype, show):
    text = show(f"add --shape 64 --dtype {name}")
    assert text.startswith(f"add({dtype}[64], {dtype}[64])")
    assert traffic(text)[-1] == (3 * 64 * getattr(torch, dtype).itemsize,) * 2


@pytest.mark.parametrize("line", ["sum --shape 8,64", "add --shape 8,64", "exp --shape 0,4"])
def test_phase_without_launches_says_so(line, show):
    text = show(f"{line} --backward")
    assert "\nbackward  launches nothing\n" in text
    assert ("\nforward   launches nothing\n" in text) == ("0,4" in line)


def test_launches_that_add_up_partial_sums_stay_in_their_phase(show):
    phases = [block.split()[0] for block in blocks(show("sum --shape 4096,1024 --backward"))]
    assert phases == ["forward", "forward", "backward", "total"]


def test_target_decides_what_is_compiled(show):
    assert show("exp --shape 4096 --target cuda:80 --ptx").count(".target sm_80") == 1
    text = show("exp --shape 4096 --target hip:gfx942 --ptx")
    assert "on hip:gfx942, MI300X\n" in text
    assert text.count(".amdgcn_target") == 1
    assert re.search(r"\n +load +any (32|64|128) bits\n +store +any (32|64|128) bits\n", text)


def test_code_of_each_kernel_is_printed_once(show):
    without = show("mul --shape 4096,64 --shape 64 --backward")
    text = show("mul --shape 4096,64 --shape 64 --backward --ptx")
    assert text.startswith(without)
    assert ".visible .entry" not in without
    with customops.dry_run("cuda:90") as records:
        xs = [torch.empty(shape, requires_grad=True) for shape in ((4096, 64), (64,))]
        z = customops.mul(*xs)
        torch.autograd.grad(z, xs, torch.empty_like(z))
    programs = list(dict.fromkeys(record.compiled.asm["ptx"] for record in records))
    assert text.count(".visible .entry") == len(programs) > 1
    assert all(
        f"// {record.name}  {record.program}\n{record.compiled.asm['ptx'].strip()}\n" in text for record in records
    )


def test_kernel_that_is_launched_twice_has_its_code_printed_once(monkeypatch, show):
    real = kernels.launches
    monkeypatch.setattr(kernels, "launches", lambda *args: {name: 2 * made for name, made in real(*args).items()})
    assert show("exp --shape 8,64 --ptx").count(".visible .entry") == 1


def test_kernels_are_shown_whatever_backend_is_set(show):
    with customops.backend("torch"):
        assert "launches 1  " in show("exp --shape 8,64")


def test_no_memory_is_touched(show):
    torch.use_deterministic_algorithms(False)  # which the tests use to have it filled
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    text = show("mul --shape 32768,32768 --dtype bf16 --backward")
    assert traffic(text)[-1] == (8 * 2**31, 8 * 2**31)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("exp --shape 8 --dtype int33", "--dtype: kernels take bfloat16, bool, .*, fp64, got 'int33'"),
        ("exp --shape 8 --dtype nn", "--dtype: kernels take .* got 'nn'"),
        ("exp --shape 8 --dtype complex64", "--dtype: kernels take .* got 'complex64'"),
        ("exp --shape 8*8", r"--input: expected integers, as 4096x4096, got '8\*8'"),
        ("exp --shape 9999999999999999999", "--input: expected integers"),
        ("exp --shape=-8", "negative dimension"),
        ("exp --shape 99999999,99999999", "cannot reserve 39,999,999,200,000,004 bytes .* use a smaller shape"),
        ("exp --shape 99999999999999,99999999999999", "overflowed"),
        ("exp --shape 8 --shape 8", r"exp\(input, out\) takes 1 operand, got 2"),
        ("sum --shape 8 --number 8", r"sum\(input, dim, .*\) takes 1 operand, got 2"),
        ("mul --shape 8 --dim 0", r"--dim is not for mul\(input, other, out\)"),
        ("mul --shape 8 --shape 8.0", "--input: expected integers"),
        ("mul --shape 8 --number two", "--number: expected a number, .*, got 'two'"),
        ("mul --shape 8 --number 1" + 400 * "0", "too big"),
        ("mul --shape 8,3 --shape 8,4", "must match"),
        ("sum --shape 8 --dim 1", "out of range"),
        ("sum --shape 8 --dim 0,0", "multiple times"),
        ("mean --shape 8 --dtype int32", r"mean\(\): could not infer output dtype"),
        ("sub --shape 8 --dtype bool", "two bool tensors"),
        ("exp --shape 8 --dtype int32 --backward", "floating point"),
        ("tan --shape 8", "unknown operator 'tan': the nearest are tanh"),
        ("exp", "no tensor is given: describe each by --input"),
        ("exp --shape 8 --target cuda:1", "--target: expected one of a100, .*, got 'cuda:1'"),
        ("mul --shape 8 --shape 8 --number 2", "takes 2 operands, got 3"),
    ],
)
def test_refusal_is_one_line(line, reason, refusal):
    assert re.search(reason, refusal(line))


def test_interpreter_and_lack_of_triton_are_refused(monkeypatch, refusal):
    with monkeypatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        assert "unset it" in refusal("exp --shape 8")
    monkeypatch.setattr(config, "find_triton", lambda: None)
    assert "install triton" in refusal("exp --shape 8")
