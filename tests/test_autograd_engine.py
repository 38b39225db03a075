"""The engine takes and gives the same for our calls as for torch's: grad modes, cotangents, what is asked for."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import Function, graph

import customops

from .cases import LAYOUTS
from .compare import assert_as_torch, assert_same_outcomes, backward, cotangent
from .inplace import BINARY, UNARY, twin
from .marks import by_path, every_call


@pytest.fixture(autouse=True)
def _count(tally):
    tally("uses of autograd")


MODES = {
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "enabled": torch.enable_grad,
    "not disabled": lambda: torch.set_grad_enabled(True),
    "not inference": lambda: torch.inference_mode(False),
}


@pytest.mark.sample(formulas="operator, path*outer, path*inner, outer*inner", kernels="path, outer*inner")
@every_call
@pytest.mark.parametrize("inner", MODES)
@pytest.mark.parametrize("outer", MODES)
def test_grad_modes_decide_what_is_recorded(outer, inner, row, call, device):
    def use(f, *xs):
        with MODES[outer](), MODES[inner]():
            z = f(*xs)
        return z, z.requires_grad, z.is_inference(), z.grad_fn is None

    assert_as_torch(use, row, call, device)


@pytest.mark.parametrize("inside", [False, True], ids=["ordinary", "made inside"])
@pytest.mark.parametrize("name", [*UNARY, *BINARY])
def test_grad_modes_decide_what_is_recorded_in_place(name, inside, device):
    def run(library, other):
        x = torch.full((3,), 0.5, device=device, requires_grad=True)
        with torch.inference_mode(inside):
            z = x * 1
        with torch.inference_mode(), torch.enable_grad():
            twin(library, name)(z, *other)
        return z, z.requires_grad, z.is_inference(), z.is_leaf, 0 if inside else z._version

    for other in [(1.7,), (torch.tensor(1.7, device=device, requires_grad=True),)] if name in BINARY else [()]:
        assert_same_outcomes(run(customops, other), run(torch, other))


@every_call
@by_path
def test_inference_tensors_are_refused_exactly_where_torch_would_save_them(row, call, device):
    for inferred in range(call.arity):

        def use(f, *xs, inferred=inferred):
            ys = [x * 1 for x in xs]
            with torch.inference_mode():
                ys[inferred] = xs[inferred] * 1
            z = f(*ys)
            return z, backward(z, *xs) if z.requires_grad else None

        assert_as_torch(use, row, call, device, raises=None)


@every_call
@by_path
def test_backward_disregards_the_grad_mode_around_it(row, call, device):
    for mode in (torch.no_grad, torch.enable_grad):

        def use(f, *xs, mode=mode):
            z = f(*xs)
            with mode():
                grads = torch.autograd.grad(z, xs, cotangent(z), create_graph=True)
                plain = torch.autograd.grad(z, xs, cotangent(z))
            return grads, [g.requires_grad for g in (*grads, *plain)]

        assert_as_torch(use, row, call, device)


class Nothing(Function):
    """The identity, with no gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return None


@every_call
@by_path
def test_gradients_that_do_not_arrive_go_no_further(row, call, device):
    """Zeros in their place would be stepped on by optimizers, and be nan where a slope is inf."""
    assert_as_torch(lambda f, *xs: backward(Nothing.apply(f(*xs)), *xs), row, call, device)


@pytest.mark.parametrize("name", [*UNARY, *BINARY])
def test_gradients_that_do_not_arrive_go_no_further_in_place(name, device):
    x = torch.rand(3, device=device, requires_grad=True)
    z = x * 1
    twin(customops, name)(z, *[1.7] * (name in BINARY))
    assert backward(Nothing.apply(z), x) == [None]


COTANGENTS = {
    "expanded": lambda z: z.new_ones(()).expand(z.shape),
    "transposed": lambda z: LAYOUTS["transposed"](cotangent(z)),
    "sliced": lambda z: LAYOUTS["sliced"](cotangent(z)),
    "float32": lambda z: cotangent(z).float(),
    "integer": lambda z: cotangent(z).long(),
    "complex": lambda z: cotangent(z) + 1j,
    "another shape": lambda z: z.new_ones(7),
    "another device": lambda z: torch.empty_like(z, device="meta"),
}


@pytest.mark.sample(formulas="operator, path*kind", kernels="path, kind")
@every_call
@pytest.mark.parametrize("kind", COTANGENTS)
def test_every_kind_of_cotangent_is_taken_or_refused_as_torch_does(kind, row, call, device):
    def use(f, *xs):
        z = f(*xs)
        return torch.autograd.grad(z, xs, COTANGENTS[kind](z))

    assert_as_torch(use, row, call, device, raises=None)


@every_call
@by_path
def test_batches_of_cotangents_give_batches_of_gradients(row, call, device):
    def use(f, *xs):
        z = f(*xs)
        return torch.autograd.grad(z, xs, torch.stack([cotangent(z), torch.ones_like(z)]), is_grads_batched=True)

    assert_as_torch(use, row, call, device)


@pytest.mark.sample(formulas="operator, path*options", kernels="path, options")
@every_call
@pytest.mark.parametrize("options", [{}, {"allow_unused": True}, {"materialize_grads": True}], ids=str)
def test_what_was_not_used_is_missing_as_in_torch(options, row, call, device):
    def use(f, *xs):
        z, unused = f(*xs), torch.ones(2, device=device, requires_grad=True)
        return torch.autograd.grad(graph.get_gradient_edge(z), [*xs, unused], cotangent(z), **options)

    assert_as_torch(use, row, call, device, raises=not options)


@every_call
@by_path
def test_a_tensor_used_many_times_gets_the_sum(row, call, device):
    def use(f, *xs):
        z = f(*[xs[0]] * call.arity) + f(*xs) * f(*xs[::-1])
        z.backward(cotangent(z), inputs=xs[:1], retain_graph=True)
        alone = [x.grad is None or x.grad.clone() for x in xs]
        return alone, backward(z, *xs)

    assert_as_torch(use, row, call, device)


@pytest.mark.sample(formulas="operator, path*layout", kernels="path, layout")
@every_call
@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded", "channels_last"])
def test_accumulated_gradients_are_laid_out_as_torchs_and_share_no_memory(layout, row, call, device):
    def use(f, *xs):
        leaves = [LAYOUTS[layout](x.detach()).requires_grad_() for x in xs]
        z = f(*leaves)
        g = cotangent(z)
        z.backward(g, retain_graph=True)
        first = [x.grad for x in leaves]
        z.backward(g)
        memory = [t.untyped_storage().data_ptr() for t in (*first, g, z)]
        kept = [grad is x.grad for grad, x in zip(first, leaves, strict=True)]
        return [g.stride() for g in first], first, kept, [[a == b for a in memory] for b in memory]

    assert_as_torch(use, row, call, device, raises=None)
