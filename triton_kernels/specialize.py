"""The facts about arguments that a kernel is compiled for: few kernels serve all shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from .._compat import pointer_type
from .layout import COLUMNS, OUTER, ROWS, TILED, VECTOR_BYTES, Layout

Vectors = tuple[int, ...]  # elements in a vector of some dtypes, largest first
Path = tuple[int, ...]  # where an integer or a pointer stands: the position of the argument, then of each item in it


class Specialization(NamedTuple):
    """The facts about arguments that one kernel is compiled for."""

    types: tuple  # of each argument: Triton's type, or a tuple of the types of its items
    constants: tuple[tuple[Path, Any], ...]  # what is compiled in, by its path
    divisors: tuple[tuple[Path, int], ...]  # what surely divides an argument, by its path


class Rule(NamedTuple):
    """A rule for specialising one integer, or every integer of one tuple."""

    vectors: Vectors = ()  # the first of these that divides it is a divisor that the kernel may count on
    fixes_0_and_1: bool = False  # whether the values 0 and 1 are compiled in


class Rules(NamedTuple):
    """The rules for the integers that all kernels take, and for the first that those with a loop take."""

    operand_strides: list[Rule]  # of each operand
    output_strides: list[Rule]  # of each output
    sizes: list[Rule]  # of each group
    extents: list[Rule]  # of each group
    tile_counts: list[Rule]  # of each group, but the looped one
    partial_strides: list[Rule]  # of each output


def specialize(
    operands: Sequence, outputs: Sequence, layout: Layout, integers: tuple, constants: tuple
) -> Specialization:
    """Return what a kernel with these arguments is compiled for.

    Of a tensor that is its dtype and alignment. Of integers it is only what whole vectors need: which strides are 0 or
    1, and whether a vector divides the other strides, the sizes that an offset is taken apart by, and the extents along
    which elements lie side by side. Also what is 1 for all lengths is compiled in: extents without axes, the only tile
    of a row.
    """
    facts = _Facts()
    types: list[Any] = [facts.of_pointers(0, operands), facts.of_pointers(1, outputs)]
    rules = _rules(operands, outputs, layout)
    for at, (values, by_item) in enumerate(zip(integers, rules, strict=False), 2):
        items = enumerate(zip(values, by_item, strict=True))
        types.append(tuple([facts.of_integers((at, i), value, rule) for i, (value, rule) in items]))
    for at, values in enumerate(integers[len(rules) :], len(types)):
        types.append(facts.of_integers((at,), values, Rule()))
    facts.constants |= {(at,): value for at, value in enumerate(constants, len(types))}
    types += ["constexpr"] * len(constants)
    return Specialization(tuple(types), tuple(facts.constants.items()), tuple(facts.divisors.items()))


class _Facts:
    """The facts about arguments that are known, or compiled in, besides their types."""

    def __init__(self):
        self.constants: dict[Path, Any] = {}  # the value of what is compiled in
        self.divisors: dict[Path, int] = {}  # what surely divides an integer, or the address of a pointer

    def of_pointers(self, at: int, tensors: Sequence) -> tuple[str, ...]:
        """Note the alignment of tensors, and return the types of their pointers; a number is an integer."""
        self.divisors.update(((at, i), VECTOR_BYTES) for i, x in enumerate(tensors) if x.aligned and x.dtype)
        return tuple([pointer_type(x.dtype) if x.dtype else "i64" for x in tensors])

    def of_integers(self, path: Path, value: Any, rule: Rule) -> Any:
        """Note what the rule asks about an integer, or a tuple of them, and return the type."""
        if isinstance(value, tuple):
            return tuple([self.of_integers((*path, i), item, rule) for i, item in enumerate(value)])
        if rule.fixes_0_and_1 and value in (0, 1):
            self.constants[path] = value
            return "constexpr"
        for vector in rule.vectors:
            if value % vector == 0:
                self.divisors[path] = vector
                break
        return "i32" if value < 2**31 else "i64"


def _rules(operands: Sequence, outputs: Sequence, layout: Layout) -> Rules:
    """Return the rules of a launch.

    A vector of its dtype may divide the strides of a tensor whose elements lie side by side. For a scratch buffer it is
    a vector of the other tensors, so that it makes no kernels of its own; a launch that reads nothing but scratch
    buffers goes without.
    """
    tensors = (*operands, *outputs)
    own, all_vectors = list(_own_vectors(operands, tensors)), _all_vectors(operands, outputs)
    by_group: list[set[int]] = [set() for _ in layout.extents]
    by_tensor: list[Rule] = []
    for x, groups, vectors in zip(tensors, (*layout.operand_strides, *layout.output_strides), own, strict=True):
        contiguous = [i for i, strides in enumerate(groups) if strides[-1:] == (1,)]
        if layout.has_rows and groups and not any(groups[TILED]):  # one value for each row, which no vectors load
            contiguous = []
        by_tensor.append(Rule((all_vectors[:1] if x.is_scratch else vectors) if contiguous else (), True))
        for i in contiguous:
            by_group[i].update(vectors)
    n = len(operands)
    is_empty = [not sizes for sizes in layout.sizes]
    counted = (OUTER, TILED) if len(is_empty) == 3 else (ROWS, COLUMNS)
    return Rules(
        operand_strides=by_tensor[:n],
        output_strides=by_tensor[n:],
        sizes=[Rule(all_vectors)] * len(is_empty),
        extents=[Rule(tuple(sorted(v, reverse=True)), empty) for v, empty in zip(by_group, is_empty, strict=True)],
        tile_counts=[Rule((), is_empty[group] or (layout.has_rows and group == TILED)) for group in counted],
        partial_strides=by_tensor[n:],
    )


def size_units(operands: Sequence, outputs: Sequence, layout: Layout) -> tuple[int, ...]:
    """Return for each group the elements that are sure to lie side by side along its innermost axis, one vector or 1.

    It follows from the divisors that :func:`specialize` notes, so that it makes no kernels of its own.
    """
    vectors = _all_vectors(operands, outputs)
    return tuple(
        next((vector for vector in vectors if len(sizes) > 1 and sizes[-1] % vector == 0), 1) for sizes in layout.sizes
    )


def _all_vectors(operands: Sequence, outputs: Sequence) -> Vectors:
    """Return the vectors of all tensors, largest first."""
    own = _own_vectors(operands, (*operands, *outputs))
    return tuple(sorted({vector for vectors in own for vector in vectors}, reverse=True))


def _own_vectors(operands: Sequence, tensors: Sequence) -> Iterator[Vectors]:
    """Yield the vector of each tensor by its own dtype; nothing for a number and a scratch buffer."""
    reads_scratch_alone = all(x.is_scratch for x in operands)
    for x in tensors:
        goes_without = reads_scratch_alone or x.is_scratch or not x.dtype
        yield () if goes_without else (VECTOR_BYTES // x.dtype.itemsize,)
