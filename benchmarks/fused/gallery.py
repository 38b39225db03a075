"""List the functions of ``customops.nn.functional`` that are timed beside the layers of the examples."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as torchs

from customops.nn import functional as ours

from .contestants import composition
from .layers import LAYERS, Layer

Size = tuple[int, int]
CHANNELS, GROUPS = 64, 8  # of group_norm
HEAD = 64  # elements of a head of rotary_embedding


def _layer(call: Callable[..., Any], **options: Any) -> Layer:
    """Return ``call(library, *operands)`` as a layer: by ours, by torch's own, and by ours in torch's operators."""
    return Layer(
        lambda *xs: call(ours, *xs),
        torchs=lambda *xs: call(torchs, *xs),
        eager=lambda *xs: call(IN_TORCH, *xs),
        **options,
    )


def _cross_entropy(x: Tensor, target: Tensor) -> Tensor:
    """Return the cross entropy of indices by torch's gather, where ours compares numbers of classes."""
    shifted = x - torch.amax(x, 1, True).detach()
    logs = shifted - torch.log(torch.sum(torch.exp(shifted), 1, True))
    return -torch.mean(torch.gather(logs, 1, target.unsqueeze(1)))


NAMES = [name for name in ours.__all__ if hasattr(getattr(ours, name), "program")]  # of compositions
IN_TORCH = SimpleNamespace(
    **{name: composition(getattr(ours, name)) for name in NAMES} | {"cross_entropy": _cross_entropy}
)


def _samples(size: Size) -> list[tuple[int, ...]]:
    """Return the shapes of samples with channels, as many elements as ``size`` has, and of a weight and a bias."""
    return [(size[0] // 16, CHANNELS, size[1] * 16 // CHANNELS), (CHANNELS,), (CHANNELS,)]


def _heads(size: Size) -> list[tuple[int, ...]]:
    """Return the shape of heads of tokens."""
    return [(size[1] // HEAD, size[0], HEAD)]


def _angles(x: Tensor) -> Tensor:
    """Return cosines and sines of an angle for each pair of elements of a head, of each token."""
    angles = x[:, : HEAD // 2].repeat(1, 2)
    return torch.stack((angles.cos(), angles.sin()))


GALLERY = {
    "elu": _layer(lambda lib, x: lib.elu(x)),
    "leaky_relu": _layer(lambda lib, x: lib.leaky_relu(x)),
    "hardswish": _layer(lambda lib, x: lib.hardswish(x)),
    "mish": _layer(lambda lib, x: lib.mish(x)),
    "gelu_by_erf": _layer(lambda lib, x: lib.gelu(x)),
    "glu": _layer(lambda lib, x: lib.glu(x)),
    "softcap": _layer(lambda lib, x: lib.softcap(x, 30.0), has_own=False),
    "group_norm": _layer(lambda lib, x, weight, bias: lib.group_norm(x, GROUPS, weight, bias), shapes=_samples),
    "normalize": _layer(lambda lib, x: lib.normalize(x)),
    "cosine_similarity": _layer(lambda lib, x, y: lib.cosine_similarity(x, y), matrices=2),
    "rotary_embedding": _layer(
        lambda lib, x, angles: lib.rotary_embedding(x, *angles), shapes=_heads, target=_angles, has_own=False
    ),
    "l1_loss": _layer(lambda lib, x, y: lib.l1_loss(x, y), target=torch.clone),
    "smooth_l1_loss": _layer(lambda lib, x, y: lib.smooth_l1_loss(x, y), target=torch.clone),
    "kl_div": _layer(lambda lib, x, y: lib.kl_div(x, y, reduction="batchmean"), target=lambda x: torch.softmax(x, -1)),
    "cross_entropy_of_indices": _layer(lambda lib, x, y: lib.cross_entropy(x, y), target=lambda x: x.argmax(-1)),
}
EVERY = ChainMap(LAYERS, GALLERY)
