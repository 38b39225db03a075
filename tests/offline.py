"""Compile the kernels for GPUs that are not there: a Triton driver that answers for a target and launches nothing."""

from __future__ import annotations

from contextlib import contextmanager

import torch
import triton
from triton.backends.compiler import GPUTarget

import customops.dispatch

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


class OfflineDriver:
    """What Triton asks of a driver; each launch is appended to ``launches`` as the compiled kernel's metadata."""

    def __init__(self, name: str):
        self.device = list(TARGETS).index(name)  # Triton keeps one kernel cache per device
        self.target = TARGETS[name]
        self.launches: list = []
        self.utils = self
        self.launcher_cls = lambda source, metadata: lambda *_: self.launches.append(metadata)

    def get_current_target(self):
        """The GPU to compile for."""
        return self.target

    def get_current_device(self):
        """Its index."""
        return self.device

    def get_current_stream(self, _device):
        """Any stream."""
        return 0

    def get_active_torch_device(self):
        """Where tensors are."""
        return torch.device("cpu")

    def get_device_properties(self, _device):
        """Limits that the kernels must keep."""
        return {"max_shared_mem": 64 * 1024}

    def load_binary(self, *_):
        """Module, function, registers, spills, most threads: nothing is loaded."""
        return None, None, 0, 0, 1024


@contextmanager
def offline(name: str):
    """CPU tensors take the kernels' path and every launch is compiled for target ``name``, recorded, not made."""
    driver, obstacle = OfflineDriver(name), customops.dispatch._obstacle
    customops.dispatch._obstacle = lambda *_: None
    triton.runtime.driver.set_active(driver)
    try:
        yield driver.launches
    finally:
        triton.runtime.driver.set_active(None)
        customops.dispatch._obstacle = obstacle
