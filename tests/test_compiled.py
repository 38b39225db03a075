"""What only compiled code shows: errors in ulp, 64-bit offsets, and accesses that no kernel may make."""

from __future__ import annotations

import pytest
import torch

import customops
from customops.ptx.faults import KernelFault
from customops.runtime import plans
from customops.runtime.memory import unbacked

from . import compiled_accuracy
from .cases import CALLS, ids
from .compare import assert_equal, cotangent, record_launches
from .compiled import TARGET
from .conftest import MODE
from .programs import softmax

if MODE != "compiled":
    pytest.skip(
        "needs compiled code: CUSTOMOPS_TEST_COMPILED=cuda:90 CUSTOMOPS_BACKEND=triton", allow_module_level=True
    )

FAR = 2**30 + 16  # elements from one row to the next: the third starts past 2^31


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize("dtype", compiled_accuracy.DTYPES, ids=ids)
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_errors_are_those_of_the_page(row, call, dtype, tally):
    """Where another GPU's code differs, it is about as good; none is inf or nan by itself far from the ends."""
    written = compiled_accuracy.recorded()
    for m in compiled_accuracy.measure(row, call, dtype):
        ours, want = m["ours"], written[compiled_accuracy.key(m)]["ours"]
        if compiled_accuracy.TARGET == TARGET:
            assert ours == pytest.approx(want, rel=1e-3), f"{m}, written {want}: make accuracy"
        elif m["range"] == "ordinary":
            assert ours["ulp"] <= 1.25 * want["ulp"] + 0.5
        assert m["range"] == "ends" or not ours["wrong"]
        tally("accuracies")


def far(x: torch.Tensor) -> torch.Tensor:
    """Return a copy of ``x`` whose rows are so far apart that offsets need 64 bits; the gaps take no memory."""
    return unbacked(x.shape, (FAR, *x.stride()[1:]), x.dtype).copy_(x)


REACHING = {
    "rows": lambda lib, x: lib.exp(x),
    "a row that is broadcast": lambda lib, x: lib.mul(x, x.detach()[:1]),
    "transposed": lambda lib, x: lib.sigmoid(x.t()),
    "two that are far": lambda lib, x: lib.mul(x, x),
    "a sum over rows": lambda lib, x: lib.sum(x, 0),
    "a sum along rows": lambda lib, x: lib.sum(x, 1),
    "an extremum of all": lambda lib, x: lib.amax(x),
    "fused": lambda lib, x: customops.fuse(lambda x: softmax(customops, x))(x) if lib is customops else softmax(lib, x),
    "fused over rows": lambda lib, x: (
        customops.fuse(lambda x: softmax(customops, x, 0))(x) if lib is customops else softmax(lib, x, 0)
    ),
}


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16], ids=ids)
@pytest.mark.parametrize("name", REACHING)
def test_rows_past_31_bits_have_their_values_and_gradients(name, dtype, monkeypatch):
    """A 32-bit offset that overflowed would lead outside of the tensor, or to another row."""
    x = (torch.rand(3, 300) * 50 + 1).to(dtype) if dtype == torch.uint8 else torch.rand(3, 300).add(0.5).to(dtype)
    widths = record_launches(monkeypatch, lambda launch: str(launch.arguments[-1].index_dtype))
    leaves = [x.requires_grad_(x.is_floating_point()) for x in (far(x), x.clone())]
    got, want = (REACHING[name](lib, leaf) for lib, leaf in zip((customops, torch), leaves, strict=True))
    assert_equal(got, want)
    assert widths[0] == "int64"
    if want.requires_grad:
        grads = (torch.autograd.grad(z, leaf, cotangent(z))[0] for z, leaf in zip((got, want), leaves, strict=True))
        assert_equal(*grads)


@pytest.mark.sample(compiled="all")
def test_rows_past_31_bits_are_written_in_place_and_nothing_else():
    x = torch.rand(3, 300)
    reaching = far(x)
    around = [reaching.as_strided((2,), (FAR,), place) for place in (300, FAR - 1)]
    customops.mul_(reaching, 2)
    assert_equal(reaching, x * 2)
    assert all(bool((band == 0).all()) for band in around)


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize("start", range(1, 9))
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64], ids=ids)
def test_tensors_that_start_anywhere_are_read_and_written_in_words_that_are_aligned(dtype, start):
    """Of two that start alike, and of one beside another that starts at a multiple of 16 bytes."""
    memory = (torch.rand(3, 1100) * 99).to(dtype)
    x, y, out = (row[start : start + 1030] for row in memory)
    assert_equal(customops.add(x, y, out=out), x + y)
    assert_equal(customops.mul(x, memory[1, :1030]), x * memory[1, :1030])


@pytest.mark.sample(compiled="all")
def test_wrong_claim_of_alignment_is_a_fault(monkeypatch, replan):
    monkeypatch.setattr(plans, "VECTOR_BYTES", 1)  # each address is a multiple of that
    with pytest.raises(KernelFault, match=r"a misaligned access: 16 bytes .* past a multiple of 16"):
        customops.exp(torch.rand(1025)[1:])


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize(
    "call", [customops.exp, customops.sum, customops.fuse(lambda x: softmax(customops, x))], ids=["exp", "sum", "fused"]
)
def test_dropped_mask_is_a_fault(call, monkeypatch, replan):
    """The interpreter cannot see it: what is read past the end is another tensor's, or the allocator's."""
    from customops.triton_kernels import plan  # noqa: PLC0415 - Triton may be missing

    real = plan.arrange
    longer = lambda *args: (a := real(*args))._replace(extents=tuple(n + (n > 1) for n in a.extents))
    monkeypatch.setattr(plan, "arrange", longer)
    with pytest.raises(KernelFault, match="an access outside the elements of") as fault:
        call(torch.rand(1, 1001))
    assert ".py:" in fault.value.source


@pytest.mark.sample(compiled="all")
def test_a_function_that_is_called_writes_to_the_memory_of_its_caller():
    """CUDA reduces large angles so in float64: a part of 2/π by the exponent, and the quadrant through a pointer."""
    x = torch.tensor([1e22, -1e300, 3.5, 0.0], dtype=torch.float64)
    for name in ("sin", "cos"):
        torch.testing.assert_close(getattr(customops, name)(x), getattr(torch, name)(x), rtol=1e-14, atol=1e-15)
