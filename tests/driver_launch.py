"""The launches that a driver gets from Triton's launcher: the kernel, the parameters, and what asked for it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from customops.triton_kernels.launch import Launch
from torch import Tensor

# In the first stage of a kernel, an argument: its divisor and its name, which from Triton 3.9 on is "sizes.1.0".
_PUBLIC = re.compile(r"tt\.func public @\w+\((.*)\) attributes")
_ARGUMENT = re.compile(r'%[\w.]+: [^%]*?(?:\{tt\.divisibility = (\d+)[^%]*?)?loc\("(\w+)[".]')
# In PTX, a kernel, and a parameter: its bits, and whether it is a pointer.
_ENTRY = re.compile(r"\.entry\s+\w+\((.*?)\)", re.DOTALL)
_PARAMETER = re.compile(r"\.param\s+(?:\.align\s+\d+\s+)?\.[a-z]+(\d+)\s+(\.ptr\b)?")
_TEXTS = (".source", ".ptx", ".json")


class Loaded(NamedTuple):
    """A kernel that was loaded: what Triton compiled, and what its code says of its parameters."""

    name: str
    ptx: str
    metadata: Mapping[str, Any]  # Triton's, as num_warps and shared
    names: tuple[str, ...]  # of each parameter but Triton's own two: the argument that it is, or is in
    divisors: tuple[int, ...]  # of each of these: what it is compiled to be a multiple of
    sizes: tuple[int, ...]  # bytes of each parameter
    is_pointer: tuple[bool, ...]  # of each parameter

    @classmethod
    def read(cls, name: str, files: Mapping[str, str]) -> Loaded:
        """Return what the files say that Triton keeps of a kernel; their paths are by name."""
        stages = {
            Path(file).suffix: Path(path).read_text() for file, path in files.items() if Path(file).suffix in _TEXTS
        }
        declared = _PARAMETER.findall(_ENTRY.search(stages[".ptx"])[1])
        arguments = _ARGUMENT.findall(_PUBLIC.search(stages[".source"])[1])
        return cls(
            name,
            stages[".ptx"],
            json.loads(stages[".json"]),
            names=tuple(argument for _, argument in arguments),
            divisors=tuple(int(divisor or 1) for divisor, _ in arguments),
            sizes=tuple(int(bits) // 8 for bits, _ in declared),
            is_pointer=tuple(bool(pointer) for _, pointer in declared),
        )

    @property
    def threads(self) -> int:
        """Return the number of threads of a block that the code is compiled for."""
        return int(re.search(r"\.reqntid\s+(\d+)", self.ptx)[1])


class Origin(NamedTuple):
    """What asked for a launch."""

    planned: Launch | None = None  # None for a kernel that Triton was called with
    arguments: Sequence[Any] = ()  # the tensors and numbers of the plan, or the arguments of the call

    def memory(self) -> list[tuple[Tensor, bool]]:
        """Return the tensors in the order of the kernel's parameters, each with whether it may be written."""
        if self.planned is None:
            return [(x, True) for x in _leaves(self.arguments) if isinstance(x, Tensor)]
        planned = self.planned
        operands, outputs = (
            [self.arguments[i] for i in at] for at in (planned.operand_positions, planned.output_positions)
        )
        written = {x.data_ptr() for x in outputs}  # an operand may be one of the outputs
        return [(x, x.data_ptr() in written) for x in (*operands, *outputs) if isinstance(x, Tensor)]


class DriverLaunch(NamedTuple):
    """A launch as the driver gets it."""

    origin: Origin
    kernel: Loaded
    grid: tuple[int, int, int]  # blocks
    block: tuple[int, int, int]  # threads
    shared_bytes: int  # of dynamic shared memory
    stream: int  # the handle
    attributes: tuple[int, ...]  # the ids of launch attributes
    block_of_parameters: tuple[bytes, ...]  # the value of each parameter, in the bytes that its declaration has

    @property
    def parameters(self) -> tuple[int, ...]:
        """Return the bits of each parameter as an unsigned integer."""
        return tuple(int.from_bytes(value, "little") for value in self.block_of_parameters)

    def signed(self) -> tuple[int, ...]:
        """Return each parameter as an integer: a pointer is unsigned, any other is not."""
        values = zip(self.block_of_parameters, self.kernel.is_pointer, strict=True)
        return tuple(int.from_bytes(value, "little", signed=not pointer) for value, pointer in values)

    def buffers(self) -> dict[int, tuple[Tensor, bool]]:
        """Return the tensor that each pointer points to, by parameter, and whether it may be written."""
        left, found = self.origin.memory(), {}
        for i, (address, pointer) in enumerate(zip(self.parameters, self.kernel.is_pointer, strict=True)):
            if pointer and address:
                at = next(k for k, (x, _) in enumerate(left) if x.data_ptr() == address)
                found[i] = left.pop(at)
        return found


def execute(launch: DriverLaunch) -> None:
    """Execute the code of a launch on the memory of its tensors, with the parameters that the driver got."""
    from customops.ptx.machine import load  # noqa: PLC0415 - most tests do without
    from customops.ptx.regions import Buffer  # noqa: PLC0415

    buffers = {
        i: Buffer(f"parameter {i}", x.data_ptr(), x.itemsize, tuple(x.shape), x.stride(), writable)
        for i, (x, writable) in launch.buffers().items()
    }
    load(launch.kernel.ptx).execute(launch.grid, launch.block[0], launch.parameters, buffers, launch.shared_bytes)


def _leaves(value: Any) -> Iterator[Any]:
    """Yield the items of nested tuples."""
    if isinstance(value, tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value
