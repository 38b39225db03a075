"""PyTorch operators with hand-derived gradients, on Triton kernels or torch formulas, alone or fused."""

from .compiler.graph import Graph
from .compositions import logsumexp, max, min, norm, std, std_mean, var, var_mean, vector_norm
from .config import backend
from .fusion.decorator import fuse
from .fusion.proxy import FusionError
from .ops.binary import add, add_, div, div_, maximum, minimum, mul, mul_, pow, pow_, sub, sub_
from .ops.products import prod
from .ops.reductions import amax, amin, mean, sum
from .ops.unary import (
    abs,
    abs_,
    exp,
    exp_,
    log,
    log_,
    neg,
    neg_,
    relu,
    relu_,
    rsqrt,
    rsqrt_,
    sigmoid,
    sigmoid_,
    sqrt,
    sqrt_,
    tanh,
    tanh_,
)
from .ptx.faults import KernelFault
from .tools.dry_run import dry_run
from .tools.record import LaunchRecord

__version__ = "0.1.0"

__all__ = [
    "FusionError",
    "Graph",
    "KernelFault",
    "LaunchRecord",
    "abs",
    "abs_",
    "add",
    "add_",
    "amax",
    "amin",
    "backend",
    "div",
    "div_",
    "dry_run",
    "exp",
    "exp_",
    "fuse",
    "log",
    "log_",
    "logsumexp",
    "max",
    "maximum",
    "mean",
    "min",
    "minimum",
    "mul",
    "mul_",
    "neg",
    "neg_",
    "norm",
    "pow",
    "pow_",
    "prod",
    "relu",
    "relu_",
    "rsqrt",
    "rsqrt_",
    "sigmoid",
    "sigmoid_",
    "sqrt",
    "sqrt_",
    "std",
    "std_mean",
    "sub",
    "sub_",
    "sum",
    "tanh",
    "tanh_",
    "var",
    "var_mean",
    "vector_norm",
]
