"""List the layers that are compared: ours as a user writes them, and Liger's function for the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

import customops
from customops.nn import functional as f
from examples.layers import relu_squared

ROWS = 4096  # rows of every tensor
LENGTHS = (256, 1024, 4096, 16384, 65536)  # elements of a row
DTYPES = ("float32", "bfloat16")  # of every tensor; as torch names them
PASSES = ("forward", "backward")
WHOLE = "forward + backward"  # the name of both passes where they are compared as one
QUICK = (("bfloat16",), (256, 4096))  # dtypes and lengths of a quick run
GROUPS, CHANNELS = 32, 128  # of group_norm; a row is a group
HEAD = 128  # elements of a head of rotary_embedding; a row is all heads of a token


class Layer(NamedTuple):
    """A layer by both libraries, and what it takes."""

    ours: Callable[..., Any]  # fused
    liger: str  # the module and the autograd.Function in ``liger_kernel.ops``
    operands: Callable[[int, torch.dtype], list[Tensor]]  # of a row's length and a dtype, on the meta device
    options: tuple[Any, ...] = ()  # what Liger's function takes after the tensors
    is_whole: bool = False  # Liger computes gradients in forward, so that the passes are compared together

    def passes(self, launches: dict[str, list]) -> dict[str, list]:
        """Return the launches of the passes that are compared."""
        return {WHOLE: [launch for name in PASSES for launch in launches[name]]} if self.is_whole else launches


def _matrices(count: int, learned: int = 0, targets: int = 0) -> Callable[[int, torch.dtype], list[Tensor]]:
    """Return what makes ``count`` operands of ROWS rows and ``learned`` of one, then ``targets`` without gradients."""

    def operands(length: int, dtype: torch.dtype) -> list[Tensor]:
        leaves = [_leaf((ROWS, length), dtype)] * count + [_leaf((length,), dtype)] * learned
        return [*leaves, *[_leaf((ROWS, length), dtype, needs_grad=False)] * targets]

    return operands


def _classes(length: int, dtype: torch.dtype) -> list[Tensor]:
    """Return logits and class indices."""
    return [_leaf((ROWS, length), dtype), _leaf((ROWS,), torch.int64, needs_grad=False)]


def _groups(length: int, dtype: torch.dtype) -> list[Tensor]:
    """Return samples of channels, in ROWS groups in all, then a weight and a bias of each channel."""
    samples = _leaf((ROWS // GROUPS, CHANNELS, length * GROUPS // CHANNELS), dtype)
    return [samples, _leaf((CHANNELS,), dtype), _leaf((CHANNELS,), dtype)]


def _heads(length: int, dtype: torch.dtype) -> list[Tensor]:
    """Return queries and keys as projections leave them, heads last but one in memory; cosines and sines."""
    projected = torch.empty((1, ROWS, length // HEAD, HEAD), dtype=dtype, device="meta").transpose(1, 2)
    angles = _leaf((ROWS, HEAD), dtype, needs_grad=False)
    return [*[projected.requires_grad_()] * 2, angles, angles]


def _leaf(shape: tuple[int, ...], dtype: torch.dtype, needs_grad: bool = True) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=needs_grad)


@customops.fuse
def _rotary_embeddings(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return f.rotary_embedding(q, cos, sin), f.rotary_embedding(k, cos, sin)


# Liger's rms_norm takes eps, an offset of the weight, and two ways. "gemma" computes in float32 and rounds once, as
# ours do; its default "llama" takes more instructions. True writes dx over the incoming gradient, its default; without
# it a launch more fills dx with zeros first.
RMS_NORM = (1e-6, 0.0, "gemma", True)
LAYERS = {
    "softmax": Layer(lambda x: f.softmax(x, -1), "softmax.LigerSoftmaxFunction", _matrices(1)),
    "rms_norm": Layer(
        lambda x, weight: f.rms_norm(x, weight.shape, weight, 1e-6),
        "rms_norm.LigerRMSNormFunction",
        _matrices(1, 1),
        RMS_NORM,
    ),
    "add_rms_norm": Layer(
        lambda x, residual, weight: f.add_rms_norm(x, residual, weight.shape, weight, 1e-6),
        "fused_add_rms_norm.LigerFusedAddRMSNormFunction",
        _matrices(2, 1),
        RMS_NORM,
    ),
    "layer_norm": Layer(
        lambda x, weight, bias: f.layer_norm(x, weight.shape, weight, bias),
        "layer_norm.LigerLayerNormFunction",
        _matrices(1, 2),
        (1e-5,),
    ),
    "group_norm": Layer(
        lambda x, weight, bias: f.group_norm(x, GROUPS, weight, bias),
        "group_norm.LigerGroupNormFunction",
        _groups,
        (CHANNELS, GROUPS, 1e-5),
    ),
    "swiglu": Layer(f.swiglu, "swiglu.LigerSiLUMulFunction", _matrices(2)),
    "geglu": Layer(lambda x, gate: f.geglu(x, gate, "tanh"), "geglu.LigerGELUMulFunction", _matrices(2)),
    "relu_squared": Layer(relu_squared, "relu_squared.LigerReLUSquaredFunction", _matrices(1)),
    "rotary_embedding": Layer(_rotary_embeddings, "rope.LigerRopeFunction", _heads),
    "kl_div": Layer(
        lambda x, target: f.kl_div(x, target, reduction="batchmean"),
        "kl_div.LigerKLDivLossFunction",
        _matrices(1, targets=1),
        ("batchmean",),
    ),
    "cross_entropy": Layer(
        f.cross_entropy,
        "cross_entropy.LigerCrossEntropyFunction",
        _classes,
        (None, -100, 0.0, 0.0, "mean"),
        is_whole=True,
    ),
}


class Case(NamedTuple):
    """A layer on rows of one length and dtype."""

    layer: str  # a key of ``LAYERS``
    dtype: str  # torch's name
    length: int  # elements of a row

    def __str__(self):
        return f"{self.layer}, {self.dtype}, {ROWS}x{self.length}"


def cases(quick: bool = False, names: list[str] | None = None, lengths: list[int] | None = None) -> Iterator[Case]:
    """Yield what is compared, all of it or the part that is named."""
    dtypes, quick_lengths = QUICK if quick else (DTYPES, LENGTHS)
    yield from (Case(*each) for each in product(names or LAYERS, dtypes, lengths or quick_lengths))
