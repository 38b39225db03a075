"""Shapes that ask more of the kernels: offsets past 31 bits, and sums that several programs share."""

from __future__ import annotations

from itertools import product

import pytest
import torch

import customops

from .cases import EXTREMA
from .compare import assert_equal
from .conftest import DEVICE, INTERPRETED, KERNELS, NO_KERNEL

if not KERNELS:
    pytest.skip(NO_KERNEL, allow_module_level=True)

SCALE = 8 if DEVICE == "cuda" else 1  # many programs share a sum there too
LONG = tuple(tuple(n * SCALE if n > 9 else n for n in shape) for shape in ((5000,), (3, 2500), (2500, 3), (2, 2500, 2)))
WIDE = [((150, 1), (1, 150)), ((1, 3000), (2, 3000)), ((2, 1), (1, 3000))]


@pytest.mark.sample(compiled="all")
def test_kernel_reaches_elements_past_31_bits(device):
    far = torch.zeros(2**31 + 2**20, dtype=torch.uint8, device=device)[:: 2**30]
    far[:] = torch.tensor([1, 2, 3])
    assert customops.add(far, 1).tolist() == [2, 3, 4]
    assert customops.sum(far).item() == 6


@pytest.mark.skipif(not INTERPRETED, reason="only the interpreter runs one program of many")
def test_last_program_of_a_sum_of_nearly_2_31_elements_counts_its_own(monkeypatch):
    """Where it would end, were there as many elements as programs walk, is past 31 bits."""
    from customops.triton_kernels.launch import Launch  # noqa: PLC0415 - Triton may be missing
    from triton.runtime.interpreter import interpreter_builder  # noqa: PLC0415

    numel, parts = 65535 * 32768, []
    real = Launch.interpret

    def run_last(launch, tensors):
        if not parts:
            last, launch.grid = launch.grid - 1, 1
            monkeypatch.setattr(interpreter_builder, "set_grid_idx", lambda *_: None)
            monkeypatch.setattr(interpreter_builder, "grid_idx", (last, 0, 0), raising=False)
            real(launch, tensors)
            steps, geometry = launch.arguments[6], launch.arguments[-1]
            chunk = steps * geometry.tile[1]
            assert last * chunk < numel < 2**31 <= (last + 1) * chunk
            parts.append((tensors[launch.output_positions[0]][last].item(), numel - last * chunk))

    monkeypatch.setattr(Launch, "interpret", run_last)
    customops.sum(torch.ones(1, dtype=torch.int8).expand(numel))
    ((got, want),) = parts
    assert got == want


@pytest.mark.sample(kernels="name, shape", compiled="all")
@pytest.mark.parametrize(
    ("name", "shape"), [*product(("sum", "mean"), LONG), ("amax", LONG[1]), ("amin", LONG[0])], ids=str
)
def test_shared_totals_are_right_and_repeat_bit_for_bit(name, shape, device):
    x = torch.rand(shape, device=device)
    axis = shape.index(max(shape))
    got = getattr(customops, name)(x, axis)
    assert torch.equal(got, getattr(customops, name)(x, axis))
    assert_equal(got, getattr(x.double(), name)(axis).float())


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize("name", EXTREMA)
def test_nan_outlasts_what_follows_it_in_a_loop(name, device):
    x = torch.rand(2000, 2, device=device)
    x[0, 0] = torch.nan
    assert getattr(customops, name)(x, 0).isnan().tolist() == [True, False]


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize("shapes", WIDE, ids=str)
def test_gradients_by_partial_sums_match(shapes, device):
    xs = [(torch.rand(shape, dtype=torch.float64, device=device) + 0.5).requires_grad_() for shape in shapes]
    g = torch.rand(torch.broadcast_shapes(*shapes), dtype=torch.float64, device=device)
    got = torch.autograd.grad(customops.pow(*xs), xs, g)
    for mine, theirs in zip(got, torch.autograd.grad(torch.pow(*xs), xs, g), strict=True):
        assert_equal(mine, theirs)
