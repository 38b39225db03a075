"""A stand-in for Triton's driver, for a GPU that is not there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import index
from threading import Lock, local
from typing import Any

import torch

from .._compat import cpp_type, gpu_target
from ..runtime.memory import empty
from .execution import execute
from .machine_code import binary_registers, binary_stack, registers
from .record import LaunchRecord, TensorArgument, tensors_of
from .targets import TARGETS, check_launch, most_threads

INPUTS = ("operands",)  # the parameter of our kernels whose tensors they only read; of others nobody says which


class _Thread(local):
    """What is known of one thread; the value of a class, as an attribute that is not there takes longer to find."""

    tries = False  # whether it only tries a launch


class RecordingDriver:
    """A driver that lets Triton compile for a GPU that is not there: it loads nothing, and records each launch.

    It loads nothing because what one driver loads is unloaded by the driver that is active when it is freed, which may
    be a real GPU's. It has every name that Triton asks of a driver as it compiles, tunes and launches.
    """

    def __init__(self, name: str):
        self.name = name
        self.limits = TARGETS[name]
        self.device = -1 - list(TARGETS).index(name)  # no GPU has it: Triton caches kernels by device
        self.target = gpu_target(self.limits.backend, self.limits.arch, self.limits.warp_size)
        self.records: list[LaunchRecord] | None = None  # None while no dry run for this GPU is open
        self.executes = False  # whether launches are executed on the memory of their tensors
        self.loading: Any = None  # the CompiledKernel that a launcher is asked for, at that moment
        self.utils = Utilities(self)
        self._appending = Lock()  # held while a thread adds a record
        self.thread = _Thread()

    def launcher_cls(self, source: Any, metadata: Any) -> Launcher:
        """Return the launcher of the kernel with this source."""
        return Launcher(self, self.loading)

    def recorder(self, launch: Any, moves: Any) -> Launcher:
        """Return what is called in place of Triton's launcher for ``launch``, a launch of ours.

        ``moves`` is what it moves, as ``triton_kernels.traffic`` counts it.
        """
        compiled = launch.compiled
        known = launch.summary, launch.operand_names, (launch.grid, 1, 1), compiled.metadata.num_warps
        like = LaunchRecord(compiled.name, *known, compiled, launch.bytes_moved, launch.bytes_floor, moves=moves)
        return Launcher(self, compiled, like)

    def launch(self, record: LaunchRecord, args: Sequence[Any], inputs: Sequence[str]) -> None:
        """Append the record of a launch, whose kernel gets ``args``, and execute it if the dry run does.

        ``inputs`` are the kernel's parameters whose tensors it may only read.
        """
        records = self.records
        if records is None:
            raise RuntimeError(f"{record.name}: it was compiled in a dry run that is over: launch it inside of one")
        if not self.executes:
            records.append(record)
            return
        with self._appending:
            position = len(records)
            records.append(record)
        traffic = execute(record.compiled, record.grid, args, lambda leaf: leaf[0] in inputs)
        moved, floor = record.bytes_moved, record.bytes_floor
        records[position] = record._replace(
            traffic=traffic,
            bytes_moved=traffic.loaded + traffic.stored if moved is None else moved,
            bytes_floor=traffic.distinct if floor is None else floor,
        )

    @contextmanager
    def trying(self) -> Iterator[None]:
        """Compile and check what this thread launches inside the block, and record nothing."""
        self.thread.tries = True
        try:
            yield
        finally:
            self.thread.tries = False

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

    __slots__ = (
        "compiled",  # Triton's CompiledKernel
        "driver",
        "last",  # the record of the last launch, None before the first: one like it is checked once
        "like",  # the record of a launch of ours, which knows its program and bytes; None for another kernel
    )

    def __init__(self, driver: RecordingDriver, compiled: Any, like: LaunchRecord | None = None):
        self.driver = driver
        self.compiled = compiled
        self.like = like
        self.last: LaunchRecord | None = None

    def __call__(
        self, grid_x, grid_y, grid_z, stream, function, packed_metadata, launch_metadata, enter_hook, exit_hook, *args
    ) -> None:
        """Record a launch; hooks, a profiler's, are not called. As on a GPU, an empty grid launches nothing."""
        record, driver, like = self.last, self.driver, self.like
        tensors = tensors_of(self.compiled, args) if like is None else ()
        if record is None or (like is None and (record.grid != (grid_x, grid_y, grid_z) or record.tensors != tensors)):
            record = self._record((index(grid_x), index(grid_y), index(grid_z)), tensors)
            if record is None:
                return
            self.last = record
        if not driver.thread.tries:
            driver.launch(record, args, () if like is None else INPUTS)

    def _record(self, grid: tuple[int, int, int], tensors: tuple[TensorArgument, ...]) -> LaunchRecord | None:
        """Return the record of launches with this grid on tensors like these, if the GPU has what they ask for.

        Returns None of an empty grid.
        """
        if min(grid) <= 0:
            return None
        compiled, metadata = self.compiled, self.compiled.metadata
        threads = metadata.num_warps * self.driver.limits.warp_size
        check_launch(self.driver.name, compiled.name, grid, threads, registers(compiled), metadata.shared)
        like = self.like or LaunchRecord(compiled.name, "", (), grid, metadata.num_warps, compiled, tensors=tensors)
        return like if like.grid == grid else like._replace(grid=grid)


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
