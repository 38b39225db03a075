"""Large pages for results: a CPU's time goes into small ones, not into formulas.

The memory of a large tensor is usually new, and Linux brings it page by page as it is written. 64 MB took 64 ms by
pages of 4 KB and 12 ms by pages of 2 MB, where it takes 7 to write to memory that is there (float32, one thread of an
AMD EPYC, November 2026). Linux gives them where it is asked, unless the machine's owner said never or always.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from mmap import PAGESIZE

from torch import Tensor

LARGE_BYTES = 1 << 22  # of a tensor: two large pages
_HUGEPAGE = 14  # Linux's number of the advice, which Python's mmap module may lack


def advise(x: Tensor) -> None:
    """Ask for large pages under a tensor that is still to be written, of LARGE_BYTES or more."""
    if _madvise is None:
        return
    memory = x.untyped_storage()
    start = -(-memory.data_ptr() // PAGESIZE) * PAGESIZE
    _madvise(start, (memory.data_ptr() + memory.nbytes() - start) // PAGESIZE * PAGESIZE, _HUGEPAGE)


def _find_madvise() -> Callable | None:
    """Return Linux's ``madvise``, None on another system. What it answers does not matter: it only takes advice."""
    if sys.platform != "linux":
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return function


_madvise = _find_madvise()
