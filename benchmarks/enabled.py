"""What a call costs in a block of ``customops.enabled``: ``python -m benchmarks.enabled`` prints the table of the page.

Beside it stands what a function mode of torch costs that does nothing. All take turns at random in each round; a figure
is the median over rounds of the processor time that a call takes more than without any.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from statistics import median

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

import customops
from customops.tools.timing import in_turns

from .text import table

REPEATS, SECONDS = 2000, 3.0  # calls in a round, and seconds of all rounds of a call
Call = Callable[[], object]


class Nothing(TorchFunctionMode):
    """A mode that calls what it is asked for."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Call torch's function."""
        return func(*args, **kwargs) if kwargs else func(*args)


def calls() -> dict[str, tuple[Call, Call]]:
    """Return what is called by name: torch's function, and what stands for it without a block."""
    x, y, ours = torch.randn(4, 8), torch.randn(8, 8), customops.nn.functional
    alone: dict[str, Call] = {
        "`x.view(8, 4)`, not taken": lambda: x.view(8, 4),
        "`y @ y`, not taken": lambda: y @ y,
        "`x.shape`": lambda: x.shape,
        "`F.dropout`, not taken, in Python": lambda: functional.dropout(x, 0.5, False),
    }
    return {name: (call, call) for name, call in alone.items()} | {
        "`torch.exp(x)`, taken": (lambda: torch.exp(x), lambda: customops.exp(x)),
        "`x * 2`, taken": (lambda: x * 2, lambda: customops.mul(x, 2)),
        "`F.silu(x)`, taken, in Python": (lambda: functional.silu(x), lambda: ours.silu(x)),
        "`F.layer_norm(x, (8,))`, taken, in Python": (
            lambda: functional.layer_norm(x, (8,)),
            lambda: ours.layer_norm(x, (8,)),
        ),
    }


def _run(call: Call, block: Callable[[], AbstractContextManager]) -> Callable[[], float]:
    """Return what calls in a block, and returns microseconds of a call."""

    def run() -> float:
        with block():
            start = time.thread_time()
            for _ in range(REPEATS):
                call()
            return (time.thread_time() - start) / REPEATS * 1e6

    return run


def measured(torchs: Call, alone: Call) -> dict[str, float]:
    """Return microseconds of a call without a block, and what it takes more in one, and under a mode."""
    runs = {
        "alone": _run(alone, nullcontext),
        "torch": _run(torchs, nullcontext),
        "nothing": _run(torchs, Nothing),
        "enabled": _run(torchs, customops.enabled),
    }
    times = in_turns(runs, SECONDS)

    def more(who: str, than: str) -> float:
        return median(a - b for a, b in zip(times[who], times[than], strict=True))

    return {
        "alone": median(times["alone"]),
        "nothing": more("nothing", "torch"),
        "enabled": more("enabled", "alone"),
    }


def main() -> int:
    """Print the table."""
    torch.set_num_threads(1)
    rows = []
    for name, (torchs, alone) in calls().items():
        costs = measured(torchs, alone)
        figures = {"without": f"{costs['alone']:.2f}", "in a block": f"+{costs['enabled']:.2f}"}
        rows.append({"call": name} | figures | {"in a mode that does nothing": f"+{costs['nothing']:.2f}"})
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
