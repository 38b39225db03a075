"""``python -m benchmarks.report``: make the page and its plots, from the JSON of every machine and nothing else.

Reads each ``results/<machine>/benchmark.json``, ``fused.json`` and ``gallery.json``, and each
``results/compiled/<gpu>.json``, draws the plots beside it, and writes the page beside ``results``.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from . import documents
from .compiled import page as compiled
from .compiled import plot
from .documents import RESULTS
from .fused import page as fused
from .fused import plot as fused_plot
from .plots import PHASES, main_size, save, shown, standard
from .text import bullets, code, number, rows_as_json, table

NAMES = {"compile": "torch.compile"}  # on the page; other libraries are named as in the JSON
LOSS, CLEAR_LOSS = 1.02, 1.08  # ratios to eager above which one is set in bold, and counted in the summary
INTRO = """\
# Benchmarks

Each operator of `customops` against torch's own, called the same way, and against `torch.compile` and other libraries
where they were timed. Times are medians of rounds in which all take turns; a ratio is time over eager's in the same
run, the median of the ratios within a round: below 1 is faster than eager. Every result was compared with eager's on
the very tensors that were timed. Losses are shown as wins are: **a ratio above 1.02 is in bold**.

`make bench` measures again on a CPU, `make gpu` on a GPU; `make report` writes this page from the JSON files alone. The
exact command is with each machine.

GB/s is the least number of bytes that have to be moved, over the time: each input once, each output once, in a backward
also what was saved; where the result is a view, none. % of copy is that over the GB/s of copying a tensor as large as
the largest input, in the same rounds. On a GPU operands are drawn until they fill the cache several times, or 64 times,
and a graph of calls on all of them is timed, without the host; on a CPU three sets are used in turn, and where the
cache is large they are partly in it, the copy's too. Peak is the memory at its highest, above where the call began;
saved is what is kept for backward."""
HOST = """\
Microseconds of a call at 8 elements, and ratios to eager. On the recording driver, that of `customops.dry_run`, a call
is all of the kernels' path but the launch."""


def load(results: Path = RESULTS) -> list[dict]:
    """Return the results of every machine, GPUs first, the newest of a kind first, with ``rates`` in GB/s in each."""
    machines = documents.load(results, "*/benchmark.json")
    for machine in machines:
        machine["rows"] = in_order(machine["rows"])
        for row in machine["rows"]:
            times = {who: time for who, (_, time, _) in row["times"].items() if row["bytes"]}
            row["rates"] = {who: row["bytes"] / time / 1e6 for who, time in times.items()}
            row["rates"]["copy"] = row["copy_bytes"] / row["copy"][1] / 1e6
    return sorted(machines, key=lambda m: m["kind"] != "cuda")


def in_order(rows: Sequence[dict]) -> list[dict]:
    """Sort results by operator, call, pattern and dtype, each in the order of its first appearance, then by size."""
    keys = ("operator", "call", "pattern", "dtype")
    first = {key: list(dict.fromkeys(row[key] for row in rows)) for key in keys}
    return sorted(rows, key=lambda row: (*(first[key].index(row[key]) for key in keys), row["numel"]))


def page(results: Path = RESULTS) -> str:
    """Return the page, in Markdown."""
    machines = load(results)
    blocks = [INTRO]
    for m in machines:
        at = documents.address(m, results).parent
        plots = [f"![{plot}]({at}/{plot}.png)" for plot in shown(m)]
        blocks += [*about(m, at), *targets(m), *summary(m), *plots, *troubles(m), *every_row(m)]
    if any(m["host"] for m in machines):
        blocks += ["## What a call costs the host", HOST]
    for m in machines:
        blocks += [f"### {m['where']['device']}", table(host(m))] if m["host"] else []
    return "\n\n".join([*blocks, *fused.blocks(results), *compiled.blocks(results)]) + "\n"


def about(machine: dict, at: Path) -> list[str]:
    """Return the heading of a machine, what it is, and links to the files beside the plots."""
    files = {"benchmark.json": "every figure, as JSON", "accuracy.md": "the largest errors, in ulp"}
    found = {file: title for file, title in files.items() if machine["path"].with_name(file).exists()}
    links = [f"[{title}]({at}/{file})" for file, title in found.items()]
    return [f"## {machine['where']['device']}", bullets([*documents.facts(machine), *links])]


def targets(machine: dict) -> list[str]:
    """Return the list of targets, with their verdicts."""
    return ["Targets:", bullets(machine["verdicts"])] if machine["verdicts"] else []


def summary(machine: dict) -> list[str]:
    """Return means over the standard cases, the best and the worst, by phase and library."""
    rows, lines = standard(machine), []
    for phase, who in product(PHASES, libraries(rows)):
        timed = [row for row in rows if row["phase"] == phase and who in row["ratios"]]
        if timed:
            lines.append({"phase": PHASES[phase], "library": NAMES.get(who, who)} | summary_line(timed, who))
    text = f"Ratios to eager at {main_size(machine):,} elements, float32; the means are geometric."
    return [text, table(lines)] if lines else []


def summary_line(rows: Sequence[dict], who: str) -> dict[str, str]:
    """Return how a library does on some results, and how ours does on the same."""
    ratios = {name: [row["ratios"][name] for row in rows] for name in ("ours", who)}
    mean, ours = (ratio(statistics.geometric_mean(ratios[name])) for name in (who, "ours"))
    ends = [end(rows, key=lambda row: row["ratios"][who]) for end in (min, max)]
    best, worst = (f"{ratio(r['ratios'][who])} {code(r['call'])} {r['pattern']}" for r in ends)
    slower = f"{sum(x > CLEAR_LOSS for x in ratios[who])} of {len(rows)}"
    return {"mean": mean, "ours, same rows": ours, "best": best, "worst": worst, "slower by more than 8 %": slower}


def troubles(machine: dict) -> list[str]:
    """Return what failed, and what was left out for lack of time."""
    failed = [
        code(f"{row['call']}, {row['pattern']}, {row['dtype']}, {shapes(row)}, {PHASES[row['phase']]}: {fault}")
        for row in machine["rows"]
        for fault in row["faults"]
    ] + [*map(code, machine["failed"])]
    left_out = [*map(code, machine["left_out"])]
    blocks = (
        ["### What failed", "Rows with a fault of ours are in no mean and in no plot.", bullets(failed)]
        if failed
        else []
    )
    return blocks + (["### What was left out", bullets(left_out)] if left_out else [])


def every_row(machine: dict) -> list[str]:
    """Return a table for each operator, which unfolds on a click."""
    blocks = []
    for operator in dict.fromkeys(row["operator"] for row in machine["rows"]):
        rows = [row for row in machine["rows"] if row["operator"] == operator]
        losses = sum(is_loss(row["ratios"]["ours"]) for row in rows)
        title = f"<summary>{operator}: {len(rows)} rows, in {losses} slower than eager by more than 2 %</summary>"
        blocks.append(f"<details>{title}\n\n{table([cells(row, libraries(rows)) for row in rows])}\n\n</details>")
    return ["### Every row", *blocks] if blocks else []


def cells(row: dict, names: Sequence[str]) -> dict[str, str]:
    """Return a row of the long tables."""
    rates = row["rates"]
    return {
        "call": code(row["call"]) + " (faulty)" * bool(row["faults"]),
        "pattern": row["pattern"],
        "dtype": row["dtype"],
        "size": shapes(row),
        "phase": PHASES[row["phase"]],
        "ours, ms": number(row["times"]["ours"][1]),
        "eager, ms": number(row["times"]["eager"][1]),
        **{"ratio" if who == "ours" else NAMES.get(who, who): ratio(row["ratios"].get(who)) for who in names},
        "GB/s": number(rates.get("ours")),
        "% of copy": f"{100 * rates['ours'] / rates['copy']:.0f}" if "ours" in rates else "",
        "peak MB, ours / eager": megabytes(row.get("peak")),
        "saved MB, ours / eager": megabytes(row.get("saved")),
    }


def host(machine: dict) -> list[dict[str, str]]:
    """Return the rows of the host's table, one for each call, and the geometric means of the ratios at its foot."""
    lines: dict[str, dict[str, str]] = {}
    ratios: dict[str, list[float]] = {}
    for row in machine["host"]:
        line = lines.setdefault(row["call"], {"call": code(row["call"])})
        column = f"{row['where']}, {PHASES[row['phase']]}"
        line |= {f"{column}: {who}": f"{time:.1f}" for who, time in row["times"].items()}
        if "ratio" in row:
            line[f"{column}: ratio"] = ratio(row["ratio"])
            ratios.setdefault(f"{column}: ratio", []).append(row["ratio"])
    means = {column: ratio(statistics.geometric_mean(values)) for column, values in ratios.items()}
    return [*lines.values(), {"call": "geometric mean"} | means]


def libraries(rows: Sequence[dict]) -> list[str]:
    """Return the libraries that have ratios, ours first."""
    return sorted({who for row in rows for who in row["ratios"]}, key=lambda who: (who != "ours", who))


def shapes(row: dict) -> str:
    """Return the shapes of the inputs, each once."""
    return ", ".join(dict.fromkeys("x".join(map(str, shape)) for shape in row["shapes"]))


def is_loss(x: float) -> bool:
    """Return whether a ratio, as it is written, is a loss."""
    return round(x, 2) > LOSS


def ratio(x: float | None) -> str:
    """Return a ratio in two decimals, a loss in bold."""
    return "" if x is None else f"**{x:.2f}**" if is_loss(x) else f"{x:.2f}"


def megabytes(sizes: dict | None) -> str:
    """Return the megabytes of ours and of eager."""
    return f"{number(sizes['ours'] / 1e6)} / {number(sizes['eager'] / 1e6)}" if sizes else ""


def publish(results: Path, path: Path, document: dict, digits: int, *first: str) -> None:
    """Write a document to ``path`` as JSON, a line for each row, and the page of all that is in ``results``.

    A row begins with a key among ``first``; a figure has so many ``digits``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(rows_as_json(document, digits, *first))
    print(f"written to {path}")
    try:
        main(results)
    except ImportError as error:
        print(f"the page is not made: {error}; install the extra bench, then python -m benchmarks.report")


def main(results: Path = RESULTS) -> int:
    """Draw the plots, then write the page."""
    for machine in load(results):
        save(machine)
    for comparison in compiled.load(results):
        plot.save(comparison)
    for measured in fused.load(results):
        fused_plot.save(measured)
    (results.parent / "README.md").write_text(page(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
