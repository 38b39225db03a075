"""What torch makes of miniatures tells what it makes of the tensors; and a first call imports nothing large."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("hypothesis", reason="it draws the cases")
from hypothesis import given
from hypothesis import strategies as st

from customops.runtime.specs import CPU, Miniatures

from . import test_hypothesis  # noqa: F401 - loads the profile
from .marks import formulas_only
from .test_dispatch import python

pytestmark = formulas_only


@st.composite
def tensors(draw):
    """Draw up to three tensors that broadcast, dense in any order of dimensions, sliced, expanded or overlapping."""
    shape = draw(st.lists(st.integers(1, 5), max_size=4))
    return [draw(tensor(shape)) for _ in range(draw(st.integers(1, 3)))]


@st.composite
def tensor(draw, shape):
    """Draw a tensor that broadcasts to ``shape``."""
    sizes = [draw(st.sampled_from((n, n, n, 1))) for n in shape][draw(st.integers(0, len(shape))) % 2 :]
    if draw(st.integers(0, 3)) == 0:
        strides = [draw(st.sampled_from((0, 1, 2, 3, 4, 8, 16))) for _ in sizes]
        return torch.ones(400).as_strided(sizes, strides)
    order = draw(st.permutations(range(len(sizes))))
    spaced = [sizes[d] * draw(st.sampled_from((1, 1, 1, 2))) for d in order]
    x = torch.ones(spaced, dtype=draw(st.sampled_from((torch.float32, torch.float32, torch.float64))))
    x = x.permute([order.index(d) for d in range(len(sizes))])
    return x[tuple(slice(None, None, m // n) for n, m in zip(sizes, x.shape, strict=True))]


@given(tensors(), st.data())
def test_miniatures_have_the_results_shapes_and_strides(xs, data):
    """Strides along dimensions of size 1 are left out: there torch's own differ from those of its meta tensors."""
    formula = (torch.exp, torch.add, torch.where)[len(xs) - 1]
    if len(xs) == 3:
        xs[0] = xs[0] > 0
    if len(xs) == 1 and xs[0].dim():
        dim, keepdim = data.draw(st.integers(-xs[0].dim(), xs[0].dim() - 1)), data.draw(st.booleans())
        formula = data.draw(st.sampled_from((torch.exp, lambda x: torch.sum(x, dim, keepdim))))
    want = formula(*xs)
    miniatures = Miniatures(xs, CPU)
    got = miniatures.spec(formula(*map(miniatures.of, xs)))
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    assert _beyond_one(got.shape, got.strides) == _beyond_one(want.shape, want.stride())


@given(st.lists(st.integers(1, 5), max_size=4), st.data())
def test_results_of_dense_miniatures_are_laid_out_as_torchs_in_every_dimension(shape, data):
    order = data.draw(st.permutations(range(len(shape))))
    x = torch.ones([shape[d] for d in order]).permute([order.index(d) for d in range(len(shape))])
    miniatures = Miniatures([x], CPU)
    assert miniatures.spec(miniatures.of(x) + miniatures.of(x)).strides == (x + x).stride()


def test_miniatures_of_huge_tensors_are_small():
    x, y = torch.empty(1).expand(2**40, 2**20, 3), torch.empty(2**20, 1)
    miniatures = Miniatures([x, y], CPU)
    assert miniatures.of(x).untyped_storage().nbytes() + miniatures.of(y).untyped_storage().nbytes() <= 64
    assert miniatures.spec(miniatures.of(x) * miniatures.of(y)).shape == x.shape


FIRST_CALLS = """
import os, sys, torch, customops
from customops.nn.functional import elu
from examples.layers import layer_norm, rms_norm, softmax

x, w, b = (torch.randn(shape, requires_grad=True) for shape in ((4, 8), (8,), (8,)))
customops.add(x, b).sum().backward()
for z in layer_norm(x, w, b), rms_norm(x, w), softmax(x), softmax(customops.exp(x.t())):
    z.sin().sum().backward()
if "TRITON_INTERPRET" not in os.environ:  # by blocks, where a formula chooses
    elu(x.repeat(1 << 13, 1)).sum().backward()
graph = layer_norm.program(x, w, b)
print(*[name for name in ("sympy", "torch._dynamo", "torch._inductor") if name in sys.modules])
"""


@pytest.mark.parametrize("kernels", [False, True], ids=["formulas", "kernels"])
def test_first_calls_import_neither_sympy_nor_dynamo(kernels):
    """Those take seconds; torch brings them in when it computes with meta tensors."""
    if kernels:
        pytest.importorskip("triton", reason="without Triton there are no kernels")
    environment = {"TRITON_INTERPRET": "1", "CUSTOMOPS_BACKEND": "triton"} if kernels else {}
    done = python(FIRST_CALLS, **environment)
    assert (done.stdout.split(), done.stderr) == ([], "")


def _beyond_one(shape, strides):
    return [stride for n, stride in zip(shape, strides, strict=True) if n != 1]
