"""Plans of kernels: the key that a plan is cached by, the cache, and how a plan is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import config
from ..blocks import plan as blocks
from ..triton_kernels.layout import VECTOR_BYTES, expand
from ..triton_kernels.stage import Argument, KernelOp, Operand, Output, Stage
from .memory import allocate, like_argument
from .paths import EXPONENTS
from .rules import parameters
from .specs import TensorSpec, strides_of

MAX_PLANS = 1 << 14


def kernels() -> Any:
    """Import the module that makes plans, and with it Triton: only when the first kernel is asked for."""
    from ..triton_kernels import plan  # noqa: PLC0415

    return plan


def planner(device: torch.device) -> Any:
    """Return the module that makes plans for tensors on a device: of kernels, or of blocks on a CPU without any."""
    return blocks if device.type == "cpu" and config.cpu_by_formula else kernels()


class Execution(NamedTuple):
    """The work of a call like an earlier one."""

    plan: Any  # its launches, called with the arguments and the outputs
    outputs: tuple[TensorSpec, ...]  # the tensors that they write, which are allocated at each call
    like: int | None  # the argument that the only output is made like, where there is one

    @classmethod
    def of(cls, plan: Callable, outputs: tuple[TensorSpec, ...], args: Sequence) -> Execution:
        """Return the work of ``plan`` for arguments like these."""
        return cls(plan, outputs, like_argument(outputs, args))

    def __call__(self, args: Sequence) -> list[Tensor]:
        """Allocate the outputs, launch, and return them.

        This and what is below is called by the name of the method, which Python runs in the frame of C that it is in;
        for an object that is called it takes another.
        """
        plan, specs, like = self
        outputs = allocate(specs, None, args) if like is None else [torch.empty_like(args[like])]
        plan.__call__(args, outputs)
        return outputs


# Return what ``remember`` kept for a key, None where it kept nothing.
recall = config.plans.get


def remember(key: tuple, call: Any) -> Any:
    """Keep ``call`` for its like; a model that never repeats a shape must not fill the memory."""
    if len(config.plans) >= MAX_PLANS:
        config.plans.clear()
    config.plans[key] = call
    return call


def make_plan(
    formulas: Sequence[Callable],
    values: dict[str, Any],
    outputs: Sequence,
    spec: TensorSpec,
    reduction: tuple[str, int] = ("sum", 1),
) -> Any:
    """Plan the kernels or blocks that compute ``formulas`` of ``values`` over ``spec.shape``, in ``spec.dtype``.

    Args:
        formulas: one for each output; none for a reduction of the only value.
        values: tensors and numbers, by the names that formulas have for them.
        outputs: a tensor or its spec for each; one that lacks an axis of ``spec.shape`` is reduced over it.
        spec: shape, dtype and device of what is computed for each element.
        reduction: the name of the reduction, and how many elements one reduced element is made of.
    """
    shape = tuple(spec.shape)
    arguments = [_argument(x, spec.device) for x in (*values.values(), *outputs)]
    plans = planner(spec.device)
    constants = {name for f in formulas if (name := plans.constexpr_parameter(f.__name__))}
    if unknown := {values[name] for name in constants} - EXPONENTS:  # whose values the key of a plan does not have
        raise ValueError(f"{formulas[0].__name__}: no kernel of one operator is compiled for {unknown.pop()}; fuse it")
    read = {name for f in formulas for name in parameters(f)} - constants or set(values)
    operands = [
        Operand(i, expand(shape, x.shape, strides_of(x)) if arguments[i] else None, name)
        for i, (name, x) in enumerate(values.items())
        if name in read
    ]
    positions = {operand.name: i for i, operand in enumerate(operands)}
    ops = [
        KernelOp(
            f.__name__,
            tuple(positions[name] for name in parameters(f) if name not in constants),
            values.get(plans.constexpr_parameter(f.__name__)),
        )
        for f in formulas
    ]
    results = []
    for i, z in enumerate(outputs):
        strides = expand(shape, z.shape, strides_of(z))
        reduced = frozenset(a for a, n in enumerate(shape) if n != 1 and strides[a] == 0)
        value = len(operands) + i if ops else 0
        name, count = reduction
        results.append(Output(value, len(values) + i, strides, name if reduced else None, reduced, count))
    stage = Stage(shape, tuple(operands), tuple(ops), tuple(results))
    return plans.Plan([stage], arguments, spec.dtype, spec.device)


def _argument(x: Any, device: torch.device) -> Argument | None:
    """Return what a plan knows of an argument; None of a number, as a 0-dim CPU tensor among GPU tensors is one."""
    if isinstance(x, Tensor):
        return Argument(x.dtype, x.data_ptr() % VECTOR_BYTES == 0) if x.device == device else None
    return Argument(x.dtype) if isinstance(x, TensorSpec) else None
