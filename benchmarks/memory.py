"""Measure the memory of a call: its peak, and what it saves for backward."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor


def peak(function: Callable, device: str) -> int:
    """Return the bytes allocated at the highest point of a call, above where it began."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = function()
        del result
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = function()
        del result
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [e for e in events if e.get("name") == "[memory]" and e["args"]["Device Type"] == 0]
    highest = allocated = 0
    for change in sorted(changes, key=lambda e: e["ts"]):
        allocated += change["args"]["Bytes"]
        highest = max(highest, allocated)
    return highest


def saved(function: Callable) -> int:
    """Return the bytes that ``function`` saves for its backward."""
    sizes: dict[int, int] = {}

    def pack(x: Tensor) -> None:
        sizes[x.data_ptr()] = x.numel() * x.element_size()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda _: None):
        function()
    return sum(sizes.values())


def footprint(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of ``tensors`` in memory, those at one address once: an expanded tensor has few."""
    ranges = {x.data_ptr(): min(x.numel() * x.element_size(), x.untyped_storage().nbytes()) for x in tensors}
    return sum(ranges.values())
