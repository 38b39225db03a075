"""List the layers that are compared: ours as a user writes them, and Liger's function for the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import torch

from examples import layers

ROWS = 4096  # rows of every tensor
LENGTHS = (256, 1024, 4096, 16384, 65536)  # elements of a row
DTYPES = ("float32", "bfloat16")  # of every tensor; as torch names them
PASSES = ("forward", "backward")
QUICK = (("bfloat16",), (256, 4096))  # dtypes and lengths of a quick run


class Layer(NamedTuple):
    """A layer by both libraries, and what it takes."""

    ours: Callable[..., torch.Tensor]  # fused, as in the examples
    liger: str  # the module and the autograd.Function in ``liger_kernel.ops``
    matrices: int  # operands of ROWS rows
    learned: int  # operands of one row
    options: tuple[Any, ...] = ()  # what Liger's function takes after the tensors

    def shapes(self, length: int) -> list[tuple[int, ...]]:
        """Return the shapes of the operands, where a row has ``length`` elements."""
        return [(ROWS, length)] * self.matrices + [(length,)] * self.learned


# Liger's rms_norm takes eps, an offset of the weight, and two ways. "gemma" computes in float32 and rounds once, as
# ours do; its default "llama" takes more instructions. True writes dx over the incoming gradient, its default; without
# it a launch more fills dx with zeros first.
LAYERS = {
    "softmax": Layer(layers.softmax, "softmax.LigerSoftmaxFunction", 1, 0),
    "rms_norm": Layer(layers.rms_norm, "rms_norm.LigerRMSNormFunction", 1, 1, (1e-6, 0.0, "gemma", True)),
    "layer_norm": Layer(layers.layer_norm, "layer_norm.LigerLayerNormFunction", 1, 2, (1e-5,)),
    "swiglu": Layer(layers.swiglu, "swiglu.LigerSiLUMulFunction", 2, 0),
    "geglu": Layer(layers.geglu, "geglu.LigerGELUMulFunction", 2, 0),
    "relu_squared": Layer(layers.relu_squared, "relu_squared.LigerReLUSquaredFunction", 1, 0),
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
