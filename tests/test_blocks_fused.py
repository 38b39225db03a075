"""Fused layers on a CPU by blocks: values and gradients, however small the blocks are and however tensors lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

import customops
from benchmarks.fused.gallery import IN_TORCH
from customops.blocks import plan
from customops.nn import functional

from .cases import EDGES, LAYOUTS, ids
from .compare import cotangent
from .conftest import DEVICE, KERNELS
from .layers_by_blocks import BY_NAME, LAYERS, ROWS, Layer

if KERNELS or DEVICE != "cpu":
    pytest.skip("kernels compute fused calls, and blocks none", allow_module_level=True)
USUAL = plan.BLOCK_BYTES // 8
ELEMENTS = (1, 2, 3, 7, 30, USUAL)  # of a block in float64, twice that in float32
DTYPES = torch.float64, torch.float32, torch.bfloat16, torch.float16
ROUNDING = {torch.float64: 2.0**-53}  # of the dtype in which values are computed: float32, if it is not here
UNALIGNED = "one element off"
PLACED = {**LAYOUTS, UNALIGNED: lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)}


def several(returned: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [returned] if isinstance(returned, Tensor) else list(returned)


def values_and_gradients(function: Callable, xs: Sequence[Tensor], gs: Sequence[Tensor] | None = None) -> list[Tensor]:
    """Return the results, and the gradients of inputs that can have one, for the cotangents that results have."""
    xs = [x.detach().requires_grad_(x.is_floating_point()) for x in xs]
    zs = several(function(*xs))
    leaves = [x for x in xs if x.requires_grad]
    gs = [g.to(z.dtype) for g, z in zip(gs or map(cotangent, zs), zs, strict=True)]
    return [z.detach() for z in zs] + list(torch.autograd.grad(zs, leaves, gs))


def truth(layer: Layer, xs: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """Return what is exact for these inputs, and the cotangents that results of these dtypes get."""
    exact = [x.double() if x.is_floating_point() else x for x in xs]
    zs = several(layer.torchs(*exact))
    return values_and_gradients(layer.torchs, exact, [cotangent(z).to(mine) for z, mine in zip(zs, like, strict=False)])


def assert_rounded(got: Sequence[Tensor], want: Sequence[Tensor], results: int) -> None:
    """Assert that results are rounded once, to their dtype; gradients too, but for what they read of results."""
    largest = max(float(z.abs().max()) for z in want)
    for k, (mine, true) in enumerate(zip(got, want, strict=True)):
        assert mine.shape == true.shape
        info = torch.finfo(mine.dtype)
        between = 64 * ROUNDING.get(mine.dtype, 2.0**-24) * largest
        allowed = info.eps * true.abs() / 2 + info.smallest_normal * info.eps + between
        if k >= results and info.bits == 16:
            allowed += 2 * info.eps * largest  # of a result that is saved
        excess = ((mine.double() - true).abs() - allowed).max()
        assert excess <= 0, f"result {k}: off by {excess} more than rounding; {mine} is not {true}"


def assert_as_torchs(layer: Layer, xs: Sequence[Tensor]) -> list[Tensor]:
    """Assert values and gradients for these inputs; return them."""
    got = values_and_gradients(layer.ours, xs)
    results = len(got) - sum(x.is_floating_point() for x in xs)
    assert_rounded(got, truth(layer, xs, got[:results]), results)
    return got


@pytest.mark.sample(formulas="layer*elements, layer*dtype, elements*dtype")
@pytest.mark.parametrize("elements", ELEMENTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("layer", LAYERS, ids=ids)
def test_layers_by_blocks_have_torchs_values_and_gradients(layer, dtype, elements, blocks):
    blocks(elements)
    got = assert_as_torchs(layer, layer.draw(dtype))
    for once, again in zip(got, values_and_gradients(layer.ours, layer.draw(dtype)), strict=True):
        assert torch.equal(once, again), "the same bits at every call"


@pytest.mark.sample(formulas="layer*layout, layout*elements, layout*dtype")
@pytest.mark.parametrize("layout", list(PLACED)[1:])
@pytest.mark.parametrize("elements", ELEMENTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("layer", LAYERS, ids=ids)
def test_layers_by_blocks_take_any_layout(layer, dtype, elements, layout, blocks):
    blocks(elements)
    xs = [PLACED[layout](x) for x in layer.draw(dtype)]
    for leaf, dx in zip(xs, assert_as_torchs(layer, xs)[-len(xs) :], strict=True):
        is_expanded = any(n > 1 and stride == 0 for n, stride in zip(dx.shape, dx.stride(), strict=True))
        assert is_expanded or dx.stride() == torch.empty_like(leaf).stride()


@pytest.mark.sample(formulas="layer*elements")
@pytest.mark.parametrize("elements", [2, 7, USUAL])
@pytest.mark.parametrize("layer", [layer for layer in LAYERS if len(layer.shapes) > 1], ids=ids)
def test_layers_by_blocks_take_mixed_dtypes(layer, elements, blocks):
    blocks(elements)
    for first, others in ((torch.float32, torch.bfloat16), (torch.float16, torch.float32)):
        xs = layer.draw(first)
        assert_as_torchs(layer, [xs[0], *(x.to(others) for x in xs[1:])])


@pytest.mark.parametrize("elements", [1, 3, 7, USUAL])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64], ids=ids)
def test_integers_and_bools_are_operands(dtype, elements, blocks):
    blocks(elements)
    layer = Layer(
        "masked",
        customops.fuse(lambda x, m: customops.sum(customops.exp(x) * m, -1, keepdim=True) + x * m),
        lambda x, m: torch.sum(torch.exp(x) * m, -1, keepdim=True) + x * m,
        (ROWS, ROWS),
    )
    x, m = layer.draw()
    assert_as_torchs(layer, [x, (m > 0).to(dtype)])


@pytest.mark.parametrize("elements", [2, 7, USUAL])
def test_views_of_one_tensor_are_two_operands(elements, blocks):
    blocks(elements)
    both = torch.randn(5, 22)
    for x, gate in (both.chunk(2, -1), (both[:, ::2], both[:, 1::2]), (both[:, :11], both[:, :11])):
        assert_as_torchs(BY_NAME["swiglu"], [x, gate])
        assert_as_torchs(BY_NAME["swiglu"], [x, gate.flip(0)])


@pytest.mark.parametrize("elements", [2, 7, USUAL])
def test_numbers_of_another_call_are_its_own(elements, blocks):
    """They are told apart though some are equal: 1 and True, 0.0 and -0.0."""
    blocks(elements)
    (x,) = BY_NAME["softmax"].draw()
    scaled = customops.fuse(lambda x, a: (customops.sum(x * a, -1, keepdim=True) + a, customops.exp(x) * a))
    for a in (0.3, 0.7, 1, True, 1.0, -0.0, 0.0, 2, 1e30, float("inf")):
        total, product = scaled(x, a)
        torch.testing.assert_close(total, torch.sum(x * a, -1, keepdim=True) + a, equal_nan=True)
        torch.testing.assert_close(1 / product, 1 / (torch.exp(x) * a))


@pytest.mark.parametrize("elements", [2, 7, USUAL])
@pytest.mark.parametrize("other", [torch.float64, torch.float32, torch.int64], ids=ids)
def test_operands_are_rounded_to_the_common_dtype(other, elements, blocks):
    """A number without axes, or an integer, is one of the half type that the others have."""
    blocks(elements)
    x = BY_NAME["softmax"].draw(torch.bfloat16)[0]
    y = torch.full((11,) if other == torch.int64 else (), 257.3).to(
        other
    )  # of which bfloat16 has neither 257.3 nor 257
    got = customops.fuse(lambda x, y: customops.sqrt(customops.exp(x) * y))(x, y)
    want = (x.double().exp() * y.bfloat16().double()).sqrt()
    assert_rounded([got], [want], 1)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=ids)
@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
def test_tensors_of_one_element_are_computed_in_their_dtype(dtype, shape, blocks):
    """Torch would take a number in double precision for one of several tensors without axes, and widen the others."""
    blocks(1)
    for name in ("powers", "power_of_maximum", "signed_terms"):
        assert_as_torchs(BY_NAME[name], BY_NAME[name].draw(dtype, shapes=(shape, shape)))


def test_sums_of_many_blocks_are_as_exact_as_of_one(blocks):
    blocks(10)
    x = torch.full((1000, 20), 0.1)
    total, mean = customops.fuse(lambda x: (customops.sum(x), customops.mean(x * x)))(x)
    torch.testing.assert_close(total.double(), x.double().sum(), rtol=2.0**-23, atol=0)
    torch.testing.assert_close(mean.double(), (x.double() ** 2).mean(), rtol=2.0**-23, atol=0)


@pytest.mark.parametrize("elements", [2, 7, USUAL])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_special_numbers_stay_in_their_row(number, elements, blocks):
    blocks(elements)
    for name in ("softmax", "layer_norm", "rms_norm"):
        layer = BY_NAME[name]
        xs = layer.draw()
        xs[0][3, 4] = number
        zs, want = layer.ours(*xs), layer.torchs(*(x.double() for x in xs)).float()
        torch.testing.assert_close(zs, want, equal_nan=True, rtol=1e-5, atol=1e-5)


def of_gallery(name: str, *args) -> Layer:
    """Return the layer of a function of ``customops.nn.functional`` with these arguments, and of torch's operators."""
    ours, torchs = (getattr(library, name) for library in (functional, IN_TORCH))
    return Layer(name, lambda x: ours(x, *args), lambda x: torchs(x, *args), ())


def choice(name: str, function: Callable) -> Layer:
    return Layer(name, customops.fuse(lambda x: function(customops, x)), lambda x: function(torch, x), ())


CHOOSING = (
    of_gallery("leaky_relu"),
    of_gallery("elu", 0.5),
    of_gallery("hardswish"),
    of_gallery("hardsigmoid"),
    of_gallery("relu6"),
    of_gallery("hardtanh", -1.0, 1.0),
    of_gallery("hardshrink", 1.0),
    of_gallery("softshrink", 1.0),
    of_gallery("threshold", -1.0, 20.0),
    choice("where", lambda lib, x: lib.where(x > 0, x, 2 * x)),
    choice("where of 0", lambda lib, x: lib.where(x > 0, 0, x) + lib.where(x > 1, -x, 0)),
    choice("where of -0", lambda lib, x: lib.where(x > 0, -0.0, x)),
    choice("where of numbers", lambda lib, x: lib.where(x < 1, 1.5, -0.0) * x),
    choice("clamp", lambda lib, x: lib.clamp(x, -1, 1)),
)


@pytest.mark.parametrize("elements", [2, 7, USUAL])
@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("layer", CHOOSING, ids=ids)
def test_what_is_not_chosen_does_not_show(layer, dtype, elements, blocks, walked):
    """Each special number meets each special gradient: an infinite one times 0 would be nan."""
    numbers = torch.tensor((*EDGES, 3.0, -3.0, 6.0)).to(dtype)  # bounds of some layers, too
    x, g = numbers.repeat_interleave(len(numbers)), numbers.repeat(len(numbers))
    blocks(elements)
    got = values_and_gradients(layer.ours, [x], [g])
    assert walked
    computed = torch.promote_types(dtype, torch.float32)
    want = values_and_gradients(layer.torchs, [x.to(computed)], [g.to(computed)])
    for mine, true in zip(got, want, strict=True):
        torch.testing.assert_close(mine, true.to(mine.dtype), equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
def test_a_choice_keeps_signs_of_zeros(dtype, blocks):
    blocks(3)
    x = torch.tensor([0.0, -0.0, 1.0, -1.0], dtype=dtype)
    got = customops.fuse(lambda x: customops.where(x > 0, -x * 0, x))(x)
    want = torch.where(x > 0, -x * 0, x)
    assert got.signbit().tolist() == want.signbit().tolist() == [False, True, True, True]


KNOWN = {
    "a product with 1": lambda lib, x, y: x * 0 + 1 * y,
    "one side": lambda lib, x, y: lib.where(x > 0, y, y),
    "one side, of 0": lambda lib, x, y: lib.where(x > 0, 0, 0.0),
    "one side, of a number": lambda lib, x, y: lib.where(x > 0, 1.5, 1.5),
    "one side, by two formulas": lambda lib, x, y: lib.where(x > 0, lib.exp(y) * 1, lib.exp(y)),
}
REDUCED = {
    "each": lambda lib, z, x, y: z + x * y,
    "rows": lambda lib, z, x, y: x * y * lib.sum(z, -1, keepdim=True),
    "largest": lambda lib, z, x, y: x * y * lib.amax(z, -1, keepdim=True),
    "columns": lambda lib, z, x, y: lib.sum(z, 0) + lib.sum(x * y, 0),
    "all": lambda lib, z, x, y: lib.sum(z) * lib.sum(x * y),
}


@pytest.mark.filterwarnings("error:An output with one or more elements was resized")
@pytest.mark.parametrize("elements", [2, USUAL])
@pytest.mark.parametrize("shape", [(6,), (5, 1)], ids=str)
@pytest.mark.parametrize("reduced", REDUCED)
@pytest.mark.parametrize("known", KNOWN)
def test_what_is_known_is_read_along_all_axes(known, reduced, shape, elements, blocks):
    """A choice of y alone varies as its condition does, so that a sum has y once for each element of that."""
    blocks(elements)

    def function(lib, x, y):
        return REDUCED[reduced](lib, KNOWN[known](lib, x, y), x, y)

    generator = torch.Generator().manual_seed(0)
    xs = [torch.randn(each, generator=generator, dtype=torch.float64) for each in ((5, 6), shape)]
    got = values_and_gradients(customops.fuse(partial(function, customops)), xs)
    want = values_and_gradients(partial(function, torch), xs)
    torch.testing.assert_close(got, want)
