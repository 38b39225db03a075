"""The audit: wide loads, no spills, few launches, no byte too many; and it sees where one of them is missing."""

from __future__ import annotations

import pytest
import torch

import customops

from .cases import CALLS
from .conftest import INTERPRETED, KERNELS
from .programs import twice

why = "the interpreter's functions do not compile" if INTERPRETED else "what a GPU compiles, a dry run compiles too"
if KERNELS:
    pytest.skip(why, allow_module_level=True)
triton = pytest.importorskip("triton", reason="without Triton there are no kernels")
import triton.language as tl  # noqa: E402
from customops.triton_kernels import formulas, launch, plan, tiling  # noqa: E402

from . import audit, audit_layers  # noqa: E402

CASES = {str(case): case for case in audit.cases()}
CHOSEN = [str(case) for case in audit.chosen()]


@pytest.fixture(autouse=True)
def _fresh_memory_is_nan():
    """Leave memory as it is, where other tests fill it: nothing is computed here, and gigabytes would be filled."""


@pytest.mark.parametrize("case", audit.chosen(), ids=str)
def test_usual_calls_cost_what_they_must(case, tally):
    check(case, tally)


@pytest.mark.sample(formulas="operator, layout, dtype", kernels="")
@pytest.mark.parametrize("case", [case for name, case in CASES.items() if name not in CHOSEN], ids=str)
def test_calls_cost_what_they_must(case, tally):
    check(case, tally)


def check(case: audit.Case, tally):
    finding = audit.audit(case)
    assert not audit.faults(finding)
    tally("audited calls")
    tally("audited launches", sum(phase.cost.launches for phase in finding.values()))


def test_every_run_audits_all_operators_dtypes_and_layouts():
    usual = {str(row) for row, _ in CALLS}
    assert {case.operator for case in audit.chosen()} == usual
    assert {case.dtype for case in audit.chosen()} == customops.runtime.paths.KERNEL_DTYPES
    assert {case.layout for case in audit.chosen()} == set(audit.LAYOUTS)
    for name in ("float32", "bfloat16"):
        assert {CASES[case].operator for case in CHOSEN if case.endswith(f", {name}, contiguous")} == usual
        assert {CASES[case].operator for case in CHOSEN if case.endswith(f", {name}, row")} == BINARY


def test_every_call_of_the_tables_is_audited():
    assert {call.name for _, call in CALLS} <= {case.call.name for case in audit.cases()}


BINARY = {row.name for row, call in CALLS if call.arity == 2}


@triton.jit
def hoard(x):
    """Compute thirty powers of x, all in use until the last is known: a sum over the tile waits for each."""
    powers = ()
    for _ in tl.static_range(30):
        x = x * x
        powers = powers + (x + tl.sum(x),)
    for i in tl.static_range(30):
        x = x * powers[29 - i]
    return x


def faults_of(call: str, layout: str = "contiguous", dtype: str = "float32") -> str:
    return "\n".join(audit.faults(audit.audit(CASES[f"{call}, {dtype}, {layout}"])))


ONCE_SHORT = (  # each of another rule: what it fell short of
    ("div(x, y)", "column", "float64"),  # spilled, to make room
    ("where(x, y)", "outer", "float64"),  # spilled: a vector of 16 doubles, as there are 16 bools in one
    ("where(x, y)", "rows of 1024", "float64"),  # 7.8 warps
    ("pow(x, 0)", "ragged end", "uint8"),  # the last tile's registers left too few warps
    ("sum(0)", "short rows", "bool"),  # 4096 partials, which took a third launch
)


def test_calls_that_once_fell_short_do_not():
    assert {case: faults_of(*case) for case in ONCE_SHORT} == dict.fromkeys(ONCE_SHORT, "")


@pytest.fixture
def change(monkeypatch, replan):
    """Replace an attribute, and forget whatever was planned with it."""

    def replace(owner, name, make):
        monkeypatch.setattr(owner, name, make(getattr(owner, name)))
        replan()

    return replace


def test_audit_sees_a_formula_that_spills(change):
    change(formulas, "relu", lambda _: hoard)
    assert "forward: spills" in faults_of("relu(x)")


def test_audit_sees_a_launch_that_forgets_alignment(change):
    change(plan.Plan, "_launch_argument", lambda real: lambda *args: real(*args)._replace(aligned=False))
    found = faults_of("mul(x, y)")
    for name in ("forward: x", "forward: y", "forward: z", "backward: g", "backward: dx", "backward: dy"):
        assert f"{name} moves in 32 bits, expected 128" in found


def test_audit_sees_an_alignment_that_is_not_there(change):
    change(plan.Plan, "_launch_argument", lambda real: lambda *args: real(*args)._replace(aligned=True))
    assert "x moves in 128 bits, but starts at an odd multiple of 32" in faults_of("relu(x)", "unaligned")


def test_audit_sees_a_mask_along_the_words(change):
    change(plan, "choose_tiling", lambda real: lambda *args: real(*args)._replace(has_tail=False))
    assert "x moves in 32 bits, expected 128" in faults_of("sum(None)", "ragged end")


def test_audit_sees_bytes_moved_twice(change):
    """What is read a second time counts where the L2 has not kept it."""

    def far(moves):
        return moves._replace(tensors=tuple(m._replace(distance=2**40) for m in twice(moves).tensors))

    change(launch, "traffic", lambda real: lambda *args: far(real(*args)))
    assert "forward: moves 2.000 times the bytes" in faults_of("relu(x)")


def test_audit_sees_a_launch_too_many(change):
    change(customops.runtime.elementwise, "is_identity", lambda _: lambda *_: False)
    assert "backward: 1 launches, expected 0" in faults_of("add(x, y)")


def test_audit_sees_a_gpu_that_idles(change):
    """A bound of an eighth takes as many programs as filled it when few partials were all that counted."""
    tiling.choose_tiling.cache_clear()
    change(tiling, "BYTES_IN_FLIGHT", lambda most: most // 8)
    assert "KiB in flight, expected 32 at least" in faults_of("sum(0)", "contiguous", "bfloat16")
    tiling.choose_tiling.cache_clear()


def test_audit_sees_a_formula_in_place_of_a_kernel():
    with customops.backend("torch"):
        assert "forward: 0 launches, expected 1" in faults_of("relu(x)", "small")


@pytest.mark.parametrize("row", [1024, 65536])
def test_fused_layers_cost_what_they_must(row):
    costs = audit_layers.audit_layer("softmax", row, torch.bfloat16)
    assert [fault for found in costs.items() for fault in audit_layers.faults_of_layer(*found)] == []


def test_audit_sees_what_is_wrong_with_a_layer():
    layer = audit_layers.Layer("softmax", 1024, torch.bfloat16, "backward")
    cost = audit_layers.Cost(2, 8, 1.2, 65536.0, 16.0, 30.0, 1e-5)
    for fault in ("2 launches, expected 1", "spills 8 bytes", "moves 1.200 times the bytes of DRAM"):
        assert f"softmax 1024 bfloat16 backward: {fault}" in audit_layers.table_of_layers({layer: cost})


def test_summary_tells_what_is_wrong(change):
    case = CASES["relu(x), float32, small"]
    assert audit.table({case: audit.audit(case)}).endswith("1 operators x 1 dtypes x 1 layouts: 1 calls, 0 faults")
    change(plan.Plan, "_launch_argument", lambda real: lambda *args: real(*args)._replace(aligned=False))
    assert f"{case}: forward: z moves in 32 bits, expected 128" in audit.table({case: audit.audit(case)})
