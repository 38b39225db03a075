"""Compositions that people fuse, by name: as functions of a library, torch or ours, and of tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

Shapes = tuple[tuple[int, ...], ...]

SMALL, LARGE = (37, 50), (4096, 4096)


class Program(NamedTuple):
    """A composition that people fuse, and shapes of its inputs."""

    name: str
    function: Callable  # takes the library, then the tensors
    small: Shapes  # of each tensor, where elements are computed
    large: Shapes  # of each tensor, where launches are only recorded

    def __str__(self):
        return self.name

    def of(self, lib) -> Callable:
        """Return the function of tensors alone, with the operators of ``lib``."""
        bound = partial(self.function, lib)
        bound.__name__ = self.name
        return bound


def rms_norm(lib, x, weight):
    return x * lib.rsqrt(lib.mean(x * x, -1, keepdim=True) + 1e-6) * weight


def layer_norm(lib, x, weight, bias):
    centred = x - lib.mean(x, -1, keepdim=True)
    return centred * lib.rsqrt(lib.mean(centred * centred, -1, keepdim=True) + 1e-5) * weight + bias


def softmax(lib, x, dim=-1):
    e = lib.exp(x - lib.amax(x, dim, keepdim=True))
    return e / lib.sum(e, dim, keepdim=True)


def log_softmax(lib, x):
    return x - logsumexp(lib, x)


def logsumexp(lib, x):
    most = lib.amax(x, -1, keepdim=True)
    return most + lib.log(lib.sum(lib.exp(x - most), -1, keepdim=True))


def gelu(lib, x):
    return 0.5 * x * (1 + lib.tanh(0.7978845608 * (x + 0.044715 * x**3)))


def swiglu(lib, x, gate):
    return gate * lib.sigmoid(gate) * x


def bias_relu_scale(lib, x, bias, scale):
    return lib.relu(x + bias) * scale


def residual_norm(lib, x, residual, weight):
    return rms_norm(lib, x + residual, weight)


def l2_normalize(lib, x):
    return x * lib.rsqrt(lib.sum(x * x, -1, keepdim=True) + 1e-12)


def mse(lib, x, y):
    return lib.mean((x - y) ** 2)


def cross_entropy(lib, x, probabilities):
    return -lib.mean(lib.sum(log_softmax(lib, x) * probabilities, -1))


def min_max(lib, x):
    least = lib.amin(x, -1, keepdim=True)
    return (x - least) / (lib.amax(x, -1, keepdim=True) - least)


def weighted_mean(lib, x, weight):
    return lib.sum(x * weight, -1) / lib.sum(weight, -1)


def softmax_first(lib, x):
    return softmax(lib, x, 0)


def double_normalised(lib, x):
    """Scale rows, then columns, to a sum of one."""
    positive = lib.exp(x)
    rows = positive / lib.sum(positive, 1, keepdim=True)
    return rows / lib.sum(rows, 0, keepdim=True)


def _of(shape, *others) -> Shapes:
    return (shape, *(shape if other == "x" else shape[-1:] if other == "row" else () for other in others))


def _program(function: Callable, *others: str) -> Program:
    return Program(function.__name__, function, _of(SMALL, *others), _of(LARGE, *others))


PROGRAMS = (
    _program(rms_norm, "row"),
    _program(layer_norm, "row", "row"),
    _program(softmax),
    _program(log_softmax),
    _program(logsumexp),
    _program(gelu),
    _program(swiglu, "x"),
    _program(bias_relu_scale, "row", ""),
    _program(residual_norm, "x", "row"),
    _program(l2_normalize),
    _program(mse, "x"),
    _program(cross_entropy, "x"),
    _program(min_max),
    _program(weighted_mean, "row"),
    _program(softmax_first),
    Program("long_softmax", softmax, ((3, 70_000),), ((256, 2**17),)),  # no program's registers hold a row
    _program(double_normalised),
)


def twice(moves: Any) -> Any:
    """Return the counts of a launch whose programs load and store everything twice."""
    return moves._replace(tensors=tuple(m._replace(requested=2 * m.requested) for m in moves.tensors))
