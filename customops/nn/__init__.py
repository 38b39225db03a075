"""``customops.nn``: modules as torch's, computed by ``customops.nn.functional``."""

from . import functional, modules
from .modules import *

__all__ = ["functional"]
__all__ += modules.__all__
