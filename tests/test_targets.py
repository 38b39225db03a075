"""What a launch may ask of each GPU, and what the error says that it asked."""

from __future__ import annotations

import pytest

from customops.ptx.faults import KernelFault
from customops.tools.targets import TARGETS, check_launch, most_threads

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
