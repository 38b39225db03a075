"""Every operator, dtype and layout compiles for five GPUs on a machine without one."""

from __future__ import annotations

import re
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import customops
from customops.tools.targets import TARGETS

from .cases import CALLS, ids
from .conftest import INTERPRETED, KERNELS
from .test_dispatch import python

why = "the interpreter's functions do not compile" if INTERPRETED else "on a GPU kernels compile as they run"
if KERNELS:
    pytest.skip(why, allow_module_level=True)
pytest.importorskip("triton", reason="without Triton there are no kernels")

DTYPES = sorted(customops.runtime.paths.KERNEL_DTYPES, key=str)
SHAPES = {
    "whole": ((32, 64), (32, 64)),
    "row": ((32, 64), (64,)),
    "column": ((32, 64), (32, 1)),
    "outer": ((32, 1), (1, 64)),
    "sliced": ((32, 64, 3), (64, 3)),
}


@pytest.mark.sample(formulas="operator, dtype, target")
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_forward_and_backward_build_for_every_gpu(row, call, dtype, target, tally):
    with customops.dry_run(target) as launches:
        for layout, shapes in SHAPES.items():
            xs = [torch.ones(shape, dtype=dtype) for shape in shapes[: call.arity]]
            xs = [x[..., ::2].requires_grad_(x.is_floating_point()) if layout == "sliced" else _leaf(x) for x in xs]
            if xs[0].dim() < call.rank or not _is_defined(call, xs):
                continue
            z = call.function(customops, *xs)
            if z.requires_grad:
                torch.autograd.grad(z, [x for x in xs if x.requires_grad], torch.ones_like(z))
    tally("compiled kernels", len({launch.compiled.hash for launch in launches}))


@pytest.mark.sample(formulas="once")  # those of test_compiled.py are executed
@pytest.mark.parametrize("target", TARGETS)
def test_launches_that_count_in_64_bits_build_for_every_gpu(target):
    many, far = torch.ones(1, dtype=torch.int8).expand(65535, 32768), torch.zeros(2**31 + 1, dtype=torch.uint8)
    with customops.dry_run(target) as launches:
        customops.sum(many), customops.amax(many, 0), customops.add(far[:: 2**31], 1)
    loops = [line for line in launches[0].compiled.asm["ttir"].splitlines() if "scf.for" in line]
    assert loops
    assert all("_i64 iter_args" in line for line in loops)  # the step, so its type


@pytest.mark.sample(formulas="")  # three processes
def test_editing_a_formula_makes_a_new_kernel_from_a_warm_cache(tmp_path):
    """Triton keys a tuple of JIT functions by their names alone; ours is keyed by their source."""
    script = f"""
import sys; sys.path[:0] = [{str(tmp_path)!r}, {sys.path[0]!r}, '.']
import torch, edited
import customops
from customops.triton_kernels import formulas
formulas.exp = edited.scale
with customops.dry_run("cuda:90") as launches:
    customops.exp(torch.ones(64))
print(launches[0].compiled.hash)
"""
    hashes = []
    for factor in (2, 2, 3):
        code = f"import triton\n\n@triton.jit\ndef scale(x):\n    return x * {factor}\n"
        (tmp_path / "edited.py").write_text(code)
        done = python(script, TRITON_CACHE_DIR=str(tmp_path / "cache"), PYTHONDONTWRITEBYTECODE="1")
        assert done.stdout, done.stderr
        hashes.append(done.stdout)
    assert hashes[0] == hashes[1] != hashes[2]


def test_numbers_share_their_kernel():
    with customops.dry_run("cuda:90") as launches:
        x = torch.ones(64)
        for number in (0, 0.1, 0.2, -0.3, 1.7e300, 2.5, 3, 7.25, -1, 1e-300):
            customops.mul(x, number)
    assert len(launches) == 10
    assert len({launch.compiled.hash for launch in launches}) == 1


def _leaf(x):
    return x.requires_grad_(x.is_floating_point())


def _is_defined(call, xs):
    """Return whether torch has this operator for these dtypes: there is no mean of integers, no difference of bool."""
    try:
        call.function(torch, *xs)
    except RuntimeError:
        return False
    return True


def test_a_dry_run_in_another_thread_is_refused():
    """All threads see it; two that overlap would leave one behind."""
    with customops.dry_run(), ThreadPoolExecutor(1) as pool:
        refused = pool.submit(lambda: customops.dry_run().__enter__()).exception()
    assert isinstance(refused, RuntimeError)
    assert "another thread" in str(refused)


def test_nothing_is_left_of_a_dry_run():
    x, lists = torch.rand(8), []

    def fail():
        with customops.dry_run("cuda:90") as outer:
            customops.exp(x)
            for target in ("cuda:80", "cuda:90"):
                with customops.dry_run(target) as inner:
                    customops.exp(x)
                lists.append(inner)
            customops.exp(x)
            lists.append(outer)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [len(records) for records in lists] == [1, 1, 2]
    assert torch.equal(customops.exp(x), torch.exp(x))


def test_profilers_do_not_disturb_a_dry_run():
    """Nothing is loaded for them: what frees it would hand it to whichever driver is active then."""
    script = """
import gc
import torch, triton
import customops
from customops import config
from customops.triton_kernels import launch

for name in ("launch_enter_hook", "kernel_load_end_hook"):
    getattr(triton.knobs.runtime, name).add(lambda *_: print("heard"))
with customops.dry_run() as records:
    customops.exp(torch.rand(8))
print(len(records))
assert records[0].compiled.module is None
del records
launch._compile.cache_clear()
config.plans.clear()
gc.collect()
"""
    done = python(script)
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_compiled_kernels_round_each_product():
    """Contracted or not, x·y + z is two numbers; a compiler's choice of them would be no kernel's own."""
    fused = customops.fuse(lambda x, y: x * y + y)
    x = torch.ones(64, 64)
    for target in TARGETS:
        with customops.dry_run(target) as launches:
            customops.add(x, x, alpha=3)
            fused(x, torch.ones(64))
        assert len(launches) == 2
        for launch in launches:
            assert not launch.compiled.metadata.enable_fp_fusion
            code = launch.compiled.asm["ptx" if target.startswith("cuda") else "amdgcn"]
            assert not re.findall(r"\b(?:v_(?:pk_)?|)(?:fma|mad|fmac)[._](?:rn\.)?f32", code), code


def test_kernels_are_compiled_without_a_warning(tmp_path):
    """The cache is empty, as Triton warns when it compiles."""
    script = "import torch, customops\nwith customops.dry_run() as records:\n    customops.exp(torch.rand(8))"
    done = python(script, PYTHONWARNINGS="error", TRITON_CACHE_DIR=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
