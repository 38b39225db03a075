"""How many kernels torch would launch for a call, and what they would move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._compat import LightDispatchMode
from ..fusion.unfused import Cost, filled
from .probe import flat


class TorchKernels(LightDispatchMode):
    """Count an operator of torch as a launch where it returns no view, and the bytes that it reads and writes."""

    def __init__(self):
        super().__init__()
        self.launches: list[tuple[str, int]] = []  # the name of each operator, and its bytes

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Call the operator, and count it."""
        z = func(*args, **(kwargs or {}))
        read, written = list(flat((args, kwargs or {}))), list(flat(z))
        memory = {x.untyped_storage().data_ptr() for x in read}
        is_view = func.is_view or (not _writes(func) and any(x.untyped_storage().data_ptr() in memory for x in written))
        if written and not is_view and not _is_allocation(func):
            self.launches.append((func.overloadpacket.__name__, sum(map(filled, (*read, *written)))))
        return z


def _writes(func: Any) -> bool:
    return any(x.alias_info is not None and x.alias_info.is_write for x in func._schema.arguments)


def _is_allocation(func: Any) -> bool:
    return func.overloadpacket.__name__.startswith(("empty", "new_empty", "detach"))


def counted(call: Callable[[], Any]) -> tuple[Any, Cost]:
    """Return what ``call`` returns, and what torch launches for it."""
    with TorchKernels() as seen:
        z = call()
    return z, Cost(len(seen.launches), sum(size for _, size in seen.launches))
