"""A stand-in for Triton's driver, for a GPU that is not there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from operator import index
from threading import local
from typing import Any

import torch

from .._compat import cpp_type, gpu_target
from ..runtime.memory import empty
from .execution import execute
from .machine_code import binary_registers, binary_stack, registers
from .record import LaunchRecord
from .targets import TARGETS, check_launch, most_threads


class RecordingDriver:
    """A driver that lets Triton compile for a GPU that is not there: it loads nothing, and records each launch.

    It loads nothing because what one driver loads is unloaded by the driver that is active when it is freed, which may
    be a real GPU's. It has every name that Triton asks of a driver as it compiles, tunes and launches.
    """

    def __init__(self, name: str):
        self.name = name
        self.limits = TARGETS[name]
        self.device = -1 - list(TARGETS).index(name)  # no GPU has it: Triton caches kernels by device
        self.target = gpu_target(*self.limits[:3])
        self.records: list[LaunchRecord] | None = None  # None while no dry run for this GPU is open
        self.executes = False  # whether launches are executed on the memory of their tensors
        self.launcher_cls: Callable = partial(Launcher, self)  # Triton calls it with the source and the metadata
        self.utils = Utilities(self)
        self._thread = local()  # ``tries``: whether this thread only tries a launch

    def recorder(self, launch: Any) -> Launcher:
        """Return what is called in place of Triton's launcher for ``launch``, a launch of ours."""
        known = {name: getattr(launch, name) for name in ("bytes_moved", "bytes_floor")}
        known |= {"program": launch.summary, "operands": launch.operand_names}
        return Launcher(self, compiled=launch.compiled, known=known, inputs=launch.kernel.arg_names[:1])

    def launch(self, record: LaunchRecord, args: Sequence[Any], inputs: Sequence[str]) -> None:
        """Append the record of a launch, whose kernel gets ``args``, and execute it if the dry run does.

        ``inputs`` are the kernel's parameters whose tensors it may only read.
        """
        if self.records is None:
            raise RuntimeError(f"{record.name}: it was compiled in a dry run that is over: launch it inside of one")
        self.records.append(record)
        if self.executes:
            traffic = execute(record.compiled, record.grid, args, lambda leaf: leaf[0] in inputs)
            moved, floor = record.bytes_moved, record.bytes_floor
            self.records[-1] = record._replace(
                traffic=traffic,
                bytes_moved=traffic.loaded + traffic.stored if moved is None else moved,
                bytes_floor=traffic.distinct if floor is None else floor,
            )

    @contextmanager
    def trying(self) -> Iterator[None]:
        """Compile and check what this thread launches inside the block, and record nothing."""
        self._thread.tries = True
        try:
            yield
        finally:
            self._thread.tries = False

    @property
    def tries(self) -> bool:
        """Return whether this thread only tries launches."""
        return getattr(self._thread, "tries", False)

    def empty(self, size, dtype, device):
        """Allocate a scratch buffer of ``size`` elements for use between launches."""
        return empty([size], [1], dtype, device)

    def is_active(self) -> bool:
        """Return whether it can be used, as it can anywhere."""
        return True

    def get_current_target(self) -> Any:
        """Return the GPU to compile for."""
        return self.target

    def get_current_device(self) -> int:
        """Return the index that stands for that GPU."""
        return self.device

    def set_current_device(self, device: Any) -> None:
        """Do nothing: there is one device."""

    def get_current_stream(self, device: Any = None) -> int:
        """Return a stream, though none is used."""
        return 0

    def get_device_capability(self, device: Any = None) -> tuple[int, int]:
        """Return the capability of a CUDA device, as (9, 0)."""
        return divmod(int(self.limits.arch), 10)

    def get_active_torch_device(self) -> torch.device:
        """Return the device of the tensors that kernels get: in a dry run they are on the CPU."""
        return torch.device("cpu")

    def get_device_interface(self) -> DeviceInterface:
        """Return what stands for ``torch.cuda``."""
        return DeviceInterface(self)

    def get_benchmarker(self) -> Callable:
        """Return what times one configuration after the other, where none can be timed: see :class:`FirstValid`."""
        return FirstValid(self)

    def get_empty_cache_for_benchmark(self) -> torch.Tensor:
        """Return the memory that is written to empty a cache: none."""
        return torch.empty(0)

    def clear_cache(self, cache: torch.Tensor) -> None:
        """Do nothing: there is no cache."""

    def map_python_to_cpp_type(self, ty: str) -> str:
        """Return the C++ type of an argument, of which ``ty`` is Triton's name."""
        return cpp_type(self.limits.backend, ty)


class Launcher:
    """The launcher of one compiled kernel, called as Triton calls its own: it records."""

    def __init__(
        self,
        driver: RecordingDriver,
        source: Any = None,
        metadata: Any = None,
        compiled: Any = None,
        known: dict[str, Any] | None = None,
        inputs: Sequence[str] = (),
    ):
        """Record launches of ``compiled``, which Triton tells later; ``known`` are fields of the record.

        ``source`` and ``metadata`` are those of the kernel; it has them, too. ``inputs`` are the parameters whose
        tensors the kernel may only read; of a kernel that is not ours nobody says which they are.
        """
        self.driver = driver
        self.compiled = compiled
        self.inputs = inputs
        self.known = known or {"program": "", "operands": ()}
        self.records: dict[tuple[int, int, int], LaunchRecord] = {}  # by grid: one is checked once

    def __call__(
        self, grid_x, grid_y, grid_z, stream, function, packed_metadata, launch_metadata, enter_hook, exit_hook, *args
    ) -> None:
        """Record a launch; hooks, a profiler's, are not called. As on a GPU, an empty grid launches nothing."""
        grid = index(grid_x), index(grid_y), index(grid_z)
        if min(grid) <= 0:
            return
        record = self.records.get(grid)
        if record is None:
            record = self.records[grid] = self._record(grid)
        if not self.driver.tries:
            self.driver.launch(record, args, self.inputs)

    def _record(self, grid: tuple[int, int, int]) -> LaunchRecord:
        """Return the record of launches with this grid, if the GPU has what they ask for."""
        metadata, limits = self.compiled.metadata, self.driver.limits
        threads = metadata.num_warps * limits.warp_size
        asked = grid, threads, registers(self.compiled), metadata.shared
        check_launch(self.driver.name, self.compiled.name, *asked)
        fields = {"grid": grid, "num_warps": metadata.num_warps, "compiled": self.compiled}
        return LaunchRecord(name=self.compiled.name, **fields, **self.known)


class Utilities:
    """What Triton asks of a driver about a device and a binary."""

    def __init__(self, driver: RecordingDriver):
        self.driver = driver

    def get_device_properties(self, device: Any = None) -> dict[str, Any]:
        """Return what the GPU has, by Triton's names; clock rates are not among it."""
        limits = self.driver.limits
        return {
            "max_shared_mem": limits.shared_bytes,
            "max_num_regs": limits.registers,
            "multiprocessor_count": limits.multiprocessors,
            "warpSize": limits.warp_size,
            "arch": limits.arch,
        }

    def load_binary(self, name: str, binary: bytes, shared: int, device: Any) -> tuple:
        """Load nothing; return module, function, registers, spills and the most threads of a block.

        There is neither a module nor a function. What Triton calls spills is, as of CUDA's driver, a quarter of the
        bytes of a thread's own memory. On AMD registers and spills are None: its binary is not read.
        """
        limits = self.driver.limits
        if limits.backend == "hip":
            return None, None, None, None, limits.threads
        count = binary_registers(binary)
        return None, None, count, binary_stack(binary) // 4, most_threads(limits, count)

    def set_printf_fifo_size(self, size: int) -> None:
        """Do nothing: no kernel prints."""


class DeviceInterface:
    """What stands for ``torch.cuda``: one device, on which nothing runs."""

    def __init__(self, driver: RecordingDriver):
        self.driver = driver
        self.current_device = driver.get_current_device
        self.set_device = driver.set_current_device
        self.get_device_capability = driver.get_device_capability

    def synchronize(self, device: Any = None) -> None:
        """Do nothing: nothing runs."""

    def Event(self, *args: Any, **kwargs: Any) -> Any:
        """Raise an error: an event takes the time."""
        raise RuntimeError("dry_run: nothing runs on a GPU here, so nothing can be timed")


class FirstValid:
    """A benchmark of the configurations of an autotuned kernel, in order, that prefers the first that can run.

    No configuration can be timed without a GPU. Each is compiled and checked against what the GPU has, as long as none
    has passed. None is recorded.
    """

    def __init__(self, driver: RecordingDriver):
        self.driver = driver
        self.has_found = False

    def __call__(self, kernel_call: Callable, quantiles: Sequence[float] = (0.5,), **_: Any) -> list[float]:
        """Return a time for each quantile: 0 for the first configuration that can run, infinite for all others.

        A configuration that cannot run raises an error, which Triton's autotuner takes for an infinite time.
        """
        if self.has_found:
            return [float("inf")] * len(quantiles)
        with self.driver.trying():
            kernel_call()
        self.has_found = True
        return [0.0] * len(quantiles)
