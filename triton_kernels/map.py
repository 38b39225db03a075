"""The map kernel: each element by itself. Its parameters are in the legend of ``body.py``."""

import triton
import triton.language as tl

from .body import evaluate, is_one, load, store
from .layout import COLUMNS

_COLUMNS = tl.constexpr(COLUMNS)
_SHORT = tl.constexpr(64)  # formulas of a body whose code may stand twice: to compile takes as long


@triton.jit
def map_kernel(
    operands, outputs, operand_strides, output_strides, sizes, extents, tile_counts,
    BODY: tl.constexpr, GEOMETRY: tl.constexpr,
):  # fmt: skip
    """Load the operands of a tile of rows x columns, evaluate the body, store its outputs."""
    pid = tl.program_id(0).to(GEOMETRY.index_dtype)
    if is_one(tile_counts[0]):  # a division by what is not compiled in takes 25 instructions
        row_tile, column_tile = 0, pid
    else:
        row_tile, column_tile = pid // tile_counts[1], pid % tile_counts[1]
    first_row = row_tile * GEOMETRY.tile[0]
    first_column = column_tile * GEOMETRY.tile[1]
    rows = (first_row + tl.arange(0, GEOMETRY.tile[0]))[:, None]
    columns = (first_column + tl.arange(0, GEOMETRY.tile[1]))[None, :]
    memory = (operands, outputs, operand_strides, output_strides, sizes, extents)
    is_short: tl.constexpr = len(BODY.formulas) <= _SHORT
    if (GEOMETRY.has_tail or (is_one(tile_counts[0]) and is_short)) and (first_column + GEOMETRY.tile[1] <= extents[1]):
        # a mask along the columns takes instructions, and would break up the vectors of a tile that needs none
        _map_tile(memory, (rows, columns), _COLUMNS, BODY, GEOMETRY)
    else:
        _map_tile(memory, (rows, columns), None, BODY, GEOMETRY)


@triton.jit
def _map_tile(memory, indices, UNMASKED: tl.constexpr, BODY: tl.constexpr, GEOMETRY: tl.constexpr):
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
            UNMASKED,
            BODY,
            GEOMETRY,
        )
        values = values + (operand,)
    values = evaluate(values, None, None, BODY, GEOMETRY)
    for j in tl.static_range(len(outputs)):
        value = values[BODY.outputs[j]]
        store(outputs[j], output_strides[j], sizes, extents, indices, value, j, UNMASKED, GEOMETRY)
