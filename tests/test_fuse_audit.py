"""What fused programs cost on a GPU: launches, words, registers and bytes, read from what a dry run compiles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch

import customops

from .conftest import INTERPRETED, KERNELS
from .programs import PROGRAMS, Program, twice

why = "the interpreter's functions do not compile" if INTERPRETED else "what a GPU compiles, a dry run compiles too"
if KERNELS:
    pytest.skip(why, allow_module_level=True)
pytest.importorskip("triton", reason="without Triton there are no kernels")
from customops.triton_kernels import launch, plan, row_tiling  # noqa: E402

from customops.fusion.explain import examine  # noqa: E402
from customops.fusion.findings import Findings, Phase  # noqa: E402
from customops.tools import machine_code  # noqa: E402


class Expected(NamedTuple):
    """The cost that a fused program may have."""

    forward: int = 1  # the number of kernels
    backward: int = 1  # the number of kernels
    most: float = 1.05  # the bytes of DRAM that it may move, as a multiple of those of every tensor once
    spilled: tuple[int, int] = (0, 0)  # values that pass between kernels through memory, forward and backward


PARTS = 2  # kernels of a direction that leaves partial sums: those are added up by one more

EXPECTED = {
    "rms_norm": Expected(backward=PARTS),
    "layer_norm": Expected(backward=PARTS),
    "softmax": Expected(),
    "log_softmax": Expected(),
    "logsumexp": Expected(),
    "gelu": Expected(),
    "swiglu": Expected(),
    "bias_relu_scale": Expected(backward=3),  # sums of two shapes
    "residual_norm": Expected(backward=PARTS),
    "l2_normalize": Expected(),
    "mse": Expected(forward=PARTS),
    "cross_entropy": Expected(forward=PARTS),
    "min_max": Expected(),
    "weighted_mean": Expected(backward=PARTS),
    # walked several times in one kernel, from the L2 after the first time
    "softmax_first": Expected(),
    "long_softmax": Expected(),
    # one kernel for the sums of columns, one for those of rows; the sums that backward reads are copied
    "double_normalised": Expected(4, 3, 1.61, (1, 1)),
}
# Programs of the same structure as others.
LIKE = dict.fromkeys(("log_softmax", "logsumexp", "l2_normalize", "min_max"), "softmax")
LIKE |= dict.fromkeys(("layer_norm", "residual_norm", "weighted_mean"), "rms_norm")
LIKE |= {"swiglu": "gelu", "cross_entropy": "mse", "softmax_first": "long_softmax"}


@pytest.fixture(autouse=True)
def _fresh_memory_is_nan():
    """Leave memory as it is, where other tests fill it: nothing is computed here, and gigabytes would be filled."""


@pytest.mark.sample(formulas="like")
@pytest.mark.parametrize(("program", "like"), [(p, LIKE.get(p.name, p.name)) for p in PROGRAMS], ids=str)
def test_programs_cost_what_they_must_and_less_than_their_operators(program, like):
    """These are two claims about one measurement, which takes seconds."""
    found = measure(program, torch.bfloat16)
    assert not faults_in(program, found)
    assert sum(cost.bytes_moved for cost in found.unfused) > 1.5 * moved(found)


def test_a_program_that_holds_rows_loads_the_weights_of_all_rows_once():
    _, backward = measure(program("rms_norm"), torch.bfloat16).fused
    moves = backward.records[0].moves
    assert moves.steps > 1
    assert [m.requested for m in moves.tensors] == [m.by_programs for m in moves.tensors]


@pytest.mark.sample(formulas="")
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_programs_in_float32_cost_what_they_must(program):
    assert not faults(program, torch.float32)


@pytest.mark.sample(formulas="once")
@pytest.mark.parametrize("target", ["cuda:80", "cuda:100", "hip:gfx942"])
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_other_targets_hold_all_in_registers(program, target):
    for phase in measure(program, torch.bfloat16, target).fused:
        assert [record.spills for record in phase.records] == [0] * len(phase.records)


def test_a_factor_of_1_costs_no_operand_and_no_instruction():
    """It is what an operator has by default: kernels are compiled for it, and for every other factor there is one."""

    def launched(factor):
        x = torch.empty(1 << 22)
        with customops.dry_run("cuda:90") as records:
            customops.fuse(lambda x: customops.sub(x * x, x, alpha=factor) * x)(x)
        (record,) = records
        return record

    one, two, three = map(launched, (1, 2, 3))
    assert [x.operands for x in (one, two, three)] == [("x",), ("x", "2"), ("x", "3")]
    assert two.compiled is three.compiled
    assert one.estimate.instructions_per_element <= two.estimate.instructions_per_element - 1


def test_every_program_has_its_expected_cost():
    assert list(EXPECTED) == [program.name for program in PROGRAMS]


def test_audit_sees_narrow_words(monkeypatch):
    real = plan.Plan._launch_argument
    monkeypatch.setattr(plan.Plan, "_launch_argument", lambda *args: real(*args)._replace(aligned=False))
    assert "forward: operand 0 moves in 16 bits, expected 128" in faults(program("gelu"), torch.bfloat16)
    assert "backward: output 0 moves in 16 bits, expected 128" in faults(program("gelu"), torch.bfloat16)


def test_audit_sees_bytes_moved_twice(monkeypatch):
    """What is read a second time counts where the L2 has not kept it."""

    def far(moves):
        return moves._replace(tensors=tuple(m._replace(distance=2**40) for m in twice(moves).tensors))

    real = launch.traffic
    monkeypatch.setattr(launch, "traffic", lambda *args: far(real(*args)))
    assert "moves 2.000 times the bytes of DRAM, expected 1.05 at most" in faults(program("softmax"), torch.bfloat16)


def test_audit_sees_more_rows_walked_at_once_than_the_l2_holds(monkeypatch):
    monkeypatch.setattr(row_tiling, "MAX_L2_BYTES", 1 << 30)
    row_tiling.choose_row_tiling.cache_clear()
    (found,) = faults(program("long_softmax"), torch.bfloat16)
    row_tiling.choose_row_tiling.cache_clear()
    assert float(found.split()[1]) > 2


def test_audit_sees_rows_that_are_cut(monkeypatch):
    monkeypatch.setattr("customops.compiler.partition.MAX_ROW_LENGTH", 4095)
    found = "\n".join(faults(program("softmax"), torch.bfloat16))
    assert "forward: 2 values through memory, expected 0" in found
    assert "kernels, expected 1" in found


def program(name: str) -> Program:
    return next(program for program in PROGRAMS if program.name == name)


def measure(program: Program, dtype: torch.dtype, target: str = "cuda:90") -> Findings:
    xs = [torch.empty(shape, dtype=dtype) for shape in program.large]
    return examine(customops.fuse(program.of(customops)), xs, {}, target)


def faults(program: Program, dtype: torch.dtype) -> list[str]:
    """Measure, and return all that is wrong, in words."""
    return faults_in(program, measure(program, dtype))


def faults_in(program: Program, found: Findings) -> list[str]:
    expected, wrong = EXPECTED[program.name], []
    for phase, kernels, spilled in zip(found.fused, expected[:2], expected.spilled, strict=True):
        if len(phase.records) != kernels:
            wrong.append(f"{phase.name}: {len(phase.records)} kernels, expected {kernels}")
        if len(phase.executable.spills) != spilled:
            wrong.append(f"{phase.name}: {len(phase.executable.spills)} values through memory, expected {spilled}")
        spills = sum(record.spills for record in phase.records)
        if spills:
            wrong.append(f"{phase.name}: spills {spills} bytes of a thread")
        wrong += [f"{phase.name}: {x} moves in {bits} bits, expected 128" for x, bits in words(phase) if bits < 128]
    excess = moved(found) / sum(phase.bytes_floor for phase in found.fused)
    if round(excess, 3) > expected.most:
        wrong.append(f"moves {excess:.3f} times the bytes of DRAM, expected {expected.most} at most")
    return wrong


def moved(found: Findings) -> int:
    """Return the bytes of DRAM that the fused launches load and store."""
    return sum(record.estimate.dram_bytes for phase in found.fused for record in phase.records)


def words(phase: Phase) -> Iterator[tuple[str, int]]:
    """Yield each access of a launch to a tensor that is as large as any, with the bits of its widest instruction."""
    plan = phase.executable.plan
    first = plan.first_scratch - len(phase.executable.buffers)
    sizes = dict(enumerate(x.numel() for x in phase.inputs))
    sizes |= {first + i: like.shape.numel() for i, like in enumerate(phase.executable.buffers)}
    for one in plan.launches:
        for leaf, bits in machine_code.widest(one.compiled).items():
            assert leaf, "a pointer cannot be told"
            side, i = leaf
            index = (one.operand_positions if side == "operands" else one.output_positions)[i]
            if sizes.get(index) == max(sizes.values()):
                yield f"{side.removesuffix('s')} {i}", bits


@pytest.mark.sample(kernels="", compiled="")
def test_a_program_that_walks_long_rows_fits_in_a_block_of_amds():
    """Its warps have 64 threads, of which a block has 1024 there as well."""
    with customops.dry_run("hip:gfx942") as records:
        customops.fuse(lambda x: customops.exp(x - customops.amax(x, -1, keepdim=True)))(torch.empty(64, 2**16))
    assert [(record.name, record.num_warps) for record in records] == [("walk_kernel", 16)]
