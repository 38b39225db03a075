"""Wrap a few instructions of PTX into a kernel, and execute it on NumPy arrays."""

from __future__ import annotations

import numpy as np

from customops.ptx.machine import load
from customops.ptx.regions import Buffer

TEXT = """.version 8.7
.target sm_90a
.address_size 64
.file 1 "/home/someone/kernel.py"
{outside}
.extern .shared .align 16 .b8 shared[];
.visible .entry kernel(
{parameters}
)
{directives}
{{
.reg .pred %p<16>;
.reg .b16 %h<32>;
.reg .b32 %r<64>;
.reg .b64 %d<32>;
.reg .b64 %x<8>;
.reg .b32 %t, %c;
{start}
{body}
ret;
}}
"""


def kernel(body, arguments=1, outside="", directives=""):
    """Return the text of a kernel.

    ``%x0``, ``%x1`` ... have its arguments, ``%t`` the thread, ``%c`` the program; ``shared`` is its shared memory.
    Line ``i`` of ``body`` comes from line ``i`` of kernel.py. There are as many ``arguments``, all of them pointers.
    """
    parameters = ",\n".join(f".param .u64 .ptr .global .align 1 argument_{i}" for i in range(arguments))
    start = [f"ld.param.b64 %x{i}, [argument_{i}];" for i in range(arguments)]
    start += ["mov.u32 %t, %tid.x;", "mov.u32 %c, %ctaid.x;"]
    lines = [f".loc 1 {i} 0\n{line}" for i, line in enumerate(body.strip().splitlines(), 1)]
    return TEXT.format(
        outside=outside, directives=directives, parameters=parameters, start="\n".join(start), body="\n".join(lines)
    )


def aligned(array):
    """Return a copy of an array whose address suits the widest access."""
    memory = np.zeros(array.nbytes + 32, np.uint8)
    memory = memory[-memory.ctypes.data % 32 :][: array.nbytes].view(array.dtype).reshape(array.shape)
    memory[...] = array
    return memory


def buffer(name, array, is_writable=True):
    strides = tuple(stride // array.itemsize for stride in array.strides)
    return Buffer(name, array.__array_interface__["data"][0], array.itemsize, array.shape, strides, is_writable)


def run(body, *arrays, grid=1, threads=32, shared=0, inputs=(), **options):
    """Execute ``body`` with pointers to ``arrays``, which are named x0, x1 ...; ``inputs`` are only read.

    An integer among them is passed as it is. ``grid`` is the number of programs, along one axis or along all three.
    """
    grid = (grid, 1, 1) if isinstance(grid, int) else grid
    arrays = [np.asarray(a) if not isinstance(a, int) else a for a in arrays]
    bits = [a if isinstance(a, int) else a.__array_interface__["data"][0] for a in arrays]
    buffers = {i: buffer(f"x{i}", a, i not in inputs) for i, a in enumerate(arrays) if not isinstance(a, int)}
    return load(kernel(body, len(arrays), **options)).execute(grid, threads, bits, buffers, shared)


def at(to, base, width, index="%t"):
    """Return what computes the address of element ``index`` of ``base``, of ``width`` bytes."""
    return f"mad.wide.u32 {to}, {index}, {width}, {base};"


def outputs(body, registers, kind="b32", threads=32, grid=1, **options):
    """Execute ``body``, then return what each thread has in each register: [registers, programs * threads]."""
    itemsize = int(kind[1:]) // 8
    results = [np.zeros(grid * threads, f"u{itemsize}") for _ in registers]
    stores = [f"mad.lo.u32 %r63, %c, {threads}, %t;"]
    for i, name in enumerate(registers):
        stores += [at("%d31", f"%x{i}", itemsize, "%r63"), f"st.global.{kind} [%d31], {name};"]
    run("\n".join([body.strip(), *stores]), *results, threads=threads, grid=grid, **options)
    return np.stack(results)
