"""Call Liger-Kernel's functions as on a GPU, on tensors that have shapes and nothing else, and note what they launch.

The tensors are torch's fake tensors, which say that they are on a GPU: so Liger takes the ways that it takes there, and
torch's operators between its kernels compute nothing and allocate nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import customops
from customops.tools import targets
from customops.tools.record import LaunchRecord

from .layers import PASSES, ROWS, Layer

aten = torch.ops.aten
NO_LAUNCH = {  # overloads are left out: views, allocations and copies to the host or from it
    aten.empty,
    aten.empty_like,
    aten.empty_strided,
    aten.view,
    aten.transpose,
    aten.unsqueeze,
    aten.detach,
    aten.lift_fresh,
    aten._local_scalar_dense,
    torch.ops.prim.device,
}
LAUNCHES = dict.fromkeys(  # kernels of each, on the sizes that occur here
    (aten.sum, aten._to_copy, aten.zeros, aten.zeros_like, aten.ne, aten.mul, aten.max, aten.lt, aten.min, aten.ge), 1
) | {aten.div: 1, aten.equal: 2}  # equal compares the elements, then reduces
ANSWERS = {  # where Liger asks for a number, or a truth, that the tensors do not have here
    aten._local_scalar_dense: ROWS,  # of all indices none is ignored, and all are in range
    aten.equal: True,  # the gradient that arrives for a loss is 1
}
TARGETS = {  # the GPUs to compile for, and Liger's names of their architectures
    "cuda:80": "ampere_ada",
    "cuda:90": "hopper",
    "cuda:100": "blackwell",
    "cuda:120": "blackwell_consumer",
}


class TorchLaunch(NamedTuple):
    """A kernel of torch's that a library launches beside its own."""

    name: str  # torch's operator
    bytes_read: int  # all elements of the tensors that it reads, once
    bytes_written: int  # likewise of those that it writes

    @property
    def adds_partials(self) -> bool:
        """Return whether it adds up what the kernel before it has left, one row for each of its programs."""
        return self.name == "sum"


class TorchLaunches(TorchDispatchMode):
    """Note each kernel that torch's operators would launch; one that is not listed is an error, so none is missed."""

    def __init__(self):
        super().__init__()
        self.launches: list[TorchLaunch] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Call the operator, and note it where it launches."""
        operator = func.overloadpacket
        result = ANSWERS[operator] if operator in ANSWERS else func(*args, **(kwargs or {}))
        if operator is aten._to_copy and result.device != args[0].device:
            return result  # a number goes to the GPU: a copy, no kernel
        if operator in LAUNCHES:
            read = 0 if operator is aten.zeros_like else sum(map(nbytes, args))
            self.launches += [TorchLaunch(operator.__name__, read, nbytes(result))] * LAUNCHES[operator]
        elif operator not in NO_LAUNCH:
            raise NotImplementedError(f"{operator}: it is not known how many kernels torch launches for it")
        return result


def nbytes(x: Any) -> int:
    """Return the bytes of a tensor's elements, 0 of anything else."""
    return x.numel() * x.element_size() if isinstance(x, Tensor) else 0


class Context:
    """What autograd hands an ``autograd.Function``: it keeps what is saved, and says which gradients are wanted.

    Autograd itself would ask for a GPU that is not here; between the two passes of these functions it launches nothing.
    """

    saved_tensors: tuple[Tensor, ...] = ()

    def __init__(self, inputs: list[Tensor]):
        self.needs_input_grad = tuple(x.requires_grad for x in inputs)

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep what backward reads."""
        self.saved_tensors = tensors


def launches(layer: Layer, dtype: torch.dtype, length: int, target: str) -> dict[str, list[LaunchRecord | TorchLaunch]]:
    """Return what each pass launches: Liger's kernels, then torch's."""
    module, _, function = layer.liger.partition(".")
    liger = getattr(import_module(f"liger_kernel.ops.{module}"), function)
    operands, passes = layer.operands(length, dtype), {}
    with _on_gpu(target), customops.dry_run(target) as records, TorchLaunches() as torchs, torch.no_grad():
        inputs = [
            torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda").requires_grad_(x.requires_grad)
            for x in operands
        ]
        context = Context(inputs)
        z = liger.forward(context, *inputs, *layer.options)
        for name in PASSES:
            if name == "backward":
                zs = z if isinstance(z, tuple) else (z,)
                liger.backward(context, *[each if each is None else torch.empty_like(each) for each in zs])
            passes[name] = [*records, *torchs.launches]
            records.clear()
            torchs.launches.clear()
    return passes


@contextmanager
def _on_gpu(target: str) -> Iterator[None]:
    """Let tensors be made on a GPU that Liger may ask about, though there is none."""
    properties = SimpleNamespace(multi_processor_count=targets.TARGETS[target].multiprocessors)
    asking = [import_module(f"liger_kernel.ops.{name}") for name in ("swiglu", "cross_entropy")]
    with ExitStack() as stack:
        for owner, name, stand_in in (
            (torch.cuda, "device", mock.MagicMock()),
            (torch.cuda, "get_device_properties", lambda device=None: properties),
            *((module, "infer_device_arch", lambda: TARGETS[target]) for module in asking),
            (FakeTensor, "data_ptr", _address),
        ):
            stack.enter_context(mock.patch.object(owner, name, stand_in))
        stack.enter_context(FakeTensorMode())
        yield


def _address(x: Tensor) -> int:
    """Return an address by which Triton sees that ``x`` is aligned, as what torch allocates on a GPU is."""
    return x.untyped_storage()._cdata * 256 + x.storage_offset() * x.element_size()
