"""The map kernel: a program over elements."""

import triton
import triton.language as tl

from .body import evaluate, load, store
from .layout import COLUMNS

_COLUMNS = tl.constexpr(COLUMNS)


@triton.jit
def map_kernel(
    operands, outputs, operand_strides, output_strides, sizes, extents, blocks,
    PROGRAM: tl.constexpr, GEOMETRY: tl.constexpr,
):  # fmt: skip
    """Each tile of rows x columns: load the operands, evaluate the program, store its results.

    Where the program folds along the row, a tile has all of its columns.
    """
    program = tl.program_id(0).to(GEOMETRY.index)
    row = program // blocks[1] * GEOMETRY.tile[0]
    column = program % blocks[1] * GEOMETRY.tile[1]
    rows = (row + tl.arange(0, GEOMETRY.tile[0]))[:, None]
    columns = (column + tl.arange(0, GEOMETRY.tile[1]))[None, :]
    memory = (operands, outputs, operand_strides, output_strides, sizes, extents)
    if GEOMETRY.ragged and column + GEOMETRY.tile[1] <= extents[1]:
        # a mask along the columns would break up the wide loads of a tile that needs none
        _map_tile(memory, (rows, columns), _COLUMNS, PROGRAM, GEOMETRY)
    else:
        _map_tile(memory, (rows, columns), None, PROGRAM, GEOMETRY)


@triton.jit
def _map_tile(memory, indices, WHOLE: tl.constexpr, PROGRAM: tl.constexpr, GEOMETRY: tl.constexpr):
    operands, outputs, operand_strides, output_strides, sizes, extents = memory
    values = ()
    for i in tl.static_range(len(operands)):
        operand = load(
            operands[i],
            operand_strides[i],
            sizes,
            extents,
            indices,
            i,
            WHOLE,
            PROGRAM,
            GEOMETRY,
        )
        values = values + (operand,)
    values = evaluate(values, indices[1] < extents[1], extents[1], PROGRAM, GEOMETRY)
    for j in tl.static_range(len(outputs)):
        value = values[PROGRAM.results[j]]
        store(outputs[j], output_strides[j], sizes, extents, indices, value, GEOMETRY.lacking[j], WHOLE)
