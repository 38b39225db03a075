"""Draw the ratios of estimated times against the length of rows."""

from __future__ import annotations

from itertools import zip_longest

from ..plots import drawn
from .verdicts import TARGETS, ratio_of

STYLES = {  # blue and vermilion: the colour-blind tell them apart too
    "float32": {"color": "#0072B2", "marker": "o"},
    "bfloat16": {"color": "#D55E00", "marker": "D", "markerfacecolor": "none"},
}


def save(document: dict) -> None:
    """Draw the plot beside the JSON."""
    with drawn(document["path"].with_suffix(".png")) as figure:
        draw(figure, document["rows"])
        title = "estimated time over Liger-Kernel's, compiled, not measured"
        figure.suptitle(f"{document['where']['target']}: {title}")


def draw(figure, rows: list[dict]) -> None:
    """Draw a panel for each layer and pass, a column for each layer, all on one pair of axes."""
    layers, passes = ([*dict.fromkeys(row[key] for row in rows)] for key in ("layer", "pass"))
    columns = {layer: [name for name in passes if _of(rows, layer, name)] for layer in layers}
    high = max(map(len, columns.values()))
    figure.set_size_inches(2 + 2 * len(layers), 2 + 2 * high)
    axes = figure.subplots(high, len(layers), sharex=True, sharey=True, squeeze=False)
    for column, (layer, names) in zip(axes.T, columns.items(), strict=True):
        for ax, name in zip_longest(column, names):
            ax.set_visible(name is not None)
            ax.axhline(1, color="0.3")
            ax.axhline(TARGETS["seconds"].mean, color="0.6", linestyle=":", label="the aim of the mean")
            for dtype, style in STYLES.items():
                chosen = [row for row in _of(rows, layer, name) if row["dtype"] == dtype]
                points = sorted((row["length"], ratio_of(row, "seconds")) for row in chosen)
                if points:
                    ax.plot(*zip(*points, strict=True), **style, label=dtype)
            ax.set(title=f"{layer}\n{name}", xscale="log", yscale="log")
    lengths = sorted({row["length"] for row in rows})
    ticks = [x for x in (0.25, 0.5, 0.7, 1, 1.5, 2, 4, 8) if _between(x, axes[0, 0].get_ylim())]
    axes[0, 0].set_yticks(ticks, [f"{x:g}" for x in ticks])
    axes[0, 0].set_xticks(lengths, [f"{n}" if n < 1024 else f"{n // 1024} K" for n in lengths])
    axes[0, 0].minorticks_off()
    for ax in axes[-1]:
        ax.set_xlabel("elements of a row")
    for ax in axes[:, 0]:
        ax.set_ylabel("ratio  (lower: better)")


def _of(rows: list[dict], layer: str, name: str | None) -> list[dict]:
    return [row for row in rows if (row["layer"], row["pass"]) == (layer, name)]


def _between(x: float, ends: tuple[float, float]) -> bool:
    return ends[0] <= x <= ends[1]
