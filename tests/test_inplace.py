"""The in-place twins: torch's value, gradients, refusals and errors."""

from __future__ import annotations

import pytest
import torch

import customops

from .cases import ids
from .compare import assert_equal, assert_same_outcome, outcome
from .conftest import DEVICE
from .inplace import BINARY, UNARY, twin


def ones(*shape, **options):
    return torch.ones(*shape, device=DEVICE, **options)


def rand(*shape, **options):
    return torch.rand(*shape, device=DEVICE, **options)


def run(library, name, x, *rest, view=lambda x: x, wanted=(True, True)):
    """Return value, first and second gradients of an in-place call on a copy of x, which autograd records."""
    leaves = [x.clone(), *(y.clone() for y in rest if isinstance(y, torch.Tensor))]
    leaves = [leaf.requires_grad_(wants) for leaf, wants in zip(leaves, wanted, strict=False)]
    target = leaves[0] * 1
    twin(library, name)(view(target), *(leaves[1:] or rest))
    result = [target]
    if target.requires_grad:
        inputs = [leaf for leaf in leaves if leaf.requires_grad]
        first = torch.autograd.grad((target * target).sum(), inputs, create_graph=True)
        loss = sum((g * g).sum() for g in first)
        result += [*first, *(torch.autograd.grad(loss, inputs, allow_unused=True) if loss.requires_grad else ())]
    return result


def test_a_wider_operand_is_rounded_with_the_result():
    """The sum is taken in the wider dtype: of -1 and 1 + 2^-30 it is 2^-30, and 0 where that is rounded first."""
    x, y = ones(300) * -1, ones(300, dtype=torch.float64) + 2.0**-30
    customops.add_(x, y)
    assert_equal(x, ones(300) * 2.0**-30)
    assert x[0] == 2.0**-30


VIEWS = {
    "whole": lambda x: x,
    "transposed": lambda x: x.t(),
    "row": lambda x: x[1],
    "slice": lambda x: x[:, ::2],
}


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=ids)
@pytest.mark.parametrize("name", UNARY)
def test_unary_twins_match_torch_twice_differentiated(name, dtype, view):
    x = rand(3, 3, dtype=dtype) + 0.5
    results = [run(library, name, x, view=VIEWS[view]) for library in (customops, torch)]
    _assert_all_equal(*results)


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True), (False, False)], ids=ids)
@pytest.mark.parametrize("y", [rand(3) + 0.5, rand(3, 3) + 0.5, 2, 1.5], ids=["row", "whole", "int", "float"])
@pytest.mark.parametrize("name", BINARY)
def test_binary_twins_match_torch_twice_differentiated(name, y, wanted):
    x = rand(3, 3) + 0.5
    results = [run(library, name, x, y, wanted=wanted) for library in (customops, torch)]
    _assert_all_equal(*results)


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize("name", ["add_", "sub_"])
def test_alpha_scales_the_other_operand(name):
    x, y = rand(3), rand(3)
    got, want = x.clone(), x.clone()
    assert twin(customops, name)(got, y, alpha=2.5) is got
    twin(torch, name)(want, y, alpha=2.5)
    assert_equal(got, want)


REFUSED = {
    "leaf": lambda: ones(3).requires_grad_(),
    "view of a leaf": lambda: ones(3).requires_grad_()[:2],
    "output of unbind": lambda: ones(2, 3).requires_grad_().mul(1).unbind()[0],
    "expanded": lambda: ones(1).expand(3),
    "integer": lambda: ones(3, dtype=torch.int64),
    "bool": lambda: ones(3, dtype=torch.bool),
    "number": lambda: 1.5,
    "view made under no_grad": lambda: _no_grad(ones(3).requires_grad_().mul(1)),
}


@pytest.mark.sample(compiled="case")
@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("name", [*UNARY, *BINARY])
def test_what_torch_refuses_is_refused_and_left_unwritten(name, case):
    got, want = REFUSED[case](), REFUSED[case]()
    rest = () if name in UNARY else (1.5,)
    assert_same_outcome(outcome(twin(customops, name), got, *rest), outcome(twin(torch, name), want, *rest))
    if isinstance(want, torch.Tensor):
        assert_equal(got.detach(), want.detach())


@pytest.mark.parametrize("name", BINARY)
def test_result_of_another_shape_or_dtype_is_refused(name):
    for y in (ones(2, 3), ones(4), ones(3, dtype=torch.complex64)):
        got, want = ones(3), ones(3)
        assert outcome(twin(torch, name), want, y) in (RuntimeError, ValueError)
        assert_same_outcome(outcome(twin(customops, name), got, y), outcome(twin(torch, name), want, y))


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize("name", BINARY)
def test_overlapping_operand_behaves_as_torchs(name):
    for other in (lambda x: x, lambda x: x.t(), lambda x: x[0]):
        got, want = (torch.arange(1.0, 10, device=DEVICE).reshape(3, 3) for _ in range(2))
        assert_same_outcome(
            outcome(twin(customops, name), got, other(got)), outcome(twin(torch, name), want, other(want))
        )


def test_backward_through_an_overwritten_value_raises():
    x = rand(3).requires_grad_()
    z = customops.exp(x)  # saves z
    customops.add_(z, 1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_version_counter_rises_without_autograd():
    x = rand(3)
    before = x._version
    customops.exp_(x)
    assert x._version > before


@torch.no_grad()
def _no_grad(base):
    return base[:2]


def _assert_all_equal(got, want):
    for mine, theirs in zip(got, want, strict=True):
        if theirs is None:
            assert mine is None
        else:
            assert_equal(mine.detach(), theirs.detach())
