"""The methods of a stand-in that change its dtype, device or layout, or copy it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .errors import untraceable
from .operators import Cast, Detach, Ref
from .shapes import Contiguous

_KEEPS_LAYOUT = None, torch.preserve_format


class Casts:
    """The part of a stand-in that asks torch what it would make of a tensor like it, with one element."""

    __slots__ = ()

    _tracing: Any
    ref: Ref
    dtype: Any  # a property of the stand-in

    def example(self) -> Tensor:
        """Return a tensor of one element."""
        ndim = self._tracing.value_specs[self.ref.value].ndim
        return torch.empty([1] * ndim, dtype=self.dtype, device=self._tracing.device)

    def _cast(self, name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Return what the method ``name`` of a tensor does with its dtype, device and layout."""
        layout = kwargs.pop("memory_format", None)
        example = self.example()
        of = {key: example_of(x) for key, x in kwargs.items()}
        z = getattr(example, name)(*map(example_of, args), **of)
        if not isinstance(z, Tensor):
            return z  # the name of a type
        if z.device != example.device:
            raise untraceable(f"a move to {z.device} cannot be traced", "move the tensor before the call")
        if z.dtype != example.dtype and not (z.is_floating_point() or z.is_complex()):
            raise untraceable(
                f"a cast to {z.dtype} cannot be traced, as kernels of several operators compute in floats",
                "compare, as in x != 0, or cast outside the function",
            )
        copied = self if z is example else self._tracing.apply(Cast, (self, z.dtype))
        if layout in _KEEPS_LAYOUT:
            return copied
        if layout is not torch.contiguous_format:
            raise untraceable(f"{layout} cannot be traced", "change the layout outside the function")
        return self._tracing.apply(Contiguous, (copied,))

    def contiguous(self, memory_format: torch.memory_format = torch.contiguous_format) -> Any:
        """Return the value; if it is a result, it is laid out row by row."""
        return self._cast("to", (self.dtype,), {"memory_format": memory_format})

    def detach(self) -> Any:
        """Return the value with a derivative of zero."""
        return self._tracing.apply(Detach, (self,))


def example_of(x: Any) -> Any:
    """Return a tensor of one element for a stand-in, anything else as it is."""
    return x.example() if isinstance(x, Casts) else x


def _cast_method(name: str) -> Callable:
    def method(self, *args, **kwargs):
        if not isinstance(self, Casts):  # a tensor of one number, cast as a stand-in is
            return getattr(self, name)(*map(example_of, args), **kwargs)
        return self._cast(name, args, kwargs)

    return method


_INTEGERS = "bool", "byte", "char", "short", "int", "long"
for _name in ("to", "type", "type_as", "float", "half", "bfloat16", "double", "cfloat", "cdouble", *_INTEGERS):
    setattr(Casts, _name, _cast_method(_name))
for _name in ("clone", "cpu", "cuda"):
    setattr(Casts, _name, _cast_method(_name))
