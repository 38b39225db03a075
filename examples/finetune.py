"""Train a small transformer on the text of this repository's pages, with and without ``customops.apply``.

``python examples/finetune.py`` prints tokens a second, peak memory and the loss of both, and draws the two curves.
The model knows nothing of customops. All that changes is one line.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import customops

TEXT = "\n".join(page.read_text() for page in sorted((Path(__file__).parent.parent / "docs").glob("*.md")))
CHARACTERS = sorted(set(TEXT))


class RMSNorm(nn.Module):
    """Rows divided by their root mean square, and scaled."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the rows of x."""
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Layer(nn.Module):
    """Attention and a gated multilayer perceptron, each after a norm and beside a residual."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = RMSNorm(width), RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.gate, self.up = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, 3 * width, bias=False)
        self.down, self.act = nn.Linear(3 * width, width, bias=False), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return x with what both add to it."""
        q, k, v = self.qkv(self.before_attention(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        y = self.before_mlp(x)
        return x + self.down(self.act(self.gate(y)) * self.up(y))


class Model(nn.Module):
    """Characters in, the logits of the next ones out."""

    def __init__(self, width: int = 256, layers: int = 2, heads: int = 4, length: int = 256):
        super().__init__()
        self.characters, self.positions = nn.Embedding(len(CHARACTERS), width), nn.Embedding(length, width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.norm, self.head = RMSNorm(width), nn.Linear(width, len(CHARACTERS))

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits."""
        x = self.characters(ids) + self.positions.weight[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def batches(steps: int, rows: int, length: int) -> Iterator[Tensor]:
    """Yield pieces of the text as numbers, each one character longer than what the model reads."""
    numbers = {character: i for i, character in enumerate(CHARACTERS)}
    ids = torch.tensor([numbers[character] for character in TEXT])
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        starts = torch.randint(len(ids) - length - 1, (rows,), generator=generator).tolist()
        yield torch.stack([ids[start : start + length + 1] for start in starts])


def train(name: str, is_applied: bool, steps: int, rows: int, length: int) -> list[float]:
    """Train a model, print what it took, and return the losses."""
    torch.manual_seed(0)
    model = Model(length=length)
    if is_applied:
        report = customops.apply(model, torch.zeros(1, length, dtype=torch.long))  # this line is all
        print(f"taken: {len(report.taken)} modules and stretches")
    optimizer, losses = torch.optim.AdamW(model.parameters(), 1e-3), []
    start = time.perf_counter()
    for ids in batches(steps, rows, length):
        loss = functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    speed = steps * rows * length / (time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{name:10} {speed:8,.0f} tokens a second   peak of the process so far {peak:,.0f} MiB   loss {losses[-1]:.4f}"
    )
    return losses


def draw(curves: Sequence[Sequence[float]], marks: str, height: int = 12, width: int = 60) -> str:
    """Return curves of losses as text; where they meet, the last one's mark is seen."""
    values = [x for curve in curves for x in curve]
    low, high = min(values), max(values)
    rows = [[" "] * width for _ in range(height)]
    for curve, mark in zip(curves, marks, strict=True):
        for column in range(width):
            value = curve[column * (len(curve) - 1) // (width - 1)]
            rows[round((high - value) / (high - low or 1) * (height - 1))][column] = mark
    labels = [f"{high:6.2f}", *[" " * 6] * (height - 2), f"{low:6.2f}"]
    return "\n".join(f"{label} |{''.join(row)}" for label, row in zip(labels, rows, strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Train twice, and return 0 if the losses are the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=256, help="characters in a row")
    options = parser.parse_args(arguments)
    ours = train("customops", True, options.steps, options.rows, options.length)
    torchs = train("torch", False, options.steps, options.rows, options.length)
    print(draw([torchs, ours], "to"))
    apart = max(abs(a - b) for a, b in zip(torchs, ours, strict=True))
    print(f"o is customops', t torch's where it differs: by {apart:.1e} at most")
    return int(apart > 1e-2)


if __name__ == "__main__":
    raise SystemExit(main())
