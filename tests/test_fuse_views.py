"""Views, slices and concatenations inside ``fuse``: torch's values, gradients and errors, in one kernel each way."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import customops
from customops import FusionError, fuse
from customops.compiler.axis_union import AxisUnion, NotNested
from customops.compiler.views import parts
from customops.fusion.decorator import fused_behind
from customops.fusion.function import why_not_fused

from .compare import STRICT, cotangent
from .conftest import KERNELS
from .views_drawn import laid_out, view_program

HEADS, LENGTH, WIDTH = 3, 5, 8


def rotate_half(x):
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def rotary(lib, q, cos, sin):
    return q * cos + rotate_half(q) * sin


def rotary_of_both(lib, q, k, cos, sin):
    cos, sin = cos.unsqueeze(0), sin.unsqueeze(0)
    return (q * cos) + (rotate_half(q) * sin), (k * cos) + (rotate_half(k) * sin)


def rotary_by_chunks(lib, q, cos, sin):
    first, second = q.chunk(2, -1)
    return q * cos + torch.cat((-second, first), -1) * sin


def rotary_interleaved(lib, q, cos, sin):
    turned = torch.stack((-q[..., 1::2], q[..., ::2]), -1).flatten(-2)
    return q * cos + turned * sin


def rotary_of_a_part(lib, q, cos, sin):
    turned, passed = q[..., :4], q[..., 4:]
    return torch.cat((rotary(lib, turned, cos[:, :4], sin[:, :4]), passed * 1.0), -1)


def glu(lib, x):
    a, b = x.chunk(2, -1)
    return a * lib.sigmoid(b)


def norm_of_heads(lib, x, weight):
    heads = x.view(*x.shape[:-1], 2, -1)
    heads = heads * lib.rsqrt(lib.mean(heads * heads, -1, keepdim=True) + 1e-6)
    return heads.flatten(-2) * weight


def normed_rotary_of_heads(lib, x, weight, cos, sin):
    heads = x.view(2, LENGTH, HEADS, WIDTH).transpose(1, 2)
    heads = heads * lib.rsqrt(lib.mean(heads * heads, -1, keepdim=True) + 1e-6) * weight
    return rotary(lib, heads, cos, sin)


def of_packed(lib, qkv):
    q, k, v = qkv.unflatten(-1, (3, -1)).unbind(-2)
    return lib.tanh(q) * k + v


def modulated(lib, x, modulation):
    shift, scale, gate = modulation.unsqueeze(1).chunk(3, dim=-1)
    centred = x - lib.mean(x, -1, keepdim=True)
    normed = centred * lib.rsqrt(lib.mean(centred * centred, -1, keepdim=True) + 1e-6)
    return gate * (normed * (1 + scale) + shift)


def group_norm(lib, x, weight):
    groups = x.unflatten(1, (2, -1))
    centred = groups - lib.mean(groups, (2, 3, 4), keepdim=True)
    normed = centred * lib.rsqrt(lib.mean(centred * centred, (2, 3, 4), keepdim=True) + 1e-5)
    return normed.flatten(1, 2) * weight[:, None, None]


ROTARY = ((2, HEADS, LENGTH, WIDTH), (LENGTH, WIDTH), (LENGTH, WIDTH))
LAYERS: dict[Callable, tuple] = {
    rotary: ROTARY,
    rotary_of_both: (*ROTARY[:1], (2, 1, LENGTH, WIDTH), *ROTARY[1:]),
    rotary_by_chunks: ROTARY,
    rotary_interleaved: ROTARY,
    rotary_of_a_part: ROTARY,
    glu: ((LENGTH, 2 * WIDTH),),
    norm_of_heads: ((LENGTH, WIDTH), (WIDTH,)),
    normed_rotary_of_heads: ((2, LENGTH, HEADS * WIDTH), (WIDTH,), *ROTARY[1:]),
    of_packed: ((LENGTH, 3 * WIDTH),),
    modulated: ((2, LENGTH, WIDTH), (2, 3 * WIDTH)),
    group_norm: ((2, 6, 3, 3), (6,)),
}
# A spelling, and the shape of x. Each is applied to a value and its result is used, so it is no view of an argument.
SPELLINGS: dict[str, tuple[int, ...]] = {
    "x.view(6, 4)": (2, 3, 4),
    "x.view(-1)": (2, 3, 4),
    "x.reshape(2, 12)": (2, 3, 4),
    "x.reshape((4, 2, 3))": (4, 6),
    "x.reshape_as(y)": (2, 3, 4),
    "x.view_as(y)": (2, 3, 4),
    "x.flatten()": (2, 3, 4),
    "x.flatten(1)": (2, 3, 4),
    "x.flatten(start_dim=0, end_dim=1)": (2, 3, 4),
    "torch.flatten(x, 1)": (2, 3, 4),
    "x.ravel()": (2, 3, 4),
    "x.unflatten(-1, (2, -1))": (2, 3, 4),
    "torch.unflatten(x, 2, (2, 2))": (2, 3, 4),
    "x.mT.contiguous().view(-1)": (2, 3, 4),
    "x.unsqueeze(1)": (2, 3),
    "torch.unsqueeze(x, -1)": (2, 3),
    "x.squeeze()": (2, 1, 3, 1),
    "x.squeeze(1)": (2, 1, 3, 1),
    "x.squeeze(dim=(1, -1))": (2, 1, 3, 1),
    "x[:, None]": (2, 3),
    "x[..., None]": (2, 3),
    "x[None, ..., None, :]": (2, 3),
    "x.transpose(0, 1)": (2, 3, 4),
    "torch.transpose(x, -1, 0)": (2, 3, 4),
    "x.permute(2, 0, 1)": (2, 3, 4),
    "x.permute((1, -1, 0))": (2, 3, 4),
    "torch.permute(x, (2, 1, 0))": (2, 3, 4),
    "x.movedim(0, -1)": (2, 3, 4),
    "torch.movedim(x, (0, 1), (1, 2))": (2, 3, 4),
    "torch.moveaxis(x, 0, 2)": (2, 3, 4),
    "x.swapaxes(0, 2)": (2, 3, 4),
    "x.swapdims(0, 1)": (2, 3, 4),
    "x.T": (2, 3),
    "x.mT": (2, 3, 4),
    "x.t()": (2, 3),
    "torch.t(x)": (3,),
    "x.expand(4, -1, 3)": (2, 1),
    "x.expand((2, 5))": (2, 1),
    "x.expand_as(y)": (1, 3, 1),
    "torch.broadcast_to(x, (4, 2, 3))": (2, 1),
    "x[..., :3]": (2, 8),
    "x[..., 3:]": (2, 8),
    "x[1:, -3:-1]": (4, 8),
    "x[:, 0]": (2, 3, 4),
    "x[-1]": (2, 3),
    "x[0, ..., 1]": (2, 3, 4),
    "x[..., ::2]": (2, 8),
    "x[..., 1::2]": (2, 8),
    "x[1::3]": (6, 2),
    "x[..., 1:7:3]": (2, 8),
    "x.narrow(1, 2, 3)": (2, 8),
    "torch.narrow(x, -1, -3, 2)": (2, 8),
    "x.select(1, -1)": (2, 3),
    "torch.select(x, 0, 1)": (2, 3),
    "x.chunk(2, -1)[1]": (2, 5),
    "torch.chunk(x, 3)[2]": (8, 2),
    "x.chunk(chunks=3, dim=0)[2]": (8, 2),
    "x.split(split_size=3)[2]": (8, 2),
    "x.split(3, dim=1)[2]": (2, 8),
    "torch.split(x, [1, 2, 5], -1)[1]": (2, 8),
    "x.tensor_split((2, 3), 1)[2]": (2, 8),
    "x.unbind(1)[1]": (2, 3, 4),
    "torch.unbind(x)[0]": (2, 3),
    "list(x)[1]": (2, 3),
    "torch.cat((x, x), 1)": (2, 3),
    "torch.cat([x, 2 * x[:, :1], x], -1)": (2, 3),
    "torch.concat((x, x))": (2, 3),
    "torch.concatenate((x, -x), dim=-1)": (2, 3),
    "torch.stack((x, 2 * x))": (2, 3),
    "torch.cat((x[:, :2] * 2, x[:, 2:], x[:, 3:]), -1)": (2, 3),
    "torch.cat((x.T[:, 2:], x.T), 1)": (2, 3),
    "torch.stack((x, -x, x), dim=-2)": (2, 3),
    "x.repeat(2, 3)": (2, 3),
    "x.repeat((2, 1, 3))": (2, 3),
    "x.repeat(repeats=(3, 1))": (2, 3),
    "x.repeat(1, 1)": (2, 3),
    "x.tile(2)": (2, 3),
    "torch.tile(x, (2, 1, 3))": (2, 3),
    "torch.tile(input=x, dims=(2,))": (2, 3),
    "x.repeat_interleave(2, -1)": (2, 3),
    "torch.repeat_interleave(x, 3, dim=0)": (2, 3),
    "torch.repeat_interleave(x, repeats=2)": (2, 3),
    "torch.stack((x, -x, 2 * x, x), -1).view(2, 3, 2, 2)": (2, 3),
    "torch.cat((x, x[:, :3]), 1).view(2, 4, 2).mT.flatten(1)": (2, 5),
    "x.view(2, 3, 4)[:, 1:].flatten(1)[:, 2:7]": (2, 12),
}


def drawn(shapes, device: str, layout: str = "dense", dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [laid_out(shape, layout, generator).to(device, dtype).requires_grad_() for shape in shapes]


def of(layer: Callable, lib: Any) -> Callable:
    """Return a layer as a function of tensors alone."""
    return lambda *xs: layer(lib, *xs)


def spelled(spelling: str, lib: Any) -> Callable:
    """Return a function of one tensor that uses this spelling."""
    names = {"lib": lib, "torch": torch}
    return eval(f"lambda x: (lambda x, y: lib.tanh({spelling}) + 0.5)(x * 1.5, (x * 2).expand(2, *x.shape)[0])", names)


def results(function: Callable, xs: list[Tensor]) -> list[Tensor | None]:
    """Return values, and gradients of them by each of ``xs``."""
    z = function(*xs)
    zs = z if isinstance(z, tuple) else (z,)
    live = [each for each in zs if each.requires_grad]
    return [*zs, *torch.autograd.grad(live, xs, [cotangent(each) for each in live], allow_unused=True)]


def compare(got: list[Tensor | None], want: list[Tensor | None], unit: float = 0.0) -> None:
    """Assert that tensors are close, and of those that were rounded to ``unit`` on the way as close as that allows."""
    largest = max([2.0, *(float(x.detach().abs().max()) for x in want if x is not None and x.numel())]) if unit else 0.0
    for mine, theirs in zip(got, want, strict=True):
        if mine is None or theirs is None:
            assert not any(each is not None and each.any() for each in (mine, theirs))
        elif unit:
            assert_close(mine, theirs, rtol=0, atol=1e-7 + 32 * unit * largest)
        else:
            assert_close(mine, theirs)


@pytest.mark.sample(kernels="")
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_spelling_has_torchs_values_strides_and_gradients(spelling, device, blocks):
    blocks(7)
    shape = SPELLINGS[spelling]
    xs = drawn([shape], device)
    if spelling.endswith("_as(y)"):
        spelling = spelling.replace("y", "x.expand(2, 3, 4)" if "expand" in spelling else "x.reshape(6, 4)")
    got, want = results(fuse(spelled(spelling, customops)), xs), results(spelled(spelling, torch), xs)
    compare(got, want)
    assert got[0].stride() == want[0].stride()
    assert is_fused(fuse(spelled(spelling, customops)), xs)


def is_fused(fused: Any, xs: list[Tensor]) -> bool:
    """Return whether kernels or blocks compute a call, where it is large enough."""
    behind = fused_behind(fused)
    return why_not_fused(*behind.trace(xs, (), tuple(xs), {})) is None


@pytest.mark.sample(kernels="layer, layout", compiled="layer")
@pytest.mark.parametrize("layout", ["dense", "permuted", "strided", "expanded", "unaligned"])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.__name__)
def test_a_layer_has_torchs_values_and_gradients_in_every_layout(layer, layout, device, blocks):
    blocks(7)
    xs = drawn(LAYERS[layer], device, layout)
    if layer in (norm_of_heads, normed_rotary_of_heads) and layout == "permuted":
        pytest.skip("torch has no such view")
    compare(results(fuse(of(layer, customops)), xs), results(of(layer, torch), xs))


@pytest.mark.sample(kernels="")
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.__name__)
def test_derivatives_of_both_orders_match_finite_differences(layer, device, blocks):
    blocks(7)
    xs = drawn(LAYERS[layer], device)
    assert gradcheck(fuse(of(layer, customops)), xs, fast_mode=True, **STRICT)
    assert gradgradcheck(fuse(of(layer, customops)), xs, fast_mode=True, **STRICT)


@pytest.mark.skipif(KERNELS, reason="what a GPU compiles, a dry run compiles too")
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.__name__)
def test_a_layer_is_one_kernel_each_way(layer):
    pytest.importorskip("triton", reason="without Triton there are no kernels")
    recorded = 2 if layer is rotary_of_both else 1
    xs = [x.detach().float().requires_grad_(i < recorded) for i, x in enumerate(drawn(LAYERS[layer], "cpu"))]
    with customops.dry_run() as records:
        z = fuse(of(layer, customops))(*xs)
        forward = len(records)
        torch.autograd.grad(z, xs[:recorded], [torch.empty_like(x) for x in (z if isinstance(z, tuple) else (z,))])
    # results of other shapes, or parts of other lengths, are written by kernels of their own
    assert forward == {rotary_of_both: 2, rotary_of_a_part: 2}.get(layer, 1)
    assert len(records) - forward == {rotary_of_both: 2, rotary_of_a_part: 2}.get(layer, 1)


@pytest.mark.sample(compiled="all")
def test_a_part_of_a_tensor_is_not_taken_for_aligned(device, blocks):
    """The second half of a row of 258 elements is not; the first half of one that is one element off is not either."""
    blocks(7)

    def f(lib, x):
        return lib.exp(x[:, :129]) * lib.exp(x[:, 129:])

    for layout in ("dense", "unaligned"):
        xs = drawn([(6, 258)], device, layout, torch.float32)
        compare(results(fuse(of(f, customops)), xs), results(of(f, torch), xs))


@pytest.mark.sample(compiled="all")
def test_one_kind_of_call_serves_aligned_tensors_and_others(device, blocks):
    """Kernels made for one alignment are not used for another, though the shapes are the same."""
    blocks(7)
    fused = fuse(of(glu, customops))
    for layout in ("unaligned", "dense", "unaligned", "strided", "dense"):
        xs = drawn([(4, 128)], device, layout, torch.float32)
        compare(results(fused, xs), results(of(glu, torch), xs))


MERGING = {  # what is made of a tensor of shape (2, 3, 8), and a view that torch has of it
    "a slice of rows": (lambda x: x[:, :, :4], lambda x: x.view(6, 4)),
    "a size of 1 with a stride of its own": (lambda x: x.as_strided((6, 1, 8), (8, 3, 1)), lambda x: x.view(48)),
    "one expanded": (lambda x: x[:, :1].expand(2, 3, 8), lambda x: x.transpose(0, 1).reshape(3, 16)),
    "permuted twice": (lambda x: x.permute(2, 0, 1), lambda x: x.permute(1, 2, 0).view(48)),
}


@pytest.mark.parametrize("name", MERGING)
def test_dimensions_are_joined_where_strides_allow(name, device, blocks):
    """Torch has a view of some tensors that are not dense, and none of others."""
    blocks(7)
    made, seen = MERGING[name]
    xs = [made(x).detach().requires_grad_() for x in drawn([(2, 3, 8)], device)]
    compare(results(fuse(lambda x: seen(x) * 2), xs), results(lambda x: seen(x) * 2, xs))
    compare(results(fuse(lambda x: seen(customops.exp(x))), xs), results(lambda x: seen(x.exp()), xs))


def test_a_trace_serves_other_shapes(device, blocks):
    blocks(7)
    fused = fuse(of(rotary, customops))
    for shapes in (ROTARY, ((3, 4), (4,), (4,)), ((2, 1, 1, 6), (1, 6), (1, 6)), ROTARY):
        xs = drawn(shapes, device)
        compare(results(fused, xs), results(of(rotary, torch), xs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_are_rounded_once(dtype, device, blocks):
    blocks(7)
    xs = drawn(ROTARY, device, dtype=dtype)
    exact = [x.detach().double().requires_grad_() for x in xs]
    g = torch.rand(ROTARY[0], device=device).to(dtype)
    z, true = fuse(of(rotary, customops))(*xs), of(rotary, torch)(*exact)
    got, want = (torch.autograd.grad(z, xs, g), torch.autograd.grad(true, exact, g.double()))
    for mine, theirs in zip((z, *got), (true, *want), strict=True):
        assert mine.dtype == dtype
        assert_close(mine.double(), theirs, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps / 16)


def test_unread_parts_of_a_gradient_are_zero(device, blocks):
    blocks(7)

    def f(lib, x):
        return lib.exp(x[1:3, ::2])

    xs = drawn([(5, 6)], device)
    compare(results(fuse(of(f, customops)), xs), results(of(f, torch), xs))


def test_parts_that_nothing_reads_divide_nothing(device, blocks):
    """A row of 200 is in two parts, not in 200."""
    blocks(7)

    def f(lib, x):
        rows = x.unbind(1)
        x.view(4, 5, 40)
        return lib.exp(rows[7]) + list(x.T)[-1]

    xs = drawn([(4, 200)], device)
    compare(results(fuse(of(f, customops)), xs), results(of(f, torch), xs))


def test_a_mean_over_unequal_parts_counts_all_elements(device, blocks):
    blocks(7)

    def f(lib, x):
        joined = torch.cat((x * 2, lib.exp(x[:, :3])), -1)
        return joined - lib.mean(joined, -1, keepdim=True) + lib.sum(joined[:, 2:], 1, keepdim=True)

    xs = drawn([(4, 6)], device)
    compare(results(fuse(of(f, customops)), xs), results(of(f, torch), xs))


ALONG_PARTS: dict[str, tuple[int, ...]] = {  # reductions over a dimension that is sliced, joined or divided elsewhere
    "torch.softmax(torch.cat((x, x.sum(-1, keepdim=True)), -1), -1)[..., :-1]": (3, 6),
    "torch.log_softmax(x, 1)[:, 2:]": (3, 6),
    "torch.logsumexp(x, -1) + x[:, 1:].sum(-1)": (3, 6),
    "x.prod(-1) + x[:, 1:].sum(-1)": (3, 6),
    "x.var(-1) + x.norm(dim=-1) * x[:, 4:].mean(-1)": (3, 6),
    "x.max(-1).values + x.view(3, 3, 2).exp().sum((1, 2))": (3, 6),
    "x.view(3, 3, 2).mT.flatten(1).min(-1, keepdim=True).values + x": (3, 6),
    "F.cross_entropy(x, index) + x.view(3, 3, 2).exp().sum()": (3, 6),
    "F.cross_entropy(x, index, reduction='none') + x[:, 2:].exp().sum(-1)": (3, 6),
}


@pytest.mark.sample(kernels="all", compiled="all")
@pytest.mark.parametrize("spelling", ALONG_PARTS)
def test_reductions_know_where_elements_of_a_divided_dimension_lie(spelling, device, blocks):
    blocks(7)
    names = {"torch": torch, "F": torch.nn.functional, "index": torch.tensor([1, 0, 5], device=device)}
    function = eval(f"lambda x: {spelling}", names)
    (x,) = drawn([ALONG_PARTS[spelling]], device)
    with torch.no_grad():
        x[0] = x[0, 3]  # of equal elements it matters which is the first
    compare(results(fuse(function), [x]), results(function, [x]))
    assert is_fused(fuse(function), [x])


def test_what_is_repeated_is_summed_as_often(device, blocks):
    blocks(7)

    def f(lib, x):
        wide = x[:, None].expand(4, 3, 6)
        return lib.sum(wide * 2, (1, 2)), lib.mean(wide, 1), lib.amax(wide, 1) * 2, (x * 2)[None].expand(2, 4, 6)

    xs = drawn([(4, 6)], device)
    got, want = results(fuse(of(f, customops)), xs), results(of(f, torch), xs)
    compare(got, want)
    assert got[3].stride() == want[3].stride() == (0, 6, 1)


def test_absent_cotangents_and_detached_parts_have_no_gradient(device, blocks):
    blocks(7)

    def f(lib, x, y):
        return torch.cat((x.detach() * 2, lib.exp(y)), 0), lib.exp(x)[..., 1:]

    for taken in ((0,), (1,), (0, 1)):
        grads = []
        for lib in (customops, torch):
            xs = drawn([(2, 4), (3, 4)], device)
            zs = (fuse(of(f, lib)) if lib is customops else of(f, lib))(*xs)
            gs = [cotangent(zs[i]) for i in taken]
            grads.append(torch.autograd.grad([zs[i] for i in taken], xs, gs, allow_unused=True))
        compare(*grads)


def test_a_checkpoint_saves_and_computes_the_same(device, blocks):
    blocks(7)
    xs = drawn(ROTARY, device)
    fused = fuse(of(rotary, customops))
    compare(results(lambda *xs: checkpoint(fused, *xs, use_reentrant=False), xs), results(of(rotary, torch), xs))


@pytest.mark.skipif(KERNELS, reason="compiled, a fused function is its formulas")
def test_a_compiled_function_and_transforms_see_torchs_views(device):
    xs = [x.detach() for x in drawn(ROTARY, device)]
    fused, want = fuse(of(rotary, customops)), rotary(torch, *xs)
    assert_close(torch.compile(fused, backend="eager", fullgraph=True)(*xs), want)
    assert_close(torch.func.vmap(fused, in_dims=(0, None, None))(*xs), want)
    tangents = (
        torch.func.jvp(fused, tuple(xs), tuple(xs))[1],
        torch.func.jvp(of(rotary, torch), tuple(xs), tuple(xs))[1],
    )
    assert_close(*tangents)


def test_vmap_over_cotangents_is_torchs(device, blocks):
    blocks(7)
    xs = drawn(ROTARY, device)
    gs = torch.randn(3, *ROTARY[0], dtype=torch.float64, device=device)
    taken = [
        torch.autograd.grad(function(*xs), xs, gs, is_grads_batched=True)
        for function in (fuse(of(rotary, customops)), of(rotary, torch))
    ]
    compare(*taken)


def _value_and_part(x):
    z = x * 2
    return z, z[1:]


def test_views_are_traced_without_sympy():
    """Torch imports it, in 2.5 s, where it computes with meta tensors."""
    program = """
import sys, torch, customops
from customops.blocks import plan
plan.LEAST_ELEMENTS = 0, 0

@customops.fuse
def f(x):
    pair = torch.stack((x[..., 0], x.mT[1]), -1)
    return torch.cat((-x[..., 2:], pair), -1).reshape(-1) * x.flatten()

f(torch.ones(4, 4, requires_grad=True)).sum().backward()
assert "sympy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_results_that_share_memory_share_it(device, blocks):
    """A view of an argument, or of another result, is one as it is in torch."""
    blocks(7)
    (x,) = drawn([(4, 6)], device)
    with torch.no_grad():
        assert fuse(lambda x: x.view(-1))(x).data_ptr() == x.data_ptr()
        z, part = fuse(_value_and_part)(x)
        assert part.data_ptr() == z[1:].data_ptr()


def _nested(x):
    return x.reshape(6, 4) * 2


def _cut(x):
    return (x * 2).repeat(1, 40)[:, 5:] * 2


def _steps(x):
    return x[:, ::4] * 2


def _mask(x):
    return x[[True, False, True, False]] * 2


def _bits(x):
    return x.view(torch.int64) * 2


def _repeats(x):
    return x.repeat_interleave(torch.tensor([1, 2, 0, 1], device=x.device), 0) * 2


def _joined_extremum(x):
    return customops.amax(torch.cat((x, x * 2), 1), 1) * 2


REFUSED = {
    _nested: ("x.reshape(6, 4) * 2", "in ways that do not nest"),
    _cut: ("repeat(1, 40)[:, 5:]", "views divide it in groups of 6"),
    _steps: ("x[:, ::4] * 2", "its last group is not whole"),
    _mask: ("x[[True", "an index of type list"),
    _bits: ("x.view(torch.int64)", "as another dtype"),
    _repeats: ("x.repeat_interleave", "only by a number"),
    _joined_extremum: ("customops.amax", "reduce each part and join them by maximum, or detach it"),
}


@pytest.mark.parametrize("function", REFUSED, ids=lambda f: f.__name__)
def test_what_cannot_be_fused_is_an_error_that_names_the_line(function, device):
    line, why = REFUSED[function]
    for _ in range(2):
        with pytest.raises(FusionError) as error:
            fuse(function)(torch.ones(4, 6, dtype=torch.float64, device=device))
        assert line in str(error.value)
        assert why in str(error.value)
        assert f"{__file__}:{function.__code__.co_firstlineno + 1}:" in str(error.value)


def test_what_meets_itself_shifted_is_refused_where_it_is_long(device, blocks):
    blocks(7)

    def f(lib, x):
        return lib.exp(x[1:]) - x[:-1]

    xs = drawn([(7,)], device)
    compare(results(fuse(of(f, customops)), xs), results(of(f, torch), xs))
    with pytest.raises(FusionError, match="99 elements meets itself, shifted"):
        fuse(of(f, customops))(torch.ones(100, device=device))


REJECTED = {
    "x.view(5, 5) * 2": RuntimeError,
    "x.t().view(-1) * 2": RuntimeError,
    "x.unsqueeze(7) * 2": IndexError,
    "x[9] * 2": IndexError,
    "x[0, 0, 0] * 2": IndexError,
    "x[::-1] * 2": ValueError,
    "x[:, :2] + x[:, 2:5]": RuntimeError,
    "torch.cat((x * 2, x.t()), 0)": RuntimeError,
    "x.expand(5, 6) * 2": RuntimeError,
    "x.permute(0, 0) * 2": RuntimeError,
    "x.split([1, 2], 1)[0] * 2": RuntimeError,
}


@pytest.mark.parametrize("spelling", REJECTED)
def test_what_torch_rejects_is_torchs_error(spelling, device):
    function = eval(f"lambda x: {spelling}", {"torch": torch})
    x = torch.ones(4, 6, device=device)
    with pytest.raises(REJECTED[spelling]) as want:
        function(x)
    with pytest.raises(REJECTED[spelling]) as got:
        fuse(function)(x)
    assert str(got.value) == str(want.value)


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize("shape", [(0, 6), (4, 0), (1, 6), (4, 1), (1, 1)])
def test_dimensions_without_elements_or_with_one_are_as_torchs(shape, device, blocks):
    blocks(7)

    def f(lib, x):
        rows = torch.cat((x[:0], x * 2), 0).unsqueeze(1).squeeze()
        return lib.exp(rows.reshape(-1)), x[..., :1].mT * 2, x.T.flatten()[None] * 3

    xs = drawn([shape], device)
    compare(results(fuse(of(f, customops)), xs), results(of(f, torch), xs))


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize("view", ["y.mT", "y.transpose(0, 2)", "y.permute(1, 2, 0)"])
def test_gradients_of_one_value_along_other_axes_are_two(view, device, blocks):
    """Where all dimensions have one size, they are laid out alike; one of them was the other's memory."""
    blocks(7)
    function = eval(f"lambda x, y: torch.tanh(x + {view})", {"torch": torch})
    xs = drawn([(4, 4, 4)] * 2, device)
    compare(results(fuse(function), xs), results(function, xs))


def test_a_function_of_torch_is_viewed_as_torch_lays_it_out(device, blocks):
    """Of a transposed tensor softmax is contiguous, what its operators compute is not."""
    blocks(7)
    function = lambda x: torch.tanh(torch.softmax(x.mT * 2, 1).view(4, -1))
    xs = drawn([(4, 3, 5)], device)
    compare(results(fuse(function), xs), results(function, xs))


@pytest.mark.parametrize("shape", [(1, 1), (3, 1)])
def test_a_value_that_is_repeated_meets_itself_and_has_second_derivatives(shape, device, blocks):
    blocks(7)

    def function(x):
        y = torch.tanh(x.unsqueeze(0).expand(3, *shape))
        return y.unsqueeze(0) * y.unsqueeze(1)

    got, want = (derivatives(each, drawn([shape], device)) for each in (fuse(function), function))
    for mine, theirs in zip(got, want, strict=True):
        compare(mine, theirs)


def test_explain_names_parts_and_counts_what_torch_copies():
    pytest.importorskip("triton", reason="without Triton there are no kernels")
    if KERNELS:
        pytest.skip("what a GPU compiles, a dry run compiles too")
    from customops.fusion.explain import examine  # noqa: PLC0415 - Triton may be missing

    xs = [torch.empty(shape) for shape in ROTARY]
    xs[0].requires_grad_()
    found = examine(fused_behind(fuse(of(rotary, customops))), xs, {}, "cuda:90")
    program = "\n".join(found.fused[0].program)
    assert "mul(q[..., :4], cos[..., :4])" in program.replace("x0", "q").replace("x1", "cos")
    assert [cost.kernels for cost in found.unfused] == [5, 9]  # of which a cat forward, and zeros and copies backward
    assert list(found.saved) == ["x1", "x2"]


PARTS = range(4)
WHY_REFUSED = ("do not nest", "is not whole", "in groups of", "more than 64 parts", "meets itself")
WHY_REFUSED += ("reduces a dimension", "over a dimension that is divided")


@pytest.mark.parametrize("part", PARTS)
def test_random_programs_of_views_have_torchs_values_and_derivatives(part, device, blocks, full, tally):
    blocks(7)
    count = 250 if full else 6 if KERNELS else 25
    for seed in range(part * 1000, part * 1000 + count):
        check_program(view_program(seed), device, tally)


def check_program(program: Any, device: str, tally: Callable) -> None:
    """Assert that a program has torch's values, gradients, and gradients of these."""
    mine, theirs = program.function(customops), program.function(torch)
    z = theirs(*program.tensors(device))
    if not any(each.requires_grad for each in (z if isinstance(z, tuple) else (z,))):
        return
    try:
        got = derivatives(fuse(mine), program.tensors(device))
    except FusionError as error:
        if not any(why in str(error) for why in WHY_REFUSED):
            raise
        tally("random programs of views refused")
        return
    for k, (one, other) in enumerate(zip(got, derivatives(theirs, program.tensors(device)), strict=True)):
        try:
            compare(one, other, program.unit if k else 0)  # torch rounds gradients where it casts, too
        except AssertionError as error:
            raise AssertionError(f"{program}\n{error}") from None
    tally("random programs of views")


def derivatives(function: Callable, xs: list[Tensor]) -> list[list[Tensor | None]]:
    """Return values, gradients, and gradients of gradients."""
    z = function(*xs)
    zs = z if isinstance(z, tuple) else (z,)
    live = [each for each in zs if each.requires_grad]
    gs = [cotangent(each).requires_grad_() for each in live]
    once = torch.autograd.grad(live, xs, gs, allow_unused=True, retain_graph=True)
    again = torch.autograd.grad(live, xs, gs, allow_unused=True, create_graph=True)
    recorded = [dx for dx in again if dx is not None and dx.requires_grad]
    twice = torch.autograd.grad(recorded, [*xs, *gs], list(map(cotangent, recorded)), allow_unused=True)
    return [[*zs], [*once], [*again], [*twice]]


def test_axes_are_refined_where_they_meet():
    """24 elements as 4 x 6, cut at 12, meet 24 elements cut at 6 and 18: four parts of 6, of one axis."""
    union = AxisUnion()
    one, other = union.new(24), union.new(24)
    union.unify(one, union.new(4) + union.new(6))
    union.cut(one, 12)
    for at in (6, 18):
        union.cut(other, at)
    union.unify(one, other)
    found = parts(union, (one,))
    assert [part.first for part in found] == [(0,), (6,), (12,), (18,)]
    assert len({part.dims[-1] for part in found}) == 1
    x = torch.arange(24)
    assert [part.view.of(x).flatten().tolist() for part in found] == [list(range(k, k + 6)) for k in (0, 6, 12, 18)]
    joined = sum(part.view.inverse(part.view.of(x)) for part in found)
    assert torch.equal(joined, x)


def test_divisions_that_do_not_nest_are_refused():
    union = AxisUnion()
    one = union.new(24)
    union.unify(one, union.new(4) + union.new(6))
    with pytest.raises(NotNested, match="do not nest"):
        union.unify(one, union.new(6) + union.new(4))
    with pytest.raises(NotNested, match="groups of 6"):
        union.cut(union.new(40) + union.new(6), 7)
    union.cut(one, 7)
    assert [part.first for part in parts(union, (one,))] == [(6 * k + at,) for k in range(4) for at in (0, 1)]
    with pytest.raises(ValueError, match="broadcast"):
        union.unify(one, union.new(12))
