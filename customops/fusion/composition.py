"""``composition``: a function of torch, written as a composition of operators, which is fused where that pays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, cast

import torch
from torch import Tensor

from .. import config
from .._compat import saved_tensor_hooks
from ..blocks import plan as blocks
from ..compiler.executable import COMPUTE
from ..runtime.paths import CLASSES, kernel_blocker, refuse_if_required
from ..runtime.plans import remember
from .decorator import Fused
from .errors import FusionError, untraceable
from .proxy import Traced
from .signature import FusedCallable, P, R
from .trace import Trace

__all__ = ["composition"]

INDICES = torch.int64, torch.uint8  # the dtypes that torch takes class indices in


def composition(
    function: Callable[..., Any], of_one: Callable[..., Any] | None = None
) -> Callable[[Callable[P, R]], FusedCallable[P, R]]:
    """Return a decorator for a composition of customops' operators that computes what ``function`` of torch does.

    The composition takes what ``function`` takes. It decides how kernels, and blocks on a CPU, compute: within a
    function that is fused it is traced as its operators, by itself it is a fused function. Where operators of a fused
    function would be applied one by one, ``function`` computes instead, with its own gradient: so no value between
    them is rounded there, and what they do not take, as integers, complex numbers and ``out=``, is torch's. Arguments
    are checked by ``function`` too, on tensors of one element: by ``of_one`` where it refuses these, as those who take
    a shape do. Then the composition checks shapes, and raises an error, whatever it says, for which torch's is raised.
    """

    def decorate(body: Callable[P, R]) -> FusedCallable[P, R]:
        return cast("FusedCallable[P, R]", Composition(body, function, of_one or function).as_function())

    return decorate


class Composition(Fused[P, R]):
    """A fused function that computes what a function of torch does."""

    def __init__(self, body: Callable[P, R], function: Callable[..., Any], of_one: Callable[..., Any]):
        super().__init__(body)
        self.one_by_one = function
        self.of_one = of_one

    def anew(self) -> Composition[P, R]:
        """Return a copy of which no call is known."""
        return Composition(self.function, self.one_by_one, self.of_one)

    def call(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Compute the function: as operators of what is traced; by kernels or blocks; or by torch."""
        others = (*args[1:], *kwargs.values()) if kwargs else args[1:]
        if config.cpu_by_formula and args and _is_small(args[0]) and not any([isinstance(x, Tensor) for x in others]):
            return self.one_by_one(*args, **kwargs)  # in a third of the time that it takes to ask whether fusing pays
        args = tuple([tuple(x) if type(x) is list else x for x in args])  # no list is part of a key
        kwargs = {name: tuple(x) if type(x) is list else x for name, x in kwargs.items()}
        for x in (*args, *kwargs.values()):
            if type(x) is Traced:
                if kwargs.get("out") is not None:
                    raise untraceable("out= cannot be traced, as it writes to a tensor", "leave it out")
                return x.compose(self.function, self.one_by_one, self.of_one, args, kwargs)
        return self.one_by_one(*args, **kwargs) if kwargs.get("out") is not None else super().call(args, kwargs)

    def trace(
        self, tensors: Sequence[Tensor], key: tuple | None, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[Trace, Sequence[Tensor]]:
        """Return what the composition does with these arguments, and the tensors it is of."""

        @wraps(self.function)
        def traced(*args, **kwargs):
            return self.call(args, kwargs)

        return self._or_raise_as_torch(
            lambda: self._traces.trace(traced, args, kwargs, tensors, key is not None), args, kwargs
        )

    def _or_raise_as_torch(self, make: Callable[[], Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        """Return what ``make`` returns, or raise torch's error; FusionError where torch computes all the same.

        Torch may take for one thing tensors of one element each, and for another those of the call.
        """
        try:
            return make()
        except FusionError:
            raise
        except Exception as error:
            self.one_by_one(*args, **kwargs)
            what = f"{self.one_by_one.__name__} of these cannot be traced, as of single elements torch says: {error}"
            raise untraceable(what, "call it outside the function") from error

    def _find_fusion(self, tensors: Sequence[Tensor], key: tuple | None, layout: tuple, args, kwargs):
        """Return the fusion, False where the composition cannot be traced for these arguments, the trace, tensors."""
        try:
            if _are_of_floats(tensors):
                return super()._find_fusion(tensors, key, layout, args, kwargs)
            if blocker := kernel_blocker(list(tensors), None, set(), by_blocks=True):
                refuse_if_required(self.one_by_one.__name__, blocker)
        except FusionError:
            pass
        return (remember((key, layout), False) if key else False), None, tensors

    def _call_by_formula(self, tensors: Sequence[Tensor], key: tuple | None, args: tuple, kwargs: dict[str, Any]):
        """Let torch compute, but under hooks: what a checkpoint computes twice has to save the same both times."""
        if not saved_tensor_hooks() or not _are_of_floats(tensors):
            return self.one_by_one(*args, **kwargs)
        try:
            return super()._call_by_formula(tensors, key, args, kwargs)
        except FusionError:
            return self.one_by_one(*args, **kwargs)


def _are_of_floats(tensors: Sequence[Tensor]) -> bool:
    """Return whether kernels compute in the dtype of the first, and the others are such floats, or indices."""
    return tensors[0].dtype in COMPUTE and all([x.dtype in COMPUTE or x.dtype in INDICES for x in tensors])


def _is_small(x: Any) -> bool:
    """Return whether ``x`` is a tensor on the CPU of too few elements for blocks, however it is computed with."""
    return type(x) in CLASSES and x.is_cpu and x.numel() < min(blocks.LEAST_ELEMENTS)
