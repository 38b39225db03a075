"""Measure the memory of a call: its peak, and what it saves for backward; prepare that of a machine to be timed."""

from __future__ import annotations

import ctypes
import json
import mmap
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
    """Return the bytes that a call of ``function`` saves for its backward, tensors at one address once.

    They are read from the recorded graph: under hooks a fused call saves inputs instead of statistics.
    """
    result = function()
    results = [result] if isinstance(result, Tensor) else result
    nodes: list = [z.grad_fn for z in results if z.grad_fn]
    seen, tensors = set(nodes), []
    while nodes:
        node = nodes.pop()
        tensors += _saved_by(node)
        above = {other for other, _ in node.next_functions if other} - seen
        nodes += above
        seen |= above
    return footprint(tensors)


def _saved_by(node) -> list[Tensor]:
    """Return the tensors that one node of the graph saves: a node of C++ has an attribute for each, or each list."""
    if hasattr(node, "saved_tensors"):
        return [x for x in node.saved_tensors if x is not None]
    values = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
    each = [x for value in values for x in (value if isinstance(value, tuple | list) else [value])]
    return [x for x in each if isinstance(x, Tensor)]


def footprint(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of ``tensors`` in memory, those at one address once: an expanded tensor has few."""
    ranges = {x.data_ptr(): min(x.numel() * x.element_size(), x.untyped_storage().nbytes()) for x in tensors}
    return sum(ranges.values())


def keep_memory() -> None:
    """Tell glibc to keep freed memory: it hands large tensors back to the kernel by chance, which costs up to 20 %."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError):
        return  # another C library
    for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        mallopt(option, 1 << 30)


def warm_memory() -> None:
    """Write to most of the free memory once, by large pages.

    A virtual machine's host brings memory when it is first touched: 64 MB then took 200 ms instead of 12.
    """
    try:
        with open("/proc/meminfo") as file:
            free = next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable"))
        memory = mmap.mmap(-1, free * 6 // 10)
        memory.madvise(mmap.MADV_HUGEPAGE)
    except (OSError, AttributeError):
        return  # another system
    torch.frombuffer(memory, dtype=torch.uint8).fill_(1)
