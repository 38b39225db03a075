"""Autograd's machinery around a call of ours does what it does around torch's: checkpoints, saved tensors, hooks."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch
from torch.autograd import graph
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode

import customops

from .cases import CALLS, ROW, ids
from .compare import assert_as_torch, assert_same_outcomes, backward
from .conftest import KERNELS
from .inplace import BINARY, UNARY
from .marks import by_path, every_call


@pytest.fixture(autouse=True)
def _count(tally):
    tally("uses of autograd")


@pytest.mark.sample(formulas="operator, path*reentrant", kernels="path, reentrant")
@every_call
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not"])
def test_checkpoint_gives_the_same_gradients(reentrant, row, call, device):
    assert_as_torch(lambda f, *xs: backward(checkpoint(f, *xs, use_reentrant=reentrant), *xs), row, call, device)


@every_call
@by_path
def test_checkpoint_may_begin_or_end_under_a_dispatch_mode(row, call, device):
    """What a mode sees is torch's operator: it has to save as many tensors as ours, in the same order."""

    def begin(f, *xs):
        with FlopCounterMode(display=False):
            z = checkpoint(f, *xs, use_reentrant=False)
        return backward(z, *xs)

    def end(f, *xs):
        z = checkpoint(f, *xs, use_reentrant=False)
        with FlopCounterMode(display=False):
            return backward(z, *xs)

    assert_as_torch(begin, row, call, device)
    assert_as_torch(end, row, call, device)


@pytest.mark.sample(formulas="operator, path*policy", kernels="path, policy")
@every_call
@pytest.mark.parametrize("policy", [CheckpointPolicy.MUST_SAVE, CheckpointPolicy.PREFER_RECOMPUTE], ids=str)
def test_selective_checkpoint_asks_about_the_same_operators(policy, row, call, device):
    def use(f, *xs):
        seen = []

        def decide(_, op, *args, **kwargs):
            seen.append(op)
            return policy

        contexts = lambda: create_selective_checkpoint_contexts(decide)
        z = checkpoint(lambda *xs: f(*xs).sin(), *xs, use_reentrant=False, context_fn=contexts)
        return backward(z, *xs), seen

    assert_as_torch(use, row, call, device)


@every_call
@by_path
def test_saved_tensors_hooks_get_and_may_replace_the_same_tensors(row, call, device):
    for wanted in ((True, True), (True, False), (False, True))[: 2 * call.arity - 1]:
        packed = []

        def use(f, *xs, wanted=wanted, packed=packed):
            packed.append([])
            leaves = [x.requires_grad_(wants) for x, wants in zip(xs, wanted, strict=False)]
            pack = lambda t: packed[-1].append(t.detach()) or (t * 2 if t.is_floating_point() else t)
            with graph.saved_tensors_hooks(pack, lambda t: t / 2 if t.is_floating_point() else t):
                z = f(*xs)
            return backward(z, *leaves)

        assert_as_torch(use, row, call, device)
        mine, theirs = packed
        assert_same_outcomes(mine, theirs[: len(mine)])  # torch saves the power even if only the base wants a gradient


def _fail(_):
    raise KeyError


@pytest.mark.sample(formulas="operator, path*hooks", kernels="path, hooks")
@every_call
@pytest.mark.parametrize("hooks", [(_fail, id), (id, _fail), (id, id)], ids=["pack", "unpack", "no tensor"])
def test_saved_tensors_hooks_that_fail_raise_the_same(hooks, row, call, device):
    def use(f, *xs):
        with graph.saved_tensors_hooks(*hooks):
            z = f(*xs)
        return backward(z, *xs)

    assert_as_torch(use, row, call, device, raises=None)


@pytest.mark.sample(formulas="operator*context, path*context", kernels="path, context")
@every_call
@pytest.mark.parametrize(
    "context",
    [graph.save_on_cpu, lambda: graph.disable_saved_tensors_hooks("none here"), graph.allow_mutation_on_saved_tensors],
    ids=["save_on_cpu", "disable_saved_tensors_hooks", "allow_mutation_on_saved_tensors"],
)
def test_contexts_of_saved_tensors_give_the_same_gradients(context, row, call, device):
    def use(f, *xs):
        with context() as mutable:
            ys = [x * 1 for x in xs]
            z = f(*ys)
            w = z * 1
            if mutable is not None:
                with torch.no_grad():
                    for t in (z, *ys):
                        t.mul_(2)
            return backward(w, *xs)

    assert_as_torch(use, row, call, device)


@every_call
@by_path
def test_changing_a_saved_tensor_raises_exactly_where_torch_does(row, call, device):
    for changed in range(call.arity + 1):

        def use(f, *xs, changed=changed):
            ys = [x * 1 for x in xs]
            z = f(*ys)
            w = z * 1
            with torch.no_grad():
                (z, *ys)[changed].add_(1)
            return backward(w, *xs)

        assert_as_torch(use, row, call, device, raises=None)


@pytest.mark.sample(formulas="operator, path*retain", kernels="path, retain")
@every_call
@pytest.mark.parametrize("retain", [True, False], ids=["retained", "not"])
def test_second_backward_raises_exactly_where_torchs_does(retain, row, call, device):
    def use(f, *xs):
        z = f(*xs)
        backward(z, retain_graph=retain)
        return backward(z, *xs)

    assert_as_torch(use, row, call, device, raises=False if retain else None)


@every_call
@by_path
def test_hooks_of_tensors_and_nodes_run_in_the_same_order_and_change_gradients(row, call, device):
    def use(f, *xs):
        heard = []
        z = f(*xs)
        z.retain_grad()
        z.register_hook(lambda g: heard.append(("z", g)) or g * 3)
        z.register_hook(lambda g: heard.append("removed")).remove()
        z.grad_fn.register_prehook(lambda gs: heard.append(("before", *gs)) or (gs[0] * 2,))
        z.grad_fn.register_hook(lambda dxs, gs: heard.append(("after", [d for d in dxs if d is not None], *gs)))
        for x in xs:
            x.register_hook(lambda g: heard.append(("x", g)) or g + 1)
            x.register_post_accumulate_grad_hook(lambda x: heard.append(("accumulated", x.grad.clone())))
        graph.register_multi_grad_hook(xs, lambda gs: heard.append(("all", *gs)))
        graph.register_multi_grad_hook([*xs, z], lambda g: heard.append(("first", g)), mode="any")
        return backward(z, *xs), z.grad, heard

    assert_as_torch(use, row, call, device)


@every_call
@by_path
def test_hooks_of_modules_get_the_same(row, call, device):
    def use(f, *xs):
        class Model(torch.nn.Module):
            forward = staticmethod(f)

        heard, model = [], Model()
        model.register_forward_pre_hook(lambda _, xs: heard.append(xs) or tuple(x * 2 for x in xs))
        model.register_forward_hook(lambda _, xs, z: heard.append((xs, z)) or z * 2)
        model.register_full_backward_pre_hook(lambda _, gs: heard.append(gs) or (gs[0] * 3,))
        model.register_full_backward_hook(lambda _, dxs, gs: heard.append((dxs, gs)) or tuple(d * 5 for d in dxs))
        return backward(model(*xs), *xs), heard

    assert_as_torch(use, row, call, device)


STOPPED = "pow(x, 0)", "sign(x)"  # their gradient is 0 whatever comes


@pytest.mark.parametrize(("row", "call"), [c for c in CALLS if c[1].name not in STOPPED], ids=ids)
@by_path
def test_anomaly_mode_names_the_operator_and_the_line_that_called_it(row, call, device):
    xs = [row.draw((2, 3, 2, 2), seed=i, device=device).requires_grad_() for i in range(call.arity)]
    with warnings.catch_warnings(record=True) as caught, torch.autograd.detect_anomaly():
        warnings.simplefilter("always")
        z = call.function(customops, *xs)
        with pytest.raises(RuntimeError, match=rf"(?i)Function '{row.node}(Number)?Backward' returned nan"):
            z.backward(torch.full_like(z, torch.nan))
    assert any("Traceback of forward call" in str(w.message) and __file__ in str(w.message) for w in caught)


@pytest.mark.filterwarnings("ignore:Anomaly Detection", "ignore:Error detected")
@pytest.mark.parametrize("name", [name for name in (*UNARY, *BINARY) if name not in ("sign_", "clamp_", "clamp_min_")])
def test_anomaly_mode_names_the_operator_of_an_in_place_call(name, device):
    z = torch.rand(3, device=device).requires_grad_() * 1
    with torch.autograd.detect_anomaly():
        getattr(customops, name)(z, *[1.7] * (name in BINARY))
        with pytest.raises(RuntimeError, match=rf"(?i)Function '{ROW[name[:-1]].node}\w*Backward' returned nan"):
            z.backward(torch.full_like(z, torch.nan))


FRAMES, OF_TORCH = 24, 5  # torch's: is_dynamo_compiling, and the methods of ctx that a setup_context calls


@pytest.mark.skipif(KERNELS, reason="a launch runs more, in Triton too")
@every_call
def test_recorded_call_runs_few_python_frames(row, call, device):
    """None of them binds arguments for torch: ``inspect`` alone would be 50, and most of the time of a call."""
    xs = [row.draw((2, 3, 2, 2), seed=i, device=device).requires_grad_() for i in range(call.arity)]
    call.function(customops, *xs)  # from here on its plan is known
    frames: list[str] = []
    sys.setprofile(lambda frame, event, _: frames.append(frame.f_globals["__name__"]) if event == "call" else None)
    try:
        call.function(customops, *xs)
    finally:
        sys.setprofile(None)
    others = [name for name in frames if name.partition(".")[0] not in ("customops", "tests")]
    assert len(frames) <= FRAMES, frames
    assert len(others) <= OF_TORCH, others
