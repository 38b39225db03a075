"""Ten PyTorch operators with hand-derived gradients, on Triton kernels or torch formulas."""

from .binary import add, add_, mul, mul_, pow, pow_, sub, sub_
from .dispatch import backend
from .reductions import mean, sum
from .unary import exp, exp_, log, log_, relu, relu_, sigmoid, sigmoid_

__version__ = "0.1.0"

__all__ = [
    "add",
    "add_",
    "backend",
    "exp",
    "exp_",
    "log",
    "log_",
    "mean",
    "mul",
    "mul_",
    "pow",
    "pow_",
    "relu",
    "relu_",
    "sigmoid",
    "sigmoid_",
    "sub",
    "sub_",
    "sum",
]
