"""List the layers that are timed, the operands of each, and the sizes and dtypes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from examples import layers as examples

LARGE, SMALL = (4096, 4096), (64, 256)  # those that targets are about: rows and their length
SIZES = (SMALL, (2048, 1024), LARGE)
DTYPES = ("float32", "bfloat16")  # of every tensor; as torch names them


class Layer(NamedTuple):
    """A layer, as the examples have it, and what it takes."""

    ours: Callable[..., Any]  # fused
    matrices: int = 1  # operands of several rows that need gradients
    learned: int = 0  # operands of one row, which need gradients too
    target: Callable[[Tensor], Tensor] | None = None  # makes the last operand, which needs none, of random numbers
    has_own: bool = True  # torch has a function of its own for all of it
    shapes: Callable[[tuple[int, int]], list] | None = None  # of the operands that need gradients, where others
    torchs: Callable[..., Any] | None = None  # torch's own function, where it is not that of the examples
    eager: Callable[..., Any] | None = None  # the composition of torch's operators, likewise

    @property
    def own(self) -> Callable[..., Any] | None:
        """Return torch's own function, which the examples compare the layer with; None where it has none."""
        if not self.has_own:
            return None
        return self.torchs or next(row.torchs for row in examples.COMPARISONS if row.ours is self.ours)

    def draw(self, size: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
        """Draw the operands that need gradients, then the target if there is one."""
        generator = torch.Generator().manual_seed(0)
        shapes = self.shapes(size) if self.shapes else [size] * self.matrices + [size[1:]] * self.learned
        xs = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
        targets = [self.target(torch.randn(size, generator=generator))] if self.target else []
        return [*xs, *[cast(x, dtype) for x in targets]]


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in ``dtype``, but indices as they are."""
    return x.to(dtype) if x.is_floating_point() else x


LAYERS = {
    "softmax": Layer(examples.softmax),
    "log_softmax": Layer(examples.log_softmax),
    "log_sum_exp": Layer(examples.log_sum_exp),
    "rms_norm": Layer(examples.rms_norm, learned=1),
    "add_rms_norm": Layer(examples.add_rms_norm, matrices=2, learned=1, has_own=False),
    "layer_norm": Layer(examples.layer_norm, learned=2),
    "gelu": Layer(examples.gelu),
    "silu": Layer(examples.silu),
    "swiglu": Layer(examples.swiglu, matrices=2, has_own=False),
    "geglu": Layer(examples.geglu, matrices=2, has_own=False),
    "softplus": Layer(examples.softplus),
    "huber_loss": Layer(examples.huber_loss, target=torch.clone),
    "mse_loss": Layer(examples.mse_loss, target=torch.clone),
    "binary_cross_entropy": Layer(examples.binary_cross_entropy, target=torch.sigmoid),
    "cross_entropy": Layer(examples.cross_entropy, target=lambda x: torch.softmax(x, -1)),
}


class Case(NamedTuple):
    """A layer on tensors of one size and dtype."""

    layer: str  # a key of ``LAYERS``
    size: tuple[int, int]  # rows, and elements of a row
    dtype: str  # torch's name

    def __str__(self):
        return f"{self.layer}, {self.size[0]}x{self.size[1]}, {self.dtype}"


def cases(quick: bool = False, names: list[str] | None = None, sizes: list[tuple] | None = None) -> Iterator[Case]:
    """Yield what is timed, all of it or the part that is named; a quick run has what most targets are about.

    What takes longest comes last, so that a run that ends early has most rows.
    """
    all_sizes, dtypes = ((SMALL, LARGE), DTYPES[:1]) if quick else (SIZES, DTYPES)
    for dtype, size, name in product(dtypes, sizes or all_sizes, names or LAYERS):
        yield Case(name, size, dtype)
