"""The map kernel: a program over elements."""

import triton
import triton.language as tl

from .program import evaluate, load, store


@triton.jit
def map_kernel(
    operands,
    operand_strides,
    outputs,
    output_strides,
    sizes,
    extents,
    FORMULAS: tl.constexpr,
    WIRES: tl.constexpr,
    RESULTS: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUPS: tl.constexpr,
    COMMON: tl.constexpr,
    COMPUTE: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Each block of elements: load the operands, evaluate the program, store its results."""
    indices = (tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK),)
    values = ()
    for i in tl.static_range(len(operands)):
        values = values + (load(operands[i], operand_strides[i], sizes, extents, indices, GROUPS[i], COMMON, COMPUTE),)
    values = evaluate(FORMULAS, WIRES, values)
    for j in tl.static_range(len(outputs)):
        store(outputs[j], output_strides[j], sizes, extents, indices, values[RESULTS[j]], None)
