"""Modules of ``torch.nn`` that are losses, whose ``forward`` is by ``customops.nn.functional``; all else is torch's.

A module is a subclass of that of torch with its name: constructor, buffers, state dict and text are inherited.
"""

from __future__ import annotations

from torch import Tensor, nn

from . import functional as f

__all__ = [
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "GaussianNLLLoss",
    "HuberLoss",
    "KLDivLoss",
    "L1Loss",
    "MSELoss",
    "NLLLoss",
    "PoissonNLLLoss",
    "SmoothL1Loss",
]


class BCEWithLogitsLoss(nn.BCEWithLogitsLoss):
    """:class:`torch.nn.BCEWithLogitsLoss` by :func:`~customops.nn.functional.binary_cross_entropy_with_logits`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss by the module's arguments."""
        return f.binary_cross_entropy_with_logits(
            input, target, self.weight, pos_weight=self.pos_weight, reduction=self.reduction
        )


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """:class:`torch.nn.CrossEntropyLoss` by :func:`~customops.nn.functional.cross_entropy`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss by the module's arguments."""
        return f.cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class GaussianNLLLoss(nn.GaussianNLLLoss):
    """:class:`torch.nn.GaussianNLLLoss` by :func:`~customops.nn.functional.gaussian_nll_loss`."""

    def forward(self, input: Tensor, target: Tensor, var: Tensor | float) -> Tensor:
        """Return the loss by the module's arguments."""
        return f.gaussian_nll_loss(input, target, var, full=self.full, eps=self.eps, reduction=self.reduction)


class HuberLoss(nn.HuberLoss):
    """:class:`torch.nn.HuberLoss` by :func:`~customops.nn.functional.huber_loss`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss by the module's arguments."""
        return f.huber_loss(input, target, reduction=self.reduction, delta=self.delta)


class KLDivLoss(nn.KLDivLoss):
    """:class:`torch.nn.KLDivLoss` by :func:`~customops.nn.functional.kl_div`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss by the module's arguments."""
        return f.kl_div(input, target, reduction=self.reduction, log_target=self.log_target)


class L1Loss(nn.L1Loss):
    """:class:`torch.nn.L1Loss` by :func:`~customops.nn.functional.l1_loss`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss by the module's arguments."""
        return f.l1_loss(input, target, reduction=self.reduction)


class MSELoss(nn.MSELoss):
    """:class:`torch.nn.MSELoss` by :func:`~customops.nn.functional.mse_loss`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss by the module's arguments."""
        return f.mse_loss(input, target, reduction=self.reduction)


class NLLLoss(nn.NLLLoss):
    """:class:`torch.nn.NLLLoss` by :func:`~customops.nn.functional.nll_loss`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss by the module's arguments."""
        return f.nll_loss(input, target, self.weight, ignore_index=self.ignore_index, reduction=self.reduction)


class PoissonNLLLoss(nn.PoissonNLLLoss):
    """:class:`torch.nn.PoissonNLLLoss` by :func:`~customops.nn.functional.poisson_nll_loss`."""

    def forward(self, log_input: Tensor, target: Tensor) -> Tensor:
        """Return the loss by the module's arguments."""
        return f.poisson_nll_loss(
            log_input, target, log_input=self.log_input, full=self.full, eps=self.eps, reduction=self.reduction
        )


class SmoothL1Loss(nn.SmoothL1Loss):
    """:class:`torch.nn.SmoothL1Loss` by :func:`~customops.nn.functional.smooth_l1_loss`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss by the module's arguments."""
        return f.smooth_l1_loss(input, target, reduction=self.reduction, beta=self.beta)
