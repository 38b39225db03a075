"""PyTorch operators with hand-derived gradients, on Triton kernels or torch formulas, alone or fused."""

from . import compositions
from . import nn as nn
from .compiler.graph import Graph
from .compositions import *
from .config import backend
from .fusion.decorator import fuse
from .fusion.errors import FusionError
from .models.apply import apply, restore
from .models.enabled import enabled
from .ops import binary, choice, comparison, products, reductions, unary
from .ops.binary import *
from .ops.choice import *
from .ops.comparison import *
from .ops.products import *
from .ops.reductions import *
from .ops.unary import *
from .ptx.faults import KernelFault
from .tools.dry_run import dry_run
from .tools.record import LaunchRecord

__version__ = "0.1.0"

__all__ = [
    "FusionError",
    "Graph",
    "KernelFault",
    "LaunchRecord",
    "apply",
    "backend",
    "dry_run",
    "enabled",
    "fuse",
    "restore",
]
__all__ += compositions.__all__
__all__ += binary.__all__
__all__ += choice.__all__
__all__ += comparison.__all__
__all__ += products.__all__
__all__ += reductions.__all__
__all__ += unary.__all__
__all__.sort()
