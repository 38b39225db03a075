"""``python -m benchmarks.models``: what ``customops.apply`` makes of models of transformers, diffusers and timm.

Launches are those of one training step's forward and backward that are no matrix product, attention or embedding:
torch's by what its operators are, one each; ours as compiled for the GPU. Steps are those of wider models on the CPU,
by one thread. A run of all models is written to ``benchmarks/results/<machine>/models.json``, and the tables of
docs/models.md are then written anew, as by ``--page``.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch

from .. import machine
from . import page
from .families import FAMILIES
from .launches import counted
from .steps import timed

PARTS: dict[str, tuple[Callable[[str], dict[str, Any]], Callable]] = {
    "launches": (counted, page.launches),
    "steps": (timed, page.steps),
}


def main(argv: Sequence[str]) -> None:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=__doc__)
    parser.add_argument("--part", choices=PARTS, help="only these; default: both")
    parser.add_argument("--models", nargs="+", choices=FAMILIES, help="only these; default: all that are installed")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the tables of the page")
    options = parser.parse_args(argv)
    if not options.page:
        measure(options)
    if options.page or not options.models:
        page.PAGE.write_text(page.written(page.PAGE.read_text(), page.newest()))


def measure(options: argparse.Namespace) -> None:
    """Measure, print the tables, and write the document if it is of all models."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    names = options.models or [name for name, family in FAMILIES.items() if find_spec(family.library)]
    document: dict[str, Any] = {"where": machine.where("cpu") | machine.this_run("benchmarks.models")}
    file = machine.folder(document["where"]) / "models.json"
    for part in [options.part] if options.part else PARTS:
        measured, lines = PARTS[part]
        document[part] = {}
        for name in names:
            document[part][name] = measured(name)
            print(name, document[part][name], file=sys.stderr)
        print(*lines(document), sep="\n", end="\n\n")
    if not options.models:
        before = json.loads(file.read_text()) if file.exists() else {}
        if options.part == "launches":
            document["where"] = before.get("where", document["where"])  # that of the steps
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(before | document, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
