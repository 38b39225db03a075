"""Show a progress bar where tqdm is installed: a machine with a GPU may have torch and nothing else."""

from __future__ import annotations

from collections.abc import Iterable

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None


def bar(items: Iterable, name: str, total: int | None = None) -> Iterable:
    """Return ``items``, whose progress is shown as they are taken; ``total`` says how many, where they do not."""
    return tqdm(items, name, total, unit="") if tqdm else items


def write(line: str) -> None:
    """Print above the bar."""
    if tqdm:
        tqdm.write(line)
    else:
        print(line, flush=True)
