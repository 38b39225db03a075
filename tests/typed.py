"""The types that ``fuse`` has for checkers: the signature of the function. mypy reads this file; see pyproject.toml."""

# mypy: warn-unused-ignores

from __future__ import annotations

from collections.abc import Callable
from typing import assert_type

from torch import Tensor, nn

import customops
from customops import Graph


@customops.fuse
def scaled(x: Tensor, weight: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    return x * weight, x + eps


class Layer:
    @customops.fuse
    def forward(self, x: Tensor, by: int = 2) -> Tensor:
        return customops.exp(x) * by


def check(x: Tensor, layer: Layer) -> None:
    """Hold types for mypy alone, which reports an error that is not ignored, and an ignored one that is none."""
    assert_type(scaled(x, x), tuple[Tensor, Tensor])
    assert_type(scaled(x, weight=x, eps=2.0), tuple[Tensor, Tensor])
    assert_type(scaled.program(x, x), Graph)
    assert_type(layer.forward(x, by=3), Tensor)
    assert_type(Layer.forward(layer, x), Tensor)
    assert_type(Layer.forward.program(layer, x), Graph)
    assert_type(customops.fuse(lambda: x)(), Tensor)
    assert_type(customops.fuse(nn.SiLU()), nn.SiLU)
    same: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = scaled
    same(x, x)
    scaled.explain(x, x, target="cuda:80")
    scaled(x)  # type: ignore[call-arg]
    scaled(x, x, eps="small")  # type: ignore[arg-type]
    scaled.program(x, x, epsilon=1.0)  # type: ignore[call-arg]
    layer.forward(x, by="two")  # type: ignore[arg-type]
