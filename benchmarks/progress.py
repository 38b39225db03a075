"""A progress bar where tqdm is installed: a machine with a GPU may have torch and nothing else."""

from __future__ import annotations

from collections.abc import Iterable

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None


def bar(items: Iterable, name: str) -> Iterable:
    """``items``, and how far they have come."""
    return tqdm(items, name, unit="") if tqdm else items


def write(line: str) -> None:
    """Print above the bar."""
    if tqdm:
        tqdm.write(line)
    else:
        print(line, flush=True)
