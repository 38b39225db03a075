"""The facts that machine_code reads from a compiled kernel: on small kernels, compiled for GPUs that are not here."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
from types import SimpleNamespace

import pytest

from customops import config
from customops.tools.machine_code import (
    Access,
    accesses,
    binary_stack,
    parameters,
    registers,
    resources,
    widest,
)

triton = pytest.importorskip("triton", reason="without Triton nothing compiles")
import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.language.extra import libdevice  # noqa: E402

if triton.knobs.runtime.interpret:
    pytest.skip("the interpreter's functions do not compile", allow_module_level=True)

CUDA = {f"sm_{arch}": GPUTarget("cuda", arch, 32) for arch in (80, 90, 100, 120)}
TARGETS = {**CUDA, "gfx942": GPUTarget("hip", "gfx942", 64)}
BY_16 = [["tt.divisibility", 16]]
PTX = """.visible .entry k(
    .param .u64 .ptr .global .align 1 k_param_0,
    .param .u64 .ptr .global .align 1 k_param_1
)
{{
    .reg .pred %p<9>;
    .reg .b32 %r<9>;
    .reg .b64 %rd<9>;
    {}
}}
"""


@triton.jit
def add_rows(ONE, operands, outputs, n, rows, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.load(operands[0] + i, mask=i < n) + tl.load(operands[1] + i, mask=i < n) * ONE
    for row in range(rows):
        total += tl.load(operands[3][0] + row * n + i, mask=i < n)
    tl.store(outputs[0] + i, total, mask=i < n)


@triton.jit
def gather(x, y, index, z, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    chosen = tl.where(tl.program_id(0) == 0, x, y)
    tl.store(z + i, tl.load(chosen + tl.load(index + i)))


@triton.jit(noinline=True)
def call(z):
    tl.store(z + tl.program_id(0), 1.0)


@triton.jit
def store_in_call(z):
    call(z)


@triton.jit
def softmax_and_call(x, z, BLOCK: tl.constexpr):
    """Use many registers, and call a function that uses few."""
    softmax(x, z, BLOCK)
    call(z)


@triton.jit
def softmax(x, z, BLOCK: tl.constexpr):
    """Compute a softmax, in which every element waits for the sum of all."""
    i = tl.arange(0, BLOCK)
    e = tl.exp(tl.load(x + i))
    tl.store(z + i, e / tl.sum(e))


@triton.jit
def sin(x, z):
    tl.store(z, libdevice.sin(tl.load(x)))


def build(kernel, signature, target, constants=None, aligned=(), **options):
    source = ASTSource(kernel, signature, constants, dict.fromkeys(aligned, BY_16))
    return triton.compile(source, target=TARGETS[target], options={"enable_fp_fusion": False, **options})


def build_add_rows(target, dtype="fp32"):
    """Compile ``add_rows`` for arguments that are divisible by 16 but for the first operand."""
    p = f"*{dtype}"
    signature = {
        "ONE": "constexpr",
        "operands": (p, p, "constexpr", (p,)),
        "outputs": (p,),
        "n": "i32",
        "rows": "i32",
        "BLOCK": "constexpr",
    }
    constants = {(0,): 1, (1, 2): None, (5,): 1024}
    return build(add_rows, signature, target, constants, aligned=[(1, 1), (1, 3, 0), (2, 0), (3,)])


def build_softmax(target, block, **options):
    signature = {"x": "*fp32", "z": "*fp32", "BLOCK": "constexpr"}
    return build(softmax, signature, target, {"BLOCK": block}, aligned=[(0,), (1,)], num_warps=1, **options)


def written(text):
    """Return a kernel k(x, y) whose machine code is this text."""
    return SimpleNamespace(
        hash=text,
        asm={"ptx": PTX.format(text), "amdgcn": text},
        metadata=SimpleNamespace(name="k", target=TARGETS["sm_90"]),
        src=SimpleNamespace(
            fn=SimpleNamespace(arg_names=["x", "y"]), signature={"x": "*fp32", "y": "*fp32"}, constants={}
        ),
    )


def test_parameters_are_leaves_of_the_signature_without_constants():
    pointers = [("operands", 0), ("operands", 1), ("operands", 3, 0), ("outputs", 0)]
    expected = (*((leaf, "*fp32") for leaf in pointers), (("n",), "i32"), (("rows",), "i32"))
    assert parameters(build_add_rows("sm_90")) == expected


@pytest.mark.sample(formulas="target, dtype")
@pytest.mark.parametrize(("dtype", "bits"), [("fp64", 64), ("fp32", 32), ("bf16", 16), ("i8", 8)])
@pytest.mark.parametrize("target", CUDA)
def test_widest_is_128_bits_where_aligned_and_an_element_elsewhere(target, dtype, bits):
    compiled = build_add_rows(target, dtype)
    wide = min(128, 8 * bits)  # a thread has 8 elements
    aligned = dict.fromkeys([("operands", 1), ("operands", 3, 0), ("outputs", 0)], wide)
    assert widest(compiled) == {**aligned, ("operands", 0): bits}
    assert {a.kind for a in accesses(compiled) if a.leaf == ("outputs", 0)} == {"store"}
    assert {a.kind for a in accesses(compiled) if a.leaf != ("outputs", 0)} == {"load"}


@pytest.mark.sample(formulas="target, dtype")
@pytest.mark.parametrize("dtype", ["fp64", "fp32", "bf16", "i8"])
@pytest.mark.parametrize("target", CUDA)
def test_widths_in_the_ptx_are_those_of_the_binary(target, dtype, tmp_path):
    compiled = build_add_rows(target, dtype)
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, "-sass", cubin]
    sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"\b(LDG|STG)\.E\S*?(?:\.[US]?(8|16|64|128))?(?:\.CONSTANT)?\s", sass)
    kinds = {"LDG": "load", "STG": "store"}
    assert {(kinds[name], int(bits or 32)) for name, bits in found} == {(a.kind, a.bits) for a in accesses(compiled)}


def test_accesses_on_amd_have_widths_and_no_parameter():
    found = accesses(build_add_rows("gfx942"))
    assert {*found} >= {Access("load", 128, None), Access("load", 32, None), Access("store", 128, None)}


@pytest.mark.parametrize("target", CUDA)
def test_an_address_leads_to_its_pointers_and_not_to_those_of_its_index(target):
    signature = {"x": "*fp32", "y": "*fp32", "index": "*i64", "z": "*fp32", "BLOCK": "constexpr"}
    compiled = build(gather, signature, target, {"BLOCK": 128})
    assert {*accesses(compiled)} == {
        Access("load", 64, ("index",)),
        Access("load", 32, ("x",)),
        Access("load", 32, ("y",)),
        Access("store", 32, ("z",)),
    }


def test_a_pointer_that_went_into_a_function_is_not_known():
    assert accesses(build(store_in_call, {"z": "*fp32"}, "sm_90")) == (Access("store", 32, None),)


@pytest.mark.parametrize(
    ("instruction", "kind", "bits"),
    [
        ("@!%p1 ld.global.nc.L1::evict_last.L2::cache_hint.v2.b64 { %rd8, %rd9 }, [ %rd7 + -16 ], %rd3;", "load", 128),
        ("ld.global.v8.b32 {%r1, %r2, %r3, %r4, %r5, %r6, %r7, %r8}, [%rd7+4];", "load", 256),
        ("ld.acquire.gpu.global.b128 %rq1, [%rd7];", "load", 128),
        ("st.global.wt.u8 [%rd7], %rs1;", "store", 8),
        ("@%p1 cp.async.cg.shared.global [ %r1 + 0 ], [ %rd7 + 0 ], 0x10, %r2;", "load", 128),
    ],
)
def test_instructions_that_the_small_kernels_lack(instruction, kind, bits):
    loop = """
    ld.param.b64 %rd1, [k_param_0]; ld.param.b64 %rd2, [k_param_1]; // st.global.b32 [%rd2], %r1;
    setp.eq.b64 %p1, %rd1, 0;
$L1:
    selp.b64 %rd5, 128, 256, %p1;
    @%p1 add.s64 %rd7, %rd6, %rd5;
    mov.b64 %rd6, {%r10, %r11};
    mov.b64 {%r10, %r11}, %rd2;
    st.shared.b64 [%r10], %rd1;
    cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd2, {%r1, %r2}], [%r3];
    atom.global.add.f32 %r4, [%rd2], %r5;
    @%p1 bra $L1;
    """
    assert accesses(written(loop + instruction)) == (Access(kind, bits, ("y",)),)


def test_widest_is_the_widest_of_a_pointer():
    loads = [f"ld.global.{width} %r1, [%rd1];" for width in ("b32", "v2.b32", "b16")]
    compiled = written("ld.param.b64 %rd1, [k_param_1];" + "".join(loads) + "st.global.b8 [%rd2], %rs1;")
    assert [access.bits for access in accesses(compiled)] == [32, 64, 16, 8]
    assert widest(compiled) == {("y",): 64, None: 8}


@pytest.mark.parametrize(
    ("instruction", "kind", "bits"),
    [
        ("global_load_dwordx3 v[0:2], v[0:1], off", "load", 96),
        ("buffer_store_dword v0, v1, s[0:3], 0 offen", "store", 32),
        ("flat_load_ushort v0, v[0:1]", "load", 16),
        ("global_store_byte_d16_hi v[0:1], v2, off", "store", 8),
        ("global_load_d16_hi_b16 v0, v[0:1], off", "load", 16),
        ("buffer_load_b128 v[0:3], v4, s[0:3], 0 offen", "load", 128),
        ("global_load_lds_dwordx4 v[0:1], off", "load", 128),
    ],
)
def test_instructions_of_amd(instruction, kind, bits):
    compiled = written(f"\t{instruction}\n\tscratch_store_dword off, v1, s0")
    compiled.metadata.target = TARGETS["gfx942"]
    assert accesses(compiled) == (Access(kind, bits, None),)


@pytest.mark.sample(formulas="once")
@pytest.mark.parametrize("target", TARGETS)
def test_a_small_state_stays_in_registers_and_a_large_one_spills(target):
    small = resources(build_softmax(target, 1024))
    assert 0 < small.registers < 128
    assert small.spills == 0
    fewest = {"waves_per_eu": 8} if target == "gfx942" else {}  # 64 registers instead of 512
    large = resources(build_softmax(target, 8192, **fewest))
    assert large.registers > small.registers
    assert large.spills > 0


@pytest.mark.parametrize("target", CUDA)
def test_a_stack_is_not_a_spill(target):
    compiled = build(sin, {"x": "*fp32", "z": "*fp32"}, target)
    assert ".local" in compiled.asm["ptx"]
    assert resources(compiled).spills == 0


@pytest.mark.sample(formulas="once")
@pytest.mark.parametrize("target", TARGETS)
def test_registers_in_the_binary_are_those_that_ptxas_tells(target):
    """Also of a kernel with a function that is called, which has registers of its own."""
    found = [build_softmax(target, 1024), build_softmax(target, 8192), build(store_in_call, {"z": "*fp32"}, target)]
    signature = {"x": "*fp32", "z": "*fp32", "BLOCK": "constexpr"}
    found += [build(softmax_and_call, signature, target, {"BLOCK": 1024})]
    found += [build_add_rows(target), build(sin, {"x": "*fp32", "z": "*fp32"}, target)]
    counts = [registers(compiled) for compiled in found]
    assert counts == [resources(compiled).registers for compiled in found]
    assert len({*counts}) >= 3


def test_registers_do_not_need_ptxas(monkeypatch):
    compiled = build_softmax("sm_90", 1024)
    monkeypatch.setattr("triton.compiler.make_backend", None)
    assert registers(compiled) > 0


def test_a_stack_holds_the_spills():
    assert binary_stack(build_softmax("sm_90", 1024).asm["cubin"]) == 0
    large = build_softmax("sm_90", 8192)
    assert 0 < binary_stack(large.asm["cubin"]) <= resources(large).spills


def test_scalar_registers_of_amd_spill_to_no_memory():
    compiled = written("    .sgpr_spill_count: 54\n    .vgpr_count:     209\n    .vgpr_spill_count: 0\n")
    compiled.metadata.target = TARGETS["gfx942"]
    assert resources(compiled) == (209, 0)


def test_resources_do_not_answer_for_other_code(monkeypatch):
    compiled = build_softmax("sm_90", 1024)
    monkeypatch.setattr(config, "kernel_resources", {})
    with triton.knobs.nvidia.scope():
        triton.knobs.nvidia.disable_ptxas_opt = True
        with pytest.raises(RuntimeError, match="does not reproduce the code of softmax"):
            resources(compiled)
    assert resources(compiled).registers > 0


def test_resources_answer_after_the_source_was_touched(tmp_path, monkeypatch):
    """The debug information of a binary, which Triton keeps on disk, holds when its source file was written."""
    file = tmp_path / "touched.py"
    file.write_text("import triton\nimport triton.language as tl\n\n@triton.jit\ndef fill(x):\n    tl.store(x, 1.0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    compiled = build(importlib.import_module("touched").fill, {"x": "*fp32"}, "sm_90")
    os.utime(file, (0, 0))
    assert resources(compiled).spills == 0


def test_resources_are_read_once_and_leave_no_trace(capfd, monkeypatch):
    compiled = build_softmax("sm_90", 1024)
    monkeypatch.setattr(config, "kernel_resources", {})
    first = resources(compiled)
    monkeypatch.setattr("triton.compiler.make_backend", None)
    assert resources(compiled) == first
    assert not triton.knobs.nvidia.dump_ptxas_log
    assert capfd.readouterr() == ("", "")
