"""Triton's own launcher on a machine without a GPU: what it hands to a driver that is a stub.

``stub_libcuda.c``, built with the system's compiler, stands for the driver that Triton finds by TRITON_LIBCUDA_PATH.
Triton loads its kernels there and launches them, as it would on a GPU, from CPU tensors; the stub hands each launch
back to Python.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from customops.triton_kernels.launch import Launch
from triton import JITFunction, knobs
from triton.backends.nvidia import driver as nvidia
from triton.runtime import driver

from customops import config

from .driver_launch import DriverLaunch, Loaded, Origin

SOURCE = Path(__file__).with_name("stub_libcuda.c")
LAUNCH_FAILED = 719  # CUDA_ERROR_LAUNCH_FAILED


class _Launch(ctypes.Structure):
    """The struct ``launch`` of the stub."""

    _fields_ = (
        ("function", ctypes.c_uint64),
        ("stream", ctypes.c_uint64),
        ("parameters", ctypes.POINTER(ctypes.c_void_p)),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("attribute_count", ctypes.c_uint),
        ("attributes", ctypes.c_uint * 8),
    )


class StubDriver(nvidia.CudaDriver):
    """Triton's driver of NVIDIA's GPUs, with an H100 that is not there and the stream that a test sets."""

    def __init__(self):
        """Build Triton's C module against the stub; torch.cuda is not asked for anything."""
        self.utils = nvidia.CudaUtils()
        self.launcher_cls = nvidia.CudaLauncher
        self.stream = 0

    def get_current_device(self) -> int:
        return 0

    def get_device_capability(self, _device: int) -> tuple[int, int]:
        return 9, 0

    def get_current_stream(self, _device: int) -> int:
        return self.stream


class Stub:
    """The stub in this process, and the driver of Triton's that calls it."""

    def __init__(self, folder: Path):
        """Build the stub and Triton's C module in ``folder``, and load both."""
        self.library = _build(folder)
        self.loaded: dict[int, Loaded] = {}  # by the handle of the function
        self.kernels: set[Any] = set()  # Triton's CompiledKernel of each
        self.launches: list[DriverLaunch] = []
        self.origin = Origin()  # of the launch that comes next
        self.on_launch: Callable[[DriverLaunch], None] | None = None
        self.fault: Exception | None = None
        self._receive = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Launch))(self._launched)  # C holds no reference
        self.library.stub_set_callback(self._receive)
        self._environment = {"TRITON_LIBCUDA_PATH": str(folder)}
        for cached in (nvidia.libcuda_dirs, nvidia.library_dirs):
            cached.cache_clear()
        with patch.dict(os.environ, self._environment, TRITON_CACHE_DIR=str(folder)):
            self.driver = StubDriver()

    @contextmanager
    def active(self, on_launch: Callable[[DriverLaunch], None] | None = None) -> Iterator[list[DriverLaunch]]:
        """Let Triton launch to the stub inside the block, also our operators on CPU tensors; yield the launches.

        ``on_launch`` is called at each launch, before it returns; what it raises the block raises.
        """
        self.launches, self.on_launch, self.fault = [], on_launch, None
        launch, run = Launch.__call__, JITFunction.run

        def launch_planned(planned, tensors, stream):
            self.origin = Origin(planned, tensors)
            self.kernels.add(planned.compiled)
            launch(planned, tensors, stream)

        def run_kernel(kernel, *args, **kwargs):
            self.origin = Origin(None, (*args, *kwargs.values()))
            compiled = run(kernel, *args, **kwargs)
            self.kernels.add(compiled)
            return compiled

        with ExitStack() as stack:
            stack.enter_context(patch.dict(os.environ, self._environment))
            stack.enter_context(patch.object(driver, "_active", self.driver))  # as on a GPU, without our dry run
            stack.enter_context(config.dry_running("stub:90"))
            stack.enter_context(patch.object(Launch, "__call__", launch_planned))
            stack.enter_context(patch.object(JITFunction, "run", run_kernel))
            knobs.runtime.kernel_load_end_hook.add(self._load)
            stack.callback(knobs.runtime.kernel_load_end_hook.remove, self._load)
            try:
                yield self.launches
            except RuntimeError as error:
                raise (self.fault or error) from None
            finally:
                self.on_launch = None

    def close(self) -> None:
        """Forget what is loaded: Triton 3.9 would unload it by the driver that is active when it is freed."""
        for compiled in self.kernels:
            compiled.module = None

    def _load(self, _module, function: int, name: str, files: Mapping[str, str], _hash: str) -> None:
        """Keep what was compiled of a kernel that Triton has loaded."""
        self.loaded[function] = Loaded.read(name, files)

    def _launched(self, given) -> int:
        """Copy a launch; return a driver's error code."""
        raw = given.contents
        try:
            kernel = self.loaded[raw.function]
            values = tuple(ctypes.string_at(raw.parameters[i], size) for i, size in enumerate(kernel.sizes))
            attributes = tuple(raw.attributes[: raw.attribute_count])
            grid, block = tuple(raw.grid), tuple(raw.block)
            launch = DriverLaunch(self.origin, kernel, grid, block, raw.shared_bytes, raw.stream, attributes, values)
            self.launches.append(launch)
            if self.on_launch:
                self.on_launch(launch)
        except Exception as error:
            self.fault = error
            return LAUNCH_FAILED
        return 0


def blocker() -> str | None:
    """Return why no stub can be built here, None where one can."""
    if compiler() is None:
        return "there is no C compiler"
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    if not Path(sysconfig.get_paths(scheme)["include"], "Python.h").exists():
        return "there are no headers of Python"
    return None


def compiler() -> str | None:
    """Return the C compiler that Triton takes."""
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")


def _build(folder: Path) -> ctypes.CDLL:
    library = folder / "libcuda.so.1"  # loaded under this name, it is what dlopen("libcuda.so.1") finds from now on
    flags = ["-O1", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", *(f"-I{path}" for path in nvidia.include_dirs)]
    subprocess.run([compiler(), SOURCE, *flags, "-o", library], check=True)
    return ctypes.CDLL(str(library))
