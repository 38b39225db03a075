"""Functions of ``torch.nn.functional`` as compositions of operators: one kernel each way, alone and inside others.

Names, arguments, defaults and errors are torch's. A few that layers use have no name there.
"""

from . import activations, losses, normalizations, piecewise, transformers
from .activations import *
from .losses import *
from .normalizations import *
from .piecewise import *
from .transformers import *

__all__ = []
__all__ += activations.__all__
__all__ += losses.__all__
__all__ += normalizations.__all__
__all__ += piecewise.__all__
__all__ += transformers.__all__
__all__.sort()
