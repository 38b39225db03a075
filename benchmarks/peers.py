"""Call FlagGems, Liger-Kernel and quack on a GPU, each where it is installed; they are imported only when asked for.

Written against the sources of flag_gems 5.0.2, liger-kernel 0.8.5 and quack-kernels 0.6.5.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from tests.cases import Call

RMS_NORM = "rms_norm(x, weight)"
EPS = 1e-6


def peers(call: Call, phase: str) -> dict[str, Callable]:
    """Return each installed peer that has ``call``, by name, as a function of its tensors.

    For phases other than "forward" these are the peers with a backward of their own. They are to be timed in CUDA
    graphs, without the host: FlagGems overrides torch's operators during a call, which takes milliseconds.
    """
    installed = {name: peer(call, phase) for name, (module, peer) in PEERS.items() if find_spec(module)}
    return {name: function for name, function in installed.items() if function}


def _flag_gems(call: Call, phase: str) -> Callable | None:
    gems = import_module("flag_gems")

    def overridden(*xs: Tensor) -> Tensor:
        with gems.use_gems():
            return call.function(torch, *xs)

    # these three have a backward of FlagGems's own; that of the others is torch's formula, on FlagGems's operators
    own: dict[str, Callable] = {
        "relu(x)": lambda x: _Recorded.apply(x, gems.relu, lambda g, z: gems.threshold_backward(g, z, 0)),
        "sigmoid(x)": lambda x: _Recorded.apply(x, gems.sigmoid, gems.sigmoid_backward),
        RMS_NORM: lambda x, weight: gems.rms_norm(x, weight.shape, weight, EPS),
    }
    return own.get(call.name, overridden if phase == "forward" else None)


class _Recorded(torch.autograd.Function):
    """z = forward(x), dx = vjp(g, z): autograd calls the vjp outside the override, which ends before backward."""

    @staticmethod
    def forward(ctx, x, forward, vjp):
        z = forward(x)
        ctx.save_for_backward(z)
        ctx.vjp = vjp
        return z

    @staticmethod
    def backward(ctx, g):
        return ctx.vjp(g, *ctx.saved_tensors), None, None


def _liger(call: Call, _: str) -> Callable | None:
    if call.name != RMS_NORM:
        return None
    rms_norm = import_module("liger_kernel.transformers.functional").liger_rms_norm
    # "llama" rounds before the weight, as a composition does; in_place would write dx over the incoming gradient
    return partial(rms_norm, eps=EPS, offset=0.0, casting_mode="llama", in_place=False)


def _quack(call: Call, _: str) -> Callable | None:
    return partial(import_module("quack").rmsnorm, eps=EPS) if call.name == RMS_NORM else None


PEERS = {"FlagGems": ("flag_gems", _flag_gems), "Liger": ("liger_kernel", _liger), "quack": ("quack", _quack)}
