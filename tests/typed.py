"""What type checkers make of a user's program: every public entry point, by ``mypy --strict`` and by pyright.

An error that a checker has to report is ignored here, and an ignored one that is none is reported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_type

import torch
from torch import Tensor, nn

import customops
from customops import FusionError, Graph, KernelFault, LaunchRecord
from customops.nn import functional


@customops.fuse
def scaled(x: Tensor, weight: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    return x * weight, x + eps


class Layer:
    @customops.fuse
    def forward(self, x: Tensor, by: int = 2) -> Tensor:
        return customops.exp(x) * by


def fused(x: Tensor, layer: Layer) -> None:
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


def operators(x: Tensor) -> None:
    assert_type(customops.exp(x, out=x), Tensor)
    assert_type(customops.add(x, 2, alpha=3), Tensor)
    assert_type(customops.pow(2, x), Tensor)
    assert_type(customops.sum(x, (0, 1), keepdim=True, dtype=torch.float64), Tensor)
    assert_type(customops.clamp(x, 0.0, x), Tensor)
    assert_type(customops.where(customops.gt(x, 0), x, 1.0), Tensor)
    assert_type(customops.tanh_(x), Tensor)
    assert_type(customops.var(x, 1), Tensor)
    customops.exp("x")  # type: ignore[arg-type]
    customops.mean(x, dim="rows")  # type: ignore[arg-type]
    customops.relu(x, 3)  # type: ignore[call-arg]


def layers(x: Tensor, classes: Tensor) -> None:
    assert_type(functional.gelu(x, approximate="tanh"), Tensor)
    assert_type(customops.nn.functional.softmax(x, dim=-1), Tensor)
    assert_type(functional.cross_entropy(x, classes, reduction="sum"), Tensor)
    assert_type(functional.rms_norm(x, (8,)), Tensor)
    norm = customops.nn.RMSNorm(8)
    assert_type(norm.eps, float | None)
    model = nn.Sequential(nn.Linear(8, 8), norm, customops.nn.GELU())
    model(x)
    functional.layer_norm(x)  # type: ignore[call-arg]


def models(model: nn.Module, x: Tensor) -> int:
    report = customops.apply(model, x, only=("*.norm", nn.LayerNorm), skip="head")
    names: list[str] = [taken.name for taken in report.taken]
    reasons: list[str] = [left.reason for left in report.left]
    text: str = report.to_json()
    print(report, names, reasons, text)
    with customops.enabled(only=["softmax"]) as calls:
        model(x)
    counted: int = calls.calls["softmax", "torch"]
    customops.apply(model, only=3)  # type: ignore[arg-type]
    customops.enabled(names="softmax")  # type: ignore[call-arg]
    return counted + customops.restore(model)


def looks(x: Tensor) -> list[tuple[int, int, int]]:
    with customops.backend("torch"):
        customops.exp(x)
    with customops.backend("cuda"):  # type: ignore[arg-type]
        pass
    with customops.dry_run("cuda:90", execute=True) as records:
        assert_type(records, list[LaunchRecord])
        try:
            scaled(x, x)
        except KernelFault as fault:
            print(fault)
        except FusionError as error:
            print(error)
    return [record.grid for record in records]
