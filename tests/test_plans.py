"""A call like an earlier one follows its plan: nothing is derived again, and nothing of the earlier call is left."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import customops
from customops import config
from customops.ops.parts import norm_power
from customops.runtime import plans
from customops.runtime.paths import EXPONENTS

from .cases import CALLS, ids
from .conftest import INTERPRETED

pytest.importorskip("triton", reason="without Triton there are no kernels")
if INTERPRETED:
    pytest.skip("a dry run compiles, which the interpreter cannot", allow_module_level=True)


@pytest.fixture
def made(monkeypatch, replan):
    """Return the list of the plans made during a test."""
    from customops.triton_kernels.plan import Plan  # noqa: PLC0415 - Triton may be missing

    made, real = [], Plan.__init__
    monkeypatch.setattr(Plan, "__init__", lambda self, *args: (made.append(self), real(self, *args))[1])
    return made


@pytest.mark.sample(formulas="operator, path")
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_the_second_call_makes_no_plan(row, call, made):
    with customops.dry_run() as records:
        counts = []
        for seed in (0, 1):
            xs = [row.draw((4, 8, 2, 2), torch.float32, seed).requires_grad_() for _ in range(call.arity)]
            z = call.function(customops, *xs)
            torch.autograd.grad(z, xs, torch.ones_like(z))
            counts.append((len(made), len(records)))
    assert counts[1] == (counts[0][0], 2 * counts[0][1])


def test_numbers_share_a_plan_where_their_value_changes_nothing(made):
    x = torch.ones(64)
    with customops.dry_run():
        for number in (0.25, 0.1, -0.3, 1e4, 7.25):
            customops.mul(x, number)
        assert len(made) == 1
        customops.add(x, x)
        customops.add(x, x, alpha=5)
        assert len(made) == 3, "a gradient for alpha=1 is g itself"


def test_a_power_of_norms_alone_has_kernels_for_the_exponents_of_plan_keys():
    x = torch.ones(64, requires_grad=True)
    with customops.dry_run():
        for number in EXPONENTS:
            torch.autograd.grad(norm_power(x, number), x, x)
        for number in (0.3, 0.4, 5):
            with pytest.raises(ValueError, match=f"norm_power: no kernel of one operator is compiled for {number}"):
                norm_power(x, number)


def test_the_dtype_of_a_reduction_is_part_of_its_plan():
    x = torch.ones(64)
    with customops.dry_run():
        found = [customops.sum(x, **options).dtype for options in ({}, {"dtype": torch.float64}, {})]
    assert found == [torch.float32, torch.float64, torch.float32]


def test_a_negative_exponent_of_integers_is_refused_after_a_positive_one(made):
    x = torch.arange(1, 65)
    with customops.dry_run():
        customops.pow(x, 4)
        with pytest.raises(RuntimeError, match="negative integer powers"):
            customops.pow(x, -4)
    assert made


def test_what_a_kernel_is_compiled_for_is_part_of_the_plan(made):
    x = torch.ones(65)
    with customops.dry_run() as records:
        for like in (x, x[1:], x[:64], x[::2], x.double(), x.view(5, 13), x.view(13, 5).T):
            customops.exp(like)
        customops.exp(torch.ones(130)[:64])
        customops.exp(torch.ones(4, 12))
    assert len(made) == 8
    assert len({id(record.compiled) for record in records}) == 5, "shapes that coalesce alike share a kernel"


def test_plans_hold_no_tensor(made):
    """A CUDA graph can capture what neither allocates nor copies metadata."""
    with customops.dry_run():
        x = torch.ones(256, 256, requires_grad=True)
        y = torch.ones(256, requires_grad=True)
        torch.autograd.grad(customops.mul(x, y), (x, y), torch.ones(256, 256))

    def leaves(value):
        return [leaf for item in value for leaf in leaves(item)] if isinstance(value, tuple) else [value]

    held = [leaf for plan in made for launch in plan.launches for leaf in leaves(launch.arguments)]
    assert held
    assert not any(isinstance(leaf, torch.Tensor) for leaf in held)


def test_a_launch_goes_to_the_stream_of_its_moment(monkeypatch, made):
    import triton  # noqa: PLC0415 - Triton may be missing

    x, streams = torch.ones(64), []
    with customops.dry_run():
        customops.exp(x)
        monkeypatch.setattr(made[0].launches[0], "run", lambda *call: streams.append(call[3]))
        for stream in (3, 7, 3):
            monkeypatch.setattr(triton.runtime.driver.active, "get_current_stream", lambda _device, now=stream: now)
            customops.exp(x)
    assert streams == [3, 7, 3]


def test_a_call_on_another_device_goes_there(monkeypatch, made):
    import triton  # noqa: PLC0415 - Triton may be missing

    entered = []

    class Guard:
        def __init__(self, device):
            entered.append(device)

        def __enter__(self):
            monkeypatch.undo()

        def __exit__(self, *_):
            pass

    x = torch.ones(64)
    with customops.dry_run() as records:
        customops.exp(x)
        monkeypatch.setattr(torch.cuda, "device", Guard)
        monkeypatch.setattr(triton.runtime.driver.active, "get_current_device", lambda: 5)
        customops.exp(x)
    assert entered == [x.device]
    assert len(records) == 2


def test_threads_share_plans(replan):
    """Each of many threads meets every operator first or not, and launches what it would alone."""

    def launch_all(_):
        for row, call in CALLS[::5]:
            call.function(customops, *(row.draw((2, 3, 2, 2), torch.float32, i) for i in range(call.arity)))

    with customops.dry_run() as records:
        launch_all(0)
        alone = [record.program for record in records]
        replan()
        records.clear()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(launch_all, range(16)))
    assert sorted(record.program for record in records) == sorted(alone * 16)


def test_memory_of_plans_is_bounded(monkeypatch, replan):
    monkeypatch.setattr(plans, "MAX_PLANS", 4)
    with customops.dry_run() as records:
        for n in range(1, 12):
            customops.exp(torch.ones(n))
            assert len(config.plans) <= 4
    assert len(records) == 11


def test_profilers_hear_of_a_launch(monkeypatch, made):
    """Triton's launch hooks, which Proton sets, get the kernel's name; where it launches, it has been loaded."""
    import triton  # noqa: PLC0415 - Triton may be missing

    x, heard = torch.ones(64), []
    with customops.dry_run(), monkeypatch.context() as patch:  # undone before the dry run undoes its own
        customops.exp(x)
        (launch,) = made[0].launches
        patch.setattr(launch, "is_dry_run", False)
        patch.setattr(type(launch.compiled), "_init_handles", lambda _: None)
        patch.setattr(launch, "run", lambda *call: call[7] and call[7](call[6]))
        customops.exp(x)
        triton.knobs.runtime.launch_enter_hook.add(heard.append)
        try:
            customops.exp(x)
        finally:
            triton.knobs.runtime.launch_enter_hook.remove(heard.append)
    assert [metadata.get()["name"] for metadata in heard] == ["map_kernel"]
