"""Functions of torch.nn.functional as compositions of operators: torch's names, arguments, defaults and errors."""

from . import losses
from .losses import *  # noqa: F403

__all__: list[str] = []
__all__ += losses.__all__
