"""Each fault that a kernel can have is found where it happens, and what a kernel may do is no fault."""

from __future__ import annotations

import numpy as np
import pytest

from customops.ptx.faults import KernelFault
from customops.ptx.machine import load

from .ptx_planted import ALLOWED, FAULTS
from .ptx_text import kernel, run

pytestmark = pytest.mark.sample(kernels="")  # it asks nothing of the interpreter


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_where_it_happens(name, monkeypatch):
    fault = FAULTS[name]
    options = {"shared": 256, **fault.options}
    monkeypatch.setattr("customops.ptx.machine.LANES_AT_ONCE", options.pop("at_once", 4096))
    arrays = [
        a.copy() if isinstance(a, np.ndarray) and a.flags.c_contiguous and a.base is None else a for a in fault.arrays
    ]
    with pytest.raises(KernelFault, match=fault.reason) as raised:
        run(fault.body, *arrays, **options)
    found = raised.value
    lines = fault.body.strip().splitlines()
    (line,) = (i for i, text in enumerate(lines) if "// here" in text)
    assert found.kernel == "kernel"
    assert found.source == f"kernel.py:{line + 1}"
    assert found.instruction == lines[line].partition(";")[0].strip()
    assert found.thread == fault.thread
    assert found.program == (None if fault.thread is None else (fault.program, 0, 0))
    assert found.tensor == fault.tensor
    assert all(str(x) in str(found) for x in (found.instruction, found.source, "kernel kernel"))


@pytest.mark.parametrize("at_once", [1, 4096])
@pytest.mark.parametrize("name", ALLOWED)
def test_what_a_kernel_may_do_is_no_fault(name, at_once, monkeypatch):
    monkeypatch.setattr("customops.ptx.machine.LANES_AT_ONCE", at_once)
    run(ALLOWED[name], np.zeros(64, np.uint32)[:40], np.zeros(1, np.uint32), grid=3, threads=64, shared=256)


def test_a_launch_with_another_number_of_threads_is_a_fault():
    with pytest.raises(KernelFault, match="a launch with 64 threads, where the code is for"):
        run("", threads=64, directives=".reqntid 128")
    run("", threads=128, directives=".reqntid 128")


def test_a_launch_without_a_parameter_is_an_error():
    with pytest.raises(ValueError, match="kernel takes 1 parameters, got 0"):
        load(kernel("", 1)).execute((1, 1, 1), 32, [], {})
