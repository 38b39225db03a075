"""What a launch may ask of each GPU, and what the error says that it asked."""

from __future__ import annotations

import pytest

from customops.ptx.faults import KernelFault
from customops.tools.targets import GPUS, TARGETS, check_launch, most_threads, resident_blocks

from .marks import formulas_only

pytestmark = formulas_only

MODEST = {"grid": (4, 1, 1), "threads": 128, "registers": 32, "shared_bytes": 1024}
LIMITS = {
    "threads": ("threads", 1024, "1,025 threads of a block"),
    "x": ("grid", (2**31 - 1, 1, 1), "2,147,483,648 blocks along axis 0 of the grid"),
    "y": ("grid", (1, 65535, 1), "65,536 blocks along axis 1 of the grid"),
    "z": ("grid", (1, 1, 65535), "65,536 blocks along axis 2 of the grid"),
}
SHARED = {"cuda:80": 166912, "cuda:90": 232448, "cuda:100": 232448, "cuda:120": 101376, "hip:gfx942": 65536}


def one_more(value):
    return tuple(n + (n > 1) for n in value) if isinstance(value, tuple) else value + 1


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("limit", LIMITS)
def test_the_most_that_a_launch_may_ask_for_is_no_fault_and_one_more_is(target, limit):
    what, most, text = LIMITS[limit]
    check_launch(target, "k", **MODEST | {what: most})
    with pytest.raises(KernelFault, match=f"^{text}, but {target} has at most .*kernel k"):
        check_launch(target, "k", **MODEST | {what: one_more(most)})


@pytest.mark.parametrize("target", SHARED)
def test_shared_memory_is_that_of_the_gpu(target):
    check_launch(target, "k", **MODEST | {"shared_bytes": SHARED[target]})
    with pytest.raises(KernelFault, match=f"bytes of shared memory of a block, but {target}"):
        check_launch(target, "k", **MODEST | {"shared_bytes": SHARED[target] + 1})


@pytest.mark.parametrize(("target", "most"), [("cuda:90", 255), ("hip:gfx942", 512)])
def test_a_thread_has_so_many_registers(target, most):
    check_launch(target, "k", **MODEST | {"registers": most})
    with pytest.raises(KernelFault, match=f"^{most + 1} registers of a thread"):
        check_launch(target, "k", **MODEST | {"registers": most + 1})


@pytest.mark.parametrize(
    ("target", "registers", "threads"),
    [("cuda:90", 0, 1024), ("cuda:90", 64, 1024), ("cuda:90", 65, 896), ("cuda:90", 200, 256), ("cuda:90", 255, 256)]
    + [("cuda:90", 128, 512), ("hip:gfx942", 128, 1024), ("hip:gfx942", 129, 768), ("hip:gfx942", 512, 256)],
)
def test_the_registers_of_all_threads_fit_the_parts_of_a_multiprocessor(target, registers, threads):
    """A warp has units of 256 registers, in one of 4 parts of 16,384: of 65 registers 7 warps fit each part."""
    assert most_threads(TARGETS[target], registers) == threads
    asked = MODEST | {"registers": registers}
    check_launch(target, "k", **asked | {"threads": threads})
    if threads < 1024:
        with pytest.raises(KernelFault, match=f"{threads + 1} threads of a block with {registers} registers each"):
            check_launch(target, "k", **asked | {"threads": threads + 1})


@pytest.mark.parametrize(
    ("target", "warps", "registers", "shared_bytes", "blocks"),
    [
        ("cuda:90", 4, 32, 0, 16),  # 64 warps
        ("cuda:90", 1, 16, 0, 32),  # as many as there may be
        ("cuda:90", 4, 128, 0, 4),  # 65,536 registers are 16 warps of 32 x 128
        ("cuda:90", 8, 168, 0, 1),  # 12 warps
        ("cuda:90", 4, 32, 100 << 10, 2),  # 228 KiB are 2 x 101
        ("cuda:90", 4, 32, 32 << 10, 6),  # 6 x 33
        ("cuda:80", 4, 32, 81 << 10, 2),  # 164 KiB are 2 x 82
        ("cuda:120", 4, 32, 0, 12),  # 48 warps
        ("hip:gfx942", 4, 64, 0, 8),  # 32 waves
    ],
)
def test_a_multiprocessor_has_as_many_blocks_as_each_resource_allows(target, warps, registers, shared_bytes, blocks):
    assert resident_blocks(TARGETS[target], warps, registers, shared_bytes) == blocks


def test_each_gpu_reaches_no_more_than_its_data_sheet_says():
    assert {"A100 SXM", "H100 SXM", "H200", "B200", "MI300X"} <= GPUS.keys()
    for name, gpu in GPUS.items():
        assert gpu.model == name
        assert 0.7 * gpu.dram_nominal < gpu.dram_bandwidth < gpu.dram_nominal < gpu.l2_bandwidth
        assert gpu.l2_latency < gpu.dram_latency < gpu.launch_latency
