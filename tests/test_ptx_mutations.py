"""Faults planted in the PTX of real kernels are caught: a mask or a barrier dropped, an address off by one.

Each kernel is compiled for sm_90, and every place of its PTX that a mutation fits is mutated, one at a time.
"""

from __future__ import annotations

import inspect
import re
from functools import cache, partial
from importlib.metadata import version
from itertools import combinations

import pytest
import torch

import customops
from customops.ptx.faults import KernelFault
from customops.ptx.machine import load

from .conftest import INTERPRETED, KERNELS

triton = pytest.importorskip("triton", reason="without Triton nothing compiles")
if KERNELS or INTERPRETED:
    pytest.skip("the interpreter's functions do not compile, and a GPU is not asked", allow_module_level=True)
import triton.language as tl  # noqa: E402

pytestmark = pytest.mark.sample(kernels="")  # it asks nothing of the interpreter

NAN = float("nan")


@triton.jit
def add(x, y, z, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(z + i, tl.load(x + i, i < n) + tl.load(y + i, i < n), i < n)


@triton.jit
def add_without_mask(x, y, z, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(z + i, tl.load(x + i) + tl.load(y + i, i < n), i < n)


@triton.jit
def softmax(x, z, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    row = tl.load(x + tl.program_id(0) * n + i, i < n, -float("inf"))
    e = tl.exp(row - tl.max(row, 0))
    tl.store(z + tl.program_id(0) * n + i, e / tl.sum(e, 0), i < n)


@triton.jit
def transpose(x, z, m, n, x_row, x_column, z_row, z_column, BLOCK: tl.constexpr):
    i, j = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    mask = (i < m) & (j < n)
    tile = tl.load(x + i * x_row + j * x_column, mask)
    tl.store(z + j * z_row + i * z_column, tile, mask)


def run_add(kernel=add, n=500, start=0, block=128):
    x, y = torch.randn(2, 512)[:, start : start + n]
    z = torch.full((n,), NAN)
    kernel[(triton.cdiv(n, block),)](x, y, z, n, BLOCK=block)
    return z, x + y


def run_softmax():
    x, z = torch.randn(3, 500), torch.full((3, 500), NAN)
    softmax[(3,)](x, z, 500, BLOCK=512)
    return z, x.softmax(1)


def run_transpose():
    x, z = torch.randn(31, 70)[:, 1:59:2], torch.full((29, 95), NAN)[:, :93:3]
    transpose[(1,)](x, z, *x.shape, *x.stride(), *z.stride(), BLOCK=32)
    return z, x.t()


def run_product():
    """Multiply tensors of two layouts, of which one goes through shared memory."""
    x, y = torch.randn(40, 72), torch.randn(72, 40).t()
    return customops.mul(x, y), x * y


def run_sum():
    """Add up columns, by threads of several warps."""
    x = torch.randn(1000, 40)
    return customops.sum(x, 0), x.sum(0)


CALLS = {"add": run_add, "softmax": run_softmax, "transpose": run_transpose, "product": run_product, "sum": run_sum}
ACCESS = r"((?:@!?%p\d+ )?)((?:ld|st)\.global[^;]*) \+ 0 \]"
MASK, BARRIER = r"@!?%p\d+ ((?:ld|st)\.global)", r"bar\.(?:warp\.)?sync.*;"
BARRIERS = {"add": (0, 0), "softmax": (5, 0), "transpose": (0, 0), "product": (2, 1), "sum": (4, 0)}


def outcome(call, edit=lambda text: text):
    """Return what becomes of a call whose PTX is edited: the fault, or whether its values are right."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("customops.tools.execution.load", lambda text: load(edit(text)))
        torch.manual_seed(0)
        try:
            with customops.dry_run("cuda:90", execute=True):
                found, expected = call()
        except KernelFault as fault:
            return fault
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


@cache
def texts_of(call):
    """Return the PTX of the kernels of a call, which gives the right values unedited."""
    texts = []
    assert outcome(call, lambda text: texts.append(text) or text) is True
    return tuple(dict.fromkeys(texts))


def replaced(text, edited, other):
    return edited if other == text else other


def outcomes(call, pattern, replacement):
    """Return what becomes of a call for each match in its PTX, edited alone."""
    found = []
    for text in texts_of(call):
        for m in re.finditer(pattern, text):
            edited = text[: m.start()] + m.expand(replacement) + text[m.end() :]
            found.append(outcome(call, partial(replaced, text, edited)))
    return found


@pytest.mark.parametrize("name", CALLS)
def test_the_kernels_give_the_right_values_as_they_were_compiled(name):
    assert all(".target sm_90a" in text for text in texts_of(CALLS[name]))


@pytest.mark.parametrize("name", CALLS)
def test_a_dropped_mask_is_a_fault_where_it_is_needed(name):
    """Others are of elements that are all there, or whose values nobody uses."""
    found = outcomes(CALLS[name], MASK, r"\1")
    faults = [fault for fault in found if isinstance(fault, KernelFault)]
    assert {fault.reason[:10] for fault in faults} <= {"an access ", "a race in "}
    if name in ("add", "transpose"):  # each access of theirs reaches past the end
        assert len(faults) == len(found) > 0
    written = {"product": "outputs[0]", "sum": "outputs[0]"}.get(name, "z")
    assert {written, "operands[0]" if name in ("product", "sum") else "x"} <= {fault.tensor for fault in faults}


@pytest.mark.parametrize("name", CALLS)
def test_a_barrier_removed_is_a_race(name):
    """Not so the one that is between accesses of a thread to its own places alone."""
    found = outcomes(CALLS[name], BARRIER, "")
    faults = [fault for fault in found if isinstance(fault, KernelFault)]
    assert (len(faults), found.count(True)) == BARRIERS[name]
    assert all(fault.reason.startswith("a race in shared memory: a thread") for fault in faults)


@pytest.mark.parametrize("name", CALLS)
def test_an_address_off_by_one_element_is_a_fault_or_gives_wrong_values(name):
    found = outcomes(CALLS[name], ACCESS, r"\1\2 + 4 ]")
    executed = [isinstance(fault, KernelFault) for fault in outcomes(CALLS[name], ACCESS + ".*;", r"\1trap;")]
    assert [outcome is not True for outcome in found] == executed
    assert any(isinstance(outcome, KernelFault) for outcome in found)


@pytest.mark.parametrize(("first", "second"), [*combinations(range(2, 8), 2)])
def test_two_numbers_swapped_are_a_fault(first, second):
    """They are the sizes of two axes, the strides of the input and those of the output."""
    (text,) = texts_of(run_transpose)
    names = {f"transpose_param_{first}]": f"transpose_param_{second}]"}
    names |= {new: old for old, new in names.items()}
    edited = re.sub("|".join(map(re.escape, names)), lambda match: names[match[0]], text)
    assert edited != text
    fault = outcome(run_transpose, partial(replaced, text, edited))
    assert re.match("an access outside the elements of (x|z), which has shape", fault.reason)


def test_strides_swapped_inside_a_square_give_wrong_values():
    """No fault: each access is to an element, but not to the right one."""

    def run_square():
        x, z = torch.randn(32, 32).t(), torch.full((32, 32), NAN)
        transpose[(1,)](x, z, 32, 32, 1, 32, 32, 1, BLOCK=32)
        return z, x.t()

    def run_swapped():
        x, z = torch.randn(32, 32).t(), torch.full((32, 32), NAN)
        transpose[(1,)](x, z, 32, 32, 32, 1, 32, 1, BLOCK=32)
        return z, x.t()

    assert outcome(run_square) is True
    assert outcome(run_swapped) is False


def test_a_width_too_wide_for_its_alignment_is_a_fault():
    """Code that was compiled for aligned tensors gets others."""
    aligned, shifted = partial(run_add, n=496, block=512), partial(run_add, n=496, start=1, block=512)
    (wide,), (narrow,) = texts_of(aligned), texts_of(shifted)
    assert "ld.global.v4.b32" in wide
    assert "ld.global.v4.b32" not in narrow
    fault = outcome(shifted, lambda text: wide)
    assert fault.reason == "a misaligned access: 16 bytes at an address that is 4 past a multiple of 16"
    assert (fault.kernel, fault.tensor, fault.thread, fault.program) == ("add", "x", 0, (0, 0, 0))


def test_a_mask_missing_in_python_is_a_fault_at_its_line():
    lines, first = inspect.getsourcelines(add_without_mask.fn)
    (line,) = (i for i, text in enumerate(lines, first) if "tl.load(x + i)" in text)
    fault = outcome(partial(run_add, add_without_mask))
    assert re.match("an access outside the elements of x, .*: 4 bytes, 500 elements from its first", fault.reason)
    line += version("triton").startswith("3.9.")  # which writes the next line beside a load
    assert (fault.kernel, fault.source) == ("add_without_mask", f"test_ptx_mutations.py:{line}")
    assert (fault.program, fault.thread, fault.tensor) == ((3, 0, 0), 116, "x")
    assert fault.instruction.startswith("ld.global.b32")
    assert f"at test_ptx_mutations.py:{line}, program (3, 0, 0), thread 116" in str(fault)


def test_a_launch_beyond_what_the_gpu_takes_is_a_fault_and_writes_nothing():
    x, y = torch.ones(2, 128)
    z = torch.full((128,), NAN)
    with (
        customops.dry_run("cuda:90", execute=True),
        pytest.raises(KernelFault, match=r"^65,536 blocks along axis 1 .* has at most 65,535 \(kernel add\)"),
    ):
        add[(1, 65536)](x, y, z, 128, BLOCK=128)
    assert z.isnan().all()
