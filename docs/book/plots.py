"""Pictures of a function and its gradient, as SVG."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from torch import Tensor

from .samples import Sample, is_elementwise

VALUE, GRADIENT = "#0b5fa5", "#c2410c"
LEAST, MOST = -4.0, 4.0  # where a function of numbers is drawn
STYLE = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25}
STYLE |= {"svg.hashsalt": "customops", "svg.fonttype": "path", "axes.facecolor": "white", "figure.facecolor": "white"}


def plot(each: Sample, file: Path) -> str:
    """Draw the function and its gradients into ``file``; return what is seen, in words."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        if is_elementwise(each) and len(each.tensors) == 1:
            figure, caption = _curves(each)
        elif is_elementwise(each) and len(each.tensors) == 2:
            figure, caption = _contours(each)
        else:
            figure, caption = _slopes(each)
        figure.savefig(file, metadata={"Date": None}, bbox_inches="tight")
    return caption


def _curves(each: Sample) -> tuple[Figure, str]:
    """Draw z and dx, for g = 1, along x."""
    x = torch.linspace(LEAST, MOST, 1601, dtype=torch.float64, requires_grad=True)
    z = each.results(each.function, x)[0]
    (dx,) = torch.autograd.grad(z, x, torch.ones_like(z))
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(0, color="0.6", linewidth=0.8)
    for values, color, label in (z, VALUE, "z"), (dx, GRADIENT, "dx, for g = 1"):
        line = values.detach().clone()
        line[1:][line.diff().abs() > 0.5] = torch.nan  # a jump or a pole is no line
        axes.plot(x.detach(), line, color=color, label=label, linewidth=2, linestyle="-" if label == "z" else "--")
    axes.set_ylim(*_limits(torch.cat((z, dx)).detach()))
    axes.set_xlim(LEAST, MOST)
    axes.set_xlabel("x")
    axes.legend(loc="best", frameon=False)
    return figure, f"{each.name} and its gradient along x, for an incoming gradient of 1"


def _limits(values: Tensor) -> tuple[float, float]:
    """Return limits that show what is finite, but no pole as a whole."""
    finite = values[values.isfinite()].clamp(-5, 5)
    low, high = float(finite.min()), float(finite.max())
    margin = max(0.05 * (high - low), 0.1)
    return low - margin, high + margin


def _contours(each: Sample) -> tuple[Figure, str]:
    """Draw z, and the gradient of each tensor, over the plane of both."""
    line = torch.linspace(LEAST / 2, MOST / 2, 81, dtype=torch.float64)
    xs = [x.reshape(-1).clone().requires_grad_() for x in torch.meshgrid(line, line, indexing="xy")]
    z = each.results(each.function, *xs)[0]
    grads = torch.autograd.grad(z, xs, torch.ones_like(z), allow_unused=True)
    figure = Figure(figsize=(6.4, 7.2), layout="constrained")
    panels = figure.subplots(len(xs) + 1, 1, sharex=True)
    names = ["z", *(f"d{name}" for name in each.names)]
    for axes, values, name in zip(panels, (z, *grads), names, strict=True):
        shown = torch.zeros_like(z) if values is None else values
        grid = torch.where(shown.isfinite(), shown.clamp(-4, 4), torch.nan).detach().view(81, 81)
        levels = torch.linspace(-4, 4, 17).tolist()
        filled = axes.contourf(line, line, grid, levels=levels, cmap="RdBu_r")
        figure.colorbar(filled, ax=axes, ticks=[-4, -2, 0, 2, 4])
        axes.set_title(name if name == "z" else f"{name}, for g = 1", loc="left")
        axes.set_ylabel(each.names[1])
        axes.grid(False)
    panels[-1].set_xlabel(each.names[0])
    return figure, f"{each.name} and its gradients over the plane of its inputs; white where nothing is finite"


def _slopes(each: Sample) -> tuple[Figure, str]:
    """Draw an input, the result, and the slope of each of its elements by each of each tensor's."""
    generator = torch.Generator().manual_seed(4)
    small = each.sized(6, 4)
    xs = [_drawn(x, generator).requires_grad_() for x in small.tensors]
    parts = [part for part in small.results(each.function, *xs) if part.requires_grad]
    z = torch.cat([part.reshape(-1) for part in parts])
    figure = Figure(figsize=(6.4, 2.6 + 2.4 * len(xs)), layout="constrained")
    top, *below = figure.subplots(len(xs) + 1, 1)
    top.bar(torch.arange(float(xs[0].numel())) - 0.2, xs[0].detach().reshape(-1), 0.4, color="0.7", label=each.names[0])
    top.bar(torch.arange(float(len(z))) + 0.2, z.detach(), 0.4, color=VALUE, label="z")
    top.axhline(0, color="0.6", linewidth=0.8)
    top.legend(loc="best", frameon=False)
    top.set_title("elements in, elements out", loc="left")
    for axes, x, name in zip(below, xs, each.names, strict=True):
        rows = [torch.autograd.grad(element, x, retain_graph=True, allow_unused=True)[0] for element in z]
        slopes = torch.stack([torch.zeros_like(x) if row is None else row for row in rows]).view(len(z), -1)
        most = max(float(slopes.abs().nan_to_num(0).max()), 1e-6)
        mesh = axes.pcolormesh(slopes.detach().numpy(), cmap="RdBu_r", vmin=-most, vmax=most, edgecolors="white")
        figure.colorbar(mesh, ax=axes)
        axes.set_title(f"slope of each z by each element of {name}", loc="left")
        axes.invert_yaxis()
        axes.set_ylabel("z")
        axes.grid(False)
    return figure, f"{each.name} of some numbers, and the slope of each element of the result by each of its inputs"


def _drawn(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return positive numbers in the shape of an example's tensor, of which no two are equal."""
    return (torch.rand(x.shape, dtype=torch.float64, generator=generator) + 0.2) * 1.2
