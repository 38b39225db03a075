"""Draw the plots of a machine's results, and choose the results that each shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PHASES = {"forward": "forward", "backward": "backward", "recorded": "recorded", "both": "forward + backward"}
STYLE = {"font.size": 10, "axes.titlesize": 10, "figure.titlesize": 12, "axes.spines.right": False}
STYLE |= {"axes.spines.top": False, "axes.grid": True, "grid.color": "0.9", "axes.axisbelow": True}
MARKERS = {  # blue, vermilion and grey: the colour-blind tell them apart too
    "ours": {"color": "#0072B2", "marker": "o", "label": "ours", "zorder": 4},
    "compile": {"color": "#D55E00", "marker": "D", "label": "torch.compile", "markerfacecolor": "none", "zorder": 3},
    "eager": {"color": "0.35", "marker": "s", "label": "eager", "markerfacecolor": "white", "zorder": 3},
    "copy": {"color": "0.8", "linewidth": 4, "label": "copy, the roof", "zorder": 2},
}
ALONE = {  # styles of ours where eager was not timed
    "forward": {"marker": "^", "label": "ours, forward"},
    "recorded": {"marker": "x", "label": "ours, recorded"},
    "both": {"marker": "D", "label": "ours, forward + backward"},
}
SIZES = {10**4: "10 kB", 10**6: "1 MB", 10**8: "100 MB", 10**10: "10 GB"}


def main_size(machine: dict) -> int:
    """Return the number of elements that most results have."""
    counts = Counter(row["numel"] for row in machine["rows"])
    return max(counts, key=lambda n: (counts[n], n), default=0)


def sound(machine: dict) -> list[dict]:
    """Return the float32 results without a fault of ours, of which means and plots are made."""
    rows = [row for row in machine["rows"] if row["dtype"] == "float32"]
    return [row for row in rows if not any(fault.startswith("ours") for fault in row["faults"])]


def standard(machine: dict) -> list[dict]:
    """Return the results that targets are about."""
    return [row for row in sound(machine) if row["standard"] and row["numel"] == main_size(machine)]


def shown(machine: dict) -> dict[str, list[dict]]:
    """Return what each plot shows: the standard cases, contiguous forwards of several sizes, the host's figures."""
    ratios = [r for r in standard(machine) if r["phase"] != "backward"]
    forward = [r for r in sound(machine) if r["phase"] == "forward" and r["pattern"] == "contiguous" and r["bytes"]]
    sizes = Counter(row["call"] for row in forward)
    plots = {"ratios": ratios, "roofline": [r for r in forward if sizes[r["call"]] > 1], "host": machine["host"]}
    return {plot: rows for plot, rows in plots.items() if rows}


def save(machine: dict) -> None:
    """Draw a machine's plots beside its JSON."""
    draw = {"ratios": draw_ratios, "roofline": draw_roofline, "host": draw_host}
    for plot, rows in shown(machine).items():
        with drawn(machine["path"].with_name(f"{plot}.png")) as figure:
            title = draw[plot](figure, rows)
            figure.suptitle(f"{machine['where']['device'].partition(',')[0]}: {title}")


@contextmanager
def drawn(path: Path) -> Iterator:
    """Yield a figure to draw on, then give it a legend and write it, the same bytes each time."""
    try:
        from matplotlib import rc_context  # noqa: PLC0415 - only what draws needs it
        from matplotlib.figure import Figure  # noqa: PLC0415 - likewise
    except ImportError:
        raise SystemExit('the plots need Matplotlib: pip install "customops[bench]"') from None
    with rc_context(STYLE):
        figure = Figure(layout="constrained")
        yield figure
        lines = {line.get_label(): line for ax in figure.axes for line in ax.lines if line.get_label()[0] != "_"}
        figure.legend(lines.values(), lines, loc="outside lower center", ncols=len(lines), frameon=False)
        figure.savefig(path, dpi=120, metadata={"Software": None})


def draw_ratios(figure, rows: Sequence[dict]) -> str:
    """Draw time over eager's, a line for each call and pattern, on an axis that ends at a factor of 2 at most."""
    operators = {_name(row): row["operator"] for row in rows}
    names = list(operators)
    borders = [y - 0.5 for y in range(1, len(names)) if operators[names[y]] != operators[names[y - 1]]]
    far = max(max(x, 1 / x) for row in rows for x in row["ratios"].values())
    end = min(max(far, 1.3), 2) * 1.05
    ticks = [x for x in (0.5, 0.7, 0.85, 1, 1.2, 1.4, 2) if 1 / end < x < end]
    for ax, phase in zip(_panels(figure, names, 2), ("forward", "both"), strict=True):
        ax.set(title=PHASES[phase], xlabel="← faster     time over eager's     slower →", xscale="log")
        ax.set_xlim(1 / end, end)
        ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
        ax.minorticks_off()
        ax.tick_params(labeltop=True)
        ax.hlines(borders, 1 / end, end, color="0.6", linewidth=0.8)
        ax.axvspan(1, end, color="0.95", zorder=0)
        ax.axvline(1, color="0.3")
        for who, inward in (("ours", 1.06), ("compile", 1.2)):
            timed = [row for row in rows if row["phase"] == phase and who in row["ratios"]]
            points = [(row["ratios"][who], names.index(_name(row))) for row in timed]
            _mark(ax, points, end, inward, MARKERS[who])
    return f"time over eager's, {rows[0]['numel']:,} elements, float32"


def _mark(ax, points: Sequence[tuple[float, int]], end: float, inward: float, style: dict) -> None:
    """Mark ratios; one beyond the end of the axis is marked there and written beside it."""
    for x, y in points:
        ax.plot(min(max(x, 1 / end), end), y, **style, linestyle="", clip_on=False)
        if not 1 / end <= x <= end:
            edge, side = (end / inward, "right") if x > 1 else (inward / end, "left")
            ax.text(edge, y, f"{x:.2g}", ha=side, va="center", color=style["color"])


def draw_roofline(figure, rows: Sequence[dict]) -> str:
    """Draw GB/s against bytes, a panel for each call, under what a copy reaches."""
    names = list(dict.fromkeys(map(_name, rows)))
    across = min(4, len(names))
    down = -(-len(names) // across)
    figure.set_size_inches(10, 1.2 + 2 * down)
    axes = [*figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flat]
    sizes = [row["bytes"] for row in rows]
    ticks = [n for n in SIZES if min(sizes) <= n <= max(sizes)]
    for ax, name in zip(axes, names, strict=False):
        points = sorted((row for row in rows if _name(row) == name), key=lambda row: row["bytes"])
        for who in ("copy", "eager", "ours"):
            ax.plot([r["bytes"] for r in points], [r["rates"][who] for r in points], **MARKERS[who], markersize=5)
        ax.set(title=name, xscale="log")
        ax.set_xticks(ticks, [SIZES[n] for n in ticks])
        ax.tick_params(labelbottom=True)
        ax.minorticks_off()
    axes[0].set_ylim(bottom=0)
    for ax in axes[len(names) :]:
        ax.remove()
    for ax in axes[::across]:
        ax.set_ylabel("GB/s  (higher: better)")
    return "GB/s of forward against bytes to be moved, contiguous float32"


def draw_host(figure, rows: Sequence[dict]) -> str:
    """Draw microseconds of a call at 8 elements: beside eager's a panel for each phase, without eager one panel."""
    names = list(dict.fromkeys(row["call"] for row in rows))
    panels: dict[str, list[dict]] = {}
    for row in rows:
        title = f"{row['where']}, {PHASES[row['phase']]}" if "eager" in row["times"] else row["where"]
        panels.setdefault(title, []).append(row)
    for ax, (title, rows_of_panel) in zip(_panels(figure, names, len(panels)), panels.items(), strict=True):
        for row in rows_of_panel:
            y, ours, eager = names.index(row["call"]), row["times"]["ours"], row["times"].get("eager")
            if eager:
                ax.plot([eager, ours], [y, y], color="0.7")
                ax.plot(eager, y, **MARKERS["eager"], linestyle="")
            ax.plot(ours, y, **MARKERS["ours"] | ({} if eager else ALONE[row["phase"]]), linestyle="")
        ax.set(title=title, xlim=(0, None), xlabel="← better     microseconds")
    return "microseconds of a call at 8 elements"


def _panels(figure, names: Sequence[str], count: int) -> Sequence:
    """Return panels side by side, with a line for each name, from the top."""
    figure.set_size_inches(10, max(3, 1.6 + 0.24 * len(names)))
    axes = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    return axes


def _name(row: dict) -> str:
    """Return the label of a result: its call, and its pattern unless that is contiguous."""
    return row["call"] + f"  {row['pattern']}" * (row["pattern"] != "contiguous")
