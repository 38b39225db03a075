"""Make the part of the benchmarks' page about compiled code, from its JSON and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .. import documents
from ..text import bullets, code, table
from .lines import means, pairs
from .verdicts import ratio_of

INTRO = """\
## Layers against Liger-Kernel, by the compiled code: an estimate

**No time here is measured.** Both libraries' kernels are compiled for a GPU by the same Triton and counted: launches,
bytes, machine instructions, registers and spills. The times are estimates by one [model](../docs/model.md) for both.
Each layer is a function of [customops.nn.functional](../docs/functional.md), `relu_squared` one of
[examples/layers.py](../examples/layers.py), and Liger's `autograd.Function` for the same, on 4096 rows: groups of
`group_norm`, tokens of `rotary_embedding`, whose queries and keys have as many heads of 128. The two figures of a
column are ours / Liger's, ratios are ours over Liger's: below 1 ours is better. **A ratio above 1 is in bold.**

- DRAM bytes are those of each tensor that a launch reads or writes, once; what it reads again counts again where the L2
  cannot hold it until then.
- SASS are the machine instructions that all threads of all launches issue, over the elements of one operand.
- Registers, bytes in flight on a multiprocessor and what limits the time are those of the launch that takes longest.
  Spills are bytes of a thread, of all launches together.
- Liger adds up its partial gradients of weights by torch's kernels. They count as launches, and take the time of their
  bytes and of a launch; their instructions are not counted, which favours Liger. So do the kernels of torch by which
  its losses fill tensors, add up rows and check indices, and the host's waiting for these checks takes no time here.
- Liger's cross entropy computes the gradient in forward, over the logits, so both passes are compared as one. The
  gradient that arrives for a loss is 1, as where it is the last layer: then Liger multiplies by nothing.
- Liger's options are those that are best for it. Its RMSNorm, SwiGLU, GEGLU, rotary embedding and cross entropy write
  over the incoming gradient, inputs or saved inputs, which takes less memory and destroys them; ours do not. In
  bfloat16 it rounds more often than ours in SwiGLU, GEGLU and softmax's backward, which takes fewer instructions."""


def load(results: Path) -> list[dict]:
    """Return the comparison for each GPU."""
    return documents.load(results, "compiled/*.json")


def blocks(results: Path) -> Iterator[str]:
    """Yield the blocks of the page, nothing where nothing was compared."""
    found = load(results)
    if found:
        yield INTRO
    for document in found:
        yield from documents.opening(document["where"]["target"], document, results)
        plot = documents.address(document, results).with_suffix(".png")
        yield f"![estimated time]({plot})"
        yield table(means(document["rows"]))
        yield from _troubles(document)
        title = f"every row: {len(document['rows'])}"
        yield f"<details><summary>{title}</summary>\n\n{table([*map(cells, document['rows'])])}\n\n</details>"


def cells(row: dict) -> dict[str, str]:
    """Return a row of the long table."""
    figures = pairs(row)
    if round(ratio_of(row, "seconds"), 2) > 1:
        figures["ratio"] = f"**{figures['ratio']}**"
    name = {"layer": code(row["layer"]), "pass": row["pass"], "dtype": row["dtype"], "row": str(row["length"])}
    return name | figures


def _troubles(document: dict) -> Iterator[str]:
    """Yield what falls short of a target, and what could not be compared."""
    if document["short"]:
        yield f"{len(document['short'])} figures are short of the target for each row:"
        yield f"<details><summary>which, and by how much</summary>\n\n{bullets(document['short'])}\n\n</details>"
    if document["failed"]:
        yield "These could not be compared:\n\n" + bullets([*map(code, document["failed"])])
