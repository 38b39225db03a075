"""The gradients of a fused call: which kernels compute them, and of which tensors.

Four kinds of indices occur here and in function.py, all counted from 0. In a gradient's graph the value i of the
fusion's graph is value ``offset + i``, as cotangents come first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..compiler.evaluate import evaluate
from ..compiler.executable import COMPUTE, Executable, by_kernel
from ..compiler.gradient import dependent_results, differentiate
from ..compiler.saving import Saved
from ..compiler.views import WHOLE, Operand, Piece, Pieces, Seen, Share, joined
from ..runtime.paths import plan_key
from ..runtime.specs import TensorSpec

if TYPE_CHECKING:
    from .function import Fusion

InputIndex = int  # of a tensor that the fused function is called with
ValueIndex = int  # of a value of the fusion's graph: inputs first, which are the tensors, or parts of them
ResultIndex = int  # of a result, each counted once, and of its cotangent


def _dependent(fusion: Fusion, i: InputIndex) -> list[int]:
    """Return the results of a fusion's graph that depend on a tensor."""
    return dependent_results(fusion.graph, fusion.inputs_needed((i,)))


def _depending_on(x: Tensor, grad: Tensor) -> Tensor:
    """Return a gradient of ``x`` that can be differentiated by x, with a slope of 0 where it is constant.

    So torch has that of ``leaky_relu``, whose operators here compare x with 0: what is compared has no derivative.
    """
    if grad.requires_grad or not x.requires_grad:
        return grad
    return torch.where(torch.ones_like(x, dtype=torch.bool), grad, torch.sign(x))


class Gradient:
    """The gradients of a fusion for one set of tensors that need them, and of results that cotangents arrive from.

    It is called with the cotangents, then the tensors ``saved_tensors``, then the values ``saved_values``.
    """

    __slots__ = (
        "common",
        "constant",
        "graph",
        "known",
        "offset",
        "operands",
        "outputs",
        "result_index",
        "saved",
        "saved_tensors",
        "saved_values",
        "seen",
        "shares",
        "specs",
        "zeros",
    )

    def __init__(self, fusion: Fusion, needed: tuple[InputIndex, ...], outputs: tuple[ResultIndex, ...], saved: Saved):
        """Differentiate; the values ``saved`` need not be computed again."""
        inputs, results = fusion.presentation.inputs, fusion.presentation.results
        graph_inputs = fusion.inputs_needed(needed)
        dependent = set(dependent_results(fusion.graph, graph_inputs))
        arriving = [(k, piece) for k, i in enumerate(outputs) for piece in results[i] if piece.at in dependent]
        self.graph, at = differentiate(fusion.graph, graph_inputs, tuple(piece.at for _, piece in arriving))
        self.outputs = outputs  # the results that cotangents are given of
        self.offset = len(arriving)  # from the fusion's graph to this one
        self.common = fusion.common
        values = (*saved.results, *saved.statistics)
        # Without the statistics, when they are differentiated again, gradients may read results that else they do not.
        read = {*self._read(values, values), *self._read(saved.results, saved.results)}
        self.saved_values = [i for i in values if i in read]
        saved_results = {
            i: k for i, k in fusion.savable_results.items() if i in saved.results and i in self.saved_values
        }
        # The axis of each dimension of the results among these, by value of this graph.
        self.known = {self.offset + i: fusion.graph.results[results[k][0].at][1] for i, k in saved_results.items()}
        read = set(self._read((piece.at for pieces in inputs for piece in pieces), saved_results))
        self.saved_tensors = [k for k, pieces in enumerate(inputs) if any(piece.at in read for piece in pieces)]
        # What it is called with after the cotangents, in order: each tensor as the first part of it, and values.
        self.saved = [*(inputs[k][0].at for k in self.saved_tensors), *self.saved_values]
        self.operands = tuple(self._operands(arriving, inputs, read))
        self._share_out(fusion, needed, at)
        reached = {piece.at for _, piece in arriving}
        # Of each needed tensor without a gradient: that of zeros, if results depend on it all the same.
        self.zeros = [
            fusion.gradient_specs[i] if index is None and reached & set(_dependent(fusion, i)) else None
            for i, index in zip(needed, self.result_index, strict=True)
        ]
        # Which gradients torch has as functions of a tensor, and which tensor, though they may be constant.
        positions = {k: position for position, k in enumerate(self.saved_tensors, len(outputs))}
        at_of = {i: index for i, index in zip(needed, self.result_index, strict=True) if index is not None}
        composed = bool(fusion.trace.composed)
        self.constant = {index: positions[i] for i, index in at_of.items() if i in positions} if composed else {}
        self.seen = None if fusion.is_plain else Seen(self.operands, self.shares)

    def _operands(self, arriving: Iterable[tuple[int, Piece]], inputs: Sequence[Pieces], read) -> Iterator[Operand]:
        """Yield the values of this graph that there are tensors of."""
        for value, (k, piece) in enumerate(arriving):
            yield Operand(value, k, piece.view)
        for position, k in enumerate(self.saved_tensors, len(self.outputs)):
            for piece in inputs[k]:
                if piece.at in read:
                    yield Operand(self.offset + piece.at, position, piece.view)
        first = len(self.outputs) + len(self.saved_tensors)
        yield from (Operand(self.offset + i, k, WHOLE) for k, i in enumerate(self.saved_values, first))

    def _share_out(self, fusion: Fusion, needed: Sequence[InputIndex], at: Iterable[int | None]) -> None:
        """Find which gradients there are, and of which results of this graph each is made; ``at`` has these."""
        found = iter(at)
        shares = [tuple(Share(next(found), piece.view) for piece in fusion.presentation.inputs[i]) for i in needed]
        self.result_index: list[int | None] = []  # of each needed tensor: which gradient it has; None if it is zero
        self.shares = [each for each in shares if any(share.result is not None for share in each)]
        self.specs: list[TensorSpec] = []  # of each gradient that is not zero
        for i, each in zip(needed, shares, strict=True):
            is_there = any(share.result is not None for share in each)
            self.result_index.append(len(self.specs) if is_there else None)
            self.specs += [fusion.gradient_specs[i]] if is_there else []

    def _read(self, values: Iterable[ValueIndex], saved: Iterable[ValueIndex]) -> list[ValueIndex]:
        """Return those of ``values`` that the gradients are computed from, where these are ``saved``."""
        stop = [self.offset + i for i in saved]
        ancestors = set(self.graph.ancestors([value for value, _ in self.graph.results], stop))
        return [i for i in values if self.offset + i in ancestors]

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the gradient of each tensor that needs one, None if no result depends on it."""
        grads = by_kernel("fuse", self, plan_key(tensors, by_blocks=True), tensors, self.compile)
        if grads is None:
            tensors = [x if x.layout is torch.strided else x.to_dense() for x in tensors]  # a cotangent may be sparse
            by_value = {i: view.of(tensors[k]) for i, k, view in self.operands}
            parts = evaluate(self.graph, by_value, COMPUTE[self.common], self.known)
            grads = [joined(shares, parts) for shares in self.shares]
            grads = [grad.to(spec.dtype, copy=True) for grad, spec in zip(grads, self.specs, strict=True)]
            if self.constant and torch.is_grad_enabled():
                for at, k in self.constant.items():
                    grads[at] = _depending_on(tensors[k], grads[at])
        return [
            grads[at] if at is not None else zero and torch.zeros(zero.shape, dtype=zero.dtype, device=zero.device)
            for at, zero in zip(self.result_index, self.zeros, strict=True)
        ]

    def compile(self, tensors: Sequence[Tensor], plans: Any = None) -> Executable:
        """Return the kernels for tensors in this layout, made by ``plans``, as :class:`Executable` has it."""
        by_value = {i: tensors[k] for i, k, _ in self.operands}
        options = {"known": self.known, "plans": plans, "seen": self.seen}
        return Executable(self.graph, by_value, self.specs, self.common, **options)
