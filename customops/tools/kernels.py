"""The operators by name, and what a call of one would launch on a GPU, on a machine without one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..config import backend
from ..ops import binary, choice, products, reductions, unary
from .dry_run import dry_run
from .record import LaunchRecord

OPERATORS: dict[str, Callable[..., Tensor]] = {
    name: getattr(module, name)
    for module in (unary, binary, choice, reductions, products)
    for name in module.__all__
    if not name.endswith("_")  # in-place variants
}


def launches(
    function: Callable[..., Tensor], operands: Sequence[Any], options: dict[str, Any], target: str, backward: bool
) -> dict[str, list[LaunchRecord]]:
    """Return the launches of ``function(*operands, **options)`` by phase: forward, and ``backward`` if asked for.

    Raises:
        RuntimeError: there is no kernel for the dtype, or no Triton; and whatever torch raises for such a call.
    """
    with dry_run(target) as records, backend("triton"):  # which refuses what only a formula can compute
        z = function(*operands, **options)
        forward = len(records)
        if backward:
            needed = [x for x in operands if isinstance(x, Tensor) and x.requires_grad]
            torch.autograd.grad(z, needed, torch.empty_like(z))
    phases = {"forward": records[:forward]}
    return phases | {"backward": records[forward:]} if backward else phases
