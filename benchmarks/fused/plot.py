"""Draw the times of all contestants over the composition's, a line for each layer."""

from __future__ import annotations

from ..plots import MARKERS, PHASES, drawn
from .verdicts import LARGE, TO_EAGER, select, written

STYLES = {
    "ours": MARKERS["ours"],
    "own": MARKERS["eager"] | {"label": "torch's own"},
    "compile": MARKERS["compile"],
}
TICKS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5)


def save(document: dict) -> None:
    """Draw the plot beside the JSON."""
    with drawn(document["path"].with_suffix(".png")) as figure:
        draw(figure, document["rows"])
        title = f"time over the composition's, {written(LARGE)}, float32, 1 thread"
        figure.suptitle(f"{document['where']['device']}: {title}")


def draw(figure, rows: list[dict]) -> None:
    """Draw a panel for each phase at the large size, with one line for each layer, from the top."""
    names = [*dict.fromkeys(row["layer"] for row in rows)]
    figure.set_size_inches(10, max(3, 1.6 + 0.26 * len(names)))
    axes = figure.subplots(1, len(TO_EAGER), sharex=True, sharey=True)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    for ax, (phase, aim) in zip(axes, TO_EAGER.items(), strict=True):
        for row in select(rows, LARGE, phase):
            for who in (who for who in STYLES if who in row["ratios"]):
                ax.plot(row["ratios"][who], names.index(row["layer"]), **STYLES[who], linestyle="")
        ax.axvline(1, color="0.3")
        ax.axvline(aim, color="0.6", linestyle=":", label="the aim of the mean")
        ax.set(title=PHASES[phase], xscale="log", xlabel="← faster     time over the composition's     slower →")
    low, high = axes[0].get_xlim()
    ticks = [x for x in TICKS if low <= x <= high]
    axes[0].set_xticks(ticks, [f"{x:g}" for x in ticks])
    for ax in axes:
        ax.minorticks_off()
