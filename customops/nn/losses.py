"""Losses of torch.nn.functional as compositions of operators.

Each is a :func:`~customops.fusion.composition.composition`. Its gradient follows from those of the operators, and its
docstring says what they come to. Below, i counts the elements, and w_i is 1 where no weight is given. The deprecated
arguments ``size_average`` and ``reduce`` are torch's to compute with.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..fusion.composition import composition
from ..fusion.errors import untraceable
from ..ops.choice import clamp, where
from ..ops.comparison import eq, le, lt
from ..ops.reductions import mean, sum
from ..ops.unary import abs, exp, log, softplus
from ..runtime.specs import broadcast_shapes
from .class_losses import class_dim, class_losses, probability_losses
from .class_losses import reduced as reduced_classes
from .normalizations import log_odds

__all__ = [
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "gaussian_nll_loss",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "mse_loss",
    "nll_loss",
    "poisson_nll_loss",
    "smooth_l1_loss",
]

LINEAR_FROM = 50.0  # where log(1 + e^x) is x in every dtype, and e^x is still finite


@composition(F.mse_loss)
def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """Return the squared differences, or their mean or sum, as :func:`torch.nn.functional.mse_loss`.

    z_i = w_i·(x_i - y_i)². The mean is Σ z_i / Σ w_i.

        dx_i = 2·g_i·w_i·(x_i - y_i),   dy_i = -dx_i

    Args:
        input: x, a tensor of any shape and floating dtype.
        target: y, a tensor of this shape; of another one that broadcasts, with a warning.
        size_average: deprecated.
        reduce: deprecated.
        reduction: "mean", "sum", or "none" for a loss of each element.
        weight: w, a tensor of the shape of ``input``.

    Raises:
        ValueError: ``reduction`` is none of these, or ``weight`` has another shape.
        RuntimeError: the shapes do not broadcast.

    >>> mse_loss(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0]))
    tensor(2.5000)
    """
    _refuse_deprecated(size_average, reduce)
    difference = _difference(input, target, weight)
    return _reduced(difference * difference, reduction, weight)


@composition(F.l1_loss)
def l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """Return the absolute differences, or their mean or sum, as :func:`torch.nn.functional.l1_loss`.

    z_i = w_i·|x_i - y_i|. The mean is Σ z_i / Σ w_i. At x_i = y_i the slope is 0, a subgradient:

        dx_i = g_i·w_i·sign(x_i - y_i),   dy_i = -dx_i

    The arguments and errors are those of :func:`mse_loss`.

    >>> l1_loss(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0]), reduction="sum")
    tensor(3.)
    """
    _refuse_deprecated(size_average, reduce)
    return _reduced(abs(_difference(input, target, weight)), reduction, weight)


@composition(F.smooth_l1_loss)
def smooth_l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    beta: float = 1.0,
) -> Tensor:
    """Return the differences, squared where small, or their mean or sum: :func:`torch.nn.functional.smooth_l1_loss`.

    With d = x_i - y_i, z_i = d²/2β where |d| < β, else |d| - β/2. Both have slope 1 where they meet:

        dx_i = g_i·d/β where |d| < β, else g_i·sign(d),   dy_i = -dx_i

    Args:
        input: x, a tensor of any shape and floating dtype.
        target: y, a tensor of this shape; of another one that broadcasts, with a warning.
        size_average: deprecated.
        reduce: deprecated.
        reduction: "mean", "sum", or "none" for a loss of each element.
        beta: β, a number of at least 0; with 0 it is :func:`l1_loss`.

    Raises:
        ValueError: ``reduction`` is none of these.
        RuntimeError: the shapes do not broadcast, or ``beta`` is negative.

    >>> smooth_l1_loss(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 4.0]), reduction="none")
    tensor([0.1250, 1.5000])
    """
    _refuse_deprecated(size_average, reduce)
    difference = _difference(input, target)
    if beta == 0:
        return _reduced(abs(difference), reduction)
    return _reduced(_huber(difference, beta) / beta, reduction)


@composition(F.huber_loss)
def huber_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Return the differences, squared where small, or their mean or sum, as :func:`torch.nn.functional.huber_loss`.

    With d = x_i - y_i, z_i = w_i·d²/2 where |d| < δ, else w_i·δ·(|d| - δ/2). Both have slope δ where they meet:

        dx_i = g_i·w_i·d where |d| < δ, else g_i·w_i·δ·sign(d),   dy_i = -dx_i

    Args:
        input: x, a tensor of any shape and floating dtype.
        target: y, a tensor of this shape; of another one that broadcasts, with a warning.
        reduction: "mean", over all elements whatever their weight, "sum", or "none" for a loss of each element.
        delta: δ, a number above 0.
        weight: w, a tensor of the shape of ``input``.

    Raises:
        ValueError: ``reduction`` is none of these, or ``weight`` has another shape.
        RuntimeError: the shapes do not broadcast, or ``delta`` is not above 0.

    >>> huber_loss(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 4.0]), reduction="none")
    tensor([0.1250, 1.5000])
    """
    loss = _huber(_difference(input, target, weight), delta)
    return _reduced(loss if weight is None else loss * weight, reduction)


@composition(F.binary_cross_entropy_with_logits)
def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Return the cross entropy of yes and no: :func:`torch.nn.functional.binary_cross_entropy_with_logits`.

    z_i = -w_i·(p·y_i·log s(x_i) + (1 - y_i)·log(1 - s(x_i))), where s is the sigmoid and p = ``pos_weight``. As
    log(1 - s(x)) = -x + log s(x), it is one softplus, which overflows nowhere:

        z_i = w_i·((1 - y_i)·x_i + (1 + (p - 1)·y_i)·log(1 + e^(-x_i)))
        dx_i = g_i·w_i·((1 - y_i) - (1 + (p - 1)·y_i)·s(-x_i))
        dy_i = g_i·w_i·((p - 1)·log(1 + e^(-x_i)) - x_i)

    Args:
        input: x, a tensor of any shape and floating dtype.
        target: y, a tensor of the same shape, of numbers from 0 to 1.
        weight: w, a tensor that broadcasts to this shape.
        size_average: deprecated.
        reduce: deprecated.
        reduction: "mean", over all elements whatever their weight, "sum", or "none" for a loss of each element.
        pos_weight: p, a tensor that broadcasts to this shape.

    Raises:
        ValueError: ``reduction`` is none of these, or ``target`` has another shape.
        RuntimeError: ``weight`` or ``pos_weight`` does not broadcast.

    >>> binary_cross_entropy_with_logits(torch.tensor([0.0, 1e4]), torch.tensor([1.0, 0.0]), reduction="none")
    tensor([6.9315e-01, 1.0000e+04])
    """
    _refuse_deprecated(size_average, reduce)
    if input.shape != target.shape or any(
        x is not None and broadcast_shapes(x.shape, input.shape) != input.shape for x in (weight, pos_weight)
    ):
        raise untraceable("binary_cross_entropy_with_logits of these shapes cannot be traced", "expand them first")
    entropy = softplus(-input, 1, LINEAR_FROM)
    if pos_weight is not None:
        entropy = entropy * (1 + (pos_weight - 1) * target)
    loss = (1 - target) * input + entropy
    return _reduced(loss if weight is None else loss * weight, reduction)


@composition(F.kl_div)
def kl_div(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> Tensor:
    """Return the Kullback-Leibler divergence of the target from log-probabilities: :func:`torch.nn.functional.kl_div`.

    z_i = y_i·(log y_i - x_i), where y_i·log y_i is 0 at y_i = 0; of logarithms of a target, z_i = e^(y_i)·(y_i - x_i).

        dx_i = -g_i·y_i,   dy_i = g_i·(log y_i + 1 - x_i)
        dx_i = -g_i·e^(y_i),   dy_i = g_i·e^(y_i)·(y_i + 1 - x_i)   of logarithms

    Args:
        input: x, a tensor of any shape and floating dtype, of logarithms of probabilities.
        target: y, a tensor that broadcasts with it, of probabilities, or their logarithms.
        size_average: deprecated.
        reduce: deprecated.
        reduction: "mean", over all elements, with a warning; "batchmean", the sum over the size of the first dimension;
            "sum", or "none" for a value of each element.
        log_target: whether ``target`` has logarithms.

    Raises:
        ValueError: ``reduction`` is none of these.
        RuntimeError: the shapes do not broadcast.

    >>> kl_div(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.0, 1.0]]), reduction="batchmean")
    tensor(0.6931)
    """
    _refuse_deprecated(size_average, reduce)
    if log_target:
        loss = exp(target) * (target - input)
    else:
        loss = where(eq(target, 0), 0, target * log(target)) - target * input
    if reduction == "batchmean":
        return sum(loss) / input.shape[0] if input.dim() else sum(loss)
    if reduction == "mean":
        F.kl_div(torch.empty(0, device="meta"), torch.empty(0, device="meta"))  # torch warns
    return _reduced(loss, reduction)


@composition(F.cross_entropy)
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the cross entropy of classes, as :func:`torch.nn.functional.cross_entropy`.

    The logits of the C classes lie along dimension 1, or the only one. With l = x - m - log Σ_c e^(x_c - m), where m is
    the greatest logit, which cancels and is constant for the gradient, with weights w_c of classes, probabilities q_c
    and l their logarithms by the logits, each of the other elements has a loss

        z = -Σ_c w_c·q_c·l_c,   dx_c = g·(e^(l_c)·Σ_k w_k·q_k - w_c·q_c),   dq_c = -g·w_c·l_c

    Of a class index t, q_c = [c = t] and z = -w_t·l_t: kernels compare t with the number of each class, so nothing of
    the size of the logits is written. The mean is Σ z / Σ w_t over all t but ``ignore_index``, whose loss is 0; of
    probabilities it is that over all. Smoothing by ε takes (1 - ε)·q_c + ε/C for q_c, but w_c for w_t of the ε/C.

    Args:
        input: x, the logits, a tensor of shape (C), (N, C) or (N, C, d1, d2, ...) and floating dtype.
        target: t, class indices, of int64 and the shape of ``input`` without the dimension of classes; or q,
            probabilities, of its shape and a floating dtype.
        weight: w, a tensor of shape (C).
        size_average: deprecated.
        ignore_index: the index of no class.
        reduce: deprecated.
        reduction: "mean", "sum", or "none" for a loss of each element.
        label_smoothing: ε, from 0 to 1.

    Raises:
        IndexError: on a CPU, an index is neither one of a class nor ``ignore_index``. On a GPU its loss is nan.
        RuntimeError: the dtype or the shape of ``target`` or ``weight`` is another, or ``label_smoothing`` is.
        ValueError: ``reduction`` is none of these, or the sizes of the first dimension differ.

    >>> cross_entropy(torch.tensor([[0.0, 0.0], [1e4, 0.0]]), torch.tensor([1, 1]), reduction="none")
    tensor([6.9315e-01, 1.0000e+04])
    """
    _refuse_deprecated(size_average, reduce)
    if input.shape == target.shape:
        losses = probability_losses(input, target, weight, label_smoothing)
        if reduction != "mean":
            return _reduced(losses, reduction)
        return sum(losses) / (input.numel() / input.shape[class_dim(input)])
    each = class_losses(input, log_odds(input, class_dim(input)), target, weight, ignore_index, label_smoothing)
    return reduced_classes(each, reduction)


@composition(F.nll_loss)
def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Return the negative log-probabilities of class indices, as :func:`torch.nn.functional.nll_loss`.

    It is :func:`cross_entropy` of indices, where ``input`` has the logarithms l of probabilities:

        z = -w_t·l_t,   dl_c = -g·w_t where c = t, else 0

    The arguments and errors are those of :func:`cross_entropy`.

    >>> nll_loss(torch.tensor([[-1.0, -2.0], [-3.0, -4.0]]), torch.tensor([1, 0]))
    tensor(2.5000)
    """
    _refuse_deprecated(size_average, reduce)
    return reduced_classes(class_losses(input, (input, None), target, weight, ignore_index), reduction)


@composition(F.gaussian_nll_loss)
def gaussian_nll_loss(
    input: Tensor,
    target: Tensor,
    var: Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    """Return the negative log-likelihood of normal distributions: :func:`torch.nn.functional.gaussian_nll_loss`.

    With d = x_i - y_i and the variance v_i, or eps if that is more, z_i = (log v_i + d²/v_i) / 2, of which log(2π)/2,
    which is constant, is left out unless ``full``. For the gradient the bound is not there, as in torch:

        dx_i = g_i·d/v_i,   dy_i = -dx_i,   dv_i = g_i·(1 - d²/v_i) / 2v_i

    Args:
        input: x, a tensor of any shape and floating dtype: the means.
        target: y, a tensor that broadcasts with it.
        var: v, a tensor of the shape of ``input``, or of this with one dimension 1, or without the last; or a number,
            with which torch computes.
        full: whether to add the constant.
        eps: the least variance.
        reduction: "mean", "sum", or "none" for a loss of each element.

    Raises:
        ValueError: ``reduction`` is none of these, or ``var`` has another shape or a negative element: where a kernel
            or blocks compute, the loss of a negative one is nan.
        RuntimeError: the shapes do not broadcast.

    >>> gaussian_nll_loss(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]), torch.tensor([1.0, 1.0]))
    tensor(1.)
    """
    if not isinstance(var, Tensor):
        raise untraceable("a variance that is a number cannot be traced", "pass a tensor")
    if var.dim() < input.dim() and var.shape == input.shape[:-1]:
        var = var.unsqueeze(-1)
    if var.shape != input.shape:
        pairs = zip(input.shape, var.shape, strict=True)
        if var.dim() != input.dim() or [n for m, n in pairs if m != n] != [1]:
            raise ValueError(f"gaussian_nll_loss: expected var of shape {tuple(input.shape)}, got {tuple(var.shape)}")
    bounded = where(lt(var, eps), var - var.detach() + eps, var)  # whose slope is 1 anywhere
    variance = where(lt(var, 0), math.nan, bounded)
    difference = input - target
    losses = 0.5 * (log(variance) + difference * difference / variance)
    return _reduced(losses + 0.5 * math.log(2 * math.pi) if full else losses, reduction)


@composition(F.poisson_nll_loss)
def poisson_nll_loss(
    input: Tensor,
    target: Tensor,
    log_input: bool = True,
    full: bool = False,
    size_average: bool | None = None,
    eps: float = 1e-8,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Return the negative log-likelihood of Poisson distributions: :func:`torch.nn.functional.poisson_nll_loss`.

    z_i = e^(x_i) - y_i·x_i, where x are the logarithms of the means, else x_i - y_i·log(x_i + eps). What depends on y
    alone, log y!, is left out; with ``full`` it is added, where y > 1, as y·log y - y + log(2π·y)/2 by Stirling.

        dx_i = g_i·(e^(x_i) - y_i),   dy_i = -g_i·x_i
        dx_i = g_i·(1 - y_i/(x_i + eps)),   dy_i = -g_i·log(x_i + eps)   of means

    Args:
        input: x, a tensor of any shape and floating dtype.
        target: y, a tensor that broadcasts with it, of counts.
        log_input: whether ``input`` has logarithms.
        full: whether to add the approximation of log y!.
        size_average: deprecated.
        eps: what is added to a mean before its logarithm is taken.
        reduce: deprecated.
        reduction: "mean", "sum", or "none" for a loss of each element.

    Raises:
        ValueError: ``reduction`` is none of these.
        RuntimeError: the shapes do not broadcast.

    >>> poisson_nll_loss(torch.tensor([0.0, 0.0]), torch.tensor([3.0, 1.0]), reduction="sum")
    tensor(2.)
    """
    _refuse_deprecated(size_average, reduce)
    losses = exp(input) - target * input if log_input else input - target * log(input + eps)
    if full:
        stirling = target * log(target) - target + 0.5 * log(2 * math.pi * target)
        losses = losses + where(le(target, 1), 0, stirling)
    return _reduced(losses, reduction)


def _refuse_deprecated(size_average: bool | None, reduce: bool | None) -> None:
    if size_average is not None or reduce is not None:
        raise untraceable("size_average and reduce cannot be traced", "use reduction")


def _difference(x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return x - y, with torch's warning where they broadcast; weights have to have the shape of x."""
    if weight is not None and weight.shape != x.shape:
        raise untraceable("weights of another shape than input cannot be traced", "pass one for each element")
    if x.shape != y.shape:
        F.mse_loss(torch.empty(x.shape, device="meta"), torch.empty(y.shape, device="meta"), reduction="none")
    return x - y


def _huber(d: Tensor, delta: float) -> Tensor:
    """Return d²/2 where |d| < δ, else δ·(|d| - δ/2): with c = min(max(d, -δ), δ) it is c·(d - c/2).

    So no square overflows, and no product of inf and a slope of 0 is in the gradient.
    """
    c = clamp(d, -delta, delta)
    return c * (d - c * 0.5)


def _reduced(losses: Tensor, reduction: str, weight: Tensor | None = None) -> Tensor:
    """Return the losses, each times its weight, or their sum, or their mean, for which weights are counted."""
    if weight is not None:
        losses = losses * weight
        if reduction == "mean":
            return sum(losses) / sum(weight)
    return losses if reduction == "none" else sum(losses) if reduction == "sum" else mean(losses)
