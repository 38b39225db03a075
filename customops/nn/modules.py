"""Modules of ``torch.nn`` whose ``forward`` is by ``customops.nn.functional``; all else is torch's.

A module is a subclass of that of torch with its name: constructor, parameters, state dict and text are inherited.
"""

from __future__ import annotations

from torch import Tensor, nn

from . import functional as f

__all__ = [
    "CELU",
    "ELU",
    "GELU",
    "GLU",
    "SELU",
    "AddRMSNorm",
    "CosineSimilarity",
    "GeGLU",
    "GroupNorm",
    "Hardshrink",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "LayerNorm",
    "LeakyReLU",
    "LogSigmoid",
    "LogSoftmax",
    "Mish",
    "PReLU",
    "RMSNorm",
    "ReLU",
    "ReLU6",
    "SiLU",
    "Sigmoid",
    "Softcap",
    "Softmax",
    "Softmin",
    "Softplus",
    "Softshrink",
    "Softsign",
    "SwiGLU",
    "Tanh",
    "Tanhshrink",
    "Threshold",
]


class CELU(nn.CELU):
    """:class:`torch.nn.CELU` by :func:`~customops.nn.functional.celu`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of the module's arguments."""
        return f.celu(input, self.alpha, self.inplace)


class CosineSimilarity(nn.CosineSimilarity):
    """:class:`torch.nn.CosineSimilarity` by :func:`~customops.nn.functional.cosine_similarity`."""

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Return the function of the module's arguments."""
        return f.cosine_similarity(x1, x2, self.dim, self.eps)


class ELU(nn.ELU):
    """:class:`torch.nn.ELU` by :func:`~customops.nn.functional.elu`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of the module's arguments."""
        return f.elu(input, self.alpha, self.inplace)


class GELU(nn.GELU):
    """:class:`torch.nn.GELU` by :func:`~customops.nn.functional.gelu`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of the module's arguments."""
        return f.gelu(input, approximate=self.approximate)


class GLU(nn.GLU):
    """:class:`torch.nn.GLU` by :func:`~customops.nn.functional.glu`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of the module's arguments."""
        return f.glu(input, self.dim)


class GroupNorm(nn.GroupNorm):
    """:class:`torch.nn.GroupNorm` by :func:`~customops.nn.functional.group_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of the module's arguments."""
        return f.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class Hardshrink(nn.Hardshrink):
    """:class:`torch.nn.Hardshrink` by :func:`~customops.nn.functional.hardshrink`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of the module's arguments."""
        return f.hardshrink(input, self.lambd)


class Hardsigmoid(nn.Hardsigmoid):
    """:class:`torch.nn.Hardsigmoid` by :func:`~customops.nn.functional.hardsigmoid`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of the module's arguments."""
        return f.hardsigmoid(input, self.inplace)


class Hardswish(nn.Hardswish):
    """:class:`torch.nn.Hardswish` by :func:`~customops.nn.functional.hardswish`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of the module's arguments."""
        return f.hardswish(input, self.inplace)


class Hardtanh(nn.Hardtanh):
    """:class:`torch.nn.Hardtanh` by :func:`~customops.nn.functional.hardtanh`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of the module's arguments."""
        return f.hardtanh(input, self.min_val, self.max_val, self.inplace)


class LayerNorm(nn.LayerNorm):
    """:class:`torch.nn.LayerNorm` by :func:`~customops.nn.functional.layer_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of the module's arguments."""
        return f.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class LeakyReLU(nn.LeakyReLU):
    """:class:`torch.nn.LeakyReLU` by :func:`~customops.nn.functional.leaky_relu`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of the module's arguments."""
        return f.leaky_relu(input, self.negative_slope, self.inplace)


class LogSigmoid(nn.LogSigmoid):
    """:class:`torch.nn.LogSigmoid` by :func:`~customops.nn.functional.logsigmoid`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of the module's arguments."""
        return f.logsigmoid(input)


class LogSoftmax(nn.LogSoftmax):
    """:class:`torch.nn.LogSoftmax` by :func:`~customops.nn.functional.log_softmax`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of the module's arguments."""
        return f.log_softmax(input, self.dim)


class Mish(nn.Mish):
    """:class:`torch.nn.Mish` by :func:`~customops.nn.functional.mish`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of the module's arguments."""
        return f.mish(input, self.inplace)


class PReLU(nn.PReLU):
    """:class:`torch.nn.PReLU` by :func:`~customops.nn.functional.prelu`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of the module's arguments."""
        return f.prelu(input, self.weight)


class ReLU(nn.ReLU):
    """:class:`torch.nn.ReLU` by :func:`~customops.nn.functional.relu`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of the module's arguments."""
        return f.relu(input, self.inplace)


class ReLU6(nn.ReLU6):
    """:class:`torch.nn.ReLU6` by :func:`~customops.nn.functional.relu6`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of the module's arguments."""
        return f.relu6(input, self.inplace)


class RMSNorm(nn.RMSNorm):
    """:class:`torch.nn.RMSNorm` by :func:`~customops.nn.functional.rms_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the function of the module's arguments."""
        return f.rms_norm(x, self.normalized_shape, self.weight, self.eps)


class SELU(nn.SELU):
    """:class:`torch.nn.SELU` by :func:`~customops.nn.functional.selu`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of the module's arguments."""
        return f.selu(input, self.inplace)


class SiLU(nn.SiLU):
    """:class:`torch.nn.SiLU` by :func:`~customops.nn.functional.silu`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of the module's arguments."""
        return f.silu(input, self.inplace)


class Sigmoid(nn.Sigmoid):
    """:class:`torch.nn.Sigmoid` by :func:`~customops.nn.functional.sigmoid`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of the module's arguments."""
        return f.sigmoid(input)


class Softmax(nn.Softmax):
    """:class:`torch.nn.Softmax` by :func:`~customops.nn.functional.softmax`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of the module's arguments."""
        return f.softmax(input, self.dim)


class Softmin(nn.Softmin):
    """:class:`torch.nn.Softmin` by :func:`~customops.nn.functional.softmin`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of the module's arguments."""
        return f.softmin(input, self.dim)


class Softplus(nn.Softplus):
    """:class:`torch.nn.Softplus` by :func:`~customops.nn.functional.softplus`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of the module's arguments."""
        return f.softplus(input, self.beta, self.threshold)


class Softshrink(nn.Softshrink):
    """:class:`torch.nn.Softshrink` by :func:`~customops.nn.functional.softshrink`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of the module's arguments."""
        return f.softshrink(input, self.lambd)


class Softsign(nn.Softsign):
    """:class:`torch.nn.Softsign` by :func:`~customops.nn.functional.softsign`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of the module's arguments."""
        return f.softsign(input)


class Tanh(nn.Tanh):
    """:class:`torch.nn.Tanh` by :func:`~customops.nn.functional.tanh`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of the module's arguments."""
        return f.tanh(input)


class Tanhshrink(nn.Tanhshrink):
    """:class:`torch.nn.Tanhshrink` by :func:`~customops.nn.functional.tanhshrink`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of the module's arguments."""
        return f.tanhshrink(input)


class Threshold(nn.Threshold):
    """:class:`torch.nn.Threshold` by :func:`~customops.nn.functional.threshold`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of the module's arguments."""
        return f.threshold(input, self.threshold, self.value, self.inplace)


class AddRMSNorm(nn.RMSNorm):
    """:class:`torch.nn.RMSNorm` of a sum, by :func:`~customops.nn.functional.add_rms_norm`."""

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return the norm of ``x + residual``, and that sum."""
        return f.add_rms_norm(x, residual, self.normalized_shape, self.weight, self.eps)


class SwiGLU(nn.Module):
    """A module of :func:`~customops.nn.functional.swiglu`."""

    def forward(self, input: Tensor, gate: Tensor) -> Tensor:
        """Return input·silu(gate)."""
        return f.swiglu(input, gate)


class GeGLU(nn.Module):
    """A module of :func:`~customops.nn.functional.geglu`."""

    def __init__(self, approximate: str = "none"):
        super().__init__()
        self.approximate = approximate

    def forward(self, input: Tensor, gate: Tensor) -> Tensor:
        """Return input·gelu(gate)."""
        return f.geglu(input, gate, self.approximate)

    def extra_repr(self) -> str:
        """Return the argument, for the text of the module."""
        return f"approximate={self.approximate!r}"


class Softcap(nn.Module):
    """A module of :func:`~customops.nn.functional.softcap`."""

    def __init__(self, cap: float):
        super().__init__()
        self.cap = cap

    def forward(self, input: Tensor) -> Tensor:
        """Return cap·tanh(input/cap)."""
        return f.softcap(input, self.cap)

    def extra_repr(self) -> str:
        """Return the argument, for the text of the module."""
        return f"cap={self.cap}"
