"""PyTorch operators with hand-derived gradients, on Triton kernels or torch formulas, alone or fused."""

from . import binary, reductions, unary
from .binary import *  # noqa: F403 - each module names what it offers
from .dispatch import backend
from .dry_run import dry_run
from .fuse import fuse
from .reductions import *  # noqa: F403
from .unary import *  # noqa: F403

__version__ = "0.1.0"

__all__ = ["backend", "dry_run", "fuse"]
__all__ += binary.__all__
__all__ += reductions.__all__
__all__ += unary.__all__
