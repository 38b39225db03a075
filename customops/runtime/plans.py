"""Plans of kernels: the key that a plan is cached by, the cache, and how a plan is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import config
from ..triton_kernels.layout import VECTOR_BYTES, expand
from ..triton_kernels.stage import Argument, KernelOp, Operand, Output, Stage
from .memory import empty
from .modes import is_intercepted
from .paths import CLASSES, is_differentiated, tensors_key
from .rules import parameters
from .specs import TensorSpec, strides_of

MAX_PLANS = 1 << 14


def kernels() -> Any:
    """Import the module that makes plans, and with it Triton: only when the first kernel is asked for."""
    from ..triton_kernels import plan  # noqa: PLC0415

    return plan


def plan_key(args: Sequence, recorded: bool = False) -> tuple | None:
    """Return all that a kernel's plan depends on of ``args``; None where the formula computes, by rules 1 to 3.

    A call that a Function of ours records is ``recorded``. Rule 4 is asked once for each key: :func:`has_kernel`.
    """
    if config.cpu_by_formula:
        for x in args:
            if type(x) in CLASSES and x.is_cuda:  # a subclass would see what is asked of it
                break
        else:
            return None
    if config.current_backend == "torch" or is_intercepted() or is_differentiated(args, recorded):
        return None
    key = tensors_key(args)
    if key is None:
        return None
    setting = config.current_backend, config.dry_run_target, torch.get_default_dtype(), torch.is_autocast_enabled()
    return *setting, *key


class Execution(NamedTuple):
    """What a call like an earlier one does."""

    plan: Callable[[Sequence, Sequence[Tensor]], Any]  # its launches
    outputs: tuple[TensorSpec, ...]  # the tensors that they write, which are allocated at each call

    def __call__(self, args: Sequence) -> list[Tensor]:
        """Allocate the outputs, launch, and return them."""
        outputs = [empty(*spec) for spec in self.outputs]
        self.plan(args, outputs)
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
    formulas: Sequence[Callable], values: dict[str, Any], outputs: Sequence, spec: TensorSpec, fold=("sum", 1)
):
    """A plan of the kernels: ``formulas`` over ``spec.shape`` in ``spec.dtype``, folded where an output broadcasts.

    By default summed; ``fold`` names a reduction, and of how many elements. Without formulas, of the only value.
    """

    def memory(x):
        if isinstance(x, Tensor):  # a 0-dim CPU tensor among GPU tensors is a number
            return Argument(x.dtype, x.data_ptr() % VECTOR_BYTES == 0) if x.device == spec.device else None
        return Argument(x.dtype) if isinstance(x, TensorSpec) else None

    shape = tuple(spec.shape)
    arguments = [memory(x) for x in (*values.values(), *outputs)]
    fixed = {name for f in formulas if (name := kernels().constexpr_parameter(f.__name__))}
    read = {name for f in formulas for name in parameters(f)} - fixed or set(values)
    operands = [
        Operand(i, expand(shape, x.shape, strides_of(x)) if arguments[i] else None, name)
        for i, (name, x) in enumerate(values.items())
        if name in read
    ]
    where = {operand.name: i for i, operand in enumerate(operands)}
    steps = [
        KernelOp(
            f.__name__,
            tuple(where[name] for name in parameters(f) if name not in fixed),
            values.get(kernels().constexpr_parameter(f.__name__)),
        )
        for f in formulas
    ]
    results = []
    for i, z in enumerate(outputs):
        strides = expand(shape, z.shape, strides_of(z))
        over = frozenset(a for a, n in enumerate(shape) if n != 1 and strides[a] == 0)
        value = len(operands) + i if steps else 0
        results.append(Output(value, len(values) + i, strides, fold[0] if over else None, over, fold[1]))
    stage = Stage(shape, tuple(operands), tuple(steps), tuple(results))
    return kernels().Plan([stage], arguments, spec.dtype, spec.device)
