"""Arguments of every odd kind: ours and torch's outcome, value, gradient or type of error, are the same."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

import customops

from .compare import assert_same_outcome, outcome
from .conftest import DEVICE, KERNELS


def leaf(*shape, dtype=torch.float32):
    return (torch.arange(1.0, 1 + torch.Size(shape).numel()).reshape(shape) / 2).to(DEVICE, dtype).requires_grad_()


def ones(*shape, **options):
    return torch.ones(*shape, device=DEVICE, **options)


def tensor(values, **options):
    return torch.tensor(values, device=DEVICE, **options)


def gradient(z, x):
    return torch.autograd.grad(z.sum(), x)[0]


def _of_power(make, numpy_scalar):
    def function(lib):
        x = leaf(3)
        return gradient(make(lib, x, numpy_scalar), x)

    return function


def _mutated_axes(lib):
    x, axes = leaf(2, 2), [0]
    z = lib.sum(x, axes)
    axes[0] = 1
    return torch.autograd.grad(z, x, tensor([1.0, 2.0]))[0]


def _second_backward(lib):
    x = leaf(3)
    z = lib.add(x, 1).sum()
    z.backward()
    z.backward()
    return x.grad


def _inference_tensor(lib):
    with torch.inference_mode():
        x = ones(2)
    return lib.exp_(x)


def _wider_exponent(base):
    def function(lib):
        y = leaf(1, dtype=torch.float64)
        return gradient(lib.pow(tensor([3], dtype=base), y), y)

    return function


def _aliased_out(lib):
    x = torch.arange(1, 25, dtype=torch.int32, device=DEVICE)
    return lib.exp(x[:8], out=x.view(torch.float64)[:8])


def _gradient_of(function, *shape):
    def run(lib):
        x = leaf(*shape)
        return gradient(function(lib, x), x)

    return run


def _shifted_out(lib):
    x = ones(5)
    return lib.exp(x[:-1], out=x[1:])


def _second_of_nothing(lib):
    x, g = leaf(0, 2), leaf()
    (dx,) = torch.autograd.grad(lib.mean(x), x, g, create_graph=True)
    return gradient(dx, g)


def _batching_rule(lib):
    operator = torch.library.custom_op("customops_tests::copied", _copied, mutates_args=())
    operator.register_vmap(lambda _, dims, x: (lib.exp(x), dims[0]))
    return torch.vmap(operator)(leaf(3, 2))


def _copied(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


TRUE = tensor([True])
COMPLEX = "a complex number"


def _complex_half(name, lib):
    x = torch.tensor(1.5, dtype=torch.float16).requires_grad_()
    z = getattr(lib, name)(x, 2 + 1j)
    return torch.autograd.grad(z, x, torch.ones_like(z))[0]


CASES = {
    "sum written to": lambda lib: lib.sum(leaf(2, 3), 0).add_(1),
    "mean written to by ours": lambda lib: lib.mul_(lib.mean(leaf(2, 3)), 2),
    **{
        f"{kind.__name__} {side}": _of_power(make, kind(2))
        for kind in (np.float64, np.float32, np.int64, np.uint8, np.bool_)
        for side, make in {"exponent": lambda lib, x, n: lib.pow(x, n), "base": lambda lib, x, n: lib.pow(n, x)}.items()
        if not (kind is np.bool_ and side == "base")  # torch fails an assertion of its own
    },
    "numpy dim": _gradient_of(lambda lib, x: lib.sum(x, np.int64(1)), 2, 3),
    "tensor dim": _gradient_of(lambda lib, x: lib.mean(x, tensor(1)), 2, 3),
    "dim list changed before backward": _mutated_axes,
    "bfloat16 base, wider exponent": _wider_exponent(torch.bfloat16),
    "integer base, wider exponent": _wider_exponent(torch.int64),
    "second backward": _second_backward,
    "alpha is a 0-dim tensor": lambda lib: lib.add(ones(2), ones(2), alpha=tensor(2.0)),
    "alpha wants a gradient": lambda lib: lib.sub(ones(2), ones(2), alpha=leaf()),
    "alpha wants a gradient under a transform": lambda lib: torch.func.grad(lambda a: lib.add(1.0, a, alpha=a))(leaf()),
    "alpha is a string": lambda lib: lib.add(ones(2), ones(2), alpha="2"),
    "alpha is None": lambda lib: lib.sub(ones(2), ones(2), alpha=None),
    "bool alpha": lambda lib: lib.add(ones(2), ones(2), alpha=True),
    "float alpha of integers": lambda lib: lib.add(ones(2).int(), 1, alpha=1.5),
    "negative alpha of bool": lambda lib: lib.add(TRUE, TRUE, alpha=-1),
    "dtype=float": _gradient_of(lambda lib, x: lib.sum(x, dtype=float), 3),
    "dtype=str": _gradient_of(lambda lib, x: lib.sum(x, dtype="float32"), 3),
    "dtype=int": _gradient_of(lambda lib, x: lib.sum(x, dtype=int), 3),
    "dtype=float without a gradient": lambda lib: lib.sum(ones(3), dtype=float),
    "dtype=str without a gradient": lambda lib: lib.mean(ones(3), dtype="a"),
    "integer dtype with a gradient": _gradient_of(lambda lib, x: lib.sum(x, dtype=torch.int64), 3),
    "mean of nothing, twice differentiated": _second_of_nothing,
    "inside a batching rule": _batching_rule,
    "inference tensor in place": _inference_tensor,
    "functionalize": lambda lib: torch.func.functionalize(lib.exp)(ones(2)),
    "functionalize out": lambda lib: torch.func.functionalize(lambda x, o: lib.exp(x, out=o))(
        leaf(2).data, leaf(2).data
    ),
    "out is a string": lambda lib: lib.exp(ones(2), out="a"),
    "out is a list": lambda lib: lib.sum(ones(2), 0, out=[1]),
    "out shares memory in another dtype": _aliased_out,
    "out shifted over its input": _shifted_out,
    "out wants a gradient": lambda lib: lib.exp(ones(2), out=ones(2, requires_grad=True)),
    "out of an input that wants one": lambda lib: lib.exp(leaf(2), out=ones(2)),
    "keepdim without dim": lambda lib: lib.mean(ones(2), keepdim=True),
    "keepdim=False without dim": lambda lib: lib.sum(ones(2), keepdim=False),
    "keepdim=1": lambda lib: lib.sum(ones(2), 0, 1),
    "dim=True": lambda lib: lib.sum(ones(2, 2), True),
    "dim=1.5": lambda lib: lib.sum(ones(2, 2), 1.5),
    "dim out of range": lambda lib: lib.mean(ones(2, 2), 2),
    "dim twice": lambda lib: lib.mean(ones(2, 2), (0, -2)),
    "dim=[]": lambda lib: lib.sum(ones(2, 2), []),
    "amax without axes": _gradient_of(lambda lib, x: lib.amax(x, None), 2, 3),
    "keepdim of amax without dim": lambda lib: lib.amax(ones(2, 3), keepdim=True),
    "out of amin without dim": lambda lib: lib.amin(ones(2, 3), out=ones(2)),
    "amax of nothing": lambda lib: lib.amax(ones(0, 2)),
    "amin of an axis of nothing": lambda lib: lib.amin(leaf(0, 2), 0),
    "amax beside nothing": _gradient_of(lambda lib, x: lib.amax(x, 1), 0, 2),
    "amax of bool": lambda lib: lib.amax(tensor([[True, False], [False, False]]), 1),
    "amin of integers": lambda lib: lib.amin(tensor([[3, -5], [-(2**62), 7]]), 0),
    "amax over True": lambda lib: lib.amax(ones(2, 2), True),
    "amax in another dtype": lambda lib: lib.amax(ones(2, 2), 0, dtype=torch.float64),
    "amax into another dtype": lambda lib: lib.amax(ones(2, 2), 0, out=ones(2).double()),
    "two numbers": lambda lib: lib.add(2, 3, alpha=2),
    "two numbers to a power": lambda lib: lib.pow(2, 3),
    "list": lambda lib: lib.exp([1.0]),
    "None": lambda lib: lib.mul(ones(2), None),
    "int8 to 300": lambda lib: lib.pow(ones(2, dtype=torch.int8), 300),
    "integer to -1": lambda lib: lib.pow(ones(2, dtype=torch.int64), -1),
    "2**64": lambda lib: lib.add(ones(2).long(), 2**64),
    "bool minus bool": lambda lib: lib.sub(TRUE, TRUE),
    "relu of bool": lambda lib: lib.relu(TRUE),
    "abs of bool": lambda lib: lib.abs(TRUE),
    "neg of bool": lambda lib: lib.neg(TRUE),
    "neg of uint8": lambda lib: lib.neg(ones(2, dtype=torch.uint8)),
    "neg into another dtype": lambda lib: lib.neg(ones(2), out=ones(2, dtype=torch.float64)),
    "integers divided": lambda lib: lib.div(ones(2).int(), 3),
    "div of two numbers": lambda lib: lib.div(2, 3),
    "div by 0": _gradient_of(lambda lib, x: lib.div(x, 0), 3),
    "div into integers": lambda lib: lib.div(ones(2), 2, out=ones(2).int()),
    **{
        f"div, {mode}": _gradient_of(lambda lib, x, mode=mode: lib.div(x, 0.7, rounding_mode=mode), 3)
        for mode in ("trunc", "floor", "none")
    },
    "div to the floor in place": lambda lib: lib.div_(ones(2), 0.7, rounding_mode="floor"),
    "integers divided in place": lambda lib: lib.div_(ones(2).int(), 2),
    "maximum with a number": lambda lib: lib.maximum(leaf(2), 1),
    "minimum of numbers": lambda lib: lib.minimum(1, 2),
    "maximum of mixed dtypes": _gradient_of(lambda lib, x: lib.maximum(x, tensor([1, 0, 2])), 3),
    "minimum of complex numbers": lambda lib: lib.minimum(leaf(2), ones(2) + 1j),
    "mean of integers": lambda lib: lib.mean(ones(2).int()),
    **{f"{name} of a half without axes and {COMPLEX}": partial(_complex_half, name) for name in ("mul", "add", "sub")},
    "shapes that do not broadcast": lambda lib: lib.mul(ones(2), ones(3)),
    "a number as out": lambda lib: lib.exp(ones(2), out=3),
    "a number as out of a sum": lambda lib: lib.sum(ones(2), 0, out=3),
    "out expanded": lambda lib: lib.sum(ones(3, 4), 0, out=ones(1, 4).expand(3, 4)),
    "uint16": lambda lib: lib.add(ones(2, dtype=torch.uint16), 1),
}


WITHOUT_A_KERNEL = {name: "<class 'complex'>" for name in CASES if name.endswith(COMPLEX)} | {
    "minimum of complex numbers": r"torch\.complex64",
    "uint16": r"torch\.uint16",
}


class TorchWithTwins:
    """A stand-in for torch, with functions for the in-place operators that torch spells as methods alone."""

    mul_, div_ = staticmethod(torch.Tensor.mul_), staticmethod(torch.Tensor.div_)

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.mark.parametrize("name", CASES)
def test_odd_arguments_have_torchs_outcome(name):
    if KERNELS and name in WITHOUT_A_KERNEL:
        with pytest.raises(RuntimeError, match=f"backend 'triton' has no kernel for {WITHOUT_A_KERNEL[name]}"):
            CASES[name](customops)
        return
    assert_same_outcome(outcome(CASES[name], customops), outcome(CASES[name], TorchWithTwins()))


@pytest.mark.skipif(not KERNELS, reason="the formula takes it")
def test_complex_dtype_of_a_sum_has_no_kernel():
    with pytest.raises(RuntimeError, match=r"sum: backend 'triton' has no kernel for torch\.complex64"):
        customops.sum(ones(2), dtype=torch.complex64)


POWERS = {
    "the smallest integer": lambda: (leaf(2), tensor([-128, 0], dtype=torch.int8)),
    "a bool": lambda: (leaf(2), tensor([True, False])),
    "an exponent that its base's dtype cannot hold": lambda: (tensor([0.0, 1.0]).half().requires_grad_(), tensor(1e-8)),
    "a number that no float32 holds": lambda: (leaf(2), 1e39),
    "a base that no float32 holds": lambda: (1e-50, tensor([0.0, 1.0]).requires_grad_()),
    "a base that the exponent's dtype cannot hold": lambda: (tensor(1e-8), tensor([0.0, -1.0]).half().requires_grad_()),
    "a negative number to complex ones": lambda: (-2, tensor([1 + 1j]).requires_grad_()),
    "a complex half": lambda: (tensor([0.0, 4.0]).requires_grad_(), 0.5 + 0j),
}


@pytest.mark.skipif(KERNELS, reason="a kernel computes in the dtype of the result, as torch's on a GPU")
@pytest.mark.parametrize("make", POWERS.values(), ids=POWERS)
def test_powers_at_the_ends_of_dtypes_have_torchs_gradients(make):
    results = []
    for lib in (customops, torch):
        x, y = make()
        leaves = [v for v in (x, y) if isinstance(v, torch.Tensor) and v.requires_grad]
        results.append(outcome(lambda lib=lib, x=x, y=y, ls=leaves: torch.autograd.grad(lib.pow(x, y).abs().sum(), ls)))
    got, want = results
    if isinstance(want, type):
        assert got is want
    else:
        torch.testing.assert_close(got, want, equal_nan=True)


def test_result_of_a_root_may_be_written_over():
    x = leaf(3)
    z = customops.pow(x, 0.5)
    z.add_(1e-6)
    torch.testing.assert_close(gradient(z, x), 0.5 * x.detach() ** -0.5)


WRAPPED = {
    "added": lambda lib: lib.add(ones(2).long(), 2**63),
    "a factor of narrower ones": lambda lib: lib.mul(ones(2).int(), 2**64 - 1),
    "alpha": lambda lib: lib.sub(ones(2).long(), ones(2).long(), alpha=2**63),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_integers_past_63_bits_wrap_as_torchs(name):
    assert_same_outcome(outcome(WRAPPED[name], customops), outcome(WRAPPED[name], torch))


def test_keepdim_of_an_extremum_needs_no_dim():
    """Torch's sum wants a dim with it; here nothing is missing, so the operator is ours."""
    z = customops.amax(leaf(2, 3), keepdim=True)
    assert z.shape == (1, 1)
    assert z.grad_fn._forward_cls is customops.ops.reductions.Amax


def test_what_does_not_move_has_no_tangent():
    """At 0 the slope of a power along its base is inf, and 0·inf would be nan."""
    x, y, ones_ = tensor([0.0]), tensor([0.7]), ones(1)
    _, tangent = torch.func.jvp(lambda v: customops.pow(x, v), (y,), (ones_,))
    assert tangent.item() == 0
