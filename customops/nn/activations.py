"""Activations of ``torch.nn.functional`` as compositions of operators, and the operators that have one's name.

Each is a :func:`~customops.fusion.composition.composition`: its gradient follows from those of the operators. Where two
pieces of a function meet, and at infinities and nans, values and gradients are torch's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..fusion.composition import composition
from ..fusion.errors import untraceable
from ..ops.binary import square
from ..ops.choice import clamp, clamp_max, where
from ..ops.comparison import ge, gt, le, lt
from ..ops.unary import abs, erf, expm1, relu_, sigmoid, softplus, tanh
from ..ops.unary import relu as relu_operator

__all__ = [
    "celu",
    "elu",
    "gelu",
    "glu",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "leaky_relu",
    "logsigmoid",
    "mish",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "softplus",
    "softsign",
    "tanh",
    "tanhshrink",
]

torchs = torch.nn.functional
SQRT_HALF = 0.5**0.5
GELU_SLOPE, GELU_CUBIC = 0.7978845608028654, 0.044715  # √(2/π), and the factor of x³, in the tanh form
SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805
EXACT_SOFTPLUS = 40  # above this x, log(1 + e^x) is x in float64


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """Return max(x, 0), as :func:`torch.nn.functional.relu`: the operator :func:`customops.relu`.

    Args:
        input: a tensor of any shape and real dtype but bool.
        inplace: whether to write the result into ``input``.

    >>> relu(torch.tensor([-2.0, 3.0]))
    tensor([0., 3.])
    """
    return relu_(input) if inplace else relu_operator(input)


@composition(torchs.leaky_relu)
def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """Return x where x > 0, else a·x, as :func:`torch.nn.functional.leaky_relu`; a is ``negative_slope``.

        dx = g where x > 0, else a·g

    Args:
        input: a tensor of any shape and floating dtype.
        negative_slope: a, a number.
        inplace: whether to write the result into ``input``; torch computes it, and a fused function refuses it.

    >>> leaky_relu(torch.tensor([-2.0, 3.0]))
    tensor([-0.0200,  3.0000])
    """
    refuse(inplace)
    return where(gt(input, 0), input, input * negative_slope)


@composition(torchs.silu)
def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """Return x·s, as :func:`torch.nn.functional.silu`, where s is the sigmoid of x, whose slope is s·(1 - s).

        dx = g·s·(1 + x·(1 - s))

    The arguments are as for :func:`leaky_relu`.

    >>> silu(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.2689,  0.0000,  0.7311])
    """
    refuse(inplace)
    return input * sigmoid(input)


@composition(torchs.gelu)
def gelu(input: Tensor, *, approximate: str = "none") -> Tensor:
    """Return x·Φ(x), as :func:`torch.nn.functional.gelu`, where Φ is the normal distribution's share below x.

    Φ(x) = (1 + erf(x/√2)) / 2, whose slope is the density φ(x) = e^(-x²/2)/√(2π):

        dx = g·(Φ(x) + x·φ(x))

    With ``approximate="tanh"`` Φ(x) is (1 + tanh u) / 2, where u = √(2/π)·(x + 0.044715·x³). That is s, the sigmoid of
    2·u, which takes fewer instructions, and keeps its digits where tanh u is near -1:

        dx = g·(s + x·s·(1 - s)·2·√(2/π)·(1 + 3·0.044715·x²))

    Args:
        input: a tensor of any shape and floating dtype.
        approximate: "none" or "tanh".

    Raises:
        RuntimeError: ``approximate`` is another word.

    >>> gelu(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.1587,  0.0000,  0.8413])
    """
    if approximate == "tanh":
        return input * sigmoid(input * (2 * GELU_SLOPE + 2 * GELU_SLOPE * GELU_CUBIC * square(input)))
    return 0.5 * input * (1 + erf(input * SQRT_HALF))


@composition(torchs.elu)
def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """Return x where x > 0, else a·(e^x - 1), as :func:`torch.nn.functional.elu`; a is ``alpha``.

    The exponential is of min(x, 0), so that none overflows where it is not chosen:

        dx = g where x > 0, else g·a·e^x

    The arguments are as for :func:`leaky_relu`.

    >>> elu(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.6321,  0.0000,  1.0000])
    """
    refuse(inplace)
    return _elu(input, alpha, 1, 1)


@composition(torchs.selu)
def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """Return s·x where x > 0, else s·a·(e^x - 1), as :func:`torch.nn.functional.selu`; see :func:`elu`.

    s = 1.0507... and a = 1.6732... keep the mean 0 and the variance 1 of what has them.

    >>> selu(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-1.1113,  0.0000,  1.0507])
    """
    refuse(inplace)
    return _elu(input, SELU_ALPHA * SELU_SCALE, SELU_SCALE, 1)


@composition(torchs.celu)
def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """Return x where x > 0, else a·(e^(x/a) - 1), as :func:`torch.nn.functional.celu`; see :func:`elu`.

    >>> celu(torch.tensor([-1.0, 0.0, 1.0]), 2.0)
    tensor([-0.7869,  0.0000,  1.0000])
    """
    refuse(inplace)
    return _elu(input, alpha, 1, 1 / alpha)


@composition(torchs.mish)
def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """Return x·t, as :func:`torch.nn.functional.mish`, where t is the tanh of log(1 + e^x).

    With s the sigmoid of x:

        dx = g·(t + x·(1 - t²)·s)

    The arguments are as for :func:`leaky_relu`.

    >>> mish(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.3034,  0.0000,  0.8651])
    """
    refuse(inplace)
    return input * tanh(softplus(input))


@composition(torchs.logsigmoid)
def logsigmoid(input: Tensor) -> Tensor:
    """Return -log(1 + e^-x), the logarithm of the sigmoid, as :func:`torch.nn.functional.logsigmoid`.

        dx = g / (1 + e^x)

    Args:
        input: a tensor of any shape and floating dtype.

    >>> logsigmoid(torch.tensor([-1000.0, 0.0]))
    tensor([-1.0000e+03, -6.9315e-01])
    """
    return -softplus(-input, 1, EXACT_SOFTPLUS)


@composition(torchs.softsign)
def softsign(input: Tensor) -> Tensor:
    """Return x/(1 + |x|), as :func:`torch.nn.functional.softsign`.

        dx = g / (1 + |x|)²

    Args:
        input: a tensor of any shape and floating dtype.

    >>> softsign(torch.tensor([-1.0, 3.0]))
    tensor([-0.5000,  0.7500])
    """
    return input / (1 + abs(input))


@composition(torchs.tanhshrink)
def tanhshrink(input: Tensor) -> Tensor:
    """Return x - tanh x, as :func:`torch.nn.functional.tanhshrink`.

        dx = g·tanh² x

    Args:
        input: a tensor of any shape and floating dtype.

    >>> tanhshrink(torch.tensor([0.0, 2.0]))
    tensor([0.0000, 1.0360])
    """
    return input - tanh(input)


@composition(torchs.hardtanh)
def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    """Return x between the bounds, else the nearer one, as :func:`torch.nn.functional.hardtanh`.

    A bound itself has slope 0, where :func:`customops.clamp` has 1:

        dx = g where min_val < x < max_val, else 0

    Args:
        input: a tensor of any shape and floating dtype.
        min_val: the lower bound, a number.
        max_val: the upper bound.
        inplace: as for :func:`leaky_relu`.

    Raises:
        ValueError: ``min_val`` is above ``max_val``.

    >>> hardtanh(torch.tensor([-2.0, 0.5, 2.0]))
    tensor([-1.0000,  0.5000,  1.0000])
    """
    refuse(inplace)
    return _between(input, min_val, max_val)


@composition(torchs.relu6)
def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """Return min(max(x, 0), 6), as :func:`torch.nn.functional.relu6`; see :func:`hardtanh`.

    >>> relu6(torch.tensor([-2.0, 3.0, 8.0]))
    tensor([0., 3., 6.])
    """
    refuse(inplace)
    return _between(input, 0, 6)


@composition(torchs.hardsigmoid)
def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """Return relu6(x + 3) / 6, as :func:`torch.nn.functional.hardsigmoid`.

        dx = g/6 where -3 < x < 3, else 0

    The arguments are as for :func:`leaky_relu`.

    >>> hardsigmoid(torch.tensor([-4.0, 0.0, 4.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    refuse(inplace)
    z = clamp(input + 3, 0, 6) / 6
    return where(gt(input, -3), where(lt(input, 3), z, z.detach()), z.detach())


@composition(torchs.hardswish)
def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """Return x·hardsigmoid(x), as :func:`torch.nn.functional.hardswish`.

        dx = 0 where x <= -3, g·(x/3 + 1/2) where -3 < x < 3, else g

    The arguments are as for :func:`leaky_relu`.

    >>> hardswish(torch.tensor([-4.0, 1.0, 4.0]))
    tensor([-0.0000, 0.6667, 4.0000])
    """
    refuse(inplace)
    z = input * clamp(input + 3, 0, 6) / 6
    return where(le(input, -3), z.detach(), where(lt(input, 3), z, input))


@composition(torchs.glu, lambda input, dim=-1: torchs.softmax(input, dim))
def glu(input: Tensor, dim: int = -1) -> Tensor:
    """Return a·s, as :func:`torch.nn.functional.glu`: a is one half along ``dim``, s the sigmoid of the other, b.

        da = g·s,   db = g·a·s·(1 - s)

    Args:
        input: a tensor of any shape and floating dtype.
        dim: the axis to halve, a negative one counted from the end.

    Raises:
        RuntimeError: the axis has an odd size.

    >>> glu(torch.tensor([[1.0, 2.0, 0.0, 0.0]]))
    tensor([[0.5000, 1.0000]])
    """
    if input.shape[dim] % 2:
        raise ValueError(f"glu: expected an even size of dimension {dim}, got {input.shape[dim]}")
    a, b = input.chunk(2, dim)
    return a * sigmoid(b)


def refuse(inplace: bool) -> None:
    """Raise where the result is to be written over the input, which torch does, and no trace."""
    if inplace:
        raise untraceable("inplace=True cannot be traced, as it writes over a tensor", "leave it out")


def _elu(x: Tensor, below: float, above: float, inner: float) -> Tensor:
    """Return above·x where x > 0, else below·(e^(inner·x) - 1): a sum of which one term is 0, which needs no choice."""
    return above * relu_operator(x) + below * expm1(clamp_max(x, 0) * inner)


def _between(x: Any, low: float, high: float) -> Tensor:
    """Return x between bounds, else the nearer one, with slope 0 at the bounds; nan passes, as does its gradient."""
    bounded = clamp(x, low, high).detach()
    return where(le(x, low), bounded, where(ge(x, high), bounded, x))
