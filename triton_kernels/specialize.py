"""What a kernel is compiled for: few kernels serve all shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._compat import pointer_type
from .layout import COLUMNS, OUTER, ROWS, TILED, VECTOR_BYTES, Layout

Words = tuple[int, ...]  # numbers of elements that are 16 bytes of some dtypes, largest first


def specialize(operands: Sequence, outputs: Sequence, layout: Layout, integers: tuple, constants: tuple):
    """The type of each argument of a kernel, and by their paths constants and divisors.

    Of a tensor that is its dtype and alignment. Of integers it is only what whole words need: which strides are 0 or
    1, and whether a word divides the other strides, the sizes that an offset is taken apart by, and the extents along
    which elements lie side by side. What is 1 for all lengths is fixed, too: extents without
    axes, the one tile of a row.
    """
    fixed: dict[tuple[int, ...], Any] = {}
    divisors: dict[tuple[int, ...], int] = {}

    def pointers(at, slots):
        divisors.update(((at, i), VECTOR_BYTES) for i, slot in enumerate(slots) if slot.aligned and slot.dtype)
        return tuple([pointer_type(slot.dtype) if slot.dtype else "i64" for slot in slots])

    def integer(path, value, words: Words, fixes: bool):
        if isinstance(value, tuple):
            return tuple([integer((*path, i), item, words, fixes) for i, item in enumerate(value)])
        if fixes and value in (0, 1):
            fixed[path] = value
            return "constexpr"
        for word in words:
            if value % word == 0:
                divisors[path] = word
                break
        return "i32" if value < 2**31 else "i64"

    types: list[Any] = [pointers(0, operands), pointers(1, outputs)]
    words = _words(operands, outputs, layout)
    one = [not group for group in layout.sizes]
    blocks = [group == layout.row or one[group] for group in ((OUTER, TILED) if len(one) == 3 else (ROWS, COLUMNS))]
    fixes = [True] * len(operands), [True] * len(outputs), [False] * len(one), one, blocks, [True] * len(outputs)
    for at, each in enumerate(zip(integers, words, fixes, strict=False), 2):
        types.append(tuple([integer((at, i), *needs) for i, needs in enumerate(zip(*each, strict=True))]))
    types += [integer((at,), values, (), False) for at, values in enumerate(integers[len(words) :], len(types))]
    fixed |= {(i,): value for i, value in enumerate(constants, len(types))}
    types += ["constexpr"] * len(constants)
    return tuple(types), tuple(fixed.items()), tuple(divisors.items())


def _words(operands: Sequence, outputs: Sequence, layout: Layout) -> list[list[Words]]:
    """What may divide the strides of operands and of outputs, sizes, extents, blocks and the strides of parts.

    Of a tensor it is a word of its dtype, if its elements lie side by side; of what passes between launches a word of
    the others, so that it makes no kernels of its own. A launch that reads nothing else goes without.
    """
    slots, strides = (*operands, *outputs), (*layout.operands, *layout.outputs)
    own = [() if s.is_scratch or not s.dtype else (VECTOR_BYTES // s.dtype.itemsize,) for s in slots]
    if all(slot.is_scratch for slot in operands):
        own = [()] * len(slots)
    every = tuple(sorted({word for words in own for word in words}, reverse=True))
    along: list[set[int]] = [set() for _ in layout.extents]
    by_tensor: list[Words] = []
    for slot, groups, words in zip(slots, strides, own, strict=True):
        beside = [i for i, group in enumerate(groups) if group[-1:] == (1,)]
        by_tensor.append((every[:1] if slot.is_scratch else words) if beside else ())
        for i in beside:
            along[i].update(words)
    n, groups = len(operands), len(layout.extents)
    writes = by_tensor[n:]
    by_group = [tuple(sorted(words, reverse=True)) for words in along]
    return [by_tensor[:n], writes, [every] * groups, by_group, [()] * (groups - (groups == 3)), writes]
