"""The tests' third mode: kernels compiled for a GPU, and executed and checked on the CPU by :func:`customops.dry_run`.

``CUSTOMOPS_TEST_COMPILED=cuda:90`` names the GPU; see docs/testing.md.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import pytest

import customops

TARGET = os.environ.get("CUSTOMOPS_TEST_COMPILED")  # the GPU to compile for; None where this is not the mode


@contextmanager
def executing(target: str) -> Iterator[Counter[str]]:
    """Execute each launch inside the block as compiled for ``target``; yield a count of them, complete at its end.

    A call is one of an operator or of its backward pass, or of a fused function; it has one launch or more.
    """
    from customops.triton_kernels.plan import Plan  # noqa: PLC0415 - Triton may be missing

    counts: Counter[str] = Counter()
    real = Plan.__call__

    def count(plan, operands, outputs):
        counts["calls by compiled code"] += 1
        return real(plan, operands, outputs)

    with pytest.MonkeyPatch.context() as patch, customops.dry_run(target, execute=True) as records:
        patch.setattr(Plan, "__call__", count)
        yield counts
    counts["launches executed"] += len(records)
    counts["thread blocks executed"] += sum(prod(record.grid) for record in records)
