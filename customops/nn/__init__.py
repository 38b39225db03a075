"""``customops.nn``: modules as torch's, computed by ``customops.nn.functional``."""

from . import functional, loss_modules, modules
from .loss_modules import *
from .modules import *

__all__ = ["functional"]
__all__ += loss_modules.__all__
__all__ += modules.__all__
