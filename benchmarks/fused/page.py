"""Make the part of the benchmarks' page about fused layers on a CPU, from its JSON and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .. import documents
from ..text import bullets, code, number, table
from .lines import costs, means
from .verdicts import LOSS, PHASES, RIVALS, written

INTRO = """\
## Fused layers on a CPU

Each layer of [examples/layers.py](../examples/layers.py), fused, against three others: **the composition**, the same
code with torch's operators in place of ours, each a pass over memory; **torch's own** function, where it has one for
all of the layer; and **torch.compile** of the composition, in float32 with one thread. They take turns at random within
each round, on the same tensors; a ratio is time of ours over another's, the median of the ratios within a round: below
1 ours is faster. **A ratio above 1.02 is in bold.**

- Targets of losses and of inputs that a layer does not learn from need no gradient; all other operands do.
- Results and gradients are compared with those of the composition in float64. One that is far from them, and farther
  than the composition is, is a fault.
- Large tensors are new to the process each time, as torch allocates them by default, so what allocates more pays for
  it; ours asks for large pages under its results. Free memory is written to once before all, as a virtual machine's
  host brings what it never gave, or took back, many times slower; what it takes back meanwhile shows in some rows.
- Peak is the memory of forward + backward at its highest, above where the call began; saved is what is kept between the
  two, read from the recorded graph. Both are in float32, at 4096x4096.
- The first call is that of 512x256, with the backward of the result's sum, in a process that has imported torch and
  ours and called nothing, by the clock. torch.compile's is timed for three layers, without code in its cache."""


GALLERY = """\
## Functions of the gallery on a CPU

Functions of [customops.nn.functional](../docs/functional.md) that no layer above is, measured and compared in the same
way: the composition is that of the function's own code, with torch's operators in place of ours, that of the cross
entropy of indices by torch's `gather`. The operands are as large as a matrix of the size: samples of 64 channels of
`group_norm`, which has 8 groups, heads of 64 of `rotary_embedding`."""
PARTS = {"fused.json": ("Fused layers", INTRO), "gallery.json": ("Functions", GALLERY)}


def load(results: Path) -> list[dict]:
    """Return the comparisons, those of layers before those of the gallery, of each machine, the newest first."""
    return [document for file in PARTS for document in documents.load(results, f"*/{file}")]


def blocks(results: Path) -> Iterator[str]:
    """Yield the blocks of the page, nothing where nothing was measured."""
    for file, (title, intro) in PARTS.items():
        found = documents.load(results, f"*/{file}")
        if found:
            yield intro
        for document in found:
            yield from _comparison(title, document, results)


def _comparison(title: str, document: dict, results: Path) -> Iterator[str]:
    """Yield the blocks of one comparison on one machine."""
    yield from documents.opening(f"{title}: {document['where']['device']}", document, results)
    plot = documents.address(document, results).with_suffix(".png")
    yield f"![times over the composition's]({plot})"
    yield "Geometric means of the ratios:\n\n" + table([*means(document["rows"])])
    yield "Memory and first calls:\n\n" + table([*costs(document["rows"], document["first"])])
    yield from _troubles(document)
    title = f"every row: {len(document['rows'])}, in {len(document['losses'])} ours is slower than another"
    rows = table([*map(cells, document["rows"])])
    yield f"<details><summary>{title}</summary>\n\n{rows}\n\n</details>"


def cells(row: dict) -> dict[str, str]:
    """Return a row of the long table."""
    ratios = {who: row["ours_to"][who] for who in RIVALS if who in row["ours_to"]}
    return {
        "layer": code(row["layer"]) + " (faulty)" * any(fault.startswith("ours") for fault in row["faults"]),
        "size": written(row["size"]),
        "dtype": row["dtype"],
        "threads": f"{row['threads']}",
        "phase": PHASES[row["phase"]],
        "ours, ms": number(row["times"]["ours"][1]),
        "the composition's, ms": number(row["times"]["eager"][1]),
        **{
            f"to {RIVALS[who]}": f"**{ratio:.2f}**" if round(ratio, 2) > LOSS else f"{ratio:.2f}"
            for who, ratio in ratios.items()
        },
    }


def _troubles(document: dict) -> Iterator[str]:
    """Yield what failed, and what was left out for lack of time."""
    failed = [*document["failed"], *(fault for row in document["rows"] for fault in row["faults"])]
    if failed:
        yield "These failed:\n\n" + bullets([*map(code, failed)])
    if document["left_out"]:
        yield "These were left out:\n\n" + bullets([*map(code, document["left_out"])])
